from __future__ import annotations

from io import BytesIO
from struct import pack
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from dicom_node.content_tree import read_references
from dicom_node.results import ResultError, encode
from tests.factories import chest_dataset, code
from tests.result_factories import results, stored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

UNDEFINED = 0xFFFFFFFF
IMAGE_CLASS, IMAGE = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4"


def content_item(kind: str, relationship: str = "CONTAINS", **values: Any) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = relationship, kind
    item.ConceptNameCodeSequence = [code("112039", "DCM", "Tracking Identifier")]
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def reference(instance: str = IMAGE, of_class: str = IMAGE_CLASS) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = of_class, instance
    return item


def image(relationship: str = "CONTAINS", instance: str = IMAGE) -> Dataset:
    return content_item("IMAGE", relationship, ReferencedSOPSequence=[reference(instance)])


def scoord() -> Dataset:
    return content_item(
        "SCOORD",
        "INFERRED FROM",
        GraphicData=[0.0, 1.0],
        GraphicType="POINT",
        ContentSequence=[image("SELECTED FROM")],
    )


def number() -> Dataset:
    measured = Dataset()
    measured.NumericValue = "0.5"
    measured.MeasurementUnitsCodeSequence = [code("1", "UCUM", "no units")]
    return content_item("NUM", MeasuredValueSequence=[measured], ContentSequence=[scoord()])


def tree() -> list[Dataset]:
    group = content_item("CONTAINER", ContinuityOfContent="SEPARATE", ContentSequence=[number(), image()])
    return [content_item("TEXT", TextValue="words"), group]


def encoded(items: Sequence[Dataset], *, undefined: bool = False) -> bytes:
    """Value of Content Sequence in explicit VR little endian; with `undefined`, without one length of an item."""
    whole = b""
    for item in items:
        body = _body(item, undefined=undefined)
        whole += (
            pack("<HHL", 0xFFFE, 0xE000, UNDEFINED) + body + pack("<HHL", 0xFFFE, 0xE00D, 0)
            if undefined
            else pack("<HHL", 0xFFFE, 0xE000, len(body)) + body
        )
    return whole


def _body(ds: Dataset, *, undefined: bool) -> bytes:
    whole = b""
    for element in ds:
        if element.VR == "SQ":
            value = encoded(element.value, undefined=undefined)
            length = UNDEFINED if undefined else len(value)
            whole += pack("<HH2sHL", element.tag.group, element.tag.element, b"SQ", 0, length) + value
            whole += pack("<HHL", 0xFFFE, 0xE0DD, 0) if undefined else b""
        else:
            single = Dataset()
            single.add(element)
            buffer = DicomBytesIO()
            buffer.is_little_endian, buffer.is_implicit_VR = True, False
            write_dataset(buffer, single)
            whole += buffer.getvalue()
    return whole


@pytest.mark.parametrize("undefined", [False, True], ids=["lengths", "delimiters"])
def test_a_sound_tree_gives_what_it_cites_once(undefined: bool) -> None:
    items = [*tree(), image(instance="1.2.3.5")]
    assert read_references(encoded(items, undefined=undefined)) == {(IMAGE_CLASS, IMAGE), (IMAGE_CLASS, "1.2.3.5")}


