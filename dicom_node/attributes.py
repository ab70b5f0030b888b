"""Whether an object has the attributes that its IOD asks for, with legal values.

What is asked for is highdicom's copy of the tables of PS3.3: attributes of type 1 and 2, in the modules that are
mandatory, in the optional ones of which anything is there, and in every item of a sequence that is there. Conditions
(1C, 2C) are left to `dicom_node.validation`, which knows the few that our objects meet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from pydicom.config import RAISE
from pydicom.datadict import dictionary_description, dictionary_VM, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.valuerep import validate_value

from dicom_node.results import ResultError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

    Elements = Mapping[int, DataElement | RawDataElement]
    Path = tuple[tuple[int, int], ...]  # sequences and the numbers of their items, from the outermost on

CONTENT_SEQUENCE = 0x0040A730
PIXEL_DATA = 0x7FE00010
_AS_THEY_ARE = frozenset({CONTENT_SEQUENCE, PIXEL_DATA})  # large; others look at them

_CODE_VALUES = (0x00080100, 0x00080119, 0x00080120)  # Code Value, Long Code Value, URN Code Value
_URN = _CODE_VALUES[2]
_SCHEME, _CODE_MEANING = 0x00080102, 0x00080104

# Conditional on the Value Type of each content item: `dicom_node.content_tree` knows. Of the root, these hold always.
_CONTENT = "sr-document-content"
_OF_THE_ROOT = ("ConceptNameCodeSequence", "ContentTemplateSequence")

_SHORT = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "PN", "SH", "TM", "UI"})
_PARAGRAPHS = frozenset({"LT", "ST", "UC", "UR", "UT"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_PARAGRAPHS = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Required:
    """An attribute that must be there, and for type 1 must have a value."""

    tag: int
    type: str
    module: str


@dataclass(slots=True)
class Level:
    """What a data set or the items of a sequence must hold; `items` by the sequence's tag."""

    required: dict[int, Required] = field(default_factory=dict)
    items: dict[int, Level] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Iod:
    """What one SOP Class asks for; of an optional module only where one of `own` is there, which no other has."""

    root: Level
    optional: tuple[tuple[frozenset[int], tuple[Required, ...]], ...]


def named(tag: int, path: Path = ()) -> str:
    """The attribute as messages name it: tag and name, behind the sequences it stands in."""
    own = f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {dictionary_description(tag)}"
    return " > ".join([*(f"({at >> 16:04X},{at & 0xFFFF:04X})[{number}]" for at, number in path), own])


def elements_of(ds: Dataset) -> dict[int, DataElement | RawDataElement]:
    """The data elements by tag, decoded but for the content tree and the pixels."""
    return {
        int(tag): ds[tag] if isinstance(element, RawDataElement) and tag not in _AS_THEY_ARE else element
        for tag, element in ds.items()
    }


def check_attributes(elements: Elements, sop_class_uid: str, cited: frozenset[str]) -> None:
    """Refuse an object that lacks what its IOD asks for, or holds a value that its VR does not allow.

    Parameters
    ----------
    elements
        Of the object, as `elements_of` gives them.
    cited
        UIDs of sources, which are repeated even where they are illegal.

    Raises
    ------
    ResultError
        Names the attribute.
    """
    iod = iod_of(sop_class_uid)
    _check_level(elements, iod.root, cited, ())
    for own, required in iod.optional:
        if not own.isdisjoint(elements):
            for attribute in required:
                _check_required(elements, attribute, ())


def prepare(sop_class_uids: Iterable[str]) -> None:
    """What these classes ask for is known, and highdicom's tables of all others are forgotten: they are 60 MB."""
    for uid in sop_class_uids:
        iod_of(uid)
    get_module_attribute_map.cache_clear()


