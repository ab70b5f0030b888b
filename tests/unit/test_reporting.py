"""Reports of studies from the ledger and the archive, built by real children."""

import os
import signal

import pytest
from pydicom.uid import ComprehensiveSRStorage
from sqlalchemy import delete, update

from dicom_node.config import Settings
from dicom_node.database import Database
from dicom_node.decoding import decoders
from dicom_node.maps import UnreadableFileError
from dicom_node.products import StudyImage, build_study_report
from dicom_node.releases import Releases
from dicom_node.reporting import Reporter
from dicom_node.rescreening import RescreeningError, rescreen
from dicom_node.tables import DeliveryRow, ObjectRow, OutcomeRow, ReportRow, ReportSourceRow, ScreeningRow
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


def test_two_images_give_two_heatmaps_and_one_report_that_cites_all_four(desk):
    images = {desk.take(number) for number in (1, 2)}
    desk.screen()
    desk.screen(0.25)
    assert desk.reporter.issue_due() == 1
    assert desk.reporter.issue_due() == 0
    (report,) = reports(desk)
    heatmaps = {row.sop_instance_uid for row in rows(desk, ObjectRow, kind="heatmap")}
    assert len(heatmaps) == 2
    assert cited(report) == images | heatmaps
    assert report.StudyInstanceUID == STUDY
    assert [row.destination for row in rows(desk, DeliveryRow)] == ["pacs"] * 3


def test_a_late_image_gives_a_report_that_names_the_one_it_replaces(desk):
    for number in (1, 2):
        desk.take(number)
        desk.screen()
        desk.reporter.issue_due()
    first, second = reports(desk)
    assert predecessors(first) == set()
    assert predecessors(second) == {first.SOPInstanceUID}
    assert cited(first) < cited(second)
    assert [row.replaced_by for row in rows(desk, ReportRow)] == [2, None]


def test_two_processes_make_the_same_bytes_of_the_same_stored_prediction(desk, tmp_path):
    """The maps, the heatmap and the report of one prediction, by another process with an archive of its own."""
    desk.take(1)
    claim = desk.screen()
    desk.reporter.issue_due()
    draft = desk.reports.draft_of(1)
    (source,) = draft.sources
    image = StudyImage(
        desk.archive.locate(source.path),
        desk.reporter._image(source).prediction,
        source.stored.predicted_at,
        source.heatmap_sop_class_uid,
        source.heatmap_sop_instance_uid,
    )
    again = build_study_report([image], claim.manifest_json, node_ae_title=desk.settings.ae_title)
    (row,) = rows(desk, ObjectRow, kind="report")
    assert desk.archive.locate(row.path).read_bytes() == again.content
    (before,) = rows(desk, ObjectRow, kind="heatmap")
    desk.archive.locate(before.path).unlink()
    with desk.database.write() as session:  # as if the first worker had died before it could say that it was done
        session.execute(update(ScreeningRow).values(state="predicted", report_id=None))
        for gone in (DeliveryRow, ReportSourceRow):
            session.execute(delete(gone))
        session.execute(delete(ObjectRow).where(ObjectRow.kind.in_(["report", "heatmap"])))
        session.execute(delete(ReportRow))
    desk.draw(desk.claims.claim("another worker", 60))
    (after,) = rows(desk, ObjectRow, kind="heatmap")
    assert (after.sop_instance_uid, after.sha256) == (before.sop_instance_uid, before.sha256)


def test_a_form_of_another_class_is_a_report_of_its_own_on_the_same(desk):
    desk.take(1)
    desk.screen()
    desk.reporter.issue_due()
    parcel = desk.outbox.claim("deliverer", 9, 60)[-1]
    made = desk.reporter.in_form(parcel.report_id, ComprehensiveSRStorage, parcel.delivery_id)
    first, other = reports(desk)
    assert other.SOPClassUID == made.sop_class_uid == ComprehensiveSRStorage
    assert other.SOPInstanceUID == made.sop_instance_uid != first.SOPInstanceUID
    assert cited(other) == cited(first)
    assert other.ContentSequence == first.ContentSequence
    again = desk.reporter.in_form(parcel.report_id, ComprehensiveSRStorage, parcel.delivery_id)
    assert again == made
    assert len(reports(desk)) == 2


