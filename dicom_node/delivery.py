"""Archived results to their destinations: one association carries what is due at a peer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dicom_node.domain import DeliveryError
from dicom_node.pacs import Pacs

if TYPE_CHECKING:
    from dicom_node.archive import Archive
    from dicom_node.config import Settings
    from dicom_node.outbox import Outbox, Parcel
    from dicom_node.pacs import Sender

log = logging.getLogger(__name__)

_BATCH = 32


def deliver_due(outbox: Outbox, archive: Archive, settings: Settings) -> int:
    """What was due at one destination was tried once; returns how many objects that were, 0 where none is due."""
    lease_s = 3 * settings.network_timeout_s  # to associate, or to release and associate again; then renewed
    parcels = outbox.claim(_BATCH, lease_s)
    if not parcels:
        return 0
    peers = {peer.name: peer for peer in settings.destinations}
    peer = peers.get(parcels[0].destination)
    if peer is None:
        gone_name = parcels[0].destination
        gone = DeliveryError(f"{gone_name} is no destination in the settings any more", permanent=False)
        log.warning("delivery: %s; its objects are kept", gone)
        for parcel in parcels:
            outbox.not_sent(parcel, gone)
        outbox.postpone(gone_name)
        return len(parcels)
    pacs = Pacs(peer, ae_title=settings.ae_title, timeout_s=settings.network_timeout_s)
    open_parcels = list(parcels)
    try:
        with pacs.store([parcel.sop_class_uid for parcel in parcels]) as sender:
            while open_parcels:
                outbox.renew(open_parcels, lease_s)
                _send(open_parcels[0], sender, outbox, archive)
                open_parcels.pop(0)
    except DeliveryError as error:
        log.warning("delivery: %s%s", error, "; this needs a person" if error.permanent else "; it is tried again")
        for parcel in open_parcels:
            outbox.not_sent(parcel, error)
        if not error.permanent:
            outbox.postpone(peer.name)
    return len(parcels)


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
