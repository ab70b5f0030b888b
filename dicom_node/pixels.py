"""An instance, or a picture file, -> float32 H x W in [0, 1] in the sense of MONOCHROME2: 0 is shown black, 1 white."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageOps
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from dicom_node import grayscale
from dicom_node.decoders import LOSSY, PIXEL_DATA, TRANSFER_SYNTAXES, Layout, decode
from dicom_node.domain import DeclinedByPixelsError, DeclineReason, NodeError, PixelError
from dicom_node.grayscale import element, integer

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from pydicom import Dataset

__all__ = ["TRANSFER_SYNTAXES", "read_instance", "read_picture", "render"]

# A picture is coloured where this share of its pixels has channels that differ by more than this part of full scale:
# a tinted film and coloured arrows stay below, a photograph does not.
COLOURED_SHARE = 0.2
COLOURED_DIFFERENCE = 51


def read_instance(content: bytes) -> Dataset:
    """The data set of a Part 10 file.

    Raises
    ------
    PixelError
        Where it is no such file, or ends too early.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = dcmread(BytesIO(content), stop_before_pixels=True)
            whole = dcmread(BytesIO(content))
    except InvalidDicomError as error:
        raise PixelError("unreadable", "neither DICOM (PS3.10), PNG nor JPEG") from error
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises many kinds on broken input
        raise PixelError("unreadable", f"the data set cannot be parsed ({type(error).__name__})") from error
    if "SOPClassUID" not in header:
        raise PixelError("unreadable", "(0008,0016) SOPClassUID is missing: no DICOM instance")
    if "SOPClassUID" not in whole:  # pydicom gives an empty data set where encapsulated pixels do not end
        raise PixelError("pixels_undecodable", f"{PIXEL_DATA} ends too early: the data set is truncated")
    return whole


def render(ds: Dataset, *, max_pixels: int) -> NDArray[np.float32]:
    """The image as a display shows it: stored values through modality LUT, VOI LUT and polarity; padding is black.

    Without any VOI transformation, unsigned values of 8 bits that are no other modality values are shown as they are
    (such objects hold pictures; the same picture through `read_picture` gives the same array), all others between
    `grayscale.PERCENTILES` of the image.

    Parameters
    ----------
    max_pixels
        Largest Rows x Columns that is decoded.

    Returns
    -------
    Shape (Rows, Columns), in [0, 1].

    Raises
    ------
    PixelError
        The pixels cannot be read; the message names the data element at fault.
    DeclinedByPixelsError
        A colour, multi-frame or constant image.
    """
    # pydicom warns of odd values with the values in the text; the checks below say what matters.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _render(ds, max_pixels)
        except NodeError:
            raise
        except MemoryError:
            raise
        except cv2.error as error:
            if error.code == cv2.Error.StsNoMem:
                raise MemoryError from error
            raise PixelError("pixels_undecodable", f"{PIXEL_DATA}: {error}"[:200]) from error
        except Exception as error:  # decoders raise many kinds
            raise PixelError("pixels_undecodable", f"{PIXEL_DATA}: {type(error).__name__}: {error}"[:200]) from error


def _render(ds: Dataset, max_pixels: int) -> NDArray[np.float32]:
    photometric = _monochrome(ds)
    layout = _layout(ds, max_pixels)
    data = ds.get("PixelData")
    if not isinstance(data, bytes) or not data:
        raise PixelError("pixels_missing", f"{PIXEL_DATA} is missing or empty")
    syntax = str(getattr(getattr(ds, "file_meta", None), "TransferSyntaxUID", ""))
    cells, precision = decode(syntax, data, layout)

    stored = grayscale.stored_values(layout, precision, lossy=syntax in LOSSY)
    padding = grayscale.padding(ds, stored, layout)
    # OpenCV counts and looks up in a fraction of numpy's time: it needs no copies of another type.
    counts = cv2.calcHist([cells], [0], None, [len(stored)], [0, len(stored)]).ravel().astype(np.int64)
    counts[padding] = 0
    shown = stored[counts > 0]
    if shown.size == 0 or shown.min() == shown.max():
        raise DeclinedByPixelsError(DeclineReason.CONSTANT, f"{PIXEL_DATA}: all pixels have one value")

    values = grayscale.modality_values(ds, stored)
    table = next(
        # A window that lies beside the image's values shows nothing of it: not one grey level of a display.
        (voi for voi in grayscale.voi(ds, values) if np.ptp(voi[counts > 0]) >= 1 / 255),
        None,
    )
    if table is None:
        is_picture = layout.bits_stored == 8 and not layout.signed and np.array_equal(values, stored)
        table = values / 255 if is_picture else grayscale.full_range(values, counts)
    # Presentation LUT Shape INVERSE says the same as MONOCHROME1 (PS3.3 C.8.11.3.1.2 demands both): one inversion.
    if photometric == "MONOCHROME1" or _word(ds, "PresentationLUTShape") == "INVERSE":
        table = 1 - table
    table[padding] = 0
    return cv2.LUT(cells, table.astype(np.float32)).astype(np.float32, copy=False)


