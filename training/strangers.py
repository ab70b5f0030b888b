"""Pictures that are no chest X-ray, drawn by families, and parts of X-rays that are no chest any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Picture = NDArray[np.float64]  # square, in [0, 1]
    Draw = Callable[[np.random.Generator, Picture], Picture]  # a chest X-ray is given, to be spoilt

_WORDS = ("R", "L", "AP", "PORTABLE", "ERECT")
_LETTERS = tuple("ABCDEFGHIKLMNOPRSTUVabcdefghiklmnoprst 0123456789")


def _uniform_noise(rng: np.random.Generator, xray: Picture) -> Picture:
    return rng.random(xray.shape)


def _normal_noise(rng: np.random.Generator, xray: Picture) -> Picture:
    return np.clip(0.5 + rng.normal(0, rng.uniform(0.05, 0.4), xray.shape), 0, 1)


def _impulses(rng: np.random.Generator, xray: Picture) -> Picture:
    drawn, chance, share = np.full(xray.shape, rng.uniform(0.1, 0.9)), rng.random(xray.shape), rng.uniform(0.01, 0.2)
    drawn[chance < share], drawn[chance > 1 - share] = 0, 1
    return drawn


def _clouds(rng: np.random.Generator, xray: Picture) -> Picture:
    side = len(xray)
    drawn = np.zeros(xray.shape)
    for octave in range(2, int(rng.integers(4, 8))):
        cells = rng.random((2**octave, 2**octave))
        drawn += cv2.resize(cells, (side, side), interpolation=cv2.INTER_CUBIC) / 2**octave * rng.uniform(0.5, 2)
    return _stretched(drawn)


def _ramp(rng: np.random.Generator, xray: Picture) -> Picture:
    angle, (down, across) = rng.uniform(0, 2 * np.pi), _grid(xray)
    noise = rng.normal(0, rng.uniform(0, 0.05), xray.shape)
    return _stretched((np.cos(angle) * across + np.sin(angle) * down) / len(xray) + noise)


def _stripes(rng: np.random.Generator, xray: Picture) -> Picture:
    angle, (down, across) = rng.uniform(0, np.pi), _grid(xray)
    wave: Picture = 0.5 + 0.5 * np.sin(rng.uniform(0.02, 0.4) * (np.cos(angle) * across + np.sin(angle) * down))
    return (wave > 0.5).astype(np.float64) if rng.random() < 0.5 else wave


def _squares(rng: np.random.Generator, xray: Picture) -> Picture:
    size, (down, across) = int(rng.integers(6, 64)), _grid(xray)
    squares: Picture = ((down // size + across // size) % 2) * rng.uniform(0.3, 1)
    return squares


def _letters(rng: np.random.Generator, xray: Picture) -> Picture:
    side, paper = len(xray), int(rng.choice([0, 255]))
    drawn = np.full(xray.shape, paper, np.uint8)
    for _ in range(int(rng.integers(4, 16))):
        text = "".join(rng.choice(_LETTERS, int(rng.integers(4, 30))))
        at = (int(rng.integers(0, side // 4)), int(rng.integers(10, side)))
        cv2.putText(drawn, text, at, int(rng.integers(0, 8)), rng.uniform(0.3, 0.9), 255 - paper, 1, cv2.LINE_AA)
    return drawn / 255


def _blank(rng: np.random.Generator, xray: Picture) -> Picture:
    side = len(xray)
    drawn = np.full(xray.shape, rng.uniform(0, 1)) + rng.normal(0, rng.uniform(0.002, 0.02), xray.shape)
    if rng.random() < 0.6:
        label = np.zeros(xray.shape, np.uint8)
        at = (int(rng.integers(5, side * 3 // 4)), int(rng.integers(20, side)))
        cv2.putText(label, str(rng.choice(_WORDS)), at, 0, rng.uniform(0.4, 1), 255, 2)
        drawn = np.maximum(drawn, label / 255)
    if rng.random() < 0.4:
        edge = int(rng.integers(5, 40))
        drawn[:edge] = drawn[-edge:] = drawn[:, :edge] = drawn[:, -edge:] = rng.choice([0.0, 1.0])
    return np.clip(drawn, 0, 1)


def _rings(rng: np.random.Generator, xray: Picture) -> Picture:
    down, across = (axis - rng.uniform(0.2, 0.8) * len(xray) for axis in _grid(xray))
    return 0.5 + 0.5 * np.sin(np.hypot(down, across) * rng.uniform(0.05, 0.4))


def _shapes(rng: np.random.Generator, xray: Picture) -> Picture:
    side = len(xray)
    drawn = np.full(xray.shape, int(rng.uniform(0, 128)), np.uint8)
    for _ in range(int(rng.integers(2, 14))):
        one, other = ([int(v) for v in rng.integers(0, side, 2)] for _ in range(2))
        grey = int(rng.uniform(0, 255))
        if rng.random() < 0.5:
            axes = [int(v) for v in rng.integers(8, 110, 2)]
            cv2.ellipse(drawn, one, axes, rng.uniform(0, 180), 0, 360, grey, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(drawn, one, other, grey, -1)
    return cv2.GaussianBlur(drawn / 255, (0, 0), rng.uniform(0.5, 8)).astype(np.float64)


def _bars(rng: np.random.Generator, xray: Picture) -> Picture:
    count, side = int(rng.integers(4, 20)), len(xray)
    drawn = rng.random(count).repeat(-(-side // count))[None, :side].repeat(side, axis=0)
    return drawn if rng.random() < 0.5 else drawn.T.copy()


def _scrambled(rng: np.random.Generator, xray: Picture) -> Picture:
    """The X-ray's spectrum with the phases of noise."""
    phases = np.exp(1j * np.angle(np.fft.fft2(rng.random(xray.shape))))
    drawn = np.real(np.fft.ifft2(np.abs(np.fft.fft2(xray)) * phases))
    low, high = np.percentile(drawn, [1, 99])
    clipped: Picture = np.clip((drawn - low) / (high - low), 0, 1)
    return clipped


