"""Archived objects to their destinations, and the proof that they are there; one association carries what is due."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dicom_node.domain import DeliveryError, DeliveryState, NodeError, ObjectKind
from dicom_node.leases import holder_name, kept_alive
from dicom_node.pacs import Pacs
from dicom_node.report import SOP_CLASSES
from dicom_node.results import Reference
from dicom_node.uids import series_uid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dicom_node.archive import Archive
    from dicom_node.config import Peer, Settings
    from dicom_node.outbox import Outbox, Parcel
    from dicom_node.pacs import Sender
    from dicom_node.proofs import Proofs
    from dicom_node.reporting import Reporter

log = logging.getLogger(__name__)

_BATCH = 32
_COMMITMENTS = 2  # requests for a commitment before the peer is asked by a query
_MOST_PROOFS = 4
# PS3.4 J.3.3: a peer may report on the association on which it was asked, if that is still there.
_LINGER_S = 0.3
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Depot:
    """What a delivery needs."""

    outbox: Outbox
    proofs: Proofs
    archive: Archive
    reporter: Reporter
    settings: Settings


def deliver_due(
    depot: Depot, on_step: Callable[[], None] = lambda: None, stopping: Callable[[], bool] = lambda: False
) -> int:
    """What was due at one destination was tried once; returns how many objects that were, 0 where none is due.

    `on_step` is called before each wait for the peer; once `stopping` says so, no further object is begun. Where this
    process dies, the objects are due again after `settings.lease_s`.
    """
    settings = depot.settings
    parcels = depot.outbox.claim(holder_name(), _BATCH, settings.lease_s)
    if not parcels:
        return 0
    peer = next((peer for peer in settings.destinations if peer.name == parcels[0].destination), None)
    if peer is None:
        name = parcels[0].destination
        gone = DeliveryError(f"{name} is no destination in the settings any more", permanent=False)
        log.warning("delivery: %s; its objects are kept", gone)
        _none_reached(parcels, gone, depot.outbox)
        return len(parcels)
    _Delivery(depot, peer, parcels, on_step, stopping).run()
    return len(parcels)


class _Delivery:
    """Parcels of one destination on one association."""

    def __init__(
        self,
        depot: Depot,
        peer: Peer,
        parcels: Sequence[Parcel],
        on_step: Callable[[], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._depot = depot
        self._peer = peer
        self._open = list(parcels)
        self._step = on_step
        self._stopping = stopping
        self._sending: Parcel | None = None

    def run(self) -> None:
        """Each parcel was sent, proven, or told to the ledger as neither."""
        outbox, settings, failed = self._depot.outbox, self._depot.settings, None
        pacs = Pacs(self._peer, ae_title=settings.ae_title, timeout_s=settings.network_timeout_s)
        with kept_alive(lambda: outbox.renew(tuple(self._open), settings.lease_s), settings.lease_s) as lost:
            try:
                self._step()
                classes = {parcel.sop_class_uid for parcel in self._open}
                with pacs.store(sorted(classes), on_commitment=self._depot.proofs.answered) as sender:
                    self._use(sender, lost.is_set)
            except DeliveryError as error:
                failed = error
        if failed is not None:
            told = "this needs a person" if failed.permanent else "it is tried again"
            log.warning("delivery: %s; %s", failed, told)
            if self._sending is None:
                _none_reached(self._open, failed, outbox)
            else:
                self._leave_behind(self._sending, failed)
        elif self._open:
            if lost.is_set():
                log.warning("delivery: another process has the objects for %s by now", self._peer.name)
            outbox.give_back(self._open)

    def _use(self, sender: Sender, lost: Callable[[], bool]) -> None:
        """Raises only what concerns the whole association; what is left open then was not reached."""
        for parcel in tuple(self._open):
            if lost() or self._stopping():
                return
            if parcel.state is DeliveryState.PENDING:
                self._step()
                self._sending = parcel
                sent = self._send(parcel, sender)
                self._sending = None
                self._open.remove(parcel)
                if sent is not None:
                    self._open.append(sent)
        if self._open and not lost():
            self._step()
            self._prove(list(self._open), sender)

    def _send(self, parcel: Parcel, sender: Sender) -> Parcel | None:
        """The parcel as it is to be proven; None where it was not sent, which the ledger knows then."""
        outbox = self._depot.outbox
        if not outbox.is_to_be_sent(parcel):
            outbox.give_back([parcel])
            return None
        try:
            parcel = self._in_accepted_form(parcel, sender)
            status = sender.send(self._depot.archive.locate(parcel.path))
        except DeliveryError as error:
            if error.status is None and not error.permanent and not isinstance(error, _NoFormError):
                raise
            log.warning("delivery of %s: %s", parcel.sop_instance_uid, error)
            outbox.not_sent(parcel, error)
            return None
        outbox.sent(parcel, status)
        log.info("sent %s to %s", parcel.sop_instance_uid, parcel.destination)
        return replace(parcel, state=DeliveryState.SENT, proofs=0)

    def _in_accepted_form(self, parcel: Parcel, sender: Sender) -> Parcel:
        """A report as an object of the first SR SOP Class that the peer accepts."""
        if parcel.kind is not ObjectKind.REPORT or parcel.report_id is None or sender.accepts(parcel.sop_class_uid):
            return parcel
        wanted = next((sop_class for sop_class in SOP_CLASSES if sender.accepts(sop_class)), None)
        if wanted is None:
            raise DeliveryError(f"{self._peer.name} accepts no SR SOP Class of a report", permanent=True)
        try:
            made = self._depot.reporter.in_form(parcel.report_id, wanted, parcel.delivery_id)
        except NodeError as error:
            told = f"no {wanted.name} can be made of the report: {error}"
            raise _NoFormError(told, permanent=error.permanent) from error
        return replace(
            parcel,
            path=made.path,
            sop_class_uid=made.sop_class_uid,
            sop_instance_uid=made.sop_instance_uid,
        )

    def _leave_behind(self, parcel: Parcel, error: DeliveryError) -> None:
        """The association ended over the parcel, perhaps because of it: the others go before it the next time."""
        outbox = self._depot.outbox
        outbox.not_sent(parcel, error)
        outbox.give_back([one for one in self._open if one is not parcel])
        outbox.rest(self._peer.name)

    def _prove(self, parcels: Sequence[Parcel], sender: Sender) -> None:
        """Each object is committed to, will be, was found by a query, or is known to be unprovable."""
        asked = [parcel for parcel in parcels if sender.can_commit and parcel.proofs < _COMMITMENTS]
        if asked and not self._request_commitment(asked, sender):
            asked = []
        for parcel in parcels:
            if parcel not in asked:
                self._look(parcel, sender)
            self._open.remove(parcel)

    def _request_commitment(self, parcels: Sequence[Parcel], sender: Sender) -> bool:
        """Whether the peer took the request; its report will come, or the objects are due again."""
        proofs, settings = self._depot.proofs, self._depot.settings
        transaction_uid = proofs.request(parcels, settings.commit_timeout_s)
        try:
            sender.request_commitment(
                transaction_uid, [(parcel.sop_class_uid, parcel.sop_instance_uid) for parcel in parcels]
            )
        except DeliveryError as error:
            log.warning("delivery: no storage commitment: %s", error)
            return proofs.is_answered(transaction_uid)  # the report may be faster than the refusal of its request
        until = time.monotonic() + _LINGER_S
        while time.monotonic() < until and not proofs.is_answered(transaction_uid) and not self._stopping():
            time.sleep(_LOOK_S)
        return True

    def _look(self, parcel: Parcel, sender: Sender) -> None:
        """A query shows whether the object is there."""
        outbox, name = self._depot.outbox, self._peer.name
        if not sender.can_query:
            outbox.proven(parcel, DeliveryState.UNPROVEN)
            return
        uid = parcel.sop_instance_uid
        reference = Reference(parcel.study_instance_uid, series_uid(uid), parcel.sop_class_uid, uid)
        try:
            found = sender.read_back(reference)
            told = f"{name} does not find the object by C-FIND"
        except DeliveryError as error:
            found, told = False, str(error)
        if found:
            outbox.proven(parcel, DeliveryState.READ_BACK)
        elif parcel.proofs + 1 < _MOST_PROOFS:
            outbox.ask_again(parcel, told)
        else:
            log.warning("delivery of %s: %s; it stays unproven", uid, told)
            outbox.proven(parcel, DeliveryState.UNPROVEN, told)


def _none_reached(parcels: Sequence[Parcel], error: DeliveryError, outbox: Outbox) -> None:
    """Each parcel's try is recorded; where waiting may help, all objects of the destination wait."""
    for parcel in parcels:
        if parcel.state is DeliveryState.PENDING:
            outbox.not_sent(parcel, error)
        elif error.permanent:
            outbox.proven(parcel, DeliveryState.UNPROVEN, str(error))
        else:
            outbox.ask_again(parcel, str(error), reached=False)
    if parcels and not error.permanent:
        outbox.postpone(parcels[0].destination, parcels)


class _NoFormError(DeliveryError):
    """A fault of the one report, not of the association."""
