"""Zhang et al. 2020, anomaly detection on chest X-rays (arXiv:2003.12338): the network, its losses, its score."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.classifier import load_matching, torchvision_model
from training.models.efficientnet_lite import Stages
from training.models.explain import grad_cam
from training.models.network import Network

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

MARGIN = 5.0  # section 2: "margin is empirically set to 5"
_REFERENCE = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MU_R = float(_REFERENCE.mean())
SIGMA_R = float(_REFERENCE.std())
SCORES_OF_HEADS = {"both": ("p_cls", "p_ano", "p_avg"), "classification": ("p_cls",), "anomaly": ("p_ano",)}


class Scores(NamedTuple):
    """Raw outputs of the heads, each of shape (N,): a logit and an anomaly score that reads as a z-score.

    None where the network has no such head.
    """

    classification: Tensor | None
    anomaly: Tensor | None


class Head(nn.Sequential):
    """Section 2: a convolution with stride 2, then a perceptron with 100 hidden neurons and one output.

    The kernel, the channels and the pooling between are ours: the paper does not give them.
    """

    def __init__(self, channels: int = 512, given: int = 512) -> None:
        super().__init__(
            nn.Conv2d(given, channels, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, 100),
            nn.ReLU(),
            nn.Linear(100, 1),
        )


class Zhang2020(Network):
    """ResNet-18 trunk with a classification head and an anomaly head of the same form; 15,998,930 parameters.

    With `heads` ``classification`` or ``anomaly`` it is one of the single-task networks of Fig. 3.

    Parameters
    ----------
    channels
        Of the heads' convolutions.
    trunk, levels
        ``resnet18``, or the name and the levels of `training.models.efficientnet_lite.Stages`.
    """

    def __init__(
        self,
        heads: str = "both",
        channels: int = 512,
        trunk: str = "resnet18",
        levels: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        if heads not in SCORES_OF_HEADS:
            raise ValueError(f"heads {heads!r} are not known; known: {', '.join(SCORES_OF_HEADS)}")
        self.backbone_name = trunk
        self.trunk, given = _resnet18() if trunk == "resnet18" and not levels else _stages(trunk, levels)
        self.heads = nn.ModuleDict({name: Head(channels, given) for name in Scores._fields if heads in ("both", name)})
        self.score_names = SCORES_OF_HEADS[heads]

    def embed(self, x: Tensor) -> dict[str, Tensor]:
        """`features`: the trunk's last feature map, of ResNet-18 in shape (N, 512, ceil(H / 32), ceil(W / 32))."""
        return {"features": self.trunk(x.expand(-1, 3, -1, -1))}

    def judge(self, intermediates: Mapping[str, Tensor]) -> Scores:
        """What the heads make of the trunk's last feature map."""
        features = intermediates["features"]
        found = {name: head(features).squeeze(1) for name, head in self.heads.items()}
        return Scores(*(found.get(name) for name in Scores._fields))

    def scores(self, outputs: Scores) -> dict[str, Tensor]:
        """The paper's `p_cls`, `p_ano` and ``p_avg = (p_cls + p_ano / margin) / 2`` (text of eq. 3).

        `p_avg` is not confined to [0, 1], as `p_ano` is not.
        """
        found = {}
        if outputs.classification is not None:
            found["p_cls"] = torch.sigmoid(outputs.classification.double())
        if outputs.anomaly is not None:
            found["p_ano"] = outputs.anomaly.double()
        if len(found) == 2:
            found["p_avg"] = (found["p_cls"] + found["p_ano"] / MARGIN) / 2
        return found

    def heatmaps(self, intermediates: Mapping[str, Tensor], names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Grad-CAM of each head (section 3.2)."""
        wanted = [name for name in self.heads if names is None or name in names]
        return {name: grad_cam(intermediates["features"], self.heads[name]) for name in wanted}

    def backbone_state(self) -> dict[str, Tensor]:
        """The trunk's weights."""
        return dict(self.trunk.state_dict())

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Take over the trunk's weights."""
        load_matching(self.trunk, self.trunk.state_dict().keys(), state, self.backbone_name)


def _resnet18() -> tuple[nn.Module, int]:
    """All stages, and the channels of the last."""
    backbone = torchvision_model("resnet18")
    del backbone.avgpool, backbone.fc
    trunk = nn.Sequential()
    for name, stage in backbone.named_children():
        trunk.add_module(name, stage)
    return trunk, 512


def _stages(name: str, levels: tuple[int, ...]) -> tuple[nn.Module, int]:
    stages = Stages(name, levels)
    return stages, stages.channels


def classification_loss(logit: Tensor, y: Tensor) -> Tensor:
    """Mean binary cross-entropy of eq. 1, with the minus that the paper's print lacks."""
    return functional.binary_cross_entropy_with_logits(logit, y)


def deviation_loss(anomaly: Tensor, y: Tensor) -> Tensor:
    """Mean of eq. 2: negatives are drawn to the reference's mean, positives at least `MARGIN` deviations above it."""
    deviation = (anomaly - MU_R) / SIGMA_R
    return ((1 - y) * deviation.abs() + y * functional.relu(MARGIN - deviation)).mean()
