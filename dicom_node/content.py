"""The content tree of a Structured Report (PS3.3 C.17.3) as plain values, and its encoding.

What a constructor accepts is legal in Comprehensive 3D, Comprehensive and Enhanced SR alike: lengths, numbers, UIDs,
and which value type may stand to which by which relationship.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from dicom_node.explicit_vr import (
    check_cited,
    check_text,
    check_uid,
    decimal,
    element,
    numbers,
    sequence,
    text,
    uid,
)
from dicom_node.results import ResultError

if TYPE_CHECKING:
    from collections.abc import Iterable

CONTENT_SEQUENCE = 0x0040A730
CONCEPT_NAME = 0x0040A043


class Relationship(StrEnum):
    """How an item stands to its parent (PS3.3 table C.17.3-8), of the types that are used here."""

    CONTAINS = "CONTAINS"
    HAS_OBS_CONTEXT = "HAS OBS CONTEXT"
    HAS_ACQ_CONTEXT = "HAS ACQ CONTEXT"
    HAS_CONCEPT_MOD = "HAS CONCEPT MOD"
    INFERRED_FROM = "INFERRED FROM"
    SELECTED_FROM = "SELECTED FROM"


# PS3.3 table A.35.2-2, Enhanced SR, the strictest of the three; value types of children by parent and relationship.
_FACTS = frozenset({"TEXT", "CODE", "NUM", "UIDREF"})
_SEEN = frozenset({"IMAGE", "SCOORD"})
_LEGAL: dict[tuple[str, Relationship], frozenset[str]] = {
    ("CONTAINER", Relationship.CONTAINS): _FACTS | _SEEN | {"CONTAINER"},
    ("CONTAINER", Relationship.HAS_OBS_CONTEXT): _FACTS,
    **{(parent, Relationship.HAS_ACQ_CONTEXT): _FACTS | {"CONTAINER"} for parent in ("CONTAINER", "IMAGE", "NUM")},
    **{
        (parent, Relationship.HAS_CONCEPT_MOD): frozenset({"TEXT", "CODE"})
        for parent in ("CONTAINER", *sorted(_FACTS | _SEEN))
    },
    **{(parent, Relationship.INFERRED_FROM): _FACTS | _SEEN for parent in ("TEXT", "CODE", "NUM")},
    ("SCOORD", Relationship.SELECTED_FROM): frozenset({"IMAGE"}),
}


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept (PS3.3 8.8) whose value is short enough to stand in Code Value (0008,0100)."""

    value: str
    scheme: str
    meaning: str

    def __post_init__(self) -> None:
        """Refuse what the attributes cannot hold."""
        check_text(self.value, "SH", "Code Value (0008,0100)")
        check_text(self.scheme, "SH", "Coding Scheme Designator (0008,0102)")
        check_text(self.meaning, "LO", "Code Meaning (0008,0104)")

    @property
    def encoded(self) -> bytes:
        """The elements of an item of a code sequence."""
        return (
            text(0x00080100, "SH", self.value)
            + text(0x00080102, "SH", self.scheme)
            + text(0x00080104, "LO", self.meaning)
        )


@dataclass(frozen=True, slots=True)
class Item:
    """What every content item has."""

    value_type: ClassVar[str]

    relationship: Relationship
    name: Code
    children: tuple[Item, ...] = ()

    def __post_init__(self) -> None:
        """Refuse children that may not stand there."""
        check_children(self.value_type, self.children)


@dataclass(frozen=True, slots=True)
class Container(Item):
    """A heading; `template` is the identifier of the DCMR template that its content follows, if any."""

    value_type = "CONTAINER"

    template: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeItem(Item):
    """A coded value."""

    value_type = "CODE"

    value: Code


@dataclass(frozen=True, slots=True, kw_only=True)
class TextItem(Item):
    """A text."""

    value_type = "TEXT"

    value: str

    def __post_init__(self) -> None:
        """Refuse what a Text Value cannot hold."""
        check_children(self.value_type, self.children)
        check_text(self.value, "UT", f"{self.name.meaning}: Text Value (0040,A160)")


