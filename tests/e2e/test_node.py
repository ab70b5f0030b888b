"""The embedded node as its users meet it."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from pynetdicom import AE
from sqlalchemy import select

from dicom_node.config import load
from dicom_node.demo.instances import phantom_dataset
from dicom_node.demo.pacs import OrthancPacs
from dicom_node.supervisor import STOP_TIMEOUT_S
from dicom_node.tables import DeliveryTryRow, InstanceRow, ScreeningRow
from tests.e2e.harness import Node, Service, alive, dcmsend, destination, results, wait_until


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    ds = phantom_dataset(0, fresh_uids=True)
    path = tmp_path_factory.mktemp("film") / "film.dcm"
    ds.save_as(path, enforce_file_format=True)
    return ds, path


@pytest.fixture(scope="module")
def sent(node, tmp_path_factory):
    """A film of a study of its own for each form of the node."""
    ds = phantom_dataset(0, fresh_uids=True)
    path = tmp_path_factory.mktemp("sent") / "film.dcm"
    ds.save_as(path, enforce_file_format=True)
    return ds, path


def test_a_phantom_comes_back_as_one_report_and_one_heatmap(node, orthanc, sent):
    ds, path = sent
    assert dcmsend(node.port, path)[0] == 0
    summary = node.await_ended(ds.SOPInstanceUID)
    assert summary.state == "delivered"
    assert results(orthanc, ds.StudyInstanceUID) == (1, 1)
    status = node.status()
    assert status["invariant_holds"]
    assert sum(status["deliveries"]["pacs"].get(proof, 0) for proof in ("committed", "read_back")) >= 2


def test_an_identical_second_send_makes_no_second_result(node, orthanc, sent):
    ds, path = sent
    before = node.ledger.counts()
    assert dcmsend(node.port, path)[0] == 0
    after = node.ledger.counts()
    assert after["duplicates"] == before["duplicates"] + 1
    assert after["received"] == before["received"]
    assert results(orthanc, ds.StudyInstanceUID) == (1, 1)


def test_echo_answers(node):
    done = subprocess.run(["echoscu", "127.0.0.1", str(node.port)], timeout=30, check=False)
    assert done.returncode == 0


def test_a_running_listener_has_no_torch_in_it(node):
    children = node.children()
    mapped = {role: Path(f"/proc/{pid}/maps").read_text() for role, pid in children.items()}
    assert "libtorch" in mapped["work"]
    assert "torchvision" not in mapped["work"]  # seconds of each start, and no shipped network needs it
    for role in ("listen", "deliver", "sweep"):
        assert "torch" not in mapped[role]


def test_a_second_start_beside_a_running_node_is_refused_by_name(node):
    second = node.run("up")
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert "a node already runs on" in second.stderr
    assert f'"pid": {node.process.pid}' in second.stderr


def test_a_second_node_on_the_same_ledger_is_refused_even_with_another_archive(node, tmp_path):
    settings = load(node.config)
    changed = {"database_url": settings.database_url}
    if password := settings.database_password.get_secret_value():
        changed["database_password"] = password
    done = Node(tmp_path / "other", **changed).run("up")
    assert done.returncode == 2
    # An embedded node's ledger is a file, which is locked; a server's is known by its archive.
    assert ("is it mounted?" if isinstance(node, Service) else "a node already runs on") in done.stderr


@pytest.mark.parametrize(
    "changed",
    [
        {"database_url": "foo://x"},
        {"database_url": "nonsense"},
        {"database_url": "sqlite://"},
        {"database_url": "sqlite:////proc/nowhere/ledger.sqlite"},
        {"archive_dir": "/proc/nowhere"},
        {"bundle": "nowhere"},
    ],
)
def test_what_cannot_be_used_ends_the_start_with_one_line(tmp_path, changed):
    done = Node(tmp_path / "node", **changed).run("up")
    assert done.returncode == 2
    assert done.stderr.startswith("dicom-node: ")
    assert done.stderr.count("\n") == 1


def test_a_file_that_is_no_database_ends_the_start_with_one_line(tmp_path):
    node = Node(tmp_path / "node")
    (node.folder / "ledger.sqlite").write_text("no database" * 100)
    for command in ("up", "status"):
        done = node.run(command)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "database_url" in done.stderr


def test_a_taken_port_ends_the_start_with_one_clear_line(node, tmp_path):
    other = Node(tmp_path / "other")
    other.config.write_text(other.config.read_text().replace(f"port = {other.port}", f"port = {node.port}"))
    done = other.run("up")
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{node.port}: Address already in use" in done.stderr
    assert done.stderr.count("dicom-node: ") == 1


def test_a_sop_class_that_is_not_served_is_not_accepted(node):
    entity = AE()
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.2")  # CT
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.1")
    association = entity.associate("127.0.0.1", node.port)
    accepted = {context.abstract_syntax for context in association.accepted_contexts}
    association.release()
    assert accepted == {"1.2.840.10008.5.1.4.1.1.1"}


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("lateral", {"ViewPosition": "LL"}),
        ("not_chest", {"BodyPartExamined": "HIP"}),
        ("own_result", {"Manufacturer": "cxr-dicom-node project", "ManufacturerModelName": "cxr-dicom-node"}),
        ("colour", {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}),
        ("multi_frame", {"NumberOfFrames": 2}),
        ("constant", {"constant": True}),
    ],
)
def test_what_is_no_frontal_chest_x_ray_is_declined_with_its_reason(node, orthanc, tmp_path, reason, change):
    ds = phantom_dataset(1, fresh_uids=True)
    change = dict(change)
    if change.pop("constant", False):
        ds.PixelData = bytes(len(ds.PixelData))
    for keyword, value in change.items():
        setattr(ds, keyword, value)
    path = tmp_path / "film.dcm"
    ds.save_as(path, enforce_file_format=True)
    assert dcmsend(node.port, path)[0] == 0
    summary = node.await_ended(ds.SOPInstanceUID)
    assert (summary.state, summary.reason) == ("declined", reason)
    with node.database.read() as session:
        kept = session.scalar(select(InstanceRow.path).filter_by(sop_instance_uid=str(ds.SOPInstanceUID)))
    assert (kept is None) == (reason != "constant")  # only its pixels could tell, so it was archived first
    assert results(orthanc, ds.StudyInstanceUID) == (0, 0)


def test_broken_pixels_fail_with_the_tag_named_and_the_next_image_is_screened(node, tmp_path):
    broken = phantom_dataset(2, fresh_uids=True)
    broken.Rows = 60000
    broken.Columns = 60000
    short = phantom_dataset(2, fresh_uids=True)
    short.PixelData = short.PixelData[:1000]
    good = phantom_dataset(2, fresh_uids=True)
    for number, ds in enumerate((broken, short, good)):
        path = tmp_path / f"{number}.dcm"
        ds.save_as(path, enforce_file_format=True)
        assert dcmsend(node.port, path)[0] == 0
    assert node.await_ended(good.SOPInstanceUID).state == "delivered"
    for ds, reason, tag in ((broken, "pixels_too_large", "(0028,0010)"), (short, "pixels_undecodable", "(7FE0,0010)")):
        assert node.await_ended(ds.SOPInstanceUID).state == "failed"
        with node.database.read() as session:
            row = session.scalars(
                select(ScreeningRow).join(InstanceRow).where(InstanceRow.sop_instance_uid == ds.SOPInstanceUID)
            ).one()
        assert row.reason == reason
        assert tag in row.detail


def test_missing_and_illegal_type_2_values_are_screened_emptied_and_noted(node, orthanc, tmp_path):
    ds = phantom_dataset(3, fresh_uids=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.StudyDate = "2025-01-01"
        ds.PatientSex = "U"
        del ds.StudyID
        path = tmp_path / "film.dcm"
        ds.save_as(path, enforce_file_format=True)
    assert dcmsend(node.port, path)[0] == 0
    assert node.await_ended(ds.SOPInstanceUID).state == "delivered"
    assert results(orthanc, ds.StudyInstanceUID) == (1, 1)
    with node.database.read() as session:
        notes = session.scalar(select(InstanceRow.notes).filter_by(sop_instance_uid=str(ds.SOPInstanceUID)))
    assert any("StudyDate" in note for note in notes)
    assert not any("2025-01-01" in note for note in notes)


def test_no_patient_data_stands_in_the_log(node, film):
    dcmsend(node.port, film[1])
    node.await_ended(film[0].SOPInstanceUID)
    assert film[0].SOPInstanceUID in node.log.read_text()
    assert "PHANTOM" not in node.log.read_text()


def test_a_destination_that_is_down_gets_everything_when_it_is_back(orthanc_program, dcmtk, tmp_path, film, make_node):
    ds, path = film
    pacs = OrthancPacs(tmp_path / "pacs")
    node = make_node(destination(pacs), retry_max_s=0.5).start()
    assert dcmsend(node.port, path)[0] == 0

    def tried():
        with node.database.read() as session:
            return len(session.scalars(select(DeliveryTryRow)).all()) >= 4

    wait_until(tried, what="two tries of both objects")
    assert node.ledger.summary(ds.SOPInstanceUID).state == "reported"
    with pacs:
        assert node.await_ended(ds.SOPInstanceUID).state == "delivered"
        assert results(pacs, ds.StudyInstanceUID) == (1, 1)


def test_a_destination_that_rejects_the_node_stops_the_delivery_and_shows_it(
    orthanc_program, dcmtk, tmp_path, film, make_node
):
    ds, path = film
    with OrthancPacs(tmp_path / "pacs", extra={"DicomCheckCalledAet": True}) as pacs:
        node = make_node(destination(pacs, ae_title="NOBODY")).start()
        assert dcmsend(node.port, path)[0] == 0
        summary = node.await_ended(ds.SOPInstanceUID)
        assert (summary.state, summary.reason) == ("failed", "delivery_rejected")
        status = node.status()
        assert status["deliveries"] == {"pacs": {"rejected": 2}}
        assert "Called AE title not recognised" in status["delivery_errors"]["pacs"]


def test_identity_stays_out_of_the_ledger_where_the_setting_says_so(dcmtk, tmp_path, film):
    ds, path = film
    node = Node(tmp_path / "node", store_patient_identity=False)
    try:
        node.start()
        assert dcmsend(node.port, path)[0] == 0
        assert node.await_ended(ds.SOPInstanceUID).state == "withheld"
        content = (node.folder / "ledger.sqlite").read_bytes() + (node.folder / "ledger.sqlite-wal").read_bytes()
        assert b"PHANTOM" not in content
    finally:
        node.stop()


def test_sigterm_ends_the_node_and_all_its_children(dcmtk, tmp_path):
    node = Node(tmp_path / "node")
    node.start()
    children = node.children()
    assert set(children) == {"listen", "work", "deliver", "sweep"}
    node.stop()
    assert node.process.returncode == 0
    assert not any(map(alive, children.values()))


def test_ctrl_c_ends_the_node_at_once(dcmtk, tmp_path):
    """SIGINT goes to the whole group, and the parent's SIGTERM follows on its heels."""
    node = Node(tmp_path / "node")
    node.start(start_new_session=True)
    children = node.children()
    started = time.monotonic()
    os.killpg(node.process.pid, signal.SIGINT)
    assert node.process.wait(30) == 0
    assert time.monotonic() - started < STOP_TIMEOUT_S  # no child had to be killed
    assert not any(map(alive, children.values()))


def test_a_wrong_setting_ends_the_start_with_one_line(tmp_path):
    config = tmp_path / "node.toml"
    config.write_text("prot = 11112\n")
    done = subprocess.run(
        [sys.executable, "-m", "dicom_node", "--config", str(config), "up"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        f"dicom-node: unknown setting prot in {config}; the README lists the settings"
    ]
