"""What a page holds: text, plots and tables; `macros.html.j2` writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under `head`."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of an experiment; folded unless `shown`."""

    title: str
    text: tuple[str, ...] = ()
    plots: tuple[tuple[str, Markup], ...] = ()  # caption, drawing
    tables: tuple[Table, ...] = ()
    shown: bool = False


def environment(folder: Path) -> Environment:
    """Templates of that folder, with the style sheet and the macros of this one."""
    made = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["unbroken"] = _unbroken
    return made


def _unbroken(text: str) -> str:
    """The text, its intervals never broken over two lines."""
    return re.sub(r"\[[^][]*\]", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
