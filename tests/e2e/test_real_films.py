"""Real objects through the whole node into a real Orthanc: report, heatmap, ledger and `screen --json` agree."""

import json
import subprocess

import highdicom.sr
import pytest
from pydicom import dcmread
from sqlalchemy import or_, select

from dicom_node.bundle import find_bundle, read_manifest
from dicom_node.codes import output_code
from dicom_node.tables import InstanceRow, MemberOutputRow, ObjectRow, OutcomeRow, ReleaseRow, ScreeningRow
from tests.e2e.harness import (
    COMPREHENSIVE_3D_SR,
    SECONDARY_CAPTURE,
    dcmsend,
    download,
    forget,
    instances,
)

FILMS = ("RG1_J2KI.dcm", "rsna_sc_cr_chest.dcm")
OTHERS = ("RG2_JLSL.dcm", "RG2_JPLL.dcm", "RG2_JPLY.dcm", "RG3_J2KI.dcm")


CLOSE = 1e-5  # of scores between two runs on a CPU, and between processes; the PACS keeps the first of equal reports


@pytest.fixture(scope="module")
def films(node, orthanc, data_dir):
    """Both films were sent to the PACS, as a modality does, and to the node, as the PACS's auto-routing does."""
    paths = [data_dir / "dicom" / name for name in FILMS]
    for port, called in ((orthanc.port, orthanc.ae_title), (node.port, "CXRSCREEN")):
        returncode, output = dcmsend(port, *paths, called=called)
        assert returncode == 0, output
    found = {}
    for path in paths:
        ds = dcmread(path, stop_before_pixels=True)
        assert node.await_ended(ds.SOPInstanceUID).state == "delivered"
        found[path] = ds
    yield found
    for ds in found.values():  # a node of another form makes results of its own
        for _, _, _, entry in instances(orthanc, ds.StudyInstanceUID):
            forget(orthanc, entry)


@pytest.fixture(scope="module")
def offline(node, films):
    """The answers of `dicom-node screen --json` for the same files."""
    done = node.run("screen", "--json", *map(str, films), check=True)
    return {line["path"]: line for line in map(json.loads, done.stdout.splitlines())}


def of_study(orthanc, ds, sop_class):
    (found,) = [
        entry
        for kind, modality, _, entry in instances(orthanc, ds.StudyInstanceUID)
        if kind == sop_class and modality in ("SR", "OT")
    ]
    return found


def read_report(path):
    """What the report says: the ensemble's answer, probability and threshold, and every member's outputs by name."""
    content = highdicom.sr.srread(path).content
    found = {"numbers": {}, "answers": {}}
    for group in content.get_image_measurement_groups():
        subject = group.tracking_identifier.partition(", image ")[0]
        for measurement in group.get_measurements():
            found["numbers"][subject, measurement.name.meaning] = float(measurement.value)
        for evaluation in group.get_qualitative_evaluations():
            found["answers"][subject, evaluation.name.value] = evaluation.value.meaning
    return found


def test_the_pacs_holds_one_study_with_film_report_and_heatmap(orthanc, films):
    for ds in films.values():
        held = sorted((kind, modality) for kind, modality, _, _ in instances(orthanc, ds.StudyInstanceUID))
        assert held == sorted([(ds.SOPClassUID, "CR"), (SECONDARY_CAPTURE, "OT"), (COMPREHENSIVE_3D_SR, "SR")])


def test_results_are_filed_under_the_patient_of_the_film(orthanc, films):
    for ds in films.values():
        for _, _, _, entry in instances(orthanc, ds.StudyInstanceUID):
            held = download(orthanc, entry)
            assert (held.PatientID, str(held.PatientName)) == (ds.PatientID, str(ds.PatientName))
            assert held.get("AccessionNumber", "") == ds.get("AccessionNumber", "")


