"""The SCP: C-ECHO and C-STORE, bytes in and status out; and what peers report of their storage commitment.

Success is answered when the object's file is synchronised to the disk and its row is committed, never before.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, cast

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.admission import COMPANION_SOP_CLASSES, SOP_CLASSES
from dicom_node.commitment import answering
from dicom_node.domain import NodeError, Origin, place_of
from dicom_node.intake import Arrival, Intake, RefusedError, shown
from dicom_node.pixels import TRANSFER_SYNTAXES
from dicom_node.transport import no_delay
from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.events import Event
    from pynetdicom.transport import ThreadedAssociationServer

    from dicom_node.archive import Archive
    from dicom_node.commitment import CommitmentReport
    from dicom_node.config import Settings
    from dicom_node.ledger import Ledger

log = logging.getLogger(__name__)

SUCCESS = 0x0000
# PS3.4 B.2.3, table B.2-1
OUT_OF_RESOURCES = 0xA700
PROCESSING_FAILURE = 0x0110  # PS3.7 annex C

_MAXIMUM_PDU_BYTES = 131_072  # what DCMTK sends at most; larger gains nothing
_MAXIMUM_ASSOCIATIONS = 32
_BIND_PATIENCE_S = 5.0


def application_entity(ae_title: str, *, hears_commitment: bool) -> AE:
    """What the node accepts as SCP; with `hears_commitment`, what peers report of their storage commitment too."""
    entity = AE(ae_title=ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.maximum_pdu_size = _MAXIMUM_PDU_BYTES
    entity.maximum_associations = _MAXIMUM_ASSOCIATIONS
    entity.add_supported_context(Verification)
    for sop_class in sorted(SOP_CLASSES):
        entity.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
    for sop_class in sorted(COMPANION_SOP_CLASSES):
        entity.add_supported_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    if hears_commitment:
        # A peer that reports is the SCP on an association of its own making, and has to say so (PS3.4 J.3.3,
        # PS3.7 D.3.3.4). One that does not is heard too; one that wants to be the SCU is not accepted.
        entity.add_supported_context(
            StorageCommitmentPushModel,
            [ExplicitVRLittleEndian, ImplicitVRLittleEndian],
            scu_role=False,
            scp_role=True,
        )
    return entity


class Listener:
    """The node's application entity; `start` returns at once, `stop` waits for the associations at hand.

    Parameters
    ----------
    ring
        Called when a new instance that will be screened is committed, before Success is answered; it must return at
        once. Its failure is logged and changes no answer: the sweep finds what nobody was told of.
    accepting
        While it is not set, objects are answered "out of resources": the sender keeps them.
    on_commitment
        Called for each report on storage commitment, in the thread of its association; whether the transaction is
        one of ours, said when the report is in the ledger. Without it no such report is accepted.
    """

    def __init__(
        self,
        settings: Settings,
        archive: Archive,
        ledger: Ledger,
        ring: Callable[[], None] | None = None,
        accepting: threading.Event | None = None,
        on_commitment: Callable[[CommitmentReport], bool] | None = None,
    ) -> None:
        self._settings = settings
        self._intake = Intake(settings, archive, ledger)
        self._ledger = ledger
        self._ring = ring
        self._accepting = accepting
        self._on_commitment = on_commitment
        self._server: ThreadedAssociationServer | None = None
        self._entity = application_entity(settings.ae_title, hears_commitment=on_commitment is not None)

    def start(self) -> None:
        """The node answers on its port.

        Raises
        ------
        OSError
            Where the address cannot be listened on; a port still held by a dying process is waited for.
        """
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, no_delay),
            (evt.EVT_C_ECHO, lambda _: SUCCESS),
            (evt.EVT_C_STORE, self._store),
        ]
        if self._on_commitment is not None:
            handlers.append((evt.EVT_N_EVENT_REPORT, answering(self._on_commitment)))
        patience_ends = time.monotonic() + _BIND_PATIENCE_S
        while True:
            try:
                self._server = self._entity.start_server(
                    (self._settings.host, self._settings.port), block=False, evt_handlers=handlers
                )
            except OSError:
                if time.monotonic() > patience_ends:
                    raise
                time.sleep(0.1)
            else:
                return

    def stop(self) -> None:
        """No association is accepted any more, and those at hand have ended or were aborted."""
        if self._server is not None:
            self._server.shutdown()
            self._entity.shutdown()

    def _store(self, event: Event) -> int | Dataset:
        request = cast("C_STORE", event.request)
        sop_instance_uid = str(request.AffectedSOPInstanceUID)
        if self._accepting is not None and not self._accepting.is_set():
            return _status(OUT_OF_RESOURCES, "the node waits for its database; send it again later")
        try:
            taken = self._intake.take(_arrival(request, event, self._settings.ae_title))
        except RefusedError as error:
            log.warning("refused %s with 0x%04X: %s", shown(sop_instance_uid), error.status, error)
            return _status(error.status, str(error))
        except (OSError, SQLAlchemyError, NodeError) as error:
            told = str(self._ledger.explain(error) if isinstance(error, SQLAlchemyError) else error)
            log.error("cannot keep %s: %s", shown(sop_instance_uid), told)  # noqa: TRY400
            return _status(OUT_OF_RESOURCES, "the node cannot keep the object now; send it again later")
        except Exception as error:
            log.error("fault in C-STORE of %s: %s", shown(sop_instance_uid), place_of(error))  # noqa: TRY400
            return _status(PROCESSING_FAILURE, "internal error of the node")
        log.info("received %s: %s", sop_instance_uid, taken.kind)
        if taken.waits:
            self._ring_once()
        return SUCCESS

    def _ring_once(self) -> None:
        if self._ring is None:
            return
        try:
            self._ring()
        except Exception as error:
            log.warning("nobody was told of the new instance: %s", place_of(error))


def _arrival(request: C_STORE, event: Event, ours: str) -> Arrival:
    originator = str(request.MoveOriginatorApplicationEntityTitle or "").strip()
    return Arrival(
        sop_class_uid=str(request.AffectedSOPClassUID),
        sop_instance_uid=str(request.AffectedSOPInstanceUID),
        transfer_syntax_uid=str(event.context.transfer_syntax),
        encoded=cast("BytesIO", request.DataSet).getvalue(),
        calling_ae_title=str(event.assoc.requestor.ae_title).strip()[:16],
        origin=Origin.MOVED if originator == ours else Origin.SENT,
    )


def _status(status: int, comment: str) -> Dataset:
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = comment[:64]  # PS3.7 C: LO
    return answer
