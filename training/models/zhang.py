"""Zhang et al. 2020, anomaly detection on chest X-rays (arXiv:2003.12338): the network, its losses, its score."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

MARGIN = 5.0  # section 2: "margin is empirically set to 5"
_REFERENCE = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MU_R = float(_REFERENCE.mean())
SIGMA_R = float(_REFERENCE.std())
SCORE_NAMES = ("p_cls", "p_ano", "p_avg")


class Scores(NamedTuple):
    """Raw outputs of the two heads, each of shape (N,): a logit and an anomaly score that reads as a z-score."""

    classification: Tensor
    anomaly: Tensor


class Head(nn.Sequential):
    """Section 2: a convolution with stride 2, then a perceptron with 100 hidden neurons and one output.

    The kernel, the channels and the pooling between are ours: the paper does not give them.
    """

    def __init__(self, channels: int = 512) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, 100),
            nn.ReLU(),
            nn.Linear(100, 1),
        )


class Zhang2020(nn.Module):
    """ResNet-18 trunk with a classification head and an anomaly head of the same form; 15,998,930 parameters."""

    def __init__(self) -> None:
        super().__init__()
        backbone = resnet18(weights=None)
        del backbone.avgpool, backbone.fc
        self.trunk = nn.Sequential()
        for name, stage in backbone.named_children():
            self.trunk.add_module(name, stage)
        self.heads = nn.ModuleDict({"classification": Head(), "anomaly": Head()})

    def embed(self, x: Tensor) -> Tensor:
        """The trunk's last feature map.

        Parameters
        ----------
        x
            Standardised images, shape (N, 1, H, W) or (N, 3, H, W); a grey one is repeated on three channels.

        Returns
        -------
        Shape (N, 512, ceil(H / 32), ceil(W / 32)).
        """
        features: Tensor = self.trunk(x.expand(-1, 3, -1, -1))
        return features

    def judge(self, features: Tensor) -> Scores:
        """What both heads make of the trunk's last feature map."""
        return Scores(*(self.heads[name](features).squeeze(1) for name in Scores._fields))

    def forward(self, x: Tensor) -> tuple[Scores, dict[str, Tensor]]:
        """Scores of the images, and the named intermediates: `features`, the trunk's last feature map."""
        features = self.embed(x)
        return self.judge(features), {"features": features}


def classification_loss(logit: Tensor, y: Tensor) -> Tensor:
    """Mean binary cross-entropy of eq. 1, with the minus that the paper's print lacks."""
    return functional.binary_cross_entropy_with_logits(logit, y)


def deviation_loss(anomaly: Tensor, y: Tensor) -> Tensor:
    """Mean of eq. 2: negatives are drawn to the reference's mean, positives at least `MARGIN` deviations above it."""
    deviation = (anomaly - MU_R) / SIGMA_R
    return ((1 - y) * deviation.abs() + y * functional.relu(MARGIN - deviation)).mean()


def named_scores(scores: Scores) -> dict[str, Tensor]:
    """The paper's `p_cls`, `p_ano` and ``p_avg = (p_cls + p_ano / margin) / 2`` (text of eq. 3), in float64.

    `p_avg` is not confined to [0, 1], as `p_ano` is not.
    """
    p_cls, p_ano = torch.sigmoid(scores.classification.double()), scores.anomaly.double()
    return dict(zip(SCORE_NAMES, (p_cls, p_ano, (p_cls + p_ano / MARGIN) / 2), strict=True))
