"""Small valid datasets, made here: no patient, no file."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = "1.2.826.0.1.3680043.10.543"  # of test objects only


def chest_pixels(rows: int = 96, columns: int = 80, bits: int = 12) -> NDArray[np.uint16]:
    """A body, two dark lungs, a bright spine and heart, with noise: MONOCHROME2 values over most of `bits`."""
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    image = 0.15 + 0.55 * (x**2 / 0.9 + y**2 / 1.4 < 1)
    for side in (-0.45, 0.45):
        image -= 0.4 * ((x - side) ** 2 / 0.1 + (y + 0.1) ** 2 / 0.45 < 1)
    image += 0.25 * (np.abs(x) < 0.08) + 0.2 * ((x - 0.15) ** 2 + (y - 0.3) ** 2 < 0.06)
    image += np.random.default_rng(7).normal(0, 0.01, image.shape)
    return np.rint(np.clip(image, 0, 1) * ((1 << bits) - 1)).astype(np.uint16)


def chest_dataset(pixels: NDArray[Any] | None = None, **overrides: Any) -> Dataset:
    """A CR chest PA of 12 bits, native, with its file meta information.

    `pixels` are the cells as they are encoded (uint8, uint16 or int16); Rows, Columns and the bit elements follow from
    them. `overrides` are data elements by keyword, last; None removes one. `TransferSyntaxUID` goes to the file meta.
    """
    cells = chest_pixels() if pixels is None else pixels
    ds = Dataset()
    ds.SOPClassUID = uid.ComputedRadiographyImageStorage
    ds.SOPInstanceUID = f"{ROOT}.1.1.1"
    ds.StudyInstanceUID = f"{ROOT}.1"
    ds.SeriesInstanceUID = f"{ROOT}.1.1"
    ds.StudyDate = ds.ContentDate = "20200102"
    ds.StudyTime = ds.ContentTime = "030405"
    ds.PatientName = "Test^Phantom"
    ds.PatientID = "PHANTOM"
    ds.PatientBirthDate = ds.PatientSex = ds.AccessionNumber = ds.ReferringPhysicianName = ds.StudyID = ""
    ds.Modality = "CR"
    ds.Manufacturer = "Test"
    ds.SeriesNumber = ds.InstanceNumber = 1
    ds.BodyPartExamined = "CHEST"
    ds.ViewPosition = "PA"
    ds.PatientOrientation = ["L", "F"]
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = cells.shape
    ds.BitsAllocated = cells.dtype.itemsize * 8
    ds.BitsStored = overrides.get("BitsStored") or min(12, ds.BitsAllocated)
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(cells.dtype.kind == "i")
    data = cells.astype(cells.dtype.newbyteorder("<")).tobytes()
    ds.add_new("PixelData", "OW", data + b"\0" * (len(data) % 2))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = overrides.pop("TransferSyntaxUID", uid.ExplicitVRLittleEndian)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an illegal value is meant
        for keyword, value in overrides.items():
            if value is None:
                ds.pop(keyword, None)
            else:
                setattr(ds, keyword, value)
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", uid.ComputedRadiographyImageStorage)
    return ds


def with_codestream(ds: Dataset, transfer_syntax: str, codestream: bytes) -> Dataset:
    """A copy of `ds` whose Pixel Data is this codestream in one fragment."""
    copy = deepcopy(ds)
    copy.file_meta.TransferSyntaxUID = uid.UID(transfer_syntax)
    copy.PixelData = encapsulate([codestream])
    copy["PixelData"].VR = "OB"
    copy["PixelData"].is_undefined_length = True
    return copy


def lut(entries: NDArray[Any], first: int, bits: int, **elements: Any) -> Dataset:
    """An item of Modality LUT Sequence or VOI LUT Sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) & 0xFFFF, first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u1" if bits == 8 else "<u2").tobytes())
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def code(value: str, scheme: str, meaning: str = "meaning") -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
