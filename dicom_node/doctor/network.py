"""Who answers: this node's own port, and each peer."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from pydicom.uid import UID, SecondaryCaptureImageStorage
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicom_node.association import AssociationError, Fault
from dicom_node.doctor.finding import failure, ok, warning
from dicom_node.domain import DeliveryError
from dicom_node.pacs import REPORT_CLASSES, Pacs
from dicom_node.uids import IMPLEMENTATION_CLASS_UID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dicom_node.config import Peer, Settings
    from dicom_node.doctor.finding import Finding

# By what a destination gets, the SOP classes of which it needs one.
RESULT_CLASSES = {"reports": REPORT_CLASSES, "heatmaps": (str(SecondaryCaptureImageStorage),)}
MOST_ANSWER_S = 5.0
_MOST_CONNECT_S = 2.0
# PS3.8 table 9-21: source 1 is the peer's application.
_CALLING_NOT_RECOGNISED, _CALLED_NOT_RECOGNISED = (1, 3), (1, 7)


def listener(settings: Settings) -> Iterator[Finding]:
    """Whether the node answers on its port, or could."""
    where = f"{settings.host}:{settings.port}"
    remedy = f"stop it (ss -ltnp 'sport = :{settings.port}' names it), or set another port"
    try:
        answer = Pacs.of_this_node(settings).echo()
    except AssociationError as error:
        if error.fault is Fault.UNRESOLVED:
            yield failure("listener", f"host {settings.host} has no address", "set host to an address of this machine")
        elif error.fault is Fault.UNREACHABLE:
            yield _free(settings, where, remedy)
        else:
            yield failure("listener", f"what holds {where} does not answer C-ECHO as this node does", remedy)
        return
    if answer.implementation_class_uid != IMPLEMENTATION_CLASS_UID:
        yield failure("listener", f"another DICOM program holds {where}", remedy)
        return
    yield ok("listener", f"{settings.ae_title} answers on {where}")


def _free(settings: Settings, where: str, remedy: str) -> Finding:
    """Nobody answers on the port: whether this user may take it. It is not listened on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return failure("listener", f"another program holds {where}", remedy)
        if error.errno == errno.EACCES:
            return failure("listener", f"{where} is not for this user", "set a port above 1023")
        return failure("listener", f"{where} cannot be listened on ({error.strerror})", "set host to one of its own")
    return warning("listener", f"nobody listens on {where}", "start it, if it is to run on this machine")


def peer(settings: Settings, which: Peer) -> Iterator[Finding]:
    """Whether a peer answers C-ECHO and, as a destination, accepts what the node makes."""
    check = f"peer {which.name}"
    where = f"{which.ae_title} at {which.host}:{which.port}"
    pacs = Pacs(which, ae_title=settings.ae_title, timeout_s=min(settings.network_timeout_s, MOST_ANSWER_S))
    wanted = RESULT_CLASSES if which.destination else {}
    try:
        answer = pacs.echo([sop_class for sop_classes in wanted.values() for sop_class in sop_classes])
    except AssociationError as error:
        yield not_answering(which, error, settings.ae_title)
        return
    except DeliveryError as error:
        yield failure(check, str(error), "see the peer's log")
        return
    if Verification not in answer.accepted:
        yield warning(check, f"{where} accepts no Verification (C-ECHO)", "allow C-ECHO there")
    refused = [what for what, sop_classes in wanted.items() if not answer.accepted.keys() & set(sop_classes)]
    for what in refused:
        yield warning(
            check,
            f"{where} does not accept {' or '.join(UID(uid).name for uid in wanted[what])}: it gets no {what}",
            f"let it accept SOP class {wanted[what][0]} from {settings.ae_title}",
        )
    if Verification in answer.accepted and not refused:
        accepts = " and accepts " + " and ".join(RESULT_CLASSES) if which.destination else ""
        yield ok(check, f"{where} answers C-ECHO{accepts}")


def not_answering(which: Peer, error: AssociationError, ae_title: str) -> Finding:
    """Why there is no association with the peer, and what to do about it."""
    check, where = f"peer {which.name}", f"{which.ae_title} at {which.host}:{which.port}"
    match error.fault:
        case Fault.UNRESOLVED:
            return failure(
                check,
                f"the host name {which.host} does not resolve",
                "correct its host, or the DNS of this machine or container",
            )
        case Fault.UNREACHABLE:
            return _unreachable(check, where, which)
        case Fault.SILENT:
            return failure(
                check, f"{where} takes the connection and gives no DICOM answer", "is that its DICOM port, without TLS?"
            )
        case Fault.NO_CONTEXT:
            return failure(
                check,
                f"{where} accepts neither C-ECHO nor what is sent to it",
                f"allow them for AE title {ae_title} there",
            )
        case Fault.REJECTED:
            remedy = {
                _CALLED_NOT_RECOGNISED: "set this peer's ae_title to the AE title that it has itself",
                _CALLING_NOT_RECOGNISED: f"make AE title {ae_title} known there",
            }.get(error.rejection or (0, 0), "see the peer's log")
            told = str(error).rpartition("association: ")[2]
            return failure(check, f"{where} rejects the association: {told}", remedy)


def _unreachable(check: str, where: str, which: Peer) -> Finding:
    """Why there was no connection, which pynetdicom does not tell: one more try does."""
    try:
        socket.create_connection((which.host, which.port), timeout=_MOST_CONNECT_S).close()
    except ConnectionRefusedError:
        return failure(
            check,
            f"{where} refuses the connection",
            "start the peer, or correct its host or port: it has to answer this machine or container",
        )
    except OSError as error:
        told = "no answer" if isinstance(error, TimeoutError) else error.strerror
        return failure(
            check,
            f"{where} cannot be reached ({told})",
            "is it on, is host right, does a firewall or network keep it from this machine or container?",
        )
    return failure(check, f"{where} took a connection only at the second try", "run this again")
