"""What the demo sends: phantoms as complete instances, and pictures wrapped as DICOM."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from dicom_node import __version__
from dicom_node.demo.phantom import WHITE, draw_phantom, pixels_per_cm
from dicom_node.domain import PixelError
from dicom_node.uids import derive_uid

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MAKER = "CXR-DEMO"  # of the identities and of the images


class _Case(NamedTuple):
    """What varies between the phantoms of `phantom_dataset`."""

    rows: int
    columns: int
    opacities: int
    inverted: bool


CASES = (
    _Case(1024, 896, 0, inverted=False),
    _Case(1024, 1024, 3, inverted=False),
    _Case(1152, 960, 0, inverted=True),
    _Case(896, 1088, 2, inverted=False),
    _Case(1280, 1056, 5, inverted=True),
)


def phantom_dataset(index: int, *, fresh_uids: bool = False) -> Dataset:
    """A complete Computed Radiography instance of phantom `index`, explicit VR little endian.

    Parameters
    ----------
    fresh_uids
        Whether each call is a new study; otherwise the UIDs are derived from `index`.
    """
    case = CASES[index % len(CASES)]
    pixels = draw_phantom(index, rows=case.rows, columns=case.columns, opacities=case.opacities)
    rng = np.random.default_rng([index, 2])
    ds = _instance(ComputedRadiographyImageStorage, *(() if fresh_uids else ("phantom", str(index))))
    number = index + 1
    ds.PatientName = f"PHANTOM^{number}"
    ds.PatientID = f"PHANTOM-{number}"
    ds.PatientBirthDate = f"{rng.integers(1940, 2000)}0101"
    ds.PatientSex = "O"
    day = f"202401{1 + index % 28:02d}"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = day
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = f"{8 + index // 60 % 12:02d}{index % 60:02d}00"
    ds.StudyID = ds.AccessionNumber = f"PH{number}"
    ds.StudyDescription = "XR CHEST PA (PHANTOM)"
    ds.SeriesDescription = "PA"
    ds.ManufacturerModelName = "phantom"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.BodyPartExamined = "CHEST"
    ds.ViewPosition = "PA"
    ds.PatientOrientation = ["L", "F"]
    spacing_mm = round(10.0 / pixels_per_cm(case.rows, case.columns), 4)
    ds.ImagerPixelSpacing = [spacing_mm, spacing_mm]
    ds.LossyImageCompression = "00"
    if case.inverted:
        pixels = WHITE - pixels
    ds.PhotometricInterpretation = "MONOCHROME1" if case.inverted else "MONOCHROME2"
    ds.PresentationLUTShape = "INVERSE" if case.inverted else "IDENTITY"
    low, high = (int(value) for value in np.percentile(pixels, (1, 99)))
    ds.WindowCenter, ds.WindowWidth = (low + high) // 2, high - low
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    _set_pixels(ds, pixels.astype("<u2"))
    return ds


def picture_dataset(path: Path) -> Dataset:
    """The PNG or JPEG file as a Secondary Capture instance of modality CR.

    The identity comes from a digest of the file's bytes, so the same picture is always the same instance; the file's
    name does not enter it. Nothing is claimed about body part, view or date.

    Raises
    ------
    PixelError
        Where the file is not such a picture.
    """
    try:
        encoded = path.read_bytes()
        pixels, is_jpeg = _decode(encoded)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PixelError("picture", f"{path} cannot be read as a PNG or JPEG picture: {error}") from error
    digest = hashlib.sha256(encoded).hexdigest()
    ds = _instance(SecondaryCaptureImageStorage, "picture", digest)
    ds.PatientName = f"PICTURE^{digest[:12]}"
    ds.PatientID = f"PICTURE-{digest[:12]}"
    ds.PatientBirthDate = ds.PatientSex = ds.StudyDate = ds.StudyTime = ds.AccessionNumber = None
    ds.StudyID = None
    ds.PatientOrientation = ds.Laterality = None
    ds.ConversionType = "WSD"
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.LossyImageCompression = "01" if is_jpeg else "00"
    if is_jpeg:
        ds.LossyImageCompressionRatio = round(max(1.0, pixels.size / len(encoded)), 2)
        ds.LossyImageCompressionMethod = "ISO_10918_1"
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    _set_pixels(ds, pixels)
    return ds


def _instance(sop_class: str, *parts: str) -> Dataset:
    """What every instance of this module holds: classes, UIDs (derived from `parts` where given), charset."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = sop_class
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(ds, keyword, derive_uid(*parts, keyword, __version__) if parts else generate_uid(prefix=None))
    ds.Modality = "CR"
    ds.Manufacturer = ds.IssuerOfPatientID = MAKER
    ds.ReferringPhysicianName = None
    ds.SeriesNumber = ds.InstanceNumber = 1
    ds.BurnedInAnnotation = "NO"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def _set_pixels(ds: Dataset, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    ds.SamplesPerPixel = 1
    ds.PixelRepresentation = 0
    ds.Rows, ds.Columns = pixels.shape
    content = pixels.tobytes()
    ds.PixelData = content + b"\0" * (len(content) % 2)  # PS3.5 8.1.1: even length


def _decode(encoded: bytes) -> tuple[NDArray[np.uint8], bool]:
    """Grey levels of 8 bits as a viewer shows them upright, and whether the file is a JPEG."""
    with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as opened:
        is_jpeg = opened.format == "JPEG"
        upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith("I"):  # 16-bit PNG; 12 bits of it are often all that is used
            deep = np.asarray(upright, np.int64)
            return (deep >> (4 if deep.max() <= WHITE else 8)).astype(np.uint8), is_jpeg
        return np.asarray(upright.convert("L")), is_jpeg
