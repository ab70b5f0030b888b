"""Where a network's backbone starts: at random, at ImageNet's weights, or at those of a pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
from safetensors import SafetensorError

from training.models.classifier import LAST_LAYER, torchvision_model
from training.models.efficientnet_lite import SIZES, imagenet_state

if TYPE_CHECKING:
    from training.models.network import Network

# torchvision's first weights: those of 2020, when the papers were written.
_IMAGENET = "IMAGENET1K_V1"


def starting_weights(weights: str, network: Network) -> None:
    """Give the backbone its weights: ``none``, ``imagenet`` (torchvision's own, or an installed package), or a file.

    Raises
    ------
    ValueError
        Where the weights cannot be had, or are of another backbone.
    """
    if weights == "none":
        return
    if weights == "imagenet":
        name = network.backbone_name
        if name not in LAST_LAYER:
            raise ValueError(f"there are no ImageNet weights of {name or 'a network without a backbone'}")
        if name in SIZES:
            network.load_backbone(imagenet_state(name))
            return
        try:
            # The whole model, as torchvision renames some tensors of its files.
            state = torchvision_model(name, weights=_IMAGENET, progress=False).state_dict()
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"ImageNet weights of {name} cannot be had ({error}); set weights to pretraining or to a file"
            ) from error
        network.load_backbone(state)
        return
    file = Path(weights)
    try:
        state = safetensors.torch.load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"backbone weights {file} cannot be read: {error}") from error
    network.load_backbone({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
