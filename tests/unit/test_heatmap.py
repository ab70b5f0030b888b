"""The heatmap as a Secondary Capture."""

from __future__ import annotations

import warnings

import pytest
from highdicom.sc import SCImage

from dicom_node.domain import Decision, TargetResult
from dicom_node.heatmap import build_heatmap
from dicom_node.normalise import normalise
from dicom_node.picture import draw_heatmap
from dicom_node.results import ResultError, encode, equipment, local_time, seal, series_and_maker
from tests.factories import chest_dataset, chest_pixels
from tests.result_factories import WHEN, manifest, member, prediction, results, spot, stored, xray


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
    assert "LossyImageCompression" not in sc
    sc, _ = results(stored(chest_dataset(LossyImageCompression="00", LossyImageCompressionRatio="10")))
    assert sc.LossyImageCompression == "00"
    assert "LossyImageCompressionRatio" not in sc


def test_maps_are_claimed_to_explain_and_to_be_of_no_method_that_they_may_not_be_of() -> None:
    sc, _ = results(stored(chest_dataset()))
    (code,) = sc.DerivationCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("130401", "DCM")


def test_without_maps_no_method_of_explanation_is_claimed() -> None:
    sc, _ = results(stored(chest_dataset()), prediction(maps=()))
    assert "DerivationCodeSequence" not in sc


def test_the_same_arguments_give_the_same_bytes() -> None:
    source = stored(chest_dataset())
    assert encode(results(source)[0]) == encode(results(source)[0])


def test_what_changes_the_picture_changes_its_uid() -> None:
    source = stored(chest_dataset())
    low = (TargetResult("covid", 0.8125, 0.25, Decision.FLAGGED),)
    unsure = (TargetResult("covid", 0.8125, 0.5, Decision.INDETERMINATE),)
    by_the_site = (TargetResult("covid", 0.8125, 0.5, Decision.FLAGGED, operating_point="site"),)
    retrained = manifest(members=(member("zhang", "c"), member("basu", "b")))
    made = [
        results(source)[0],
        results(source, size=300)[0],
        results(source, prediction(operating_point="sensitive"))[0],
        results(source, prediction(targets=low))[0],
        results(source, prediction(release="2"), manifest(release="2"))[0],
        results(source, made_by=retrained)[0],
        results(source, prediction(0.8126))[0],
        results(source, prediction(targets=unsure))[0],
        results(source, prediction(targets=by_the_site))[0],
        results(source, prediction(remarks=("polarity_mended",)))[0],
        results(source, prediction(maps=(spot(),)))[0],
        results(source, prediction(maps=(spot(), spot(member="basu", centre=(0.6, 0.41)))))[0],
        results(source, prediction(maps=(spot(), spot(member="basu", centre=(0.6, 0.4), box=(0, 0, 1, 0.9)))))[0],
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


@pytest.mark.parametrize(("rows", "columns"), [(96, 80), (80, 96), (96, 81)])
def test_the_object_is_what_highdicom_builds_of_the_same_picture(rows: int, columns: int) -> None:
    told = {"TimezoneOffsetFromUTC": "+0100", "LossyImageCompression": "00"}
    source, _ = normalise(stored(chest_dataset(chest_pixels(rows, columns), **told)))
    answer, made_by = prediction(), manifest()
    found = build_heatmap(source, xray(rows, columns), answer, made_by, when=WHEN, size=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = SCImage.from_ref_dataset(
            source,
            pixel_array=draw_heatmap(xray(rows, columns), answer, made_by, size=300),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),
            series_number=9001,
            series_description="AI heatmap - RESEARCH, NOT FOR DIAGNOSTIC USE",
            **series_and_maker(found.SOPInstanceUID, local_time(source, WHEN)),
        )
        seal(expected, source, WHEN, equipment(answer, made_by, WHEN))
    ours = {
        "ImageType", "ConversionType", "BodyPartExamined", "RecognizableVisualFeatures", "LossyImageCompression",
        "DerivationDescription", "DerivationCodeSequence", "SourceImageSequence", "ReferencedSeriesSequence",
        "DateOfSecondaryCapture", "TimeOfSecondaryCapture",
    }  # fmt: skip
    assert {element.keyword for element in found} == {element.keyword for element in expected} | ours
    for element in expected:
        if element.keyword not in ours | {"PixelData"}:
            assert str(found[element.tag].value) == str(element.value), element.keyword
            assert found[element.tag].VR == element.VR, element.keyword
    assert found.PixelData.removesuffix(b"\0") == expected.PixelData.removesuffix(b"\0")
    assert len(found.PixelData) % 2 == 0
    assert stored(found).file_meta == stored(expected).file_meta


def test_one_heatmap_has_nothing_of_the_one_before() -> None:
    one, _ = results(stored(chest_dataset(PatientName="A^A", OtherPatientIDs="2", BurnedInAnnotation="YES")))
    two, _ = results(stored(chest_dataset(PatientName="B^B", SOPInstanceUID="1.2.3.4")))
    assert (str(one.PatientName), str(two.PatientName)) == ("A^A", "B^B")
    assert "OtherPatientIDs" not in two
    assert "BurnedInAnnotation" not in two
    assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID != two.SOPInstanceUID
