"""Minaee et al. 2020, Deep-COVID (Medical Image Analysis 65:101794): fine-tuned classifiers, occlusion heatmaps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from training.models.classifier import Classifier
from training.models.efficientnet_lite import CHANNELS, SIZES, check_levels, stage_maps
from training.models.lungs import Lungs, pooled, pooled_by_each
from training.models.network import Blocks

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import Tensor

# The paper's, and those whose ImageNet weights come with a package.
BACKBONES = ("resnet18", "resnet50", "squeezenet1_0", "densenet121", *SIZES)
_AT_ONCE = 8
_STRONG = 0.5  # of the largest fall: around such a square of the coarse grid the fine one is asked


class Minaee2020(Classifier):
    """One of the four backbones, or another, with two outputs; its heatmap is by occlusion (section 4.7).

    Parameters
    ----------
    occluder, stride
        N and S of the sliding square, as fractions of the image's side, 0 < stride <= occluder <= 1; the paper is
        silent on both.
    levels, deviation
        Blocks of an EfficientNet-Lite, counted from 0, of whose maps the last layer reads the mean and, if wanted, the
        deviation of each channel; blocks after the last of them are left out. No levels, as in the paper: the mean of
        the last map.
    lungs
        Whether they are read over the lungs only (`training.models.lungs`), not over the whole map.

    Attributes
    ----------
    thorough
        Whether a square that is grey in the image slides over all of it. Else it first goes in steps of its own side,
        and then by the stride where that made the most difference.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        classes: tuple[str, ...] = ("other", "covid19"),
        occluder: float = 0.25,
        stride: float = 0.125,
        levels: tuple[int, ...] = (),
        *,
        deviation: bool = True,
        lungs: bool = False,
    ) -> None:
        if backbone not in BACKBONES:
            raise ValueError(f"backbone {backbone!r} is not known; known: {', '.join(BACKBONES)}")
        if not 0 < stride <= occluder <= 1:
            raise ValueError(f"occluder {occluder} and stride {stride} do not hold 0 < stride <= occluder <= 1")
        super().__init__(backbone, classes)
        self.costly_maps = not lungs
        self.occluder, self.stride = occluder, stride
        self.levels, self.deviation = tuple(levels), deviation
        if self.levels:
            self._read(self.levels)
        if lungs:
            self.lungs = Lungs(backbone, levels)

    def _read(self, levels: tuple[int, ...]) -> None:
        """Cut the backbone after the last of the levels, and let the last layer read what is pooled of all."""
        check_levels(self.architecture, levels)
        self.backbone.features = self.backbone.features[: levels[-1] + 1]
        width = sum(CHANNELS[self.architecture][level] for level in levels) * (1 + self.deviation)
        self.backbone.classifier[1] = nn.Linear(width, len(self.classes))

    @property
    def blocks(self) -> Blocks | None:
        """The convolutions, where levels of them are read."""
        return Blocks(self.backbone.features, self.levels) if self.levels else None

    def _pooled(self, maps: Sequence[Tensor], lungs: Tensor | None) -> Tensor:
        return pooled(maps, lungs, deviation=self.deviation)[:, :, None, None]

    def lung_maps(self, x: Tensor) -> list[Tensor]:
        """What the lungs are told of, and what is read: the maps of the levels, each of shape (N, channels, h, w)."""
        return stage_maps(self.backbone.features, self.levels, x)

    def embed(self, x: Tensor) -> dict[str, Tensor]:
        """`features`, the map (or its pooled values) in front of the last layer, and what occlusion needs."""
        return self.embed_maps(x, self.lung_maps(x.expand(-1, 3, -1, -1))) if self.levels else self._plain(x)

    def _plain(self, x: Tensor) -> dict[str, Tensor]:
        return {"input": x, **super().embed(x)}

    def take_blocks(self, stages: nn.Sequential) -> None:
        """Let another network's equal convolutions stand for the own ones."""
        self.backbone.features = stages

    def embed_maps(self, x: Tensor, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """`features`, and the `input` or, where lungs are read, the lungs and the maps of each level."""
        if self.lungs is None:
            return {"input": x, "features": self._pooled(maps, None)}
        lungs = self.lungs(maps)
        levels = {f"level{level}": one for level, one in zip(self.levels, maps, strict=True)}
        return {"features": self._pooled(maps, lungs), "lungs": lungs, **levels}

    @torch.no_grad()
    def heatmaps(self, intermediates: Mapping[str, Tensor], names: Collection[str] | None = None) -> dict[str, Tensor]:
        """How much the last class' probability falls while a square is covered, mean over the squares on the place.

        The square is grey in the image; where lungs are read, it is left out of what is read.
        """
        name = self.classes[-1]
        if names is not None and name not in names:
            return {}
        whole = self.scores(self.judge(intermediates))[f"p_{name}"]
        if self.lungs is not None:
            return {name: self._drop_of_lungs(intermediates, whole, name)}
        return {
            name: torch.stack([self._drop(*pair, name) for pair in zip(intermediates["input"], whole, strict=True)])
        }

    def _squares(self, side: int, step: int = 0) -> tuple[int, list[tuple[int, int]]]:
        """The squares' side, and where they begin; the last ones end at the edge. No step: the stride."""
        size = max(1, round(self.stride * side), round(self.occluder * side))
        step = step or max(1, round(self.stride * side))
        starts = sorted({*range(0, side - size, step), side - size})
        return size, [(top, left) for top in starts for left in starts]

    def _drop(self, image: Tensor, whole: Tensor, name: str) -> Tensor:
        """Shape (side, side): the mean fall over the squares that cover a pixel, at least 0."""
        side = image.shape[-1]
        size, places = self._squares(side)
        if self.thorough:
            return _mean_fall(self._falls(image, whole, name, size, places), size, places, side)
        _, coarse = self._squares(side, step=size)
        falls = self._falls(image, whole, name, size, coarse)
        strong = [place for place, fall in zip(coarse, falls, strict=True) if 0 < fall >= _STRONG * falls.max()]
        near = [one for one in places if one not in coarse and any(_overlap(one, other, size) for other in strong)]
        if near:
            falls = torch.cat([falls, self._falls(image, whole, name, size, near)])
        return _mean_fall(falls, size, coarse + near, side)

    def _falls(self, image: Tensor, whole: Tensor, name: str, size: int, places: Sequence[tuple[int, int]]) -> Tensor:
        copies = image.repeat(len(places), 1, 1, 1)
        grey = image.mean(dim=(1, 2), keepdim=True)
        for copy, (top, left) in zip(copies, places, strict=True):
            copy[:, top : top + size, left : left + size] = grey
        found = [self.scores(self.judge(self.embed(part)))[f"p_{name}"] for part in torch.split(copies, _AT_ONCE)]
        return whole - torch.cat(found)

    def _drop_of_lungs(self, intermediates: Mapping[str, Tensor], whole: Tensor, name: str) -> Tensor:
        """The same over the cells of the finest map, shape (N, h, w), each by how much of it is read."""
        maps, lungs = [intermediates[f"level{level}"].float() for level in self.levels], intermediates["lungs"].float()
        count, _, side, _ = lungs.shape
        size, places = self._squares(side)
        squares = _drawn_squares(side, size, places).to(lungs.device)
        features = pooled_by_each(maps, lungs * (1 - squares), deviation=self.deviation)
        logits = self.judge({"features": features.flatten(0, 1)[:, :, None, None]})
        fall = whole[:, None] - self.scores(logits)[f"p_{name}"].view(count, len(places))
        mean = fall.clamp_min(0).float() @ (squares / squares.sum(dim=0)).flatten(1)
        return mean.view(count, side, side) * lungs[:, 0]


def _drawn_squares(side: int, size: int, places: Sequence[tuple[int, int]]) -> Tensor:
    """Ones where each square lies: shape (places, side, side)."""
    drawn = torch.zeros(len(places), side, side)
    for one, (top, left) in zip(drawn, places, strict=True):
        one[top : top + size, left : left + size] = 1
    return drawn


def _overlap(one: tuple[int, int], other: tuple[int, int], size: int) -> bool:
    return all(abs(a - b) < size for a, b in zip(one, other, strict=True))


def _mean_fall(fall: Tensor, size: int, places: Sequence[tuple[int, int]], side: int) -> Tensor:
    total, count = torch.zeros(2, side, side, device=fall.device)
    for value, (top, left) in zip(fall.clamp_min(0).float(), places, strict=True):
        total[top : top + size, left : left + size] += value
        count[top : top + size, left : left + size] += 1
    mean: Tensor = total / count
    return mean
