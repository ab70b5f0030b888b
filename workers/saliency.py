"""The heatmaps of a member's prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicom_node.domain import MemberMap
from training.models.explain import to_eight_bits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from training.models.network import Network
    from training.models.preprocess import Preprocess


def member_maps(
    member: str, network: Network, intermediates: Mapping[str, Tensor], transform: Preprocess
) -> tuple[MemberMap, ...]:
    """Every map that the network draws of one image, at the resolution of its input.

    Parameters
    ----------
    intermediates
        What the network's `embed` gave of that image.
    """
    return tuple(
        MemberMap(
            member=member, name=name, pixels=to_eight_bits(found[0].cpu(), transform.crop).numpy(), box=transform.box
        )
        for name, found in network.heatmaps(intermediates).items()
    )
