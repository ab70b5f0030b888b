"""The heatmap as a DICOM object: the picture as a Secondary Capture in a series of its own.

Nothing that identifies the patient is drawn: the archive shows that itself, and Burned In Annotation (0028,0301) stays
what the source says.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from copy import deepcopy
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.uid import UID

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
        answer=_digest(prediction),
        predicted_at=when,
    )
    picture = draw_heatmap(pixels, prediction, manifest, size=size)
    heatmap = deepcopy(blank())
    heatmap.SOPInstanceUID = heatmap.file_meta.MediaStorageSOPInstanceUID = instance_uid
    heatmap.SeriesInstanceUID = uids.series_uid(instance_uid)
    heatmap.Rows, heatmap.Columns = picture.shape[:2]
    heatmap.PixelData = picture.tobytes() + b"\0" * (picture.size % 2)  # PS3.5 8.1.1: of even length
    for happened in ("Series", "Content"):
        heatmap.add_new(f"{happened}Date", "DA", local.strftime("%Y%m%d"))
        heatmap.add_new(f"{happened}Time", "TM", local.strftime("%H%M%S"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom on what is legal (leap seconds) or the source's own
        seal(heatmap, source, when, equipment(prediction, manifest, when))
        _describe(heatmap, source, prediction)
    heatmap.add_new("DateOfSecondaryCapture", "DA", local.strftime("%Y%m%d"))
    heatmap.add_new("TimeOfSecondaryCapture", "TM", local.strftime("%H%M%S"))
    return heatmap


@lru_cache(maxsize=1)
def blank() -> SCImage:
    """A Secondary Capture of nobody by highdicom, whose look at its tables takes longer than a picture is drawn."""
    nobody = Dataset()
    nobody.StudyInstanceUID = "2.25.0"
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"):
        setattr(nobody, keyword, "")
    for keyword in ("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"):
        setattr(nobody, keyword, "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # highdicom on names without components
        made = SCImage.from_ref_dataset(
            nobody,
            pixel_array=np.zeros((1, 1, 3), np.uint8),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),  # highdicom wants one; ours follows
            series_number=SERIES_NUMBER,
            series_description=SERIES_DESCRIPTION,
            **series_and_maker(UID("2.25.0"), datetime(2000, 1, 1, tzinfo=UTC)),
        )
    del made.ContributingEquipmentSequence
    return made


def _digest(prediction: Prediction) -> str:
    """One digest over whatever of the prediction is told or drawn; a prediction made again may differ in a digit."""
    said = (
        [
            (result.target, float(result.probability), result.decision, result.operating_point)
            for result in prediction.targets
        ],
        prediction.remarks,
        sorted(prediction.members),
        [
            (
                one.member,
                one.name,
                [float(side) for side in one.box],
                one.pixels.shape,
                hashlib.sha256(one.pixels.tobytes()).hexdigest(),
            )
            for one in prediction.maps
        ],
    )
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


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
    # Once lossy, lossy for ever (PS3.3 C.7.6.1.1.5); where the source does not say, 00 would be a guess.
    heatmap.pop("LossyImageCompression", None)
    lossy = source.get("LossyImageCompression")
    told = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
    for keyword in told if lossy == "01" else told[:1]:
        if keyword in source:
            setattr(heatmap, keyword, source[keyword].value)
    heatmap.DerivationDescription = "AI output over the X-ray. For research, not for diagnostic use"
    if prediction.maps:
        # Of whatever kind: members explain themselves by Grad-CAM, occlusion or reconstruction (CID 217 has the first).
        heatmap.DerivationCodeSequence = [CodedConcept("130401", "DCM", "Visual explanation")]
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
