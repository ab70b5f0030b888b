"""What the frozen part of a network makes of images, made once for each preprocessing and kept in a working folder."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy
import torch
from rich.console import Console
from rich.progress import track
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from training.data.squares import alone, load_squares
from training.models.backbones import starting_weights
from training.models.preprocess import standardise
from training.models.registry import build
from training.records import plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.manifest import Picture
    from training.recipe import Recipe

_BATCH = 16
_FINEST = 8  # pixels of the input, on a side, to a cell of the finest map that is kept
_SEEN_BY = ("weights", "resize", "crop", "resolution", "standardise")


def pooled_features(recipe: Recipe, pictures: Sequence[Picture], workdir: Path) -> NDArray[np.float32]:
    """The `features` of a recipe of Minaee2020 with levels, of each picture and its mirror image: shape (N, 2, F)."""
    backbone, levels = recipe.options["backbone"], recipe.options["levels"]
    what = {name: plain(recipe)[name] for name in _SEEN_BY}
    names = [[picture.image_id, picture.sha256] for picture in pictures]
    digest = hashlib.sha256(json.dumps([backbone, what, names]).encode()).hexdigest()[:16]
    file = workdir / "features" / f"{digest}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    with alone(file.with_suffix(".lock")):
        if not file.is_file():
            part = file.with_suffix(".part")
            safetensors.numpy.save_file(_computed(recipe, pictures, workdir), part)
            part.replace(file)
    wanted = ("mean", "deviation") if recipe.options.get("deviation", True) else ("mean",)
    kept = safetensors.numpy.load_file(file)
    return np.concatenate([kept[f"{level} {name}"] for level in levels for name in wanted], axis=-1)


@torch.inference_mode()
def _computed(recipe: Recipe, pictures: Sequence[Picture], workdir: Path) -> dict[str, NDArray[np.float32]]:
    """Mean and deviation of each channel after each block, shape (N, 2, channels)."""
    network = build(recipe.architecture, {"backbone": recipe.options["backbone"]})
    starting_weights(recipe.weights, network)
    blocks = _fused(network.eval().to(memory_format=torch.channels_last).get_submodule("backbone.features"))
    squares, _ = load_squares(pictures, recipe.resize, workdir / "squares", recipe.resolution)
    start = (recipe.resize - recipe.crop) // 2
    window = slice(start, start + recipe.crop)
    console = Console(stderr=True)
    found: dict[str, list[torch.Tensor]] = defaultdict(list)
    steps = range(0, len(pictures), _BATCH)
    for at in track(steps, "Features", console=console, disable=not console.is_terminal):
        pixels = torch.from_numpy(np.array(squares[at : at + _BATCH, None, window, window])).float() / 255
        inputs = standardise(pixels, recipe.standardise).expand(-1, 3, -1, -1)
        x = torch.cat([inputs, inputs.flip(-1)]).contiguous(memory_format=torch.channels_last)
        for level, block in enumerate(blocks.children()):
            x = block(x)
            if x.shape[-1] * _FINEST > recipe.crop:
                continue
            for name, values in zip(("deviation", "mean"), torch.std_mean(x, (2, 3), correction=0), strict=True):
                found[f"{level} {name}"].append(torch.stack(values.chunk(2), dim=1))
    return {name: torch.cat(values).numpy() for name, values in found.items()}


def _fused(network: nn.Module) -> nn.Module:
    """The network with each BatchNorm taken into the convolution before it: the same but for rounding, and faster."""
    for module in network.modules():
        if isinstance(module, nn.Sequential) and len(module) > 1:
            convolution, norm = module[0], module[1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[0], module[1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    return network


def lessons(features: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """What a network learns from a teacher: the first principal components of its standardised features.

    Parameters
    ----------
    features
        Of `pooled_features`; image and mirror image are taken together.

    Returns
    -------
    Shape (N, count), of the images' unit deviation in mean over the components.
    """
    values = StandardScaler().fit_transform(features.mean(axis=1))
    found = PCA(count, random_state=seed).fit_transform(values)
    return np.asarray(found / np.sqrt(found.var(axis=0).mean()), dtype=np.float32)
