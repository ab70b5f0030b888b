"""Where everything goes in the heatmap: banner, answers, X-ray with its colour bar, the members' own maps, captions."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from dicom_node.activation import shares
from dicom_node.domain import SITE, Decision
from dicom_node.lettering import Line, text_height, text_width, wrapped
from dicom_node.results import find_target, remark_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicom_node.bundle import Manifest
    from dicom_node.domain import MemberMap, Prediction, TargetResult
    from dicom_node.lettering import Colour

    Box = tuple[int, int, int, int]  # top, left, height, width

BANNER = "RESEARCH - NOT FOR DIAGNOSTIC USE"
NO_HEATMAP = "No heatmap: the prediction came without maps."
CAPTION = (
    "Colour: where the networks looked, relative to the strongest point; outline: the region around that point, down "
    "to half of it. There is colour on every image, with a finding or without. Not the extent of disease."
)
ASKED = "The large picture is of the first question alone, {}."
_SCALE = ("relative", "activation")
PANELS = "Small pictures: the map of each method, relative to its own strongest point."
UNCOUNTED = "* has no say in the first question, and no part in the large picture."

LONGEST_TITLE = 120  # of a question, in characters
MANY = 3  # panels that stand one above the other, or
ABREAST = 4  # side by side below a wide X-ray
SMALLEST_PANEL = (96, 48)  # its longer and its shorter side

BACKGROUND = (18, 20, 22)
CARD = (32, 35, 38)
TEXT = (238, 240, 242)
QUIET = (172, 178, 184)
YELLOW = (255, 205, 0)
BLACK = (0, 0, 0)
TRACK = (72, 77, 82)
DECIDED: dict[Decision, Colour] = {
    Decision.FLAGGED: (255, 140, 80),
    Decision.NOT_FLAGGED: (150, 205, 255),
    Decision.INDETERMINATE: (214, 190, 255),
}


@dataclass(frozen=True, slots=True)
class Panel:
    """One member's map over the X-ray; `of` counts the prediction's maps."""

    of: int
    box: Box


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a picture lie, in pixels; boxes are (top, left, height, width).

    `bar` is None in a picture without maps; `unit` is the size of the text; `fills` are painted in their order, before
    everything else.
    """

    height: int
    width: int
    unit: int
    fills: tuple[tuple[Box, Colour], ...]
    banner: tuple[Line, ...]
    header: tuple[Line, ...]
    caption: tuple[Line, ...]
    labels: tuple[Line, ...]
    xray: Box
    bar: Box | None
    panels: tuple[Panel, ...]

    @property
    def lines(self) -> tuple[Line, ...]:
        """All of the text."""
        return *self.banner, *self.header, *self.caption, *self.labels