def test_the_validators_find_no_error(validators, orthanc, films, tmp_path):
    for number, ds in enumerate(films.values()):
        for sop_class in (SECONDARY_CAPTURE, COMPREHENSIVE_3D_SR):
            path = tmp_path / f"{number}-{sop_class}.dcm"
            download(orthanc, of_study(orthanc, ds, sop_class), path)
            validators(path)
        done = subprocess.run(["dsrdump", str(path)], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert "COVID-19" in done.stdout


def test_report_ledger_and_screen_json_agree(node, orthanc, films, offline, tmp_path):
    members = read_manifest(find_bundle("starter")).members
    titles = {member.name: f"AI member: {member.title}" for member in members}
    for path, source in films.items():
        line = offline[str(path)]
        report = download(orthanc, of_study(orthanc, source, COMPREHENSIVE_3D_SR), tmp_path / "report.dcm")
        told = read_report(tmp_path / "report.dcm")
        with node.database.read() as session:
            screening = session.scalars(
                select(ScreeningRow).join(InstanceRow).where(InstanceRow.sop_instance_uid == source.SOPInstanceUID)
            ).one()
            release = session.get_one(ReleaseRow, screening.release_id)
            outcomes = session.scalars(
                select(OutcomeRow).filter_by(screening_id=screening.id).order_by(OutcomeRow.position)
            ).all()
            outputs = session.scalars(select(MemberOutputRow).filter_by(screening_id=screening.id)).all()
            made = or_(ObjectRow.screening_id == screening.id, ObjectRow.report_id == screening.report_id)
            objects = session.scalars(select(ObjectRow).where(made)).all()

        assert line["admitted"] is True
        assert line["bundle"] == f"{release.bundle} {release.release}"
        assert [outcome.target for outcome in outcomes] == list(line["targets"])
        for outcome in outcomes:
            answer = line["targets"][outcome.target]
            assert outcome.probability == pytest.approx(answer["probability"], abs=CLOSE)
            assert (outcome.threshold, outcome.decision, outcome.flagged) == (
                answer["threshold"],
                answer["decision"],
                answer["flagged"],
            )
        outcome = outcomes[0]
        assert line["probability"] == line["targets"]["covid19"]["probability"]
        assert (line["threshold"], line["decision"], line["flagged"]) == (
            outcome.threshold,
            outcome.decision,
            outcome.flagged,
        )
        ledger_members = {}
        for row in outputs:
            ledger_members.setdefault(row.member, {})[row.output] = row.value
        assert ledger_members.keys() == line["members"].keys()
        for name, outputs_of in ledger_members.items():
            assert outputs_of == pytest.approx(line["members"][name], rel=CLOSE, abs=CLOSE)

        numbers = told["numbers"]
        assert outcome.probability == pytest.approx(
            next(value for (_, name), value in numbers.items() if name == "Probability"), abs=CLOSE
        )
        assert outcome.threshold == pytest.approx(
            next(value for (_, name), value in numbers.items() if name == "Threshold Value"), rel=1e-6
        )
        answers = {value for (_, code), value in told["answers"].items() if code == "840539006"}
        words = {"flagged": "Positive", "not_flagged": "Negative", "indeterminate": "Undetermined"}
        assert answers == {words[outcome.decision]}
        for name, outputs_of in ledger_members.items():
            told_of_member = {what: value for (subject, what), value in numbers.items() if subject == titles[name]}
            plain = {output: value for output, value in outputs_of.items() if not output.startswith("logit_")}
            expected = {output_code(output).meaning: value for output, value in plain.items()}
            assert told_of_member == pytest.approx(expected, rel=CLOSE, abs=CLOSE)

        held = {entry.sop_instance_uid for entry in objects if entry.kind != "map"}
        in_pacs = {
            uid for _, modality, uid, _ in instances(orthanc, source.StudyInstanceUID) if modality in ("SR", "OT")
        }
        assert held == in_pacs
        algorithms = {str(item.SoftwareVersions) for item in report.ContributingEquipmentSequence}
        assert any(release.release in version for version in algorithms)


def test_the_two_films_get_different_figures(offline):
    first, second = offline.values()
    assert first["probability"] != second["probability"]
    assert first["members"] != second["members"]


def test_films_of_other_body_parts_are_declined(node, orthanc, data_dir):
    """One after the other: the three codings of RG2 are different instances of one film."""
    for name in OTHERS:
        path = data_dir / "dicom" / name
        returncode, output = dcmsend(node.port, path)
        assert returncode == 0, output
        ds = dcmread(path, stop_before_pixels=True)
        summary = node.await_ended(ds.SOPInstanceUID)
        assert (summary.state, summary.reason) == ("declined", "not_chest")
        assert instances(orthanc, ds.StudyInstanceUID) == []


def test_our_own_results_coming_back_are_declined(node, orthanc, films, tmp_path):
    source = next(iter(films.values()))
    path = tmp_path / "heatmap.dcm"
    heatmap = download(orthanc, of_study(orthanc, source, SECONDARY_CAPTURE), path)
    assert dcmsend(node.port, path)[0] == 0
    summary = node.await_ended(heatmap.SOPInstanceUID)
    assert (summary.state, summary.reason) == ("declined", "own_result")
