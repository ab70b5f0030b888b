"""Zhong 2020, Using Deep Convolutional Neural Networks to Diagnose COVID-19 From Chest X-Ray Images: the network."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from training.models.classifier import check_classes, class_score_names, class_scores, shown_classes
from training.models.explain import grad_cam
from training.models.network import Network

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

CLASSES = ("covid19", "normal", "pneumonia")
SIDE = 80
_CHANNELS = ((3, 32, 32), (32, 64, 64), (64, 128, 128, 128), (128, 128, 128, 128))


class Zhong2020(Network):
    """Four groups of convolutions whose pooled maps are joined with the last map before two dense layers.

    63,148,835 parameters. The pooling of whole maps is by their maximum, as in the author's code; the paper's text
    says average.

    Parameters
    ----------
    dense
        Neurons of the dense layers before the last.
    """

    def __init__(self, classes: tuple[str, ...] = CLASSES, dense: tuple[int, int] = (4096, 2048)) -> None:
        super().__init__()
        check_classes(classes)
        self.classes = tuple(classes)
        self.score_names = class_score_names(self.classes)
        self.groups = nn.ModuleList(_convolutions(channels) for channels in _CHANNELS)
        self.pool = nn.MaxPool2d(2)
        pooled = sum(channels[-1] for channels in _CHANNELS)
        self.dense = nn.Sequential(
            nn.Linear(pooled + 128 * (SIDE // 8) ** 2, dense[0]),
            nn.ELU(),
            nn.Dropout(0.5),
            nn.Linear(*dense),
            nn.ELU(),
            nn.Dropout(0.4),
            nn.Linear(dense[1], len(classes)),
        )
        self.apply(_as_keras)

    def embed(self, x: Tensor) -> dict[str, Tensor]:
        """`conv4`, shape (N, 128, 10, 10), and `shallow`: the maxima of the first three pooled maps, shape (N, 224)."""
        x = x.expand(-1, 3, -1, -1)
        maxima = []
        for group in self.groups[:-1]:
            x = self.pool(group(x))
            maxima.append(x.amax(dim=(2, 3)))
        return {"conv4": self.groups[-1](x), "shallow": torch.cat(maxima, dim=1)}

    def judge(self, intermediates: Mapping[str, Tensor]) -> Tensor:
        """Logits of shape (N, classes)."""
        conv4 = intermediates["conv4"]
        deepest = self.pool(conv4).amax(dim=(2, 3))
        flat = conv4.permute(0, 2, 3, 1).flatten(1)  # Keras' order: rows, columns, channels
        logits: Tensor = self.dense(torch.cat([intermediates["shallow"], deepest, flat], dim=1))
        return logits

    def scores(self, outputs: Tensor) -> dict[str, Tensor]:
        """Probability and log-odds of each class."""
        return class_scores(outputs, self.classes)

    def heatmaps(self, intermediates: Mapping[str, Tensor], names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Grad-CAM of each class but `normal`, on conv4; the paper shows none."""

        def of_class(index: int) -> Tensor:
            return grad_cam(
                intermediates["conv4"], lambda conv4: self.judge({**intermediates, "conv4": conv4})[:, index]
            )

        return {name: of_class(index) for index, name in shown_classes(self.classes, names)}


def _as_keras(module: nn.Module) -> None:
    """Glorot's uniform weights and no bias: how Keras starts a layer (the author's code says nothing else)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _convolutions(channels: tuple[int, ...]) -> nn.Sequential:
    layers = ((nn.Conv2d(given, wanted, 3, padding=1), nn.ELU()) for given, wanted in pairwise(channels))
    return nn.Sequential(*chain.from_iterable(layers))
