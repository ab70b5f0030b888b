from __future__ import annotations

import random
from copy import deepcopy
from io import BytesIO
from typing import Any

import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from dicom_node.normalise import CHARACTER_SET, KEPT, TYPE_2, normalise
from tests.factories import chest_dataset, code
from tests.result_factories import stored


def with_raw(keyword: str, value: bytes, vr: str | None = None, character_set: str = "ISO_IR 6") -> Dataset:
    """A header as if read from a file in which this element has these bytes."""
    ds = stored(chest_dataset())
    ds.set_original_encoding(False, True, character_set)
    set_raw(ds, "SpecificCharacterSet", character_set.encode(), "CS")
    set_raw(ds, keyword, value, vr)
    return ds


def set_raw(ds: Dataset, keyword: str, value: bytes, vr: str | None = None, implicit: bool = False) -> None:
    tag = Tag(tag_for_keyword(keyword) or 0)
    ds[tag] = RawDataElement(tag, vr or dictionary_VR(tag), len(value), value, 0, implicit, True)


def notes_on(keyword: str, notes: tuple[str, ...]) -> list[str]:
    return [note for note in notes if note.startswith(f"{keyword}:")]


def test_a_legal_header_passes_without_a_note() -> None:
    source = stored(chest_dataset())
    normal, notes = normalise(source)
    assert notes == ()
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "StudyTime", "SOPInstanceUID"):
        assert normal[keyword].value == source[keyword].value
    assert normal.SpecificCharacterSet == CHARACTER_SET


def test_every_kept_attribute_is_known_and_named_once() -> None:
    assert all(tag_for_keyword(keyword) for keyword in KEPT)
    assert len(set(KEPT)) == len(KEPT)


def test_it_keeps_no_pixels_and_nothing_private() -> None:
    source = chest_dataset()
    source.private_block(0x0011, "SOMEBODY", create=True).add_new(1, "LO", "secret")
    normal, _ = normalise(source)
    assert "PixelData" not in normal
    assert not any(element.tag.is_private for element in normal)
    assert {element.keyword for element in normal} <= {*KEPT, "SpecificCharacterSet"}


def test_absent_type_2_attributes_are_added_empty() -> None:
    source = stored(chest_dataset(**dict.fromkeys(TYPE_2)))
    normal, notes = normalise(source)
    for keyword in TYPE_2:
        assert normal[keyword].is_empty
        assert notes_on(keyword, notes) == [f"{keyword}: absent, added empty"]


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("StudyDate", b"2025-01-01"),
        ("StudyDate", b"20250230"),
        ("StudyDate", b"20250101-20250201"),
        ("StudyDate", b"20250101\\20250102"),
        ("PatientBirthDate", b"1960.01.01"),
        ("StudyTime", b"10:15:30"),
        ("StudyTime", b"256161"),
        ("PatientSex", b"U "),
        ("PatientSex", b"female"),
        ("AccessionNumber", b"A" * 40),
        ("StudyID", b"17 characters long"),
        ("PatientID", b"P" * 66),
        ("PatientID", b"P\x07"),
        ("PatientName", b"N" * 66),
        ("PatientName", b"a=b=c=d "),
        ("PatientName", b"a^b^c^d^e^f "),
        ("ReferringPhysicianName", b"a\x00b "),
        ("Modality", b"cr"),
    ],
)
def test_an_illegal_type_2_value_is_emptied_and_noted_without_the_value(keyword: str, value: bytes) -> None:
    normal, notes = normalise(with_raw(keyword, value))
    assert normal[keyword].is_empty
    (note,) = notes_on(keyword, notes)
    assert note.endswith(", emptied")
    assert value.decode().strip(" \0") not in note


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientAge", b"64"),
        ("PatientWeight", b"heavy "),
        ("PatientWeight", b"1e999 "),
        ("StudyDescription", b"D" * 66),
        ("TimezoneOffsetFromUTC", b"Z "),
        ("BurnedInAnnotation", b"MAYBE "),
        ("PatientOrientation", b"L"),
        ("PatientOrientation", b"L\\X "),
        ("PatientOrientation", b"LR\\F"),
        ("ImagerPixelSpacing", b"0.1 "),
        ("ImagerPixelSpacing", b"0\\0 "),
        ("Rows", b"\x00"),
    ],
)
def test_an_illegal_value_of_another_attribute_is_left_out_and_noted(keyword: str, value: bytes) -> None:
    normal, notes = normalise(with_raw(keyword, value))
    assert keyword not in normal
    (note,) = notes_on(keyword, notes)
    assert note.endswith(", left out")


def test_an_illegal_uid_that_results_must_cite_is_kept_as_it_came() -> None:
    normal, notes = normalise(with_raw("StudyInstanceUID", b"1.02.3"))
    assert normal.StudyInstanceUID == "1.02.3"
    assert notes == ("StudyInstanceUID: illegal UI, kept",)


