"""Figures as people read them, in HTML and in Markdown."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any

from dicom_node.evaluation.wording import NOTHING, between, difference, in_percent, interval, of_runs, signed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicom_node.evaluation.shape import Baseline, Figure, Task

HONEST = "covid19 against pneumonia, cohen"
POOLED = "covid19 against the rest, pooled"
OWN = "covid19 against the rest, own test"
CHANGED = "Changed for this training:"  # how `training.train.settings_changed` begins
# Kinds of `training.papers.paper.KINDS` by the unit in which they are read.
_PERCENT = (
    "sensitivity",
    "specificity",
    "specificity at sensitivity",
    "sensitivity at sensitivity",
    "accuracy",
    "precision",
    "recall",
    "f1",
    "micro precision",
    "micro recall",
)
_COUNTS = ("images", "patients", "training images", "confusion")


def measured(found: Figure, kind: str) -> str:
    """Our figure in the unit of its kind, with its interval and what it was run by run."""
    if kind in _PERCENT:
        return signed(in_percent(found, runs=True))
    form = ".0f" if kind in _COUNTS else ".3f" if kind == "auc" else ".4g"
    middle = f"{found['value']:.1f}".removesuffix(".0") if kind in _COUNTS else f"{found['value']:{form}}"
    return signed(f"{middle}{between(found, form)}{'' if kind in _COUNTS else of_runs(found, form)}")


def published(value: float, kind: str, deviation: float | None = None, deviation_is: str = "") -> str:
    """A paper's number as it was printed, in the same unit."""
    factor, unit = (100, " %") if kind in _PERCENT else (1, "")
    after = f" ± {deviation * factor:.6g}" if deviation is not None else ""
    return signed(f"{value * factor:.6g}{after}{unit}") + (f" ({deviation_is})" if after and deviation_is else "")


def best_baseline(baselines: Mapping[str, Baseline]) -> Baseline | None:
    """Of the forests that see no lung the one with the largest AUC."""
    return max(baselines.values(), key=lambda found: found["auc"]["value"], default=None)


def verdict(found: Figure | None) -> str:
    """What an interval of the network's AUC minus a baseline's says."""
    if found is None or found["low"] is None or found["high"] is None:
        return "not compared"
    if found["low"] > 0:
        return "better than no lung"
    if found["high"] < 0:
        return "worse than no lung"
    return "not told apart from no lung"


def images(record: Mapping[str, Any]) -> str:
    """The images of an experiment by source: ``cohen 437, nih 816``."""
    by_source: dict[str, int] = {}
    for name, count in record["data"]["images"].items():
        source = name.partition("/")[0]
        by_source[source] = by_source.get(source, 0) + count
    return ", ".join(f"{source} {count:,}" for source, count in by_source.items()) or NOTHING


def profile(record: Mapping[str, Any]) -> str:
    """The profile of an experiment: ``small profile``, and whether this training changed it."""
    changed = any(text.startswith(CHANGED) for text in record["differences"][-1:])
    return f"{record['profile']} profile{', changed' if changed else ''}"


def probed(tasks: Mapping[str, Task]) -> str:
    """A line for each question: the AUC, that of the best forest that sees no lung, and the difference."""
    lines = []
    for name, task in tasks.items():
        best = best_baseline(task["baselines"])
        beside = f"; no lung {interval(best['auc'])}, difference {difference(best['difference'])}" if best else ""
        lines.append(f"{name}: AUC {interval(task['figures']['auc'])}{beside}")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.4 h``, ``12 days``."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172_800)):
        if seconds < most:
            amount = seconds / size
            return f"{amount:.1f} {unit}" if unit == "h" and amount < 10 else f"{amount:.0f} {unit}"
    return f"{seconds / 86_400:,.0f} days"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; what would break or decorate a cell is escaped."""
    lines = [[cell(text) for text in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cell(text: str) -> str:
    """Text that Markdown shows as it is."""
    escaped = re.sub(r"([\\`*<>|])", r"\\\1", " ".join(text.split()))
    # An underscore inside a word and brackets without an address behind them mean nothing to Markdown.
    escaped = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)
    return escaped.replace("](", "]\\(")


def prose(text: str, indent: str = "") -> str:
    """A paragraph, or a list item with what follows it under its text, in lines of 120 characters."""
    return textwrap.fill(
        " ".join(text.split()), 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
