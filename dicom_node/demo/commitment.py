"""Storage commitment (PS3.4 annex J) of the demo's small PACS: it says of each object whether it holds it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pynetdicom import AE, build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made at import from tables
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from dicom_node.commitment import ALL_COMMITTED, FAILURES_EXIST, FailureReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pynetdicom.association import Association

    from dicom_node.config import Peer

_TIMEOUT_S = 10.0


def report_on(request: Dataset, held: Mapping[str, str]) -> Dataset:
    """The Event Information on a request (PS3.4 table J.3-2); `held` is the SOP class of each instance."""
    report = Dataset()
    report.TransactionUID = request.TransactionUID
    report.ReferencedSOPSequence, report.FailedSOPSequence = [], []
    for asked in request.ReferencedSOPSequence:
        item = Dataset()
        item.ReferencedSOPClassUID = asked.ReferencedSOPClassUID
        item.ReferencedSOPInstanceUID = asked.ReferencedSOPInstanceUID
        sop_class = held.get(str(asked.ReferencedSOPInstanceUID))
        if sop_class == asked.ReferencedSOPClassUID:
            report.ReferencedSOPSequence.append(item)
            continue
        missing, other = FailureReason.NO_SUCH_OBJECT_INSTANCE, FailureReason.CLASS_INSTANCE_CONFLICT
        item.FailureReason = int(missing if sop_class is None else other)
        report.FailedSOPSequence.append(item)
    for keyword in ("ReferencedSOPSequence", "FailedSOPSequence"):
        if not report[keyword].value:
            del report[keyword]
    return report


def send_later(report: Dataset, ae_title: str, peer: Peer | None, association: Association) -> None:
    """The report goes, from a thread of its own, to the peer's address; without one, over the association at hand."""
    target, arguments = (_send, (report, association)) if peer is None else (_send_to, (report, ae_title, peer))
    threading.Thread(target=target, args=arguments, daemon=True).start()


def _send_to(report: Dataset, ae_title: str, peer: Peer) -> None:
    ae = AE(ae_title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = _TIMEOUT_S
    ae.add_requested_context(StorageCommitmentPushModel)
    role = build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    association = ae.associate(peer.host, peer.port, ae_title=peer.ae_title, ext_neg=[role])
    if association.is_established:
        _send(report, association)
        association.release()
    elif association.dul.socket is not None:
        association.dul.socket.close()  # pynetdicom leaves it open where the peer goes away meanwhile


def _send(report: Dataset, association: Association) -> None:
    event_type = FAILURES_EXIST if "FailedSOPSequence" in report else ALL_COMMITTED
    sop = StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    if association.is_established:
        association.send_n_event_report(report, event_type, *sop)
