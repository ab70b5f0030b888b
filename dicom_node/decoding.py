"""A file -> everything that is wanted of its image, in one call that `dicom_node.children` can make in a child.

A hostile data set is parsed there and nowhere else; what comes back is small.
"""

from __future__ import annotations

import copy
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydicom.dataset import Dataset

from dicom_node.admission import admit
from dicom_node.children import Children
from dicom_node.domain import PixelError
from dicom_node.pixels import read_instance, read_picture, render
from dicom_node.resize import LARGEST, picture, shrunk, square

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dicom_node.config import Settings
    from dicom_node.domain import Admission

PICTURE_MARKS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # of PNG and JPEG
MOST_PROCESSES = 16
_PIXEL_GROUP = 0x7FE0
_BULKY = 1 << 20  # bytes
_DEEPEST = 16  # a Structured Report nests so; an image's header needs 4


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of an image.

    Attributes
    ----------
    squares
        Pairs (side, resolution), as `dicom_node.resize.square` takes them.
    picture
        Longer side of the picture, in pixels; a smaller image stays as it is.
    max_pixels
        Largest Rows x Columns that is decoded.
    """

    squares: tuple[tuple[int, int], ...]
    picture: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """What was wanted of an image.

    Attributes
    ----------
    header
        The instance without its pixels, its elements as they were read; None of a PNG or JPEG file.
    rows, columns
        Of the image; 0 where it is not admitted.
    squares
        By (side, resolution): float32, shape (side, side), in [0, 1], MONOCHROME2.
    picture
        The image, uint8, MONOCHROME2.
    admission
        None where nobody asked.
    """

    header: Dataset | None
    rows: int
    columns: int
    squares: Mapping[tuple[int, int], NDArray[np.float32]]
    picture: NDArray[np.uint8]
    admission: Admission | None = None


def decoders(settings: Settings, processes: int = 0) -> Children:
    """Children for `decode` and what `dicom_node.products` builds, with the limits of the settings, or so many."""
    processes = processes or settings.decode_processes or min(len(os.sched_getaffinity(0)), MOST_PROCESSES)
    return Children(
        processes,
        timeout_s=settings.decode_timeout_s,
        memory_bytes=settings.decode_memory_mb << 20,
        preload=(__name__, "dicom_node.products:prepare"),
    )


def decode(path: Path, wanted: Wanted, settings: Settings | None = None) -> Decoded:
    """What is wanted of a DICOM (PS3.10), PNG or JPEG file.

    Parameters
    ----------
    settings
        Where they are given, an instance is rendered only if `dicom_node.admission` admits its header.

    Raises
    ------
    PixelError
        The file or its pixels cannot be read.
    DeclinedByPixelsError
        The pixels are none that are screened.
    OSError
        The file cannot be opened.
    """
    with path.open("rb") as file:
        start = file.read(len(PICTURE_MARKS[0]))
    if start.startswith(PICTURE_MARKS):
        return _drawn(read_picture(path, max_pixels=wanted.max_pixels), wanted, None, None)
    instance = read_instance(path.read_bytes())
    header = _header(instance)
    admission = None if settings is None else admit(instance, settings)
    if admission is not None and not admission.admitted:
        return Decoded(header, 0, 0, {}, np.empty((0, 0), np.uint8), admission)
    return _drawn(render(instance, max_pixels=wanted.max_pixels), wanted, header, admission)


def _drawn(image: NDArray[np.float32], wanted: Wanted, header: Dataset | None, admission: Admission | None) -> Decoded:
    rows, columns = image.shape
    small = shrunk(image, LARGEST)
    squares = {(side, resolution): square(small, side, resolution) for side, resolution in wanted.squares}
    shown = picture(small if wanted.picture == LARGEST else image, wanted.picture)
    return Decoded(header, rows, columns, squares, shown, admission)


def _header(instance: Dataset) -> Dataset:
    """The instance without its pixels; every element is as it was read, for `dicom_node.normalise` to decode.

    Raises
    ------
    PixelError
        Its sequences nest deeper than an image's do.
    """
    tags = [
        tag
        for tag in instance.keys()  # noqa: SIM118 - or each would be converted
        if tag.group != _PIXEL_GROUP and not _is_bulky(instance.get_item(tag))
    ]
    header = Dataset({tag: instance.get_item(tag) for tag in tags})
    is_implicit_vr, is_little_endian = instance.original_encoding
    header.set_original_encoding(is_implicit_vr, is_little_endian, instance.original_character_set)
    header.file_meta = instance.file_meta
    try:
        _look_through(copy.deepcopy(header))
    except RecursionError as error:
        raise _too_deep() from error
    return header


def _is_bulky(item: object) -> bool:
    """A private element, an overlay or an icon of a size that nothing that is built of the header needs."""
    value = getattr(item, "value", None)
    return isinstance(value, bytes) and len(value) > _BULKY


def _look_through(header: Dataset) -> None:
    """Every element is converted: what takes for ever, or too much memory, does so here and not later elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whoever uses an element says what is wrong with it
        left = [(header, 0)]
        while left:
            dataset, depth = left.pop()
            if depth > _DEEPEST:
                raise _too_deep()
            for tag in list(dataset.keys()):
                try:
                    element = dataset[tag]
                except (MemoryError, RecursionError):
                    raise
                except Exception:  # noqa: S112 - unreadable, and found so again by whoever needs it
                    continue
                if element.VR == "SQ":
                    left += [(item, depth + 1) for item in element.value or ()]


def _too_deep() -> PixelError:
    return PixelError("unreadable", f"its sequences nest more than {_DEEPEST} deep")
