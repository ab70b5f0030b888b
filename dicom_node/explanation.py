"""What stands behind a result, as plain data: `dicom_node.explain` reads it from the ledger.

The names of these fields are the keys of `dicom-node explain --json`. Nothing here tells who the patient is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from dicom_node.releases import SiteThreshold


class Kind(StrEnum):
    """What a UID names."""

    HEATMAP = "heatmap"
    REPORT = "report"
    NOTE = "note"
    IMAGE = "image"
    STUDY = "study"
    TRANSACTION = "transaction"


class Origin(StrEnum):
    """Who set a threshold: the bundle, at one of its operating points, or the site."""

    BUNDLE = "bundle"
    SITE = "site"


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt at a delivery or its proof.

    Attributes
    ----------
    status
        Of C-STORE; None where the peer was asked something else, or did not answer.
    meaning
        The status in words (PS3.4 B.2.3, PS3.7 annex C); None where the standard has none.
    """

    at: datetime
    status: int | None
    meaning: str | None
    detail: str | None


@dataclass(frozen=True, slots=True)
class Request:
    """One request for storage commitment; `answered_at` is None where no report has come."""

    transaction_uid: str
    destination: str
    requested_at: datetime
    answered_at: datetime | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far an object is on its way to one destination (`dicom_node.domain.DeliveryState`).

    Attributes
    ----------
    tries, proofs
        C-STOREs, and requests for a proof in vain, since it was last due anew; `log` holds those before that too.
    due_at
        When something is done about it next; None where it has ended.
    """

    destination: str
    state: str
    tries: int
    proofs: int
    due_at: datetime | None
    log: tuple[Try, ...]
    commitments: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """An object of the node's own.

    Attributes
    ----------
    retraction
        The `number` of the retraction that took it back, or, of a rejection note, that it tells of.
    """

    kind: str
    study_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    path: str
    sha256: str
    made_at: datetime
    retraction: int | None
    deliveries: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True)
class MapFile:
    """A member's map in the archive; several share a file. `box` is (top, left, height, width) of the source."""

    member: str
    name: str
    path: str
    sha256: str
    box: tuple[float, ...] | None
    made_at: datetime


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of a screening's state; `attempt` counts the claims."""

    from_state: str | None
    to_state: str
    attempt: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question.

    Attributes
    ----------
    operating_point
        A name of the bundle's; ``site`` where the site set the threshold.
    site
        The site's threshold that counted then; None where it was the bundle's.
    """

    target: str
    probability: float
    threshold: float
    decision: str
    operating_point: str
    origin: Origin
    site: SiteThreshold | None


@dataclass(frozen=True, slots=True)
class MemberOutput:
    """One raw output of one member."""

    member: str
    output: str
    value: float


@dataclass(frozen=True, slots=True)
class ScreeningName:
    """Which screening of an image it is."""

    purpose: str
    round: int
    bundle: str
    release: str


@dataclass(frozen=True, slots=True)
class Screening:
    """An image screened by a release.

    Attributes
    ----------
    reason, detail
        Why it was declined, withheld or failed, or why it had to wait.
    attempt, failures
        How often it was claimed, and how often that failed.
    """

    purpose: str
    round: int
    bundle: str
    release: str
    state: str
    reason: str | None
    detail: str | None
    attempt: int
    failures: int
    due_at: datetime | None
    replaced_by: ScreeningName | None
    transitions: tuple[Transition, ...]
    answers: tuple[Answer, ...]
    outputs: tuple[MemberOutput, ...]
    remarks: tuple[str, ...]
    maps: tuple[MapFile, ...]
    objects: tuple[Made, ...]


@dataclass(frozen=True, slots=True)
class Resend:
    """A further C-STORE of an image: the same bytes (duplicate) or others (conflict)."""

    kind: str
    sha256: str
    path: str | None
    calling_ae_title: str
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Image:
    """A received image, and what admission read in its header.

    Attributes
    ----------
    path
        In the archive; None where its bytes were not kept.
    evidence
        Keywords of the data elements that decided.
    notes
        What was put right in the header for the results.
    """

    sop_instance_uid: str
    sop_class_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    modality: str
    sha256: str
    size_bytes: int
    path: str | None
    calling_ae_title: str
    received_at: datetime
    view: str
    body_part: str
    evidence: tuple[str, ...]
    notes: tuple[str, ...]
    resends: tuple[Resend, ...]
    screenings: tuple[Screening, ...]


@dataclass(frozen=True, slots=True)
class ReportName:
    """Which report of a study it is; `sop_instance_uids` are those of its objects, one for each SOP Class."""

    bundle: str
    release: str
    purpose: str
    version: int
    issued_at: datetime
    sop_instance_uids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReportSource:
    """An image that a report tells of, and in which round it had been screened."""

    sop_instance_uid: str
    round: int


@dataclass(frozen=True, slots=True)
class StudyReport:
    """A report of a study: `version` counts within study, release and purpose."""

    study_instance_uid: str
    bundle: str
    release: str
    purpose: str
    version: int
    issued_at: datetime
    sources: tuple[ReportSource, ...]
    replaces: tuple[ReportName, ...]
    replaced_by: ReportName | None
    objects: tuple[Made, ...]


@dataclass(frozen=True, slots=True)
class Retraction:
    """A person took results back; no `notes` where none of them had been sent."""

    number: int
    study_instance_uid: str
    reason: str
    comment: str
    asked_by: str
    at: datetime
    notes: tuple[Made, ...]


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file of weights of a member."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ReleaseMember:
    """A network of a release. `device_uid` and `weights_sha256` (over all of its files) stand in the results."""

    name: str
    title: str
    version: str
    architecture: str
    citation: str
    device_uid: str
    weights_sha256: str
    weights: tuple[WeightsFile, ...]


@dataclass(frozen=True, slots=True)
class ReleaseTarget:
    """A question of a release: `thresholds` by operating point, and the one in force where the site set none."""

    name: str
    title: str
    operating_point: str
    thresholds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Release:
    """A release of a bundle, by which something was screened."""

    bundle: str
    release: str
    title: str
    device_uid: str
    weights_sha256: str
    registered_at: datetime
    active: bool
    members: tuple[ReleaseMember, ...]
    targets: tuple[ReleaseTarget, ...]


@dataclass(frozen=True, slots=True)
class Transaction:
    """A request for storage commitment, with the objects that it was for and their deliveries there."""

    request: Request
    objects: tuple[Made, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that the ledger holds behind a UID."""

    uid: str
    kind: Kind
    images: tuple[Image, ...] = ()
    reports: tuple[StudyReport, ...] = ()
    retractions: tuple[Retraction, ...] = ()
    releases: tuple[Release, ...] = ()
    transaction: Transaction | None = None
