"""The heatmaps of a member's prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicom_node.domain import MemberMap
from training.models.explain import grad_cam, to_eight_bits

if TYPE_CHECKING:
    from torch import Tensor

    from training.models.preprocess import Preprocess
    from training.models.zhang import Zhang2020


def maps_of_heads(member: str, network: Zhang2020, features: Tensor, transform: Preprocess) -> tuple[MemberMap, ...]:
    """Grad-CAM of each head, at the resolution of the network's input.

    Parameters
    ----------
    features
        The network's last feature map of one image, shape (1, C, h, w).
    """
    return tuple(
        MemberMap(
            member=member,
            name=name,
            pixels=to_eight_bits(grad_cam(features, head)[0].cpu(), transform.crop).numpy(),
            box=transform.box,
        )
        for name, head in network.heads.items()
    )
