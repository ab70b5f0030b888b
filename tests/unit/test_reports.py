"""Which study's report is due, what it is made of and what it replaces, on both databases."""

import pytest
from sqlalchemy import func, select, update

from dicom_node.claims import Claims
from dicom_node.domain import NodeError, ObjectKind, State
from dicom_node.ledger import Ledger
from dicom_node.outbox import Outbox
from dicom_node.reports import Reports
from dicom_node.tables import InstanceRow, ObjectRow, ReportRow, ScreeningRow, db_now
from tests.ledger_factories import LATERAL, drawn, prediction, product, received, told
from tests.result_factories import manifest

STUDY = "1.3.77"
COMPREHENSIVE = "1.2.840.10008.5.1.4.1.1.88.33"


@pytest.fixture
def reports(database):
    Ledger(database).activate_release(manifest())
    return Reports(database)


def draw(database, number, **changed):
    return drawn(database, number, **({"study_instance_uid": STUDY} | changed))


def long_ago(database, seconds=60):
    """What was received so far was received that long before now."""
    with database.write() as session:
        session.execute(update(InstanceRow).values(received_at=db_now(-seconds)))


def issue(reports, uid, destinations=("pacs",)):
    (due,) = reports.due(0, 9)
    return reports.issue(reports.draft(due), product(ObjectKind.REPORT, uid), destinations)


def states(database):
    with database.read() as session:
        return session.scalars(select(ScreeningRow.state).order_by(ScreeningRow.id)).all()


def test_a_study_is_due_when_nothing_new_has_come_for_a_while(database, reports):
    draw(database, 1)
    assert reports.due(30, 9) == []
    long_ago(database)
    (due,) = reports.due(30, 9)
    assert due.study_instance_uid == STUDY


def test_an_image_that_is_not_screened_yet_is_waited_for_unless_it_has_failed_or_nobody_waits(database, reports):
    draw(database, 1)
    Ledger(database).record(received(5, study_instance_uid=STUDY))
    long_ago(database)
    assert reports.due(30, 9) == []
    assert len(reports.due(0, 9)) == 1
    claims = Claims(database)
    claims.count_failure(claims.claim("worker", 60), "a fault", max_failures=3, pause_s=60)
    assert len(reports.due(30, 9)) == 1


def test_a_declined_image_of_the_study_keeps_nobody_waiting(database, reports):
    draw(database, 1)
    Ledger(database).record(received(5, LATERAL, study_instance_uid=STUDY))
    long_ago(database)
    (due,) = reports.due(30, 9)
    assert [source.sop_instance_uid for source in reports.draft(due).sources] == ["1.2.91"]


def test_another_study_is_due_on_its_own(database, reports):
    draw(database, 1)
    draw(database, 2, study_instance_uid="1.3.78")
    assert [due.study_instance_uid for due in reports.due(0, 9)] == [STUDY, "1.3.78"]
    assert len(reports.due(0, 1)) == 1


def test_one_report_tells_of_all_images_and_each_waits_for_it(database, reports):
    draw(database, 1)
    draw(database, 2)
    assert states(database) == ["reported", "reported"]
    (due,) = reports.due(0, 9)
    draft = reports.draft(due)
    assert [source.sop_instance_uid for source in draft.sources] == ["1.2.91", "1.2.92"]
    assert draft.predecessors == ()
    assert draft.sources[0].stored.prediction.members == prediction(manifest()).members
    report_id = reports.issue(draft, product(ObjectKind.REPORT, "2.25.9"), ["pacs"])
    assert reports.due(0, 9) == []
    with database.read() as session:
        assert set(session.scalars(select(ScreeningRow.report_id))) == {report_id}
        row = session.scalars(select(ObjectRow).filter_by(report_id=report_id)).one()
    assert (row.sop_instance_uid, row.name) == ("2.25.9", row.sop_class_uid)


def test_without_a_destination_the_study_is_withheld_when_its_report_is_made(database, reports):
    draw(database, 1, destinations=())
    assert states(database) == ["reported"]
    issue(reports, "2.25.9", ())
    assert states(database) == ["withheld"]


