"""The words of the node as plain data: no I/O, no DICOM library, no database.

Everything here is frozen and safe to pass between threads and processes.
"""

from __future__ import annotations

import copyreg
import traceback
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray


# How the node's own objects name their maker (PS3.3 C.7.5.1); admission knows them again by it.
MANUFACTURER = "cxr-dicom-node project"
MODEL_NAME = "cxr-dicom-node"


class State(StrEnum):
    """State of a screening; `dicom_node.ledger` draws the transitions."""

    WAITING = "waiting"
    CLAIMED = "claimed"
    PREDICTED = "predicted"
    REPORTED = "reported"
    DELIVERED = "delivered"
    WITHHELD = "withheld"
    DECLINED = "declined"
    FAILED = "failed"


class Purpose(StrEnum):
    """Why an instance is screened, the most urgent first.

    `retrospective` is for a run where it never came live; `shadow` stands beside the instance's own screening, and
    delivers nothing.
    """

    LIVE = "live"
    SHADOW = "shadow"
    RETROSPECTIVE = "retrospective"


class Origin(StrEnum):
    """How an object came: a peer sent it, moved it at this node's request (C-MOVE), or this node fetched it."""

    SENT = "sent"
    MOVED = "moved"
    FETCHED = "fetched"


class RunState(StrEnum):
    """State of a retrospective run: its cohort is being asked for, stands, is screened, held back, or done with."""

    PLANNING = "planning"
    PLANNED = "planned"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"


class StudyState(StrEnum):
    """State of one study of a run: ``found -> retrieving -> retrieved -> screened -> done``, or `failed` on the way.

    A study that needs no fetching goes from `retrieving` to `retrieved` at once. `screened` is when every image of it
    has its answer, `done` when that was delivered, where it is to be, and what was fetched was purged.
    """

    FOUND = "found"
    RETRIEVING = "retrieving"
    RETRIEVED = "retrieved"
    SCREENED = "screened"
    DONE = "done"
    FAILED = "failed"


class DeliveryState(StrEnum):
    """How far one object is on its way to one destination: ``pending -> sent -> committed | read_back | unproven``.

    The peer has answered C-STORE with Success where it is `sent`, has taken the object over (storage commitment) where
    it is `committed`, has found it (C-FIND) where it is `read_back`, and can be asked neither where it is `unproven`.
    `rejected` is what no other try can bring there, `withdrawn` what was retracted before it was sent.
    """

    PENDING = "pending"
    SENT = "sent"
    COMMITTED = "committed"
    READ_BACK = "read_back"
    UNPROVEN = "unproven"
    REJECTED = "rejected"
    WITHDRAWN = "withdrawn"


class ObjectKind(StrEnum):
    """What an archived product is."""

    MAP = "map"
    HEATMAP = "heatmap"
    REPORT = "report"
    NOTE = "note"


class RejectionReason(StrEnum):
    """Why results are taken back (PS3.16 CID 7010): for their quality, or for the patient's safety."""

    QUALITY = "quality"
    SAFETY = "safety"


class DeclineReason(StrEnum):
    """Why an instance is not screened, as recorded in the ledger and printed by `screen --json`."""

    OWN_RESULT = "own_result"
    FOR_PROCESSING = "for_processing"
    SOP_CLASS = "sop_class"
    MODALITY = "modality"
    COLOUR = "colour"
    MULTI_FRAME = "multi_frame"
    NOT_CHEST = "not_chest"
    LATERAL = "lateral"
    NOT_FRONTAL = "not_frontal"
    CONSTANT = "constant"
    NOT_CXR = "not_cxr"


class Remark(StrEnum):
    """What was done to an image before the networks saw it, or to their answer; with ``:`` and a name where one fits.

    The pixels of the instance itself are never changed.
    """

    POLARITY_MENDED = "polarity_mended"
    TURNED = "turned"  # by how many degrees, clockwise: "turned:90"
    POSITION_UNCERTAIN = "position_uncertain"  # it seems turned or inverted, and was taken as it is
    WITHOUT_MEMBER = "without_member"  # which one: "without_member:jahan"


