"""Studies of several images, results that replace others and results that are taken back, in a real Orthanc."""

import json

import pytest
from pydicom.uid import generate_uid

from dicom_node.demo.instances import phantom_dataset
from tests.e2e.conftest import FORMS, SHORT, of_form
from tests.e2e.harness import (
    COMPREHENSIVE_3D_SR,
    SECONDARY_CAPTURE,
    dcmsend,
    destination,
    download,
    forget,
    instances,
    wait_until,
)

KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"
QUIET_S = 2.0


class Study:
    """Films of one study as files; `late` is not sent with the others."""

    def __init__(self, folder):
        self.uid = str(generate_uid())
        self.folder = folder
        self.sent = {}

    def film(self, number, **changed):
        ds = phantom_dataset(number, fresh_uids=True)
        ds.StudyInstanceUID = self.uid
        ds.PatientID, ds.PatientName = "PHANTOM-7", "PHANTOM^7"
        for keyword in ("PatientBirthDate", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
            setattr(ds, keyword, phantom_dataset(0)[keyword].value)
        for keyword, value in changed.items():
            setattr(ds, keyword, value)
        path = self.folder / f"{ds.SOPInstanceUID}.dcm"
        ds.save_as(path, enforce_file_format=True)
        return str(ds.SOPInstanceUID), path


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


@pytest.fixture(scope="module", params=FORMS)
def running(request, orthanc, tmp_path_factory):
    """One node for the tests that set nothing of their own."""
    found = of_form(
        request,
        tmp_path_factory.mktemp("node"),
        destination(orthanc),
        **SHORT | {"study_quiet_s": QUIET_S, "commit_timeout_s": 30.0},
    )
    try:
        yield found.start()
    finally:
        found.stop()


def committed(node):
    """How many objects the PACS has committed to."""
    return node.status()["deliveries"].get("pacs", {}).get("committed", 0)


def of_class(orthanc, study, sop_class):
    """Objects of the class in the PACS, as data sets."""
    return [download(orthanc, key) for kind, _, _, key in instances(orthanc, study.uid) if kind == sop_class]


def held(orthanc, study):
    """SOP Instance UIDs of what the PACS has of the study."""
    return {uid for _, _, uid, _ in instances(orthanc, study.uid)}


def cited(ds, sequence="CurrentRequestedProcedureEvidenceSequence"):
    return {
        instance.ReferencedSOPInstanceUID
        for study in ds.get(sequence, [])
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }


def reports_of(running, orthanc, study, count):
    return wait_until(
        lambda: len(found := of_class(orthanc, study, COMPREHENSIVE_3D_SR)) >= count and found,
        what=f"report {count}",
    )


def test_two_films_and_a_lateral_over_two_associations_and_a_late_one(running, orthanc, study):
    before = committed(running)
    (first, path), (second, other) = study.film(0), study.film(1)
    lateral, side = study.film(2, ViewPosition="LL")
    assert dcmsend(running.port, path, side)[0] == 0
    assert dcmsend(running.port, other)[0] == 0
    for uid in (first, second):
        assert running.await_ended(uid).state == "delivered"
    assert running.await_ended(lateral).state == "declined"
    heatmaps = {ds.SOPInstanceUID for ds in of_class(orthanc, study, SECONDARY_CAPTURE)}
    (report,) = of_class(orthanc, study, COMPREHENSIVE_3D_SR)
    assert len(heatmaps) == 2
    assert cited(report) == {first, second} | heatmaps
    assert committed(running) == before + 3

    late, path = study.film(3)
    assert dcmsend(running.port, path)[0] == 0
    assert running.await_ended(late).state == "delivered"
    reports = {ds.SOPInstanceUID: ds for ds in of_class(orthanc, study, COMPREHENSIVE_3D_SR)}
    assert len(reports) == 2
    successor = reports[(reports.keys() - {report.SOPInstanceUID}).pop()]
    assert cited(successor, "PredecessorDocumentsSequence") == {report.SOPInstanceUID}
    assert cited(successor) > cited(report) | {late}
    assert len(of_class(orthanc, study, SECONDARY_CAPTURE)) == 3
    told = json.loads(running.run("explain", successor.SOPInstanceUID, "--json").stdout)
    assert late in json.dumps(told)


def test_a_study_is_taken_back_by_a_note_that_names_exactly_our_objects(running, orthanc, study, validators, tmp_path):
    uid, path = study.film(0)
    before = committed(running)
    assert dcmsend(running.port, path)[0] == 0
    running.await_ended(uid)
    ours = {
        ds.SOPInstanceUID for kind in (SECONDARY_CAPTURE, COMPREHENSIVE_3D_SR) for ds in of_class(orthanc, study, kind)
    }
    assert len(ours) == 2
    done = running.run("retract", study.uid, "--reason", "quality", "--comment", "another patient's film")
    assert done.returncode == 0, done.stderr
    (note,) = wait_until(lambda: of_class(orthanc, study, KEY_OBJECTS), what="the note")
    assert cited(note) == ours
    assert note.ConceptNameCodeSequence[0].CodeValue == "113001"
    file = tmp_path / "note.dcm"
    note.save_as(file, enforce_file_format=True)
    validators(file)
    wait_until(lambda: committed(running) == before + 3, what="the note's proof")
    again = running.run("retract", study.uid, "--reason", "quality")
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1


def test_results_that_a_pacs_lost_are_sent_again_by_command(running, orthanc, study):
    uid, path = study.film(0)
    assert dcmsend(running.port, path)[0] == 0
    running.await_ended(uid)
    before = held(orthanc, study)
    for _, _, _, key in instances(orthanc, study.uid):
        forget(orthanc, key)
    assert held(orthanc, study) == set()
    assert "2 objects are sent again" in running.run("resend", study.uid).stdout
    wait_until(lambda: held(orthanc, study) == before, what="both")


def test_a_threshold_of_the_site_supersedes_the_report(running, orthanc, study):
    uid, path = study.film(0)
    assert dcmsend(running.port, path)[0] == 0
    running.await_ended(uid)
    (first,) = of_class(orthanc, study, COMPREHENSIVE_3D_SR)
    (target,) = running.ledger.active_manifest().targets[:1]
    asked = ("bundle", "threshold", target.name, "0.123", "--by", "Dr", "--basis", "ours")
    assert running.run(*asked).returncode == 0
    assert "1 images wait" in running.run("rescreen", study.uid).stdout
    reports = reports_of(running, orthanc, study, 2)
    (second,) = [ds for ds in reports if ds.SOPInstanceUID != first.SOPInstanceUID]
    assert cited(second, "PredecessorDocumentsSequence") == {first.SOPInstanceUID}
    assert running.await_ended(uid).state == "delivered"
    assert running.status()["invariant_holds"]


def test_a_heatmap_is_in_the_pacs_before_its_study_is_quiet(orthanc, make_node, study):
    node = make_node(destination(orthanc), study_quiet_s=600, commit_timeout_s=30.0).start()
    _, path = study.film(0)
    assert dcmsend(node.port, path)[0] == 0
    wait_until(lambda: of_class(orthanc, study, SECONDARY_CAPTURE), what="the heatmap")
    wait_until(lambda: node.status()["deliveries"].get("pacs") == {"committed": 1}, what="its proof")
    assert of_class(orthanc, study, COMPREHENSIVE_3D_SR) == []
    assert node.status()["reported"] == 1
