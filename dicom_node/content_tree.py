"""Whether the content tree of a Structured Report or Key Object Selection Document is sound, read from its bytes.

A report's tree has hundreds of items; pydicom needs twenty times as long to decode them as it takes to look at them
here. What is held against PS3.3 C.17.3: what each content item is and how it relates to its parent, that its name,
value and codes are there, and which instances it cites.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, NoReturn

from dicom_node.attributes import CONTENT_SEQUENCE, named
from dicom_node.results import ResultError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = Struct("<HH2sH")
_TAG_AND_LENGTH = Struct("<HHL")
_LENGTH = Struct("<L")
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xE000, 0xE00D, 0xE0DD
_DEEPEST = 32

_REFERENCED_SOP = 0x00081199
_REFERENCED_CLASS, _REFERENCED_INSTANCE = 0x00081150, 0x00081155
_CODE_VALUE, _SCHEME, _MEANING = 0x00080100, 0x00080102, 0x00080104
_LONG_CODE_VALUE, _URN_CODE_VALUE = 0x00080119, 0x00080120
_RELATIONSHIP, _VALUE_TYPE, _NAME = 0x0040A010, 0x0040A040, 0x0040A043
_CODE, _MEASURED, _CONTENT = 0x0040A168, 0x0040A300, CONTENT_SEQUENCE
_UNITS, _NUMBER = 0x004008EA, 0x0040A30A
_BY_REFERENCE = 0x0040DB73
_LONGEST_NUMBER = 16  # of a Decimal String (PS3.5 6.2)
_LONGEST = {_CODE_VALUE: 16, _SCHEME: 16, _MEANING: 64}  # in characters

# The attributes that a value is made of, by Value Type (PS3.3 C.17.3.2).
_VALUES = {
    b"TEXT": (0x0040A160,),
    b"CODE": (_CODE,),
    b"NUM": (_MEASURED,),
    b"DATETIME": (0x0040A120,),
    b"DATE": (0x0040A121,),
    b"TIME": (0x0040A122,),
    b"UIDREF": (0x0040A124,),
    b"PNAME": (0x0040A123,),
    b"COMPOSITE": (_REFERENCED_SOP,),
    b"IMAGE": (_REFERENCED_SOP,),
    b"WAVEFORM": (_REFERENCED_SOP,),
    b"SCOORD": (0x00700022, 0x00700023),
    b"SCOORD3D": (0x00700022, 0x00700023, 0x30060024),
    b"TCOORD": (0x0040A130,),
    b"CONTAINER": (0x0040A050,),
}
_NAMED = frozenset({b"TEXT", b"NUM", b"CODE", b"DATETIME", b"DATE", b"TIME", b"UIDREF", b"PNAME"})

# Which Value Types a relationship may join, parent and child (PS3.3 tables A.35.3-2 and A.35.13-2).
_SAID = frozenset({b"TEXT", b"CODE", b"NUM"})
_NAMES = frozenset({b"DATETIME", b"DATE", b"TIME", b"UIDREF", b"PNAME"})
_CITED = frozenset({b"IMAGE", b"WAVEFORM", b"COMPOSITE"})
_PLACES = frozenset({b"SCOORD", b"SCOORD3D", b"TCOORD"})
_CONTAINER = frozenset({b"CONTAINER"})
_RELATIONSHIPS = {
    b"CONTAINS": (_CONTAINER, _SAID | _NAMES | _CITED | _PLACES | _CONTAINER),
    b"HAS OBS CONTEXT": (_SAID | _CONTAINER, _SAID | _NAMES | {b"COMPOSITE"}),
    b"HAS ACQ CONTEXT": (_CITED | _CONTAINER | {b"NUM"}, _SAID | _NAMES | _CONTAINER),
    b"HAS CONCEPT MOD": (frozenset(_VALUES), frozenset({b"TEXT", b"CODE"})),
    b"HAS PROPERTIES": (_SAID | {b"PNAME"}, _SAID | _NAMES | _CITED | _PLACES | _CONTAINER),
    b"INFERRED FROM": (_SAID, _SAID | _NAMES | _CITED | _PLACES | _CONTAINER),
    b"SELECTED FROM": (_PLACES, frozenset({b"IMAGE", b"WAVEFORM", b"SCOORD"})),
}


@dataclass(slots=True)
class _Seen:
    """What was met in a tree, as encoded: the same code or reference stands there many times."""

    codes: set[bytes]
    references: set[bytes]


def read_references(data: bytes) -> frozenset[tuple[str, str]]:
    """Referenced SOP Class and Instance UID of whatever the tree cites; the tree is sound in every rule known here.

    Parameters
    ----------
    data
        Value of (0040,A730) Content Sequence of the root, in explicit VR little endian.

    Raises
    ------
    ResultError
        Names the attribute and the content item, numbered as in ``1.3.2``, the root being 1.
    """
    seen = _Seen(set(), set())
    _check_children(data, 0, len(data), b"CONTAINER", (1,), seen)
    for code in seen.codes:
        _check_code(code)
    return frozenset(_reference(cited) for cited in seen.references)


def _check_children(data: bytes, start: int, end: int, parent: bytes, where: tuple[int, ...], seen: _Seen) -> None:
    if len(where) > _DEEPEST:
        _refuse(_CONTENT, "is nested too deep", where)
    number = 0
    for number, (at, stop) in enumerate(items(data, start, end), 1):
        _check_item(data, at, stop, parent, (*where, number), seen)
    if not number:
        _refuse(_CONTENT, "is empty", where)


def _check_item(data: bytes, start: int, end: int, parent: bytes, where: tuple[int, ...], seen: _Seen) -> None:
    relationship = kind = b""
    filled = set()
    below = None
    for tag, at, stop in elements(data, start, end):
        if at < stop or tag == _MEASURED:  # type 2: a measurement may have no value
            filled.add(tag)
        if tag == _RELATIONSHIP:
            relationship = data[at:stop].strip()
        elif tag == _VALUE_TYPE:
            kind = data[at:stop].strip()
        elif tag in (_NAME, _CODE):
            seen.codes.add(data[at:stop])
        elif tag == _REFERENCED_SOP:
            seen.references.add(data[at:stop])
        elif tag == _MEASURED:
            _check_number(data, at, stop, where, seen)
        elif tag == _CONTENT:
            below = (at, stop)
    if relationship not in _RELATIONSHIPS:
        _refuse(_RELATIONSHIP, "is none that is known" if relationship else "is missing", where)
    if _BY_REFERENCE in filled:
        return
    if kind not in _VALUES:
        _refuse(_VALUE_TYPE, "is none that is known" if kind else "is missing", where)
    parents, children = _RELATIONSHIPS[relationship]
    if parent not in parents or kind not in children:
        joined = f"may not be {relationship.decode()} between {parent.decode()} and {kind.decode()}"
        _refuse(_RELATIONSHIP, joined, where)
    if kind in _NAMED and _NAME not in filled:
        _refuse(_NAME, "is missing or empty", where)
    for tag in _VALUES[kind]:
        if tag not in filled:
            _refuse(tag, f"is missing or empty in a {kind.decode()}", where)
    if below is not None:
        _check_children(data, *below, kind, where, seen)


def _check_number(data: bytes, start: int, end: int, where: tuple[int, ...], seen: _Seen) -> None:
    for at, stop in items(data, start, end):
        found = {tag: (first, last) for tag, first, last in elements(data, at, stop)}
        for tag in (_UNITS, _NUMBER):
            if tag not in found or found[tag][0] == found[tag][1]:
                _refuse(tag, "is missing or empty", where)
        first, last = found[_NUMBER]
        if last - first > _LONGEST_NUMBER:
            _refuse(_NUMBER, "is no legal DS (PS3.5 6.2)", where)
        first, last = found[_UNITS]
        seen.codes.add(data[first:last])


def _check_code(encoded: bytes) -> None:
    """Refuse a code sequence that is not one item with a code, its scheme and its meaning (PS3.3 8.8)."""
    found = list(items(encoded, 0, len(encoded)))
    if len(found) != 1:
        _refuse(_NAME, f"or another code sequence has {len(found)} items instead of one")
    code = _texts(encoded, *found[0])
    named_by_scheme = code.get(_CODE_VALUE) or code.get(_LONG_CODE_VALUE)
    if not (named_by_scheme or code.get(_URN_CODE_VALUE)):
        _refuse(_CODE_VALUE, "is missing or empty in a code")
    if named_by_scheme and not code.get(_SCHEME):
        _refuse(_SCHEME, "is missing or empty in a code")
    if not code.get(_MEANING):
        _refuse(_MEANING, "is missing or empty in a code")
    for tag, longest in _LONGEST.items():
        if len(code.get(tag, "")) > longest:
            _refuse(tag, f"has more than {longest} characters in a code")


def _reference(encoded: bytes) -> tuple[str, str]:
    found = list(items(encoded, 0, len(encoded)))
    if len(found) != 1:
        _refuse(_REFERENCED_SOP, f"has {len(found)} items instead of one")
    cited = _texts(encoded, *found[0])
    for tag in (_REFERENCED_CLASS, _REFERENCED_INSTANCE):
        if not cited.get(tag):
            _refuse(tag, "is missing or empty in a reference")
    return cited[_REFERENCED_CLASS], cited[_REFERENCED_INSTANCE]


def _texts(data: bytes, start: int, end: int) -> dict[int, str]:
    """Every element of a small item as text, by tag."""
    return {tag: data[at:stop].strip(b" \0").decode("utf-8", "replace") for tag, at, stop in elements(data, start, end)}


def items(data: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the items of a sequence begin and end (PS3.5 7.5), without their delimiters.

    Raises
    ------
    ResultError
    """
    while start < end:
        tag, length = _item_header(data, start, end)
        if tag == _SEQUENCE_END:
            return
        if tag != _ITEM:
            _refuse_bytes(start)
        start += 8
        if length == _UNDEFINED:
            stop = _end_of_item(data, start, end)
            yield start, stop
            start = stop + 8
        else:
            if length > end - start:
                _refuse_bytes(start)
            yield start, start + length
            start += length


