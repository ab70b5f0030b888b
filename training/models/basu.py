"""Basu et al. 2020, domain extension transfer learning (IEEE SSCI 2020, arXiv:2004.10507): three backbones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from training.models.classifier import Classifier, shown_classes
from training.models.efficientnet_lite import CHANNELS, SIZES, check_levels, side_by_side, stage_maps
from training.models.explain import grad_cam
from training.models.lungs import Lungs, share_of_cells
from training.models.network import Blocks

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

BACKBONES = ("vgg16", "resnet50", "alexnet", *SIZES)
_GRID, _DROPOUT = 6, 0.5  # of AlexNet: cells a side that its dense layers see; of what is left out in training
CLASSES = ("normal", "pneumonia", "other_disease", "covid19")


class Basu2020(Classifier):
    """torchvision's network with 3 x 3 kernels where the original has larger ones; Grad-CAM on the last convolution.

    Parameters
    ----------
    levels
        Of an EfficientNet-Lite: the blocks, counted from 0, whose maps side by side AlexNet's dense layers read.
    dense
        Neurons of each of these layers but the last.
    lungs
        Whether these maps are seen on the lungs only (`training.models.lungs`).
    """

    def __init__(
        self,
        backbone: str = "vgg16",
        classes: tuple[str, ...] = CLASSES,
        levels: tuple[int, ...] = (),
        dense: int = 4096,
        *,
        lungs: bool = False,
    ) -> None:
        if backbone not in BACKBONES:
            raise ValueError(f"backbone {backbone!r} is not known; known: {', '.join(BACKBONES)}")
        super().__init__(backbone, classes)
        self.levels = tuple(levels)
        if levels or backbone in SIZES:
            self._read(self.levels, dense)
        if backbone == "resnet50":
            self.backbone.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False)
        if backbone == "alexnet":
            self.backbone.features[0] = nn.Conv2d(3, 64, kernel_size=3, stride=4, padding=1)
            self.backbone.features[3] = nn.Conv2d(64, 192, kernel_size=3, padding=1)
        if lungs:
            self.lungs = Lungs(backbone, levels)
        self.backbone_name = backbone if backbone in ("vgg16", *SIZES) else f"{backbone}-3x3"

    def _read(self, levels: tuple[int, ...], dense: int) -> None:
        """Cut the backbone after the last of the levels, and put dense layers in AlexNet's form behind."""
        check_levels(self.architecture, levels)
        self.backbone.features = self.backbone.features[: levels[-1] + 1]
        width = sum(CHANNELS[self.architecture][level] for level in levels)
        self.backbone.classifier = nn.Sequential(
            nn.Dropout(_DROPOUT),
            nn.Linear(width * _GRID**2, dense),
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(dense, dense),
            nn.ReLU(),
            nn.Linear(dense, len(self.classes)),
        )

    def _features(self, x: Tensor) -> Tensor:
        return self._seen(self.lung_maps(x)) if self.levels else super()._features(x)

    @property
    def blocks(self) -> Blocks | None:
        """The convolutions, where levels of them are read."""
        return Blocks(self.backbone.features, self.levels) if self.levels else None

    def take_blocks(self, stages: nn.Sequential) -> None:
        """Let another network's equal convolutions stand for the own ones."""
        self.backbone.features = stages

    def embed_maps(self, x: Tensor, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """`features`, as `embed` gives them."""
        return {"features": self._seen(maps)}

    def _seen(self, maps: Sequence[Tensor]) -> Tensor:
        seen = side_by_side(maps)
        return seen if self.lungs is None else seen * share_of_cells(self.lungs(maps), seen)

    def lung_maps(self, x: Tensor) -> list[Tensor]:
        """What the lungs are told of: the maps of the levels, each of shape (N, channels, h, w)."""
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

    def heatmaps(self, intermediates: Mapping[str, Tensor], names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Grad-CAM of each class but `normal`, on the last feature map (section V)."""

        def logit(index: int) -> Tensor:
            return grad_cam(intermediates["features"], lambda features: self.judge({"features": features})[:, index])

        return {name: logit(index) for index, name in shown_classes(self.classes, names)}
