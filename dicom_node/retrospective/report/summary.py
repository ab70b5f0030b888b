"""The gathered scores in few numbers: how they spread over time, scanners and views, and how far members agree."""

from __future__ import annotations

from array import array
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicom_node.retrospective.report.gathering import Gathered

PERCENTILES = (5, 25, 50, 75, 95)
_MOST_DAYS = 62  # that are told one by one; more of them are told by month


@dataclass(frozen=True, slots=True)
class Spread:
    """The scores of one group.

    Attributes
    ----------
    percentiles
        At `PERCENTILES`.
    """

    group: str
    studies: int
    flagged: int
    percentiles: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the members of the ensemble have in common, two by two.

    Attributes
    ----------
    correlation
        Spearman's, of their probabilities; None where one of them always says the same.
    same_half, same_side
        Shares of the images on which both lie on the same side of 0.5, and of the threshold.
    """

    members: tuple[str, ...]
    images: int
    correlation: tuple[tuple[float | None, ...], ...]
    same_half: tuple[tuple[float, ...], ...]
    same_side: tuple[tuple[float, ...], ...]


def spreads(gathered: Gathered, name: str) -> list[Spread]:
    """By ``scanner`` or ``view``, the largest group first; by ``day`` the days, or where they are many the months."""
    groups, flags = gathered.scores.get(name, {}), gathered.flags[name]
    if name != "day":
        return [
            _spread(group, groups[group], flags[group]) for group in sorted(groups, key=lambda one: _size(groups, one))
        ]
    length = 8 if len(groups) <= _MOST_DAYS else 6
    scores: dict[str, array[float]] = defaultdict(lambda: array("f"))
    flagged: dict[str, int] = defaultdict(int)
    for day, found in groups.items():
        scores[day[:length]].extend(found)
        flagged[day[:length]] += flags[day]
    return [_spread(_date(day), scores[day], flagged[day]) for day in sorted(scores)]


def _size(groups: Mapping[str, Sequence[float]], name: str) -> tuple[int, str]:
    return -len(groups[name]), name


def _date(day: str) -> str:
    return "-".join(filter(None, (day[:4], day[4:6], day[6:]))) or "no date"


def _spread(group: str, scores: Sequence[float], flagged: int) -> Spread:
    found = np.percentile(np.asarray(scores), PERCENTILES)
    return Spread(group, len(scores), flagged, tuple(float(value) for value in found))


def agreement(gathered: Gathered) -> Agreement | None:
    """Over the images that the most usual set of members answered; None of fewer than two members or images."""
    names, flat = max(gathered.members.items(), key=lambda one: (len(one[1]), one[0]), default=((), array("d")))
    rows = np.asarray(flat).reshape(-1, len(names) + 1)
    if len(names) < 2 or len(rows) < 2:
        return None
    values, thresholds = rows[:, :-1].T, rows[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.corrcoef(rankdata(values, axis=1))
    return Agreement(
        members=names,
        images=len(rows),
        correlation=tuple(tuple(float(one) if np.isfinite(one) else None for one in row) for row in correlation),
        same_half=_shares(values >= 0.5),
        same_side=_shares(values >= thresholds),
    )


def _shares(above: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> tuple[tuple[float, ...], ...]:
    """Of each two rows, how often they are the same."""
    return tuple(tuple(float((one == other).mean()) for other in above) for one in above)
