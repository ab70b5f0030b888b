"""Figures as people read them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dicom_node.evaluation.shape import Figure, OfRuns

NOTHING = "–"
DISCLAIMER = "Research and decision support; no clinical validity was measured."


def interval(found: Figure | None, *, runs: bool = False) -> str:
    """A fraction with its interval: ``0.643 [0.581, 0.702]``; with `runs` the mean and deviation of the runs too."""
    if found is None:
        return NOTHING
    return signed(f"{found['value']:.3f}{between(found, '.3f')}{of_runs(found, '.3f') if runs else ''}")


def difference(found: Figure | None) -> str:
    """A difference with its sign: ``+0.021 [-0.040, +0.080]``."""
    if found is None:
        return NOTHING
    return signed(f"{found['value']:+.3f}{between(found, '+.3f')}")


def share(found: Figure | None) -> str:
    """A proportion in percent with its counts: ``98.0 % [93.0, 99.8], 98 of 100``."""
    if found is None:
        return NOTHING
    of = f", {found['hits']} of {found['n']}" if "hits" in found else ""
    return signed(in_percent(found) + of)


def number(value: float, digits: int = 4) -> str:
    """A score or a threshold."""
    return signed(f"{value:.{digits}g}")


def in_percent(found: Figure, *, runs: bool = False) -> str:
    """A proportion in percent with its interval."""
    beside = of_runs(found, ".1f", 100) if runs else ""
    return f"{100 * found['value']:.1f} %{between(found, '.1f', 100)}{beside}"


def between(found: Figure, form: str, factor: float = 1) -> str:
    """The interval; empty where there is none."""
    if found["low"] is None or found["high"] is None:
        return ""
    return f" [{found['low'] * factor:{form}}, {found['high'] * factor:{form}}]"


def of_runs(found: Figure, form: str, factor: float = 1) -> str:
    """Mean and deviation over runs; empty where there was one."""
    runs: OfRuns | None = found.get("of_runs")
    if runs is None or runs["deviation"] is None:
        return ""
    return f"; runs {runs['mean'] * factor:{form}} ± {runs['deviation'] * factor:{form}}"


def signed(text: str) -> str:
    """A minus sign in place of the hyphen before a digit, and no sign before a zero."""
    text = re.sub(r"(?<![\w.])[-+](0\.?0*)(?![\d.])", r"\1", text)
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)
