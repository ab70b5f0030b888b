from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dicom_node import heatmap
from dicom_node.domain import Decision, TargetResult
from dicom_node.heatmap import BANNER, draw_heatmap, layout, mean_activation
from dicom_node.results import ResultError, encode
from tests.factories import chest_dataset
from tests.result_factories import manifest, member, prediction, results, spot, stored, target, two_results, xray

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicom_node.domain import MemberMap, Prediction

SHAPES = [(1000, 800), (800, 1000), (64, 64), (64, 60), (3000, 100), (100, 3000), (1, 500)]


def crop(picture: NDArray[np.uint8], pixels: NDArray[np.float32], answer: Prediction, size: int) -> NDArray[np.float32]:
    """The X-ray's part of the picture."""
    top, left, height, width = layout(*pixels.shape, answer, manifest(), size=size).xray
    return picture[top : top + height, left : left + width].astype(np.float32)


def tint(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far each pixel is from grey."""
    return picture.max(axis=2) - picture.min(axis=2)


@pytest.mark.parametrize("size", [256, 1024])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_xray_keeps_its_aspect_and_nothing_overlaps(rows: int, columns: int, size: int) -> None:
    plan = layout(rows, columns, prediction(), manifest(), size=size)
    top, left, height, width = plan.xray
    assert max(height, width) == size
    assert height == max(1, round(rows * size / max(rows, columns)))
    assert width == max(1, round(columns * size / max(rows, columns)))
    assert plan.bar is not None
    bar_top, bar_left, bar_height, bar_width = plan.bar
    assert 0 <= left <= left + width <= bar_left < bar_left + bar_width < plan.width
    assert bar_top + bar_height < plan.height
    assert bar_height >= 4 * plan.unit
    assert 0 < top < top + height < plan.height
    picture = draw_heatmap(np.zeros((rows, columns), np.float32), prediction(), manifest(), size=size)
    assert picture.shape == (plan.height, plan.width, 3)
    assert picture.dtype == np.uint8


def test_without_maps_it_is_the_plain_xray() -> None:
    pixels, answer = xray(300, 250), prediction(maps=())
    picture = crop(draw_heatmap(pixels, answer, manifest(), size=300), pixels, answer, 300)
    assert not tint(picture).any()
    np.testing.assert_allclose(picture[..., 0], np.rint(pixels * 255), atol=1)
    assert layout(300, 250, answer, manifest(), size=300).bar is None
    assert any("No heatmap" in line.text for line in layout(300, 250, answer, manifest(), size=300).caption)


def test_it_stays_the_right_way_up_and_is_not_inverted() -> None:
    pixels = np.zeros((200, 300), np.float32)
    pixels[:40, :60] = 1
    answer = prediction(maps=())
    picture = crop(draw_heatmap(pixels, answer, manifest(), size=512), pixels, answer, 512)
    assert picture[5, 5].tolist() == [255, 255, 255]
    assert [picture[y, x].tolist() for y, x in ((-5, 5), (5, -5), (-5, -5))] == [[0, 0, 0]] * 3


@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (0.1, 0.3, 0.8, 0.5), (0.25, -0.2, 0.5, 1.4)])
@pytest.mark.parametrize("side", [14, 56, 448])
@pytest.mark.parametrize(("height", "width"), [(400, 320), (320, 1000)])
def test_a_spot_in_a_map_ends_where_the_source_has_it(
    box: tuple[float, float, float, float], side: int, height: int, width: int
) -> None:
    centre = (0.4, 0.6)
    heat = mean_activation((spot(centre=centre, box=box, side=side, radius=0.08),), height, width)
    down, across = np.mgrid[0.5:height, 0.5:width]
    where = ((down * heat).sum() / heat.sum() / height, (across * heat).sum() / heat.sum() / width)
    expected = (box[0] + centre[0] * box[2], box[1] + centre[1] * box[3])
    assert where == pytest.approx(expected, abs=0.004)


def test_the_overlay_is_drawn_where_the_activation_is() -> None:
    pixels = np.full((600, 500), 0.5, np.float32)
    answer = prediction(maps=(spot(centre=(0.25, 0.75), box=(0.2, 0.4, 0.5, 0.5), radius=0.1),))
    colour = tint(crop(draw_heatmap(pixels, answer, manifest(), size=600), pixels, answer, 600))
    top, left = np.unravel_index(np.argmax(colour), colour.shape)
    assert (top / 600, left / 500) == pytest.approx((0.2 + 0.25 * 0.5, 0.4 + 0.75 * 0.5), abs=0.03)
    assert not colour[:110].any()
    assert not colour[430:].any()
    assert not colour[:, :190].any()
    assert not colour[:, 460:].any()


def test_outside_its_box_a_map_has_no_activation_and_inside_its_edge_is_not_eroded() -> None:
    full = replace(spot(box=(0.25, 0.5, 0.5, 0.25)), pixels=np.full((7, 7), 255, np.uint8))
    heat = mean_activation((full,), 100, 200)
    assert heat[25:75, 100:150] == pytest.approx(1)
    heat[25:75, 100:150] = 0
    assert not heat.any()


def test_interpolation_is_smooth_and_exact_at_the_samples() -> None:
    pixels = np.array([[0, 0, 0], [0, 255, 0], [0, 0, 0]], np.uint8)
    heat = mean_activation((replace(spot(), pixels=pixels),), 99, 99)
    assert heat[49, 49] == 1
    assert heat[16, 16] == pytest.approx(0, abs=1e-6)
    assert np.abs(np.diff(heat, axis=0)).max() < 0.06
    assert heat.min() >= 0


def test_the_overlay_is_the_mean_of_the_maps_relative_to_its_strongest_point() -> None:
    one = replace(spot(), pixels=np.array([[255, 0]], np.uint8))
    both = replace(spot(), pixels=np.array([[255, 255]], np.uint8))
    heat = mean_activation((one, both), 2, 2)
    assert heat == pytest.approx(np.array([[1, 0.5], [1, 0.5]]))


def test_a_map_without_activation_leaves_the_xray_alone() -> None:
    silent = replace(spot(), pixels=np.zeros((7, 7), np.uint8))
    degenerate = replace(spot(), box=(0.0, 0.0, 0.0, 1.0))
    pixels, answer = xray(300, 250), prediction(maps=(silent, degenerate))
    assert not tint(crop(draw_heatmap(pixels, answer, manifest(), size=300), pixels, answer, 300)).any()


def test_the_xray_stays_legible_below_the_strongest_activation() -> None:
    stripes = np.zeros((200, 200), np.float32)
    stripes[::20] = stripes[1::20] = stripes[2::20] = 1
    full = replace(spot(), pixels=np.full((7, 7), 255, np.uint8))
    answer = prediction(maps=(full,))
    picture = crop(draw_heatmap(stripes, answer, manifest(), size=200), stripes, answer, 200)
    assert picture[101, 100].mean() - picture[110, 100].mean() > 60


def test_the_header_says_what_was_asked_and_answered_and_by_what() -> None:
    plan = layout(500, 400, prediction(), manifest(), size=512)
    text = [line.text for line in plan.header]
    assert text == [
        "COVID-19",
        "FLAGGED",
        "Probability 0.812, threshold 0.500",
        "Bundle starter, release 2024.1, operating point balanced",
    ]
    assert " ".join(line.text for line in plan.banner) == BANNER
    plan = layout(500, 400, prediction(0.25), manifest(), size=512)
    assert "NOT FLAGGED" in [line.text for line in plan.header]


def test_a_probability_just_below_the_threshold_is_not_rounded_onto_it() -> None:
    text = [line.text for line in layout(500, 400, prediction(0.4999), manifest(), size=512).header]
    assert "Probability 0.499900, threshold 0.500000" in text


def test_every_question_of_the_bundle_is_answered_in_the_header() -> None:
    two = manifest(targets=(target(), target("pneumonia", 0.3)))
    answer = prediction(targets=two_results())
    text = [line.text for line in layout(500, 400, answer, two, size=512).header]
    assert text[:6] == [
        "COVID-19",
        "NOT FLAGGED",
        "Probability 0.200, threshold 0.500",
        "Pneumonia",
        "FLAGGED",
        "Probability 0.700, threshold 0.300",
    ]


@pytest.mark.parametrize("size", [256, 1024])
def test_long_words_are_wrapped_or_cut_and_never_leave_the_picture(size: int) -> None:
    long = manifest(
        targets=(target().model_copy(update={"title": "A very long question " * 6 + "W" * 200}),), release="r" * 200
    )
    plan = layout(3000, 100, prediction(release="r" * 200), long, size=size)
    for line in (*plan.banner, *plan.header, *plan.caption):
        assert heatmap._font(line.size).getlength(line.text) <= plan.width - plan.unit // 2
    draw_heatmap(np.zeros((3000, 100), np.float32), prediction(release="r" * 200), long, size=size)


def test_the_banner_fills_the_width_and_cannot_be_missed() -> None:
    picture = draw_heatmap(xray(), prediction(), manifest(), size=512)
    assert picture[2, :, :2].min() >= 200
    assert picture[2, :, 2].max() == 0


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


def test_maps_of_several_sizes_and_boxes_are_averaged_on_the_source() -> None:
    maps: tuple[MemberMap, ...] = (spot(side=7), spot(side=14, box=(0.1, 0.1, 0.8, 0.8)), spot(side=448))
    heat = mean_activation(maps, 64, 48)
    assert heat.shape == (64, 48)
    assert heat.dtype == np.float32
    assert heat.max() == 1
