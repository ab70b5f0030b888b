"""What the frozen part of a network makes of images, made once for each preprocessing and kept in a working folder."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

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
from training.models.efficientnet_lite import side_by_side, stage_maps
from training.models.preprocess import standardise
from training.models.registry import build
from training.records import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from training.data.manifest import Picture
    from training.recipe import Recipe

_BATCH = 16
_FINEST = 8  # pixels of the input, on a side, to a cell of the finest map that is kept
_SEEN_BY = ("weights", "resize", "crop", "resolution", "standardise")


def pooled_features(recipe: Recipe, pictures: Sequence[Picture], workdir: Path) -> NDArray[np.float32]:
    """The `features` of a recipe of Minaee2020 with levels, of each picture and its mirror image: shape (N, 2, F)."""
    wanted = ("mean", "deviation") if recipe.options.get("deviation", True) else ("mean",)
    kept = _kept(recipe, recipe.options["backbone"], pictures, workdir, "pooled", _pooled)
    return np.concatenate([kept[f"{level} {name}"] for level in recipe.options["levels"] for name in wanted], axis=-1)


def maps(recipe: Recipe, pictures: Sequence[Picture], workdir: Path) -> NDArray[np.float16]:
    """The `features` of a recipe of Zhang2020 with levels, likewise: shape (N, 2, C, h, w)."""
    levels = tuple(recipe.options["levels"])

    def see(blocks: Iterable[nn.Module], x: Tensor) -> dict[str, Tensor]:
        return {"maps": side_by_side(stage_maps(blocks, levels, x)).half()}

    kept = _kept(recipe, recipe.options["trunk"], pictures, workdir, f"maps {levels}", see)
    return kept["maps"]


def _kept(
    recipe: Recipe,
    backbone: str,
    pictures: Sequence[Picture],
    workdir: Path,
    what: str,
    see: Callable[[Iterable[nn.Module], Tensor], Mapping[str, Tensor]],
) -> dict[str, NDArray[Any]]:
    """What `see` finds, each with the axes picture and mirroring in front; made once."""
    how = {name: plain(recipe)[name] for name in _SEEN_BY}
    names = [[picture.image_id, picture.sha256] for picture in pictures]
    digest = hashlib.sha256(json.dumps([backbone, what, how, names]).encode()).hexdigest()[:16]
    file = workdir / "features" / f"{digest}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    with alone(file.with_suffix(".lock")):
        if not file.is_file():
            part = file.with_suffix(".part")
            safetensors.numpy.save_file(_made(recipe, backbone, pictures, workdir, see), part)
            part.replace(file)
    found: dict[str, NDArray[Any]] = safetensors.numpy.load_file(file)
    return found


@torch.inference_mode()
def _made(
    recipe: Recipe,
    backbone: str,
    pictures: Sequence[Picture],
    workdir: Path,
    see: Callable[[Iterable[nn.Module], Tensor], Mapping[str, Tensor]],
) -> dict[str, NDArray[Any]]:
    network = build("Minaee2020", {"backbone": backbone})
    starting_weights(recipe.weights, network)
    blocks = _fused(network.eval().to(memory_format=torch.channels_last).get_submodule("backbone.features"))
    squares, _ = load_squares(pictures, recipe.resize, workdir / "squares", recipe.resolution)
    start = (recipe.resize - recipe.crop) // 2
    window = slice(start, start + recipe.crop)
    console = Console(stderr=True)
    # Made at once: what is kept, scattered among what is not, would hold on to the memory of both.
    found: dict[str, NDArray[Any]] = {}
    steps = range(0, len(pictures), _BATCH)
    for at in track(steps, "Features", console=console, disable=not console.is_terminal):
        pixels = torch.from_numpy(np.array(squares[at : at + _BATCH, None, window, window])).float() / 255
        inputs = standardise(pixels, recipe.standardise).expand(-1, 3, -1, -1)
        x = torch.cat([inputs, inputs.flip(-1)]).contiguous(memory_format=torch.channels_last)
        for name, values in see(blocks.children(), x).items():
            both = torch.stack(values.chunk(2), dim=1).numpy()
            if name not in found:
                found[name] = np.zeros((len(pictures), *both.shape[1:]), dtype=both.dtype)
            found[name][at : at + _BATCH] = both
    return found


def _pooled(blocks: Iterable[nn.Module], x: Tensor) -> dict[str, Tensor]:
    """Mean and deviation of each channel after each block but the finest, shape (N, channels)."""
    found = {}
    side = x.shape[-1]
    for level, block in enumerate(blocks):
        x = block(x)
        if x.shape[-1] * _FINEST <= side:
            found[f"{level} deviation"], found[f"{level} mean"] = torch.std_mean(x, (2, 3), correction=0)
    return found


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
