"""Pixels as service reads them, and all images of a collection decoded once to squares that training shares."""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import logging
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from rich.console import Console
from rich.progress import track

from dicom_node.domain import NodeError, PixelError
from dicom_node.pixels import read_instance, read_picture, render
from dicom_node.resize import square

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from training.data.manifest import Picture

log = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000
LARGEST_UNREADABLE = 0.01  # share of a collection that may be left out
_NAMED = 5  # unreadable images in a refusal


def pixels_of(picture: Picture) -> NDArray[np.float32]:
    """The picture as service would read it: float32, shape (H, W), in [0, 1], MONOCHROME2 sense.

    Raises
    ------
    PixelError
        The file, DICOM, PNG or JPEG, cannot be read, or has more than `MAX_PIXELS`.
    DeclinedByPixelsError
        A coloured, constant or multi-frame picture.
    """
    if _is_dicom(picture.path):
        return render(read_instance(picture.path.read_bytes()), max_pixels=MAX_PIXELS)
    return read_picture(picture.path, max_pixels=MAX_PIXELS)


def _is_dicom(path: Path) -> bool:
    """Whether the file has the prefix of PS3.10 7.1."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        raise PixelError("unreadable", f"{path.name}: {error.strerror}") from error


def load_squares(
    pictures: Sequence[Picture], side: int, cache: Path | None = None, resolution: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """All pictures as squares, and which of them could be read; those that could not are black, and named in the log.

    Parameters
    ----------
    side, resolution
        Of the squares, in pixels; `dicom_node.resize.square` draws them.
    cache
        Folder where they are kept and found again, memory-mapped, until an image or the transform changes.

    Returns
    -------
    uint8, shape (N, side, side), and bool, shape (N,).

    Raises
    ------
    ValueError
        More than `LARGEST_UNREADABLE` of the pictures cannot be read; the message names the first.
    """
    shape = (len(pictures), side, side)
    draw = partial(drawn_square, side=side, resolution=resolution)
    if cache is None or not pictures:
        squares = np.zeros(shape, dtype=np.uint8)
        return squares, decode(pictures, draw, squares)
    kept = cache / f"{_key(pictures, side, resolution)}.npy"
    mask = kept.with_suffix(".readable.npy")
    cache.mkdir(parents=True, exist_ok=True)
    with alone(kept.with_suffix(".lock")):
        if not kept.is_file():
            part = kept.with_suffix(".part")
            squares = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
            try:
                np.save(mask, decode(pictures, draw, squares))
            except ValueError:
                part.unlink()
                raise
            squares.flush()
            part.replace(kept)  # last: where it lies, all is whole
    return np.load(kept, mmap_mode="r"), np.load(mask)


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """One process at a time; a killed one lets the next in."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def decode(
    pictures: Sequence[Picture], draw: Callable[[NDArray[np.float32]], object], drawn: NDArray[Any]
) -> NDArray[np.bool_]:
    """Fill `drawn` with what `draw` makes of each picture's pixels; true for each picture that could be read.

    Raises
    ------
    ValueError
        More than `LARGEST_UNREADABLE` of the pictures cannot be read; the message names the first.
    """

    def one(index: int) -> str:
        try:
            drawn[index] = draw(pixels_of(pictures[index]))
        except NodeError as error:
            return str(error)
        return ""

    console = Console(stderr=True)
    # Readers silence warnings each for itself, and threads would restore each other's filters: silence them here.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")
        answers = pool.map(one, range(len(pictures)))
        reasons = list(
            track(answers, "Decoding images", len(pictures), console=console, disable=not console.is_terminal)
        )
    unreadable = [(picture, reason) for picture, reason in zip(pictures, reasons, strict=True) if reason]
    for picture, reason in unreadable:
        log.warning("image %s is left out: %s", picture.image_id, reason)
    if len(unreadable) > LARGEST_UNREADABLE * len(pictures):
        first = "; ".join(f"{picture.image_id} ({reason})" for picture, reason in unreadable[:_NAMED])
        raise ValueError(
            f"{len(unreadable)} of {len(pictures)} images cannot be read, "
            f"more than {LARGEST_UNREADABLE:.0%}; the first: {first}"
        )
    return np.array([not reason for reason in reasons], dtype=np.bool_)


def drawn_square(image: NDArray[np.float32], side: int, resolution: int = 0) -> NDArray[np.uint8]:
    """The image as a square of bytes, shape (side, side)."""
    return np.rint(square(image, side, resolution) * 255).clip(0, 255).astype(np.uint8)


def _key(pictures: Sequence[Picture], side: int, resolution: int) -> str:
    """A digest of everything that the squares depend on."""
    images = [
        [picture.image_id, picture.sha256 or str(picture.path.absolute()), _state(picture)] for picture in pictures
    ]
    return hashlib.sha256(json.dumps([_code(), side, resolution, images]).encode()).hexdigest()[:32]


def _state(picture: Picture) -> list[int]:
    try:
        found = picture.path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _code() -> list[str]:
    """What draws a square: the readers of pixels, the transform, and the libraries under them."""
    readers = [
        Path(inspect.getfile(render)).with_name(f"{name}.py").read_text()
        for name in ("pixels", "grayscale", "decoders")
    ]
    return [*readers, inspect.getsource(square), inspect.getsource(drawn_square), np.__version__, PIL.__version__]
