"""Studies of runs come to their end, and what was fetched leaves the archive, but for what somebody needs."""

import pytest
from sqlalchemy import select

from dicom_node.domain import NodeError, Origin
from dicom_node.tables import InstanceRow, ObjectRow
from tests.cohort_factories import NOW, Night
from tests.ledger_factories import LATERAL

UID = "1.2.1.1"


@pytest.fixture
def night(database, tmp_path):
    return Night(tmp_path, database)


def retrieved(night, images=1, **arriving):
    claim, missing = night.begin(images)
    for uid in missing:
        night.arrive(uid, origin=Origin.MOVED, **arriving)
    night.studies.retrieved(claim, 1.0)
    return claim


def files(night):
    return sorted(path.suffix for path in night.archive.locate("").glob("[0-9a-f][0-9a-f]/*"))


def test_a_study_waits_for_all_of_its_images(night):
    night.run(1)
    retrieved(night, images=2)
    night.screen()
    night.settle()
    assert night.study(1).state == "retrieved"
    night.screen()
    night.settle()
    study = night.study(1)
    assert (study.state, study.landed, study.flagged, study.ended_at) == ("done", 2, False, NOW)


def test_of_a_study_that_was_not_flagged_nothing_stays_in_the_archive(night):
    night.run(1)
    retrieved(night)
    assert night.study(1).held_bytes == len(UID)
    night.screen()
    assert files(night) == [".dcm", ".zip"]
    night.settle()
    assert files(night) == []
    assert night.study(1).held_bytes == 0
    assert night.instance(UID).path is None


def test_of_one_that_was_flagged_its_maps_stay(night):
    night.run(1)
    retrieved(night)
    night.screen(flagged=True)
    night.settle()
    assert night.study(1).flagged
    assert files(night) == [".zip"]
    with night.database.read() as session:
        assert "heatmap" in session.scalars(select(ObjectRow.kind)).all()


def test_with_purge_off_everything_stays(database, tmp_path):
    night = Night(tmp_path, database, purge=False)
    night.run(1)
    retrieved(night)
    night.screen()
    night.settle()
    assert night.study(1).state == "done"
    assert files(night) == [".dcm", ".zip"]
    assert night.study(1).held_bytes == len(UID)


def test_what_came_live_meanwhile_is_not_purged(night):
    night.run(1)
    retrieved(night)
    night.screen()
    night.arrive(UID)
    night.settle()
    assert night.instance(UID).path is not None
    assert ".dcm" in files(night)


def test_what_another_run_has_still_to_screen_is_not_purged(night):
    night.run(1, name="first")
    night.run(1, name="again", again=True)
    retrieved(night)
    night.screen()
    retrieved(night)
    night.settle()
    assert night.instance(UID).path is not None
    night.screen()
    night.settle()
    assert night.instance(UID).path is None


def test_a_study_that_delivers_is_done_when_it_is_delivered_and_its_header_stays(night):
    night.run(1, deliver=True)
    retrieved(night)
    night.screen()
    night.settle()
    assert night.study(1).state == "screened"
    with night.database.write() as session:
        row = session.scalars(select(InstanceRow)).one()
        path = row.path
    assert path is not None


def test_a_declined_study_is_done(night):
    night.run(1)
    retrieved(night, admission=LATERAL)
    night.settle()
    assert night.study(1).state == "done"


def test_a_study_with_an_image_that_failed_has_failed_and_says_why(night):
    night.run(1)
    retrieved(night, images=2)
    night.screen()
    claim = night.claims.claim("worker", 60)
    error = NodeError("(7FE0,0010) PixelData is cut off")
    night.claims.fail(claim, error)
    night.settle()
    study = night.study(1)
    assert (study.state, study.reason) == ("failed", "error")
    assert study.detail == "1 of 2 images failed: (7FE0,0010) PixelData is cut off"


def test_settling_what_is_settled_does_nothing(night):
    night.run(1)
    retrieved(night)
    night.screen()
    night.settle()
    assert night.settling.settle(NOW) == 0
