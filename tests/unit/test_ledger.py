import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain

import numpy as np
import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from dicom_node.archive import ArchivedFile
from dicom_node.claims import Claims
from dicom_node.database import Database
from dicom_node.domain import (
    SITE,
    Decision,
    DeclineReason,
    DeliveryState,
    LostLeaseError,
    MemberMap,
    PixelError,
    Remark,
    State,
    TargetResult,
    invariant_holds,
)
from dicom_node.ledger import Ledger, ReleaseError
from dicom_node.outbox import Outbox
from dicom_node.predictions import MapPlace
from dicom_node.tables import (
    InstanceRow,
    OutcomeRow,
    ReleaseRow,
    ScreeningRow,
    TransitionRow,
)
from tests.ledger_factories import LATERAL, prediction, received, reported
from tests.result_factories import manifest as make_manifest
from tests.result_factories import target as make_target


@pytest.fixture
def ledger(database):
    found = Ledger(database)
    found.activate_release(make_manifest())
    return found


@pytest.fixture
def claims(database):
    return Claims(database)


@pytest.fixture
def outbox(database):
    return Outbox(database, retry_base_s=60, retry_max_s=60)


def at_once(count, work):
    """`work(index)` from so many threads that begin together; their results."""
    together = threading.Barrier(count)

    def run(index):
        together.wait()
        return work(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def state_of(database):
    with database.read() as session:
        return session.scalars(select(ScreeningRow.state)).one()


def test_a_new_instance_waits(ledger):
    assert ledger.record(received())[0] == "new"
    counts = ledger.counts()
    assert (counts["received"], counts["waiting"]) == (1, 1)
    assert invariant_holds(counts)


def test_a_declined_instance_is_recorded_with_its_reason_and_never_claimed(ledger, database, claims):
    ledger.record(received(admission=LATERAL))
    assert ledger.counts()["declined"] == 1
    assert claims.claim("worker", 20) is None
    with database.read() as session:
        assert session.scalars(select(ScreeningRow.reason)).one() == "lateral"


def test_the_same_bytes_again_are_a_duplicate_and_others_a_conflict(ledger):
    assert ledger.record(received())[0] == "new"
    assert ledger.record(received())[0] == "duplicate"
    assert ledger.record(received(sha256="f" * 64))[0] == "conflict"
    counts = ledger.counts()
    assert (counts["received"], counts["duplicates"], counts["conflicts"]) == (1, 1, 1)


def test_an_instance_without_a_screening_breaks_the_invariant(ledger, database):
    ledger.record(received())
    with database.write() as session:
        session.execute(text("DELETE FROM transitions"))
        session.execute(text("DELETE FROM screenings"))
    assert not invariant_holds(ledger.counts())


def test_nothing_is_recorded_without_an_active_release(database):
    with pytest.raises(ReleaseError, match="no bundle release"):
        Ledger(database).record(received())


def test_the_active_release_is_the_one_that_was_activated_last(database):
    ledger = Ledger(database)
    assert ledger.active_manifest() is None
    second = make_manifest().model_copy(update={"release": "2.0.0"})
    ledger.activate_release(make_manifest())
    ledger.activate_release(second)
    assert ledger.active_manifest() == second


def test_a_process_without_an_active_release_is_told_what_to_do(database):
    ledger = Ledger(database)
    remedy = "start `dicom-node up` once" if database.embedded else "run `dicom-node db upgrade`"
    with pytest.raises(ReleaseError, match=f"no bundle release is active.*{remedy}"):
        ledger.expect_any_release()
    ledger.activate_release(make_manifest())
    ledger.expect_any_release()


def test_no_screening_waits_for_a_release_that_was_left_meanwhile(postgres_dsn):
    """Else a worker with the new bundle would meet it, and could not screen it. (SQLite has one writer at a time.)"""
    database = Database(postgres_dsn)
    ledger = Ledger(database)
    ledger.activate_release(make_manifest())
    releases = [make_manifest().model_copy(update={"release": f"{number}.0.0"}) for number in range(2, 8)]
    stop = threading.Event()

    def receive(thread):
        number = 0
        while not stop.is_set():
            number += 1
            assert ledger.record(received(f"{thread}.{number}"))[0] == "new"

    with ThreadPoolExecutor(4) as pool:
        receiving = [pool.submit(receive, thread) for thread in range(1, 5)]
        try:
            for release in releases:
                time.sleep(0.02)
                ledger.activate_release(release)
        finally:
            stop.set()
        for future in receiving:
            future.result()
    with database.read() as session:
        assert session.scalar(select(func.count()).where(ReleaseRow.active)) == 1
        waits_for = set(session.scalars(select(ReleaseRow.release).join(ScreeningRow)))
    assert waits_for == {"7.0.0"}
    database.close()


def test_two_activations_at_the_same_time_leave_one_release_active(ledger, database):
    releases = [make_manifest().model_copy(update={"release": f"{number}.0.0"}) for number in range(2, 10)]
    at_once(8, lambda index: ledger.activate_release(releases[index]))
    with database.read() as session:
        assert session.scalar(select(func.count()).where(ReleaseRow.active)) == 1


def test_text_that_no_database_takes_is_no_reason_to_refuse_an_image(ledger, database):
    assert ledger.record(received(patient_name="A\0B\udc80", patient_id="\0"))[0] == "new"
    with database.read() as session:
        assert session.execute(select(InstanceRow.patient_name, InstanceRow.patient_id)).one() == ("AB?", "")


def test_a_release_with_another_manifest_under_the_same_name_is_refused(ledger):
    changed = make_manifest().model_copy(update={"title": "another"})
    with pytest.raises(ReleaseError, match="needs a new release"):
        ledger.activate_release(changed)


def test_what_waits_is_screened_by_the_release_that_is_active_when_it_is_claimed(ledger, claims):
    ledger.record(received())
    ledger.activate_release(make_manifest().model_copy(update={"release": "2.0.0"}))
    assert claims.claim("worker", 20).manifest.release == "2.0.0"


def test_many_workers_never_claim_the_same_screening(ledger, claims):
    for number in range(100):
        ledger.record(received(number))

    def work(index):
        claimed = []
        while (claim := claims.claim(f"worker{index}", 20)) is not None:
            claimed.append(claim.screening_id)
        return claimed

    claimed = list(chain(*at_once(8, work)))
    assert len(claimed) == len(set(claimed)) == 100


def test_the_same_instance_from_eight_associations_at_once_is_one_and_seven_duplicates(ledger, database):
    answers = at_once(8, lambda _: ledger.record(received())[0])
    assert sorted(answers) == ["duplicate"] * 7 + ["new"]
    counts = ledger.counts()
    assert (counts["received"], counts["waiting"], counts["duplicates"]) == (1, 1, 7)


def test_two_sweeps_at_once_count_an_expired_lease_once(ledger, database, claims):
    for number in range(20):
        ledger.record(received(number))
        claims.claim("worker", 0.001)
    time.sleep(0.05)
    code = (
        "import sys; from dicom_node.claims import Claims; from dicom_node.database import Database\n"
        "claims = Claims(Database(sys.argv[1])); print('ready', flush=True); input()\n"
        "print(claims.expire_leases(max_failures=3))"
    )
    sweeps = [
        subprocess.Popen(
            [sys.executable, "-c", code, database.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for sweep in sweeps:
        sweep.stdout.readline()
    for sweep in sweeps:
        sweep.stdin.write("\n")
        sweep.stdin.flush()
    assert sum(int(sweep.communicate(timeout=30)[0]) for sweep in sweeps) == 20
    with database.read() as session:
        assert set(session.scalars(select(ScreeningRow.failures))) == {1}


def test_the_counts_are_of_one_moment(ledger, database, monkeypatch):
    """An instance is recorded between the first query and the last: it is in all of them or in none."""
    ledger.record(received(1))
    other, execute, seen = Ledger(Database(database.url)), Session.execute, []

    def record_once(session, *arguments, **options):
        result = execute(session, *arguments, **options)
        if not seen:
            seen.append(True)
            other.record(received(2))
        return result

    with monkeypatch.context() as patched:
        patched.setattr(Session, "execute", record_once)
        counts = ledger.counts()
    other._database.close()
    assert seen
    assert (counts["received"], counts["waiting"]) == (1, 1)
    assert ledger.counts()["received"] == 2


def test_the_way_of_a_screening_is_in_the_transitions(ledger, database, outbox, claims):
    reported(database)
    for parcel in outbox.claim("deliverer", 10, 60):
        outbox.sent(parcel, 0x0000)
        outbox.proven(parcel, DeliveryState.READ_BACK)
    with database.read() as session:
        states = session.scalars(select(TransitionRow.to_state).order_by(TransitionRow.id)).all()
    assert states == ["waiting", "claimed", "predicted", "reported", "delivered"]


def test_the_stored_prediction_comes_back_to_the_last_bit(ledger, claims):
    ledger.record(received())
    claim = claims.claim("worker", 20)
    covered = MemberMap("zhang", "classification", np.zeros((6, 6), np.uint8), (0.1, 0.2, 0.3, 0.4))
    given = replace(prediction(claim.manifest), maps=(covered,))
    claims.save_prediction(claim, given, ArchivedFile("bb/maps.zip", "b" * 64, 9))
    found = claims.load_prediction(claim)
    assert found.prediction.targets == given.targets
    assert found.prediction.members == given.members
    assert found.maps == (MapPlace("bb/maps.zip", "zhang", "classification", (0.1, 0.2, 0.3, 0.4)),)
    assert found.predicted_at.tzinfo is not None


def test_decisions_and_remarks_come_back_and_what_is_indeterminate_is_not_flagged(ledger, database, claims):
    two = make_manifest(release="2", targets=(make_target("covid"), make_target("pneumonia")))
    ledger.activate_release(two)
    ledger.record(received())
    claim = claims.claim("worker", 20)
    decisions = (Decision.INDETERMINATE, Decision.FLAGGED)
    given = replace(
        prediction(two),
        targets=tuple(
            TargetResult(target.name, 0.75, 0.5, decision, operating_point=point)
            for target, decision, point in zip(two.targets, decisions, ("balanced", SITE), strict=True)
        ),
        remarks=(Remark.POLARITY_MENDED, f"{Remark.TURNED}:90"),
    )
    claims.save_prediction(claim, given, None)
    found = claims.load_prediction(claim).prediction
    assert found.targets == given.targets
    assert found.targets[1].operating_point == "site"
    assert found.remarks == ("polarity_mended", "turned:90")
    assert ledger.summary("1.2.1").targets == given.targets
    with database.read() as session:
        rows = set(session.execute(select(OutcomeRow.target, OutcomeRow.decision, OutcomeRow.flagged)).tuples())
    assert rows == {("covid", "indeterminate", False), ("pneumonia", "flagged", True)}


@pytest.mark.parametrize("flagged", [True, False])
def test_what_a_process_of_the_version_before_wrote_is_decided_by_its_flag(ledger, database, claims, flagged):
    ledger.record(received())
    claim = claims.claim("worker", 20)
    claims.save_prediction(claim, prediction(claim.manifest), None)
    with database.write() as session:  # as the column's default makes it
        session.execute(update(OutcomeRow).values(decision="", flagged=flagged))
    (answer,) = claims.load_prediction(claim).prediction.targets
    assert answer.decision == (Decision.FLAGGED if flagged else Decision.NOT_FLAGGED)


def test_a_worker_that_lost_its_lease_writes_nothing(ledger, database, claims):
    ledger.record(received())
    late = claims.claim("late", 0.001)
    time.sleep(0.05)
    assert claims.expire_leases(max_failures=3) == 1
    current = claims.claim("current", 20)
    assert current.attempt == late.attempt + 1
    for write in (
        lambda: claims.renew(late, 20),
        lambda: claims.save_prediction(late, prediction(late.manifest), None),
        lambda: claims.decline(late, DeclineReason.CONSTANT, ""),
        lambda: claims.fail(late, PixelError("x", "y")),
        lambda: claims.give_back(late, "", pause_s=0),
        lambda: claims.count_failure(late, "", max_failures=3, pause_s=0),
    ):
        with pytest.raises(LostLeaseError):
            write()
    assert state_of(database) == State.CLAIMED
    claims.save_prediction(current, prediction(current.manifest), None)
    assert state_of(database) == State.PREDICTED


def test_a_lost_lease_writes_nothing_even_while_nobody_else_has_claimed(ledger, database, claims):
    ledger.record(received())
    late = claims.claim("late", 0.001)
    time.sleep(0.05)
    claims.expire_leases(max_failures=3)
    with pytest.raises(LostLeaseError):
        claims.save_prediction(late, prediction(late.manifest), None)
    assert state_of(database) == State.WAITING


def test_a_renewed_lease_does_not_expire(ledger, claims):
    ledger.record(received())
    claim = claims.claim("worker", 0.2)
    claims.renew(claim, 20)
    time.sleep(0.3)
    assert claims.expire_leases(max_failures=3) == 0


def test_three_expired_leases_end_a_screening(ledger, database, claims):
    ledger.record(received())
    for _ in range(3):
        assert claims.claim("worker", 0.001) is not None
        time.sleep(0.02)
        claims.expire_leases(max_failures=3)
    assert claims.claim("worker", 20) is None
    with database.read() as session:
        row = session.scalars(select(ScreeningRow)).one()
    assert (row.state, row.reason, row.failures) == ("failed", "attempts_exhausted", 3)


def test_three_failures_of_its_own_end_a_screening_and_each_makes_it_wait_longer(ledger, database, claims):
    ledger.record(received())
    for failure in range(3):
        claim = claims.claim("worker", 20)
        claims.count_failure(claim, "ValueError at report.py:1", max_failures=3, pause_s=60)
        if failure < 2:
            assert claims.claim("worker", 20) is None
            with database.write() as session:
                pause = session.scalars(select(ScreeningRow.not_before)).one() - datetime.now(UTC)
                assert 50 * 2**failure < pause.total_seconds() <= 60 * 2**failure
                session.execute(update(ScreeningRow).values(not_before=None))
    with database.read() as session:
        row = session.scalars(select(ScreeningRow)).one()
    assert (row.state, row.reason, row.detail) == ("failed", "attempts_exhausted", "ValueError at report.py:1")


def test_a_claim_that_is_given_back_is_not_counted_and_lets_others_go_first(ledger, claims):
    ledger.record(received(1))
    ledger.record(received(2))
    for _ in range(5):
        claim = claims.claim("worker", 20)
        claims.give_back(claim, "OSError", pause_s=0)
    first = claims.claim("worker", 20)
    claims.give_back(first, "OSError", pause_s=60)
    assert claims.claim("worker", 20).screening_id != first.screening_id


def test_a_claimed_row_without_a_lease_is_recovered_too(ledger, database, claims):
    ledger.record(received())
    claims.claim("worker", 20)
    with database.write() as session:
        session.execute(text("UPDATE screenings SET lease_expires_at = NULL"))
    assert claims.recover() == 1
    assert claims.claim("worker", 20) is not None


def test_a_restart_gives_back_every_claim_at_once_and_uncounted(ledger, database, claims):
    ledger.record(received())
    for _ in range(5):
        assert claims.claim("worker", 20) is not None
        assert claims.recover() == 1
    with database.read() as session:
        row = session.scalars(select(ScreeningRow)).one()
    assert (row.state, row.failures, row.attempt) == ("waiting", 0, 5)


def test_a_predicted_screening_keeps_its_prediction_over_a_restart(ledger, claims):
    ledger.record(received())
    claim = claims.claim("worker", 20)
    claims.save_prediction(claim, prediction(claim.manifest), None)
    claims.recover()
    again = claims.claim("worker", 20)
    assert again.state is State.PREDICTED
    assert claims.load_prediction(again).prediction.members == prediction(claim.manifest).members


def test_a_locked_database_is_an_error_and_writes_nothing(ledger, database, monkeypatch):
    monkeypatch.setattr("dicom_node.database._BUSY_TIMEOUT_S", 0.05)
    with database.write() as blocker:
        blocker.execute(update(ScreeningRow).values(attempt=0))  # SQLite has one writer
        if not database.embedded:
            blocker.execute(text("LOCK TABLE instances IN ACCESS EXCLUSIVE MODE"))
        impatient = Database(database.url + ("" if database.embedded else "?options=-c lock_timeout=50"))
        with pytest.raises(OperationalError):
            Ledger(impatient).record(received())
        impatient.close()
    assert ledger.counts()["received"] == 0


def test_the_notes_of_the_normalised_copy_are_kept(ledger, database, claims):
    reported(database)
    with database.read() as session:
        assert session.scalars(select(InstanceRow.notes)).one() == ["StudyDate: illegal DA, emptied"]
        assert session.scalar(select(func.count()).select_from(InstanceRow)) == 1
