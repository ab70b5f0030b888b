"""Plots as inline SVG: no file beside the page, and its colours follow the page, light or dark.

The colours are those of Okabe and Ito (2008), told apart by colour-blind readers; lines differ in their dashes too.
matplotlib is imported when the first plot is drawn: nothing else needs it.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes

    from dicom_node.evaluation.shape import Band, Curve, Figure, Histogram

STYLE = Path(__file__).with_name("page.css")  # of the pages that hold them
_INK = "#101418"
# What is drawn in each colour becomes a variable of the page's style sheet, which knows light and dark.
COLOURS = {
    "blue": "#0072b2",
    "vermillion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "orange": "#e69f00",
    "sky": "#56b4e9",
}
_DASHES = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_OF_CLASS = {
    "positive": "vermillion",
    "covid19": "vermillion",
    "negative": "blue",
    "other": "blue",
    "normal": "green",
    "pneumonia": "blue",
    "other_disease": "purple",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
_WIDTH = 4.4  # inches, of every plot: a phone shows them one below the other at their own size


@dataclass(frozen=True, slots=True)
class Mark:
    """One line of a forest plot; `baseline` is drawn hollow."""

    label: str
    figure: Figure
    baseline: bool = False


def roc(network: Curve, baselines: Mapping[str, Curve], alt: str, band: Band | None = None) -> Markup:
    """ROC of the network, in its band, and in it those of the baselines that see no lung."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.7, alpha=0.5)
        for (name, curve), style, colour in zip(baselines.items(), _DASHES, _apart(), strict=False):
            axes.plot(curve["x"], curve["y"], color=colour, linestyle=style, label=_label(name))
        _shade(axes, band)
        axes.plot(network["x"], network["y"], color=COLOURS["blue"], linewidth=2.2, label="network")
        _unit_square(axes, "1 − specificity", "Sensitivity")
        axes.legend(loc="lower right")

    return drawn(draw, alt)


def precision_recall(network: Curve, share: float, alt: str, band: Band | None = None) -> Markup:
    """Precision over recall, in its band; the level line is the share of positives, what a coin would give."""

    def draw(axes: Axes) -> None:
        axes.axhline(share, color=_INK, linewidth=0.7, alpha=0.5)
        axes.text(0.01, min(share + 0.02, 0.94), "share of positives", fontsize=8)
        _shade(axes, band)
        axes.plot(network["x"], network["y"], color=COLOURS["blue"], linewidth=2.2)
        _unit_square(axes, "Recall (sensitivity)", "Precision")

    return drawn(draw, alt)


def histogram(found: Histogram, name: str, alt: str) -> Markup:
    """Share of each class' images in each bin of a score, so that a small class is seen beside a large one."""

    def draw(axes: Axes) -> None:
        used: list[str] = []
        for (label, counts), style in zip(found["counts"].items(), ("-", *_DASHES) * 3, strict=False):
            total = sum(counts)
            colour = _colour_of(label, used)
            used.append(colour)
            share = [count / max(total, 1) for count in counts]
            if len(found["counts"]) < 3:  # more of them would hide each other
                axes.stairs(share, found["edges"], color=colour, alpha=0.22, fill=True)
            axes.stairs(
                share, found["edges"], color=colour, linestyle=style, linewidth=1.4, label=_label(f"{label} ({total})")
            )
        axes.set_xlabel(name)
        axes.set_ylabel("Share of the class")
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

    return drawn(draw, alt)


