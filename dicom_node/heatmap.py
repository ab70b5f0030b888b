"""The heatmap: the X-ray with what the members looked at over it, as a Secondary Capture.

The picture is drawn from the archived maps; the network does not run again. Nothing that identifies the patient is
drawn: the archive shows that itself, and Burned In Annotation (0028,0301) stays what the source says.
"""

from __future__ import annotations

import warnings
from bisect import bisect
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING

import cv2
import numpy as np
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset

from dicom_node import uids
from dicom_node.domain import SITE, Decision
from dicom_node.resize import shrunk
from dicom_node.results import (
    check,
    equipment,
    find_target,
    local_time,
    remark_texts,
    seal,
    series_and_maker,
    thresholds,
    weights_sha256,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from dicom_node.bundle import Manifest
    from dicom_node.domain import MemberMap, Prediction, TargetResult

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
    Colour = tuple[int, int, int]

BANNER = "RESEARCH - NOT FOR DIAGNOSTIC USE"
NO_HEATMAP = "No heatmap: the prediction came without maps."
CAPTION = (
    "Colour: where the networks looked, relative to the strongest point; outline: half of that. "
    "Not the extent of disease."
)
ASKED = "Of the first question alone."
SERIES_NUMBER = 9001
SERIES_DESCRIPTION = "AI heatmap - RESEARCH, NOT FOR DIAGNOSTIC USE"

LONGEST_TITLE = 120  # of a question, in characters
OPACITY = 0.6  # of the overlay at full activation: the X-ray stays legible below
CONTOUR_AT = 0.5  # of the maximum

# Perceptually even, and unlike the greys of bone and heart at its strong end, where inferno ends in their white.
_COLOURS: NDArray[np.float32] = cv2.applyColorMap(np.arange(256, dtype=np.uint8).reshape(256, 1), cv2.COLORMAP_VIRIDIS)[
    :, 0, ::-1
].astype(np.float32)
_BACKGROUND = (18, 20, 22)
_TEXT = (238, 240, 242)
_QUIET = (172, 178, 184)
_BANNER = (255, 205, 0)
_BLACK = (0, 0, 0)
_DECIDED: dict[Decision, Colour] = {
    Decision.FLAGGED: (255, 140, 80),
    Decision.NOT_FLAGGED: (150, 205, 255),
    Decision.INDETERMINATE: (214, 190, 255),
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text with its size in pixels; `chip` draws it dark on its colour."""

    text: str
    size: int
    colour: Colour
    chip: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a picture lie, in pixels; `xray` and `bar` are (top, left, height, width).

    `bar` is None in a picture without maps; `unit` is the size of the text.
    """

    height: int
    width: int
    unit: int
    banner: tuple[Line, ...]
    header: tuple[Line, ...]
    caption: tuple[Line, ...]
    xray: tuple[int, int, int, int]
    bar: tuple[int, int, int, int] | None


def layout(rows: int, columns: int, prediction: Prediction, manifest: Manifest, *, size: int) -> Layout:
    """Where everything goes in the picture of a `rows` x `columns` source: banner, header, X-ray and bar, caption."""
    unit = max(11, round(size / 38))
    longer = max(rows, columns)
    height, width = max(1, round(rows * size / longer)), max(1, round(columns * size / longer))
    margin = unit // 2
    column = 6 * unit if prediction.maps else 0
    total_width = max(width + column, 256, round(0.62 * size))
    inner = total_width - 2 * margin

    banner = _wrapped(BANNER, unit * 5 // 4, _BLACK, inner)
    header: list[Line] = []
    for result in prediction.targets:
        header += _answer(result, find_target(manifest, result.target).title, unit, inner)
    points = dict.fromkeys(result.operating_point or prediction.operating_point for result in prediction.targets)
    made_by = f"Bundle {prediction.bundle}, release {prediction.release}, operating point {', '.join(points)}"
    header += _wrapped(made_by, unit * 4 // 5, _QUIET, inner)
    said = CAPTION if prediction.maps else NO_HEATMAP
    if prediction.maps and len(prediction.targets) > 1:
        said = f"{CAPTION} {ASKED}"
    caption = _wrapped(said, unit * 4 // 5, _QUIET, inner)
    for remark in remark_texts(prediction):
        caption += _wrapped(remark, unit * 4 // 5, _TEXT, inner)

    top = _height(banner) + unit // 2 + _height(header) + unit
    area = max(height, 9 * unit) if prediction.maps else height
    xray = (top + (area - height) // 2, (total_width - column - width) // 2, height, width)
    bar = None
    if prediction.maps:
        title = 3 * unit  # two lines above the bar
        bar_height = min(area - title - unit, 16 * unit)
        bar = (top + title, total_width - column + unit, bar_height, unit)
    total_height = top + area + unit // 2 + _height(caption) + unit // 2
    return Layout(total_height, total_width, unit, tuple(banner), tuple(header), tuple(caption), xray, bar)


def draw_heatmap(
    pixels: NDArray[np.float32], prediction: Prediction, manifest: Manifest, *, size: int
) -> NDArray[np.uint8]:
    """The picture, RGB, uint8, shape (h, w, 3).

    Parameters
    ----------
    pixels
        The X-ray as `dicom_node.pixels` renders it: shape (rows, columns), in [0, 1], MONOCHROME2.
    size
        Longer side of the X-ray in the picture, in pixels; text and colour bar come on top.
    """
    rows, columns = pixels.shape
    plan = layout(rows, columns, prediction, manifest, size=size)
    canvas = np.empty((plan.height, plan.width, 3), dtype=np.uint8)
    canvas[:] = _BACKGROUND
    top, left, height, width = plan.xray
    shrinks = height < rows or width < columns
    grey = shrunk(pixels, size) if shrinks else cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    xray = np.repeat((np.clip(np.nan_to_num(grey), 0, 1) * 255)[..., None], 3, axis=2).astype(np.float32)
    if prediction.maps:
        heat = mean_activation(prediction.maps, height, width, shares(prediction.maps, manifest))
        xray = _overlay(xray, heat)
        _outline(xray, heat, max(1, round(size / 512)))
    canvas[top : top + height, left : left + width] = np.rint(xray)
    if plan.bar is not None:
        _colour_bar(canvas, plan.bar)
    picture = Image.fromarray(canvas)
    _write(picture, plan)
    return np.asarray(picture)


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
        down = _interpolation(height, rows, box_top, box_height)
        across = _interpolation(width, columns, box_left, box_width)
        total += np.maximum(down @ added @ across.T, 0)
    strongest = float(total.max(initial=0))
    return total / strongest if strongest > 0 else total


@lru_cache(maxsize=16)
def _interpolation(grid: int, samples: int, start: float, extent: float) -> NDArray[np.float32]:
    """The (grid, samples) matrix that interpolates samples lying in [start, start + extent] of [0, 1] onto a grid.

    Catmull-Rom: smooth, and exact at the samples' centres. Rows of the grid outside that part are zero.
    """
    where = ((np.arange(grid) + 0.5) / grid - start) / extent
    position = where * samples - 0.5
    first = np.floor(position).astype(np.int64)
    t = position - first
    weights = (
        ((2 - t) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((4 - 3 * t) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    )
    matrix = np.zeros((grid, samples), dtype=np.float32)
    inside = np.flatnonzero((where >= 0) & (where <= 1))
    for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
        nearest = np.clip(first[inside] + offset, 0, samples - 1)
        np.add.at(matrix, (inside, nearest), weight[inside])
    matrix.setflags(write=False)
    return matrix


def _overlay(xray: NDArray[np.float32], heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours over grey, with an opacity that grows from nothing with the activation."""
    opacity = (OPACITY * heat)[..., None]
    colours = _COLOURS[np.rint(heat * 255).astype(np.uint8)]
    blended: NDArray[np.float32] = xray * (1 - opacity) + colours * opacity
    return blended


def _outline(xray: NDArray[np.float32], heat: NDArray[np.float32], thickness: int) -> None:
    """Draw the contour of what reaches half of the maximum: white on black, to be seen on lung and on bone."""
    strong = (heat >= CONTOUR_AT).astype(np.uint8)
    contours, _ = cv2.findContours(strong, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    drawn = np.rint(xray).astype(np.uint8)
    cv2.drawContours(drawn, contours, -1, _BLACK, thickness + (2 if thickness > 1 else 1), cv2.LINE_AA)
    cv2.drawContours(drawn, contours, -1, (255, 255, 255), thickness, cv2.LINE_AA)
    xray[:] = drawn


def _colour_bar(canvas: NDArray[np.uint8], box: tuple[int, int, int, int]) -> None:
    """The overlay's colours as they look over mid-grey, 1 on top."""
    top, left, height, width = box
    heat = np.linspace(1, 0, height, dtype=np.float32)[:, None].repeat(width, axis=1)
    grey = np.full((height, width, 3), 128, dtype=np.float32)
    canvas[top : top + height, left : left + width] = np.rint(_overlay(grey, heat))
    cv2.rectangle(canvas, (left - 1, top - 1), (left + width, top + height), _QUIET, 1)


def _answer(result: TargetResult, title: str, unit: int, width: int) -> list[Line]:
    """What was asked, what the answer is, and by which numbers."""
    digits = 3
    if f"{result.probability:.3f}" == f"{result.threshold:.3f}" and result.probability != result.threshold:
        digits = 6  # or the picture would seem to contradict itself
    numbers = f"Probability {result.probability:.{digits}f}, threshold {result.threshold:.{digits}f}"
    if result.operating_point == SITE:
        numbers += " (set by this site)"
    return [
        *_wrapped(title[:LONGEST_TITLE], unit * 5 // 4, _TEXT, width),
        Line(result.decision.replace("_", " ").upper(), unit, _DECIDED[result.decision], chip=True),
        *_wrapped(numbers, unit, _TEXT, width),
    ]


def _wrapped(text: str, size: int, colour: Colour, width: int) -> list[Line]:
    """`text` in lines of at most `width` pixels, broken between words; a word too long by itself is cut."""
    font = _font(size)
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if font.getlength(word) > width:
            fitting = bisect(range(1, len(word)), width, key=lambda kept: ceil(font.getlength(f"{word[:kept]}\u2026")))
            lines.append(f"{word[:fitting]}\u2026")
        else:
            lines.append(word)
    return [Line(line, size, colour) for line in lines]


def _step(line: Line) -> int:
    return round(line.size * (1.75 if line.chip else 1.4))


def _height(lines: Sequence[Line]) -> int:
    return sum(_step(line) for line in lines)


def _write(picture: Image.Image, plan: Layout) -> None:
    """All of the text."""
    draw = ImageDraw.Draw(picture)
    unit = plan.unit
    y = unit // 4
    draw.rectangle((0, 0, plan.width, _height(plan.banner) + unit // 2 - 1), fill=_BANNER)
    for line in plan.banner:
        draw.text((plan.width // 2, y + _step(line) // 2), line.text, line.colour, _font(line.size), anchor="mm")
        y += _step(line)
    y += unit // 2
    _write_lines(draw, plan.header, unit // 2, y)
    top, _, height, _ = plan.xray
    bottom = max(top + height, plan.height - unit // 2 - _height(plan.caption))
    _write_lines(draw, plan.caption, unit // 2, bottom)
    if plan.bar is None:
        return
    top, left, height, width = plan.bar
    small = _font(unit * 4 // 5)
    for index, word in enumerate(("relative", "activation")):
        draw.text((left, top - 2.6 * unit + index * unit), word, _QUIET, small)
    for value in (1.0, 0.5, 0.0):
        y = round(top + (1 - value) * (height - 1))
        draw.line((left + width, y, left + width + unit // 3, y), fill=_QUIET)
        draw.text((left + width + unit // 2, y), f"{value:.1f}", _TEXT, small, anchor="lm")


def _write_lines(draw: ImageDraw.ImageDraw, lines: Sequence[Line], x: int, y: int) -> None:
    for line in lines:
        font, middle = _font(line.size), y + _step(line) // 2
        if line.chip:
            half = round(line.size * 0.75)
            right = x + round(font.getlength(line.text)) + line.size
            draw.rectangle((x, middle - half, right, middle + half), fill=line.colour)
            draw.text((x + line.size // 2, middle), line.text, _BLACK, font, anchor="lm")
        else:
            draw.text((x, middle), line.text, line.colour, font, anchor="lm")
        y += _step(line)


@lru_cache(maxsize=32)
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def build_heatmap(
    source: Dataset,
    pixels: NDArray[np.float32],
    prediction: Prediction,
    manifest: Manifest,
    *,
    when: datetime,
    size: int,
) -> Dataset:
    """The picture as an RGB Secondary Capture in a series of its own; the same arguments give the same bytes.

    Parameters
    ----------
    source
        Header of the screened image from `dicom_node.normalise`.
    pixels
        Its pixels, as `draw_heatmap` takes them.
    when
        When the prediction was made; aware.

    Raises
    ------
    ResultError
        Where prediction and manifest do not fit together or a number is not finite.
    """
    check(prediction, manifest)
    local = local_time(source, when)
    instance_uid = uids.heatmap_uid(
        source.SOPInstanceUID,
        prediction.bundle,
        prediction.release,
        prediction.operating_point,
        thresholds=thresholds(prediction),
        weights_sha256=weights_sha256(manifest),
        size=size,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # highdicom on names of one component, pydicom on leap seconds: both legal
        heatmap = SCImage.from_ref_dataset(
            source,
            pixel_array=draw_heatmap(pixels, prediction, manifest, size=size),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),  # highdicom wants one; ours follows
            series_number=SERIES_NUMBER,
            series_description=SERIES_DESCRIPTION,
            **series_and_maker(instance_uid, local),
        )
        seal(heatmap, source, when, equipment(prediction, manifest, when))
        _describe(heatmap, source, prediction)
        heatmap.add_new("DateOfSecondaryCapture", "DA", local.strftime("%Y%m%d"))
        heatmap.add_new("TimeOfSecondaryCapture", "TM", local.strftime("%H%M%S"))
    return heatmap


def _describe(heatmap: Dataset, source: Dataset, prediction: Prediction) -> None:
    """Say what the picture is and what it was made from (PS3.3 C.7.6.1, C.8.6.1)."""
    heatmap.ImageType = ["DERIVED", "SECONDARY"]
    heatmap.ConversionType = "WSD"
    # Unpaired, or Laterality would be required (type 2C); admission lets nothing but chests through.
    heatmap.BodyPartExamined = "CHEST"
    heatmap.PatientOrientation = source.get("PatientOrientation") or ""
    heatmap.RecognizableVisualFeatures = "NO"
    # Of the patient's identity in the pixels: where the source does not say, neither can we.
    if source.get("BurnedInAnnotation"):
        heatmap.BurnedInAnnotation = source.BurnedInAnnotation
    # Once lossy, lossy for ever (PS3.3 C.7.6.1.1.5).
    heatmap.LossyImageCompression = source.get("LossyImageCompression") or "00"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in source and heatmap.LossyImageCompression == "01":
            setattr(heatmap, keyword, source[keyword].value)
    heatmap.DerivationDescription = "AI output over the X-ray. For research, not for diagnostic use"
    if prediction.maps:
        heatmap.DerivationCodeSequence = [CodedConcept("130403", "DCM", "Gradient-weighted class activation")]
    image = Dataset()
    image.ReferencedSOPClassUID = source.SOPClassUID
    image.ReferencedSOPInstanceUID = source.SOPInstanceUID
    image.PurposeOfReferenceCodeSequence = [
        CodedConcept("121322", "DCM", "Source image for image processing operation")
    ]
    heatmap.SourceImageSequence = [image]
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    series = Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ReferencedInstanceSequence = [reference]
    heatmap.ReferencedSeriesSequence = [series]
