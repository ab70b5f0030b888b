"""Chest X-rays of nobody: drawn phantoms.

A phantom is a sum of path lengths along the beam, in centimetres of soft tissue, that a film curve turns into pixel
values. Lengths are in centimetres on the patient: x to the image's right (the patient's left), y downwards, the
origin at the middle of the chest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Plane = NDArray[np.float32]
    Points = Sequence[tuple[float, float]]

# What of the patient fits on the film, whatever its shape.
FIELD_HEIGHT_CM, FIELD_WIDTH_CM = 38.0, 33.5
WHITE = 4095  # 12 bits

# The film curve: centimetres of soft tissue -> share of the range. Air is black, the spine nearly white.
TISSUE_CM = (-4.0, 0.0, 3.0, 7.0, 11.0, 15.0, 19.0, 23.0, 28.0, 34.0)
FILM = (0.01, 0.03, 0.08, 0.165, 0.315, 0.49, 0.635, 0.735, 0.815, 0.89)

# Half of the body (the patient's left), from the neck over the shoulder and the axilla to the waist.
BODY = (
    (0, -25), (5.4, -25), (5.5, -20), (6.6, -18.2), (10, -16.9), (15, -15.6), (20, -13.5), (26, -9.5),
    (31, -6.5), (31, 1), (25, -1.2), (19.5, -3.2), (17.4, -5.2), (16.4, -3.5), (15.7, 1), (15.3, 7), (15.4, 14),
    (15.8, 25), (0, 25),
)  # fmt: skip
RIGHT_LUNG = (
    (-4.4, -15.6), (-3.2, -15.0), (-2.5, -13.2), (-2.3, -9), (-2.3, -4), (-2.4, 2), (-2.4, 6), (-3.0, 7.9),
    (-5.6, 6.7), (-8.0, 6.3), (-10.2, 7.4), (-11.9, 9.2), (-13.1, 11.3), (-13.75, 13.1), (-13.8, 12.6), (-13.8, 9.5),
    (-13.6, 5), (-13.1, 0), (-12.2, -5), (-10.7, -9.4), (-8.7, -12.9), (-6.5, -15.1),
)  # fmt: skip
LEFT_LUNG = (
    (4.4, -15.7), (6.5, -15.2), (8.7, -13), (10.7, -9.5), (12.2, -5), (13.1, 0), (13.6, 5), (13.8, 10),
    (13.8, 13.2), (13.75, 13.7), (13.1, 11.9), (12, 10.2), (10.5, 8.8), (8.8, 8.0), (7, 7.8), (5, 8.1), (3, 8.3),
    (2.4, 6.5), (2.3, 0), (2.3, -9), (2.5, -13.2), (3.2, -15.1),
)  # fmt: skip
HEART = (
    (-1.5, -5.5), (-2.9, -2), (-4.0, 1.2), (-4.4, 4.0), (-4.2, 6.2), (-3.4, 8.4), (2, 9.6), (6, 9.3), (8.3, 8.3),
    (8.9, 6.6), (8.3, 4.2), (7.0, 1.4), (5.4, -1.4), (4.2, -3.4), (2, -6),
)  # fmt: skip
# The superior vena cava and the right atrium on one side; aortic knob, aortopulmonary window and trunk on the other.
MEDIASTINUM = (
    (-2.1, -19), (-2.2, -14), (-2.5, -10.5), (-2.9, -6), (-3.1, -2), (-3, 4), (-2.6, 10), (2.6, 10), (3.2, 4),
    (3.6, 0), (4.0, -3.2), (3.7, -4.8), (2.9, -5.9), (3.5, -6.9), (3.9, -8.1), (3.6, -9.4), (2.7, -10.5),
    (2.3, -13), (2.1, -19),
)  # fmt: skip
TRACHEA = ((0.2, -24), (0.2, -15), (0.0, -10), (-0.3, -6.6))
BRONCHI = (((-0.3, -6.6), (-1.8, -4.9), (-3.2, -3.4)), ((-0.3, -6.6), (1.8, -4.7), (4.0, -3.3)))
CLAVICLE = ((1.7, -11.6), (3.2, -12.1), (5.5, -13.3), (8.5, -14.4), (11.5, -14.7), (14.5, -14.3), (17.2, -13.8))
SCAPULA = ((13.4, -12.9), (12.9, -8.5), (13.6, -3.4), (14.9, -1.2), (15.8, -4.6), (17.6, -9.2), (18.4, -12))
HUMERUS = ((18.9, -11.2), (21.0, -9.6), (25.5, -6.3), (32, -2))
BREAST = ((2.2, 0), (5, -4), (9.5, -5), (13.6, -1.5), (14.2, 4), (11.6, 8.4), (7.6, 9.2), (3.8, 6.4))
STOMACH = ((4.6, 10.9), (6.2, 9.7), (8.2, 9.5), (9.8, 10.3), (9.7, 12.0), (7.6, 12.8), (5.4, 12.5))
# Half of the width of the chest at each rib (1 to 11), and how far below its head a rib ends in front.
RIB_REACH = (5.6, 8.7, 10.6, 11.8, 12.7, 13.3, 13.7, 13.95, 14.0, 13.8, 13.4)
RIB_DROP = (4.2, 6.0, 7.4, 8.6, 9.6, 10.4, 11.0, 11.2, 11.0, 10.4, 9.6)
FIRST_RIB_CM, RIB_SPACING_CM = -14.6, 2.34


def draw_phantom(seed: int, *, rows: int, columns: int, opacities: int) -> NDArray[np.uint16]:
    """A frontal chest X-ray of nobody, the same for the same arguments.

    Parameters
    ----------
    seed
        Decides the build, the vessels and the noise.
    opacities
        Number of soft patches at the periphery of the lungs.

    Returns
    -------
    Shape (rows, columns), 12 bits in the MONOCHROME2 sense: air is dark, bone is bright.
    """
    rng = np.random.default_rng([seed, 0])
    film = _Film(rows, columns, rng)
    lungs = film.fill(RIGHT_LUNG, soft_cm=0.06), film.fill(LEFT_LUNG, soft_cm=0.06)
    heart_depth = film.bulge(HEART, reach_cm=3.6, soft_cm=0.16) * 8.5
    air = _lung_air(film, lungs, heart_depth)
    inside = np.clip(air / 6.0, 0.0, 1.0)

    tissue = _trunk(film, rng) - air + 0.35 * heart_depth
    tissue += _bones(film, rng)
    tissue += inside * (_vessels(film, rng) + _texture(film, rng))
    tissue += _opacities(film, np.random.default_rng([seed, 1]), lungs, opacities) * inside
    tissue = 0.9 * tissue + 0.1 * film.blur(tissue, 2.5)  # scatter
    tissue += 0.3 * (tissue - film.blur(tissue, 0.8))  # the edge enhancement of a CR reader
    return _expose(film, tissue, rng)


class _Film:
    """Planes of rows x columns, drawn on in centimetres."""

    def __init__(self, rows: int, columns: int, rng: np.random.Generator) -> None:
        self.scale = pixels_per_cm(rows, columns)
        self.shape = rows, columns
        turn = np.deg2rad(rng.uniform(-1.2, 1.2))
        wide, high = rng.uniform(0.94, 1.03), rng.uniform(0.95, 1.02)
        self._matrix = self.scale * np.array(
            [[wide * np.cos(turn), -high * np.sin(turn)], [wide * np.sin(turn), high * np.cos(turn)]]
        )
        shift = rng.uniform((-0.4, 0.8), (0.4, 1.6))
        self._middle = np.array([columns / 2, rows / 2]) + self.scale * shift
        y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
        back = np.linalg.inv(self._matrix).astype(np.float32)
        x, y = x - np.float32(self._middle[0]), y - np.float32(self._middle[1])
        self.x: Plane = back[0, 0] * x + back[0, 1] * y
        self.y: Plane = back[1, 0] * x + back[1, 1] * y

    def _pixels(self, points: NDArray[np.float64]) -> NDArray[np.int32]:
        """Positions in 1/16 pixel, as cv2 draws them."""
        return np.round(16 * (points @ self._matrix.T + self._middle)).astype(np.int32)

    def blur(self, sharp: NDArray[np.floating[Any]], sigma_cm: float) -> Plane:
        plane = np.asarray(sharp, np.float32)
        sigma = sigma_cm * self.scale
        if sigma < 0.3:
            return plane
        shrink = max(1, int(sigma / 4))  # a wide blur has no fine detail to keep
        if shrink == 1:
            return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma), np.float32)
        rows, columns = self.shape
        small = cv2.resize(plane, (max(1, columns // shrink), max(1, rows // shrink)), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma / shrink)
        return np.asarray(cv2.resize(small, (columns, rows), interpolation=cv2.INTER_CUBIC), np.float32)

    def _mask(self, points: Points) -> NDArray[np.uint8]:
        mask = np.zeros(self.shape, np.uint8)
        cv2.fillPoly(mask, [self._pixels(_smooth(points, closed=True))], 255, cv2.LINE_AA, 4)
        return mask

    def fill(self, points: Points, *, soft_cm: float) -> Plane:
        """1 inside the closed smooth outline, 0 outside, with an edge `soft_cm` wide."""
        return self.blur(self._mask(points).astype(np.float32) / 255, soft_cm)

    def bulge(self, points: Points, *, reach_cm: float, soft_cm: float) -> Plane:
        """A rounded body: 0 at the outline, rising as a circle does to 1 at `reach_cm` inside."""
        inside = (self._mask(points) > 127).astype(np.uint8)
        depth = np.asarray(cv2.distanceTransform(inside, cv2.DIST_L2, 5), np.float32)
        depth = np.clip(depth / (reach_cm * self.scale), 0, 1)
        return self.blur(np.sqrt(1 - (1 - depth) ** 2), soft_cm)

    def bone(self, curves: Sequence[NDArray[np.float64]], width_cm: float) -> Plane:
        """Tubes along the curves: about 0.6 in the marrow, 1 at the cortex on both sides."""
        outer, inner = np.zeros(self.shape, np.uint8), np.zeros(self.shape, np.uint8)
        for curve in curves:
            points = [self._pixels(curve)]
            cv2.polylines(outer, points, False, 255, max(1, round(width_cm * self.scale)), cv2.LINE_AA, 4)
            cv2.polylines(inner, points, False, 255, max(1, round((width_cm - 0.34) * self.scale)), cv2.LINE_AA, 4)
        return self.blur((outer.astype(np.float32) - 0.42 * inner.astype(np.float32)) / 255, 0.07)

    def strokes(self, curves: Sequence[NDArray[np.float64]], width_cm: float) -> Plane:
        """Soft round strokes along the curves, 1 on them."""
        mask = np.zeros(self.shape, np.uint8)
        cv2.polylines(
            mask,
            [self._pixels(curve) for curve in curves],
            False,
            255,
            max(1, round(width_cm * self.scale)),
            cv2.LINE_AA,
            4,
        )
        return self.blur(mask.astype(np.float32) / 255, 0.03 + 0.22 * width_cm)

    def noise(self, rng: np.random.Generator, sigma_cm: float) -> Plane:
        """Smooth noise of deviation 1, `sigma_cm` wide."""
        shrink = max(1.0, sigma_cm * self.scale / 2)
        rows, columns = (max(2, int(side / shrink) + 1) for side in self.shape)
        coarse = cv2.GaussianBlur(rng.standard_normal((rows, columns), np.float32), (0, 0), 1.6)
        plane = cv2.resize(coarse, self.shape[::-1], interpolation=cv2.INTER_CUBIC)
        return np.asarray(plane / plane.std(), np.float32)


def pixels_per_cm(rows: int, columns: int) -> float:
    """How many pixels of a film of that shape make a centimetre on the patient."""
    return min(rows / FIELD_HEIGHT_CM, columns / FIELD_WIDTH_CM)


def _smooth(points: Points, *, closed: bool = False, steps: int = 12) -> NDArray[np.float64]:
    """The Catmull-Rom curve through the points."""
    knots = np.asarray(points, np.float64)
    if closed:
        knots = np.concatenate([knots[-1:], knots, knots[:2]])
    else:
        knots = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    before, start, end, after = knots[:-3, None], knots[1:-2, None], knots[2:-1, None], knots[3:, None]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    curve = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, knots[-2:-1]])


def _mirrored(points: Points) -> list[tuple[float, float]]:
    return [(-x, y) for x, y in points]


def _lung_air(film: _Film, lungs: tuple[Plane, Plane], heart_depth: Plane) -> Plane:
    """Centimetres of soft tissue that the lungs replace by air."""
    depth = film.bulge(RIGHT_LUNG, reach_cm=4.6, soft_cm=0.1) + film.bulge(LEFT_LUNG, reach_cm=4.6, soft_cm=0.1)
    edge = np.maximum(*lungs)
    towards_base = np.clip((film.y + 16) / 14, 0, 1)
    air = (4.4 * edge + 7.2 * depth) * (0.72 + 0.28 * towards_base)
    heart = np.clip(heart_depth / 5.0, 0, 1)
    mediastinum = film.fill(MEDIASTINUM, soft_cm=0.14)
    return np.asarray(air * (1 - 0.86 * heart) * (1 - 0.9 * mediastinum), np.float32)


def _trunk(film: _Film, rng: np.random.Generator) -> Plane:
    """Soft tissue: the outline of the body, the neck's airway, breasts, the abdomen and the stomach's air."""
    outline = [*BODY, *_mirrored(BODY[::-1])]
    tissue = 21.0 * film.bulge(outline, reach_cm=9.0, soft_cm=0.1)
    tissue += 3.0 * film.bulge(MEDIASTINUM, reach_cm=2.0, soft_cm=0.2)
    tissue += 2.4 * np.clip((film.y - 7.5) / 6, 0, 1)  # liver and spleen below the domes
    airway = np.maximum.reduce(
        [film.strokes([_smooth(TRACHEA)], 1.7), *(0.6 * film.strokes([_smooth(tube)], 1.1) for tube in BRONCHI)]
    )
    tissue -= 3.4 * airway
    tissue -= rng.uniform(4, 9) * film.bulge(STOMACH, reach_cm=1.3, soft_cm=0.15)
    breasts = rng.choice([0.0, 0.7, 2.2])
    if breasts:
        for outline in (list(BREAST), _mirrored(BREAST)):
            tissue += breasts * film.bulge(outline, reach_cm=4.0, soft_cm=0.25)
    return tissue


def _bones(film: _Film, rng: np.random.Generator) -> Plane:
    bones = _spine(film, rng)
    posterior: list[NDArray[np.float64]] = []
    anterior: list[NDArray[np.float64]] = []
    drop, start = rng.uniform(0.92, 1.08), rng.uniform(-0.2, 0.3)
    for rib, (reach, fall) in enumerate(zip(RIB_REACH, RIB_DROP, strict=True)):
        # A rib is a tilted hoop: the head at 0, the side of the chest at pi / 2, the cartilage towards pi.
        head = FIRST_RIB_CM + start + RIB_SPACING_CM * rib
        for side in (-1, 1):
            for curves, angle in (
                (posterior, np.linspace(0.13, np.pi / 2 if rib < 10 else 1.1, 40)),
                (anterior, np.linspace(np.pi / 2, rng.uniform(0.80, 0.86) * np.pi, 30)),
            ):
                x = side * reach * np.sin(angle)
                y = head + drop * fall * (0.5 - 0.5 * np.cos(angle)) - 0.8 * np.sin(2 * angle)
                if not (curves is anterior and rib > 7):  # the lowest ribs do not reach the front
                    curves.append(np.stack([x, y], axis=1))
    from_midline = np.abs(film.x)
    above_domes = 1 - 0.55 * np.clip((film.y - 6) / 4, 0, 1)
    bones += 2.1 * film.bone(posterior, 1.2) * above_domes * np.clip((from_midline - 1.0) / 2.0, 0.1, 1)
    bones += 1.3 * film.bone(anterior, 1.4) * above_domes * np.clip((from_midline - 4.2) / 3.5, 0, 1)
    for mirror in (list, _mirrored):
        bones += 2.6 * film.bone([_smooth(mirror(CLAVICLE))], 1.3)
        bones += 1.3 * film.bulge(mirror(SCAPULA), reach_cm=0.5, soft_cm=0.1)
        bones += 3.2 * film.bone([_smooth(mirror(HUMERUS))], 2.7)
    return bones


def _spine(film: _Film, rng: np.random.Generator) -> Plane:
    bow = rng.uniform(-0.35, 0.35)
    x = np.abs(film.x - bow * np.sin(film.y / 9))
    width = 1.45 + 0.03 * (film.y + 16)
    # Bodies are RIB_SPACING apart and a little taller downwards; a disc lies between two of them.
    phase = (film.y + 16) / (2.05 + 0.012 * (film.y + 16)) + rng.uniform(0, 1)
    level = phase - np.floor(phase)
    disc = np.exp(-(((level - 0.5) / 0.11) ** 2))
    end_plate = np.exp(-(((np.abs(level - 0.5) - 0.17) / 0.05) ** 2))
    column = 0.5 - 0.5 * np.tanh((x - width * (1 - 0.09 * (1 - disc))) / 0.3)
    spinous = np.exp(-((x / 0.33) ** 2)) * np.exp(-(((level - 0.82) / 0.16) ** 2))
    pedicles = np.exp(-(((x - 0.68 * width) / 0.3) ** 2)) * np.exp(-((((level + 0.12) % 1 - 0.0) / 0.17) ** 2))
    bone = column * (2.3 - 1.0 * disc + 0.5 * end_plate) + 0.8 * spinous + 0.9 * pedicles
    return np.asarray(bone, np.float32)


def _vessels(film: _Film, rng: np.random.Generator) -> Plane:
    """Trees from both hila, thinner at each fork, and the hila themselves."""
    widths_cm = (0.95, 0.66, 0.46, 0.32, 0.22, 0.15, 0.1)
    levels: list[list[NDArray[np.float64]]] = [[] for _ in widths_cm]

    def grow(start: NDArray[np.float64], angle: float, level: int, length_cm: float) -> None:
        # Two pieces with a bend, then a fork.
        for _ in range(2):
            angle += rng.normal(0, 0.14)
            end = start + length_cm / 2 * np.array([np.cos(angle), np.sin(angle)])
            levels[level].append(np.stack([start, end]))
            start = end
        if level + 1 < len(widths_cm):
            for turn in (rng.uniform(0.15, 0.5), -rng.uniform(0.15, 0.5)):
                grow(start, angle + turn, level + 1, length_cm * rng.uniform(0.72, 0.98))

    for side, height in ((-1, -2.4), (1, -3.4)):
        for degrees in (-82, -52, -18, 14, 42, 62, 84):
            away = np.deg2rad(degrees + rng.uniform(-8, 8))
            angle = away if side > 0 else np.pi - away
            start = np.array([side * 3.3, height + 2.0 * np.sin(away)])
            grow(start, angle, 1 + (degrees < -40), rng.uniform(1.9, 2.7))
    plane = np.zeros(film.shape, np.float32)
    for width, pieces in zip(widths_cm, levels, strict=True):
        plane += 3.7 * width**0.75 * film.strokes(pieces, width)
    for side, height in ((-1, -1.6), (1, -2.6)):
        near = ((film.x - side * 3.6) / 1.5) ** 2 + ((film.y - height) / 2.7) ** 2
        plane += 2.8 * np.exp(-near)
    return plane


def _hilar_distance(film: _Film) -> Plane:
    """Centimetres to the nearer hilum."""
    return np.asarray(np.hypot(np.abs(film.x) - 3.5, film.y + 2.2), np.float32)


def _texture(film: _Film, rng: np.random.Generator) -> Plane:
    fading = np.exp(-_hilar_distance(film) / 8)
    fine = 0.3 * film.noise(rng, 0.09) + 0.3 * film.noise(rng, 0.22) + 0.3 * film.noise(rng, 0.8)
    return np.asarray(fine * (0.3 + 0.7 * fading), np.float32)


def _opacities(film: _Film, rng: np.random.Generator, lungs: tuple[Plane, Plane], count: int) -> Plane:
    """Hazy patches of uneven edge in the outer parts of the lungs, low ones more often."""
    plane = np.zeros(film.shape, np.float32)
    ragged = film.noise(rng, 0.7)
    for number in range(count):
        side = 1 if (number + rng.integers(2)) % 2 else -1
        y = rng.triangular(-9, 4.5, 7)
        outer = np.interp(y, (-9, -5, 0, 7), (10.2, 11.8, 12.6, 13.1))
        x = side * (outer - rng.uniform(1.2, 3.0))
        radius_x, radius_y = rng.uniform(1.5, 2.6), rng.uniform(1.7, 3.2)
        near = ((film.x - x) / radius_x) ** 2 + ((film.y - y) / radius_y) ** 2
        patch = np.exp(-near) * (1 + 0.3 * ragged)
        plane += rng.uniform(2.8, 4.2) * np.clip(patch, 0, 1.2) * lungs[int(side > 0)]
    return plane


def _expose(film: _Film, tissue: Plane, rng: np.random.Generator) -> NDArray[np.uint16]:
    """The film curve, the beam's falloff towards the edges, and quantum noise, stronger behind more tissue."""
    falloff = 0.9 * ((film.x / 17) ** 2 + (film.y / 20) ** 2) + rng.uniform(-0.4, 0.4) * film.y / 19
    noise = cv2.GaussianBlur(rng.standard_normal(film.shape, np.float32), (0, 0), 0.6)
    exposed = tissue + falloff * np.clip(tissue / 10, 0, 1)
    exposed += 0.3 * noise * np.exp(np.clip(exposed, 0, 40) / 32)
    fine = np.linspace(TISSUE_CM[0], TISSUE_CM[-1], 2048)
    curve = np.interp(fine, TISSUE_CM, FILM)
    curve = cv2.GaussianBlur(curve[None], (0, 0), 60)[0]  # no kinks
    step = (fine[-1] - fine[0]) / (fine.size - 1)
    place = np.clip((exposed - TISSUE_CM[0]) / step, 0, fine.size - 1).astype(np.int32)
    values = np.clip(np.round(curve * WHITE), 0, WHITE).astype(np.uint16)
    return np.asarray(values[place], np.uint16)
