"""Data elements as bytes: explicit VR little endian, defined lengths, text in UTF-8 (PS3.5 7.1.2).

A report has some three thousand elements. As objects of a DICOM library they cost a hundred times what they cost here.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag
from pydicom.valuerep import format_number_as_ds

from dicom_node.results import ResultError

if TYPE_CHECKING:
    from collections.abc import Iterable

LONG = frozenset({"SQ", "UT"})  # of those written here: two reserved bytes and a length of 32 bits
LONGEST = {"CS": 16, "DT": 26, "LO": 64, "SH": 16, "ST": 1024}  # characters

_SHORT_HEAD = struct.Struct("<HH2sH").pack
_LONG_HEAD = struct.Struct("<HH2sHI").pack
_ITEM_HEAD = struct.Struct("<HHI").pack
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_CONTROL_IN_PARAGRAPHS = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")
_CITED = re.compile(r"[ -\[\]-~]+")


def element(tag: int, vr: str, value: bytes) -> bytes:
    """The element with a value of even length.

    Raises
    ------
    ResultError
        Where the value is longer than its VR can say.
    """
    if vr in LONG:
        return _LONG_HEAD(tag >> 16, tag & 0xFFFF, vr.encode(), 0, len(value)) + value
    if len(value) > 0xFFFE:
        raise ResultError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}): {len(value)} bytes are more than {vr} can hold")
    return _SHORT_HEAD(tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value


def text(tag: int, vr: str, value: str) -> bytes:
    """An element of text, of whatever length; several values are parted by backslashes."""
    encoded = value.encode()
    return element(tag, vr, encoded + b" " if len(encoded) & 1 else encoded)


def uid(tag: int, value: str) -> bytes:
    """An element of VR UI."""
    encoded = value.encode("ascii")
    return element(tag, "UI", encoded + b"\0" if len(encoded) & 1 else encoded)


def numbers(tag: int, vr: str, *values: float) -> bytes:
    """An element of VR FL or FD."""
    return element(tag, vr, struct.pack(f"<{len(values)}{'f' if vr == 'FL' else 'd'}", *values))


def sequence(tag: int, items: Iterable[bytes]) -> bytes:
    """An element of VR SQ; each item is given as its elements, in order of their tags."""
    return element(tag, "SQ", _items(items))


def raw_sequence(tag: int, items: Iterable[bytes]) -> RawDataElement:
    """A sequence to stand in a Dataset, which decodes it when it is first read, and writes it as it is until then."""
    return _raw(tag, "SQ", _items(items))


def raw_text(tag: int, vr: str, value: str) -> RawDataElement:
    """A text, number string or UID to stand in a Dataset likewise."""
    encoded = value.encode()
    return _raw(tag, vr, encoded + (b"\0" if vr == "UI" else b" ") if len(encoded) & 1 else encoded)


def _raw(tag: int, vr: str, value: bytes) -> RawDataElement:
    return RawDataElement(BaseTag(tag), vr, len(value), value, 0, False, True)


def _items(items: Iterable[bytes]) -> bytes:
    return b"".join([_ITEM_HEAD(0xFFFE, 0xE000, len(content)) + content for content in items])


def decimal(value: float) -> str:
    """The number as a Decimal String: at most 16 characters, as exact as they allow.

    Raises
    ------
    ResultError
        Where it is not finite.
    """
    try:
        return format_number_as_ds(float(value))
    except (ValueError, OverflowError) as error:
        raise ResultError(f"{value!r} is not a finite number") from error


def check_text(value: str, vr: str, what: str) -> None:
    """Refuse one value that its VR cannot hold (PS3.5 6.2): empty, too long, or with characters that it excludes.

    Raises
    ------
    ResultError
        `what` names the attribute, never the value.
    """
    if not value:
        raise ResultError(f"{what} is empty")
    longest = LONGEST.get(vr)
    if longest is not None and len(value) > longest:
        raise ResultError(f"{what} has {len(value)} characters; {vr} holds {longest}")
    if (_CONTROL_IN_PARAGRAPHS if vr in ("ST", "UT") else _CONTROL).search(value):
        raise ResultError(f"{what} holds a character that {vr} excludes")


def check_uid(value: str, what: str) -> None:
    """Refuse a UID that is not one (PS3.5 9.1).

    Raises
    ------
    ResultError
    """
    if len(value) > 64 or not _UID.fullmatch(value):
        raise ResultError(f"{what} is not a UID of at most 64 characters")


def check_cited(value: str, what: str) -> None:
    """Refuse what cannot be written as the UID of another's object, which may be illegal and is cited as it came.

    Raises
    ------
    ResultError
    """
    if len(value) > 64 or not _CITED.fullmatch(value):
        raise ResultError(f"{what} cannot be cited: empty, longer than 64 characters, or not plain ASCII")
