"""Every variant of every paper takes two steps; every paper takes one at its own image size."""

import numpy as np
import pytest
import torch

from training.augment import augment
from training.fit import Images, Training, freeze, keep_frozen_statistics
from training.models.registry import build
from training.papers import PAPERS

VARIANTS = [(name, variant) for name, paper in PAPERS.items() for variant in paper.variants]
# Flattened maps fix the size of these inputs.
FIXED = {"jahan": 128, "zhong": 80}


def steps(recipe, count: int, labels: list[int]) -> tuple[dict[str, torch.Tensor], torch.nn.Module, list[float]]:
    torch.manual_seed(9)
    network = build(recipe.architecture, recipe.options)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    squares = torch.randint(0, 256, (len(labels), recipe.resize, recipe.resize), dtype=torch.uint8)
    images = Images(squares.numpy(), np.array(labels), ["a"] * len(labels))
    training = Training(network, recipe, images, None, seed=1)
    freeze(network, recipe.trainable)
    keep_frozen_statistics(network)
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        inputs = augment(squares, recipe.crop, recipe.standardise, recipe.augmentation, generator)
        outputs, _ = network(inputs)
        loss = training.loss(outputs, inputs, torch.tensor(labels))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return before, network, losses


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_two_steps_change_what_is_trained_and_only_that(name, variant):
    recipe = PAPERS[name].recipe(variant, "small")
    side = FIXED.get(name, 64)
    before, network, losses = steps(recipe.but(resize=side, crop=side), 2, [0, 1, 1])
    assert np.isfinite(losses).all()
    trained = [key for key, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained
    for key, parameter in network.named_parameters():
        assert parameter.isfinite().all(), key
        if key not in trained:
            assert torch.equal(parameter, before[key]), key
        elif parameter.dim() > 1:  # a bias in front of a BatchNorm has no gradient
            assert not torch.equal(parameter, before[key]), key


@pytest.mark.parametrize("name", PAPERS)
def test_one_step_at_the_papers_own_image_size(name):
    paper = PAPERS[name]
    _, _, losses = steps(paper.recipe(paper.variants[0], "paper"), 1, [0, 1])
    assert np.isfinite(losses).all()
