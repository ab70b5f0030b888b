import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import OperationalError

from dicom_node.archive import ArchivedFile
from dicom_node.claims import Claims, Product, StoredMap
from dicom_node.database import Database, SchemaError
from dicom_node.domain import (
    DeclineReason,
    DeliveryError,
    LostLeaseError,
    MemberMap,
    ObjectKind,
    PixelError,
    State,
    invariant_holds,
)
from dicom_node.ledger import Ledger, ReleaseError
from dicom_node.outbox import Outbox
from dicom_node.tables import Base, DeliveryRow, DeliveryTryRow, InstanceRow, ScreeningRow, TransitionRow, db_now
from tests.ledger_factories import LATERAL, prediction, received
from tests.result_factories import manifest as make_manifest


@pytest.fixture
def database(tmp_path):
    found = Database(f"sqlite:///{tmp_path / 'new' / 'ledger.sqlite'}")
    found.upgrade()
    yield found
    found.close()


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


def stored_map():
    found = MemberMap("zhang", "classification", np.zeros((6, 6), np.uint8), (0.1, 0.2, 0.3, 0.4))
    return StoredMap(found.member, found.name, found.box, ArchivedFile("bb/map.png", "b" * 64, 9))


def products():
    return [
        Product(ObjectKind.HEATMAP, "1.2.840.10008.5.1.4.1.1.7", "2.25.1", ArchivedFile("cc/1.dcm", "c" * 64, 9)),
        Product(ObjectKind.REPORT, "1.2.840.10008.5.1.4.1.1.88.34", "2.25.2", ArchivedFile("dd/2.dcm", "d" * 64, 9)),
    ]


def reported(ledger, claims, destinations=("pacs",)):
    ledger.record(received())
    claim = claims.claim("worker", 20)
    claims.save_prediction(claim, prediction(claim.manifest), [stored_map()])
    claims.save_results(claim, products(), list(destinations), ["StudyDate: illegal DA, emptied"])
    return claim


def state_of(database):
    with database.read() as session:
        return session.scalars(select(ScreeningRow.state)).one()


