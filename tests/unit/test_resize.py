import numpy as np
import pytest
import torch
from torch.nn import functional

from dicom_node.resize import LARGEST, picture, shrunk, square

RNG = np.random.default_rng(6)


def noise(rows, columns):
    return RNG.random((rows, columns), dtype=np.float32)


@pytest.mark.parametrize(("rows", "columns"), [(700, 500), (300, 777), (100, 80), (224, 224)])
@pytest.mark.parametrize("resolution", [0, 64])
def test_a_square_is_what_torch_draws_with_antialias(rows, columns, resolution):
    image = noise(rows, columns)
    expected = torch.from_numpy(image)[None, None]
    for side in (resolution, 224) if resolution else (224,):
        expected = functional.interpolate(expected, (side, side), mode="bilinear", antialias=True, align_corners=False)
    found = square(image, 224, resolution)
    assert found.dtype == np.float32
    assert found.shape == (224, 224)
    np.testing.assert_allclose(found, expected[0, 0].numpy(), atol=1e-5)


def test_a_large_image_is_shrunk_once_and_its_squares_differ_by_no_more_than_a_grey_level():
    down, across = np.mgrid[0:2500, 0:2048].astype(np.float32)
    image = (0.5 + 0.3 * np.sin(down / 37) * np.cos(across / 23) + 0.1 * noise(2500, 2048)).clip(0, 1)
    for side, resolution in ((224, 128), (96, 0), (224, 0)):
        found = square(image, side, resolution)
        expected = torch.from_numpy(image)[None, None]
        for size in (resolution, side) if resolution else (side,):
            expected = functional.interpolate(expected, (size, size), mode="bilinear", antialias=True)
        assert np.abs(found - expected[0, 0].numpy()).max() < 1 / 255
        np.testing.assert_array_equal(found, square(shrunk(image, LARGEST), side, resolution))


def test_a_square_of_a_view_is_that_of_its_copy_and_can_be_written_to():
    image = noise(90, 70)
    image.setflags(write=False)
    turned = square(image[::-1, ::-1], 32)
    np.testing.assert_array_equal(turned, square(image[::-1, ::-1].copy(), 32))
    turned[0, 0] = 1


@pytest.mark.parametrize(
    ("rows", "columns", "shape"),
    [(300, 100, (90, 30)), (100, 300, (30, 90)), (1000, 1, (90, 1)), (90, 40, (90, 40)), (20, 30, (20, 30))],
)
def test_a_picture_has_at_most_so_many_pixels_on_its_longer_side(rows, columns, shape):
    found = picture(noise(rows, columns), 90)
    assert found.dtype == np.uint8
    assert found.shape == shape


def test_an_image_that_is_not_shrunk_is_rounded_to_the_nearest_grey_level():
    image = np.linspace(0, 1, 1000, dtype=np.float32).reshape(20, 50)
    assert np.abs(picture(image, 50) / 255 - image).max() <= 0.5 / 255 + 1e-6
