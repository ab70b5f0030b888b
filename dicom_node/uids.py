"""Every UID that the node gives away, derived from what decides what is said: prediction, release, thresholds, program.

The same screening told twice has the same UIDs, so that a retry is a duplicate and not a second result; another
prediction, release, threshold or version of this program makes other objects, and so other UIDs: an archive that does
not overwrite would keep the first content under a reused UID, silently. An image that is screened again, over another
release and back, may be given the very same answer; the time of the prediction tells these results apart.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import UTC
from functools import lru_cache
from typing import TYPE_CHECKING

from pydicom.uid import UID

from dicom_node import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

# Of this project, for ever: changing it renames everything that was ever derived.
NAMESPACE = uuid.UUID("5c98d5d2-7b54-4a72-82d7-9d4c91250285")


def derive_uid(*parts: str) -> UID:
    """The UID of `parts`: ``2.25.`` and a name-based UUID as a decimal number (PS3.5 B.2), at most 44 characters."""
    name = json.dumps(parts, ensure_ascii=True)  # quoted: ("a", "bc") is not ("ab", "c")
    return UID(f"2.25.{uuid.uuid5(NAMESPACE, name).int}")


# What wrote our files (PS3.10 7.1): the class for ever, the name with the version, at most 16 characters.
IMPLEMENTATION_CLASS_UID = derive_uid("implementation class")
IMPLEMENTATION_VERSION_NAME = f"CXRNODE_{__version__}"[:16]


def heatmap_uid(
    source_sop_instance_uid: str,
    bundle: str,
    release: str,
    operating_point: str,
    *,
    thresholds: Mapping[str, float],
    weights_sha256: str,
    size: int,
    answer: str,
    predicted_at: datetime,
) -> UID:
    """SOP Instance UID of the heatmap of one source image.

    Parameters
    ----------
    thresholds
        By target; they stand in the picture.
    weights_sha256
        One digest over the weights of every member.
    size
        Longer side of the X-ray in the picture, in pixels.
    answer
        A digest of all else that the picture shows of the prediction, its maps among it: a live and a later screening
        of one image may differ in a digit.
    predicted_at
        When the prediction was made; aware.
    """
    return derive_uid(
        "heatmap",
        source_sop_instance_uid,
        bundle,
        release,
        operating_point,
        _of_thresholds(thresholds),
        weights_sha256,
        str(size),
        answer,
        _of_time(predicted_at),
        __version__,
    )


@dataclass(frozen=True, slots=True)
class ReportedImage:
    """What decides what a report says of one image.

    Attributes
    ----------
    heatmap
        SOP Instance UID of the heatmap that is cited; empty where none is.
    operating_points, thresholds
        By target.
    predicted_at
        Aware.
    """

    sop_instance_uid: str
    heatmap: str
    operating_points: Mapping[str, str]
    thresholds: Mapping[str, float]
    predicted_at: datetime


def report_uid(
    study_uid: str,
    images: Iterable[ReportedImage],
    bundle: str,
    release: str,
    sop_class: str,
    *,
    weights_sha256: str,
    node_ae_title: str,
    codes: Mapping[str, tuple[str, str, str]],
    predecessors: Iterable[str],
) -> UID:
    """SOP Instance UID of the report on images of a study, in whatever order; each SR SOP Class has its own.

    Parameters
    ----------
    codes
        Value, scheme and meaning of the questions that are answered, by target.
    predecessors
        SOP Instance UIDs of the reports that this one replaces.
    """
    return derive_uid(
        "report",
        study_uid,
        json.dumps(
            sorted(
                [
                    image.sop_instance_uid,
                    image.heatmap,
                    json.dumps(dict(image.operating_points), sort_keys=True),
                    _of_thresholds(image.thresholds),
                    _of_time(image.predicted_at),
                ]
                for image in images
            )
        ),
        bundle,
        release,
        sop_class,
        weights_sha256,
        node_ae_title,
        json.dumps({target: list(code) for target, code in codes.items()}, sort_keys=True),
        json.dumps(sorted(predecessors)),
        __version__,
    )


def note_uid(study_uid: str, sop_instance_uids: Sequence[str], reason: str, node_ae_title: str) -> UID:
    """SOP Instance UID of the rejection note that withdraws these objects, whatever their order."""
    return derive_uid("note", study_uid, *sorted(sop_instance_uids), reason, node_ae_title, __version__)


def series_uid(sop_instance_uid: str) -> UID:
    """Series Instance UID of a result: each stands alone in its series.

    A viewer opens one report per series, and nothing in a series of one can contradict itself.
    """
    return derive_uid("series", sop_instance_uid)


def tracking_uid(source_sop_instance_uid: str, bundle: str, release: str, subject: str) -> UID:
    """Tracking Unique Identifier (PS3.16 TID 1501 row 3) of what is said of one image about `subject`."""
    return derive_uid("tracking", source_sop_instance_uid, bundle, release, subject)


@lru_cache(maxsize=256)
def device_uid(name: str, version: str, weights_sha256: str) -> UID:
    """Device UID of an algorithm; trained anew, it is another device (IHE AIR)."""
    return derive_uid("device", name, version, weights_sha256)


def node_uid(ae_title: str) -> UID:
    """Device UID of the node that observes and reports."""
    return derive_uid("node", ae_title, __version__)


def _of_thresholds(thresholds: Mapping[str, float]) -> str:
    return json.dumps({target: float(value) for target, value in thresholds.items()}, sort_keys=True)


def _of_time(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="microseconds")