def elements(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Tag of each data element of an item and where its value begins and ends, in explicit VR little endian.

    Raises
    ------
    ResultError
    """
    before = -1
    while start < end:
        if end - start < 8:
            _refuse_bytes(start)
        group, number, vr, length = _HEADER.unpack_from(data, start)
        tag = group << 16 | number
        if tag <= before:  # in ascending order, each once (PS3.5 7.1)
            _refuse_bytes(start)
        before = tag
        at = start + 8
        if vr in _LONG_VRS:
            if end - at < 4:
                _refuse_bytes(start)
            (length,) = _LENGTH.unpack_from(data, at)
            at += 4
            if length == _UNDEFINED:
                stop = _end_of_sequence(data, at, end)
                yield tag, at, stop
                start = stop + 8
                continue
        start = at + length
        if start > end:
            _refuse_bytes(at)
        yield tag, at, start


def _item_header(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Element number and length of what stands at `start`, which has to be of group FFFE."""
    if end - start < 8:
        _refuse_bytes(start)
    group, number, length = _TAG_AND_LENGTH.unpack_from(data, start)
    if group != 0xFFFE:
        _refuse_bytes(start)
    return number, length


def _end_of_item(data: bytes, start: int, end: int) -> int:
    """Where the delimiter of an item of undefined length stands."""
    while True:
        if end - start < 8:
            _refuse_bytes(start)
        group, number, vr, length = _HEADER.unpack_from(data, start)
        if group == 0xFFFE:
            if number != _ITEM_END:
                _refuse_bytes(start)
            return start
        start += 8
        if vr in _LONG_VRS:
            if end - start < 4:
                _refuse_bytes(start)
            (length,) = _LENGTH.unpack_from(data, start)
            start += 4
            if length == _UNDEFINED:
                start = _end_of_sequence(data, start, end) + 8
                continue
        start += length


def _end_of_sequence(data: bytes, start: int, end: int) -> int:
    """Where the delimiter of a sequence of undefined length stands."""
    while True:
        number, length = _item_header(data, start, end)
        if number == _SEQUENCE_END:
            return start
        if number != _ITEM:
            _refuse_bytes(start)
        start += 8
        start = _end_of_item(data, start, end) + 8 if length == _UNDEFINED else start + length


def _refuse(tag: int, what: str, where: tuple[int, ...] = ()) -> NoReturn:
    at = f" (content item {'.'.join(map(str, where))})" if where else ""
    raise ResultError(f"{named(tag)} {what}{at}")


def _refuse_bytes(position: int) -> NoReturn:
    raise ResultError(f"(0040,A730) Content Sequence is not explicit VR little endian at byte {position}")
