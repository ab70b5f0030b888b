"""Storage commitment (PS3.4 annex J): what a peer reports of the objects that it was asked to commit to."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydicom.sequence import Sequence as DicomSequence

from dicom_node.domain import NodeError, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pydicom.dataset import Dataset
    from pynetdicom.events import Event

log = logging.getLogger(__name__)

REQUEST_COMMITMENT = 1  # PS3.4 J.3.2.1: Action Type ID
# PS3.4 J.3.3.1: Event Type ID
ALL_COMMITTED = 1
FAILURES_EXIST = 2

# PS3.7 10.1.1.1.8 and annex C; PS3.4 J.3.3.1.4 defines no status of its own for the report's answer.
SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
NO_SUCH_EVENT_TYPE = 0x0113
INVALID_ARGUMENT_VALUE = 0x0115

_UID = re.compile(r"[0-9.]{1,64}")


class FailureReason(IntEnum):
    """Why a peer does not commit to an object (PS3.3 C.14.1.1)."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    DUPLICATE_TRANSACTION_UID = 0x0131
    RESOURCE_LIMITATION = 0x0213


class Remedy(StrEnum):
    """What can help an object that a peer did not commit to."""

    ASK_AGAIN = "ask_again"  # under a new Transaction UID, later
    SEND_AGAIN = "send_again"  # the peer has not got it
    NONE = "none"  # a person has to look


_REMEDIES = {
    FailureReason.NO_SUCH_OBJECT_INSTANCE: Remedy.SEND_AGAIN,
    FailureReason.CLASS_INSTANCE_CONFLICT: Remedy.NONE,
    FailureReason.SOP_CLASS_NOT_SUPPORTED: Remedy.NONE,
}


def remedy_of(reason: int) -> Remedy:
    """What can help; of a reason that the standard does not know nothing is known, and asking again does no harm."""
    try:
        return _REMEDIES.get(FailureReason(reason), Remedy.ASK_AGAIN)
    except ValueError:
        return Remedy.ASK_AGAIN


@dataclass(frozen=True, slots=True)
class CommitmentReport:
    """What a peer reports of one transaction.

    Attributes
    ----------
    committed
        SOP Instance UIDs, each once, in the peer's order; none of them is in `failed`.
    failed
        Failure Reason by SOP Instance UID, a `FailureReason` or a number that the standard does not know.
    """

    transaction_uid: str
    committed: tuple[str, ...]
    failed: Mapping[str, int]


class ReportError(NodeError):
    """A report cannot be understood; `status` is the answer that says so. The message names the data element."""

    reason = "commitment_report"

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read_report(event_type: int | None, information: Dataset) -> CommitmentReport:
    """What the Event Information of an N-EVENT-REPORT says (PS3.4 table J.3-2).

    An object that is named both as committed and as failed has failed; one whose reason is missing has failed for
    the general one, a processing failure.

    Raises
    ------
    ReportError
        Where it is no such report.
    """
    if event_type not in (ALL_COMMITTED, FAILURES_EXIST):
        raise ReportError(NO_SUCH_EVENT_TYPE, f"(0000,1002) EventTypeID is {event_type}, not 1 or 2")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            transaction_uid = _uid(information, "TransactionUID", "(0008,1195)")
            referenced = [uid for uid, _ in _items(information, "ReferencedSOPSequence", "(0008,1199)")]
            failed = {uid: _reason(item) for uid, item in _items(information, "FailedSOPSequence", "(0008,1198)")}
    except ReportError:
        raise
    except Exception as error:  # pydicom decodes on access, and raises many kinds on broken input
        raise _unreadable(error) from error
    if not referenced and not failed:
        raise ReportError(INVALID_ARGUMENT_VALUE, "neither (0008,1199) nor (0008,1198) names an object")
    committed = tuple(uid for uid in dict.fromkeys(referenced) if uid not in failed)
    return CommitmentReport(transaction_uid, committed, MappingProxyType(failed))


def answering(on_commitment: Callable[[CommitmentReport], bool]) -> Callable[[Event], tuple[int, None]]:
    """A handler for `pynetdicom.evt.EVT_N_EVENT_REPORT` that never raises.

    Success is answered when `on_commitment` has returned True: the report is in the ledger. False means that the
    Transaction UID is none of ours, an argument with an inappropriate value (PS3.7 annex C, 0x0115).
    """

    def answer(event: Event) -> tuple[int, None]:
        peer = str(event.assoc.remote["ae_title"]).strip()
        try:
            report = read_report(event.event_type, _information(event))
            known = on_commitment(report)
        except ReportError as error:
            log.warning("storage commitment: refused a report of %s: %s", peer, error)
            return error.status, None
        except Exception as error:
            told = str(error) if isinstance(error, NodeError) else place_of(error)
            log.error("storage commitment: a report of %s is not kept: %s", peer, told)  # noqa: TRY400
            return PROCESSING_FAILURE, None
        uid = report.transaction_uid
        if not known:
            log.warning("storage commitment: %s reports on transaction %s, which is none of ours", peer, uid)
            return INVALID_ARGUMENT_VALUE, None
        counts = len(report.committed), len(report.failed)
        log.info("storage commitment: %s reports on transaction %s: %d committed, %d failed", peer, uid, *counts)
        return SUCCESS, None

    return answer


def _information(event: Event) -> Dataset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return event.event_information
    except Exception as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> ReportError:
    return ReportError(PROCESSING_FAILURE, f"the event information cannot be parsed ({type(error).__name__})")


def _items(information: Dataset, keyword: str, tag: str) -> Iterator[tuple[str, Dataset]]:
    """SOP Instance UID and item of each object that the sequence names; an absent sequence names none."""
    value: Any = information.get(keyword)
    if value is None:
        return
    if not isinstance(value, DicomSequence):
        raise ReportError(INVALID_ARGUMENT_VALUE, f"{tag} {keyword} is no sequence")
    for item in value:
        yield _uid(item, "ReferencedSOPInstanceUID", "(0008,1155)"), item


def _uid(ds: Dataset, keyword: str, tag: str) -> str:
    uid = str(ds.get(keyword) or "").strip(" \0")
    if not _UID.fullmatch(uid):
        raise ReportError(INVALID_ARGUMENT_VALUE, f"{tag} {keyword} is missing or no UID")
    return uid


def _reason(item: Dataset) -> int:
    reason: Any = item.get("FailureReason")
    if reason is None:
        return FailureReason.PROCESSING_FAILURE
    if not isinstance(reason, int):
        raise ReportError(INVALID_ARGUMENT_VALUE, "(0008,1197) FailureReason is no number")
    return reason