@dataclass(frozen=True, slots=True)
class Admission:
    """What the header says about an instance.

    `view` is ``frontal``, ``PA``, ``AP`` or ``unknown`` for an admitted instance; `body_part` is ``chest`` or
    ``unknown``. `evidence` names the data elements (keywords) that decided, in the order in which they were read.
    """

    reason: DeclineReason | None
    view: str
    body_part: str
    evidence: tuple[str, ...]

    @property
    def admitted(self) -> bool:
        """Whether the instance is screened."""
        return self.reason is None


SITE = "site"  # the operating point of a threshold that the site has set


class Decision(StrEnum):
    """What the bundle decides on one question; *indeterminate* where its members disagree too far to decide."""

    FLAGGED = "flagged"
    NOT_FLAGGED = "not_flagged"
    INDETERMINATE = "indeterminate"


@dataclass(frozen=True, slots=True)
class TargetResult:
    """The bundle's answer to one question.

    Unless it is indeterminate, it is flagged where ``probability >= threshold`` and not flagged elsewhere.

    Attributes
    ----------
    members
        By member, the probability if that member were alone.
    operating_point
        What the threshold is: a name of the manifest's, or `SITE`.
    """

    target: str
    probability: float
    threshold: float
    decision: Decision
    members: Mapping[str, float] = field(default_factory=dict, compare=False)
    operating_point: str = ""

    @property
    def flagged(self) -> bool:
        """Whether the decision is that the image be looked at."""
        return self.decision is Decision.FLAGGED


def decided(probability: float, threshold: float) -> Decision:
    """The decision where nothing speaks against one."""
    return Decision.FLAGGED if probability >= threshold else Decision.NOT_FLAGGED


@dataclass(frozen=True, slots=True)
class MemberMap:
    """One heatmap of one member at the model's own resolution.

    Attributes
    ----------
    name
        What the map explains, such as the head it was made from.
    pixels
        uint8, shape (h, w); 255 is the strongest activation of this image.
    box
        (top, left, height, width): the part of the source image that the map covers, as fractions of the source's
        rows and columns.
    """

    member: str
    name: str
    pixels: NDArray[np.uint8]
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Everything that the networks said about one instance.

    Attributes
    ----------
    remarks
        What a reader of the answer must know of how it came about: see `Remark`.
    """

    bundle: str
    release: str
    operating_point: str
    targets: tuple[TargetResult, ...]
    members: Mapping[str, Mapping[str, float]]
    maps: tuple[MemberMap, ...] = ()
    remarks: tuple[str, ...] = ()


def invariant_holds(counts: dict[str, int]) -> bool:
    """Whether received = delivered + withheld + declined + failed + waiting; `reported` and before are waiting."""
    ended = sum(counts[state] for state in ("delivered", "withheld", "declined", "failed"))
    waiting = sum(counts[state] for state in ("waiting", "claimed", "predicted", "reported"))
    return counts["received"] == ended + waiting


def place_of(error: BaseException) -> str:
    """Type and place of an unforeseen error, to be told instead of its text, which may hold patient data."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


class NodeError(Exception):
    """Base of the node's errors.

    `permanent` tells whether trying again can help; `reason` is a short code for the ledger. The message says what
    was wrong, where, and what to do; it never holds patient data.
    """

    permanent = True
    reason = "error"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without a call of ``__init__``, whose arguments differ from class to class."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class PixelError(NodeError):
    """The pixels of an instance cannot be read; the message names the data element at fault."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DecoderError(PixelError):
    """The process that read an instance did not come to an end of its own; the message names the limit it met."""

    def __init__(self, reason: str, message: str, *, permanent: bool = True) -> None:
        super().__init__(reason, message)
        self.permanent = permanent


class DeclinedByPixelsError(NodeError):
    """The header was admitted, the pixels are not."""

    def __init__(self, reason: DeclineReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason.value
        self.decline_reason = reason


class BundleError(NodeError):
    """A bundle of weights is missing, incomplete or not what its manifest says."""

    reason = "bundle"


class LostLeaseError(NodeError):
    """Another worker owns the screening by now: nothing may be written."""

    permanent = False
    reason = "lost_lease"


class DeliveryError(NodeError):
    """A destination did not take an object.

    Parameters
    ----------
    status
        The DIMSE status (PS3.7 C), or None where none was received.
    permanent
        Whether sending the same object again cannot help.
    """

    reason = "delivery"

    def __init__(self, message: str, *, permanent: bool, status: int | None = None) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.status = status
