"""The heatmap as a DICOM object: the picture as a Secondary Capture in a series of its own.

Nothing that identifies the patient is drawn: the archive shows that itself, and Burned In Annotation (0028,0301) stays
what the source says.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset

from dicom_node import uids
from dicom_node.picture import draw_heatmap
from dicom_node.results import (
    check,
    equipment,
    local_time,
    seal,
    series_and_maker,
    thresholds,
    weights_sha256,
)

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray

    from dicom_node.bundle import Manifest
    from dicom_node.domain import Prediction

SERIES_NUMBER = 9001
SERIES_DESCRIPTION = "AI heatmap - RESEARCH, NOT FOR DIAGNOSTIC USE"


def build_heatmap(
    source: Dataset,
    pixels: NDArray[np.float32],
    prediction: Prediction,
    manifest: Manifest,
    *,
    when: datetime,
    size: int,
) -> Dataset:
    """The picture as an RGB Secondary Capture in a series of its own; the same arguments give the same bytes.

    Parameters
    ----------
    source
        Header of the screened image from `dicom_node.normalise`.
    pixels
        Its pixels, as `draw_heatmap` takes them.
    when
        When the prediction was made; aware.

    Raises
    ------
    ResultError
        Where prediction and manifest do not fit together or a number is not finite.
    """
    check(prediction, manifest)
    local = local_time(source, when)
    instance_uid = uids.heatmap_uid(
        source.SOPInstanceUID,
        prediction.bundle,
        prediction.release,
        prediction.operating_point,
        thresholds=thresholds(prediction),
        weights_sha256=weights_sha256(manifest),
        size=size,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # highdicom on names of one component, pydicom on leap seconds: both legal
        heatmap = SCImage.from_ref_dataset(
            source,
            pixel_array=draw_heatmap(pixels, prediction, manifest, size=size),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),  # highdicom wants one; ours follows
            series_number=SERIES_NUMBER,
            series_description=SERIES_DESCRIPTION,
            **series_and_maker(instance_uid, local),
        )
        seal(heatmap, source, when, equipment(prediction, manifest, when))
        _describe(heatmap, source, prediction)
        heatmap.add_new("DateOfSecondaryCapture", "DA", local.strftime("%Y%m%d"))
        heatmap.add_new("TimeOfSecondaryCapture", "TM", local.strftime("%H%M%S"))
    return heatmap


def _describe(heatmap: Dataset, source: Dataset, prediction: Prediction) -> None:
    """Say what the picture is and what it was made from (PS3.3 C.7.6.1, C.8.6.1)."""
    heatmap.ImageType = ["DERIVED", "SECONDARY"]
    heatmap.ConversionType = "WSD"
    # Unpaired, or Laterality would be required (type 2C); admission lets nothing but chests through.
    heatmap.BodyPartExamined = "CHEST"
    heatmap.PatientOrientation = source.get("PatientOrientation") or ""
    heatmap.RecognizableVisualFeatures = "NO"
    # Of the patient's identity in the pixels: where the source does not say, neither can we.
    if source.get("BurnedInAnnotation"):
        heatmap.BurnedInAnnotation = source.BurnedInAnnotation
    # Once lossy, lossy for ever (PS3.3 C.7.6.1.1.5).
    heatmap.LossyImageCompression = source.get("LossyImageCompression") or "00"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in source and heatmap.LossyImageCompression == "01":
            setattr(heatmap, keyword, source[keyword].value)
    heatmap.DerivationDescription = "AI output over the X-ray. For research, not for diagnostic use"
    if prediction.maps:
        heatmap.DerivationCodeSequence = [CodedConcept("130403", "DCM", "Gradient-weighted class activation")]
    image = Dataset()
    image.ReferencedSOPClassUID = source.SOPClassUID
    image.ReferencedSOPInstanceUID = source.SOPInstanceUID
    image.PurposeOfReferenceCodeSequence = [
        CodedConcept("121322", "DCM", "Source image for image processing operation")
    ]
    heatmap.SourceImageSequence = [image]
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    series = Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ReferencedInstanceSequence = [reference]
    heatmap.ReferencedSeriesSequence = [series]