def confusion(names: Sequence[str], counts: Sequence[Sequence[int]], alt: str) -> Markup:
    """Counts, and of each row their share, which is the depth of the colour; rows are the true class."""

    def draw(axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        axes.grid(visible=False)
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                share = count / max(sum(row), 1)
                axes.add_patch(Rectangle((j, i), 1, 1, color=COLOURS["blue"], alpha=0.5 * share, linewidth=0))
                axes.text(j + 0.5, i + 0.44, str(count), ha="center", va="center", fontsize=11)
                axes.text(j + 0.5, i + 0.72, f"{100 * share:.0f} %", ha="center", va="center", fontsize=8)
        middle = [i + 0.5 for i in range(len(names))]
        axes.set_xticks(middle, [name.replace("_", "\n") for name in names])
        axes.set_yticks(middle, [name.replace("_", "\n") for name in names])
        axes.set(xlim=(0, len(names)), ylim=(len(names), 0), xlabel="Predicted", ylabel="True")
        axes.tick_params(length=0)

    return drawn(draw, alt)


def reliability(curve: Curve, alt: str) -> Markup:
    """Share of positives over the mean probability of ten bins; the diagonal is what a probability promises."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.7, alpha=0.5)
        axes.plot(curve["x"], curve["y"], color=COLOURS["blue"], marker="o", markersize=4)
        _unit_square(axes, "Calibrated probability", "Share of positives")

    return drawn(draw, alt)


def counted_reliability(curve: Curve, found: Histogram, alt: str) -> Markup:
    """`reliability`, and below it how many images of either answer have such a probability."""

    def draw(axes: Axes) -> None:
        figure = axes.get_figure()
        axes.remove()
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))  # type: ignore[union-attr]
        above.plot([0, 1], [0, 1], color=_INK, linewidth=0.7, alpha=0.5)
        above.plot(curve["x"], curve["y"], color=COLOURS["blue"], marker="o", markersize=4, clip_on=False)
        _unit_square(above, "", "Share of positives")
        used: list[str] = []
        for (label, counts), style in zip(found["counts"].items(), ("-", *_DASHES), strict=False):
            used.append(_colour_of(label, used))
            below.stairs(
                counts, found["edges"], color=used[-1], linestyle=style, label=_label(f"{label} ({sum(counts):,})")
            )
        below.set_yscale("symlog", linthresh=1)  # a few images in a bin are to be seen beside hundreds
        tens = [10**power for power in range(5) if 10**power <= max(1, *map(max, found["counts"].values()))]
        below.set_yticks([0, *tens], ["0", *map(str, tens)], minor=False)
        below.minorticks_off()
        below.set(xlabel="Calibrated probability", ylabel="Images", ylim=(0, None))
        below.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

    return drawn(draw, alt, height=4.4)


def decision(model: Curve, everything: Curve, alt: str) -> Markup:
    """Net benefit of the model, of calling everybody positive, and of calling nobody so (Vickers and Elkin 2006)."""

    def draw(axes: Axes) -> None:
        highest = max([*model["y"], *everything["y"], 0.01])
        axes.axhline(0, color=_INK, linewidth=0.9, label="nobody")
        axes.plot(everything["x"], everything["y"], color=COLOURS["vermillion"], linestyle="--", label="everybody")
        axes.plot(model["x"], model["y"], color=COLOURS["blue"], linewidth=2.2, label="network")
        axes.set(xlim=(0, 1), ylim=(-0.25 * highest, 1.1 * highest))
        axes.set(xlabel="Threshold probability", ylabel="Net benefit")
        axes.legend(loc="upper right")

    return drawn(draw, alt)


def forest(marks: Sequence[Mark], name: str, alt: str, *, level: float | None = 0.5) -> Markup:
    """Figures with their intervals one below the other, each under its own name; `level` is where nothing is told."""

    def draw(axes: Axes) -> None:
        ends = [end for mark in marks for end in (mark.figure["low"], mark.figure["high"], mark.figure["value"])]
        known = [end for end in [*ends, level] if end is not None]
        low, high = min(known), max(known)
        room = max(high - low, 0.02) * 0.05
        axes.set(xlim=(low - room, high + room), ylim=(len(marks) - 0.3, -0.75), xlabel=name)
        for place, mark in enumerate(marks):
            colour = COLOURS["vermillion" if mark.baseline else "blue"]
            figure = mark.figure
            if level is not None:  # at each line alone, for the names to stay clear of it
                axes.plot([level, level], [place - 0.14, place + 0.14], color=_INK, linewidth=1.1)
            if figure["low"] is not None and figure["high"] is not None:
                style = "--" if mark.baseline else "-"
                axes.plot([figure["low"], figure["high"]], [place, place], color=colour, linestyle=style)
            shape, inside = ("D", "none") if mark.baseline else ("o", colour)
            axes.plot([figure["value"]], [place], shape, color=colour, markerfacecolor=inside, markersize=6)
            # Names stand above their lines: beside them a phone has no room.
            where = axes.get_yaxis_transform()
            axes.text(0.0, place - 0.26, _short(mark.label), transform=where, va="bottom", fontsize=8.5)
            axes.text(
                1.0, place - 0.26, f"{figure['value']:.3f}", transform=where, va="bottom", ha="right", fontsize=8.5
            )
        axes.set_yticks([])
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)

    return drawn(draw, alt, height=0.75 + 0.4 * len(marks))


def as_file(drawing: Markup) -> str:
    """A drawing as a file of its own: dark on white, as no page gives it colours, in its own size."""
    svg = str(drawing).replace("currentColor", _INK)
    for name, colour in COLOURS.items():
        svg = svg.replace(f"var(--{name})", colour)
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{width}pt" '
        f'height="{height}pt" font-family="DejaVu Sans, Verdana, sans-serif"'
    )
    svg = re.sub(r"[ \t]*\n\s*", "\n", svg.replace("<svg", head, 1))
    return svg.replace(">", '>\n<rect width="100%" height="100%" fill="#fff"/>', 1) + "\n"


def _shade(axes: Axes, band: Band | None) -> None:
    if band is not None:
        colour = COLOURS["blue"]
        axes.fill_between(band["x"], band["low"], band["high"], color=colour, alpha=0.18, linewidth=0, label="95 %")


def _unit_square(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y)


def _apart() -> list[str]:
    """Colours of what stands beside the network."""
    return [COLOURS[name] for name in ("vermillion", "green", "purple", "orange")]


def _colour_of(label: str, used: Sequence[str]) -> str:
    """The same class has the same colour in every plot; an unknown one takes what is left."""
    wanted = COLOURS.get(_OF_CLASS.get(label, ""), "")
    if wanted and wanted not in used:
        return wanted
    return next((colour for colour in COLOURS.values() if colour not in used), COLOURS["sky"])


def _short(text: str) -> str:
    """As much as fits into one line beside the value."""
    return shorten(text, 64, placeholder=" …")


def _label(text: str) -> str:
    """The legend leaves out what begins with an underscore."""
    return text.lstrip("_") or "-"


def drawn(draw: Callable[[Axes], None], alt: str, height: float = 3.6) -> Markup:
    """The plot as an SVG element that says `alt` to those who do not see it."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Drawing

    # The salt makes names inside the element differ from plot to plot, and the same each time.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": alt}):
        drawing = Drawing(figsize=(_WIDTH, height), layout="constrained")
        draw(drawing.subplots())
        text = io.StringIO()
        drawing.savefig(text, format="svg", metadata={"Date": None})
    return Markup(_inline(text.getvalue(), alt))  # noqa: S704  (matplotlib has escaped the labels)


def _inline(svg: str, alt: str) -> str:
    """The element alone: no prologue, size or font of its own, no names that nothing refers to, the page's colours."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' (?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", svg, count=5)
    svg = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)
    svg = re.sub(r" font-family: [^;]*;", "", svg)
    svg = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda place: re.sub(r"(\.\d\d)\d+", r"\1", place[0]), svg)
    svg = svg.replace(_INK, "currentColor")
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1).strip()
