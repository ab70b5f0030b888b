"""Results taken back: what a note names, where it goes, and what is said of the study afterwards."""

import time

import pytest
from pydicom.uid import ComprehensiveSRStorage

from dicom_node.config import Settings
from dicom_node.database import Database
from dicom_node.decoding import decoders
from dicom_node.domain import NodeError
from dicom_node.rescreening import rescreen
from dicom_node.retraction import retract
from dicom_node.retractions import RetractionError, Retractions
from dicom_node.tables import ObjectRow, ScreeningRow
from tests.result_factories import manifest
from tests.study_factories import PACS, STUDY, Desk, cited, predecessors, reports, rows, send_all


@pytest.fixture(scope="module")
def children():
    with decoders(Settings(), 1) as found:
        yield found


@pytest.fixture
def desk(tmp_path, children):
    database = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    database.upgrade()
    yield Desk(tmp_path, database, children, peers=(PACS,))
    database.close()


def take_back(desk, reason="quality"):
    return retract(desk.settings, STUDY, reason, comment="a wrong answer", asked_by="Dr")


def test_a_retraction_names_exactly_our_objects_and_goes_to_where_they_are(desk):
    desk.take(1)
    desk.screen()
    desk.reporter.issue_due()
    send_all(desk)
    assert take_back(desk, "safety") == (2, ("pacs",))
    (row,) = rows(desk, ObjectRow, kind="note")
    note = desk.read(row.path)
    ours = {one.sop_instance_uid for one in rows(desk, ObjectRow) if one.kind in ("heatmap", "report")}
    named = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in note.ContentSequence
        if item.ValueType in ("IMAGE", "COMPOSITE")
    }
    assert named == ours
    assert cited(note) == ours
    assert note.ConceptNameCodeSequence[0].CodeValue == "113037"
    parcels = desk.outbox.claim("deliverer", 9, 60)
    assert [parcel.sop_instance_uid for parcel in parcels] == [note.SOPInstanceUID]
    assert parcels[0].study_instance_uid == STUDY
    send_all(desk)
    with pytest.raises(RetractionError, match="nothing was made, or all is back"):
        take_back(desk)


def test_each_destination_is_told_of_what_it_may_hold_and_of_nothing_else(tmp_path, children):
    database = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    database.upgrade()
    plain = PACS.model_copy(update={"name": "plain", "objects": ("report",)})
    desk = Desk(tmp_path, database, children, peers=(PACS, plain, PACS.model_copy(update={"name": "like pacs"})))
    desk.take(1)
    desk.screen()
    desk.reporter.issue_due()
    for _ in range(3):
        send_all(desk)
    assert take_back(desk) == (2, ("pacs", "like pacs", "plain"))
    notes = [desk.read(row.path) for row in rows(desk, ObjectRow, kind="note")]
    assert sorted(len(cited(note)) for note in notes) == [1, 2]
    assert desk.outbox.counts()["plain"] == {"pending": 1, "read_back": 1}
    database.close()


def test_a_study_screened_again_as_at_first_gives_objects_of_its_own_and_can_be_taken_back(desk):
    """Over another release and back the networks say the same a second time, at another time."""
    desk.take(1)
    for release in ("2024.1", "2024.2", "2024.1"):
        if rows(desk, ScreeningRow)[-1].state != "waiting":
            desk.ledger.activate_release(manifest(release=release))
            assert rescreen(desk.settings, STUDY) == 1
            time.sleep(0.01)  # a ledger in SQLite tells time to the millisecond
        desk.screen()
        desk.reporter.issue_due()
        send_all(desk)
    made = [row for row in rows(desk, ObjectRow) if row.kind in ("heatmap", "report")]
    assert len(made) == len({row.sop_instance_uid for row in made}) == 6
    assert take_back(desk) == (6, ("pacs",))


def test_what_was_not_sent_is_withdrawn_and_needs_no_note(desk):
    desk.take(1)
    desk.screen()
    desk.reporter.issue_due()
    assert take_back(desk) == (2, ())
    assert rows(desk, ObjectRow, kind="note") == []
    assert desk.outbox.counts() == {"pacs": {"withdrawn": 2}}
    assert desk.outbox.claim("deliverer", 9, 60) == []
    (row,) = rows(desk, ScreeningRow)
    assert (row.state, row.reason) == ("withheld", "retracted")


