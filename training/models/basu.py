"""Basu et al. 2020, domain extension transfer learning (IEEE SSCI 2020, arXiv:2004.10507): three backbones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from training.models.classifier import Classifier
from training.models.explain import grad_cam

if TYPE_CHECKING:
    from collections.abc import Mapping

BACKBONES = ("vgg16", "resnet50", "alexnet")
_DENSE = 4096
CLASSES = ("normal", "pneumonia", "other_disease", "covid19")


class Basu2020(Classifier):
    """torchvision's network with 3 x 3 kernels where the original has larger ones; Grad-CAM on the last convolution.

    Parameters
    ----------
    dense
        Neurons of each dense layer before the last, of the backbones that have them.
    """

    def __init__(self, backbone: str = "vgg16", classes: tuple[str, ...] = CLASSES, dense: int = 4096) -> None:
        if backbone not in BACKBONES:
            raise ValueError(f"backbone {backbone!r} is not known; known: {', '.join(BACKBONES)}")
        super().__init__(backbone, classes)
        if backbone == "resnet50":
            self.backbone.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False)
        if backbone == "alexnet":
            self.backbone.features[0] = nn.Conv2d(3, 64, kernel_size=3, stride=4, padding=1)
            self.backbone.features[3] = nn.Conv2d(64, 192, kernel_size=3, padding=1)
        if dense != _DENSE:
            self._narrow(dense)
        self.backbone_name = backbone if backbone == "vgg16" else f"{backbone}-3x3"

    def _narrow(self, dense: int) -> None:
        """Give the dense layers in front of the last one another width."""
        if not self._pools_last:
            raise ValueError(f"{self.architecture} has no dense layers to narrow")
        for index, layer in enumerate(self.backbone.classifier):
            if isinstance(layer, nn.Linear):
                given = dense if layer.in_features == _DENSE else layer.in_features
                made = dense if layer.out_features == _DENSE else layer.out_features
                self.backbone.classifier[index] = nn.Linear(given, made)

    def heatmaps(self, intermediates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Grad-CAM of each class but `normal`, on the last feature map (section V)."""

        def logit(index: int) -> Tensor:
            return grad_cam(intermediates["features"], lambda features: self.judge({"features": features})[:, index])

        return {name: logit(index) for index, name in enumerate(self.classes) if name != "normal"}
