"""Basu et al. 2020, domain extension transfer learning (IEEE SSCI 2020, arXiv:2004.10507): three backbones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from training.models.classifier import Classifier
from training.models.explain import grad_cam

if TYPE_CHECKING:
    from collections.abc import Mapping

BACKBONES = ("vgg16", "resnet50", "alexnet")
CLASSES = ("normal", "pneumonia", "other_disease", "covid19")


class Basu2020(Classifier):
    """torchvision's network with 3 x 3 kernels where the original has larger ones; Grad-CAM on the last convolution."""

    def __init__(self, backbone: str = "vgg16", classes: tuple[str, ...] = CLASSES) -> None:
        if backbone not in BACKBONES:
            raise ValueError(f"backbone {backbone!r} is not known; known: {', '.join(BACKBONES)}")
        super().__init__(backbone, classes)
        if backbone == "resnet50":
            self.backbone.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False)
        if backbone == "alexnet":
            self.backbone.features[0] = nn.Conv2d(3, 64, kernel_size=3, stride=4, padding=1)
            self.backbone.features[3] = nn.Conv2d(64, 192, kernel_size=3, padding=1)
        self.backbone_name = backbone if backbone == "vgg16" else f"{backbone}-3x3"

    def heatmaps(self, intermediates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Grad-CAM of each class but `normal`, on the last feature map (section V)."""

        def logit(index: int) -> Tensor:
            return grad_cam(intermediates["features"], lambda features: self.judge({"features": features})[:, index])

        return {name: logit(index) for index, name in enumerate(self.classes) if name != "normal"}
