"""A chapter of a generated document: Markdown, and drawings that become files beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.evaluation import plots
from training.evaluation.sections import in_words
from training.evaluation.wording import prose

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from markupsafe import Markup

    from dicom_node.evaluation.plots import Mark


@dataclass(frozen=True, slots=True)
class Drawing:
    """A plot that is drawn when its file is written; `caption` is what those read who do not see it."""

    name: str
    caption: str
    draw: Callable[[], Markup]


@dataclass(frozen=True, slots=True)
class Chapter:
    """Blocks of Markdown and drawings, in order."""

    title: str
    parts: tuple[str | Drawing, ...]


def paragraph(*sentences: str) -> str:
    """The sentences that are not empty, filled."""
    return prose(" ".join(sentence for sentence in sentences if sentence)) + "\n"


def bullets(lines: Sequence[str]) -> str:
    """A list."""
    return "".join(f"{prose(f'- {line}', '  ')}\n" for line in lines)


def forest(name: str, caption: str, marks: Sequence[Mark], axis: str, level: float | None = 0.5) -> Drawing:
    """A forest plot of the marks."""
    return Drawing(slug(name), caption, lambda: plots.forest(marks, axis, f"{name}: {in_words(marks)}", level=level))


def slug(text: str) -> str:
    """The text as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def listed(words: Sequence[str]) -> str:
    """The words as a sentence lists them."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
