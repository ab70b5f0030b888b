"""Proof of delivery: what a PACS was asked to commit to, what it reported, and what it gives back."""

import contextlib
import os
import signal
import threading
import time
from io import BytesIO

import pynetdicom.association
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pynetdicom.dimse_primitives import C_FIND, N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from dicom_node.archive import Archive
from dicom_node.association import AssociationError
from dicom_node.commitment import CommitmentReport, FailureReason
from dicom_node.config import Peer, Settings
from dicom_node.database import Database
from dicom_node.demo.pacs import OrthancPacs, SmallPacs, free_port
from dicom_node.domain import DeliveryError
from dicom_node.ledger import Ledger
from dicom_node.listener import Listener
from dicom_node.pacs import REPORT_CLASSES, Pacs
from dicom_node.results import Reference
from tests.peers import RESULT_CLASSES, CommittingPeer, report, reporting

NODE = "CXRSCREEN"
SECONDARY_CAPTURE = str(SecondaryCaptureImageStorage)
QUICK_S = 0.6


def secondary_capture():
    """A picture of one pixel in a study of its own."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.PatientID, ds.PatientName, ds.Modality = "PHANTOM-1", "PHANTOM^1", "OT"
    ds.Rows = ds.Columns = ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation, ds.PixelData = 7, 0, bytes(2)
    return ds


def reference(ds):
    return Reference(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPClassUID, ds.SOPInstanceUID)


def pair(ds):
    return str(ds.SOPClassUID), str(ds.SOPInstanceUID)


@pytest.fixture
def archived(tmp_path):
    """An object of ours and its file."""
    ds = secondary_capture()
    path = tmp_path / "object.dcm"
    ds.save_as(path, enforce_file_format=True)
    return ds, path


class Hearing:
    """A running listener that remembers the reports; `known` says whether the transaction is one of its own."""

    def __init__(self, folder, port, known=lambda _: True):
        self.port = port
        self.reports = []
        self.heard = threading.Event()
        self._known = known
        settings = Settings(port=port, ae_title=NODE, archive_dir=folder / "archive")
        self._database = Database(f"sqlite:///{folder / 'ledger.sqlite'}")
        self._listener = Listener(
            settings, Archive(settings.archive_dir), Ledger(self._database), on_commitment=self._hear
        )

    def __enter__(self):
        self._listener.start()
        return self

    def __exit__(self, *_):
        self._listener.stop()
        self._database.close()

    def _hear(self, told):
        try:
            known = self._known(told)
            self.reports.append(told)
            return known
        finally:
            self.heard.set()


def pacs_of(peer, timeout_s=10.0, ae_title=NODE):
    return Pacs(peer, ae_title=ae_title, timeout_s=timeout_s)


# --- Orthanc, and the demo's small PACS where it is not installed


@pytest.fixture(scope="module")
def node_port():
    return free_port()


@pytest.fixture(scope="module")
def orthanc(orthanc_program, tmp_path_factory, node_port):
    node = Peer(name="node", ae_title=NODE, host="127.0.0.1", port=node_port)
    with OrthancPacs(tmp_path_factory.mktemp("orthanc"), peers=[node], extra={"HttpServerEnabled": False}) as pacs:
        yield Peer(name="pacs", ae_title=pacs.ae_title, host=pacs.host, port=pacs.port, destination=True)
        os.kill(pacs.pid, signal.SIGKILL)  # an orderly end takes Orthanc 3.5 s


@pytest.fixture
def small(tmp_path, node_port):
    node = Peer(name="node", ae_title=NODE, host="127.0.0.1", port=node_port)
    with SmallPacs(tmp_path / "small", peers=[node]) as pacs:
        yield Peer(name="pacs", ae_title=pacs.ae_title, host=pacs.host, port=pacs.port, destination=True)


@pytest.fixture(params=["orthanc", "small"])
def either(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def hearing(tmp_path, node_port):
    with Hearing(tmp_path, node_port) as found:
        yield found


def test_a_pacs_reports_what_it_holds_on_an_association_of_its_own(either, hearing, archived):
    ds, path = archived
    transaction, unknown, of_another_class = generate_uid(), generate_uid(), (ComprehensiveSRStorage, ds.SOPInstanceUID)
    with pacs_of(either).store([SECONDARY_CAPTURE]) as sender:
        assert sender.can_commit
        assert sender.can_query
        assert sender.send(path) == 0
        sender.request_commitment(transaction, [pair(ds), (SECONDARY_CAPTURE, unknown)])
        assert hearing.heard.wait(10)
        hearing.heard.clear()
        sender.request_commitment(generate_uid(), [of_another_class])
        assert hearing.heard.wait(10)
    first, second = hearing.reports
    assert first.transaction_uid == transaction
    assert first.committed == (ds.SOPInstanceUID,)
    assert first.failed == {unknown: FailureReason.NO_SUCH_OBJECT_INSTANCE}
    assert second.committed == ()
    assert second.failed == {ds.SOPInstanceUID: FailureReason.CLASS_INSTANCE_CONFLICT}


def test_a_pacs_gives_back_what_it_holds_and_nothing_else(either, archived):
    ds, path = archived
    held = reference(ds)
    with pacs_of(either).store([SECONDARY_CAPTURE]) as sender:
        assert not sender.read_back(held)
        sender.send(path)
        assert sender.read_back(held)
        elsewhere = generate_uid()
        assert not sender.read_back(Reference(elsewhere, held.series_instance_uid, *pair(ds)))
        assert not sender.read_back(Reference(held.study_instance_uid, elsewhere, *pair(ds)))


def test_the_small_pacs_reports_to_a_caller_without_an_address_on_the_same_association(small, archived):
    ds, path = archived
    heard, done = [], threading.Event()

    def known(told):
        heard.append(told.committed)
        done.set()
        return True

    stranger = pacs_of(small, ae_title="STRANGER")
    with stranger.store([SECONDARY_CAPTURE], on_commitment=known) as sender:
        sender.send(path)
        sender.request_commitment(generate_uid(), [pair(ds)])
        assert done.wait(5)
    assert heard == [(ds.SOPInstanceUID,)]


def test_an_orthanc_that_does_not_know_the_node_aborts_and_keeps_what_it_got(orthanc, archived):
    ds, path = archived
    stranger = pacs_of(orthanc, ae_title="STRANGER")
    with stranger.store([SECONDARY_CAPTURE]) as sender:
        assert sender.send(path) == 0
        with pytest.raises(DeliveryError, match="does it know AE title STRANGER") as raised:
            sender.request_commitment(generate_uid(), [pair(ds)])
        assert (raised.value.permanent, raised.value.status) == (False, None)
        with pytest.raises(DeliveryError, match="ended the association"):
            sender.request_commitment(generate_uid(), [pair(ds)])
    with (
        stranger.store([SECONDARY_CAPTURE]) as sender,
        pytest.raises(DeliveryError, match="no answer to C-FIND"),
    ):
        sender.read_back(reference(ds))
    with pacs_of(orthanc).store([SECONDARY_CAPTURE]) as sender:
        assert sender.read_back(reference(ds))


# --- the request


@contextlib.contextmanager
def storing(peer, timeout_s=5.0, on_commitment=None, sop_classes=RESULT_CLASSES):
    with pacs_of(peer, timeout_s).store([str(uid) for uid in sop_classes], on_commitment=on_commitment) as sender:
        yield sender


@pytest.mark.parametrize("status", [0x0110, 0x0131, 0x0213])
def test_a_refused_request_is_told_with_its_status(status):
    with CommittingPeer(action_status=status) as pacs, storing(pacs.peer) as sender:
        with pytest.raises(DeliveryError, match=f"0x{status:04X}") as raised:
            sender.request_commitment("1.2.3", [(SECONDARY_CAPTURE, "1.1")])
        assert (raised.value.permanent, raised.value.status) == (False, status)
        assert sender.can_commit


def test_a_request_names_every_object_by_class_and_instance():
    with CommittingPeer() as pacs, storing(pacs.peer) as sender:
        sender.request_commitment("1.2.3", [(SECONDARY_CAPTURE, "1.1"), (REPORT_CLASSES[0], "1.2")])
    (request,) = pacs.requests
    assert request.TransactionUID == "1.2.3"
    named = [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in request.ReferencedSOPSequence]
    assert named == [(SECONDARY_CAPTURE, "1.1"), (REPORT_CLASSES[0], "1.2")]


def test_a_peer_that_accepts_no_proofs_still_stores(archived):
    ds, path = archived
    with CommittingPeer(commits=False, queries=False) as pacs, storing(pacs.peer) as sender:
        assert not sender.can_commit
        assert not sender.can_query
        assert sender.send(path) == 0
        with pytest.raises(DeliveryError, match="does not accept storage commitment"):
            sender.request_commitment("1.2.3", [pair(ds)])
        with pytest.raises(DeliveryError, match="does not accept C-FIND"):
            sender.read_back(reference(ds))
        assert sender.send(path) == 0


def test_nothing_but_storage_is_proposed_where_no_proof_is_wanted():
    with CommittingPeer() as pacs, pacs_of(pacs.peer).store([SECONDARY_CAPTURE], proofs=False) as sender:
        assert not sender.can_commit
        assert not sender.can_query


def test_a_peer_that_stalls_costs_its_time_limit():
    released = threading.Event()
    with CommittingPeer(action_status=lambda _: released.wait(10) and 0) as pacs, storing(pacs.peer, QUICK_S) as sender:
        began = time.monotonic()
        with pytest.raises(DeliveryError, match="no answer to a storage commitment request") as raised:
            sender.request_commitment("1.2.3", [(SECONDARY_CAPTURE, "1.1")])
        released.set()
    assert not raised.value.permanent
    assert time.monotonic() - began < 3


def test_a_peer_that_aborts_at_the_request_is_told_and_not_waited_for():
    def abort(event):
        event.assoc.abort()
        return 0

    with CommittingPeer(action_status=abort) as pacs, storing(pacs.peer, 10.0) as sender:
        began = time.monotonic()
        with pytest.raises(DeliveryError) as raised:
            sender.request_commitment("1.2.3", [(SECONDARY_CAPTURE, "1.1")])
    assert (raised.value.permanent, raised.value.status) == (False, None)
    assert time.monotonic() - began < 5


# --- which class a report gets


def test_a_peer_that_takes_an_older_class_of_report_is_seen_to():
    older = (ComprehensiveSRStorage, SecondaryCaptureImageStorage)
    with CommittingPeer(sop_classes=older) as pacs, storing(pacs.peer) as sender:
        assert [uid for uid in REPORT_CLASSES if sender.accepts(uid)] == [str(ComprehensiveSRStorage)]
        assert sender.accepts(SECONDARY_CAPTURE)


def test_a_peer_that_takes_no_class_of_report_takes_the_rest(archived):
    ds, path = archived
    with CommittingPeer(sop_classes=(SecondaryCaptureImageStorage,)) as pacs, storing(pacs.peer) as sender:
        assert not any(sender.accepts(uid) for uid in REPORT_CLASSES)
        assert sender.send(path) == 0
    assert pacs.stored == [ds.SOPInstanceUID]


def test_a_peer_that_takes_nothing_is_permanent():
    with (
        CommittingPeer(sop_classes=(), commits=False, queries=False) as pacs,
        pytest.raises(AssociationError, match="accepts none") as raised,
        storing(pacs.peer),
    ):
        pass
    assert raised.value.permanent


# --- reports on the association of the request


def reporting_later(pacs):
    """Answers N-ACTION with Success, then reports on the same association."""

    def act(event):
        threading.Thread(target=pacs[0].report_on, args=(event.assoc, event.action_information)).start()
        return 0

    return act


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
def test_a_report_on_the_same_association_is_heard(syntax):
    heard, holder = [], []
    known = lambda told: heard.append(told) or True  # noqa: E731
    with CommittingPeer(action_status=reporting_later(holder), failures={"1.2": 0x0213}, syntaxes=[syntax]) as pacs:
        holder.append(pacs)
        with storing(pacs.peer, on_commitment=known) as sender:
            sender.request_commitment("1.2.3", [(SECONDARY_CAPTURE, "1.1"), (SECONDARY_CAPTURE, "1.2")])
            assert pacs.answered.wait(5)
    assert heard == [CommitmentReport("1.2.3", ("1.1",), {"1.2": FailureReason.RESOURCE_LIMITATION})]
    assert pacs.answers == [0x0000]


def test_a_report_that_comes_before_the_request_is_answered_is_heard_and_the_request_succeeds():
    heard, done = [], threading.Event()

    def known(told):
        heard.append(told.transaction_uid)
        done.set()
        return True

    def report_first(event):
        told = N_EVENT_REPORT()
        told.MessageID = 77
        told.AffectedSOPClassUID = StorageCommitmentPushModel
        told.AffectedSOPInstanceUID = StorageCommitmentPushModelInstance
        told.EventTypeID = 1
        told.EventInformation = BytesIO(encode(report(event.action_information), False, True))
        event.assoc.dimse.send_msg(told, event.context.context_id)
        return 0 if done.wait(5) else 0x0110

    with (
        CommittingPeer(action_status=report_first) as pacs,
        storing(pacs.peer, on_commitment=known) as sender,
    ):
        sender.request_commitment("1.2.3", [(SECONDARY_CAPTURE, "1.1")])
    assert heard == ["1.2.3"]


def test_a_report_does_not_get_between_the_fragments_of_a_request(monkeypatch):
    with CommittingPeer() as pacs, storing(pacs.peer) as sender:
        association, sent = sender._association, []
        context_id = association.accepted_contexts[-1].context_id
        send_pdu = association.dul.send_pdu

        def slowly(primitive):
            sent.append(threading.current_thread())
            time.sleep(0.05)
            send_pdu(primitive)

        with monkeypatch.context() as patched:
            patched.setattr(association.dul, "send_pdu", slowly)
            patched.setattr(type(association.dimse), "maximum_pdu_size", 60)
            asking = threading.Thread(
                target=sender.request_commitment, args=("1.2.3", [(SECONDARY_CAPTURE, f"1.{n}") for n in range(3)])
            )
            asking.start()
            time.sleep(0.1)
            answer = N_EVENT_REPORT()
            answer.MessageIDBeingRespondedTo, answer.Status = 1, 0
            association.dimse.send_msg(answer, context_id)
            asking.join()
    assert len(set(sent)) == 2
    assert sent == [asking] * sent.count(asking) + [threading.current_thread()] * (len(sent) - sent.count(asking))
    assert sent.count(asking) > 4


# --- reports to the listener


def ask(pacs, uid="1.1"):
    with storing(pacs.peer) as sender:
        sender.request_commitment("1.2.3", [(SECONDARY_CAPTURE, uid)])
    return pacs.requests[-1]


@pytest.mark.parametrize("role", [True, False], ids=["as SCP", "without role selection"])
def test_the_listener_hears_a_report_and_answers_success(tmp_path, role):
    with CommittingPeer() as pacs, Hearing(tmp_path, free_port()) as hearing:
        pacs.report_to(NODE, hearing.port, ask(pacs), role=role)
    assert hearing.reports == [CommitmentReport("1.2.3", ("1.1",), {})]
    assert pacs.answers == [0x0000]


def test_a_report_on_a_transaction_that_is_none_of_ours_is_answered_as_such(tmp_path, caplog):
    with CommittingPeer() as pacs, Hearing(tmp_path, free_port(), known=lambda _: False) as hearing:
        pacs.report_to(NODE, hearing.port, ask(pacs))
    assert pacs.answers == [0x0115]
    assert "PACS reports on transaction 1.2.3, which is none of ours" in caplog.text


def test_a_ledger_that_fails_is_answered_told_without_its_text_and_survived(tmp_path, caplog):
    faults = iter([ValueError("Muster^Erika")])

    def known(_):
        for fault in faults:
            raise fault
        return True

    with CommittingPeer() as pacs, Hearing(tmp_path, free_port(), known) as hearing:
        request = ask(pacs)
        with reporting(NODE, hearing.port) as association:
            pacs.report_on(association, request)
            pacs.report_on(association, request)
    assert pacs.answers == [0x0110, 0x0000]
    assert "ValueError at test_commitment.py" in caplog.text
    assert "Muster" not in caplog.text


DEEP = b"\x08\x00\x99\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 3000


def test_garbage_in_a_report_is_answered_and_the_association_lives(tmp_path, monkeypatch, caplog):
    def send(association, information, event_type=1):
        sop = StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        status, _ = association.send_n_event_report(information, event_type, *sop)
        return status.Status

    def raw(association, information):
        with monkeypatch.context() as patched:
            patched.setattr(pynetdicom.association, "encode", lambda *_, **__: information)
            return send(association, good)

    with Hearing(tmp_path, free_port()) as hearing:
        good = Dataset()
        good.TransactionUID, good.ReferencedSOPSequence = "1.2.3", [Dataset()]
        good.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.1"
        no_sequence = Dataset()
        no_sequence.TransactionUID = "1.2.3"
        no_sequence.add_new(0x00081199, "LO", "1.1")
        with reporting(NODE, hearing.port) as association:
            assert send(association, None) == 0x0115
            assert send(association, good, 9) == 0x0113
            assert send(association, no_sequence) == 0x0115
            assert raw(association, b"\x08\x00\x95\x11UI\x06\x001.2.3\x00" + DEEP) == 0x0110
            assert send(association, good) == 0x0000
    assert [told.committed for told in hearing.reports] == [("1.1",)]
    assert "refused a report of PACS: the event information cannot be parsed" in caplog.text


# --- C-FIND


def found(ds, **changed):
    answer = Dataset()
    answer.QueryRetrieveLevel = "IMAGE"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(answer, keyword, ds[keyword].value)
    for keyword, value in changed.items():
        setattr(answer, keyword, value)
    return answer


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (lambda ds: [(0xFF00, found(ds))], True),
        (lambda ds: [(0xFF01, found(ds))], True),
        (lambda ds: [(0xFF00, found(ds, SOPInstanceUID="1.9")), (0xFF00, found(ds))], True),
        (lambda ds: [(0xFF00, found(ds, StudyInstanceUID="", SeriesInstanceUID=""))], True),
        (lambda ds: [(0xFF00, found(ds, SOPInstanceUID="1.9"))], False),
        (lambda ds: [(0xFF00, found(ds, StudyInstanceUID="1.9"))], False),
        (lambda ds: [(0xFF00, found(ds, SOPInstanceUID=""))], False),
        (lambda ds: [], False),
    ],
)
def test_only_an_answer_that_names_the_instance_is_a_proof(answers, expected):
    ds = secondary_capture()
    with CommittingPeer(find=lambda _: iter(answers(ds))) as pacs, storing(pacs.peer) as sender:
        assert sender.read_back(reference(ds)) is expected


@pytest.mark.parametrize("status", [0xA700, 0xC000, 0xFE00])
def test_a_query_that_does_not_end_by_success_proves_nothing(status):
    ds = secondary_capture()
    with CommittingPeer(find=lambda _: iter([(0xFF00, found(ds)), (status, None)])) as pacs, storing(pacs.peer) as s:
        with pytest.raises(DeliveryError, match=f"0x{status:04X}") as raised:
            s.read_back(reference(ds))
        assert (raised.value.permanent, raised.value.status) == (False, status)


def test_garbage_as_an_answer_proves_nothing_and_does_no_harm():
    ds = secondary_capture()

    def garbage(event):
        for identifier in (
            b"garbage",
            b"\x08\x00\x18\x00SQ\x00\x00\xff\xff\xff\xff" * 3,
            b"\x08\x00\x18\x00UI\xff\xff1",
        ):
            answer = C_FIND()
            answer.MessageIDBeingRespondedTo = event.request.MessageID
            answer.AffectedSOPClassUID = event.request.AffectedSOPClassUID
            answer.Status, answer.Identifier = 0xFF00, BytesIO(identifier)
            event.assoc.dimse.send_msg(answer, event.context.context_id)
        yield 0x0000, None

    with CommittingPeer(find=garbage) as pacs, storing(pacs.peer) as sender:
        assert not sender.read_back(reference(ds))
        assert not sender.read_back(reference(ds))


def test_a_query_without_an_end_is_left_after_its_time_limit():
    ds, stop = secondary_capture(), threading.Event()

    def for_ever(_):
        while not stop.wait(0.02):
            yield 0xFF00, found(ds)

    with CommittingPeer(find=for_ever) as pacs, storing(pacs.peer, QUICK_S) as sender:
        began = time.monotonic()
        with pytest.raises(DeliveryError, match="does not end C-FIND") as raised:
            sender.read_back(reference(ds))
        stop.set()
        with pytest.raises(DeliveryError, match="ended the association"):
            sender.read_back(reference(ds))
    assert not raised.value.permanent
    assert time.monotonic() - began < 5


def test_a_query_with_a_flood_of_answers_is_left(monkeypatch):
    monkeypatch.setattr("dicom_node.pacs._MOST_ANSWERS", 20)
    ds, stop = secondary_capture(), threading.Event()

    def flood(_):
        while not stop.is_set():
            yield 0xFF00, found(ds)
            stop.wait(0.005)

    with CommittingPeer(find=flood) as pacs, storing(pacs.peer, 30.0) as sender:
        with pytest.raises(DeliveryError, match="after 21 answers"):
            sender.read_back(reference(ds))
        stop.set()


def test_a_query_that_stalls_costs_its_time_limit():
    ds, released = secondary_capture(), threading.Event()

    def stall(_):
        released.wait(10)
        yield 0x0000, None

    with CommittingPeer(find=stall) as pacs, storing(pacs.peer, QUICK_S) as sender:
        with pytest.raises(DeliveryError, match="no answer to C-FIND"):
            sender.read_back(reference(ds))
        released.set()
