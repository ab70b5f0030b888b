"""The SCU: what the node asks of its peers, and which of their failures may pass."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from dicom_node.config import Peer
from dicom_node.domain import DeliveryError
from dicom_node.transport import bounded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pydicom.dataset import Dataset
    from pynetdicom.association import Association
    from pynetdicom.events import Event
    from pynetdicom.pdu_primitives import A_ASSOCIATE

    from dicom_node.config import Settings

log = logging.getLogger(__name__)

# Files are sent from the disk as they are; pynetdicom would otherwise decode and encode them again.
_config.STORE_SEND_CHUNKED_DATASET = True

SUCCESS = 0x0000
PENDING = (0xFF00, 0xFF01)
# PS3.4 table B.2-1: 0xB000, 0xB006 and 0xB007 are warnings, the object was stored. PS3.7 annex C: of the failures only
# a lack of resources (0xA7xx) and a processing failure (0x0110) can pass.
_WARNINGS = range(0xB000, 0xC000)
_RETRYABLE = {*range(0xA700, 0xA800), 0x0110}
# PS3.7 annex C: the peer has this object; so answers a peer whose first answer was lost.
_DUPLICATE = 0x0111
_REJECTED_PERMANENT = 0x01  # PS3.8 9.3.4
_OWN_ANSWER_S = 5.0
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - asked, not listened on


class Fault(StrEnum):
    """How far an association came that could not be used."""

    UNRESOLVED = "unresolved"  # no address by that name
    UNREACHABLE = "unreachable"  # no TCP connection
    SILENT = "silent"  # a connection, but no DICOM answer, or an abort
    REJECTED = "rejected"
    NO_CONTEXT = "no_context"  # none of the SOP classes is accepted


class AssociationError(DeliveryError):
    """No association with a peer. `rejection` is the peer's source and reason (PS3.8 9.3.4)."""

    def __init__(
        self, message: str, *, fault: Fault, permanent: bool = False, rejection: tuple[int, int] | None = None
    ) -> None:
        super().__init__(message, permanent=permanent)
        self.fault = fault
        self.rejection = rejection


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer told of itself when it accepted an association."""

    accepted: frozenset[str]
    implementation_class_uid: str


class Pacs:
    """One peer as seen from this node."""

    def __init__(self, peer: Peer, *, ae_title: str, timeout_s: float) -> None:
        self._peer = peer
        self._ae_title = ae_title
        self._timeout_s = timeout_s

    @classmethod
    def of_this_node(cls, settings: Settings) -> Self:
        """The node's own listener, asked from this machine."""
        host = _EVERY_ADDRESS.get(settings.host, settings.host)
        itself = Peer(name="this node", ae_title=settings.ae_title, host=host, port=settings.port, destination=False)
        return cls(itself, ae_title=settings.ae_title, timeout_s=min(settings.network_timeout_s, _OWN_ANSWER_S))

    def echo(self, also: Sequence[str] = ()) -> Answer:
        """Which of Verification and the SOP classes `also` the peer accepts; with Verification, it answered C-ECHO.

        Raises
        ------
        AssociationError
            Where it accepts none of them, or does not answer C-ECHO with Success.
        """
        name = self._peer.name
        with self._association([str(Verification), *also]) as association:
            accepted = frozenset(str(context.abstract_syntax) for context in association.accepted_contexts)
            if Verification in accepted:
                try:
                    status = association.send_c_echo()
                except (RuntimeError, OSError, AttributeError) as error:  # the association ended meanwhile
                    raise AssociationError(f"{name} ended the association", fault=Fault.SILENT) from error
                if not status or "Status" not in status or status.Status != SUCCESS:
                    raise AssociationError(f"{name} does not answer C-ECHO with Success", fault=Fault.SILENT)
            return Answer(accepted, str(association.acceptor.implementation_class_uid))

    @contextlib.contextmanager
    def store(self, sop_classes: Sequence[str]) -> Iterator[Sender]:
        """One association for objects of these SOP classes.

        Raises
        ------
        DeliveryError
            Permanent where the peer rejects this node for good, else retryable.
        """
        with self._association(sorted(set(sop_classes))) as association:
            yield Sender(association, self._peer)

    def find(self, query: Dataset) -> list[Dataset]:
        """Answers of a Study Root C-FIND.

        Raises
        ------
        DeliveryError
            Where the query ended otherwise than by Success.
        """
        model = StudyRootQueryRetrieveInformationModelFind
        answers: list[Dataset] = []
        with self._association([model]) as association:
            for status, answer in association.send_c_find(query, model):
                if not status or status.Status not in (SUCCESS, *PENDING):
                    shown = f"0x{status.Status:04X}" if status else "an abort"
                    raise DeliveryError(f"{self._peer.name} answered C-FIND with {shown}", permanent=False)
                if answer is not None:
                    answers.append(answer)
        return answers

    @contextlib.contextmanager
    def _association(self, abstract_syntaxes: Sequence[str]) -> Iterator[Association]:
        entity = AE(ae_title=self._ae_title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self._timeout_s
        entity.connection_timeout = self._timeout_s
        for syntax in abstract_syntaxes:
            # PS3.5 10.1: Implicit VR must be offered. In a context of its own, so that both can be accepted.
            entity.add_requested_context(syntax, ExplicitVRLittleEndian)
            entity.add_requested_context(syntax, ImplicitVRLittleEndian)
        peer = self._peer
        connected: list[Event] = []
        rejections: list[A_ASSOCIATE] = []

        def note_rejection(event: Event) -> None:
            if isinstance(event.pdu, A_ASSOCIATE_RJ):
                rejections.append(event.pdu.to_primitive())

        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_CONN_OPEN, bounded(self._timeout_s)),
            (evt.EVT_CONN_OPEN, connected.append),
            # A rejection that comes at once ends the connection before pynetdicom looks, which then calls it none.
            (evt.EVT_PDU_RECV, note_rejection),
        ]
        try:
            association = entity.associate(peer.host, peer.port, ae_title=peer.ae_title, evt_handlers=handlers)
        except OSError as error:  # such as a host name that does not resolve
            raise AssociationError(
                f"{peer.name} ({peer.host}:{peer.port}) cannot be reached: {error.strerror}", fault=Fault.UNRESOLVED
            ) from error
        if not association.is_established:
            if association.dul.socket is not None:
                association.dul.socket.close()  # pynetdicom leaves it open when the peer vanishes meanwhile
            fault = Fault.SILENT if connected else Fault.UNREACHABLE
            raise _not_established(association, peer, fault, next(iter(rejections), None))
        try:
            yield association
        finally:
            if association.is_established:
                association.release()