@lru_cache(maxsize=16)
def iod_of(sop_class_uid: str) -> Iod:
    """What PS3.3 asks for in instances of that SOP Class."""
    modules = get_iod_module_map()[get_sop_class_iod_map()[sop_class_uid]]
    table = get_module_attribute_map()
    root = Level()
    mandatory = {
        entry["keyword"]
        for module in modules
        if module["usage"] == "M"
        for entry in table[module["key"]]
        if _top(entry)
    }
    optional = []
    for module in modules:
        own, required = set(), []
        for entry in table[module["key"]]:
            tag = tag_for_keyword(entry["keyword"])
            path = [tag_for_keyword(keyword) for keyword in entry["path"]]
            if tag is None or None in path:
                continue  # retired, or newer than pydicom
            if module["key"] == _CONTENT and entry["keyword"] not in _OF_THE_ROOT and entry["path"][:1] not in _ROOTS:
                continue
            attribute = Required(tag, entry["type"], _title(module["key"]))
            if module["usage"] != "M" and not path:
                if entry["keyword"] not in mandatory:
                    own.add(tag)
                if attribute.type in ("1", "2"):
                    required.append(attribute)
            elif attribute.type in ("1", "2"):
                level = root
                for at in path:
                    level = level.items.setdefault(at or 0, Level())
                if tag not in level.required or attribute.type == "1":
                    level.required[tag] = attribute
        if own and required:
            optional.append((frozenset(own), tuple(required)))
    return Iod(root, tuple(optional))


_ROOTS = tuple([keyword] for keyword in _OF_THE_ROOT)


def _top(entry: Mapping[str, Any]) -> bool:
    return not entry["path"]


def _title(key: str) -> str:
    """The module's name from highdicom's key for it."""
    return " ".join(word.upper() if word in ("sc", "sop", "sr") else word.capitalize() for word in key.split("-"))


def _check_level(elements: Elements, level: Level, cited: frozenset[str], path: Path) -> None:
    for attribute in level.required.values():
        _check_required(elements, attribute, path)
    if _CODE_MEANING in level.required:
        _check_code(elements, path)
    for tag, element in elements.items():
        if tag in _AS_THEY_ARE:
            continue
        if element.VR == "SQ":
            if not element.value and tag not in level.required:  # of type 2, and else there would be a fault above
                raise ResultError(f"{named(tag, path)} is empty")
            inner = level.items.get(tag, _NOTHING)
            for number, item in enumerate(element.value or (), 1):
                _check_level(elements_of(item), inner, cited, (*path, (tag, number)))
        else:
            _check_value(tag, element, cited, path)


_NOTHING = Level()


def _check_code(elements: Elements, path: Path) -> None:
    """PS3.3 8.8: a code is in one of three attributes, and a Code Value needs its scheme."""
    values = [tag for tag in _CODE_VALUES if tag in elements and not is_empty(elements[tag].value)]
    if not values:
        raise ResultError(f"{named(_CODE_VALUES[0], path)} is missing or empty (type 1C, Code Sequence Macro)")
    if values[0] != _URN and (_SCHEME not in elements or is_empty(elements[_SCHEME].value)):
        raise ResultError(f"{named(_SCHEME, path)} is missing or empty (type 1C, Code Sequence Macro)")


def _check_required(elements: Elements, attribute: Required, path: Path) -> None:
    element = elements.get(attribute.tag)
    if element is None:
        what = "is missing"
    elif attribute.type == "1" and is_empty(element.value):
        what = "is empty"
    else:
        return
    raise ResultError(f"{named(attribute.tag, path)} {what} (type {attribute.type}, {attribute.module})")


def is_empty(value: Any) -> bool:
    """Whether there is no value; a zero is one."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (not isinstance(value, int | float) and not value)


def _check_value(tag: int, element: DataElement | RawDataElement, cited: frozenset[str], path: Path) -> None:
    """Refuse what PS3.5 6.2 does not allow in a value of this VR, or more values than PS3.6 does."""
    vr = element.VR
    value: Any = element.value
    if vr in _SHORT:
        control = _CONTROL
    elif vr in _PARAGRAPHS:
        control = _CONTROL_IN_PARAGRAPHS
    else:
        return
    several = isinstance(value, MultiValue | list)
    if several and len(value) > 1 and dictionary_VM(tag) == "1":
        raise ResultError(f"{named(tag, path)} has {len(value)} values; one is allowed")
    for single in value if several else (value,):
        text = "" if single is None else str(single)
        if vr == "UI" and text in cited:
            continue
        if not _is_legal(vr, text) or control.search(text):
            raise ResultError(f"{named(tag, path)} is no legal {vr} (PS3.5 6.2)")


def _is_legal(vr: str, text: str) -> bool:
    try:
        validate_value(vr, text, RAISE)
        text.encode()
        if vr == "DA" and text:
            date(int(text[:4]), int(text[4:6]), int(text[6:8]))
    except ValueError:
        return False
    return not (vr in ("DA", "TM") and "-" in text)  # a range, legal in queries only
