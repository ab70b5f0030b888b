"""A PACS that routes by its own rule, exactly as docs/deployment.md prints it: the node's results come back to the
node, and there it ends."""

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian, generate_uid
from sqlalchemy import select

from dicom_node.demo.instances import phantom_dataset
from dicom_node.demo.pacs import OrthancPacs
from dicom_node.tables import InstanceRow, ScreeningRow
from tests.e2e.harness import dcmsend, destination, instances, results, wait_until

DOCUMENT = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()
FILMS, EVERYTHING = re.findall(r"^```lua\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
(ORTHANC_KEYS,) = re.findall(r"^```json\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
AE_TITLE, HOST, PORT = json.loads(ORTHANC_KEYS)["DicomModalities"]["cxrscreen"]
QUIET_S = 3.0  # a loop would come round many times


@pytest.fixture
def routed(request, orthanc_program, dcmtk, make_node, tmp_path):
    """A running Orthanc with the rule that the test names, and the running node to which it routes."""
    script = tmp_path / "cxrscreen.lua"
    script.write_text(request.param)
    place = OrthancPacs(tmp_path / "pacs")
    node = make_node(destination(place))
    keys = ORTHANC_KEYS.replace(HOST, "127.0.0.1").replace(str(PORT), str(node.port))
    keys = keys.replace("/etc/orthanc/cxrscreen.lua", str(script))
    with OrthancPacs(place.folder, port=place.port, http_port=place.http_port, extra=json.loads(keys)) as pacs:
        node.start()
        yield pacs, node


def send(pacs, ds, folder):
    path = folder / f"{ds.SOPInstanceUID}.dcm"
    ds.save_as(path, enforce_file_format=True)
    returncode, output = dcmsend(pacs.port, path, called=pacs.ae_title)
    assert returncode == 0, output


def job_states(pacs):
    """Of what the PACS routes; its reports of storage commitments are jobs too."""
    with urllib.request.urlopen(f"http://127.0.0.1:{pacs.http_port}/jobs?expand", timeout=10) as answer:
        return [job["State"] for job in json.load(answer) if job["Type"] == "DicomModalityStore"]


def await_counts(node, **expected):
    def reached():
        counts = node.ledger.counts()
        return {state: counts[state] for state in expected} == expected

    wait_until(reached, poll_s=0.2, what=f"{expected}")


def declined(node):
    with node.database.read() as session:
        rows = session.execute(
            select(InstanceRow.sop_class_uid, ScreeningRow.reason)
            .join(ScreeningRow, ScreeningRow.instance_id == InstanceRow.id)
            .where(ScreeningRow.state == "declined")
        )
        return sorted((sop_class, reason) for sop_class, reason in rows)


def another_makers_report(film):
    """A Basic Text SR in the film's study."""
    report = Dataset()
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID"):
        setattr(report, keyword, film.get(keyword))
    report.SOPClassUID = BasicTextSRStorage
    report.SOPInstanceUID, report.SeriesInstanceUID = generate_uid(), generate_uid()
    report.Modality = "SR"
    report.ValueType, report.ContinuityOfContent = "CONTAINER", "SEPARATE"
    return report


@pytest.mark.parametrize("routed", [EVERYTHING], indirect=True, ids=["everything"])
def test_a_pacs_that_routes_everything_gets_its_results_once_and_the_loop_ends(routed, tmp_path):
    pacs, node = routed
    film = phantom_dataset(0, fresh_uids=True)
    send(pacs, film, tmp_path)

    await_counts(node, received=3, delivered=1, declined=2)
    wait_until(lambda: job_states(pacs) == ["Success"] * 3, what="the end of three jobs")
    time.sleep(QUIET_S)
    await_counts(node, received=3, delivered=1, declined=2, duplicates=0, conflicts=0)
    assert {reason for _, reason in declined(node)} == {"own_result"}
    assert job_states(pacs) == ["Success"] * 3
    assert len(instances(pacs, film.StudyInstanceUID)) == 3
    assert results(pacs, film.StudyInstanceUID) == (1, 1)

    send(pacs, another_makers_report(film), tmp_path)
    await_counts(node, received=4, delivered=1, declined=3)
    assert (BasicTextSRStorage, "sop_class") in declined(node)
    wait_until(lambda: job_states(pacs) == ["Success"] * 4, what="the end of the fourth job")


@pytest.mark.parametrize("make_node", ["embedded"], indirect=True)  # what is routed is the PACS's doing alone
@pytest.mark.parametrize("routed", [FILMS], indirect=True, ids=["films"])
def test_a_pacs_that_routes_films_only_sends_no_result_to_the_node(routed, tmp_path):
    pacs, node = routed
    film = phantom_dataset(1, fresh_uids=True)
    send(pacs, film, tmp_path)

    await_counts(node, received=1, delivered=1)
    time.sleep(QUIET_S)
    await_counts(node, received=1, delivered=1, declined=0)
    assert job_states(pacs) == ["Success"]
    assert results(pacs, film.StudyInstanceUID) == (1, 1)
