"""Reports on several images of a study, and what cannot be reported."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydicom.uid import DigitalXRayImageStorageForPresentation, EnhancedSRStorage, SecondaryCaptureImageStorage

from dicom_node import bundle
from dicom_node.content import CONTENT_SEQUENCE
from dicom_node.domain import Decision, TargetResult
from dicom_node.report import SOP_CLASSES, build_report
from dicom_node.results import Reference, ResultError, encode
from tests.result_factories import (
    WHEN,
    image_of,
    manifest,
    prediction,
    screened,
    spot,
    target,
    two_results,
)
from tests.sr_tree import cited_in, evidence_of, groups_of, items, name_of, value_of

LATER = WHEN + timedelta(minutes=5)


def report_on(*images: Any, **arguments: Any) -> Any:
    made_by = arguments.pop("made_by", None) or manifest()
    return build_report(images, made_by, node_ae_title="CXRSCREEN", **arguments)


def two_images() -> tuple[Any, Any]:
    dx = image_of(2, SOPClassUID=DigitalXRayImageStorageForPresentation, Modality="DX", PatientID="NEWER")
    return screened(image_of(1)), screened(dx, prediction(0.25), LATER)


def test_each_image_has_its_groups_in_the_order_of_the_uids() -> None:
    first, second = two_images()
    report = report_on(second, first)
    groups = groups_of(report)
    assert [group.ContentTemplateSequence[0].TemplateIdentifier for group in groups] == ["1501"] * 3 + ["1410"] + [
        "1501"
    ] * 3 + ["1410"]
    for image, own in ((first, groups[:4]), (second, groups[4:])):
        assert {uid for group in own for uid in cited_in(group)} == {
            image.source.SOPInstanceUID,
            image.heatmap.sop_instance_uid,
        }
    answers = [
        item.ConceptCodeSequence[0].CodeMeaning for item in items(report, "CODE") if name_of(item)[0] == "840539006"
    ]
    assert answers == ["Positive", "Negative"]


def test_no_two_groups_share_a_tracking_identifier() -> None:
    report = report_on(*two_images())
    for concept in ("112039", "112040"):
        told = [value_of(group, concept) for group in groups_of(report)]
        assert len(set(told)) == len(told) == 8


def test_the_tracking_identifiers_of_an_image_stay_when_another_comes() -> None:
    first, second = two_images()
    alone = [value_of(group, "112040") for group in groups_of(report_on(first))]
    assert [value_of(group, "112040") for group in groups_of(report_on(first, second))][:4] == alone


def test_the_image_library_lists_every_source_by_modality() -> None:
    library = [item for item in items(report_on(*two_images()), "CONTAINER") if name_of(item)[0] == "126200"]
    modalities = [
        [item.ConceptCodeSequence[0].CodeValue for item in items(group, "CODE") if name_of(item)[0] == "121139"]
        for group in library
    ]
    assert modalities == [["CR"], ["DX"]]


def test_evidence_is_what_is_cited_and_nothing_else() -> None:
    first, second = two_images()
    report = report_on(first, screened(second.source, prediction(maps=())))
    expected = {first.source.SOPInstanceUID, first.heatmap.sop_instance_uid, second.source.SOPInstanceUID}
    assert evidence_of(report) == cited_in(report) == expected


def test_patient_and_time_are_those_of_the_latest_prediction() -> None:
    first, second = two_images()
    report = report_on(second, first)
    assert report.PatientID == "NEWER"
    assert report.ContentTime == LATER.strftime("%H%M%S")
    assert {str(item.ContributionDateTime) for item in report.ContributingEquipmentSequence[1:]} == {
        LATER.strftime("%Y%m%d%H%M%S+0000")
    }


def test_of_two_predictions_at_one_instant_the_greater_uid_names_the_patient() -> None:
    images = [screened(image_of(number, PatientID=f"P{number}")) for number in (1, 2)]
    assert report_on(*images).PatientID == report_on(*images[::-1]).PatientID == "P2"


def test_equipment_is_told_once_whatever_the_number_of_images() -> None:
    one, two = (report_on(*two_images()[:count]) for count in (1, 2))
    assert [item.get("ManufacturerModelName") for item in two.ContributingEquipmentSequence] == [
        item.get("ManufacturerModelName") for item in one.ContributingEquipmentSequence
    ]


def test_a_member_that_took_part_in_one_image_alone_is_equipment_too() -> None:
    first, second = two_images()
    only = screened(second.source, prediction(members={"basu": {"p_x": 0.5}}))
    report = report_on(screened(first.source, prediction(members={"zhang": {"p_cls": 0.5}})), only)
    assert [item.ManufacturerModelName for item in report.ContributingEquipmentSequence[-2:]] == ["zhang", "basu"]


def test_predecessors_are_named_and_make_another_report() -> None:
    first, second = two_images()
    earlier = report_on(first)
    cited = Reference(earlier.StudyInstanceUID, earlier.SeriesInstanceUID, earlier.SOPClassUID, earlier.SOPInstanceUID)
    report = report_on(first, second, predecessors=[cited])
    (study,) = report.PredecessorDocumentsSequence
    assert study.StudyInstanceUID == report.StudyInstanceUID
    assert study.ReferencedSeriesSequence[0].SeriesInstanceUID == earlier.SeriesInstanceUID
    (instance,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert instance.ReferencedSOPInstanceUID == earlier.SOPInstanceUID
    assert report.SOPInstanceUID != report_on(first, second).SOPInstanceUID
    assert "PredecessorDocumentsSequence" not in earlier


@pytest.mark.parametrize(
    ("decision", "probability", "told"),
    [
        (Decision.FLAGGED, 0.8, ("Positive", "Abnormal")),
        (Decision.NOT_FLAGGED, 0.2, ("Negative", "Normal")),
        (Decision.INDETERMINATE, 0.6, ("Undetermined", "Normality Undetermined")),
    ],
)
def test_normality_is_told_only_where_any_abnormality_was_asked_for(
    decision: Decision, probability: float, told: tuple[str, str]
) -> None:
    both = manifest(targets=(target(), target("abnormal")))
    answers = tuple(TargetResult(name, probability, 0.5, decision) for name in ("covid", "abnormal"))
    covid, abnormal, *_ = groups_of(report_on(screened(image_of(1), prediction(targets=answers)), made_by=both))
    found = [
        {name_of(item)[0]: item.ConceptCodeSequence[0].CodeMeaning for item in items(group, "CODE")}
        for group in (covid, abnormal)
    ]
    assert (found[1]["263654008"], found[1]["121402"]) == told
    assert "121402" not in found[0]


def test_the_region_is_the_box_around_the_strongest_activation_in_pixels_of_the_source() -> None:
    maps = (spot(centre=(0.25, 0.75), radius=0.05),)
    report = report_on(screened(image_of(1), prediction(maps=maps)))
    (region,) = [item for item in items(groups_of(report)[-1], "SCOORD") if name_of(item)[0] == "111030"]
    corners = list(zip(region.GraphicData[::2], region.GraphicData[1::2], strict=True))
    assert corners[0] == corners[-1]
    (left, top), (right, bottom) = corners[0], corners[2]
    assert (left + right) / 2 == pytest.approx(0.75 * 80, abs=1)
    assert (top + bottom) / 2 == pytest.approx(0.25 * 96, abs=1)
    assert 2 < right - left < 20
    assert region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == image_of(1).SOPInstanceUID


def test_the_region_says_of_which_question_it_is() -> None:
    three = manifest(targets=(target("abnormal"), target(), target("pneumonia")))
    report = report_on(screened(image_of(1), prediction(targets=two_results())), made_by=three)
    (said,) = [item.TextValue for item in items(groups_of(report)[-1], "TEXT") if name_of(item)[0] == "121106"]
    assert said.startswith("Where the networks looked, asked for: Abnormal. ")
    assert "with a finding or without" in said


def test_without_activation_there_is_no_region() -> None:
    dark = spot()
    dark.pixels[:] = 0
    report = report_on(screened(image_of(1), prediction(maps=(dark,))))
    assert not [item for item in items(report, "CODE") if name_of(item)[0] == "130400"]


def test_a_site_may_use_its_own_code_and_the_report_is_another() -> None:
    own = {"covid": bundle.Code(value="COV", scheme="99SITE", meaning="COVID, our word")}
    report = report_on(screened(image_of(1)), codes=own)
    (answer,) = [item for item in items(report, "CODE") if name_of(item) == ("COV", "99SITE")]
    assert answer.ConceptCodeSequence[0].CodeMeaning == "Positive"
    assert not [item for item in items(report, "CODE") if name_of(item)[0] == "840539006"]
    assert report.SOPInstanceUID != report_on(screened(image_of(1))).SOPInstanceUID


def test_a_code_of_a_question_that_the_bundle_does_not_ask_changes_nothing() -> None:
    unasked = {"effusion": bundle.Code(value="E", scheme="99SITE", meaning="Effusion")}
    image = screened(image_of(1))
    assert encode(report_on(image, codes=unasked)) == encode(report_on(image))


def test_sequences_are_not_decoded_to_be_written() -> None:
    report = report_on(screened(image_of(1)))
    raw = report.get_item(CONTENT_SEQUENCE).value
    assert raw in encode(report)
    assert report.get_item(CONTENT_SEQUENCE).is_raw
    assert len(report.ContentSequence) == 9, "a reader's look decodes them"
    assert raw in encode(report)


def test_the_sop_classes_stand_in_order_of_preference() -> None:
    assert [uid.keyword for uid in SOP_CLASSES] == [
        "Comprehensive3DSRStorage",
        "ComprehensiveSRStorage",
        "EnhancedSRStorage",
    ]
    assert report_on(screened(image_of(1)), sop_class=EnhancedSRStorage).SOPClassUID == EnhancedSRStorage


def other_release() -> list[Any]:
    return [screened(image_of(1)), screened(image_of(2), prediction(release="2025.1"))]


def other_study() -> list[Any]:
    return [screened(image_of(1)), screened(image_of(2, StudyInstanceUID="1.2.3"))]


def heatmap_of_another_study() -> list[Any]:
    image = screened(image_of(1))
    foreign = Reference("1.2.3", "1.2.4", SecondaryCaptureImageStorage, "1.2.5")
    return [type(image)(image.source, image.prediction, image.predicted_at, foreign)]


def not_finite() -> list[Any]:
    return [screened(image_of(1)), screened(image_of(2), prediction(members={"zhang": {"p_ano": float("nan")}}))]


def uid_that_cannot_be_written() -> list[Any]:
    image = screened(image_of(1))
    image.source.SeriesInstanceUID = "é"
    return [image]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize(
    ("images", "told"),
    [
        (list, "a report on no image"),
        (other_release, r"image \S*\.2\.1: prediction of starter 2025\.1 with the manifest of starter 2024\.1"),
        (other_study, r"image \S*\.2\.1 is of study 1\.2\.3, others of the report are of"),
        (lambda: [screened(image_of(1))] * 2, "given twice"),
        (heatmap_of_another_study, r"image \S*: its heatmap is of study 1\.2\.3"),
        (uid_that_cannot_be_written, "cannot be cited"),
        (
            lambda: [screened(image_of(1), prediction(members={"unknown": {}}))],
            r"image \S*\.1\.1: members unknown are not in the manifest",
        ),
        (
            lambda: [screened(image_of(1), prediction(targets=two_results()))],
            r"image \S*\.1\.1: target pneumonia is not in the manifest",
        ),
        (
            lambda: [
                screened(image_of(1)),
                screened(image_of(2), prediction(members={"zhang": {"p_ano": float("nan")}})),
            ],
            r"image \S*\.2\.1: zhang p_ano is nan: not a finite number",
        ),
        (
            lambda: [screened(image_of(1), prediction(1.5))],
            r"image \S*\.1\.1: probability of covid is 1\.5: not a probability",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(images: Any, told: str) -> None:
    with pytest.raises(ResultError, match=told):
        report_on(*images())


def test_a_sop_class_that_is_no_report_is_refused() -> None:
    with pytest.raises(ResultError, match="no SOP Class of a report"):
        report_on(screened(image_of(1)), sop_class=SecondaryCaptureImageStorage)


def test_a_code_too_long_for_code_value_is_refused_by_name() -> None:
    long = bundle.Code.model_construct(value="882784691000119100", scheme="SCT", meaning="Pneumonia by SARS-CoV-2")
    with pytest.raises(ResultError, match=r"code of covid: Code Value \(0008,0100\) has 18 characters"):
        report_on(screened(image_of(1)), codes={"covid": long})
