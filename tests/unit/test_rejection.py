from __future__ import annotations

from datetime import timedelta
from io import BytesIO
from typing import TYPE_CHECKING

import highdicom as hd
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import KeyObjectSelectionDocumentStorage, SecondaryCaptureImageStorage

from dicom_node import __version__, uids
from dicom_node.domain import MANUFACTURER, MODEL_NAME
from dicom_node.normalise import normalise
from dicom_node.rejection import SERIES_DESCRIPTION, SERIES_NUMBER, RejectionReason, build_rejection_note
from dicom_node.results import Reference, ResultError, encode
from dicom_node.validation import check_object
from tests.factories import chest_dataset
from tests.result_factories import WHEN, results, stored

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Validate


def reference(ds: Dataset) -> Reference:
    return Reference(
        *(str(ds[k].value) for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"))
    )


@pytest.fixture(scope="module")
def objects() -> list[Reference]:
    return [reference(ds) for ds in results(original())]


def original() -> Dataset:
    return stored(
        chest_dataset(
            SpecificCharacterSet="ISO_IR 100",
            PatientName="Müller^Jörg",
            IssuerOfPatientID="SITE",
            AccessionNumber="A1",
            TimezoneOffsetFromUTC="+0100",
        )
    )


@pytest.fixture
def template() -> Dataset:
    return normalise(original())[0]


def build(objects: list[Reference], template: Dataset, reason: str = "quality", ae: str = "CXRSCREEN") -> Dataset:
    return build_rejection_note(objects, template, reason=RejectionReason(reason), when=WHEN, node_ae_title=ae)


def read(note: Dataset) -> hd.ko.KeyObjectSelection:
    return hd.ko.KeyObjectSelectionDocument.from_dataset(dcmread(BytesIO(encode(note)))).content


@pytest.mark.parametrize(
    ("reason", "code", "meaning"),
    [
        ("quality", "113001", "Rejected for Quality Reasons"),
        ("safety", "113037", "Rejected for Patient Safety Reasons"),
    ],
)
def test_the_title_says_why(objects: list[Reference], template: Dataset, reason: str, code: str, meaning: str) -> None:
    note = build(objects, template, reason)
    (title,) = note.ConceptNameCodeSequence
    assert (title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning) == (code, "DCM", meaning)
    (text,) = [item.TextValue for item in note.ContentSequence if item.ValueType == "TEXT" and "113012" in str(item)]
    assert {"quality": "quality", "safety": "safety of the patient"}[reason] in text
    assert "The software that made these results withdraws them" in text


def test_a_worklist_error_is_no_reason_of_ours(objects: list[Reference], template: Dataset) -> None:
    assert set(RejectionReason) == {"quality", "safety"}
    for reason in RejectionReason:
        assert b"113038" not in encode(build(objects, template, reason))


def test_it_names_the_objects_and_nothing_else(objects: list[Reference], template: Dataset) -> None:
    note = build(objects, template)
    cited = [item.ReferencedSOPSequence[0] for item in note.ContentSequence if "ReferencedSOPSequence" in item]
    named = {(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in cited}
    assert named == {(each.sop_class_uid, each.sop_instance_uid) for each in objects}
    assert len(cited) == len(objects)
    (study,) = note.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == template.StudyInstanceUID
    listed = {
        Reference(
            study.StudyInstanceUID,
            series.SeriesInstanceUID,
            instance.ReferencedSOPClassUID,
            instance.ReferencedSOPInstanceUID,
        )
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    assert listed == set(objects)
    assert "PertinentOtherEvidenceSequence" not in note


def test_a_picture_is_cited_as_image_and_a_report_as_composite(objects: list[Reference], template: Dataset) -> None:
    for rows in (True, False):
        if not rows:
            del template.Rows, template.Columns
        kinds = {
            item.referenced_sop_class_uid: item.value_type.value
            for item in read(build(objects, template)).get_references()
        }
        assert kinds.pop(SecondaryCaptureImageStorage) == "IMAGE"
        assert list(kinds.values()) == ["COMPOSITE"]


def test_it_stands_with_the_source_in_a_series_of_its_own(objects: list[Reference], template: Dataset) -> None:
    note = dcmread(BytesIO(encode(build(objects, template))))
    assert note.SOPClassUID == KeyObjectSelectionDocumentStorage
    for keyword in (
        "PatientName",
        "PatientID",
        "IssuerOfPatientID",
        "StudyInstanceUID",
        "StudyDate",
        "AccessionNumber",
    ):
        assert note[keyword].value == template[keyword].value
    assert note.SeriesInstanceUID == uids.series_uid(note.SOPInstanceUID)
    assert (note.Modality, note.SeriesNumber, note.SeriesDescription) == ("KO", SERIES_NUMBER, SERIES_DESCRIPTION)
    assert len(SERIES_DESCRIPTION) <= 64
    assert (note.ContentDate, note.ContentTime) == ("20240103", "004506")  # in the source's time zone
    assert note.TimezoneOffsetFromUTC == "+0100"


def test_the_node_observes_and_is_named_as_equipment(objects: list[Reference], template: Dataset) -> None:
    note = build(objects, template, ae="NODE7")
    (observer,) = read(note).get_observer_contexts()
    values = [item.value for item in observer]
    assert {uids.node_uid("NODE7"), "NODE7", MANUFACTURER, MODEL_NAME} <= set(values)
    (equipment,) = note.ContributingEquipmentSequence
    assert (equipment.ManufacturerModelName, equipment.DeviceUID) == (MODEL_NAME, uids.node_uid("NODE7"))
    assert (note.Manufacturer, note.ManufacturerModelName) == (MANUFACTURER, MODEL_NAME)
    assert note.SoftwareVersions == __version__
    assert note.StationName == "NODE7"


def test_the_same_withdrawal_gives_the_same_bytes(objects: list[Reference], template: Dataset) -> None:
    first = encode(build(objects, template))
    assert encode(build(objects[::-1], template)) == first


def test_another_withdrawal_is_another_object(objects: list[Reference], template: Dataset) -> None:
    notes = [
        build(objects, template),
        build(objects[:1], template),
        build(objects, template, "safety"),
        build(objects, template, ae="OTHER"),
    ]
    assert len({note.SOPInstanceUID for note in notes}) == len(notes)


def test_the_template_stays_as_it_is(objects: list[Reference], template: Dataset) -> None:
    before = template.to_json()
    note = build(objects, template)
    note.PatientName = "SOMEBODY^ELSE"
    assert template.to_json() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: [], "no object to withdraw"),
        (lambda found: [found[0], found[0]], "named twice"),
        (lambda found: [found[0], Reference("9.9", "9.9.1", found[1].sop_class_uid, "9.9.1.1")], "not of the study"),
    ],
)
def test_what_cannot_be_withdrawn_is_refused(
    objects: list[Reference], template: Dataset, change: object, message: str
) -> None:
    with pytest.raises(ResultError, match=message):
        build(change(objects), template)  # type: ignore[operator]