def test_the_migrations_make_the_tables_of_the_models(database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_process_killed_in_mid_migration_leaves_nothing_half_made(tmp_path):
    """A real SIGKILL inside the migration, after its fourth table."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    code = (
        "import os, signal, alembic.op\n"
        "from dicom_node.database import Database\n"
        "create, made = alembic.op.create_table, []\n"
        "def kill_at_fourth(*a, **k):\n"
        "    made.append(create(*a, **k))\n"
        "    if len(made) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "alembic.op.create_table = kill_at_fourth\n"
        f"Database({url!r}).upgrade()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == -signal.SIGKILL
    database = Database(url)
    database.upgrade()
    database.check_schema()
    database.close()


def test_a_planted_difference_between_migrations_and_models_is_seen(database):
    with database.engine.connect() as connection:
        connection.execute(text("ALTER TABLE instances ADD COLUMN planted TEXT"))
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Base.metadata) != []


def test_a_database_without_schema_is_refused(tmp_path):
    (tmp_path / "empty.sqlite").touch()
    empty = Database(f"sqlite:///{tmp_path / 'empty.sqlite'}")
    with pytest.raises(SchemaError, match="start `dicom-node up` once"):
        empty.check_schema()
    empty.close()
    with pytest.raises(SchemaError, match="there is no ledger"):
        Database(f"sqlite:///{tmp_path / 'nowhere' / 'empty.sqlite'}").check_schema()


def test_a_new_instance_waits(ledger):
    assert ledger.record(received()) == "new"
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
    assert ledger.record(received()) == "new"
    assert ledger.record(received()) == "duplicate"
    assert ledger.record(received(sha256="f" * 64)) == "conflict"
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


def test_a_release_with_another_manifest_under_the_same_name_is_refused(ledger):
    changed = make_manifest().model_copy(update={"title": "another"})
    with pytest.raises(ReleaseError, match="needs a new release"):
        ledger.activate_release(changed)


def test_what_waits_is_screened_by_the_release_that_is_active_when_it_is_claimed(ledger, claims):
    ledger.record(received())
    ledger.activate_release(make_manifest().model_copy(update={"release": "2.0.0"}))
    assert claims.claim("worker", 20).manifest.release == "2.0.0"


def test_two_workers_never_claim_the_same_screening(ledger, claims):
    for number in range(40):
        ledger.record(received(number))
    claimed = []

    def work(name):
        while (claim := claims.claim(name, 20)) is not None:
            claimed.append(claim.screening_id)

    threads = [threading.Thread(target=work, args=(f"worker{index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed)) == 40


def test_the_way_of_a_screening_is_in_the_transitions(ledger, database, outbox, claims):
    reported(ledger, claims)
    for parcel in outbox.claim(10, 60):
        outbox.sent(parcel, 0x0000)
    with database.read() as session:
        states = session.scalars(select(TransitionRow.to_state).order_by(TransitionRow.id)).all()
    assert states == ["waiting", "claimed", "predicted", "reported", "delivered"]


def test_the_stored_prediction_comes_back_to_the_last_bit(ledger, claims):
    ledger.record(received())
    claim = claims.claim("worker", 20)
    given = prediction(claim.manifest)
    claims.save_prediction(claim, given, [stored_map()])
    found = claims.load_prediction(claim)
    assert found.prediction.targets == given.targets
    assert found.prediction.members == given.members
    ((row, member, name),) = found.maps
    assert (member, name, row.box) == ("zhang", "classification", [0.1, 0.2, 0.3, 0.4])
    assert found.predicted_at.tzinfo is not None


def test_a_worker_that_lost_its_lease_writes_nothing(ledger, database, claims):
    ledger.record(received())
    late = claims.claim("late", 0.001)
    time.sleep(0.05)
    assert claims.expire_leases(max_failures=3) == 1
    current = claims.claim("current", 20)
    assert current.attempt == late.attempt + 1
    for write in (
        lambda: claims.renew(late, 20),
        lambda: claims.save_prediction(late, prediction(late.manifest), []),
        lambda: claims.decline(late, DeclineReason.CONSTANT, ""),
        lambda: claims.fail(late, PixelError("x", "y")),
        lambda: claims.give_back(late, "", pause_s=0),
        lambda: claims.count_failure(late, "", max_failures=3, pause_s=0),
    ):
        with pytest.raises(LostLeaseError):
            write()
    assert state_of(database) == State.CLAIMED
    claims.save_prediction(current, prediction(current.manifest), [])
    assert state_of(database) == State.PREDICTED


def test_a_lost_lease_writes_nothing_even_while_nobody_else_has_claimed(ledger, database, claims):
    ledger.record(received())
    late = claims.claim("late", 0.001)
    time.sleep(0.05)
    claims.expire_leases(max_failures=3)
    with pytest.raises(LostLeaseError):
        claims.save_prediction(late, prediction(late.manifest), [])
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
    claims.save_prediction(claim, prediction(claim.manifest), [])
    claims.recover()
    again = claims.claim("worker", 20)
    assert again.state is State.PREDICTED
    assert claims.load_prediction(again).prediction.members == prediction(claim.manifest).members


def test_without_a_destination_results_are_withheld(ledger, database, claims):
    reported(ledger, claims, destinations=())
    assert state_of(database) == State.WITHHELD


def test_it_is_delivered_when_every_object_stands_at_every_destination(ledger, database, outbox, claims):
    reported(ledger, claims, destinations=("pacs", "archive"))
    for expected in ("pacs", "archive"):
        assert state_of(database) == State.REPORTED
        parcels = outbox.claim(10, 60)
        assert {parcel.destination for parcel in parcels} == {expected}
        assert len(parcels) == 2
        for parcel in parcels:
            outbox.sent(parcel, 0x0000)
    assert state_of(database) == State.DELIVERED


def test_the_heatmap_leaves_before_the_report_that_cites_it(ledger, outbox, claims):
    reported(ledger, claims)
    assert [parcel.sop_instance_uid for parcel in outbox.claim(10, 60)] == ["2.25.1", "2.25.2"]


def test_a_leased_parcel_is_not_claimed_twice(ledger, outbox, claims):
    reported(ledger, claims)
    assert len(outbox.claim(10, 60)) == 2
    assert outbox.claim(10, 60) == []


def test_a_passing_failure_is_tried_again_after_a_pause(ledger, database, outbox, claims):
    reported(ledger, claims)
    for parcel in outbox.claim(10, 60):
        outbox.not_sent(parcel, DeliveryError("down", permanent=False))
    assert outbox.claim(10, 60) == []
    with database.write() as session:
        session.execute(update(DeliveryRow).values(not_before=db_now()))
    again = outbox.claim(10, 60)
    assert [parcel.tries for parcel in again] == [1, 1]
    assert state_of(database) == State.REPORTED


def test_a_rejection_stops_and_shows(ledger, database, outbox, claims):
    reported(ledger, claims)
    for parcel in outbox.claim(10, 60):
        outbox.not_sent(parcel, DeliveryError("unknown AE", permanent=True, status=0x0124))
    assert outbox.claim(10, 60) == []
    with database.read() as session:
        row = session.scalars(select(ScreeningRow)).one()
        tries = session.scalars(select(DeliveryTryRow)).all()
    assert (row.state, row.reason) == ("failed", "delivery_rejected")
    assert [entry.status for entry in tries] == [0x0124, 0x0124]
    assert outbox.counts() == {"pacs": {"rejected": 2}}
    assert invariant_holds(ledger.counts())


def test_a_locked_database_is_an_error_and_writes_nothing(ledger, database, tmp_path, monkeypatch):
    blocker = sqlite3.connect(tmp_path / "new" / "ledger.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=50")
    try:
        with pytest.raises(OperationalError):
            ledger.record(received())
    finally:
        blocker.execute("ROLLBACK")
        blocker.close()
    assert ledger.counts()["received"] == 0


def test_a_dead_destination_does_not_hold_up_a_healthy_one(ledger, claims, outbox):
    reported(ledger, claims, destinations=("dead", "healthy"))
    for parcel in outbox.claim(10, 60):
        assert parcel.destination == "dead"
        outbox.not_sent(parcel, DeliveryError("down", permanent=False))
    outbox.postpone("dead")
    assert {parcel.destination for parcel in outbox.claim(10, 60)} == {"healthy"}


def test_what_a_dead_deliverer_held_is_due_again(ledger, claims, outbox):
    reported(ledger, claims)
    assert len(outbox.claim(10, 3600)) == 2
    outbox.recover()
    assert len(outbox.claim(10, 3600)) == 2


def test_the_notes_of_the_normalised_copy_are_kept(ledger, database, claims):
    reported(ledger, claims)
    with database.read() as session:
        assert session.scalars(select(InstanceRow.notes)).one() == ["StudyDate: illegal DA, emptied"]
        assert session.scalar(select(func.count()).select_from(InstanceRow)) == 1