class _Sheet:
    """Fills and lines as they are put down."""

    def __init__(self) -> None:
        self.fills: list[tuple[Box, Colour]] = []
        self.lines: list[Line] = []

    def fill(self, top: int, left: int, height: int, width: int, colour: Colour) -> None:
        self.fills.append(((top, left, height, width), colour))

    def write(
        self, texts: Sequence[str], size: int, colour: Colour, top: int, left: int, background: Colour = BACKGROUND
    ) -> int:
        """Put the texts one below the other; where the next would begin."""
        for text in texts:
            self.lines.append(Line(text, size, colour, background, left, top + (_step(size) - text_height(size)) // 2))
            top += _step(size)
        return top

    def take(self) -> tuple[Line, ...]:
        """The lines since the last time."""
        taken, self.lines = tuple(self.lines), []
        return taken


@dataclass(frozen=True, slots=True)
class _Grid:
    """Panels of one size in rows and columns; no member where there are no panels."""

    maps: tuple[int, ...] = ()
    titles: tuple[tuple[str, ...], ...] = ()
    columns: int = 0
    cell: tuple[int, int] = (0, 0)  # height and width, with the text
    picture: tuple[int, int] = (0, 0)
    size: int = 0  # of the text
    gap: int = 0
    beside: bool = False
    uncounted: bool = False  # whether any has no part in the large picture

    @property
    def height(self) -> int:
        """Of all cells and what is between them."""
        rows = ceil(len(self.maps) / self.columns) if self.maps else 0
        return rows * (self.cell[0] + self.gap) - self.gap if rows else 0

    @property
    def width(self) -> int:
        """Of all cells and what is between them."""
        return self.columns * (self.cell[1] + self.gap) - self.gap if self.maps else 0


def layout(rows: int, columns: int, prediction: Prediction, manifest: Manifest, *, size: int) -> Layout:
    """Where everything goes in the picture of a `rows` x `columns` source, whose X-ray is `size` on its longer side."""
    unit = max(11, round(size / 38))
    longer = max(rows, columns)
    height, width = max(1, round(rows * size / longer)), max(1, round(columns * size / longer))
    margin = unit // 2
    column = unit + text_width(_SCALE[1], _small(unit)) if prediction.maps else 0
    area = max(height, 9 * unit) if prediction.maps else height
    grid = _panels(prediction.maps, manifest, (height, width), area, unit, max(width + column, 256))
    beside = grid.width + unit if grid.beside else 0
    inner = max(width + column + beside, 256, round(0.62 * size))
    total_width = inner + 2 * margin
    sheet = _Sheet()

    banner = wrapped(BANNER, unit * 5 // 4, inner)
    top = margin // 2 + len(banner) * _step(unit * 5 // 4) + margin // 2
    sheet.fill(0, 0, top, total_width, YELLOW)
    for index, text in enumerate(banner):
        left = (total_width - text_width(text, unit * 5 // 4)) // 2
        sheet.write([text], unit * 5 // 4, BLACK, margin // 2 + index * _step(unit * 5 // 4), left, YELLOW)
    banner_lines = sheet.take()

    top = _answers(sheet, prediction, manifest, unit, top + margin, margin, inner) + margin
    header = sheet.take()

    left = margin + (inner - width - column - beside) // 2
    xray = (top + (area - height) // 2, left, height, width)
    bar = None
    if prediction.maps:
        title = 2 * _step(_small(unit)) + unit
        bar = (top + title, left + width + unit, min(area - title - unit, 16 * unit), unit)
        _scale(sheet, bar, unit)
    if grid.beside:
        panels = _place(sheet, grid, top, left + width + column + unit)
        top += max(area, grid.height)
    else:
        panels = _place(sheet, grid, top + area + unit, margin + (inner - grid.width) // 2)
        top += area + (unit + grid.height if panels else 0)
    labels = sheet.take()

    small = _small(unit)
    top += margin
    for remark in remark_texts(prediction):
        top = sheet.write(wrapped(remark, small, inner), small, TEXT, top, margin)
    for said in (_caption(prediction, manifest, grid), _made_by(prediction)):
        top = sheet.write(wrapped(said, small, inner), small, QUIET, top, margin)
    return Layout(
        height=top + margin,
        width=total_width,
        unit=unit,
        fills=tuple(sheet.fills),
        banner=banner_lines,
        header=header,
        caption=sheet.take(),
        labels=labels,
        xray=xray,
        bar=bar,
        panels=panels,
    )


def _small(unit: int) -> int:
    """The size of what need not be read first."""
    return max(10, unit * 4 // 5)


def _step(size: int) -> int:
    """From line to line."""
    return max(round(size * 1.4), text_height(size))


def _answers(
    sheet: _Sheet, prediction: Prediction, manifest: Manifest, unit: int, top: int, left: int, inner: int
) -> int:
    """A card for each question, side by side where they are wide enough; where they end."""
    count = len(prediction.targets)
    side_by_side = (inner - (count - 1) * unit // 2) // count
    if side_by_side < 12 * unit:
        for result in prediction.targets:
            top = _card(sheet, result, manifest, unit, (top, left, 0, inner)) + unit // 2
        return top - unit // 2
    width = side_by_side
    trial = [_card(_Sheet(), result, manifest, unit, (top, left, 0, width)) for result in prediction.targets]
    for index, result in enumerate(prediction.targets):
        _card(sheet, result, manifest, unit, (top, left + index * (width + unit // 2), max(trial) - top, width))
    return max(trial)


def _card(sheet: _Sheet, result: TargetResult, manifest: Manifest, unit: int, box: Box) -> int:
    """What was asked, what the answer is, and by which numbers; where it ends, or would by its content."""
    top, left, height, width = box
    colour = DECIDED[result.decision]
    edge = max(3, unit // 4)
    card = len(sheet.fills)
    x, y, inner = left + edge + unit // 2, top + unit // 3, width - edge - unit
    title = wrapped(find_target(manifest, result.target).title[:LONGEST_TITLE], unit * 6 // 5, inner)
    y = sheet.write(title, unit * 6 // 5, TEXT, y, x, CARD)
    decision = result.decision.replace("_", " ").upper()
    sheet.fill(y, x, _step(unit), text_width(decision, unit) + unit, colour)
    y = sheet.write([decision], unit, BLACK, y, x + unit // 2, colour) + unit // 4
    small = unit * 9 // 10
    numbers = _numbers(result)
    if text_width(", ".join(numbers), small) <= inner:
        numbers = (", ".join(numbers),)
    y = sheet.write([part for said in numbers for part in wrapped(said, small, inner)], small, TEXT, y, x, CARD)
    y += unit // 4
    thick = max(3, unit // 4)
    sheet.fill(y, x, thick, inner, TRACK)
    sheet.fill(y, x, thick, round(inner * min(max(result.probability, 0.0), 1.0)), colour)
    at = round((inner - 1) * min(max(result.threshold, 0.0), 1.0))
    sheet.fill(y - thick // 2, x + at, thick + 2 * (thick // 2), max(2, unit // 12), TEXT)
    end = max(y + thick + unit // 2, top + height)
    sheet.fills[card:card] = [((top, left, end - top, width), CARD), ((top, left, end - top, edge), colour)]
    return end


def _numbers(result: TargetResult) -> tuple[str, ...]:
    digits = 3
    if f"{result.probability:.3f}" == f"{result.threshold:.3f}" and result.probability != result.threshold:
        digits = 6  # or the picture would seem to contradict itself
    by = " (set by this site)" if result.operating_point == SITE else ""
    return f"Probability {result.probability:.{digits}f}", f"threshold {result.threshold:.{digits}f}{by}"


def _scale(sheet: _Sheet, bar: Box, unit: int) -> None:
    """What stands around the colour bar: its title, its frame, its numbers."""
    top, left, height, width = bar
    small = _small(unit)
    sheet.write(_SCALE, small, QUIET, top - unit - 2 * _step(small), left)
    sheet.fill(top - 1, left - 1, height + 2, width + 2, QUIET)
    for value in (1.0, 0.5, 0.0):
        middle = round(top + (1 - value) * (height - 1))
        sheet.fill(middle, left + width, 1, unit // 3, QUIET)
        sheet.write([f"{value:.1f}"], small, TEXT, middle - _step(small) // 2, left + width + unit // 2)


def _panels(
    maps: Sequence[MemberMap], manifest: Manifest, xray: tuple[int, int], area: int, unit: int, below: int
) -> _Grid:
    """How the members' own maps stand beside a high X-ray or below a wide one; none of a single map or a small picture.

    Parameters
    ----------
    area, below
        Height that there is beside the X-ray, and width that there is below it.
    """
    height, width = xray
    size = max(10, unit * 2 // 3)
    beside = height >= 0.6 * width
    gap = unit * 2 // 3
    count = len(maps)
    columns = ceil(count / MANY) if beside else min(count, ABREAST)
    text = 3 * _step(size)
    if beside:
        picture = (area - (MANY - 1) * gap) // MANY - text
        picture_size = picture, round(picture * width / height)
    else:
        picture = (below - (columns - 1) * gap) // max(columns, 1)
        picture_size = round(picture * height / width), picture
    if count < 2 or max(picture_size) < SMALLEST_PANEL[0] or min(picture_size) < SMALLEST_PANEL[1]:
        return _Grid()
    cell = text + picture_size[0], max(picture_size[1], 8 * unit if beside else 0)
    place = {member.name: index for index, member in enumerate(manifest.members)}
    order = sorted(range(count), key=lambda index: place.get(maps[index].member, len(place)))
    title = {member.name: member.title for member in manifest.members}
    counted = shares(maps, manifest)
    titles = []
    for index in order:
        one = maps[index]
        said = one.name if counted[index] else f"{one.name} *"
        heading = wrapped(title.get(one.member, one.member), size, cell[1], 2)
        titles.append((*heading, *wrapped(said if one.pixels.any() else f"{said} (none)", size, cell[1], 1)))
    return _Grid(tuple(order), tuple(titles), columns, cell, picture_size, size, gap, beside, not all(counted))


def _place(sheet: _Sheet, grid: _Grid, top: int, left: int) -> tuple[Panel, ...]:
    """The panels of the grid, with their texts."""
    panels = []
    for index, (of, texts) in enumerate(zip(grid.maps, grid.titles, strict=True)):
        row, column = divmod(index, grid.columns)
        y, x = top + row * (grid.cell[0] + grid.gap), left + column * (grid.cell[1] + grid.gap)
        lowest = y + grid.cell[0] - grid.picture[0]
        begin = lowest - len(texts) * _step(grid.size)
        begin = sheet.write(texts[:-1], grid.size, TEXT, begin, x)
        sheet.write(texts[-1:], grid.size, QUIET, begin, x)
        panels.append(Panel(of, (lowest, x, *grid.picture)))
    return tuple(panels)


def _caption(prediction: Prediction, manifest: Manifest, grid: _Grid) -> str:
    """What the colours mean."""
    if not prediction.maps:
        return NO_HEATMAP
    said = [CAPTION]
    if len(prediction.targets) > 1:
        said.append(ASKED.format(manifest.targets[0].title[:LONGEST_TITLE]))
    if grid.maps:
        said.append(PANELS)
    if grid.uncounted:
        said.append(UNCOUNTED)
    return " ".join(said)


def _made_by(prediction: Prediction) -> str:
    """The release and its operating points."""
    points = dict.fromkeys(result.operating_point or prediction.operating_point for result in prediction.targets)
    return f"Bundle {prediction.bundle}, release {prediction.release}, operating point {', '.join(points)}"
