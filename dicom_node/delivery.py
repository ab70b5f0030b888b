"""Archived results to their destinations: one association carries what is due at a peer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dicom_node.domain import DeliveryError
from dicom_node.leases import holder_name, kept_alive
from dicom_node.pacs import Pacs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dicom_node.archive import Archive
    from dicom_node.config import Settings
    from dicom_node.outbox import Outbox, Parcel
    from dicom_node.pacs import Sender

log = logging.getLogger(__name__)

_BATCH = 32


def deliver_due(
    outbox: Outbox,
    archive: Archive,
    settings: Settings,
    on_step: Callable[[], None] = lambda: None,
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """What was due at one destination was tried once; returns how many objects that were, 0 where none is due.

    `on_step` is called before each wait for the peer; once `stopping` says so, no further object is begun. Where this
    process dies, the objects are due again after `settings.lease_s`.
    """
    parcels = outbox.claim(holder_name(), _BATCH, settings.lease_s)
    if not parcels:
        return 0
    peers = {peer.name: peer for peer in settings.destinations}
    peer = peers.get(parcels[0].destination)
    if peer is None:
        name = parcels[0].destination
        gone = DeliveryError(f"{name} is no destination in the settings any more", permanent=False)
        log.warning("delivery: %s; its objects are kept", gone)
        _none_sent(parcels, name, gone, outbox)
        return len(parcels)
    pacs = Pacs(peer, ae_title=settings.ae_title, timeout_s=settings.network_timeout_s)
    open_parcels, failed = list(parcels), None
    with kept_alive(lambda: outbox.renew(tuple(open_parcels), settings.lease_s), settings.lease_s) as lost:
        try:
            on_step()
            with pacs.store([parcel.sop_class_uid for parcel in parcels]) as sender:
                while open_parcels and not lost.is_set() and not stopping():
                    on_step()
                    _send(open_parcels[0], sender, outbox, archive)
                    open_parcels.pop(0)
        except DeliveryError as error:
            failed = error
    if failed is not None:
        log.warning("delivery: %s%s", failed, "; this needs a person" if failed.permanent else "; it is tried again")
        _none_sent(open_parcels, peer.name, failed, outbox)
    elif lost.is_set() and open_parcels:
        log.warning("delivery: another process has the objects for %s by now", peer.name)
    elif open_parcels:
        outbox.give_back(open_parcels)
    return len(parcels)


def _none_sent(parcels: Sequence[Parcel], destination: str, error: DeliveryError, outbox: Outbox) -> None:
    """Each parcel's try is recorded; where waiting may help, all objects of the destination wait."""
    for parcel in parcels:
        outbox.not_sent(parcel, error)
    if not error.permanent:
        outbox.postpone(destination)


def _send(parcel: Parcel, sender: Sender, outbox: Outbox, archive: Archive) -> None:
    """The parcel's fate is recorded; raises only what concerns the whole association."""
    try:
        status = sender.send(archive.locate(parcel.path))
    except DeliveryError as error:
        if error.status is None and not error.permanent:
            raise
        log.warning("delivery of %s: %s", parcel.sop_instance_uid, error)
        outbox.not_sent(parcel, error)
        return
    outbox.sent(parcel, status)
    log.info("delivered %s to %s", parcel.sop_instance_uid, parcel.destination)
