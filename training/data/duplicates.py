"""Near duplicates: the same picture in another size, compression or brightness, turned or cropped a little.

Collections take images from each other, and cut them to a square on the way: each image is therefore compared whole
with the others whole and with their squares at either end and in the middle. Perceptual hashes name candidates; what
decides is the correlation of the fine structure (ribs, vessels, letters) after alignment, for all chest X-rays are
alike in the coarse.

`CORRELATION` was set on 6,676 images of five collections. Of the 36 pictures that two of them share by their file
names 35 are found (the other is cut on three sides); all of the 16 further pairs are one picture by eye. Images of
different patients reach 0.82, follow-up images of one patient too. Copies that are resized, compressed or brightened
keep 0.95, those with a gamma of 0.5 or 2 keep 0.88. Mirrored copies, turns by more than a few degrees and other crops
by more than a few percent are not found.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import cv2
import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from training.data.squares import decode, drawn_square

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from training.data.manifest import Picture

    Pairs = NDArray[np.int64]
    Window = tuple[float, float, float, float]

HASH_DISTANCE = 14  # of 128 bits, those of the DCT hash and of the difference hash together
COARSE_CORRELATION = 0.7  # of thumbnails moved by at most one pixel in `_COARSE`
CORRELATION = 0.86  # of aligned thumbnails
LARGEST_CHANGE = 0.15  # of scale, turn or shear, in the alignment of two copies

NEARLY_SQUARE = 0.97  # shortest side by longest, from which on an image is only looked at whole
_SIDE, _DETAIL = 128, 3.0  # pixels, and the deviation of the Gaussian that is taken away
_COARSE, _COARSE_DETAIL = 32, 2.0
_LOOK = np.dtype([("whole", np.uint8, (_SIDE, _SIDE)), ("views", np.uint8, (4, _COARSE, _COARSE)), ("shape", int, 2)])
_BLOCK = 2048
_UNTIL = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-3)


def clustered(pictures: Sequence[Picture]) -> tuple[Picture, ...]:
    """The pictures with `cluster` filled in where one has a near duplicate; clusters given before are joined to these.

    Raises
    ------
    ValueError
        More than 1 % of the pictures cannot be read.
    """
    pairs = np.concatenate(
        [
            duplicates(pictures),
            _alike([picture.cluster for picture in pictures]),
            _alike([picture.sha256 for picture in pictures]),
        ]
    )
    count = len(pictures)
    edges = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, label = connected_components(edges, directed=False)
    sizes = np.bincount(label, minlength=1)
    first: dict[int, str] = {}
    for picture, cluster in zip(pictures, label, strict=True):
        first[cluster] = min(first.get(cluster, picture.image_id), picture.image_id)
    return tuple(
        replace(picture, cluster=f"near {first[cluster]}" if sizes[cluster] > 1 else "")
        for picture, cluster in zip(pictures, label, strict=True)
    )


def _alike(names: Iterable[str]) -> Pairs:
    """Each index and the first one that has the same name; empty names are like no other."""
    first: dict[str, int] = {}
    found = [(first.setdefault(name, index), index) for index, name in enumerate(names) if name]
    return np.array([pair for pair in found if pair[0] != pair[1]], dtype=np.int64).reshape(-1, 2)


def duplicates(pictures: Sequence[Picture]) -> Pairs:
    """Indices of near duplicates, shape (K, 2); pictures that cannot be read are like no other.

    Raises
    ------
    ValueError
        More than 1 % of the pictures cannot be read.
    """
    looks = np.zeros(len(pictures), dtype=_LOOK)
    readable = decode(pictures, _look, looks)
    windows = [_windows(*look["shape"]) if seen else [] for look, seen in zip(looks, readable, strict=True)]
    view, owner = np.array([(k, i) for i, own in enumerate(windows) for k in range(len(own))], int).reshape(-1, 2).T
    order = np.argsort(view, kind="stable")  # whole images and their middles first
    view, owner = view[order], owner[order]
    hashes = np.array([_hashes(thumbnail) for thumbnail in looks["views"][owner, view]], np.uint64).reshape(-1, 2)
    pairs = _candidates(hashes, owner, firsts=int((view <= 1).sum()))
    pairs = pairs[_coarse_correlation(looks["views"][owner, view], pairs) >= COARSE_CORRELATION]

    def same(pair: NDArray[np.int64]) -> bool:
        one, other = (_cut(looks["whole"][owner[row]], windows[owner[row]][view[row]]) for row in pair)
        return aligned_correlation(one, other) >= CORRELATION

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        kept = np.fromiter(pool.map(same, pairs), dtype=np.bool_, count=len(pairs))
    return np.unique(np.sort(owner[pairs[kept]], axis=1), axis=0)


def _look(image: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[int, ...]]:
    """What is kept of an image: a `_LOOK`."""
    views = np.zeros((4, _COARSE, _COARSE), dtype=np.uint8)
    for index, window in enumerate(_windows(*image.shape)):
        views[index] = drawn_square(_cut(image, window), _COARSE)
    return drawn_square(image, _SIDE), views, image.shape


def _windows(rows: int, columns: int) -> list[Window]:
    """The whole image and its squares in the middle, at the start and at the end, as parts of its height and width."""
    height, width = min(1.0, columns / rows), min(1.0, rows / columns)
    squares = [((1 - height) * at, (1 - width) * at, height, width) for at in (0.5, 0, 1)]
    return [(0, 0, 1, 1), *(squares if height * width < NEARLY_SQUARE else [])]


def _cut(image: NDArray[Any], window: Window) -> NDArray[Any]:
    """The part of an image of any shape."""
    rows, columns = image.shape
    top, left, height, width = (round(part * side) for part, side in zip(window, (rows, columns) * 2, strict=True))
    return image[top : top + height, left : left + width]


def _hashes(thumbnail: NDArray[np.uint8]) -> tuple[int, int]:
    """64 bits of the DCT's low frequencies, and 64 bits that tell which of two neighbours is brighter."""
    picture = Image.fromarray(thumbnail)
    found = imagehash.phash(picture), imagehash.dhash(picture)
    one, other = (int.from_bytes(np.packbits(bits.hash).tobytes()) for bits in found)
    return one, other


