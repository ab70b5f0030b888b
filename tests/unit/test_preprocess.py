import numpy as np
import pytest
import torch

from training.models.preprocess import Preprocess, square, standardise

TRANSFORM = Preprocess(resize=220, crop=192)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(5).random((height, width), dtype=np.float32)


def test_the_input_has_zero_mean_and_unit_deviation():
    given = TRANSFORM(noise(301, 470))
    assert given.shape == (1, 192, 192)
    assert given.dtype == torch.float32
    assert given.mean().item() == pytest.approx(0, abs=1e-5)
    assert given.std(correction=0).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("grey", [0.0, 0.3, 1.0])
def test_a_picture_of_one_grey_becomes_zeros(grey):
    assert TRANSFORM(np.full((100, 80), grey, dtype=np.float32)).abs().max() < 1e-3


def test_the_same_image_gives_the_same_bits_and_is_left_as_it_was():
    image = noise(256, 200)
    image.setflags(write=False)
    before = image.copy()
    assert torch.equal(TRANSFORM(image), TRANSFORM(image))
    assert np.array_equal(image, before)


def test_an_image_seen_through_a_view_gives_the_same_bits():
    image = noise(256, 200)
    assert torch.equal(TRANSFORM(image[::-1, ::-1]), TRANSFORM(image[::-1, ::-1].copy()))


def test_brightness_and_contrast_do_not_matter():
    image = noise(220, 220) / 2
    assert torch.allclose(TRANSFORM(image), TRANSFORM(image * 0.5 + 0.3), atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(440, 440), (1000, 300), (333, 777)])
def test_the_box_says_where_in_the_source_an_input_pixel_lies(height, width):
    row, column = round(0.37 * height), round(0.71 * width)
    image = np.zeros((height, width), dtype=np.float32)
    size = max(height, width) // 40
    image[row - size : row + size, column - size : column + size] = 1
    weight = TRANSFORM(image)[0]
    weight = (weight - weight.min()).double()
    weight[weight < weight.max() / 2] = 0
    place = (torch.arange(192) + 0.5) / 192
    top, left, box_height, box_width = TRANSFORM.box
    found_row = top + box_height * float((weight.sum(1) * place).sum() / weight.sum())
    found_column = left + box_width * float((weight.sum(0) * place).sum() / weight.sum())
    assert found_row == pytest.approx(row / height, abs=0.5 / 192)
    assert found_column == pytest.approx(column / width, abs=0.5 / 192)


def test_a_stripe_pattern_finer_than_the_input_is_averaged_away():
    image = np.tile(np.array([0, 1], dtype=np.float32), (880, 440))
    image[:, :440] *= 0.5
    given = TRANSFORM(image)[0]
    assert given[:, :90].std() < 0.05  # aliasing would leave stripes


def test_the_manifest_describes_it_and_nothing_else():
    assert Preprocess.from_manifest(TRANSFORM.to_manifest()) == TRANSFORM
    with pytest.raises(ValueError, match="not known"):
        Preprocess.from_manifest(TRANSFORM.to_manifest() | {"equalise": 1})
    with pytest.raises(ValueError, match="not known"):
        Preprocess.from_manifest(TRANSFORM.to_manifest() | {"interpolation": "nearest"})


@pytest.mark.parametrize(("resize", "crop"), [(220, 0), (192, 220), (220, 191)])
def test_a_crop_that_is_not_centred_on_pixels_is_refused(resize, crop):
    with pytest.raises(ValueError, match="crop"):
        Preprocess(resize, crop)


@pytest.mark.parametrize(
    ("how", "channels"), [("per image", 1), ("imagenet", 3), ("centred", 1), ("equalised", 1), ("none", 1)]
)
def test_a_batch_is_standardised_image_by_image(how, channels):
    images = [noise(80, 80), noise(80, 80) * 0.1]
    transform = Preprocess(64, 48, how)
    squares = torch.stack([square(image, 64) for image in images])[:, :, 8:56, 8:56]
    batch = standardise(squares, how)
    assert batch.shape == (2, channels, 48, 48)
    assert batch.dtype == torch.float32
    assert all(torch.equal(one, transform(image)) for one, image in zip(batch, images, strict=True))


def test_imagenets_statistics_are_those_of_each_channel():
    # White in the first channel is (1 - 0.485) / 0.229.
    given = standardise(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), "imagenet").flatten(1)
    assert given[1].tolist() == pytest.approx([2.2489, 2.4286, 2.6400], abs=1e-4)
    assert given[0].tolist() == pytest.approx([-2.1179, -2.0357, -1.8044], abs=1e-4)


def test_centred_grey_levels_go_from_minus_one_to_one():
    assert standardise(torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1), "centred").flatten().tolist() == [-1, 0, 1]


def test_equalised_grey_levels_are_ranks():
    # Of ten pixels four are darkest: their middle rank is 2 of 10, from -1 to 1.
    given = standardise(torch.tensor([0.1] * 4 + [0.2] * 5 + [0.9]).view(1, 1, 2, 5), "equalised").flatten()
    assert given.tolist() == pytest.approx([-0.6] * 4 + [0.3] * 5 + [0.9])
    assert standardise(torch.full((1, 1, 4, 4), 0.3), "equalised").abs().max() == 0


def test_equalised_no_monotone_change_of_grey_levels_matters():
    levels = torch.randint(0, 100, (1, 1, 40, 40), generator=torch.Generator().manual_seed(1)) / 255
    assert torch.equal(standardise(levels, "equalised"), standardise(levels * 2 + 0.1, "equalised"))


def test_by_way_of_a_common_resolution_finer_detail_is_lost():
    fine = np.tile(np.array([[0, 1], [1, 0]], dtype=np.float32), (128, 128))
    coarse = np.repeat(np.repeat(fine[:8, :8], 32, axis=0), 32, axis=1)
    seen, low = Preprocess(256, 256, "none"), Preprocess(256, 256, "none", 32)
    assert seen(fine).std() == pytest.approx(0.5, abs=1e-3)
    assert low(fine).std() < 1e-3
    assert low(coarse).std() > 0.3
    assert Preprocess.from_manifest(low.to_manifest()) == low
    assert "resolution" not in seen.to_manifest(), "what older bundles say is still what is said"
    with pytest.raises(ValueError, match="resolution 257 is not from 0 to the 256 pixels of resize"):
        Preprocess(256, 256, "none", 257)


def test_without_standardisation_grey_levels_stay_as_they_are():
    given = Preprocess(64, 64, "none")(np.full((100, 80), 0.3, dtype=np.float32))
    assert given.flatten().tolist() == pytest.approx([0.3] * 64**2)


@pytest.mark.parametrize("how", ["imagenet", "none"])
def test_the_manifest_keeps_how_it_standardises(how):
    transform = Preprocess(220, 192, how)
    assert transform.to_manifest() == TRANSFORM.to_manifest() | {"standardise": how}
    assert Preprocess.from_manifest(transform.to_manifest()) == transform


def test_a_standardisation_that_is_not_known_is_refused():
    with pytest.raises(
        ValueError, match="standardise 'per batch' is not known; known: per image, imagenet, centred, equalised, none"
    ):
        Preprocess(220, 192, "per batch")
    with pytest.raises(ValueError, match="standardise '' is not known"):
        Preprocess.from_manifest({"resize": 220, "crop": 192})
