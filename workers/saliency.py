"""The heatmaps of a member's predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dicom_node.domain import MemberMap
from training.models.explain import to_eight_bits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from workers.loading import LoadedMember


def member_maps(
    member: LoadedMember, intermediates: Mapping[str, Tensor], turns: Sequence[int]
) -> list[list[MemberMap]]:
    """The maps of each image that the manifest wants of the member, at the resolution of its input.

    Parameters
    ----------
    intermediates
        What the network's `embed` gave of the images.
    turns
        By how many quarter turns anticlockwise each image was turned before the network saw it: its maps are turned
        back, to lie on the instance's own pixels.
    """
    transform = member.transform
    found: list[list[MemberMap]] = [[] for _ in turns]
    for name, heatmaps in member.network.heatmaps(intermediates, member.described.maps).items():
        drawn = to_eight_bits(heatmaps, transform.crop).cpu().numpy()
        for at, (pixels, turned) in enumerate(zip(drawn, turns, strict=True)):
            upright = np.ascontiguousarray(np.rot90(pixels, -turned))
            found[at].append(MemberMap(member=member.name, name=name, pixels=upright, box=transform.box))
    return found
