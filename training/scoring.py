"""Scores of pictures, each read, transformed and put through the network alone, as in service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from training.datasets import pixels_of
from training.models.zhang import named_scores

if TYPE_CHECKING:
    from collections.abc import Iterable

    from training.datasets import Picture
    from training.models.preprocess import Preprocess
    from training.models.zhang import Zhang2020


@torch.inference_mode()
def score(network: Zhang2020, transform: Preprocess, pictures: Iterable[Picture]) -> list[dict[str, float]]:
    """The named scores of each picture, in order."""
    network.eval()
    return [
        {name: value.item() for name, value in named_scores(network(transform(pixels_of(picture))[None])[0]).items()}
        for picture in pictures
    ]


def round_to_half(network: Zhang2020) -> Zhang2020:
    """The network with every floating-point weight at the nearest float16, held as float32: what a bundle ships."""
    state = network.state_dict()
    network.load_state_dict({name: t.half().float() if t.is_floating_point() else t for name, t in state.items()})
    return network
