"""Plots of a run, as inline SVG."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np

from dicom_node.evaluation.plots import COLOURS, drawn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup
    from matplotlib.axes import Axes

_MOST_GROUPS, _MOST_DAYS = 14, 62


def over_time(days: Mapping[str, Sequence[float]], flagged: Mapping[str, int], alt: str) -> Markup:
    """Median and quartiles of the probability, and the share that was flagged: by day, or by month where many are."""
    length = 8 if len(days) <= _MOST_DAYS else 6
    scores: dict[str, list[float]] = defaultdict(list)
    flags: Counter[str] = Counter()
    for day, of_day in days.items():
        scores[day[:length]].extend(of_day)
        flags[day[:length]] += flagged.get(day, 0)
    names = sorted(scores)

    def draw(axes: Axes) -> None:
        quartiles = np.array([np.percentile(scores[name], (25, 50, 75)) for name in names]).T
        places = np.arange(len(names))
        shares = [flags[name] / len(scores[name]) for name in names]
        axes.fill_between(places, quartiles[0], quartiles[2], color=COLOURS["blue"], alpha=0.2, linewidth=0)
        axes.plot(places, quartiles[1], "o-", color=COLOURS["blue"], markersize=4, label="median, quartiles")
        axes.plot(places, shares, "D--", color=COLOURS["vermillion"], markersize=4, label="share flagged")
        axes.set(ylim=(-0.02, 1.02), xlim=(-0.5, len(names) - 0.5))
        step = max(1, -(-len(names) // 6))
        shown = ["-".join(filter(None, (name[:4], name[4:6], name[6:]))) or "no date" for name in names[::step]]
        axes.set_xticks(places[::step], shown, rotation=25, ha="right")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2)

    return drawn(draw, alt)


def by_group(groups: Mapping[str, Sequence[float]], alt: str) -> Markup:
    """Boxes of the probability by group, the largest groups first; whiskers from the 5th to the 95th percentile."""
    names = sorted(groups, key=lambda name: -len(groups[name]))[:_MOST_GROUPS]

    def draw(axes: Axes) -> None:
        boxes = []
        for name in names:
            low, first, median, third, high = np.percentile(groups[name], (5, 25, 50, 75, 95))
            boxes.append({"whislo": low, "q1": first, "med": median, "q3": third, "whishi": high, "label": ""})
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
        axes.set(xlim=(-0.02, 1.02), xlabel="Probability", ylim=(len(names) + 0.5, 0.3))
        axes.set_yticks([])
        for place, name in enumerate(names, start=1):
            axes.text(0, place - 0.26, f"{name} ({len(groups[name])})", va="bottom", fontsize=8.5)

    return drawn(draw, alt, 0.8 + 0.5 * len(names))
