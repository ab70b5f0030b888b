"""A torchvision classifier as a published network: named features, a last layer, scores of its classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.efficientnet_lite import SIZES, EfficientNetLite
from training.models.network import Network

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

# The last layer of each backbone, by torchvision's names.
LAST_LAYER = {
    "resnet18": "fc",
    "resnet50": "fc",
    "squeezenet1_0": "classifier.1",
    "densenet121": "classifier",
    "alexnet": "classifier.6",
    "vgg16": "classifier.6",
    **dict.fromkeys(SIZES, "classifier.1"),
}


def class_scores(logits: Tensor, classes: tuple[str, ...]) -> dict[str, Tensor]:
    """Of each class the probability `p_...` and the log-odds `logit_...`, float64, shape (N,)."""
    exact = logits.double()
    probabilities = functional.softmax(exact, dim=1)
    scores = {}
    for index, name in enumerate(classes):
        others = torch.cat([exact[:, :index], exact[:, index + 1 :]], dim=1)
        scores[f"p_{name}"] = probabilities[:, index]
        scores[f"logit_{name}"] = exact[:, index] - torch.logsumexp(others, dim=1)
    return scores


def class_score_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """The names of `class_scores`, in order."""
    return tuple(f"{kind}_{name}" for name in classes for kind in ("p", "logit"))


def check_classes(classes: tuple[str, ...]) -> None:
    """Refuse anything but two or more different names."""
    if not isinstance(classes, tuple) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes {classes!r}: a list of names is needed")
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"classes {', '.join(classes)}: at least two different ones are needed")


def shown_classes(classes: tuple[str, ...], names: Collection[str] | None) -> list[tuple[int, str]]:
    """Place and name of the classes that have a heatmap, all but `normal`, and are wanted."""
    return [
        (index, name) for index, name in enumerate(classes) if name != "normal" and (names is None or name in names)
    ]


class Classifier(Network):
    """torchvision's network of that name, or an `EfficientNetLite`, with an output a class, its weights random."""

    def __init__(self, backbone: str, classes: tuple[str, ...]) -> None:
        super().__init__()
        check_classes(classes)
        self.architecture = backbone
        self.backbone_name = backbone
        self.classes = tuple(classes)
        self.score_names = class_score_names(self.classes)
        self.backbone: Any = (
            EfficientNetLite(backbone, len(classes))
            if backbone in SIZES
            else torchvision_model(backbone, num_classes=len(classes))
        )

    def embed(self, x: Tensor) -> dict[str, Tensor]:
        """`features`: the last feature map, rectified, before any pooling that the classifier does."""
        return {"features": self._features(x.expand(-1, 3, -1, -1))}

    def _features(self, x: Tensor) -> Tensor:
        if self.architecture.startswith("resnet"):
            for name, stage in self.backbone.named_children():
                if name == "avgpool":
                    break
                x = stage(x)
            return x
        # The last pooling of AlexNet and VGG comes after the map that is looked at.
        stages = self.backbone.features[:-1] if self._pools_last else self.backbone.features
        features: Tensor = stages(x)
        return functional.relu(features) if self.architecture == "densenet121" else features

    @property
    def _pools_last(self) -> bool:
        return self.architecture in ("alexnet", "vgg16")

    def judge(self, intermediates: Mapping[str, Tensor]) -> Tensor:
        """Logits of shape (N, classes)."""
        features = intermediates["features"]
        if self._pools_last:
            features = self.backbone.avgpool(self.backbone.features[-1](features))
        elif self.architecture == "squeezenet1_0":
            logits: Tensor = self.backbone.classifier(features).flatten(1)
            return logits
        else:
            features = functional.adaptive_avg_pool2d(features, 1)
        last: nn.Module = self.backbone.fc if self.architecture.startswith("resnet") else self.backbone.classifier
        found: Tensor = last(features.flatten(1))
        return found

    def scores(self, outputs: Tensor) -> dict[str, Tensor]:
        """Probability and log-odds of each class."""
        return class_scores(outputs, self.classes)

    def backbone_state(self) -> dict[str, Tensor]:
        """All weights but those of the last layer."""
        last = LAST_LAYER[self.architecture] + "."
        return {name: t for name, t in self.backbone.state_dict().items() if not name.startswith(last)}

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Take over all weights but those of the last layer."""
        load_matching(self.backbone, self.backbone_state().keys(), state, self.backbone_name)


def torchvision_model(name: str, **options: Any) -> nn.Module:
    """The network that torchvision has under that name, by default with random weights.

    Imported only here: torchvision loads torch's compiler, which costs each start of a worker two seconds, and the
    networks that are shipped need neither.
    """
    from torchvision import models

    network: nn.Module = models.get_model(name, **{"weights": None} | options)
    return network


def load_matching(module: nn.Module, names: Iterable[str], state: Mapping[str, Tensor], what: str) -> None:
    """Load the named tensors; ValueError where one is missing or has another shape.

    BatchNorm's count of batches may be missing: torchvision's older files do not have it.
    """
    own = module.state_dict()
    for name in names:
        if name not in state:
            if name.endswith("num_batches_tracked"):
                continue
            raise ValueError(f"these weights are not of {what}: {name} is missing")
        if state[name].shape != own[name].shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(own[name].shape)}"
            raise ValueError(f"these weights are not of {what}: {name} is {shapes}")
        own[name] = state[name]
    module.load_state_dict(own)
