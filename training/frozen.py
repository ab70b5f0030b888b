"""What the frozen part of a network makes of images, made once for each preprocessing and kept in a working folder."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from training.data.squares import alone, load_squares
from training.localise import SEEN_BY, Localiser
from training.models.backbones import starting_weights
from training.models.minaee import Minaee2020
from training.models.preprocess import standardise
from training.models.registry import build
from training.records import plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.manifest import Picture
    from training.models.network import Network
    from training.recipe import Recipe

_BATCH = 16
_POOLED, _MAPS = "pooled", "maps"
_READ_BY = ("levels", "deviation", "lungs")


def shared_features(
    recipe: Recipe, wanted: Sequence[Picture], pictures: Sequence[Picture], workdir: Path, localiser: Localiser
) -> NDArray[np.floating[Any]]:
    """`kept_features` of the wanted ones, made for all frontal pictures of a manifest but those of split external."""
    known = [picture for picture in pictures if picture.frontal and picture.split != "external"]
    place = {picture.image_id: i for i, picture in enumerate(known)}
    features = kept_features(recipe, known, workdir, localiser)
    return features[[place[picture.image_id] for picture in wanted]]


def kept_features(
    recipe: Recipe, pictures: Sequence[Picture], workdir: Path, localiser: Localiser
) -> NDArray[np.floating[Any]]:
    """What the recipe's network makes of each picture and of its mirror image before anything is trained.

    Returns
    -------
    Shape (N, 2, F) where the network pools its maps itself; else, in half precision, (N, 2, C, h, w).
    """
    network = build(recipe.architecture, recipe.options)
    starting_weights(recipe.weights, network)
    lungs = localiser.teach(network, recipe)
    what = _POOLED if isinstance(network, Minaee2020) else _MAPS
    how = {name: plain(recipe)[name] for name in SEEN_BY} | {name: recipe.options.get(name) for name in _READ_BY}
    names = [[picture.image_id, picture.sha256] for picture in pictures]
    digest = hashlib.sha256(json.dumps([network.backbone_name, what, how, lungs, names]).encode()).hexdigest()[:16]
    file = workdir / "features" / f"{digest}.npy"
    file.parent.mkdir(parents=True, exist_ok=True)
    with alone(file.with_suffix(".lock")):
        if not file.is_file():
            part = file.with_suffix(".part")
            with part.open("wb") as out:
                np.save(out, _made(network, what, recipe, pictures, workdir))
            part.replace(file)
    found: NDArray[np.floating[Any]] = np.load(file)
    return found


@torch.inference_mode()
def _made(
    network: Network, what: str, recipe: Recipe, pictures: Sequence[Picture], workdir: Path
) -> NDArray[np.floating[Any]]:
    fused = _fused(network.eval().to(memory_format=torch.channels_last))
    squares, _ = load_squares(pictures, recipe.resize, workdir / "squares", recipe.resolution)
    start = (recipe.resize - recipe.crop) // 2
    window = slice(start, start + recipe.crop)
    console = Console(stderr=True)
    found: NDArray[np.floating[Any]] | None = None
    steps = range(0, len(pictures), _BATCH)
    for at in track(steps, "Features", console=console, disable=not console.is_terminal):
        pixels = torch.from_numpy(np.array(squares[at : at + _BATCH, None, window, window])).float() / 255
        inputs = standardise(pixels, recipe.standardise).expand(-1, 3, -1, -1)
        x = torch.cat([inputs, inputs.flip(-1)]).contiguous(memory_format=torch.channels_last)
        features = fused.embed(x)["features"]
        features = features.flatten(1) if what == _POOLED else features.half()
        both = torch.stack(features.chunk(2), dim=1).numpy()
        if found is None:  # made at once: parts scattered among what is not kept would hold on to the memory of both
            found = np.zeros((len(pictures), *both.shape[1:]), dtype=both.dtype)
        found[at : at + _BATCH] = both
    if found is None:
        raise ValueError("there are no images to make features of")
    return found


def _fused(network: Network) -> Network:
    """The network with each BatchNorm taken into the convolution before it: the same but for rounding, and faster."""
    for module in network.modules():
        if isinstance(module, nn.Sequential) and len(module) > 1:
            convolution, norm = module[0], module[1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[0], module[1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    return network
