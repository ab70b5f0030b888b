from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import (
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from dicom_node import __version__
from dicom_node.domain import MANUFACTURER, MODEL_NAME, Decision, TargetResult
from dicom_node.report import SOP_CLASSES
from dicom_node.report_content import NOT_FOR_DIAGNOSIS
from dicom_node.results import ResultError, encode
from tests.factories import chest_dataset
from tests.result_factories import manifest, member, prediction, read_result, results, stored, target, two_results
from tests.sr_tree import cited_in, evidence_of, groups_of, items, name_of, value_of


@pytest.fixture
def source() -> Dataset:
    return stored(chest_dataset())


def test_every_number_reads_back_as_the_ledger_has_it(source: Dataset) -> None:
    answer = prediction(1 / 3, 0.1234567890123)
    _, report = results(source, answer)
    read = read_result(dcmread(BytesIO(encode(report))))
    assert read["answers"] == {"840539006": {"flagged": True, "probability": 1 / 3, "threshold": 0.1234567890123}}
    assert read["outputs"] == answer.members


@pytest.mark.parametrize("value", [1 / 3, -1.23456789e-5, 6.02214076e23, -7.1234567e-300, 1234567.891, 0.0])
def test_a_number_survives_in_the_16_characters_of_a_decimal_string(source: Dataset, value: float) -> None:
    _, report = results(source, prediction(members={"zhang": {"p_ano": value}}))
    written = dcmread(BytesIO(encode(report)))
    (number,) = [item for item in items(written, "NUM") if name_of(item)[0] == "p_ano"]
    measured = number.MeasuredValueSequence[0]
    assert len(str(measured["NumericValue"].value.original_string)) <= 16
    assert float(measured.NumericValue) == pytest.approx(value, rel=1e-6)
    assert measured.FloatingPointValue == value


def test_numbers_of_numpy_are_taken_as_they_are(source: Dataset) -> None:
    answer = prediction(
        targets=(TargetResult("covid", np.float32(0.7), np.float64(0.5), Decision.FLAGGED),),  # type: ignore[arg-type]
        members={"zhang": {"p_cls": np.float32(0.25)}},
    )
    read = read_result(results(source, answer)[1])
    assert read["answers"]["840539006"]["probability"] == pytest.approx(0.7, rel=1e-6)
    assert read["outputs"] == {"zhang": {"p_cls": 0.25}}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "0.5x"])
def test_a_number_that_is_none_is_refused_by_name(source: Dataset, value: Any) -> None:
    with pytest.raises(ResultError, match="zhang p_ano"):
        results(source, prediction(members={"zhang": {"p_ano": value}}))


def test_a_probability_outside_0_to_1_is_refused_by_name(source: Dataset) -> None:
    with pytest.raises(ResultError, match=r"zhang p_cls is 1\.5: not a probability"):
        results(source, prediction(members={"zhang": {"p_cls": 1.5}}))
    with pytest.raises(ResultError, match="probability of covid"):
        results(source, prediction(1.5))


def test_a_negative_answer_never_asserts_the_disease(source: Dataset) -> None:
    _, report = results(source, prediction(0.25))
    coded = items(report, "CODE")
    (answer,) = [item for item in coded if name_of(item) == ("840539006", "SCT")]
    assert answer.ConceptCodeSequence[0].CodeMeaning == "Negative"
    assert all(item.ConceptCodeSequence[0].CodeValue != "840539006" for item in coded)
    findings = [item.ConceptCodeSequence[0].CodeMeaning for item in coded if name_of(item)[0] == "121071"]
    assert findings == ["Selected region"]
    assert not [item for item in coded if name_of(item)[0] == "121402"]


def test_there_is_a_group_per_question_one_per_member_and_the_region(source: Dataset) -> None:
    two = manifest(targets=(target(), target("pneumonia", 0.3)))
    answer = prediction(targets=two_results())
    _, report = results(source, answer, two)
    assert [value_of(group, "112039") for group in groups_of(report)] == [
        f"{label}, image {source.SOPInstanceUID}"
        for label in (
            "AI ensemble: COVID-19",
            "AI ensemble: Pneumonia",
            "AI member: Zhang 2020, anomaly detection",
            "AI member: Basu 2020, anomaly detection",
            "AI region of the strongest activation",
        )
    ]
    read = read_result(report)
    assert {code: answer["flagged"] for code, answer in read["answers"].items()} == {
        "840539006": False,
        "233604007": True,
    }
    assert len({value_of(group, "112040") for group in groups_of(report)}) == 5


