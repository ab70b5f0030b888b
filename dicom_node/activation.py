"""Where the networks looked: the members' maps taken together, on a grid over the source image.

Sums are taken element by element in a fixed order, so that every processor gives the same bits.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dicom_node.bundle import Manifest
    from dicom_node.domain import MemberMap

    Taps = tuple[slice, NDArray[np.int64], NDArray[np.float32]]

GRID = 256  # points along the longer side: as fine as the finest map of a member
STRONG = 0.5  # of the maximum: what belongs to the strongest region


def grid(rows: int, columns: int) -> tuple[int, int]:
    """Height and width of the grid over a source of that shape, at most `GRID` on the longer side."""
    longer = max(rows, columns)
    if longer <= GRID:
        return rows, columns
    return max(1, round(rows * GRID / longer)), max(1, round(columns * GRID / longer))


def shares(maps: Sequence[MemberMap], manifest: Manifest) -> list[float]:
    """How much each map counts: as its member weighs in the first question, shared among the member's maps.

    Maps of members that have no say in it do not count, unless no map's member has.
    """
    weights = {name: abs(weight) for name, weight in manifest.targets[0].weights.items()}
    count = Counter(one.member for one in maps)
    found = [weights.get(one.member, 0.0) / count[one.member] for one in maps]
    return found if sum(found) > 0 else [1.0] * len(maps)


def mean_activation(
    maps: Sequence[MemberMap], height: int, width: int, weights: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """Weighted mean of the maps on a grid over the whole source, each on its own part; the strongest point is 1.

    Where a map does not reach it counts as zero. All zero where no map has any activation.
    """
    alike: dict[tuple[tuple[int, ...], tuple[float, float, float, float]], NDArray[np.float32]] = {}
    for one, weight in zip(maps, weights or [1.0] * len(maps), strict=True):
        if weight and min(one.box[2:]) > 0:  # maps of one geometry are added first and interpolated once
            key = (one.pixels.shape, one.box)
            alike[key] = alike.get(key, np.float32(0)) + np.float32(weight) * one.pixels.astype(np.float32)
    total = np.zeros((height, width), dtype=np.float32)
    for ((rows, columns), (box_top, box_left, box_height, box_width)), added in alike.items():
        down = _taps(height, rows, box_top, box_height)
        across = _taps(width, columns, box_left, box_width)
        if down[1].size and across[1].size:
            turned = _turned(_interpolated(added, down))  # rows are taken faster than columns
            total[down[0], across[0]] += np.maximum(_turned(_interpolated(turned, across)), 0)
    strongest = float(total.max(initial=0))
    return total / strongest if strongest > 0 else total


def strongest_region(
    maps: Sequence[MemberMap], manifest: Manifest, rows: int, columns: int
) -> tuple[float, float, float, float] | None:
    """Where the ensemble's activation is strongest, as (top, left, height, width) in fractions of the source.

    The box of the connected part that holds the strongest point and has at least half of its activation. None where
    there are no maps, or none with any activation.
    """
    height, width = grid(rows, columns)
    heat = mean_activation(maps, height, width, shares(maps, manifest))
    if not heat.any():
        return None
    _, labels = cv2.connectedComponents((heat >= STRONG).astype(np.uint8), connectivity=8)
    left, top, wide, high = cv2.boundingRect((labels == labels[strongest_point(heat)]).astype(np.uint8))
    return top / height, left / width, high / height, wide / width


def strongest_point(heat: NDArray[np.float32]) -> tuple[int, int]:
    """(row, column) of the maximum, the topmost and then leftmost of several."""
    row, column = np.unravel_index(int(np.argmax(heat)), heat.shape)
    return int(row), int(column)


@lru_cache(maxsize=64)
def _taps(points: int, samples: int, start: float, extent: float) -> Taps:
    """What interpolates samples that lie in [start, start + extent] of [0, 1] onto a grid of `points` over [0, 1].

    Catmull-Rom: smooth, and exact at the samples' centres. The points inside that part, and for each of them four
    samples and their weights, shapes (4, inside).
    """
    where = ((np.arange(points) + 0.5) / points - start) / extent
    inside = np.flatnonzero((where >= 0) & (where <= 1))
    position = where[inside] * samples - 0.5
    first = np.floor(position).astype(np.int64)
    t = position - first
    weights = np.stack(
        (
            ((2 - t) * t - 1) * t / 2,
            ((3 * t - 5) * t * t + 2) / 2,
            ((4 - 3 * t) * t + 1) * t / 2,
            (t - 1) * t * t / 2,
        )
    ).astype(np.float32)
    nearest = np.clip(first + np.array([[-1], [0], [1], [2]]), 0, samples - 1)
    for shared in (nearest, weights):
        shared.setflags(write=False)
    reached = slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)
    return reached, nearest, weights


def _turned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(cv2.transpose(values), np.float32)


def _interpolated(values: NDArray[np.float32], taps: Taps) -> NDArray[np.float32]:
    """The values along the first axis at the points inside."""
    _, nearest, weights = taps
    taken = values.take(nearest[0], axis=0)
    total: NDArray[np.float32] = taken * weights[0][:, None]
    for index, weight in zip(nearest[1:], weights[1:], strict=True):
        values.take(index, axis=0, out=taken, mode="clip")  # clipped already, and so unbuffered
        taken *= weight[:, None]
        total += taken
    return total