def test_a_late_image_gives_a_successor_that_tells_of_all_and_goes_where_the_first_went(database, reports):
    draw(database, 1)
    first = issue(reports, "2.25.9", ["pacs", "archive"])
    draw(database, 2)
    (due,) = reports.due(0, 9)
    draft = reports.draft(due)
    assert [source.report_id for source in draft.sources] == [first, None]
    assert [source.sop_instance_uid for source in draft.untold] == ["1.2.92"]
    (predecessor,) = draft.predecessors
    assert predecessor.object_in(COMPREHENSIVE) == (product(ObjectKind.REPORT, "2.25.9").sop_class_uid, "2.25.9")
    second = reports.issue(draft, product(ObjectKind.REPORT, "2.25.10"), [])
    with database.read() as session:
        rows = session.execute(select(ReportRow.id, ReportRow.version, ReportRow.replaced_by).order_by(ReportRow.id))
        assert rows.all() == [(first, 1, second), (second, 2, None)]
    assert reports.draft_of(second).predecessors == draft.predecessors
    assert [source.screening_id for source in reports.draft_of(first).sources] == [1]
    outbox = Outbox(database, retry_base_s=1, retry_max_s=1)
    assert outbox.counts() == {"pacs": {"pending": 4}, "archive": {"pending": 2}}


def test_a_report_of_another_release_is_replaced_only_where_all_of_its_images_are_told_of(database, reports):
    draw(database, 1)
    old = issue(reports, "2.25.9")
    Ledger(database).activate_release(manifest(release="2"))
    draw(database, 2)
    (due,) = reports.due(0, 9)
    draft = reports.draft(due)
    assert [source.sop_instance_uid for source in draft.sources] == ["1.2.92"]
    assert draft.predecessors == ()
    reports.issue(draft, product(ObjectKind.REPORT, "2.25.10"), [])
    with database.read() as session:
        assert session.get_one(ReportRow, old).replaced_by is None


def test_of_two_who_drafted_the_same_report_one_issues_it(database, reports):
    draw(database, 1)
    (due,) = reports.due(0, 9)
    drafts = reports.draft(due), reports.draft(due)
    assert reports.issue(drafts[0], product(ObjectKind.REPORT, "2.25.9"), []) is not None
    assert reports.issue(drafts[1], product(ObjectKind.REPORT, "2.25.9"), []) is None
    with database.read() as session:
        assert session.scalar(select(func.count(ReportRow.id))) == 1


def test_another_form_takes_the_place_of_the_first_in_one_delivery(database, reports):
    draw(database, 1)
    report_id = issue(reports, "2.25.9", ["pacs", "archive"])
    outbox = Outbox(database, retry_base_s=60, retry_max_s=60)
    claimed = outbox.claim("deliverer", 9, 60)
    (parcel,) = (one for one in claimed if one.report_id == report_id)
    other = product(ObjectKind.REPORT, "2.25.11", COMPREHENSIVE)
    for _ in range(2):  # a process may have died in between
        reports.add_form(report_id, other, parcel.delivery_id)
    outbox.give_back(claimed)
    found = outbox.claim("deliverer", 9, 60)
    assert [one.sop_instance_uid for one in found if one.report_id] == ["2.25.11"]
    assert {one.destination for one in found} == {parcel.destination}
    draw(database, 2)
    (due,) = reports.due(0, 9)
    (replaced,) = reports.draft(due).predecessors
    assert replaced.object_in(COMPREHENSIVE) == (COMPREHENSIVE, "2.25.11")


def test_a_screening_of_which_no_report_can_tell_fails_and_the_others_are_told_of(database, reports):
    draw(database, 1)
    draw(database, 2)
    reports.fail(1, NodeError("(0020,000D) is no UID"))
    assert states(database) == ["failed", "reported"]
    (due,) = reports.due(0, 9)
    assert [source.screening_id for source in reports.draft(due).sources] == [2]


def test_a_fault_that_may_pass_puts_the_report_off_and_counts_only_where_it_is_the_studys(database, reports):
    draw(database, 1)
    off = {"pause_s": 60, "max_failures": 2}
    reports.put_off(1, NodeError("the disk"), counted=False, **off)
    assert reports.due(0, 9) == []
    with database.write() as session:
        session.execute(update(ScreeningRow).values(not_before=db_now()))
    assert len(reports.due(0, 9)) == 1
    for expected in ("reported", "failed"):
        reports.put_off(1, NodeError("the child died"), counted=True, **off)
        assert states(database) == [expected]


def test_a_delivery_that_was_rejected_keeps_its_image_in_the_next_report(database, reports):
    draw(database, 1)
    issue(reports, "2.25.9")
    with database.write() as session:
        session.execute(update(ScreeningRow).values(state=State.FAILED, reason="delivery_rejected"))
    draw(database, 2)
    assert told(database, "2.25.10") is not None
    with database.read() as session:
        assert len(set(session.scalars(select(ScreeningRow.report_id)))) == 1


def test_a_clock_that_was_set_back_keeps_no_study_waiting(database, reports):
    draw(database, 1)
    long_ago(database, -3600)
    assert len(reports.due(5, 9)) == 1