def _monochrome(ds: Dataset) -> str:
    """Photometric Interpretation of an image of one sample per pixel and one frame; anything else is declined."""
    photometric = _word(ds, "PhotometricInterpretation")
    if not photometric:
        raise PixelError("pixels_unsupported", f"{element('PhotometricInterpretation')} is missing")
    samples = integer(ds, "SamplesPerPixel", 1)
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or samples != 1:
        raise DeclinedByPixelsError(
            DeclineReason.COLOUR,
            f"{element('PhotometricInterpretation')} is {photometric[:16]}, {element('SamplesPerPixel')} is {samples}",
        )
    frames = integer(ds, "NumberOfFrames", 1)
    if frames > 1:
        raise DeclinedByPixelsError(DeclineReason.MULTI_FRAME, f"{element('NumberOfFrames')} is {frames}")
    return photometric


def _word(ds: Dataset, keyword: str) -> str:
    return str(ds.get(keyword) or "").strip().upper()


def _layout(ds: Dataset, max_pixels: int) -> Layout:
    rows, columns = integer(ds, "Rows"), integer(ds, "Columns")
    if rows < 1 or columns < 1:
        raise PixelError("pixels_unsupported", f"{element('Rows')} is {rows}, {element('Columns')} is {columns}")
    if rows * columns > max_pixels:
        raise PixelError(
            "pixels_too_large",
            f"{element('Rows')} {rows} x {element('Columns')} {columns} is more than max_pixels = {max_pixels}",
        )
    allocated = integer(ds, "BitsAllocated")
    if allocated not in (8, 16):
        raise PixelError("pixels_unsupported", f"{element('BitsAllocated')} is {allocated}; 8 and 16 are read")
    stored = integer(ds, "BitsStored")
    if not 1 <= stored <= allocated:
        raise PixelError("pixels_unsupported", f"{element('BitsStored')} is {stored} of {allocated} allocated")
    high = integer(ds, "HighBit", stored - 1)
    if not stored - 1 <= high < allocated:
        raise PixelError("pixels_unsupported", f"{element('HighBit')} is {high} with {stored} bits stored")
    representation = integer(ds, "PixelRepresentation", 0)
    if representation not in (0, 1):
        raise PixelError("pixels_unsupported", f"{element('PixelRepresentation')} is {representation}")
    return Layout(rows, columns, allocated, stored, high, signed=representation == 1)


def read_picture(path: Path, *, max_pixels: int) -> NDArray[np.float32]:
    """The luminance of a PNG or JPEG file, upright (EXIF orientation applied), transparent parts black.

    Data of 8 bits are divided by 255 exactly, data of 16 bits by 65535.

    Parameters
    ----------
    max_pixels
        Largest width x height that is decoded.

    Returns
    -------
    Shape (height, width), in [0, 1].

    Raises
    ------
    PixelError
        The file cannot be read, or is larger than `max_pixels`.
    DeclinedByPixelsError
        A coloured or constant picture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns where we raise
        try:
            grey = _luminance(path, max_pixels)
        except NodeError:
            raise
        except Image.DecompressionBombError as error:
            raise PixelError("pixels_too_large", f"{path.name}: {error}") from error
        except MemoryError:
            raise
        except Exception as error:
            raise PixelError("pixels_undecodable", f"{path.name}: {type(error).__name__}: {error}"[:200]) from error
    if grey.min() == grey.max():
        raise DeclinedByPixelsError(DeclineReason.CONSTANT, f"{path.name}: all pixels have one value")
    return grey.astype(np.float32) / np.float32(np.iinfo(grey.dtype).max)


def _luminance(path: Path, max_pixels: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    with Image.open(path, formats=("PNG", "JPEG")) as opened:
        if opened.width * opened.height > max_pixels:
            raise PixelError(
                "pixels_too_large",
                f"{path.name}: {opened.width} x {opened.height} pixels are more than max_pixels = {max_pixels}",
            )
        picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I"):  # 16-bit grey
        return np.asarray(picture).astype(np.uint16)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    if picture.mode not in ("L", "1"):
        picture = picture.convert("RGB")
        channels = np.asarray(picture)
        difference = channels.max(axis=2) - channels.min(axis=2)
        if np.mean(difference > COLOURED_DIFFERENCE) > COLOURED_SHARE:
            raise DeclinedByPixelsError(DeclineReason.COLOUR, f"{path.name}: a coloured picture")
    return np.asarray(picture.convert("L"))
