"""What an examination finds: one line on one thing, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dicom_node.domain import NodeError


class Level(StrEnum):
    """How bad a finding is: a node works with warnings, and not, or not for long, with a failure."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `remedy` is empty where all is well."""

    check: str
    level: Level
    what: str
    remedy: str = ""


def ok(check: str, what: str) -> Finding:
    """All is well, or the check does not apply and `what` says so."""
    return Finding(check, Level.OK, what)


def warning(check: str, what: str, remedy: str) -> Finding:
    """The node works, but not as one would want."""
    return Finding(check, Level.WARNING, what, remedy)


def failure(check: str, what: str, remedy: str) -> Finding:
    """The node cannot do its work, or not safely."""
    return Finding(check, Level.FAILURE, what, remedy)


def failure_of(check: str, error: NodeError, remedy: str) -> Finding:
    """The failure that an error of the node tells; `remedy` where it names none behind a colon or a semicolon."""
    what, *told = re.split("[:;] ", " ".join(str(error).split()), maxsplit=1)
    return failure(check, what, told[0] if told else remedy)