def test_a_form_is_made_once_whatever_changed_since(tmp_path, children):
    """A destination that was down for a week, an upgrade or another setting in between."""
    database = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    database.upgrade()
    desk = Desk(tmp_path, database, children, peers=(PACS, PACS.model_copy(update={"name": "late"})))
    desk.take(1)
    desk.screen()
    desk.reporter.issue_due()
    first, second = (row.id for row in rows(desk, DeliveryRow) if row.object_id == 3)
    made = desk.reporter.in_form(1, ComprehensiveSRStorage, first)
    renamed = desk.settings.model_copy(update={"ae_title": "RENAMED"})
    again = Reporter(desk.reports, desk.archive, children, renamed).in_form(1, ComprehensiveSRStorage, second)
    assert again == made
    assert len({row.object_id for row in rows(desk, DeliveryRow) if row.id in (first, second)}) == 1
    database.close()


def test_a_successor_does_not_go_to_a_destination_that_left_the_settings(desk, children):
    desk.take(1)
    desk.screen()
    desk.reporter.issue_due()
    send_all(desk)
    desk.settings = desk.settings.model_copy(update={"peers": (PACS.model_copy(update={"name": "new"}),)})
    desk.reporter = Reporter(desk.reports, desk.archive, children, desk.settings)
    desk.take(2)
    desk.screen()
    desk.reporter.issue_due()
    assert desk.outbox.counts() == {"pacs": {"read_back": 2}, "new": {"pending": 2}}


def test_an_image_whose_file_the_disk_keeps_waits_and_keeps_neither_the_others_nor_the_node_busy(desk, monkeypatch):
    desk.settings = desk.settings.model_copy(update={"retry_base_s": 60})
    desk.reporter = Reporter(desk.reports, desk.archive, desk.reporter._children, desk.settings)
    for number in (1, 2):
        desk.take(number)
        desk.screen()
    image = Reporter._image

    def unreadable(self, source):
        if source.screening_id == 2:
            raise UnreadableFileError("the disk")
        return image(self, source)

    monkeypatch.setattr(Reporter, "_image", unreadable)
    for _ in range(3):
        desk.reporter.issue_due()
    assert desk.reporter.issue_due() == 0
    (report,) = reports(desk)
    assert f"{STUDY}.2.1" not in cited(report)
    monkeypatch.undo()
    with desk.database.write() as session:
        session.execute(update(ScreeningRow).values(not_before=None))
    desk.reporter.issue_due()
    assert f"{STUDY}.2.1" in cited(reports(desk)[-1])


def test_an_image_of_which_nothing_can_be_told_fails_by_name_and_the_others_are_told_of(desk):
    desk.take(1)
    desk.screen()
    desk.take(2)
    desk.screen()
    with desk.database.write() as session:  # a heatmap that cannot be cited
        session.execute(
            update(ObjectRow)
            .where(ObjectRow.screening_id == 2, ObjectRow.kind == "heatmap")
            .values(sop_instance_uid="no uid")
        )
    while desk.reporter.issue_due():
        pass
    states = [(row.state, row.reason) for row in rows(desk, ScreeningRow)]
    assert states == [("reported", None), ("failed", "result")]
    (report,) = reports(desk)
    assert f"{STUDY}.2.1" not in cited(report)


def test_an_image_that_the_archive_lost_fails_and_the_others_are_told_of(desk):
    desk.take(1)
    desk.screen()
    desk.take(2, pixels=None, InstanceNumber=7)
    claim = desk.screen()
    desk.archive.locate(claim.path).unlink()
    while desk.reporter.issue_due():
        pass
    assert [(row.state, row.reason) for row in rows(desk, ScreeningRow)] == [
        ("reported", None),
        ("failed", "archive_missing"),
    ]
    assert len(reports(desk)) == 1


def test_a_study_of_which_the_ledger_holds_nothing_usable_fails_and_others_are_told_of(desk):
    desk.take(1)
    desk.screen()
    with desk.database.write() as session:
        session.execute(delete(OutcomeRow))
    assert desk.reporter.issue_due() == 0
    (row,) = rows(desk, ScreeningRow)
    assert (row.state, row.reason) == ("failed", "report")
    assert "LookupError at predictions.py" in row.detail
    desk.take(2)
    desk.screen()
    assert desk.reporter.issue_due() == 1
    assert cited(reports(desk)[0]) >= {f"{STUDY}.2.1"}


