"""Tables in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.uid import UID

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dicom_node.content import Code


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Head and rows; a pipe in a cell is text."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def uid(value: str) -> str:
    """A UID's name and itself."""
    return f"{UID(value).name} `{value}`"


def status(value: int) -> str:
    """A status or reason in hexadecimal."""
    return f"`{value:04X}`"


def attribute(keyword: str) -> tuple[str, str]:
    """Name and tag of the attribute."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword  # noqa: S101 - keywords are written in the program
    return dictionary_description(tag), f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def coded(code: Code) -> str:
    """A code as documents of the standard write it."""
    return f'({code.value}, {code.scheme}, "{code.meaning}")'


def yes(holds: bool) -> str:
    """A tick or nothing."""
    return "yes" if holds else ""