def test_a_person_sees_which_output_is_which(source: Dataset) -> None:
    _, report = results(source)
    meanings = [item.ConceptNameCodeSequence[0].CodeMeaning for item in items(report, "NUM")]
    assert "Anomaly score, not confined to 0..1" in meanings
    assert "Mean of probability and scaled anomaly score" in meanings
    (zhang,) = [group for group in groups_of(report) if "Zhang" in value_of(group, "112039")]
    texts = [item.TextValue for item in items(zhang, "TEXT")]
    assert "output p_cls=Probability" in texts


def test_the_private_scheme_is_identified(source: Dataset) -> None:
    _, report = results(source)
    (scheme,) = report.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99CXRSCREEN"
    assert scheme.CodingSchemeResponsibleOrganization == MANUFACTURER


def test_every_number_has_one_child_and_it_is_the_whole_image(source: Dataset) -> None:
    # OHIF reads the first child of every NUM as coordinates and throws where there is none.
    _, report = results(source)
    numbers = [item for group in groups_of(report) for item in items(group, "NUM")]
    assert len(numbers) == 6
    for number in numbers:
        (child,) = number.ContentSequence
        assert (child.ValueType, child.RelationshipType) == ("SCOORD", "INFERRED FROM")
        assert child.GraphicType == "POLYLINE"
        assert list(child.GraphicData) == [0, 0, 80, 0, 80, 96, 0, 96, 0, 0]
        (image,) = child.ContentSequence
        assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_the_frame_of_the_document_is_what_ohif_and_archives_expect(source: Dataset) -> None:
    _, report = results(source)
    assert name_of(report) == ("126000", "DCM")
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert [name_of(item)[0] for item in items(report, "CONTAINER")][:3] == ["111028", "126200", "126010"]
    for group in groups_of(report):
        assert value_of(group, "112039")
        assert value_of(group, "112040")
    assert (report.Modality, report.SeriesNumber, report.ContentQualification) == ("SR", 9002, "RESEARCH")
    assert report.SeriesDescription == "AI result - RESEARCH, NOT FOR DIAGNOSTIC USE"
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert (report.Manufacturer, report.ManufacturerModelName) == (MANUFACTURER, MODEL_NAME)
    assert report.SpecificCharacterSet == "ISO_IR 192"
    assert report.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_it_says_in_plain_words_that_it_is_not_for_diagnostic_use(source: Dataset) -> None:
    _, report = results(source)
    assert NOT_FOR_DIAGNOSIS in [item.TextValue for item in items(groups_of(report)[0], "TEXT")]


def test_source_and_heatmap_are_evidence_and_the_heatmap_is_the_explanation(source: Dataset) -> None:
    heatmap, report = results(source)
    assert evidence_of(report) == cited_in(report) == {source.SOPInstanceUID, heatmap.SOPInstanceUID}
    (shown,) = [item for item in items(report, "IMAGE") if name_of(item) == ("130401", "DCM")]
    assert shown.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == heatmap.SOPInstanceUID
    assert shown.RelationshipType == "CONTAINS"


def test_a_picture_without_maps_explains_nothing_and_is_not_cited(source: Dataset) -> None:
    _, report = results(source, prediction(maps=()))
    assert cited_in(report) == {source.SOPInstanceUID}
    assert evidence_of(report) == cited_in(report)
    assert [group.ContentTemplateSequence[0].TemplateIdentifier for group in groups_of(report)] == ["1501"] * 3


