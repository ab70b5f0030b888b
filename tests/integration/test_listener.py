"""The SCP alone, with DCMTK or pynetdicom as the sender: what is kept, what is answered, and when."""

import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
from pathlib import Path

import pynetdicom.association
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, dsutils
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification
from sqlalchemy import select

from dicom_node.admission import COMPANION_SOP_CLASSES
from dicom_node.archive import Archive
from dicom_node.config import Settings
from dicom_node.database import Database
from dicom_node.demo.instances import phantom_dataset
from dicom_node.demo.pacs import free_port
from dicom_node.domain import MANUFACTURER, MODEL_NAME, NodeError
from dicom_node.intake import CANNOT_UNDERSTAND, DATASET_MISMATCH
from dicom_node.ledger import Ledger
from dicom_node.listener import (
    OUT_OF_RESOURCES,
    PROCESSING_FAILURE,
    SUCCESS,
    Listener,
)
from dicom_node.tables import InstanceRow, ResendRow, ScreeningRow
from tests.e2e.harness import dcmsend
from tests.result_factories import manifest


class Scp:
    """A running listener with an archive and a ledger of its own."""

    def __init__(self, folder, ring=None, **changed):
        self.url = f"sqlite:///{folder / 'ledger.sqlite'}"
        self.settings = Settings(port=free_port(), archive_dir=folder / "archive", database_url=self.url, **changed)
        self.database = Database(self.url)
        self.database.upgrade()
        self.ledger = Ledger(self.database)
        self.ledger.activate_release(manifest())
        self.archive = Archive(self.settings.archive_dir)
        self.listener = Listener(self.settings, self.archive, self.ledger, ring)

    def files(self):
        return [path for path in self.settings.archive_dir.rglob("*") if path.is_file()]

    def rows(self, table):
        with self.database.read() as session:
            return session.scalars(select(table)).all()


@pytest.fixture
def scp(tmp_path):
    with running(tmp_path) as found:
        yield found


@contextlib.contextmanager
def running(folder, ring=None, **changed):
    found = Scp(folder, ring, **changed)
    found.listener.start()
    try:
        yield found
    finally:
        found.listener.stop()
        found.database.close()


def send(scp, ds, transfer_syntax=ExplicitVRLittleEndian):
    """The answer to a C-STORE of the data set."""
    entity = AE(ae_title="SENDER")
    entity.add_requested_context(ds.SOPClassUID, transfer_syntax)
    association = entity.associate("127.0.0.1", scp.settings.port)
    assert association.is_established
    answer = association.send_c_store(ds)
    association.release()
    return answer


@contextlib.contextmanager
def sending(monkeypatch, encoded):
    """Whatever pynetdicom is asked to send, these are the bytes of the data set; the command stays as it is."""
    with monkeypatch.context() as patched:
        patched.setattr(pynetdicom.association, "encode", lambda *_, **__: encoded)
        yield


def test_what_was_answered_with_success_is_on_the_disk_and_in_the_ledger(scp, dcmtk, tmp_path):
    ds = phantom_dataset(0)
    path = tmp_path / "film.dcm"
    ds.save_as(path, enforce_file_format=True)
    returncode, output = dcmsend(scp.settings.port, path)
    assert returncode == 0, output
    (row,) = scp.rows(InstanceRow)
    kept = scp.archive.locate(row.path)
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == row.sha256
    assert dcmread(kept).to_json_dict() == dcmread(path).to_json_dict()
    assert (row.sop_instance_uid, row.calling_ae_title) == (ds.SOPInstanceUID, "DCMSEND")
    assert (row.view, row.body_part, row.modality) == ("PA", "chest", "CR")
    assert [screening.state for screening in scp.rows(ScreeningRow)] == ["waiting"]


def test_file_folder_and_row_are_durable_before_success_is_answered(scp, monkeypatch):
    happened = []
    fsync, record = os.fsync, scp.ledger.record

    def synced(descriptor):
        happened.append("folder" if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir() else "file")
        fsync(descriptor)

    def recorded(received):
        kind = record(received)
        with sqlite3.connect(scp.settings.database_url.removeprefix("sqlite:///")) as other:
            assert other.execute("SELECT count(*) FROM instances").fetchone() == (1,)
        other.close()
        happened.append("row")
        return kind

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(scp.ledger, "record", recorded)
    assert send(scp, phantom_dataset(0)).Status == SUCCESS
    assert happened[-3:] == ["file", "folder", "row"]


def test_a_declined_instance_is_answered_with_success_recorded_and_not_kept(scp):
    ds = phantom_dataset(0)
    ds.ViewPosition = "LL"
    assert send(scp, ds).Status == SUCCESS
    assert scp.files() == []
    assert scp.rows(InstanceRow)[0].path is None
    assert scp.rows(ScreeningRow)[0].reason == "lateral"


