"""Which destinations an object goes to, by the rules of the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from dicom_node.config import Peer, Settings
    from dicom_node.domain import ObjectKind


def destinations(settings: Settings, kind: ObjectKind, *, flagged: bool, senders: Collection[str]) -> list[str]:
    """The names of the peers to which a heatmap or a report is delivered.

    Parameters
    ----------
    flagged
        Whether any question was flagged: in the image of a heatmap, in any image of a report's study.
    senders
        The AE titles from which its sources came.
    """
    return [peer.name for peer in settings.destinations if _takes(peer, kind, flagged=flagged, senders=senders)]


def _takes(peer: Peer, kind: ObjectKind, *, flagged: bool, senders: Collection[str]) -> bool:
    return (
        kind.value in peer.objects
        and (flagged or not peer.only_flagged)
        and (not peer.senders or not set(peer.senders).isdisjoint(senders))
    )