@dataclass(frozen=True, slots=True, kw_only=True)
class UidItem(Item):
    """A UID that is not a reference to an instance."""

    value_type = "UIDREF"

    value: str

    def __post_init__(self) -> None:
        """Refuse what is not a UID."""
        check_children(self.value_type, self.children)
        check_uid(self.value, f"{self.name.meaning}: UID (0040,A124)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Num(Item):
    """A number; one that is no integer stands in Floating Point Value (0040,A161) too, with all its digits."""

    value_type = "NUM"

    value: float
    unit: Code

    def __post_init__(self) -> None:
        """Refuse what is not finite."""
        check_children(self.value_type, self.children)
        if not math.isfinite(self.value):
            raise ResultError(f"{self.name.meaning}: Numeric Value (0040,A30A) is {self.value!r}: not a finite number")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageItem(Item):
    """A reference to an image of one frame."""

    value_type = "IMAGE"

    sop_class_uid: str
    sop_instance_uid: str

    def __post_init__(self) -> None:
        """Refuse what cannot be cited."""
        check_children(self.value_type, self.children)
        check_cited(self.sop_class_uid, "Referenced SOP Class UID (0008,1150)")
        check_cited(self.sop_instance_uid, "Referenced SOP Instance UID (0008,1155)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Polyline(Item):
    """Spatial coordinates on the image that they are selected from (PS3.3 C.18.6).

    Attributes
    ----------
    points
        (column, row) in pixels, from the top left corner of the top left pixel; closed where the last is the first.
    """

    value_type = "SCOORD"

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        """Refuse coordinates that are none, and those of no image."""
        check_children(self.value_type, self.children)
        if len(self.points) < 2 or not all(
            math.isfinite(value) and value >= 0 for point in self.points for value in point
        ):
            raise ResultError(f"{self.name.meaning}: Graphic Data (0070,0022) is no polyline of finite positions")
        if not any(child.relationship is Relationship.SELECTED_FROM for child in self.children):
            raise ResultError(f"{self.name.meaning}: the coordinates are selected from no image")


def check_children(value_type: str, children: Iterable[Item]) -> None:
    """Refuse children that an item of this value type may not have.

    Raises
    ------
    ResultError
    """
    for child in children:
        if child.value_type not in _LEGAL.get((value_type, child.relationship), ()):
            raise ResultError(f"{value_type} {child.relationship} {child.value_type} is not legal in Enhanced SR")


def encode_item(item: Item) -> bytes:
    """The elements of the item and of everything below it, explicit VR little endian."""
    cited = polyline = b""
    if isinstance(item, ImageItem):
        cited = sequence(0x00081199, (reference(item.sop_class_uid, item.sop_instance_uid),))
    elif isinstance(item, Polyline):
        polyline = numbers(0x00700022, "FL", *(value for point in item.points for value in point)) + _POLYLINE
    below = sequence(CONTENT_SEQUENCE, map(encode_item, item.children)) if item.children else b""
    head = _head(item.relationship, item.value_type) + _name(item.name)
    return cited + head + _value(item) + below + polyline


def reference(sop_class_uid: str, sop_instance_uid: str) -> bytes:
    """The elements of an item that cites an instance (PS3.3 table 10-11)."""
    return uid(0x00081150, sop_class_uid) + uid(0x00081155, sop_instance_uid)


def _value(item: Item) -> bytes:
    """What stands between the name and the children."""
    if isinstance(item, CodeItem):
        return sequence(0x0040A168, (item.value.encoded,))
    if isinstance(item, TextItem):
        return text(0x0040A160, "UT", item.value)
    if isinstance(item, UidItem):
        return uid(0x0040A124, item.value)
    if isinstance(item, Num):
        floating = numbers(0x0040A161, "FD", item.value) if isinstance(item.value, float) else b""
        measured = _unit(item.unit) + floating + text(0x0040A30A, "DS", decimal(item.value))
        return sequence(0x0040A300, (measured,))
    if isinstance(item, Container):
        return _CONTINUOUS + (sequence(0x0040A504, (template(item.template),)) if item.template else b"")
    return b""


@lru_cache(maxsize=64)
def _head(relationship: Relationship, value_type: str) -> bytes:
    return text(0x0040A010, "CS", relationship) + text(0x0040A040, "CS", value_type)


@lru_cache(maxsize=512)
def _name(name: Code) -> bytes:
    return sequence(CONCEPT_NAME, (name.encoded,))


@lru_cache(maxsize=64)
def _unit(unit: Code) -> bytes:
    return sequence(0x004008EA, (unit.encoded,))


@lru_cache(maxsize=8)
def template(identifier: str) -> bytes:
    """The elements of an item of Content Template Sequence (0040,A504), of a template of DCMR."""
    return text(0x00080105, "CS", "DCMR") + text(0x0040DB00, "CS", identifier)


_CONTINUOUS = text(0x0040A050, "CS", "CONTINUOUS")
_POLYLINE = element(0x00700023, "CS", b"POLYLINE")