def test_a_declined_instance_is_kept_where_the_setting_says_so(tmp_path):
    with running(tmp_path, keep_declined=True) as scp:
        ds = phantom_dataset(0)
        ds.ViewPosition = "LL"
        assert send(scp, ds).Status == SUCCESS
        assert len(scp.files()) == 1
        assert scp.rows(ScreeningRow)[0].state == "declined"


def companion(sop_class, **elements):
    """What stands beside the films of a study: no image."""
    ds = Dataset()
    ds.file_meta = phantom_dataset(0).file_meta
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid(), generate_uid()
    ds.Modality = "SR"
    ds.PatientName = "PHANTOM^1"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize("sop_class", sorted(COMPANION_SOP_CLASSES), ids=lambda uid: uid.keyword)
def test_what_a_pacs_routes_along_with_a_film_is_answered_with_success_and_declined(scp, sop_class):
    for transfer_syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        ds = companion(sop_class)
        ds.file_meta.TransferSyntaxUID = transfer_syntax
        assert send(scp, ds, transfer_syntax).Status == SUCCESS
    ours = companion(sop_class, Manufacturer=MANUFACTURER, ManufacturerModelName=MODEL_NAME)
    assert send(scp, ours).Status == SUCCESS
    assert [row.reason for row in scp.rows(ScreeningRow)] == ["sop_class", "sop_class", "own_result"]
    assert {row.sop_class_uid for row in scp.rows(InstanceRow)} == {sop_class}
    assert scp.files() == []


def test_of_a_report_nothing_but_the_header_is_read(scp, monkeypatch):
    """Its tree may be as deep or as broken as it likes."""
    ds = companion(min(COMPANION_SOP_CLASSES))
    tree = b"\x40\x00\x30\xa7SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 3000
    with sending(monkeypatch, dsutils.encode(ds, False, True) + tree):
        assert send(scp, ds).Status == SUCCESS
    (row,) = scp.rows(InstanceRow)
    assert row.size_bytes > len(tree)
    assert row.modality == "SR"


def test_the_bell_rings_once_for_each_new_instance_to_screen_when_its_row_can_be_read(tmp_path):
    seen = []
    with running(tmp_path, ring=lambda: seen.append(len(scp.rows(InstanceRow)))) as scp:
        lateral = phantom_dataset(1)
        lateral.ViewPosition = "LL"
        again = phantom_dataset(0)
        for ds in (phantom_dataset(0), again, lateral, companion(min(COMPANION_SOP_CLASSES)), phantom_dataset(2)):
            assert send(scp, ds).Status == SUCCESS
        again.PixelData = bytes(reversed(again.PixelData))
        assert send(scp, again).Status == SUCCESS
    assert seen == [1, 4]


def test_a_bell_that_fails_changes_no_answer(tmp_path, caplog):
    def broken():
        raise ConnectionError("redis://:secret@192.0.2.1")

    with running(tmp_path, ring=broken) as scp:
        assert send(scp, phantom_dataset(0)).Status == SUCCESS
        assert len(scp.rows(ScreeningRow)) == 1
    assert "ConnectionError at test_listener.py" in caplog.text
    assert "secret" not in caplog.text