def test_it_passes_our_own_checks(objects: list[Reference], template: Dataset) -> None:
    note = build(objects, template)
    check_object(note, [template])
    check_object(dcmread(BytesIO(encode(note))), [template])
    later = build_rejection_note(
        objects,
        template,
        reason=RejectionReason.SAFETY,
        when=WHEN + timedelta(days=1),
        node_ae_title="CXRSCREEN",
    )
    check_object(later, [template])


def test_a_note_whose_evidence_holds_more_than_it_names_is_refused(objects: list[Reference], template: Dataset) -> None:
    note = build(objects, template)
    del note.ContentSequence[-1]
    with pytest.raises(ResultError, match=r"\(0040,A375\).* holds instances that the content tree does not name"):
        check_object(note, [template])


@pytest.mark.parametrize("reason", RejectionReason)
def test_the_validators_find_no_error(
    objects: list[Reference], template: Dataset, reason: str, validators: Validate, tmp_path: Path
) -> None:
    file = tmp_path / "note.dcm"
    file.write_bytes(encode(build(objects, template, reason)))
    validators(file)
    references = hd.ko.KeyObjectSelectionDocument.from_dataset(dcmread(file)).content.get_references()
    assert {item.referenced_sop_instance_uid for item in references} == {each.sop_instance_uid for each in objects}
