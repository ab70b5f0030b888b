"""What becomes of an object that arrives while runs fetch: asked for, live, both at once, purged meanwhile."""

import pytest
from sqlalchemy import select

from dicom_node.domain import Origin, invariant_holds
from dicom_node.tables import ObjectRow, ResendRow, ScreeningRow
from tests.cohort_factories import Night
from tests.ledger_factories import LATERAL

UID = "1.2.7.1"


@pytest.fixture
def night(database, tmp_path):
    found = Night(tmp_path, database)
    found.run(7)
    return found


def screenings(night):
    with night.database.read() as session:
        return session.scalars(select(ScreeningRow).order_by(ScreeningRow.id)).all()


def test_a_moved_image_is_the_run_s_and_delivers_nothing(night):
    claim, missing = night.begin()
    assert missing == [UID]
    assert night.arrive(UID, origin=Origin.MOVED) == ("new", False)
    screening = night.screening(UID)
    assert (screening.purpose, screening.delivers) == ("retrospective", False)
    assert night.expected(7)[UID].landed
    assert night.expected(7)[UID].screening_id == screening.id
    assert night.studies.still_missing(claim) == []


def test_a_fetched_image_is_the_run_s(night):
    claim, _ = night.begin(way="get")
    night.arrive(UID, origin=Origin.FETCHED, run_study_id=claim.study_id)
    assert night.screening(UID).purpose == "retrospective"


def test_a_peer_that_does_not_say_that_it_moves_is_known_by_what_is_expected(night):
    night.begin()
    night.arrive(UID, sender="PACS")
    assert night.screening(UID).purpose == "retrospective"


@pytest.mark.parametrize("change", [{"sender": "MODALITY"}, {"uid": "1.2.7.9"}, {"uid": "1.2.8.1"}])
def test_what_nobody_asked_for_is_live(night, change):
    """Another sender's, an image that is not expected, one of another study."""
    night.begin()
    uid = change.get("uid", UID)
    assert night.arrive(uid, sender=change.get("sender", "PACS")) == ("new", True)
    assert night.screening(uid).purpose == "live"


def test_what_is_fetched_in_another_way_and_then_sent_is_live(night):
    night.begin(way="get")
    night.arrive(UID, sender="PACS")
    assert night.screening(UID).purpose == "live"


def test_a_moved_image_of_a_study_that_nobody_fetches_is_live(night):
    night.arrive(UID, origin=Origin.MOVED)
    assert night.screening(UID).purpose == "live"


def test_a_moved_image_that_its_peer_had_not_told_of_belongs_to_the_study(night):
    night.begin()
    night.arrive("1.2.7.2", origin=Origin.MOVED)
    assert night.expected(7)["1.2.7.2"].landed


def test_a_moved_image_that_is_declined_has_landed(night):
    night.begin()
    night.arrive(UID, origin=Origin.MOVED, admission=LATERAL)
    assert night.screening(UID).state == "declined"
    assert night.expected(7)[UID].landed


def test_a_moved_image_that_is_known_is_no_resend(night):
    night.arrive(UID)
    night.begin()
    assert night.arrive(UID, origin=Origin.MOVED) == ("duplicate", False)
    with night.database.read() as session:
        assert session.scalars(select(ResendRow)).all() == []
    assert len(screenings(night)) == 1


@pytest.mark.parametrize("stage", ["waiting", "claimed", "predicted"])
def test_an_image_that_a_run_holds_and_that_then_comes_live_is_screened_once_and_delivered(night, stage):
    night.begin()
    night.arrive(UID, origin=Origin.MOVED)
    claim = night.claims.claim("worker", 60) if stage != "waiting" else None
    if stage == "predicted":
        from tests.result_factories import prediction

        night.claims.save_prediction(claim, prediction(0.1, 0.5, release=claim.manifest.release), None)
    assert night.arrive(UID) == ("duplicate", True)
    if stage == "predicted":  # the worker, which had claimed it for the run, ends it: it is due once more
        night.claims.withhold(claim)
        again = night.claims.claim("worker", 60)
        assert (again.screening_id, again.state, again.delivers) == (claim.screening_id, "predicted", True)
    (only,) = screenings(night)
    assert (only.purpose, only.delivers) == ("live", True)


def test_one_that_was_screened_and_withheld_is_delivered_without_another_run_of_the_networks(night):
    night.begin()
    night.arrive(UID, origin=Origin.MOVED)
    first = night.screen(flagged=True)
    assert night.screening(UID).state == "withheld"
    assert night.arrive(UID) == ("duplicate", True)
    again = night.claims.claim("worker", 60)
    assert (again.screening_id, again.state) == (first.screening_id, "predicted")
    assert night.claims.load_prediction(again).prediction.targets[0].flagged
    with night.database.read() as session:  # the heatmap is drawn anew, by the same prediction
        assert session.scalars(select(ObjectRow.id).filter_by(kind="heatmap")).all() == []


def test_one_whose_maps_were_purged_is_screened_anew_and_counted_once(night):
    claim, _ = night.begin()
    night.arrive(UID, origin=Origin.MOVED)
    night.studies.retrieved(claim, 1.0)
    night.screen()
    night.settle()
    assert night.instance(UID).path is None
    assert night.arrive(UID) == ("duplicate", True)
    assert night.archive.locate(night.instance(UID).path).exists()
    old, new = screenings(night)
    assert old.replaced_by == new.id
    assert (new.state, new.purpose, new.delivers) == ("waiting", "live", True)
    counts = night.ledger.counts()
    assert (counts["received"], counts["waiting"]) == (1, 1)
    assert invariant_holds(counts)


def test_one_that_was_purged_and_comes_with_another_header_is_that_one_from_now_on(night):
    claim, _ = night.begin()
    night.arrive(UID, origin=Origin.MOVED)
    night.studies.retrieved(claim, 1.0)
    night.screen(flagged=True)
    night.settle()
    assert night.arrive(UID, salt=b"changed") == ("conflict", True)
    row = night.instance(UID)
    assert night.archive.locate(row.path).read_bytes() == UID.encode() + b"changed"
    assert night.screening(UID).state == "waiting"


def test_a_live_image_that_comes_again_changes_nothing(night):
    night.arrive(UID)
    assert night.arrive(UID) == ("duplicate", False)
    assert len(screenings(night)) == 1


def test_retrospective_images_count_in_the_invariant_and_shadows_do_not(night):
    night.arrive("1.2.8.1")
    night.begin()
    night.arrive(UID, origin=Origin.MOVED)
    counts = night.ledger.counts()
    assert (counts["received"], counts["waiting"]) == (2, 2)
    assert invariant_holds(counts)


def test_live_images_are_claimed_before_those_of_runs(night):
    night.begin(images=2)
    night.arrive(UID, origin=Origin.MOVED)
    assert not night.claims.live_waits()
    night.arrive("1.2.9.1")
    assert night.claims.live_waits()
    assert night.claims.claim("worker", 60).screening_id == night.screening("1.2.9.1").id
    assert not night.claims.live_waits()


def test_a_batch_with_a_live_image_holds_no_other(night):
    night.begin(images=2)
    for uid in (UID, "1.2.7.2"):
        night.arrive(uid, origin=Origin.MOVED)
    night.arrive("1.2.9.1")
    live = night.claims.claim_batch("worker", 60, 8)
    assert [claim.screening_id for claim in live] == [night.screening("1.2.9.1").id]
    assert len(night.claims.claim_batch("worker", 60, 8)) == 2