def test_what_is_being_sent_when_it_is_taken_back_is_named_and_its_note_goes_after_it(desk):
    desk.take(1)
    desk.screen()
    desk.reporter.issue_due()
    heatmap, report = desk.outbox.claim("deliverer", 9, 60)
    assert take_back(desk) == (2, ("pacs",))
    assert not desk.outbox.is_to_be_sent(report)
    desk.outbox.give_back([report])
    assert desk.outbox.claim("another", 9, 60) == []
    desk.outbox.sent(heatmap, 0)  # the answer came
    desk.outbox.proven(heatmap, "read_back")
    (parcel,) = desk.outbox.claim("another", 9, 60)
    (note,) = (desk.read(row.path) for row in rows(desk, ObjectRow, kind="note"))
    assert parcel.sop_instance_uid == note.SOPInstanceUID
    assert cited(note) == {heatmap.sop_instance_uid, report.sop_instance_uid}
    assert desk.outbox.counts() == {"pacs": {"pending": 1, "withdrawn": 2}}


def test_what_a_deliverer_died_over_may_be_there_whoever_held_it_since(desk):
    desk.take(1)
    desk.screen()
    heatmap, *_ = desk.outbox.claim("died", 9, 60)
    desk.outbox.recover()
    (again,) = desk.outbox.claim("untried", 9, 60)
    assert (again.tries, heatmap.tries) == (1, 0)
    desk.outbox.give_back([again])
    assert take_back(desk) == (1, ("pacs",))


def test_what_leaves_while_a_note_is_written_is_not_forgotten(desk):
    desk.take(1)
    desk.screen()
    retractions = Retractions(desk.database)
    standing = retractions.standing(STUDY)
    assert standing.given_away == {}
    (parcel,) = desk.outbox.claim("deliverer", 9, 60)
    desk.outbox.sent(parcel, 0)
    with pytest.raises(RetractionError, match="has just changed: try again"):
        retractions.retract(standing, {}, reason="quality", comment="", asked_by="Dr")
    assert take_back(desk) == (1, ("pacs",))


def test_no_other_form_is_made_of_a_report_that_was_just_taken_back(desk):
    desk.take(1)
    desk.screen()
    desk.reporter.issue_due()
    parcel = desk.outbox.claim("deliverer", 9, 60)[-1]
    take_back(desk)
    with pytest.raises(NodeError):
        desk.reporter.in_form(parcel.report_id, ComprehensiveSRStorage, parcel.delivery_id)
    assert len(reports(desk)) == 1


def test_an_image_that_comes_after_a_retraction_is_told_of_alone(desk):
    desk.take(1)
    desk.screen()
    desk.reporter.issue_due()
    send_all(desk)
    take_back(desk)
    desk.take(2)
    desk.screen()
    desk.reporter.issue_due()
    report = reports(desk)[-1]
    assert predecessors(report) == set()
    assert f"{STUDY}.1.1" not in cited(report)
    assert f"{STUDY}.2.1" in cited(report)


def test_what_was_taken_back_can_be_screened_anew(desk):
    desk.take(1)
    desk.screen()
    desk.reporter.issue_due()
    send_all(desk)
    take_back(desk)
    assert rescreen(desk.settings, STUDY) == 1
    desk.screen()
    desk.reporter.issue_due()
    report = reports(desk)[-1]
    assert predecessors(report) == set()
    assert len({row.sop_instance_uid for row in rows(desk, ObjectRow, kind="heatmap")}) == 2


def test_a_heatmap_that_is_taken_back_before_its_report_was_made_ends_its_screening(desk):
    desk.take(1)
    desk.screen()
    assert take_back(desk) == (1, ())
    assert desk.reporter.issue_due() == 0
    (row,) = rows(desk, ScreeningRow)
    assert (row.state, row.reason) == ("withheld", "retracted")


def test_an_unknown_study_cannot_be_taken_back(desk):
    with pytest.raises(NodeError, match="no image of study"):
        take_back(desk)
