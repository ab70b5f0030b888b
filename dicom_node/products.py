"""The DICOM objects of screenings and studies, built in child processes: a header may be hostile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import dcmread
from pydicom.uid import UID, Comprehensive3DSRStorage, SecondaryCaptureImageStorage

from dicom_node import attributes
from dicom_node.archive import Product
from dicom_node.bundle import parse_manifest
from dicom_node.domain import ObjectKind
from dicom_node.heatmap import blank, build_heatmap
from dicom_node.normalise import normalise
from dicom_node.report import SOP_CLASSES, build_report
from dicom_node.results import Reference, Screened, encode
from dicom_node.uids import series_uid
from dicom_node.validation import check_object

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from numpy.typing import NDArray
    from pydicom import Dataset

    from dicom_node.archive import Archive
    from dicom_node.bundle import Code
    from dicom_node.domain import Prediction


@dataclass(frozen=True, slots=True)
class Built:
    """One object as a Part 10 file."""

    kind: ObjectKind
    sop_class_uid: str
    sop_instance_uid: str
    content: bytes


@dataclass(frozen=True, slots=True)
class StudyImage:
    """One image of which a report tells: its file as it was received, and the UIDs of the heatmap that is cited."""

    file: Path
    prediction: Prediction
    predicted_at: datetime
    heatmap_sop_class_uid: str
    heatmap_sop_instance_uid: str


def prepare() -> None:
    """What every object needs is made: before children are forked, who share it then."""
    blank()
    attributes.prepare((SecondaryCaptureImageStorage, *SOP_CLASSES))  # last: highdicom's tables are let go


def build_picture(
    source: Dataset,
    picture: NDArray[np.uint8],
    prediction: Prediction,
    manifest_json: str,
    when: datetime,
    *,
    heatmap_size: int,
) -> tuple[Built, tuple[str, ...]]:
    """The heatmap, and what had to be put right in the source's header.

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
        Where it cannot be built, or is not what the standard wants.
    """
    header, notes = normalise(source)
    pixels = picture.astype(np.float32) / np.float32(255)
    heatmap = build_heatmap(header, pixels, prediction, parse_manifest(manifest_json), when=when, size=heatmap_size)
    check_object(heatmap, [header])
    return _built(ObjectKind.HEATMAP, heatmap), tuple(notes)


def store_picture(archive: Archive, *arguments: Any, heatmap_size: int) -> tuple[Product, tuple[str, ...]]:
    """`build_picture`'s heatmap is in the archive.

    Raises
    ------
    OSError
        Where the disk does not take it.
    """
    built, notes = build_picture(*arguments, heatmap_size=heatmap_size)
    return _archived(archive, built), notes


def store_study_report(archive: Archive, *arguments: Any, **options: Any) -> Product:
    """`build_study_report`'s report is in the archive.

    Raises
    ------
    OSError
        Where the disk does not take it.
    """
    return _archived(archive, build_study_report(*arguments, **options))


def build_study_report(
    images: Sequence[StudyImage],
    manifest_json: str,
    *,
    node_ae_title: str,
    sop_class: str = Comprehensive3DSRStorage,
    predecessors: Sequence[tuple[str, str]] = (),
    codes: Mapping[str, Code] | None = None,
) -> Built:
    """The report that tells of these images of one study.

    Parameters
    ----------
    predecessors
        SOP Class and Instance UIDs of the reports of the same study that it replaces.
    codes
        The site's own for targets, by target.

    Raises
    ------
    ResultError
        Where it cannot be built, or is not what the standard wants.
    OSError
        Where an image cannot be read.
    """
    screened = []
    for image in images:
        header, _ = normalise(dcmread(image.file, stop_before_pixels=True, force=True))
        study = str(header.StudyInstanceUID)
        cited = _reference(study, image.heatmap_sop_class_uid, image.heatmap_sop_instance_uid)
        screened.append(Screened(header, image.prediction, image.predicted_at, cited))
    report = build_report(
        screened,
        parse_manifest(manifest_json),
        node_ae_title=node_ae_title,
        sop_class=UID(sop_class),
        predecessors=[_reference(study, *predecessor) for predecessor in predecessors],
        codes=codes,
    )
    check_object(report, [one.source for one in screened])
    return _built(ObjectKind.REPORT, report)


def _reference(study_instance_uid: str, sop_class_uid: str, sop_instance_uid: str) -> Reference:
    return Reference(study_instance_uid, series_uid(sop_instance_uid), sop_class_uid, sop_instance_uid)


def _archived(archive: Archive, built: Built) -> Product:
    return Product(built.kind, built.sop_class_uid, built.sop_instance_uid, archive.store(built.content))


def _built(kind: ObjectKind, ds: Dataset) -> Built:
    return Built(kind, str(ds.SOPClassUID), str(ds.SOPInstanceUID), encode(ds))
