"""Where everything goes in the picture."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dicom_node.bundle import Calibration
from dicom_node.domain import Decision, TargetResult
from dicom_node.layout import BANNER, layout
from dicom_node.lettering import text_height, text_width
from dicom_node.picture import draw_heatmap
from tests.result_factories import manifest, member, prediction, spot, target, two_results

if TYPE_CHECKING:
    from dicom_node.layout import Layout

SHAPES = [(1000, 800), (800, 1000), (64, 64), (64, 60), (3000, 100), (100, 3000), (1, 500)]


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


def test_the_header_says_what_was_asked_and_answered_and_by_what() -> None:
    plan = layout(500, 400, prediction(), manifest(), size=512)
    text = [line.text for line in plan.header]
    assert text == [
        "COVID-19",
        "FLAGGED",
        "Probability 0.812, threshold 0.500",
    ]
    assert plan.caption[-1].text == "Bundle starter, release 2024.1, operating point balanced"
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
    assert text == [
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
    for line in plan.lines:
        assert 0 <= line.left < line.left + text_width(line.text, line.size) <= plan.width
        assert 0 <= line.top < line.top + text_height(line.size) <= plan.height
    draw_heatmap(np.zeros((3000, 100), np.float32), prediction(release="r" * 200), long, size=size)


HEADS = (spot("basu", (0.3, 0.3)), replace(spot("zhang"), name="p_ano"), spot("zhang"), spot("jahan"))
ENSEMBLE = manifest(members=tuple(member(name) for name in ("zhang", "jahan", "basu")))


def within(box: tuple[int, int, int, int], plan: Layout) -> bool:
    top, left, height, width = box
    return min(top, left) >= 0 and top + height <= plan.height and left + width <= plan.width


def apart(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return (
        one[0] + one[2] <= other[0]
        or other[0] + other[2] <= one[0]
        or one[1] + one[3] <= other[1]
        or other[1] + other[3] <= one[1]
    )


@pytest.mark.parametrize("size", [256, 300, 512, 1024, 4096])
@pytest.mark.parametrize(("rows", "columns"), [(1000, 800), (800, 1000), (500, 1000), (1000, 400), (3000, 100)])
@pytest.mark.parametrize("questions", [1, 2, 3])
def test_nothing_overlaps_and_nothing_leaves_the_picture(rows: int, columns: int, size: int, questions: int) -> None:
    names = ("covid", "pneumonia", "other")[:questions]
    calibration = dict.fromkeys(names, Calibration(output="p_cls", slope=1.0, intercept=0.0))
    members = tuple(member(name, calibration=calibration) for name in ("zhang", "basu"))
    asked = manifest(targets=tuple(target(name) for name in names), members=members)
    results = tuple(TargetResult(name, 0.7, 0.5, Decision.FLAGGED) for name in names)
    for count in range(8):
        plan = layout(rows, columns, prediction(targets=results, maps=(spot(),) * count), asked, size=size)
        texts = [(line.top, line.left, text_height(line.size), text_width(line.text, line.size)) for line in plan.lines]
        pictures = [plan.xray, *(panel.box for panel in plan.panels), *([plan.bar] if plan.bar else [])]
        for index, one in enumerate(pictures + texts):
            assert within(one, plan)
            assert all(apart(one, other) for other in (pictures + texts)[:index])
        assert all(within(box, plan) for box, _ in plan.fills)


def test_every_map_has_a_panel_in_the_order_of_the_manifest_under_its_method() -> None:
    plan = layout(1000, 800, prediction(maps=HEADS), ENSEMBLE, size=1024)
    assert [(HEADS[panel.of].member, HEADS[panel.of].name) for panel in plan.panels] == [
        ("zhang", "p_ano"),
        ("zhang", "p_cls"),
        ("jahan", "p_cls"),
        ("basu", "p_cls"),
    ]
    text = " ".join(line.text for line in plan.labels)
    places = [text.find(title) for title in ("Zhang 2020, anomaly", "p_ano", "p_cls", "Jahan 2020", "Basu 2020")]
    assert -1 not in places
    assert places == sorted(places)


def test_a_panel_is_as_the_xray_is_and_stands_beside_a_high_one_and_below_a_wide_one() -> None:
    for rows, columns, axis in ((1000, 800, 1), (400, 1000, 0)):
        plan = layout(rows, columns, prediction(maps=HEADS), ENSEMBLE, size=1024)
        for panel in plan.panels:
            assert panel.box[3] / panel.box[2] == pytest.approx(columns / rows, rel=0.02)
            assert panel.box[axis] > plan.xray[axis] + plan.xray[axis + 2]


@pytest.mark.parametrize(("maps", "size"), [(1, 1024), (0, 1024), (4, 256)])
def test_a_single_map_or_a_small_picture_has_no_panels(maps: int, size: int) -> None:
    plan = layout(1000, 800, prediction(maps=HEADS[:maps]), ENSEMBLE, size=size)
    assert not plan.panels
    assert "Small pictures" not in " ".join(line.text for line in plan.caption)


def test_the_caption_names_the_one_question_that_the_large_picture_is_of() -> None:
    two = manifest(targets=(target(), target("pneumonia", 0.3)))
    plan = layout(1000, 800, prediction(targets=two_results()), two, size=1024)
    assert "of the first question alone, COVID-19." in " ".join(line.text for line in plan.caption)
    plan = layout(1000, 800, prediction(), manifest(), size=1024)
    assert "question" not in " ".join(line.text for line in plan.caption)


def test_a_map_that_has_no_part_in_the_large_picture_is_marked() -> None:
    said = {line.text for line in layout(1000, 800, prediction(maps=HEADS), ENSEMBLE, size=1024).labels}
    assert "p_cls *" in said
    caption = " ".join(line.text for line in layout(1000, 800, prediction(maps=HEADS), ENSEMBLE, size=1024).caption)
    assert "* has no say in the first question" in caption
    plain = layout(1000, 800, prediction(maps=HEADS[:3]), ENSEMBLE, size=1024)
    assert "*" not in " ".join(line.text for line in plain.lines)


def test_a_map_without_activation_says_so() -> None:
    silent = replace(spot(), pixels=np.zeros((7, 7), np.uint8))
    plan = layout(1000, 800, prediction(maps=(silent, spot())), manifest(), size=1024)
    assert [line.text for line in plan.labels].count("p_cls (none)") == 1


def test_a_threshold_of_the_site_is_named_as_such() -> None:
    answer = prediction(targets=(TargetResult("covid", 0.8, 0.5, Decision.FLAGGED, operating_point="site"),))
    text = " ".join(line.text for line in layout(1000, 800, answer, manifest(), size=1024).header)
    assert "threshold 0.500 (set by this site)" in text


@pytest.mark.parametrize(("probability", "threshold"), [(0.0, 1.0), (1.0, 0.0), (0.25, 0.75)])
def test_the_gauge_shows_probability_and_threshold(probability: float, threshold: float) -> None:
    decision = Decision.FLAGGED if probability >= threshold else Decision.NOT_FLAGGED
    answer = prediction(targets=(TargetResult("covid", probability, threshold, decision),))
    track, filled, tick = layout(1000, 800, answer, manifest(), size=1024).fills[-7:-4]
    (_, left, _, width), _ = track
    assert filled[0][3] / width == pytest.approx(probability, abs=0.01)
    assert (tick[0][1] - left) / width == pytest.approx(threshold, abs=0.01)
