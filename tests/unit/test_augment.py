import numpy as np
import pytest
import torch

from training.augment import augment
from training.models.preprocess import Preprocess
from training.recipe import Augmentation

EVERYTHING = Augmentation(
    random_crop=True,
    flip=0.5,
    zoom=(0.9, 1.1),
    rotation_deg=8,
    shear_deg=5,
    shift=0.05,
    brightness=0.1,
    contrast=(0.9, 1.1),
    gamma=0.4,
    jitter=0.2,
    blur_px=1.2,
    noise=0.1,
    erase=0.5,
)


def squares(n: int, side: int = 72) -> torch.Tensor:
    return torch.randint(0, 256, (n, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(8))


def changed(given: torch.Tensor, seed: int = 1, crop: int = 64, how: str = "none", **ranges) -> torch.Tensor:
    return augment(given, crop, how, Augmentation(**ranges), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("how", ["none", "per image", "imagenet", "centred"])
def test_without_ranges_it_is_the_transform_of_service(how):
    given = squares(3)
    transform = Preprocess(72, 64, how)
    expected = torch.stack([transform(one.numpy().astype(np.float32) / 255) for one in given])
    assert torch.allclose(changed(given, how=how), expected, atol=2e-4)


def test_mixed_precision_does_not_reach_the_sampling_grid():
    given = squares(3)
    expected = changed(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(changed(given), expected)


@pytest.mark.parametrize(
    ("ranges", "least", "most"),
    [
        ({"gamma": 0.4}, 0.5 ** np.exp(0.4), 0.5 ** np.exp(-0.4)),
        ({"jitter": 0.2}, 0.5 * 0.8 - 0.2, 0.5 * 1.2 + 0.2),
    ],
)
def test_gamma_and_jitter_stay_within_their_ranges(ranges, least, most):
    grey = torch.full((400, 8, 8), 127, dtype=torch.uint8)
    found = changed(grey, crop=8, **ranges).mean(dim=(1, 2, 3))
    assert least - 0.01 < found.min() < least + 0.1
    assert most - 0.1 < found.max() < most + 0.01


def test_shift_and_shear_stay_within_their_ranges():
    given = torch.zeros(200, 73, 73, dtype=torch.uint8)
    given[:, :, 36] = 255
    places = torch.arange(73.0) - 36
    moved = (changed(given, crop=73, shift=0.05).squeeze(1)[:, 36] * places).sum(dim=1)
    assert 0.04 * 73 < moved.abs().max() <= 0.05 * 73 + 0.5
    sheared = changed(given, crop=73, shear_deg=10).squeeze(1)
    across = (sheared[:, 6] * places).sum(dim=1) / sheared[:, 6].sum(dim=1)
    assert 9 < torch.rad2deg(torch.atan(across / 30)).abs().max() < 10.5


def test_noise_and_erasing_stay_within_their_bounds():
    grey = torch.full((300, 32, 32), 127, dtype=torch.uint8)
    deviation = changed(grey, crop=32, noise=0.1).std(dim=(1, 2, 3))
    assert deviation.max() < 0.11
    assert deviation.max() > 0.09
    taken = (changed(grey, crop=32, erase=0.5) == 0).float().mean(dim=(1, 2, 3))
    assert 0.15 < (taken == 0).float().mean() < 0.4  # neither a patch nor a frame: about a quarter
    assert taken.max() < 0.35**2 + 1 - 0.8**2 + 0.05


def test_blur_keeps_the_mean_and_softens_about_half():
    given = squares(200, 32)
    plain = changed(given, crop=32).std(dim=(1, 2, 3))
    blurred = changed(given, crop=32, blur_px=1.2)
    softer = blurred.std(dim=(1, 2, 3)) < 0.95 * plain
    assert 60 < int(softer.sum()) < 140
    assert torch.allclose(blurred.mean(dim=(1, 2, 3)), given.float().mean(dim=(1, 2)) / 255, atol=0.02)


def test_draws_differ_from_seed_to_seed_and_repeat_by_seed():
    one, again, other = (
        augment(squares(6), 64, "per image", EVERYTHING, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert one.shape == (6, 1, 64, 64)
    assert one.isfinite().all()
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_an_image_of_one_grey_survives():
    given = torch.full((3, 72, 72), 9, dtype=torch.uint8)
    assert augment(given, 64, "per image", EVERYTHING, torch.Generator()).isfinite().all()


def test_a_certain_flip_mirrors_left_and_right():
    given = squares(2)
    assert torch.allclose(changed(given, crop=72, flip=1.0), changed(given.flip(-1), crop=72), atol=1e-5)


def test_half_of_the_images_are_flipped():
    given = squares(400, 12)
    plain = changed(given, crop=12)
    flipped = (changed(given, crop=12, flip=0.5) - plain).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert 150 < int(flipped.sum()) < 250


def test_zoom_stays_within_its_range():
    # A bright square of 36 of 72 pixels: its width in the output tells the factor.
    given = torch.zeros(200, 72, 72, dtype=torch.uint8)
    given[:, 18:54, 18:54] = 255
    width = changed(given, crop=72, zoom=(0.9, 1.1)).squeeze(1)[:, 36].sum(dim=-1)
    assert 0.89 * 36 < width.min() < 0.93 * 36
    assert 1.07 * 36 < width.max() < 1.11 * 36


def test_rotation_stays_within_its_angle():
    # A bright column through the middle: how far its top leaves the middle is the angle's sine.
    given = torch.zeros(200, 73, 73, dtype=torch.uint8)
    given[:, :, 36] = 255
    out = changed(given, crop=73, rotation_deg=10).squeeze(1)
    places = torch.arange(73.0) - 36
    across = (out[:, 6] * places).sum(dim=1) / out[:, 6].sum(dim=1)
    angle = torch.rad2deg(torch.atan(across / 30)).abs()
    assert 9 < angle.max() < 10.5
    assert angle.min() < 1


def test_brightness_and_contrast_stay_within_their_ranges():
    given = torch.full((200, 8, 8), 128, dtype=torch.uint8)
    shift = changed(given, crop=8, brightness=0.1)[:, 0, 0, 0] - 128 / 255
    assert 0.09 < shift.max() <= 0.1
    assert -0.1 <= shift.min() < -0.09
    given[:, :4] = 64
    spread = changed(given, crop=8, contrast=(0.9, 1.1)).std(dim=(1, 2, 3), correction=0) / (32 / 255)
    assert 0.9 <= spread.min() < 0.91
    assert 1.09 < spread.max() <= 1.1


def test_random_crops_come_from_all_over_and_only_from_inside():
    column = torch.arange(72, dtype=torch.uint8).expand(300, 72, 72)
    first = changed(column, crop=64, random_crop=True)[:, 0, 0, 0] * 255
    assert 0 <= first.min() < 1
    assert 7 < first.max() <= 8