class Sender:
    """C-STORE over one open association."""

    def __init__(self, association: Association, peer: Peer) -> None:
        self._association = association
        self._peer = peer

    def send(self, file: Path) -> int:
        """The peer has the object; its status is Success or a warning.

        Raises
        ------
        DeliveryError
            Where it has not.
        """
        name = self._peer.name
        try:
            content = self._as_accepted(file)
        except (FileNotFoundError, InvalidDicomError, AttributeError) as error:
            raise DeliveryError(f"{file.name} is not in the archive as it was stored", permanent=True) from error
        except OSError as error:
            raise DeliveryError(f"{file.name} cannot be read: {error.strerror}", permanent=False) from error
        try:
            answer = self._association.send_c_store(content)
        except ValueError as error:  # no accepted presentation context for the SOP class
            raise DeliveryError(f"{name} accepts no presentation context for the object", permanent=True) from error
        except (RuntimeError, OSError, AttributeError) as error:  # the association ended, before or in mid-request
            raise DeliveryError(f"{name} ended the association", permanent=False) from error
        if not answer or "Status" not in answer:
            ours = self._association.ae.ae_title
            raise DeliveryError(f"{name} gave no answer to C-STORE; does it know AE title {ours}?", permanent=False)
        status = int(answer.Status)
        if status in (SUCCESS, _DUPLICATE):
            return status
        if status in _WARNINGS:
            log.warning("%s stored an object with warning 0x%04X", name, status)
            return status
        raise DeliveryError(
            f"{name} answered C-STORE with 0x{status:04X}", permanent=status not in _RETRYABLE, status=status
        )

    def _as_accepted(self, file: Path) -> Path | Dataset:
        """The file, to be sent as it is; decoded where its SOP class was accepted in Implicit VR alone."""
        meta = read_file_meta_info(file)
        # All that pynetdicom will ask of it: an AttributeError here is the file's fault, later the association's.
        sop_class, _, _ = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID
        accepted = {
            str(context.transfer_syntax[0])
            for context in self._association.accepted_contexts
            if context.abstract_syntax == sop_class
        }
        return dcmread(file) if accepted == {ImplicitVRLittleEndian} else file


def _not_established(
    association: Association, peer: Peer, fault: Fault, rejection: A_ASSOCIATE | None
) -> AssociationError:
    where = f"{peer.name} ({peer.ae_title} at {peer.host}:{peer.port})"
    if rejection is not None:
        return AssociationError(
            f"{where} rejected the association: {rejection.reason_str}",
            fault=Fault.REJECTED,
            permanent=rejection.result == _REJECTED_PERMANENT,
            rejection=(rejection.result_source or 0, rejection.diagnostic or 0),
        )
    if association.acceptor.primitive is not None and not association.accepted_contexts:
        return AssociationError(
            f"{where} accepts none of the proposed SOP classes", fault=Fault.NO_CONTEXT, permanent=True
        )
    return AssociationError(f"{where} does not answer", fault=fault)