def test_a_database_that_is_down_is_answered_with_a700(scp, monkeypatch, caplog):
    class DownError(NodeError):
        permanent = False

    def down(_received):
        raise DownError("the database at 192.0.2.1 does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(scp.ledger, "record", down)
        assert send(scp, phantom_dataset(0)).Status == OUT_OF_RESOURCES
    assert "does not answer" in caplog.text
    assert send(scp, phantom_dataset(0)).Status == SUCCESS


def test_a_second_send_is_a_duplicate_and_a_changed_one_a_conflict_that_is_kept_apart(scp):
    ds = phantom_dataset(0)
    assert send(scp, ds).Status == SUCCESS
    assert send(scp, ds).Status == SUCCESS
    assert len(scp.files()) == 1
    ds.PixelData = bytes(reversed(ds.PixelData))
    assert send(scp, ds).Status == SUCCESS
    assert [row.kind for row in scp.rows(ResendRow)] == ["duplicate", "conflict"]
    assert len(scp.files()) == 2
    assert len(scp.rows(ScreeningRow)) == 1


def test_the_same_instance_in_parallel_is_one_row(scp):
    ds = phantom_dataset(0)
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(send(scp, ds).Status)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [SUCCESS] * 5
    assert len(scp.rows(InstanceRow)) == 1
    assert len(scp.rows(ResendRow)) == 4


def test_a_full_disk_is_answered_with_a700_and_leaves_nothing(scp, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        answer = send(scp, phantom_dataset(0))
    assert answer.Status == OUT_OF_RESOURCES
    assert scp.files() == []
    assert scp.rows(InstanceRow) == []
    assert send(scp, phantom_dataset(0)).Status == SUCCESS


def test_a_locked_database_is_answered_with_a700_and_the_sender_may_come_again(scp):
    blocker = sqlite3.connect(scp.settings.database_url.removeprefix("sqlite:///"), isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    assert send(scp, phantom_dataset(0)).Status == OUT_OF_RESOURCES
    blocker.execute("ROLLBACK")
    blocker.close()
    assert scp.rows(InstanceRow) == []
    assert send(scp, phantom_dataset(0)).Status == SUCCESS
    assert len(scp.files()) == 1


def test_a_data_set_of_another_instance_than_the_command_names_is_refused(scp, monkeypatch):
    other = dsutils.encode(phantom_dataset(1), False, True)
    with sending(monkeypatch, other):
        answer = send(scp, phantom_dataset(0))
    assert answer.Status == DATASET_MISMATCH
    assert "(0008,0018)" in answer.ErrorComment
    assert scp.rows(InstanceRow) == []


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_an_instance_that_no_result_could_be_filed_beside_is_refused_with_its_tag(scp, keyword):
    ds = phantom_dataset(0)
    delattr(ds, keyword)
    answer = send(scp, ds)
    assert answer.Status == DATASET_MISMATCH
    assert keyword in answer.ErrorComment


def test_a_data_set_that_cannot_be_parsed_is_refused_and_the_next_one_is_taken(scp, monkeypatch):
    with sending(monkeypatch, b"\x08\x00\x05\x00CS\xff\xff" + b"garbage" * 40):
        assert send(scp, phantom_dataset(0)).Status in (CANNOT_UNDERSTAND, DATASET_MISMATCH)
    with sending(monkeypatch, b"\x40\x00\x30\xa7SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 3000):
        assert send(scp, phantom_dataset(0)).Status in (CANNOT_UNDERSTAND, DATASET_MISMATCH)
    assert send(scp, phantom_dataset(1)).Status == SUCCESS
    assert len(scp.rows(InstanceRow)) == 1


def test_a_data_set_that_begins_with_file_meta_of_its_own_is_refused(scp, monkeypatch):
    """It could name a transfer syntax that was never negotiated, such as the deflated one."""
    ds = phantom_dataset(0)
    smuggled = b"\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.1.99" + dsutils.encode(ds, False, True)
    with sending(monkeypatch, smuggled):
        assert send(scp, ds).Status == CANNOT_UNDERSTAND
    assert scp.rows(InstanceRow) == []


def test_a_fault_of_ours_is_answered_told_without_its_text_and_survived(scp, monkeypatch, caplog):
    def fault(_received):
        raise ValueError("PHANTOM^1")

    with monkeypatch.context() as patched:
        patched.setattr(scp.ledger, "record", fault)
        assert send(scp, phantom_dataset(0)).Status == PROCESSING_FAILURE
    assert "ValueError at test_listener.py" in caplog.text
    assert "PHANTOM" not in caplog.text
    assert send(scp, phantom_dataset(0)).Status == SUCCESS


def test_no_patient_element_is_logged(scp, caplog):
    with caplog.at_level(logging.DEBUG, logger="dicom_node"):
        ds = phantom_dataset(0)
        send(scp, ds)
        del ds.StudyInstanceUID
        send(scp, ds)
    assert caplog.text
    assert "PHANTOM" not in caplog.text


def test_no_identity_is_in_the_ledger_where_the_setting_says_so(tmp_path):
    with running(tmp_path, store_patient_identity=False) as scp:
        send(scp, phantom_dataset(0))
        (row,) = scp.rows(InstanceRow)
    assert (row.patient_name, row.patient_id, row.accession_number, row.study_date) == (None, None, None, None)


def test_identity_is_in_the_ledger_for_the_worklist(scp):
    send(scp, phantom_dataset(0))
    (row,) = scp.rows(InstanceRow)
    assert row.patient_name.startswith("PHANTOM")


def test_no_storage_commitment_report_is_accepted_where_nobody_keeps_it(scp):
    entity = AE(ae_title="PACS")
    entity.add_requested_context(Verification)
    entity.add_requested_context(StorageCommitmentPushModel)
    association = entity.associate("127.0.0.1", scp.settings.port)
    accepted = [context.abstract_syntax for context in association.accepted_contexts]
    association.release()
    assert accepted == [Verification]
