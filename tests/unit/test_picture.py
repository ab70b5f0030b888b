"""The picture: what is drawn where."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from dicom_node.activation import mean_activation, strongest_region
from dicom_node.layout import layout
from dicom_node.picture import draw_heatmap
from tests.result_factories import manifest, prediction, spot, xray

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicom_node.domain import Prediction


def crop(picture: NDArray[np.uint8], pixels: NDArray[np.float32], answer: Prediction, size: int) -> NDArray[np.float32]:
    """The X-ray's part of the picture."""
    rows, columns = pixels.shape
    top, left, height, width = layout(rows, columns, answer, manifest(), size=size).xray
    return picture[top : top + height, left : left + width].astype(np.float32)


def tint(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far each pixel is from grey."""
    return picture.max(axis=2) - picture.min(axis=2)


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


def test_the_banner_fills_the_width_and_cannot_be_missed() -> None:
    picture = draw_heatmap(xray(), prediction(), manifest(), size=512)
    assert picture[2, :, :2].min() >= 200
    assert picture[2, :, 2].max() == 0


def test_the_outline_follows_half_of_the_maximum_around_the_strongest_point_alone() -> None:
    weaker = replace(
        spot(centre=(0.25, 0.25), radius=0.06), pixels=spot(centre=(0.25, 0.25), radius=0.06).pixels // 4 * 3
    )
    answer = prediction(maps=(weaker, spot(centre=(0.7, 0.7), radius=0.1)))
    pixels = np.full((800, 640), 0.3, np.float32)
    picture = crop(draw_heatmap(pixels, answer, manifest(), size=800), pixels, answer, 800)
    down, across = np.nonzero((picture > 240).all(axis=2))
    half = 0.1 * np.sqrt(2 * np.log(2))
    assert len(down) > 200
    away = np.hypot(down / 800 - 0.7, across / 640 - 0.7)
    assert np.abs(away - half).max() < 0.01


def test_a_panel_shows_its_own_map_over_the_xray() -> None:
    places = [(0.3, 0.3), (0.6, 0.7), (0.7, 0.3)]
    maps = tuple(spot("zhang", place, radius=0.05) for place in places)
    pixels, answer = np.full((1000, 800), 0.4, np.float32), prediction(maps=maps)
    picture = draw_heatmap(pixels, answer, manifest(), size=1024)
    panels = layout(1000, 800, answer, manifest(), size=1024).panels
    assert len(panels) == 3
    for panel in panels:
        top, left, height, width = panel.box
        colour = tint(picture[top : top + height, left : left + width].astype(np.float32))
        row, column = np.unravel_index(np.argmax(colour), colour.shape)
        assert ((row + 0.5) / height, (column + 0.5) / width) == pytest.approx(places[panel.of], abs=0.03)
        assert colour.min() == 0


def test_the_overlay_is_what_the_mean_activation_says_to_a_level() -> None:
    pixels, answer = xray(700, 600), prediction()
    heat = mean_activation(answer.maps, 700, 600)[..., None]
    colours = cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8)[..., 0], cv2.COLORMAP_VIRIDIS)[..., ::-1]
    expected = pixels[..., None] * 255 * (1 - 0.6 * heat) + colours * 0.6 * heat
    found = crop(draw_heatmap(pixels, answer, manifest(), size=700), pixels, answer, 700)
    off = np.abs(found - expected)
    outline = cv2.dilate((off.max(axis=2) > 12).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert outline.mean() < 0.03
    assert off[~outline].max() <= 5
    assert off[~outline].mean() < 0.5


def test_what_is_no_number_is_black() -> None:
    pixels = np.full((300, 300), 0.5, np.float32)
    pixels[:10], pixels[-10:], pixels[100:110] = np.nan, -1, np.inf
    answer = prediction(maps=())
    picture = crop(draw_heatmap(pixels, answer, manifest(), size=300), pixels, answer, 300)
    assert not picture[:10].any()
    assert not picture[-10:].any()
    assert (picture[100:110] == 255).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (500, 1), (1, 500), (2000, 3)])
def test_an_xray_of_a_single_column_is_drawn_as_any_other(rows: int, columns: int) -> None:
    pixels, answer = np.ones((rows, columns), np.float32), prediction()
    picture = crop(draw_heatmap(pixels, answer, manifest(), size=256), pixels, answer, 256)
    assert (picture.max(axis=2) >= 100).mean() > 0.97, "white under whatever colour, but for the outline"


def test_the_outline_surrounds_the_region_that_a_report_gives() -> None:
    maps = (spot(centre=(0.3, 0.35), radius=0.08), spot(member="basu", centre=(0.4, 0.4), box=(0.1, 0.1, 0.8, 0.8)))
    pixels, answer = np.full((900, 700), 0.3, np.float32), prediction(maps=maps)
    picture = crop(draw_heatmap(pixels, answer, manifest(), size=900), pixels, answer, 900)
    down, across = np.nonzero((picture > 240).all(axis=2))
    region = strongest_region(maps, manifest(), 900, 700)
    assert region is not None
    top, left, height, width = region
    outlined = (down.min() / 900, across.min() / 700, np.ptp(down) / 900, np.ptp(across) / 700)
    assert outlined == pytest.approx((top, left, height, width), abs=0.012)
