"""Plots of a run, as inline SVG."""

from __future__ import annotations

from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np

from dicom_node.evaluation.plots import COLOURS, drawn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup
    from matplotlib.axes import Axes

    from dicom_node.retrospective.report.summary import Spread

MOST_GROUPS = 14
_LONGEST_NAME = 48


def over_time(found: Sequence[Spread], alt: str) -> Markup:
    """Median and quartiles of the probability by day or month, and the share that was flagged."""

    def draw(axes: Axes) -> None:
        _, first, median, third, _ = np.array([one.percentiles for one in found]).T
        places = np.arange(len(found))
        shares = [one.flagged / one.studies for one in found]
        blue, size = COLOURS["blue"], 4 if len(found) <= 31 else 2.5
        axes.fill_between(places, first, third, color=blue, alpha=0.2, linewidth=0)
        axes.plot(places, median, "o-", color=blue, markersize=size, label="median, quartiles")
        axes.plot(places, shares, "D--", color=COLOURS["vermillion"], markersize=size, label="share flagged")
        axes.set(ylim=(-0.02, 1.02), xlim=(-0.5, len(found) - 0.5), ylabel="Probability, share")
        step = max(1, -(-len(found) // 6))
        axes.set_xticks(places[::step], [one.group for one in found[::step]], rotation=25, ha="right")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

    return drawn(draw, alt)


def by_group(found: Sequence[Spread], alt: str) -> Markup:
    """Boxes of the probability, whiskers from the 5th to the 95th percentile; at most `MOST_GROUPS` of them."""
    shown = found[:MOST_GROUPS]

    def draw(axes: Axes) -> None:
        boxes = [
            {"whislo": low, "q1": first, "med": median, "q3": third, "whishi": high, "label": ""}
            for low, first, median, third, high in (one.percentiles for one in shown)
        ]
        lines = {"color": COLOURS["blue"], "linewidth": 1.2}
        axes.bxp(
            boxes,
            orientation="horizontal",
            showfliers=False,
            widths=0.35,
            boxprops=lines,
            whiskerprops=lines,
            capprops=lines,
            medianprops={"color": COLOURS["vermillion"], "linewidth": 2},
        )
        axes.set(xlim=(-0.02, 1.02), xlabel="Probability", ylim=(len(shown) + 0.5, 0.3))
        axes.set_yticks([])
        for place, one in enumerate(shown, start=1):
            name = shorten(one.group, _LONGEST_NAME, placeholder=" …")
            axes.text(0, place - 0.26, f"{name} ({one.studies:,})", va="bottom", fontsize=8.5)

    return drawn(draw, alt, 0.8 + 0.5 * len(shown))