def test_the_tree_of_a_report_is_read_as_pydicom_reads_it() -> None:
    heatmap, report = results(stored(chest_dataset()))
    read = dcmread(BytesIO(encode(report)))
    found = read_references(read.get_item(0x0040A730).value)
    expected = {
        (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
        for content in read.ContentSequence.__iter__()
        for item in _cited(content)
    }
    assert found == expected
    assert {instance for _, instance in found} >= {heatmap.SOPInstanceUID}


def _cited(item: Dataset) -> list[Dataset]:
    found = list(item.get("ReferencedSOPSequence", ()))
    for child in item.get("ContentSequence", ()):
        found += _cited(child)
    return found


def in_group(change: Callable[[Dataset], None]) -> Callable[[list[Dataset]], None]:
    return lambda items: change(items[1])


def without(*path: str | int) -> Callable[[list[Dataset]], None]:
    """Remove the last of the path from what the rest leads to."""

    def change(items: Any) -> None:
        for step in path[:-1]:
            items = items[step] if isinstance(step, int) else items[step].value
        delattr(items, str(path[-1]))

    return change


def put(*path: str | int, value: Any) -> Callable[[list[Dataset]], None]:
    def change(items: Any) -> None:
        for step in path[:-1]:
            items = items[step] if isinstance(step, int) else items[step].value
        setattr(items, str(path[-1]), value)

    return change


C, N, U = "ContentSequence", "ConceptNameCodeSequence", "MeasurementUnitsCodeSequence"
NUM = (1, C, 0)
MEASURED = (*NUM, "MeasuredValueSequence", 0)
CITED = (1, C, 1, "ReferencedSOPSequence", 0)

RULES = {
    "relationship": (
        without(0, "RelationshipType"),
        r"\(0040,A010\) Relationship Type is missing \(content item 1\.1\)",
    ),
    "odd relationship": (put(0, "RelationshipType", value="NEAR"), r"\(0040,A010\) Relationship Type is none that"),
    "value type": (without(*NUM, "ValueType"), r"\(0040,A040\) Value Type is missing \(content item 1\.2\.1\)"),
    "odd value type": (put(0, "ValueType", value="WORDS"), r"\(0040,A040\) Value Type is none that"),
    "properties of a container": (
        put(1, C, 1, "RelationshipType", value="HAS PROPERTIES"),
        r"may not be HAS PROPERTIES between CONTAINER and IMAGE \(content item 1\.2\.2\)",
    ),
    "selected from a number": (
        put(*NUM, C, 0, "RelationshipType", value="SELECTED FROM"),
        r"may not be SELECTED FROM between NUM and SCOORD \(content item 1\.2\.1\.1\)",
    ),
    "modified by a container": (
        put(1, "RelationshipType", value="HAS CONCEPT MOD"),
        r"may not be HAS CONCEPT MOD between CONTAINER and CONTAINER",
    ),
    "name": (without(0, N), r"\(0040,A043\) Concept Name Code Sequence is missing or empty \(content item 1\.1\)"),
    "empty name": (put(0, N, value=[]), r"\(0040,A043\).* is missing or empty \(content item 1\.1\)"),
    "empty text": (put(0, "TextValue", value=""), r"\(0040,A160\) Text Value is missing or empty in a TEXT"),
    "two names": (put(0, N, value=[code("1", "L"), code("2", "L")]), r"\(0040,A043\).* has 2 items instead of one"),
    "code value": (without(0, N, 0, "CodeValue"), r"\(0008,0100\) Code Value is missing or empty"),
    "scheme": (put(0, N, 0, "CodingSchemeDesignator", value=""), r"\(0008,0102\).* is missing or empty"),
    "meaning": (put(0, N, 0, "CodeMeaning", value=""), r"\(0008,0104\) Code Meaning is missing or empty"),
    "long code": (
        lambda items: items[0].ConceptNameCodeSequence[0].add_new("CodeValue", "UT", "c" * 17),
        r"\(0008,0100\) Code Value has more than 16 characters",
    ),
    "text": (without(0, "TextValue"), r"\(0040,A160\) Text Value is missing or empty in a TEXT \(content item 1\.1\)"),
    "continuity": (without(1, "ContinuityOfContent"), r"\(0040,A050\).* is missing or empty in a CONTAINER"),
    "measured": (without(*NUM, "MeasuredValueSequence"), r"\(0040,A300\).* is missing or empty in a NUM"),
    "number": (without(*MEASURED, "NumericValue"), r"\(0040,A30A\) Numeric Value is missing or empty"),
    "unit": (without(*MEASURED, U), r"\(0040,08EA\).* is missing or empty"),
    "unit's meaning": (without(*MEASURED, U, 0, "CodeMeaning"), r"\(0008,0104\) Code Meaning is missing or empty"),
    "long number": (
        lambda items: (
            items[1].ContentSequence[0].MeasuredValueSequence[0].add_new("NumericValue", "UT", "0." + "1" * 15)
        ),
        r"\(0040,A30A\) Numeric Value is no legal DS .*\(content item 1\.2\.1\)",
    ),
    "graphic": (without(*NUM, C, 0, "GraphicData"), r"\(0070,0022\) Graphic Data is missing or empty in a SCOORD"),
    "graphic type": (without(*NUM, C, 0, "GraphicType"), r"\(0070,0023\) Graphic Type is missing or empty in a SCOORD"),
    "image": (without(1, C, 1, "ReferencedSOPSequence"), r"\(0008,1199\).* is missing or empty in a IMAGE"),
    "no image": (put(1, C, 1, "ReferencedSOPSequence", value=[]), r"\(0008,1199\).* is missing or empty in a IMAGE"),
    "two images": (
        put(1, C, 1, "ReferencedSOPSequence", value=[reference(), reference("1.2.3.5")]),
        r"\(0008,1199\).* has 2 items instead of one",
    ),
    "instance": (without(*CITED, "ReferencedSOPInstanceUID"), r"\(0008,1155\).* is missing or empty in a reference"),
    "class": (put(*CITED, "ReferencedSOPClassUID", value=""), r"\(0008,1150\).* is missing or empty in a reference"),
    "no children": (put(1, C, value=[]), r"\(0040,A730\) Content Sequence is empty \(content item 1\.2\)"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("undefined", [False, True], ids=["lengths", "delimiters"])
def test_what_is_broken_is_refused_by_its_tag_and_item(rule: str, undefined: bool) -> None:
    change, message = RULES[rule]
    items = tree()
    change(items)
    with pytest.raises(ResultError, match=message):
        read_references(encoded(items, undefined=undefined))


def test_a_code_in_another_attribute_needs_no_scheme() -> None:
    items = tree()
    name = items[0].ConceptNameCodeSequence[0]
    del name.CodeValue, name.CodingSchemeDesignator
    name.URNCodeValue = "urn:oid:1.2.3"
    assert read_references(encoded(items)) == read_references(encoded(tree()))


def test_an_item_by_reference_needs_no_value_type() -> None:
    by_reference = Dataset()
    by_reference.RelationshipType, by_reference.ReferencedContentItemIdentifier = "INFERRED FROM", [1, 1]
    items = tree()
    items[1].ContentSequence[0].ContentSequence = [by_reference]
    assert read_references(encoded(items)) == read_references(encoded(tree()))


def test_a_measurement_may_have_no_value() -> None:
    items = tree()
    items[1].ContentSequence[0].MeasuredValueSequence = []
    assert read_references(encoded(items)) == read_references(encoded(tree()))


def test_a_tree_without_an_end_is_refused() -> None:
    items = [content_item("TEXT", TextValue="words")]
    for _ in range(40):
        items = [content_item("CONTAINER", ContinuityOfContent="SEPARATE", ContentSequence=items)]
    with pytest.raises(ResultError, match=r"\(0040,A730\) Content Sequence is nested too deep"):
        read_references(encoded(items))


@pytest.mark.parametrize("undefined", [False, True], ids=["lengths", "delimiters"])
def test_bytes_that_end_too_early_are_refused_wherever_they_end(undefined: bool) -> None:
    whole = encoded(tree(), undefined=undefined)
    ends_of_items = {len(encoded(tree()[:1], undefined=undefined))}
    for end in set(range(len(whole))) - ends_of_items:
        with pytest.raises(ResultError):
            read_references(whole[:end])


@pytest.mark.parametrize(
    "broken",
    [
        b"not an item at all",
        pack("<HHL", 0xFFFE, 0xE00D, 0),
        encoded([content_item("TEXT", TextValue="words")]).replace(b"\x40\x00\x10\xa0CS", b"\x40\x00\x10\xb0CS", 1),
    ],
    ids=["noise", "delimiter", "order"],
)
def test_bytes_that_are_no_items_are_refused(broken: bytes) -> None:
    with pytest.raises(
        ResultError, match=r"\(0040,A730\) Content Sequence is not explicit VR little endian at byte \d"
    ):
        read_references(broken)
