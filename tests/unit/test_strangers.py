"""What the gate is shown as no chest X-ray, and X-rays turned and inverted."""

import numpy as np
import pytest

from dicom_node.demo.phantom import WHITE, draw_phantom
from training.gate import _Shown, draw
from training.models.gate import FRONTAL, FRONTALS, LATERAL, OTHER, PART, TURNS
from training.strangers import FAMILIES, part_of

SIDE = 256
SEEDS = range(8)
DRAWN = {**FAMILIES, "part": part_of}


@pytest.fixture(scope="module")
def xray():
    """One that touches both ends, as an equalised one may."""
    film = draw_phantom(5, rows=SIDE, columns=SIDE, opacities=3) / WHITE
    return (film - film.min()) / np.ptp(film)


@pytest.mark.parametrize("name", DRAWN)
def test_every_family_draws_a_square_picture_by_its_seed_alone(name, xray):
    before = xray.copy()
    for seed in SEEDS:
        drawn = DRAWN[name](np.random.default_rng(seed), xray)
        assert drawn.shape == (SIDE, SIDE)
        assert drawn.dtype == np.float64
        assert drawn.min() >= 0
        assert drawn.max() <= 1
        assert np.array_equal(drawn, DRAWN[name](np.random.default_rng(seed), xray))
    assert np.array_equal(xray, before), "the X-ray is left as it was"


@pytest.mark.parametrize("name", DRAWN)
def test_other_seeds_draw_other_pictures(name, xray):
    drawn = {DRAWN[name](np.random.default_rng(seed), xray).tobytes() for seed in SEEDS}
    # Sheets of two, three and four a side are all that there are.
    assert len(drawn) == len(SEEDS) or (name == "contact sheet" and len(drawn) > 1)


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_that_is_drawn_nearly_equals_the_xray_in_any_of_its_ways(name, xray):
    ways = [np.rot90(mirrored, turn) for mirrored in (xray, xray[:, ::-1]) for turn in range(4)]
    for seed in range(20):
        drawn = DRAWN[name](np.random.default_rng(seed), xray)
        for way in ways:
            assert np.abs(drawn - way).mean() > 0.05
            assert np.abs(1 - drawn - way).mean() > 0.05


@pytest.mark.parametrize("way", range(2 * len(FRONTALS)))
def test_a_way_is_undone_by_turning_back_and_inverting(way, xray):
    shown = draw(xray, _Shown(3, LATERAL, LATERAL, way))
    assert shown.flags.c_contiguous
    if way < len(FRONTALS):
        kind = FRONTALS[way]
        turned = next((turn for turn in TURNS if kind.endswith(f"turned {turn}")), 0)
        assert ("inverted" in kind) == (way >= len(TURNS))
        back = np.rot90(1 - shown if "inverted" in kind else shown, turned // 90)  # anticlockwise
        assert np.allclose(back, xray, atol=1e-12)
    else:
        unmirrored = draw(xray[:, ::-1], _Shown(3, LATERAL, LATERAL, way - len(FRONTALS)))
        assert np.array_equal(shown, unmirrored)


def test_turns_are_clockwise():
    corner = np.zeros((4, 4))
    corner[0, 0] = 1  # at the top left
    (at,) = np.argwhere(draw(corner, _Shown(0, FRONTALS[1], FRONTAL, 1)) == 1)
    assert FRONTALS[1] == "frontal turned 90"
    assert at.tolist() == [0, 3], "at the top right"


def test_what_is_shown_depends_on_the_picture_and_its_number_only(xray):
    family = next(iter(FAMILIES))
    one = draw(xray, _Shown(3, OTHER, family, 7))
    assert np.array_equal(one, draw(xray, _Shown(3, OTHER, family, 7)))
    assert not np.array_equal(one, draw(xray, _Shown(3, OTHER, family, 8)))
    assert not np.array_equal(one, draw(xray, _Shown(4, OTHER, family, 7)))
    part = draw(xray, _Shown(3, PART, PART, 1))
    assert np.array_equal(part, draw(xray, _Shown(3, PART, PART, 1)))
