from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.charset import convert_encodings
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.explicit_vr import (
    check_cited,
    check_text,
    check_uid,
    decimal,
    element,
    numbers,
    raw_sequence,
    text,
    uid,
)
from dicom_node.results import ResultError


def with_sequence() -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds[0x00081140] = raw_sequence(
        0x00081140, [uid(0x00081155, "1.2.3") + text(0x00204000, "LT", "größer"), uid(0x00081155, "1.2.34")]
    )
    ds.set_original_encoding(False, True, convert_encodings("ISO_IR 192"))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def written(ds: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, ds)
    return buffer.getvalue()


def test_pydicom_writes_a_raw_sequence_as_it_is_and_does_not_decode_it() -> None:
    ds = with_sequence()
    raw = ds.get_item(0x00081140)
    assert raw.value in written(ds)
    assert ds.get_item(0x00081140).is_raw


def test_pydicom_decodes_a_raw_sequence_when_it_is_read_and_writes_the_same_again() -> None:
    ds = with_sequence()
    before = written(ds)
    assert [item.ReferencedSOPInstanceUID for item in ds.ReferencedImageSequence] == ["1.2.3", "1.2.34"]
    assert ds.ReferencedImageSequence[0].ImageComments == "größer"
    assert not ds.get_item(0x00081140).is_raw
    assert written(ds) == before


def test_what_was_read_back_can_be_written_with_implicit_vr() -> None:
    ds = with_sequence()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = "1.2", "1.3"
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    read = dcmread(BytesIO(buffer.getvalue()))
    read.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    assert dcmread(BytesIO(written(read)), force=True).ReferencedImageSequence[0].ImageComments == "größer"


def test_values_are_padded_to_even_length_by_their_vr() -> None:
    assert text(0x00080060, "CS", "SRX") == b"\x08\x00\x60\x00CS\x04\x00SRX "
    assert uid(0x00080018, "1.2") == b"\x08\x00\x18\x00UI\x04\x001.2\0"
    assert text(0x0040A160, "UT", "ä") == b"\x40\x00\x60\xa1UT\0\0\x02\0\0\0\xc3\xa4"
    assert numbers(0x00700022, "FL", 1.0) == b"\x70\x00\x22\x00FL\x04\x00\0\0\x80\x3f"


def test_a_value_longer_than_its_vr_can_say_is_refused() -> None:
    with pytest.raises(ResultError, match=r"\(0070,0022\)"):
        numbers(0x00700022, "FL", *[0.0] * 16384)
    assert len(element(0x0040A160, "UT", b"x" * 65536)) == 65536 + 12


@pytest.mark.parametrize(
    "value", [1 / 3, -1 / 3, 1e-300, -1.23456789012345e-300, 6.02e23, 123456789012345.6, 0.0, -0.0]
)
def test_a_decimal_has_at_most_16_characters_and_means_the_number(value: float) -> None:
    assert len(decimal(value)) <= 16
    assert float(decimal(value)) == pytest.approx(value, rel=1e-8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_decimal_is_made_of_what_is_not_finite(value: float) -> None:
    with pytest.raises(ResultError, match="not a finite number"):
        decimal(value)


@pytest.mark.parametrize(
    ("value", "vr"),
    [("x" * 16, "SH"), ("ä" * 64, "LO"), ("x" * 5000, "UT"), ("one\r\ntwo\\", "UT"), ("x" * 1024, "ST")],
)
def test_legal_text_passes(value: str, vr: str) -> None:
    check_text(value, vr, "it")


@pytest.mark.parametrize(
    ("value", "vr"),
    [
        ("", "LO"),
        ("x" * 17, "SH"),
        ("x" * 65, "LO"),
        ("a\\b", "LO"),
        ("a\nb", "SH"),
        ("a\0b", "UT"),
        ("x" * 1025, "ST"),
    ],
)
def test_illegal_text_is_refused_without_being_shown(value: str, vr: str) -> None:
    with pytest.raises(ResultError, match=r"^it ") as raised:
        check_text(value, vr, "it")
    assert not value or value not in str(raised.value)


@pytest.mark.parametrize("value", ["", "1", "1.02", "1.2.", "1..2", "1.2a", "1." + "2" * 63, "1.2\n"])
def test_what_is_no_uid_is_refused(value: str) -> None:
    check_uid("2.25.1", "it")
    with pytest.raises(ResultError, match=r"^it is not a UID"):
        check_uid(value, "it")


@pytest.mark.parametrize(
    ("value", "legal"), [("1.02.3", True), ("A-1", True), ("", False), ("é", False), ("1\\2", False)]
)
def test_another_s_illegal_uid_can_be_cited_where_it_can_be_written(value: str, legal: Any) -> None:
    if legal:
        check_cited(value, "it")
    else:
        with pytest.raises(ResultError, match=r"^it cannot be cited"):
            check_cited(value, "it")
