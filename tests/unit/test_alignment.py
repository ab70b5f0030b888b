"""A bright spot in an image lies where the heatmap says, through resize, crop, network, and turns."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.unit.test_networks import quick
from training.models.preprocess import CENTRED, EQUALISED, IMAGENET, NONE, PER_IMAGE, Preprocess
from workers.loading import LoadedMember
from workers.saliency import member_maps

SPOT = 0.06  # radius, of the image's side
PLACES = [(0.3, 0.35), (0.4, 0.7), (0.7, 0.55)]
LITE = {"backbone": "efficientnet_lite0"}
CLASSES = ["normal", "pneumonia", "covid19"]


def rising(architecture, **options):
    """A network whose every output rises with the brightness of what it sees: each layer takes means of the last."""
    network = quick(architecture, **options)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.ndim > 1:
                tensor.abs_()
                tensor /= tensor.flatten(1).sum(dim=1).view(-1, *[1] * (tensor.ndim - 1))
    return network


def minaee(**options):
    network = rising("Minaee2020", classes=["other", "covid19"], **options)
    last = network.backbone.fc if options["backbone"] == "resnet18" else network.backbone.classifier[-1]
    with torch.no_grad():
        last.weight[0] = 0  # what is bright speaks for the last class
    return network


def zhang(**options):
    return rising("Zhang2020", channels=16, **options)


def basu(**options):
    return rising("Basu2020", classes=CLASSES, **options)


def zhong(**options):
    return rising("Zhong2020", classes=["covid19", "normal", "pneumonia"], dense=[16, 8])


def jahan(**options):
    """It gives every image back as black: what is bright is its error."""
    network = rising("Jahan2022", references=3)
    with torch.no_grad():
        network.decoder[-1].weight.zero_()
    return network


# How far from the spot's middle a map's strongest place may lie, of the image's side: a cell of the map, and for
# occlusion half its square. What is cut off is so wide that a map drawn over the whole image would lie further away.
CASES = {
    "zhang": (zhang, {}, Preprocess(320, 224, IMAGENET), 0.07),
    "zhang lite": (zhang, {"trunk": "efficientnet_lite0", "levels": [2, 5]}, Preprocess(192, 128, CENTRED, 96), 0.05),
    "basu vgg16": (basu, {"backbone": "vgg16"}, Preprocess(192, 128, PER_IMAGE), 0.05),
    "basu resnet50": (basu, {"backbone": "resnet50"}, Preprocess(320, 224, PER_IMAGE), 0.07),
    "basu lungs": (basu, LITE | {"levels": [2, 5], "dense": 8, "lungs": True}, Preprocess(192, 128, CENTRED, 96), 0.05),
    "zhong": (zhong, {}, Preprocess(120, 80, EQUALISED), 0.03),
    "jahan": (jahan, {}, Preprocess(192, 128, NONE), 0.02),
    "minaee": (minaee, {"backbone": "resnet18"}, Preprocess(96, 64, PER_IMAGE), 0.05),
    "minaee lite": (minaee, LITE | {"levels": [2, 5], "stride": 0.25}, Preprocess(96, 64, CENTRED), 0.09),
    "minaee lungs": (minaee, LITE | {"levels": [2, 5], "lungs": True}, Preprocess(192, 128, CENTRED, 96), 0.05),
}


def film(place, rows=260, columns=220):
    """Dark, with one bright spot at `place`, in fractions of the rows and columns."""
    down, across = np.mgrid[0:rows, 0:columns]
    near = np.hypot((down + 0.5) / rows - place[0], (across + 0.5) / columns - place[1]) < SPOT
    return np.where(near, 0.9, 0.1).astype(np.float32)


def strongest(found):
    """The middle of a map's strongest places, in fractions of the source's rows and columns."""
    top, left, height, width = found.box
    rows, columns = np.nonzero(found.pixels >= 250)
    side = found.pixels.shape[0]
    return top + (rows.mean() + 0.5) / side * height, left + (columns.mean() + 0.5) / side * width


@pytest.fixture(scope="module", params=CASES)
def case(request):
    make, options, transform, within = CASES[request.param]
    described = SimpleNamespace(name=request.param, maps=None)
    return LoadedMember(described, make(**options), transform), within


@torch.no_grad()
def maps_of(member, shown, turns):
    inputs = torch.stack([member.transform(np.ascontiguousarray(image)) for image in shown])
    return member_maps(member, member.network.embed(inputs), turns)


def test_a_heatmap_lies_on_the_spot_that_it_comes_from(case):
    member, within = case
    found = maps_of(member, [film(place) for place in PLACES], [0] * len(PLACES))
    for maps, place in zip(found, PLACES, strict=True):
        assert maps
        for one in maps:
            assert one.box == member.transform.box
            assert one.pixels.shape == (member.transform.crop,) * 2
            assert one.pixels.max() == 255
            assert np.subtract(strongest(one), place) == pytest.approx((0, 0), abs=within), one.name


def test_a_heatmap_of_a_turned_image_lies_on_the_image_as_it_came(case):
    member, within = case
    shown = [np.rot90(film(PLACES[1], 240, 240), turn) for turn in range(4)]
    for maps in maps_of(member, shown, range(4)):
        for one in maps:
            assert np.subtract(strongest(one), PLACES[1]) == pytest.approx((0, 0), abs=within), one.name
