"""Archived images for the study pages: grey values for the viewer, thumbnails, and heatmaps to lie over them.

Instances are read and decoded in the killable children of `dicom_node.children` and nowhere else; what was made is kept
for the next who asks, within a number of bytes.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from concurrent.futures import CancelledError
from functools import cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

from dicom_node.activation import mean_activation
from dicom_node.domain import DecoderError, MemberMap
from dicom_node.maps import MissingFileError, UnreadableFileError
from dicom_node.pixels import read_instance, render
from dicom_node.resize import picture, shrunk

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

    from dicom_node.archive import Archive
    from dicom_node.children import Children
    from dicom_node.config import Settings

MAGIC = b"CXRG"
VERSION = 1
HEADER = struct.Struct("<4sHHH6x")  # magic, version, rows, columns
GREY_LONGEST = 2048  # pixels of the longer side
THUMBNAIL_LONGEST = 256
OVERLAY_LONGEST = 768
GREY_BYTES = 64 << 20
THUMBNAIL_BYTES = 16 << 20
_WHOLE = (0.0, 0.0, 1.0, 1.0)


def render_for_screen(path: Path, longest: int, max_pixels: int) -> bytes:
    """The image's grey values, at most `longest` pixels on its longer side.

    Returns
    -------
    `HEADER`, then rows x columns little endian uint16, MONOCHROME2: 0 is shown black, 65535 white.

    Raises
    ------
    PixelError
        The file or its pixels cannot be read.
    DeclinedByPixelsError
        A colour, multi-frame or constant image.
    OSError
        The file cannot be opened.
    """
    image = shrunk(render(read_instance(path.read_bytes()), max_pixels=max_pixels), longest)
    grey = np.rint(np.clip(np.nan_to_num(image), 0, 1) * 65535).astype("<u2")
    return HEADER.pack(MAGIC, VERSION, *grey.shape) + grey.tobytes()


def thumbnail(path: Path, longest: int, max_pixels: int) -> bytes:
    """The image as PNG of 8 bits, at most `longest` pixels on its longer side; raises as `render_for_screen`."""
    image = render(read_instance(path.read_bytes()), max_pixels=max_pixels)
    return cv2.imencode(".png", picture(image, longest))[1].tobytes()


def overlay_png(
    pixels: NDArray[np.uint8], rows: int, columns: int, box: tuple[float, float, float, float] = _WHOLE
) -> bytes:
    """A map as RGBA PNG that covers its whole image, in the heatmap object's colours.

    As in that object's small pictures, it is relative to its own strongest point. The alpha is that activation: 0 where
    there is none and outside the box, 255 at the strongest point; whoever shows it chooses the opacity of the whole.

    Parameters
    ----------
    pixels
        uint8, shape (h, w).
    rows, columns
        Of the picture it lies over; drawn at most `OVERLAY_LONGEST` pixels on its longer side.
    box
        (top, left, height, width): the part that the map covers, as fractions of the rows and columns.
    """
    scale = min(1.0, OVERLAY_LONGEST / max(rows, columns))
    height, width = (max(1, round(side * scale)) for side in (rows, columns))
    heat = np.rint(mean_activation((MemberMap("", "", pixels, box),), height, width) * 255).astype(np.uint8)
    return cv2.imencode(".png", _colours()[heat])[1].tobytes()


@cache
def _colours() -> NDArray[np.uint8]:
    """BGR and alpha by activation, shape (256, 4): the colour map of `dicom_node.picture`."""
    steps = np.arange(256, dtype=np.uint8)
    colours = cv2.applyColorMap(steps.reshape(256, 1), cv2.COLORMAP_VIRIDIS)[:, 0]
    return np.column_stack((colours, steps))


class Pictures:
    """What the pages show of the archive's images; any number of threads may ask.

    Every method takes the path of an instance relative to the archive, and raises

    - `PixelError` where the file or its pixels cannot be read, or a limit of the children was met;
    - `DeclinedByPixelsError` of a colour, multi-frame or constant image;
    - `MissingFileError` where the archive does not hold the file;
    - `UnreadableFileError` where the disk keeps it.
    """

    def __init__(self, children: Children, archive: Archive, settings: Settings) -> None:
        def making(function: Callable[[Path, int, int], bytes], longest: int) -> Callable[[str], Future[bytes]]:
            return lambda path: children.submit(function, archive.locate(path), longest, settings.max_pixels)

        self._grey = _Kept(making(render_for_screen, GREY_LONGEST), GREY_BYTES)
        self._thumbnails = _Kept(making(thumbnail, THUMBNAIL_LONGEST), THUMBNAIL_BYTES)

    def grey(self, path: str) -> bytes:
        """The grey values, as `render_for_screen` packs them."""
        return self._grey.get(path)

    def shape(self, path: str) -> tuple[int, int]:
        """Rows and columns of `grey`."""
        _, _, rows, columns = HEADER.unpack_from(self.grey(path))
        return rows, columns

    def thumbnail(self, path: str) -> bytes:
        """A small picture, PNG."""
        return self._thumbnails.get(path)


class _Kept:
    """What was made last, at most `limit` bytes of it; whatever several ask for at once is made once."""

    def __init__(self, submit: Callable[[str], Future[bytes]], limit: int) -> None:
        self._submit = submit
        self._limit = limit
        self._lock = threading.Lock()
        self._made: OrderedDict[str, bytes] = OrderedDict()  # the least recently used first
        self._size = 0
        self._coming: dict[str, Future[bytes]] = {}

    def get(self, path: str) -> bytes:
        with self._lock:
            if (content := self._made.get(path)) is not None:
                self._made.move_to_end(path)
                return content
            if (future := self._coming.get(path)) is None:
                future = self._coming[path] = self._submit(path)
        content = None
        try:
            content = future.result()
        except FileNotFoundError as error:
            raise MissingFileError(f"{path} is not in the archive") from error
        except OSError as error:
            raise UnreadableFileError(f"{path} cannot be read from the archive: {error.strerror}") from error
        except CancelledError as error:
            raise DecoderError("decoder_start", "the node is about to end", permanent=False) from error
        finally:
            with self._lock:
                if self._coming.get(path) is future:  # the first who has the answer
                    del self._coming[path]
                    if content is not None:
                        self._keep(path, content)
        return content

    def _keep(self, path: str, content: bytes) -> None:
        self._made[path] = content
        self._size += len(content)
        while self._size > self._limit:
            self._size -= len(self._made.popitem(last=False)[1])