def test_algorithms_and_contributing_equipment_agree(source: Dataset) -> None:
    # IHE AIR 6.5.3.1: the same name, version, manufacturer and Device UID in both places.
    heatmap, report = results(source)
    described = set()
    for group in groups_of(report):
        parameters = [item.TextValue for item in group.ContentSequence if name_of(item)[0] == "111002"]
        (device,) = [text.removeprefix("device_uid=") for text in parameters if text.startswith("device_uid=")]
        described.add((value_of(group, "111001"), value_of(group, "111003"), value_of(group, "122405"), device))
    tree = report
    described.add((value_of(tree, "121015"), __version__, value_of(tree, "121014"), value_of(tree, "121012")))
    equipment = {
        (item.ManufacturerModelName, item.SoftwareVersions, item.Manufacturer, item.DeviceUID)
        for item in report.ContributingEquipmentSequence
        if item.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    }
    assert equipment == described
    assert len(heatmap.ContributingEquipmentSequence) == 3


def test_a_member_that_took_no_part_is_not_mentioned(source: Dataset) -> None:
    _, report = results(source, prediction(members={"zhang": {"p_cls": 0.5}}))
    assert "basu" not in [item.get("ManufacturerModelName") for item in report.ContributingEquipmentSequence]
    assert not [group for group in groups_of(report) if "Basu" in value_of(group, "112039")]


def test_the_image_library_describes_orientation_and_spacing_where_the_source_has_both() -> None:
    _, report = results(stored(chest_dataset(ImagerPixelSpacing=["0.5", "0.25"])))
    (entry,) = [item for item in items(report, "IMAGE") if len(item.get("ContentSequence", ())) > 0]
    assert [name_of(item)[0] for item in entry.ContentSequence][3:] == ["111044", "111043", "111026", "111066"]


def test_patient_and_study_are_the_sources(source: Dataset) -> None:
    source = stored(
        chest_dataset(
            AccessionNumber="ACC123",
            IssuerOfPatientID="SITE",
            PatientAge="064Y",
            StudyDescription="Chest PA",
            StudyID="S1",
            PatientSex="F",
            PatientBirthDate="19600101",
            ReferringPhysicianName="Ref^Doc",
        )
    )
    for result in results(source):
        for keyword in (
            *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
            *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription"),
            *("AccessionNumber", "ReferringPhysicianName"),
        ):
            assert result[keyword].value == source[keyword].value, keyword


def test_the_same_arguments_give_the_same_bytes_at_any_time(source: Dataset) -> None:
    for once, again in zip(results(source), results(source), strict=True):
        assert encode(once) == encode(again)
        dates = {str(element.value)[:8] for element in once.iterall() if element.VR in ("DA", "DT")}
        assert dates <= {"", "20240102", source.StudyDate}


def test_the_file_names_our_implementation(source: Dataset) -> None:
    for result in results(source):
        meta = dcmread(BytesIO(encode(result))).file_meta
        assert meta.ImplementationVersionName.startswith("CXRNODE_")
        assert meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert meta.MediaStorageSOPInstanceUID == result.SOPInstanceUID


def test_the_order_in_which_members_are_given_does_not_matter(source: Dataset) -> None:
    answer = prediction()
    reordered = prediction(
        members={name: dict(reversed(list(outputs.items()))) for name, outputs in reversed(answer.members.items())}
    )
    assert encode(results(source, answer)[1]) == encode(results(source, reordered)[1])


def test_what_changes_the_report_changes_its_uid_and_its_series(source: Dataset) -> None:
    low = (TargetResult("covid", 0.8125, 0.25, Decision.FLAGGED),)
    made = [
        results(source)[1],
        results(source, sop_class=ComprehensiveSRStorage)[1],
        results(source, sop_class=EnhancedSRStorage)[1],
        results(source, node_ae_title="OTHER")[1],
        results(source, prediction(operating_point="sensitive"))[1],
        results(source, prediction(targets=low))[1],
        results(source, prediction(release="2"), manifest(release="2"))[1],
        results(source, made_by=manifest(members=(member("zhang", "c"), member("basu", "b"))))[1],
    ]
    assert len({report.SOPInstanceUID for report in made}) == len(made)
    assert len({report.SeriesInstanceUID for report in made}) == len(made)


@pytest.mark.parametrize("sop_class", SOP_CLASSES)
def test_each_sop_class_holds_the_same_tree(source: Dataset, sop_class: Any) -> None:
    _, report = results(source, sop_class=sop_class)
    assert report.SOPClassUID == sop_class
    assert read_result(report) == read_result(results(source)[1])


