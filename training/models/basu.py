"""Basu et al. 2020, domain extension transfer learning (IEEE SSCI 2020, arXiv:2004.10507): three backbones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import alexnet

from training.models.classifier import Classifier
from training.models.efficientnet_lite import CHANNELS, SIZES, check_levels, side_by_side, stage_maps
from training.models.explain import grad_cam
from training.models.lungs import Lungs, on

if TYPE_CHECKING:
    from collections.abc import Mapping

BACKBONES = ("vgg16", "resnet50", "alexnet", *SIZES)
_DENSE = 4096
_GRID = 6  # cells a side that AlexNet's dense layers see
CLASSES = ("normal", "pneumonia", "other_disease", "covid19")


class Basu2020(Classifier):
    """torchvision's network with 3 x 3 kernels where the original has larger ones; Grad-CAM on the last convolution.

    Parameters
    ----------
    dense
        Neurons of each dense layer before the last, of the backbones that have them.
    levels
        Of an EfficientNet-Lite: the blocks, counted from 0, whose maps side by side AlexNet's dense layers read.
    lungs
        Whether these maps are seen on the lungs only (`training.models.lungs`).
    """

    def __init__(
        self,
        backbone: str = "vgg16",
        classes: tuple[str, ...] = CLASSES,
        dense: int = _DENSE,
        levels: tuple[int, ...] = (),
        *,
        lungs: bool = False,
    ) -> None:
        if backbone not in BACKBONES:
            raise ValueError(f"backbone {backbone!r} is not known; known: {', '.join(BACKBONES)}")
        if lungs and not levels:
            raise ValueError("lungs are told of the maps of levels: give levels")
        super().__init__(backbone, classes)
        self.levels = tuple(levels)
        if levels or backbone in SIZES:
            self._read(self.levels)
        if backbone == "resnet50":
            self.backbone.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False)
        if backbone == "alexnet":
            self.backbone.features[0] = nn.Conv2d(3, 64, kernel_size=3, stride=4, padding=1)
            self.backbone.features[3] = nn.Conv2d(64, 192, kernel_size=3, padding=1)
        if dense != _DENSE:
            self._narrow(dense)
        if lungs:
            self.lungs = Lungs([CHANNELS[backbone][level] for level in levels])
        self.backbone_name = backbone if backbone in ("vgg16", *SIZES) else f"{backbone}-3x3"

    def _read(self, levels: tuple[int, ...]) -> None:
        """Cut the backbone after the last of the levels, and put AlexNet's dense layers behind."""
        check_levels(self.architecture, levels)
        self.backbone.features = self.backbone.features[: levels[-1] + 1]
        width = sum(CHANNELS[self.architecture][level] for level in levels)
        self.backbone.classifier = alexnet(num_classes=len(self.classes)).classifier
        self.backbone.classifier[1] = nn.Linear(width * _GRID**2, _DENSE)

    def _narrow(self, dense: int) -> None:
        """Give the dense layers in front of the last one another width."""
        if not (self._pools_last or self.levels):
            raise ValueError(f"{self.architecture} has no dense layers to narrow")
        for index, layer in enumerate(self.backbone.classifier):
            if isinstance(layer, nn.Linear):
                given = dense if layer.in_features == _DENSE else layer.in_features
                made = dense if layer.out_features == _DENSE else layer.out_features
                self.backbone.classifier[index] = nn.Linear(given, made)

    def _features(self, x: Tensor) -> Tensor:
        if not self.levels:
            return super()._features(x)
        maps = self.lung_maps(x)
        seen = side_by_side(maps)
        return seen if self.lungs is None else seen * on(self.lungs(maps), seen)

    def lung_maps(self, x: Tensor) -> list[Tensor]:
        """What the lungs are told of."""
        return stage_maps(self.backbone.features, self.levels, x)

    def judge(self, intermediates: Mapping[str, Tensor]) -> Tensor:
        """Logits of shape (N, classes)."""
        if not self.levels:
            return super().judge(intermediates)
        cells = functional.adaptive_avg_pool2d(intermediates["features"], _GRID)
        logits: Tensor = self.backbone.classifier(cells.flatten(1))
        return logits

    def backbone_state(self) -> dict[str, Tensor]:
        """All weights but those of the last layer; with levels, those of the convolutions."""
        state = super().backbone_state()
        return {name: t for name, t in state.items() if not self.levels or name.startswith("features.")}

    def heatmaps(self, intermediates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Grad-CAM of each class but `normal`, on the last feature map (section V)."""

        def logit(index: int) -> Tensor:
            return grad_cam(intermediates["features"], lambda features: self.judge({"features": features})[:, index])

        return {name: logit(index) for index, name in enumerate(self.classes) if name != "normal"}
