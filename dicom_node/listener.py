"""The SCP: C-ECHO and C-STORE, bytes in and status out; and what peers report of their storage commitment.

Success is answered when the object's file is synchronised to the disk and its row is committed, never before.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_partial
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.admission import COMPANION_SOP_CLASSES, SOP_CLASSES, admit
from dicom_node.commitment import answering
from dicom_node.domain import NodeError, place_of
from dicom_node.ledger import Received
from dicom_node.pixels import TRANSFER_SYNTAXES
from dicom_node.transport import no_delay
from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from pydicom.tag import BaseTag
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
DATASET_MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
PROCESSING_FAILURE = 0x0110  # PS3.7 annex C

_MAXIMUM_PDU_BYTES = 131_072  # what DCMTK sends at most; larger gains nothing
_MAXIMUM_ASSOCIATIONS = 32
_BIND_PATIENCE_S = 5.0
# Without a version: the same object sent again after an upgrade is still the same bytes.
_IMPLEMENTATION_VERSION_NAME = "CXR_DICOM_NODE"
_UID = re.compile(r"[0-9.]{1,64}")
_PIXELS = 0x7FE00008  # Float Pixel Data, the first of PS3.3 C.7.6.24's kinds of pixels
# Of an object that is declined by its class, what admission and the ledger ask for ends before group 0040, where the
# tree of a report stands.
_CONTENT = 0x00400000


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


class RefusedError(Exception):
    """A C-STORE request that is answered with `status`; the comment names the data element, never its value."""

    def __init__(self, status: int, comment: str) -> None:
        super().__init__(comment)
        self.status = status


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
        self._archive = archive
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
            received = self._receive(request, event)
            kind = self._ledger.record(received)
        except RefusedError as error:
            log.warning("refused %s with 0x%04X: %s", _shown(sop_instance_uid), error.status, error)
            return _status(error.status, str(error))
        except (OSError, SQLAlchemyError, NodeError) as error:
            told = str(self._ledger.explain(error) if isinstance(error, SQLAlchemyError) else error)
            log.error("cannot keep %s: %s", _shown(sop_instance_uid), told)  # noqa: TRY400
            return _status(OUT_OF_RESOURCES, "the node cannot keep the object now; send it again later")
        except Exception as error:
            log.error("fault in C-STORE of %s: %s", _shown(sop_instance_uid), place_of(error))  # noqa: TRY400
            return _status(PROCESSING_FAILURE, "internal error of the node")
        log.info("received %s: %s", sop_instance_uid, kind)
        if kind == "new" and received.admission.admitted:
            self._ring_once()
        return SUCCESS

    def _ring_once(self) -> None:
        if self._ring is None:
            return
        try:
            self._ring()
        except Exception as error:
            log.warning("nobody was told of the new instance: %s", place_of(error))

    def _receive(self, request: C_STORE, event: Event) -> Received:
        """What the ledger is to record; an instance that will be screened is in the archive.

        Raises
        ------
        RefusedError
            Where the request is not what it says.
        OSError
            Where the archive does not take it.
        """
        encoded = cast("BytesIO", request.DataSet).getvalue()
        sop_class_uid, sop_instance_uid = (
            str(request.AffectedSOPClassUID),
            str(request.AffectedSOPInstanceUID),
        )
        if not _UID.fullmatch(sop_instance_uid):
            raise RefusedError(DATASET_MISMATCH, "(0000,1000) AffectedSOPInstanceUID is no UID")
        transfer_syntax_uid = str(event.context.transfer_syntax)
        if encoded[1:2] == b"\x00" and encoded[:1] < b"\x08":
            # Group 0002 would be read as File Meta and could name another transfer syntax than was negotiated.
            raise RefusedError(CANNOT_UNDERSTAND, "the data set begins with a group below 0008")
        content = _part10(sop_class_uid, sop_instance_uid, transfer_syntax_uid) + encoded
        header = _read_header(content, _PIXELS if sop_class_uid in SOP_CLASSES else _CONTENT)
        for keyword, tag, expected in (
            ("SOPClassUID", "(0008,0016)", sop_class_uid),
            ("SOPInstanceUID", "(0008,0018)", sop_instance_uid),
        ):
            if _text(header, keyword) != expected:
                raise RefusedError(DATASET_MISMATCH, f"{tag} {keyword} is not that of the C-STORE request")
        for keyword, tag in (("StudyInstanceUID", "(0020,000D)"), ("SeriesInstanceUID", "(0020,000E)")):
            if not _UID.fullmatch(_text(header, keyword)):
                raise RefusedError(DATASET_MISMATCH, f"{tag} {keyword} is missing or no UID")

        admission = admit(header, self._settings)
        keep = admission.admitted or self._settings.keep_declined
        file = self._archive.store(content) if keep else None
        identity = self._settings.store_patient_identity
        return Received(
            sop_instance_uid=sop_instance_uid,
            sop_class_uid=sop_class_uid,
            study_instance_uid=_text(header, "StudyInstanceUID"),
            series_instance_uid=_text(header, "SeriesInstanceUID"),
            transfer_syntax_uid=transfer_syntax_uid,
            sha256=file.sha256 if file else hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            file=file,
            calling_ae_title=str(event.assoc.requestor.ae_title).strip()[:16],
            modality=_text(header, "Modality")[:16],
            admission=admission,
            patient_id=_text(header, "PatientID")[:64] if identity else None,
            patient_name=_text(header, "PatientName")[:324] if identity else None,
            accession_number=_text(header, "AccessionNumber")[:16] if identity else None,
            study_date=_text(header, "StudyDate")[:8] if identity else None,
        )


def _part10(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Preamble and File Meta Information (PS3.10 7.1): the same for the same object, whoever sends it."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = _IMPLEMENTATION_VERSION_NAME
    buffer = DicomBytesIO()
    buffer.write(b"\x00" * 128 + b"DICM")
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return buffer.getvalue()


def _read_header(content: bytes, end: int) -> Dataset:
    """The elements before the tag `end`; what cannot be parsed is met here and not later."""

    def at_end(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        return int(tag) >= end

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_partial(BytesIO(content), stop_when=at_end)
    except Exception as error:  # pydicom raises many kinds on broken input
        raise RefusedError(CANNOT_UNDERSTAND, f"the data set cannot be parsed ({type(error).__name__})") from error


def _text(header: Dataset, keyword: str) -> str:
    """A value as text; empty where it is absent or illegal: only the pixels decide whether an image is screened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = header.get(keyword)
            return "" if value is None else str(value).strip()
    except Exception:
        return ""


def _status(status: int, comment: str) -> Dataset:
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = comment[:64]  # PS3.7 C: LO
    return answer


def _shown(uid: str) -> str:
    return uid if _UID.fullmatch(uid) else "an object without a legal UID"