def _candidates(hashes: NDArray[np.uint64], owner: NDArray[np.int64], firsts: int) -> Pairs:
    """Pairs of one of the first `firsts` rows and a later one of another owner, whose hashes are near, shape (K, 2)."""
    found = [np.zeros((0, 2), dtype=np.int64)]
    for i in range(0, firsts, _BLOCK):
        for j in range(i, len(hashes), _BLOCK):
            one, other = hashes[i : min(i + _BLOCK, firsts), None], hashes[None, j : j + _BLOCK]
            distance = np.bitwise_count(one[..., 0] ^ other[..., 0]) + np.bitwise_count(one[..., 1] ^ other[..., 1])
            pairs = np.argwhere(distance <= HASH_DISTANCE) + np.array([i, j])
            found.append(pairs[(pairs[:, 0] < pairs[:, 1]) & (owner[pairs[:, 0]] != owner[pairs[:, 1]])])
    return np.concatenate(found)


def _fine_structure(thumbnail: NDArray[np.uint8], side: int, detail: float) -> NDArray[np.float32]:
    """The thumbnail at `side` pixels without what is coarser than `detail` pixels."""
    small = cv2.resize(thumbnail, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    fine: NDArray[np.float32] = small - cv2.GaussianBlur(small, (0, 0), detail)
    return fine


def _coarse_correlation(thumbnails: NDArray[np.uint8], pairs: Pairs) -> NDArray[np.float32]:
    """The greatest correlation of the fine structure of each pair over moves by one pixel."""
    fine = np.array([_fine_structure(thumbnail, _COARSE, _COARSE_DETAIL) for thumbnail in thumbnails])
    best = np.full(len(pairs), -1, dtype=np.float32)
    for start in range(0, len(pairs), _BLOCK):
        rows = pairs[start : start + _BLOCK]
        middle = _standardised(fine[rows[:, 0], 1:-1, 1:-1])
        for top, left in product(range(3), repeat=2):
            moved = _standardised(fine[rows[:, 1], top : top + _COARSE - 2, left : left + _COARSE - 2])
            part = best[start : start + _BLOCK]
            np.maximum(part, np.einsum("ij,ij->i", middle, moved), out=part)
    return best


def _standardised(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each image as a vector without mean and of length 1, or 0 where it has no contrast."""
    vectors = images.reshape(len(images), -1)
    vectors = vectors - vectors.mean(axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return scaled


def aligned_correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Correlation of the fine structure of two thumbnails after the affine map that fits best; -1 where none does.

    The map is found as in Evangelidis and Psarakis, IEEE TPAMI 30 (2008) 1858.
    """
    fixed, moving = (_fine_structure(thumbnail, _SIDE, _DETAIL) for thumbnail in (one, other))
    start, everywhere = np.eye(2, 3, dtype=np.float32), np.ones(moving.shape, dtype=np.uint8)
    try:
        correlation, found = cv2.findTransformECC(fixed, moving, start, cv2.MOTION_AFFINE, _UNTIL, everywhere, 5)
    except cv2.error:  # the search left the image, or there is no contrast
        return -1.0
    return float(correlation) if np.abs(found[:, :2] - np.eye(2)).max() <= LARGEST_CHANGE else -1.0
