"""Peers that take what is sent and answer storage commitment and C-FIND in every way a PACS can."""

import contextlib
import threading

from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from dicom_node.config import Peer

RESULT_CLASSES = (Comprehensive3DSRStorage, SecondaryCaptureImageStorage)
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]


class CommittingPeer:
    """A PACS whose answers are given as values; it listens between `__enter__` and `__exit__`.

    Parameters
    ----------
    sop_classes, syntaxes
        What it stores.
    commits, queries
        Whether it accepts storage commitment and C-FIND.
    action_status
        Its answer to N-ACTION; a callable is called with the event and gives it.
    failures
        Failure Reason by SOP Instance UID, for its reports.
    find
        Its answers to C-FIND: called with the event, yields what a pynetdicom handler yields.
    """

    def __init__(
        self,
        *,
        sop_classes=RESULT_CLASSES,
        syntaxes=SYNTAXES,
        commits=True,
        queries=True,
        action_status=0x0000,
        failures=None,
        find=lambda _: [(0x0000, None)],
    ):
        self.failures = failures or {}
        self.requests = []
        self.answers = []
        self.stored = []
        self.answered = threading.Event()
        self._action_status = action_status
        self._entity = AE(ae_title="PACS")
        self._entity.add_supported_context(Verification)
        for sop_class in sop_classes:
            self._entity.add_supported_context(sop_class, syntaxes)
        if commits:
            self._entity.add_supported_context(StorageCommitmentPushModel, syntaxes)
        if queries:
            self._entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind, syntaxes)
        self._handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_ACTION, self._act),
            (evt.EVT_C_FIND, find),
        ]

    def __enter__(self):
        self._server = self._entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=self._handlers)
        self.peer = Peer(
            name="pacs", ae_title="PACS", host="127.0.0.1", port=self._server.server_address[1], destination=True
        )
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._entity.shutdown()

    def report_on(self, association, request):
        """The peer's report on a request, over that association; what the node answered is kept in `answers`."""
        status, _ = association.send_n_event_report(
            report(request, self.failures),
            2 if self.failures else 1,
            StorageCommitmentPushModel,
            StorageCommitmentPushModelInstance,
        )
        self.answers.append(status.Status if status else None)
        self.answered.set()

    def report_to(self, ae_title, port, request, *, role=True):
        """The peer's report on an association that it opens, with or without role selection."""
        with reporting(ae_title, port, role=role) as association:
            self.report_on(association, request)

    def _store(self, event):
        self.stored.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    def _act(self, event):
        request = event.action_information
        self.requests.append(request)
        status = self._action_status(event) if callable(self._action_status) else self._action_status
        return status, None


@contextlib.contextmanager
def reporting(ae_title, port, *, role=True):
    """An association of a PACS with the node, on which it is the SCP of storage commitment."""
    entity = AE(ae_title="PACS")
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 5
    entity.add_requested_context(StorageCommitmentPushModel, SYNTAXES)
    roles = [build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)] if role else []
    association = entity.associate("127.0.0.1", port, ae_title=ae_title, ext_neg=roles)
    assert association.is_established
    if not role:  # pynetdicom holds to the roles; the PACS that is meant here does not
        for context in association.accepted_contexts:
            context._as_scp = True
    try:
        yield association
    finally:
        association.release()


def report(request, failures=None):
    """The Event Information on a request: what is not in `failures` is committed."""
    failures = failures or {}
    ds = Dataset()
    ds.TransactionUID = request.TransactionUID
    committed, failed = [], []
    for asked in request.ReferencedSOPSequence:
        item = Dataset()
        item.ReferencedSOPClassUID = asked.ReferencedSOPClassUID
        item.ReferencedSOPInstanceUID = asked.ReferencedSOPInstanceUID
        if asked.ReferencedSOPInstanceUID in failures:
            item.FailureReason = failures[asked.ReferencedSOPInstanceUID]
            failed.append(item)
        else:
            committed.append(item)
    if committed:
        ds.ReferencedSOPSequence = committed
    if failed:
        ds.FailedSOPSequence = failed
    return ds
