"""Scores of pictures, each read and transformed as in service, by the weights that a bundle would ship."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch
import torch

from training.data.squares import pixels_of
from training.models.preprocess import Preprocess
from training.models.registry import build
from training.records import WEIGHTS, read_record, recipe_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from training.data.manifest import Picture
    from training.models.network import Network
    from training.recipe import Recipe

_BATCH = 16


def transform_of(recipe: Recipe) -> Preprocess:
    """The transform from an image to the input of the recipe's network."""
    return Preprocess(recipe.resize, recipe.crop, recipe.standardise, recipe.resolution)


def load_network(experiment: Path, run: str) -> Network:
    """The network of one run of an experiment, in evaluation mode, with the weights that a bundle would ship.

    Raises
    ------
    ValueError
        Where the experiment is not finished or has no such run.
    """
    recipe = recipe_of(read_record(experiment))
    file = experiment / run / WEIGHTS
    if not file.is_file():
        raise ValueError(f"{file} does not exist; the experiment has no run {run!r}")
    network = build(recipe.architecture, recipe.options)
    try:
        network.load_state_dict(safetensors.torch.load_file(file))
    except RuntimeError as error:
        raise ValueError(f"{file} holds no weights of {recipe.paper} {recipe.variant}") from error
    return network.eval()


@torch.inference_mode()
def score_images(
    network: Network, transform: Preprocess, images: Iterable[NDArray[np.float32]]
) -> list[dict[str, float]]:
    """The named scores of each image, in order.

    Parameters
    ----------
    images
        float32, shape (H, W), in [0, 1], MONOCHROME2 sense (PS3.3 C.7.6.3.1.2).
    """
    network.eval()
    device = next(network.parameters()).device
    rows: list[dict[str, float]] = []
    for inputs in _batches(transform(image) for image in images):
        columns = network.scores(network(inputs.to(device))[0])
        values = torch.stack([columns[name] for name in network.score_names], dim=1).cpu()
        rows += [dict(zip(network.score_names, row, strict=True)) for row in values.tolist()]
    return rows


def score_pictures(network: Network, transform: Preprocess, pictures: Iterable[Picture]) -> list[dict[str, float]]:
    """The named scores of each picture, in order."""
    return score_images(network, transform, (pixels_of(picture) for picture in pictures))


def _batches(inputs: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    waiting: list[torch.Tensor] = []
    for one in inputs:
        waiting.append(one)
        if len(waiting) == _BATCH:
            yield torch.stack(waiting)
            waiting = []
    if waiting:
        yield torch.stack(waiting)


def round_to_half(network: Network) -> Network:
    """The network with every floating-point weight at the nearest float16, held as float32: what a bundle ships."""
    state = network.state_dict()
    network.load_state_dict({name: t.half().float() if t.is_floating_point() else t for name, t in state.items()})
    return network
