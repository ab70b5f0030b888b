from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from pydicom.charset import convert_encodings
from pydicom.filereader import read_dataset

from dicom_node.content import (
    Code,
    CodeItem,
    Container,
    ImageItem,
    Item,
    Num,
    Polyline,
    Relationship,
    TextItem,
    UidItem,
    encode_item,
)
from dicom_node.results import ResultError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

NAME = Code("121106", "DCM", "Comment")
UNIT = Code("1", "UCUM", "no units")
CONTAINS, SELECTED_FROM = Relationship.CONTAINS, Relationship.SELECTED_FROM
LINE = ((0.0, 0.0), (4.0, 2.5))


def image(relationship: Relationship = SELECTED_FROM) -> ImageItem:
    return ImageItem(relationship, NAME, sop_class_uid="1.2", sop_instance_uid="1.2.3")


def decoded(item: Item) -> Dataset:
    ds = read_dataset(BytesIO(encode_item(item)), is_implicit_VR=False, is_little_endian=True)
    ds.set_original_encoding(False, True, convert_encodings("ISO_IR 192"))
    return ds


def test_a_number_is_told_as_text_and_with_all_its_digits_and_an_integer_as_text_alone() -> None:
    measured = decoded(Num(CONTAINS, NAME, value=1 / 3, unit=UNIT)).MeasuredValueSequence[0]
    assert measured.FloatingPointValue == 1 / 3
    assert measured.NumericValue.original_string == "0.33333333333333"
    assert measured.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert "FloatingPointValue" not in decoded(Num(CONTAINS, NAME, value=7, unit=UNIT)).MeasuredValueSequence[0]


def test_elements_stand_in_the_order_of_their_tags_with_the_children_among_them() -> None:
    line = Polyline(CONTAINS, NAME, (image(),), points=LINE)
    number = Num(
        CONTAINS, NAME, (Polyline(Relationship.INFERRED_FROM, NAME, (image(),), points=LINE),), value=1.5, unit=UNIT
    )
    for item in (
        Container(CONTAINS, NAME, (line, number), "1501"),
        line,
        number,
        ImageItem(
            CONTAINS,
            NAME,
            (TextItem(Relationship.HAS_ACQ_CONTEXT, NAME, value="x"),),
            sop_class_uid="1.2",
            sop_instance_uid="1.3",
        ),
        CodeItem(CONTAINS, NAME, value=UNIT),
        UidItem(CONTAINS, NAME, value="1.2"),
    ):
        ds = decoded(item)
        assert encoded_tags(encode_item(item)) == sorted(ds.keys())
        assert ds.ValueType == item.value_type
        assert len(ds.get("ContentSequence", ())) == len(item.children)


def encoded_tags(content: bytes) -> list[int]:
    found, at = [], 0
    while at < len(content):
        found.append(
            int.from_bytes(content[at : at + 2], "little") << 16 | int.from_bytes(content[at + 2 : at + 4], "little")
        )
        long = content[at + 4 : at + 6] in (b"SQ", b"UT")
        length = int.from_bytes(content[at + 8 : at + 12] if long else content[at + 6 : at + 8], "little")
        at += (12 if long else 8) + length
    return found


def test_a_template_stands_at_its_container() -> None:
    ds = decoded(Container(CONTAINS, NAME, (), "1410"))
    assert ds.ContentTemplateSequence[0].TemplateIdentifier == "1410"
    assert "ContentTemplateSequence" not in decoded(Container(CONTAINS, NAME))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"value": "1" * 17}, "Code Value"),
        ({"value": ""}, "Code Value"),
        ({"scheme": "9" * 17}, "Coding Scheme Designator"),
        ({"meaning": "m" * 65}, "Code Meaning"),
        ({"meaning": "a\\b"}, "Code Meaning"),
    ],
)
def test_a_code_that_its_attributes_cannot_hold_is_refused(changed: dict[str, str], told: str) -> None:
    with pytest.raises(ResultError, match=told):
        Code(**{"value": "1", "scheme": "DCM", "meaning": "m"} | changed)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Num(CONTAINS, NAME, value=float("nan"), unit=UNIT), "Comment: Numeric Value"),
        (lambda: Num(CONTAINS, NAME, value=float("inf"), unit=UNIT), "not a finite number"),
        (lambda: TextItem(CONTAINS, NAME, value=""), "Comment: Text Value"),
        (lambda: TextItem(CONTAINS, NAME, value="a\0"), "Comment: Text Value"),
        (lambda: UidItem(CONTAINS, NAME, value="1.02"), "Comment: UID"),
        (lambda: ImageItem(CONTAINS, NAME, sop_class_uid="", sop_instance_uid="1.2"), "Referenced SOP Class UID"),
        (lambda: ImageItem(CONTAINS, NAME, sop_class_uid="1.2", sop_instance_uid="é"), "Referenced SOP Instance UID"),
        (lambda: Polyline(CONTAINS, NAME, points=LINE), "selected from no image"),
        (lambda: Polyline(CONTAINS, NAME, (image(),), points=LINE[:1]), "Graphic Data"),
        (lambda: Polyline(CONTAINS, NAME, (image(),), points=((0.0, 0.0), (float("nan"), 1.0))), "Graphic Data"),
        (lambda: Polyline(CONTAINS, NAME, (image(),), points=((0.0, 0.0), (-1.0, 1.0))), "Graphic Data"),
        (lambda: Container(CONTAINS, NAME, (image(),)), "CONTAINER SELECTED FROM IMAGE"),
        (lambda: Container(CONTAINS, NAME, (image(Relationship.HAS_CONCEPT_MOD),)), "HAS CONCEPT MOD IMAGE"),
        (lambda: Num(CONTAINS, NAME, (image(CONTAINS),), value=1.0, unit=UNIT), "NUM CONTAINS IMAGE"),
    ],
)  # fmt: skip
def test_what_is_illegal_cannot_be_made(make: Any, told: str) -> None:
    with pytest.raises(ResultError, match=told):
        make()
