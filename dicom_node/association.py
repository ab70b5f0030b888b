"""One association that this node opens with a peer, or the reason why there is none."""

from __future__ import annotations

import contextlib
import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.pdu import A_ASSOCIATE_RJ

from dicom_node.domain import DeliveryError
from dicom_node.pixels import TRANSFER_SYNTAXES
from dicom_node.transport import bounded
from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pynetdicom.association import Association
    from pynetdicom.events import Event
    from pynetdicom.pdu_primitives import A_ASSOCIATE

    from dicom_node.config import Peer

_REJECTED_PERMANENT = 0x01  # PS3.8 9.3.4


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


def application_entity(abstract_syntaxes: Sequence[str], *, ae_title: str, timeout_s: float) -> AE:
    """What the node proposes as SCU for these SOP classes, with its time limits in seconds."""
    entity = AE(ae_title=ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout_s
    entity.connection_timeout = timeout_s
    for syntax in abstract_syntaxes:
        # PS3.5 10.1: Implicit VR must be offered. In a context of its own, so that both can be accepted.
        entity.add_requested_context(syntax, ExplicitVRLittleEndian)
        entity.add_requested_context(syntax, ImplicitVRLittleEndian)
    return entity


@contextlib.contextmanager
def associated(
    peer: Peer,
    abstract_syntaxes: Sequence[str],
    *,
    ae_title: str,
    timeout_s: float,
    handlers: Sequence[evt.EventHandlerType] = (),
    received: Sequence[str] = (),
) -> Iterator[Association]:
    """An association on which the peer accepts at least one of the SOP classes, released at the end.

    For C-GET, `received` are the storage SOP classes of which this node is the SCP on it: each in every transfer syntax
    that it reads, a context for each, so that an object comes as it is stored.

    Raises
    ------
    AssociationError
        Permanent where the peer rejects this node for good, or accepts nothing.
    """
    entity = application_entity(abstract_syntaxes, ae_title=ae_title, timeout_s=timeout_s)
    for sop_class in received:
        for transfer_syntax in TRANSFER_SYNTAXES:
            entity.add_requested_context(sop_class, transfer_syntax)
    roles: list[Any] = [build_role(sop_class, scp_role=True) for sop_class in received]
    connected: list[Event] = []
    rejections: list[A_ASSOCIATE] = []

    def note_rejection(event: Event) -> None:
        if isinstance(event.pdu, A_ASSOCIATE_RJ):
            rejections.append(event.pdu.to_primitive())

    bound: list[evt.EventHandlerType] = [
        (evt.EVT_CONN_OPEN, bounded(timeout_s)),
        (evt.EVT_CONN_OPEN, connected.append),
        # A rejection that comes at once ends the connection before pynetdicom looks, which then calls it none.
        (evt.EVT_PDU_RECV, note_rejection),
        *handlers,
    ]
    try:
        association = entity.associate(peer.host, peer.port, ae_title=peer.ae_title, ext_neg=roles, evt_handlers=bound)
    except OSError as error:  # such as a host name that does not resolve
        raise AssociationError(
            f"{peer.name} ({peer.host}:{peer.port}) cannot be reached: {error.strerror}", fault=Fault.UNRESOLVED
        ) from error
    if not association.is_established:
        if association.dul.socket is not None:
            association.dul.socket.close()  # pynetdicom leaves it open when the peer vanishes meanwhile
        fault = Fault.SILENT if connected else Fault.UNREACHABLE
        raise _not_established(association, peer, fault, next(iter(rejections), None))
    _one_message_at_a_time(association)
    _leave_responses(association)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _one_message_at_a_time(association: Association) -> None:
    """No answer to the peer gets between the fragments of a request of ours (PS3.8 annex E.1).

    pynetdicom answers an N-EVENT-REPORT in a thread of its own, at any time.
    """
    lock, send = threading.Lock(), association.dimse.send_msg

    def locked(primitive: Any, context_id: int) -> None:
        with lock:
            send(primitive, context_id)

    association.dimse.send_msg = locked  # type: ignore[method-assign]


def _leave_responses(association: Association) -> None:
    """The association's own thread takes requests alone: a response is for the call that waits for it.

    pynetdicom 3.0.4 pauses that thread before it sends a request, but believes it to be paused when it has just gone
    on: then it may take the first response, such as a C-FIND's only answer, and throw it away.
    """
    messages, take = association.dimse.msg_queue, association.dimse.get_msg

    def requests_first(block: bool = False) -> Any:
        if block:
            return take(block=True)
        with messages.mutex:
            if messages.queue and getattr(messages.queue[0][1], "MessageIDBeingRespondedTo", None) is None:
                return messages.queue.popleft()
        return None, None

    association.dimse.get_msg = requests_first  # type: ignore[method-assign]


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
