"""What the networks looked at, on a grid over the source."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dicom_node.activation import GRID, grid, mean_activation, shares, strongest_region
from tests.result_factories import manifest, member, spot, target

if TYPE_CHECKING:
    from dicom_node.domain import MemberMap


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


def test_maps_of_several_sizes_and_boxes_are_averaged_on_the_source() -> None:
    maps: tuple[MemberMap, ...] = (spot(side=7), spot(side=14, box=(0.1, 0.1, 0.8, 0.8)), spot(side=448))
    heat = mean_activation(maps, 64, 48)
    assert heat.shape == (64, 48)
    assert heat.dtype == np.float32
    assert heat.max() == 1


def test_a_member_weighs_as_in_the_first_question_and_shares_that_among_its_maps() -> None:
    asked = manifest(targets=(target().model_copy(update={"weights": {"zhang": 0.5, "basu": 0.3}}),))
    maps = (spot("zhang"), spot("basu"), spot("zhang"), spot("jahan"))
    assert shares(maps, asked) == [0.25, 0.3, 0.25, 0.0]
    assert shares(maps[3:], asked) == [1.0], "alone, it is better than nothing"


@pytest.mark.parametrize(("rows", "columns"), [(1000, 800), (3000, 20), (1, 5000), (200, 100)])
def test_the_grid_keeps_the_aspect_and_a_small_image_its_size(rows: int, columns: int) -> None:
    height, width = grid(rows, columns)
    assert max(height, width) == min(GRID, max(rows, columns))
    assert height == max(1, round(rows * max(height, width) / max(rows, columns)))
    assert width == max(1, round(columns * max(height, width) / max(rows, columns)))


@pytest.mark.parametrize(("rows", "columns"), [(1000, 800), (600, 900), (120, 100)])
def test_the_strongest_region_is_the_box_at_half_of_the_maximum(rows: int, columns: int) -> None:
    box = (0.1, 0.2, 0.8, 0.5)
    found = strongest_region((spot(centre=(0.4, 0.6), box=box, radius=0.1),), manifest(), rows, columns)
    assert found is not None
    top, left, height, width = found
    half = 0.1 * np.sqrt(2 * np.log(2))  # where a Gaussian of deviation 0.1 has fallen to half
    assert (top + height / 2, left + width / 2) == pytest.approx((0.1 + 0.4 * 0.8, 0.2 + 0.6 * 0.5), abs=0.01)
    assert (height, width) == pytest.approx((2 * half * 0.8, 2 * half * 0.5), abs=0.02)


def test_of_two_regions_the_one_with_the_strongest_point_is_told() -> None:
    weaker = replace(
        spot(centre=(0.25, 0.25), radius=0.05), pixels=spot(centre=(0.25, 0.25), radius=0.05).pixels // 4 * 3
    )
    maps = (weaker, spot(centre=(0.75, 0.7), radius=0.05))
    for ordered in (maps, maps[::-1]):
        found = strongest_region(ordered, manifest(), 900, 900)
        assert found is not None
        top, left, height, width = found
        assert top < 0.75 < top + height
        assert left < 0.7 < left + width
        assert max(height, width) < 0.2


def test_the_strongest_region_is_of_the_ensemble_and_not_of_who_has_no_say() -> None:
    maps = (spot("zhang", (0.3, 0.3), radius=0.05), spot("jahan", (0.7, 0.7), radius=0.05))
    asked = manifest(members=(member("zhang"), member("basu"), member("jahan")))
    found = strongest_region(maps, asked, 500, 500)
    assert found is not None
    assert found[0] < 0.3 < found[0] + found[2]


def test_without_maps_or_activation_there_is_no_strongest_region() -> None:
    silent = replace(spot(), pixels=np.zeros((7, 7), np.uint8))
    for maps in ((), (silent,), (replace(spot(), box=(0.0, 0.0, 0.0, 1.0)),)):
        assert strongest_region(maps, manifest(), 500, 400) is None


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4000), (4000, 1)])
def test_the_strongest_region_of_a_degenerate_image_lies_within_it(rows: int, columns: int) -> None:
    found = strongest_region((spot(),), manifest(), rows, columns)
    assert found is not None
    top, left, height, width = found
    assert 0 <= top < top + height <= 1
    assert 0 <= left < left + width <= 1