@pytest.mark.parametrize(
    ("terms", "name"),
    [
        ("ISO_IR 192", "Wiśniewska^Zoë"),
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 101", "Wiśniewska^Łucja"),
        ("ISO_IR 144", "Люкceмбypг"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
)
def test_names_survive_from_every_character_set(terms: str | list[str], name: str) -> None:
    source = stored(chest_dataset(SpecificCharacterSet=terms, PatientName=name))
    normal, notes = normalise(source)
    assert normal.PatientName == name
    assert notes == ()
    normal.SOPClassUID = source.SOPClassUID
    again = BytesIO()
    normal.file_meta = source.file_meta
    dcmwrite(again, normal, enforce_file_format=True)
    again.seek(0)
    assert dcmread(again).PatientName == name


def test_a_name_in_gb_2312_survives_without_its_escapes() -> None:
    name = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab= "  # PS3.5 K.2
    source = with_raw("PatientName", name, character_set="\\ISO 2022 IR 58")
    set_raw(source, "StudyDescription", b"\x1b$)A\xd0\xd8")
    normal, notes = normalise(source)
    assert normal.PatientName == "Zhang^XiaoDong=张^小东"
    assert normal.StudyDescription == "胸"
    assert notes == ()


def test_a_character_set_that_does_not_fit_loses_characters_of_a_name_but_never_falsifies_an_identifier() -> None:
    source = with_raw("PatientName", b"M\xfcller^J\xf6rg", character_set="ISO_IR 192")
    set_raw(source, "PatientID", b"M\xfc")
    normal, notes = normalise(source)
    assert str(normal.PatientName).startswith("M\ufffdller")
    assert normal.PatientID == ""
    assert notes == (
        "PatientName: not in the Specific Character Set, characters replaced",
        "PatientID: not in the Specific Character Set, emptied",
    )


@pytest.mark.parametrize("terms", ["ISO_IR 999", "FOO", "undefined", "utf_16", "rot13", "punycode"])
def test_an_unknown_character_set_is_noted_and_never_taken_for_a_codec_of_python(terms: str) -> None:
    normal, notes = normalise(with_raw("PatientName", b"M\xfcller^J\xf6rg ", character_set=terms))
    assert normal.PatientName == "Müller^Jörg"
    assert normal.PatientID == "PHANTOM"
    assert notes == ("SpecificCharacterSet: unknown term, read as ISO_IR 100",)


def test_a_misspelt_character_set_is_understood() -> None:
    normal, notes = normalise(with_raw("PatientName", "Zoë".encode(), character_set="ISO-IR 192"))
    assert normal.PatientName == "Zoë"
    assert notes == ("SpecificCharacterSet: misspelt term",)


def test_whole_sequences_are_kept_and_broken_ones_left_out() -> None:
    source = chest_dataset(ProcedureCodeSequence=[code("XR", "L", "Chest")], ReferencedStudySequence=[Dataset()])
    source.ReasonForVisitCodeSequence = [code("A", "L", "")]
    source.ReferencedStudySequence[0].ReferencedSOPInstanceUID = "1.2.3"
    normal, notes = normalise(source)
    assert normal.ProcedureCodeSequence[0].CodeMeaning == "Chest"
    assert "ReferencedStudySequence" not in normal
    assert "ReasonForVisitCodeSequence" not in normal
    assert notes == (
        "ReferencedStudySequence: incomplete item, left out",
        "ReasonForVisitCodeSequence: incomplete item, left out",
    )


def test_attributes_that_are_legal_only_together_come_together_or_not_at_all() -> None:
    whole = {"ClinicalTrialSponsorName": "S", "ClinicalTrialProtocolID": "P", "ClinicalTrialSubjectID": "1"}
    normal, notes = normalise(chest_dataset(**whole, PatientIdentityRemoved="YES", DeidentificationMethod="M"))
    assert (normal.ClinicalTrialSubjectID, normal.ClinicalTrialSiteName) == ("1", "")
    assert normal.PatientIdentityRemoved == "YES"
    assert notes == ()
    normal, notes = normalise(chest_dataset(ClinicalTrialProtocolID="P", PatientIdentityRemoved="YES"))
    assert not [element for element in normal if element.keyword.startswith("ClinicalTrial")]
    assert "PatientIdentityRemoved" not in normal
    assert len(notes) == 2


def entity(**elements: str) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


WHOLE = {"UniversalEntityID": "1.2.3", "UniversalEntityIDType": "ISO"}


@pytest.mark.parametrize("keyword", ["IssuerOfAccessionNumberSequence", "IssuerOfAdmissionIDSequence"])
@pytest.mark.parametrize(
    ("items", "note"),
    [
        ([entity(LocalNamespaceEntityID="HIS")], None),
        ([entity(**WHOLE)], None),
        ([entity(LocalNamespaceEntityID="HIS", **WHOLE)], None),
        ([entity(UniversalEntityID="1.2.3")], "incomplete item"),
        ([entity(UniversalEntityIDType="ISO")], "incomplete item"),
        ([entity(LocalNamespaceEntityID="HIS", UniversalEntityID="1.2.3")], "incomplete item"),
        ([entity(IdentifierTypeCode="MR")], "incomplete item"),
        ([entity(UniversalEntityID="1.2.3", UniversalEntityIDType="OID")], "not an enumerated value"),
        ([entity(LocalNamespaceEntityID="HIS"), entity(LocalNamespaceEntityID="RIS")], "more than one item"),
    ],
)
def test_an_issuer_is_one_item_that_names_it(keyword: str, items: list[Dataset], note: str | None) -> None:
    normal, notes = normalise(chest_dataset(**{keyword: items}))
    assert (keyword in normal) == (note is None)
    assert notes == (() if note is None else (f"{keyword}: {note}, left out",))


def test_qualifiers_need_not_name_the_issuer_of_a_patient_id_but_name_a_facility_wholly() -> None:
    keyword = "IssuerOfPatientIDQualifiersSequence"
    normal, notes = normalise(chest_dataset(**{keyword: [entity(IdentifierTypeCode="MR")]}))
    assert normal[keyword].value[0].IdentifierTypeCode == "MR"
    assert notes == ()
    item = entity(IdentifierTypeCode="MR")
    item.AssigningFacilitySequence = [entity(UniversalEntityIDType="ISO")]
    normal, notes = normalise(chest_dataset(**{keyword: [item]}))
    assert keyword not in normal
    assert notes == (f"{keyword}: incomplete item, left out",)


def test_the_time_point_of_a_trial_has_an_identifier_if_need_be_an_empty_one() -> None:
    trial = {"ClinicalTrialSponsorName": "S", "ClinicalTrialProtocolID": "P", "ClinicalTrialSubjectID": "1"}
    assert "ClinicalTrialTimePointID" not in normalise(chest_dataset(**trial))[0]
    normal, notes = normalise(chest_dataset(**trial, ClinicalTrialTimePointDescription="baseline"))
    assert normal.ClinicalTrialTimePointID == ""
    assert notes == ()


def test_a_sequence_nested_without_end_is_left_out() -> None:
    item = code("A", "L", "B")
    for _ in range(50):
        outer = code("A", "L", "B")
        outer.PurposeOfReferenceCodeSequence = [item]
        item = outer
    normal, notes = normalise(chest_dataset(ProcedureCodeSequence=[item]))
    assert "ProcedureCodeSequence" not in normal
    assert notes == ("ProcedureCodeSequence: nested too deep, left out",)


def test_the_header_is_left_as_it_is() -> None:
    source = with_raw("StudyDate", b"2025-01-01")
    before = deepcopy(source)
    raw = source.get_item("StudyDate")
    normal, _ = normalise(source)
    normal.PatientID = "changed"
    assert source.get_item("StudyDate") is raw
    assert source.PatientID == "PHANTOM"
    assert source.keys() == before.keys()


def test_values_set_in_memory_are_judged_too() -> None:
    source = chest_dataset()
    values: dict[str, Any] = {"StudyDate": 2025, "PatientID": None, "PatientWeight": float("nan"), "Rows": -5}
    for keyword, value in values.items():
        source[keyword] = source["PatientID"].__class__(
            tag_for_keyword(keyword), dictionary_VR(keyword), value, already_converted=True
        )
    normal, notes = normalise(source)
    assert normal.StudyDate == normal.PatientID == ""
    assert "PatientWeight" not in normal
    assert "Rows" not in normal
    assert len(notes) == 3


def test_no_bytes_make_it_raise() -> None:
    rng = random.Random(5)
    alphabet = b"\x00\x1b\\^=$B()\xff\xfe\x80A9.-+ \n"
    for _ in range(400):
        source = stored(chest_dataset())
        terms = rng.choice(["ISO_IR 192", "GB18030", "ISO 2022 IR 87", "undefined", "ISO_IR 13", "ISO 2022 IR 149"])
        source.set_original_encoding(False, True, terms)
        set_raw(source, "SpecificCharacterSet", terms.encode(), "CS")
        for keyword in rng.sample(KEPT, 12):
            tag = Tag(tag_for_keyword(keyword) or 0)
            value = bytes(rng.choices(alphabet, k=rng.randrange(0, 20)))
            vr = rng.choice([dictionary_VR(tag), dictionary_VR(tag), "UN", "OB", "LO", "US", "DS"])
            set_raw(source, keyword, value, vr, implicit=bool(rng.randrange(2)))
        normal, notes = normalise(source)
        assert all(keyword in normal for keyword in TYPE_2)
        assert all(isinstance(note, str) for note in notes)
        normal.file_meta = source.file_meta
        dcmwrite(BytesIO(), normal, implicit_vr=False, little_endian=True)


def test_no_value_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    for keyword, value in (("StudyDate", b"2025-01-01"), ("PatientID", b"SECRET" * 20), ("PatientAge", b"SECRET")):
        normalise(with_raw(keyword, value))
    assert "SECRET" not in caplog.text
    assert "2025-01-01" not in caplog.text
