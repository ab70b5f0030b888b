"""The DICOM objects of one screening, built in a child process beside the networks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from dicom_node.bundle import Manifest
from dicom_node.domain import ObjectKind
from dicom_node.heatmap import build_heatmap
from dicom_node.normalise import normalise
from dicom_node.report import build_report
from dicom_node.results import Screened, cite, encode

if TYPE_CHECKING:
    from datetime import datetime

    from numpy.typing import NDArray
    from pydicom import Dataset

    from dicom_node.domain import Prediction


@dataclass(frozen=True, slots=True)
class Built:
    """One object as a Part 10 file."""

    kind: ObjectKind
    sop_class_uid: str
    sop_instance_uid: str
    content: bytes


def build_products(
    source: Dataset,
    picture: NDArray[np.uint8],
    prediction: Prediction,
    manifest_json: str,
    when: datetime,
    *,
    heatmap_size: int,
    node_ae_title: str,
) -> tuple[tuple[Built, ...], tuple[str, ...]]:
    """The heatmap and the report, and what had to be put right in the source's header.

    Parameters
    ----------
    source
        Header of the screened image as it was received.
    picture
        Its pixels as shown, uint8, at most `heatmap_size` on the longer side.
    when
        When the prediction was made; aware.

    Raises
    ------
    ResultError
        Where they cannot be built.
    """
    manifest = _manifest(manifest_json)
    header, notes = normalise(source)
    pixels = picture.astype(np.float32) / np.float32(255)
    heatmap = build_heatmap(header, pixels, prediction, manifest, when=when, size=heatmap_size)
    screened = Screened(header, prediction, when, cite(heatmap))
    report = build_report([screened], manifest, node_ae_title=node_ae_title)
    built = tuple(
        Built(kind, str(ds.SOPClassUID), str(ds.SOPInstanceUID), encode(ds))
        for kind, ds in ((ObjectKind.HEATMAP, heatmap), (ObjectKind.REPORT, report))
    )
    return built, tuple(notes)


@lru_cache(maxsize=4)
def _manifest(text: str) -> Manifest:
    return Manifest.model_validate_json(text)