def test_source_heatmap_and_report_share_nothing() -> None:
    header = stored(chest_dataset(TimezoneOffsetFromUTC="-0330"))
    heatmap, report = results(header)
    heatmap.PatientID = "changed"
    assert report.PatientID == header.PatientID == "PHANTOM"


def test_titles_that_dicom_could_not_hold_are_made_to_fit(source: Dataset) -> None:
    long = manifest(
        name="n" * 80,
        title="t\\\n" * 800,
        members=(member("zhang", "a", name="m\\" * 50, version="v" * 90), member("basu", "b")),
        targets=(target(members=("basu",)).model_copy(update={"title": "x" * 5000}),),
    )
    answer = prediction(bundle="n" * 80, members={"m\\" * 50: {"p_cls": 0.5}})
    _, report = results(source, answer, long)
    names = [item.ManufacturerModelName for item in report.ContributingEquipmentSequence[1:]]
    assert names[1] == "n" * 64
    assert len(names[2]) <= 64
    assert "\\" not in names[2]


def test_a_source_with_an_illegal_study_uid_still_gets_its_results_into_that_study() -> None:
    source = stored(chest_dataset())
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        tag = Tag(tag_for_keyword(keyword) or 0)
        source[tag] = RawDataElement(tag, "UI", 6, b"1.02.3", 0, False, True)
    for result in results(source):
        assert b"UI\x06\x001.02.3" in encode(result)


def test_the_image_library_names_the_modality_of_the_source_and_not_of_its_sop_class() -> None:
    source = stored(chest_dataset(SOPClassUID=SecondaryCaptureImageStorage))
    (modality,) = [item for item in items(results(source)[1], "CODE") if name_of(item) == ("121139", "DCM")]
    assert modality.ConceptCodeSequence[0].CodeValue == "CR"


def test_log_odds_of_a_probability_that_stands_there_are_not_told_again(source: Dataset) -> None:
    _, report = results(
        source, prediction(members={"zhang": {"p_covid19": 0.25, "logit_covid19": -1.1, "logit_x": 2.0}})
    )
    told = {name_of(item)[0] for item in items(report, "NUM")}
    assert "p_covid19" in told
    assert "logit_x" in told
    assert "logit_covid19" not in told


def test_an_undecided_question_is_answered_undetermined(source: Dataset) -> None:
    undecided = (TargetResult("covid", 0.55, 0.5, Decision.INDETERMINATE),)
    _, report = results(source, prediction(targets=undecided))
    answers = [item.ConceptCodeSequence[0] for item in items(report, "CODE") if name_of(item)[0] == "840539006"]
    assert [(code.CodeValue, code.CodingSchemeDesignator) for code in answers] == [("373068000", "SCT")]


def test_what_was_done_to_the_image_stands_in_the_report_and_on_the_heatmap(source: Dataset) -> None:
    answer = prediction(remarks=("polarity_mended", "turned:90", "without_member:jahan"))
    heatmap, report = results(source, answer)
    comments = [item.TextValue for item in items(report, "TEXT")]
    for told in ("inverted, as its polarity", "turned by 90 degrees clockwise", "Answered without jahan"):
        assert sum(told in comment for comment in comments) == 1
    plain, _ = results(source, prediction())
    assert heatmap.Rows > plain.Rows, "three more lines under the picture"


def test_a_sites_threshold_is_called_one(source: Dataset) -> None:
    of_site = (TargetResult("covid", 0.4, 0.35, Decision.FLAGGED, operating_point="site"),)
    _, report = results(source, prediction(targets=of_site))
    parameters = [item.TextValue for item in items(report, "TEXT")]
    assert "operating_point=site" in parameters
    assert "operating_point=balanced" not in parameters


def test_the_picture_explains_the_first_question_alone(source: Dataset) -> None:
    two = manifest(targets=(target(), target("pneumonia", 0.3)))
    _, report = results(source, prediction(targets=two_results()), two)
    assert len([item for item in items(report, "IMAGE") if name_of(item)[0] == "130401"]) == 1