def test_a_child_that_is_killed_once_is_chance(desk, monkeypatch):
    desk.take(1)
    desk.screen()
    with monkeypatch.context() as patched:
        patched.setattr("dicom_node.reporting.store_study_report", _die)
        assert desk.reporter.issue_due() == 1
    (row,) = rows(desk, ScreeningRow)
    assert (row.state, row.failures) == ("reported", 1)
    while not reports(desk):
        desk.reporter.issue_due()
    assert rows(desk, ScreeningRow)[0].state == "reported"


def test_a_child_that_dies_twice_fails_the_image_by_name(desk, monkeypatch):
    desk.take(1)
    desk.screen()
    monkeypatch.setattr("dicom_node.reporting.store_study_report", _die)
    while rows(desk, ScreeningRow)[0].state == "reported":
        desk.reporter.issue_due()
    assert rows(desk, ScreeningRow)[0].reason == "decoder_died"


def _die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def test_only_flagged_and_only_reports_go_where_the_rules_say(tmp_path, children):
    database = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    database.upgrade()
    flagged = PACS.model_copy(update={"name": "flagged", "only_flagged": True})
    plain = PACS.model_copy(update={"name": "plain", "objects": ("report",)})
    desk = Desk(tmp_path, database, children, peers=(flagged, plain))
    for number, probability in enumerate((0.25, 0.75), 1):
        desk.take(number)
        desk.screen(probability)
    desk.reporter.issue_due()
    kinds = {row.id: row.kind for row in rows(desk, ObjectRow)}
    going = sorted((row.destination, kinds[row.object_id]) for row in rows(desk, DeliveryRow))
    assert going == [("flagged", "heatmap"), ("flagged", "report"), ("plain", "report")]
    database.close()


def test_a_newer_release_supersedes(desk):
    desk.take(1)
    desk.screen()
    desk.reporter.issue_due()
    send_all(desk)
    assert rescreen(desk.settings, STUDY) == 0  # the same would be said
    desk.ledger.activate_release(manifest(release="2024.2"))
    assert rescreen(desk.settings, STUDY) == 1
    assert rescreen(desk.settings, STUDY) == 0  # it waits already
    counts = desk.ledger.counts()
    assert (counts["received"], counts["waiting"], counts["delivered"]) == (1, 1, 0)
    desk.screen()
    desk.reporter.issue_due()
    first, second = reports(desk)
    assert predecessors(second) == {first.SOPInstanceUID}
    heatmaps = rows(desk, ObjectRow, kind="heatmap")
    assert len({row.sop_instance_uid for row in heatmaps}) == 2
    assert [row.replaced_by for row in rows(desk, ReportRow)] == [2, None]
    send_all(desk)
    assert desk.ledger.counts()["delivered"] == 1


def test_another_threshold_of_the_site_supersedes_too(desk):
    desk.take(1)
    desk.screen()
    desk.reporter.issue_due()
    send_all(desk)
    Releases(desk.database).set_threshold(manifest(), "covid", 0.9, set_by="Dr", basis="ours")
    assert rescreen(desk.settings, STUDY) == 1
    desk.screen(threshold=0.9)
    desk.reporter.issue_due()
    first, second = reports(desk)
    assert predecessors(second) == {first.SOPInstanceUID}
    assert [row.round for row in rows(desk, ScreeningRow)] == [1, 2]


def test_a_report_that_failed_is_made_when_a_person_says_so(desk):
    desk.take(1)
    claim = desk.screen()
    kept = desk.archive.locate(claim.path).read_bytes()
    desk.archive.locate(claim.path).unlink()
    desk.reporter.issue_due()
    assert rows(desk, ScreeningRow)[0].state == "failed"
    desk.archive.store(kept)
    assert rescreen(desk.settings, STUDY) == 1
    assert rescreen(desk.settings, STUDY) == 0
    desk.reporter.issue_due()
    assert [(row.state, row.reason) for row in rows(desk, ScreeningRow)] == [("reported", None)]
    assert len(reports(desk)) == 1


def test_a_study_that_nobody_screened_cannot_be_screened_anew(desk):
    with pytest.raises(RescreeningError, match=r"no image of study 1\.2\.3"):
        rescreen(desk.settings, "1.2.3")
