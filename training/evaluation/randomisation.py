"""The sanity check of Adebayo et al. 2018 (arXiv:1810.03292): heatmaps of random weights must be other heatmaps."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr
from torch import nn
from torch.nn import functional

from dicom_node.evaluation import statistics

if TYPE_CHECKING:
    from torch import Tensor

    from dicom_node.evaluation.shape import Randomised
    from training.models.network import Network

_PARTS = (0.25, 0.5, 0.75, 1.0)  # of the layers, counted from the last; before them the last one alone
_CELLS = 16  # of a side at which heatmaps are compared, at most


def heatmaps(network: Network, image: Tensor) -> dict[str, Tensor]:
    """The network's maps of one input, each of shape (h, w)."""
    with torch.no_grad():
        maps = network.heatmaps(network.embed(image[None]))
    return {name: found[0].float() for name, found in maps.items()}


def layers(network: nn.Module) -> list[list[nn.Module]]:
    """The modules that hold parameters themselves, in the order in which the network names them.

    Those of parallel `heads` come last, and are one layer where they are as far from the end: each head has a map. What
    tells the `lungs` comes first: all that is seen goes through it.
    """
    heads = getattr(network, "heads", None)
    branches = [_holders(head) for head in heads.values()] if isinstance(heads, nn.ModuleDict) else []
    lungs = getattr(network, "lungs", None)
    first = _holders(lungs) if isinstance(lungs, nn.Module) else []
    inside = {module for branch in (*branches, first) for module in branch}
    trunk = [[module] for module in (*first, *(one for one in _holders(network) if one not in inside))]
    depth = max(map(len, branches), default=0)
    return trunk + [[branch[-i] for branch in branches if i <= len(branch)] for i in range(depth, 0, -1)]


def _holders(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if any(True for _ in module.parameters(recurse=False))]


def steps(network: nn.Module) -> list[int]:
    """How many layers, from the last one down, each step gives random weights."""
    count = len(layers(network))
    return sorted({1, *(max(1, round(part * count)) for part in _PARTS)})


def randomised(network: Network, last: int, seed: int) -> Network:
    """A copy whose last layers have the weights of a fresh network; a layer that cannot reset itself gets noise."""
    other = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in (module for layer in layers(other)[-last:] for module in layer):
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                parameter.normal_(0.0, float(parameter.std(correction=0)) or 1.0)
    return other


def similarity(before: Tensor, after: Tensor) -> tuple[float, float] | None:
    """Spearman's and Kendall's rank correlation of two maps' cells; None where one is the same everywhere."""
    one, other = (_cells(heatmap) for heatmap in (before, after))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(spearmanr(one, other).statistic), float(kendalltau(one, other).statistic)


def _is_empty(heatmap: Tensor) -> bool:
    return bool(np.ptp(_cells(heatmap)) == 0)


def _cells(heatmap: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    size = (min(heatmap.shape[0], _CELLS), min(heatmap.shape[1], _CELLS))
    found = functional.adaptive_avg_pool2d(heatmap[None, None], size).double().flatten().numpy()
    return np.asarray(found)


class Randomisation:
    """Similarities collected over images and networks of one form."""

    def __init__(self) -> None:
        self._of = 0
        self._left_out: Counter[str] = Counter()
        self._groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        self._found: dict[tuple[str, int], list[tuple[float, float] | None]] = defaultdict(list)

    def add(self, network: Network, images: dict[str, Tensor], groups: dict[str, int], seed: int) -> None:
        """Compare the maps of the network's inputs with those of its random copies; images and groups by image id."""
        self._of = len(layers(network))
        before = {image_id: heatmaps(network, image) for image_id, image in images.items()}
        self._left_out.update(name for maps in before.values() for name, one in maps.items() if _is_empty(one))
        for last in steps(network):
            other = randomised(network, last, seed)
            for image_id, image in images.items():
                for name, after in heatmaps(other, image).items():
                    found, owners = self._found[name, last], self._groups[name, last]
                    if not _is_empty(before[image_id][name]):
                        found.append(similarity(before[image_id][name], after))
                        owners.append(groups[image_id])

    def figures(self, resamples: int) -> dict[str, list[Randomised]]:
        """By the map's name, one entry for each step, from the last layer alone to all."""
        result: dict[str, list[Randomised]] = defaultdict(list)
        for (name, last), found in self._found.items():
            groups = self._groups[name, last]
            # A map that is gone is not similar.
            both = np.array([pair or (0.0, 0.0) for pair in found]).reshape(-1, 2)
            spearman, kendall = (statistics.mean(both[:, i], groups, resamples) for i in (0, 1))
            result[name].append(
                {
                    "layers": last,
                    "of": self._of,
                    "images": len(found),
                    "spearman": spearman,
                    "kendall": kendall,
                    "empty": sum(pair is None for pair in found),
                    "left_out": self._left_out[name],
                }
            )
        return dict(result)