def _shuffled(rng: np.random.Generator, xray: Picture) -> Picture:
    """The X-ray's tiles in another order."""
    count = int(rng.choice([4, 8]))
    side = len(xray) // count
    tiles = xray.reshape(count, side, count, side).transpose(0, 2, 1, 3).reshape(-1, side, side)
    tiles = tiles[rng.permutation(len(tiles))]
    return tiles.reshape(count, count, side, side).transpose(0, 2, 1, 3).reshape(xray.shape)


def _remnant(rng: np.random.Generator, xray: Picture) -> Picture:
    """What a misplaced collimator leaves."""
    side = len(xray)
    drawn = np.full(xray.shape, rng.choice([0.0, 0.0, 1.0, 0.05]))
    height, width = (int(v) for v in rng.integers(side // 16, side * 3 // 7, 2))
    top, left, to_top, to_left = (int(rng.integers(0, side - size)) for size in (height, width) * 2)
    drawn[to_top : to_top + height, to_left : to_left + width] = xray[top : top + height, left : left + width]
    return drawn


def _burnt(rng: np.random.Generator, xray: Picture) -> Picture:
    """Exposed far too little, or too much."""
    bright = rng.random() < 0.5
    drawn = (xray - rng.uniform(0.85, 1)) * 20 if bright else 1 - (xray - rng.uniform(0, 0.08)) * 20
    return np.clip(np.clip(drawn, 0, 1) + rng.normal(0, 0.01, xray.shape), 0, 1)


def _contact_sheet(rng: np.random.Generator, xray: Picture) -> Picture:
    count = int(rng.integers(2, 5))
    small = cv2.resize(xray, (len(xray) // count,) * 2, interpolation=cv2.INTER_AREA)
    tiled = np.tile(small, (count, count))
    drawn = np.zeros(xray.shape)
    drawn[: len(tiled), : len(tiled)] = tiled
    return drawn


FAMILIES: dict[str, Draw] = {
    draw.__name__.strip("_").replace("_", " "): draw
    for draw in (
        _uniform_noise, _normal_noise, _impulses, _clouds, _ramp, _stripes, _squares, _letters, _blank, _rings, _shapes,
        _bars, _scrambled, _shuffled, _remnant, _burnt, _contact_sheet,
    )
}  # fmt: skip


def part_of(rng: np.random.Generator, xray: Picture) -> Picture:
    """A fifth to two fifths of the X-ray's side, as large as all of it, turned by chance: a shoulder, some ribs."""
    side = len(xray)
    share = rng.uniform(0.18, 0.42)
    height, width = int(side * share), int(side * share * rng.uniform(0.7, 1.3))
    top, left = int(rng.integers(0, side - height)), int(rng.integers(0, max(1, side - width)))
    part = cv2.resize(xray[top : top + height, left : left + width], (side, side), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(np.rot90(part, int(rng.integers(4)))).astype(np.float64)


def _grid(xray: Picture) -> tuple[Picture, Picture]:
    down, across = np.mgrid[0 : len(xray), 0 : len(xray)].astype(np.float64)
    return down, across


def _stretched(drawn: Picture) -> Picture:
    stretched: Picture = (drawn - drawn.min()) / (float(np.ptp(drawn)) or 1.0)
    return stretched
