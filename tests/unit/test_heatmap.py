"""The heatmap as a Secondary Capture."""

from __future__ import annotations

import pytest

from dicom_node.domain import Decision, TargetResult
from dicom_node.results import ResultError, encode
from tests.factories import chest_dataset
from tests.result_factories import manifest, member, prediction, results, stored


def test_nothing_of_the_patient_is_drawn() -> None:
    one, _ = results(stored(chest_dataset(PatientName="A^A", PatientID="1", AccessionNumber="1")))
    two, _ = results(stored(chest_dataset(PatientName="B^B", PatientID="2", AccessionNumber="2")))
    assert one.PixelData == two.PixelData


def test_the_secondary_capture_says_what_it_is() -> None:
    source = stored(chest_dataset(BurnedInAnnotation="YES", LossyImageCompression="01", TimezoneOffsetFromUTC="+0100"))
    sc, _ = results(source)
    assert sc.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert (sc.Modality, sc.SeriesNumber, sc.ContentQualification) == ("OT", 9001, "RESEARCH")
    assert sc.SeriesDescription == "AI heatmap - RESEARCH, NOT FOR DIAGNOSTIC USE"
    assert sc.ImageType == ["DERIVED", "SECONDARY"]
    assert sc.ConversionType == "WSD"
    assert sc.BurnedInAnnotation == "YES"
    assert sc.RecognizableVisualFeatures == "NO"
    assert sc.LossyImageCompression == "01"
    assert sc.BodyPartExamined == "CHEST"
    assert "Laterality" not in sc
    assert sc.PatientOrientation == ["L", "F"]
    assert (sc.PhotometricInterpretation, sc.SamplesPerPixel, sc.BitsAllocated) == ("RGB", 3, 8)
    assert len(sc.PixelData) >= sc.Rows * sc.Columns * 3
    assert sc.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert sc.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    # 23:45:06 UTC is after midnight where the source was taken.
    assert (str(sc.ContentDate), str(sc.ContentTime)) == ("20240103", "004506")
    assert sc.TimezoneOffsetFromUTC == "+0100"


def test_what_the_source_does_not_say_stays_unsaid() -> None:
    sc, _ = results(stored(chest_dataset(PatientOrientation=None)))
    assert sc["PatientOrientation"].is_empty
    assert "BurnedInAnnotation" not in sc
    assert "TimezoneOffsetFromUTC" not in sc
    assert sc.LossyImageCompression == "00"


def test_without_maps_no_method_of_explanation_is_claimed() -> None:
    sc, _ = results(stored(chest_dataset()), prediction(maps=()))
    assert "DerivationCodeSequence" not in sc


def test_the_same_arguments_give_the_same_bytes() -> None:
    source = stored(chest_dataset())
    assert encode(results(source)[0]) == encode(results(source)[0])


def test_what_changes_the_picture_changes_its_uid() -> None:
    source = stored(chest_dataset())
    low = (TargetResult("covid", 0.8125, 0.25, Decision.FLAGGED),)
    retrained = manifest(members=(member("zhang", "c"), member("basu", "b")))
    made = [
        results(source)[0],
        results(source, size=300)[0],
        results(source, prediction(operating_point="sensitive"))[0],
        results(source, prediction(targets=low))[0],
        results(source, prediction(release="2"), manifest(release="2"))[0],
        results(source, made_by=retrained)[0],
        results(stored(chest_dataset(SOPInstanceUID="1.2.3.4")))[0],
    ]
    assert len({sc.SOPInstanceUID for sc in made}) == len(made)
    assert len({sc.SeriesInstanceUID for sc in made}) == len(made)


@pytest.mark.parametrize(
    "wrong",
    [
        {"release": "other"},
        {"bundle": "other"},
        {"targets": ()},
        {"targets": (TargetResult("flu", 0.8, 0.5, Decision.FLAGGED),)},
        {"targets": (TargetResult("covid", float("nan"), 0.5, Decision.NOT_FLAGGED),)},
        {"targets": (TargetResult("covid", 0.8, 0.5, Decision.NOT_FLAGGED),)},
        {"members": {"nobody": {"p_cls": 0.5}}},
    ],
)
def test_a_prediction_that_does_not_fit_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ResultError):
        results(stored(chest_dataset()), prediction(**wrong))
