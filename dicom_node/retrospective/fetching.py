"""The role `retrieve`: fetches the studies of runs that are due, and brings those that were fetched to their end."""

from __future__ import annotations

import logging
import os
import threading
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from dicom_node.archive import Archive
from dicom_node.claims import Claims
from dicom_node.database import Database
from dicom_node.domain import LostLeaseError
from dicom_node.leases import holder_name, kept_alive
from dicom_node.retrospective.cohort import Criteria
from dicom_node.retrospective.planning import plan
from dicom_node.retrospective.query import QueryError, finder
from dicom_node.retrospective.runs import Runs
from dicom_node.retrospective.settling import Settling
from dicom_node.retrospective.studies import Studies
from dicom_node.retrospective.ways import Retriever, retrieving_children
from dicom_node.retrospective.window import night
from dicom_node.roles import Fault, announce_ready, tried
from dicom_node.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from dicom_node.config import Peer, Settings
    from dicom_node.retrospective.studies import StudyClaim

log = logging.getLogger(__name__)

RETRIEVE = "retrieve"
_POLL_S = 0.2
_SLOW_IN_A_ROW = 3
_END_S = 5.0
_NICE = 10


def utc_now() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)


def retrieve(settings: Settings, stop: threading.Event, ring: Callable[[], None] = lambda: None) -> None:
    """Fetch what is due until told to stop; the study at hand is given back then.

    `ring` is called for each study that was fetched: its images wait for a worker. With its children it takes only
    what of the processors the listener and the workers leave.
    """
    os.nice(_NICE)
    database = Database(settings.database_dsn)
    watch = Watch(settings.health_dir, RETRIEVE, settings.step_timeout_s)
    settling = Settling(database, Archive(settings.archive_dir), purge=settings.retrospective.purge)
    fault = Fault("settling")
    with retrieving_children(settings) as children:
        fetching = Fetching(settings, database, Retriever(settings, children), utc_now, ring)
        threads = [
            threading.Thread(target=_loop, args=(fetching, database, stop, number), daemon=True)
            for number in range(settings.retrospective.retrievals)
        ]
        for thread in threads:
            thread.start()
        announce_ready()
        while not stop.is_set():
            watch.step()
            if not tried(lambda: settling.settle(utc_now()), fault, database):
                watch.rest()
                stop.wait(_POLL_S)
    for thread in threads:  # their children have ended
        thread.join(_END_S)
    watch.close()


def _loop(fetching: Fetching, database: Database, stop: threading.Event, number: int) -> None:
    """One study after the other; the first of the threads plans the nights' runs as well."""
    fetch, planning = Fault("fetching"), Fault("planning a night")
    while not stop.is_set():
        busy = tried(lambda: fetching.fetch_next(stop), fetch, database)
        if number == 0:
            busy += tried(lambda: fetching.plan_next(stop), planning, database)
        if not busy:
            stop.wait(_POLL_S)


class Fetching:
    """Fetches one study at a time; several threads may do so at once.

    Parameters
    ----------
    clock
        The time, aware: a run's hours are the site's.
    ring
        Called when a study's images wait for a worker; must return at once.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        retriever: Retriever,
        clock: Callable[[], datetime],
        ring: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._runs = Runs(database)
        self._studies = Studies(database)
        self._screenings = Claims(database)
        self._database = database
        self._retriever = retriever
        self._clock = clock
        self._ring = ring
        self._slow = 0  # studies in a row
        self._planned_in_vain: dict[str, datetime] = {}

    def fetch_next(self, stop: threading.Event) -> int:
        """A study of a run that is due is fetched, or it is known why not; returns how many studies that were."""
        settings, now = self._settings, self._clock()
        if night(now, settings.retrospective) is None:  # the sweep may not have looked since the window closed
            return 0
        if self._screenings.live_waits():  # fetching costs the machine what screening needs
            return 0
        claim = self._studies.claim(holder_name(), settings.lease_s, settings.retrospective, now)
        if claim is None:
            return 0
        try:
            with kept_alive(partial(self._studies.renew, claim, settings.lease_s), settings.lease_s):
                self._fetch(claim, stop)
        except LostLeaseError as error:
            log.warning("%s; it is found again", error)
        except (SQLAlchemyError, OSError):
            self._studies.give_back(claim)
            raise
        return 1

    def _fetch(self, claim: StudyClaim, stop: threading.Event) -> None:
        peer = self._peer(claim.source)
        try:
            with finder(peer, self._settings) as asked:
                told = asked.expected(claim.study_instance_uid, claim.modalities)
        except QueryError as error:
            self._studies.give_back(claim, str(error))
            self._runs.fault(claim.run_id, str(error), self._settings.retrospective, self._clock())
            return
        if not told:
            wanted = " or ".join(claim.modalities)
            gone = f"{peer.name} holds no {wanted} image in it any more"
            self._not_retrieved(claim, "no_images", gone, attempts=self._settings.max_attempts)
            return
        self._studies.expect(claim, told)
        missing = self._studies.look(claim)
        seconds = 0.0
        if missing:
            fetched = self._retriever.fetch(
                peer,
                claim.study_id,
                claim.study_instance_uid,
                [(row.series_instance_uid, row.sop_instance_uid) for row in missing],
                lambda: self._studies.still_missing(claim),
                lambda way: self._studies.on_way(claim, way),
            )
            if stop.is_set():
                self._studies.give_back(claim, "the node was stopped while it was fetched")
                return
            seconds = fetched.seconds
            self._tell_pace(claim, fetched.fault, seconds)
            if left := self._studies.still_missing(claim):
                lacking = f"{len(left)} of {len(told)} images did not come: {fetched.told}"
                self._not_retrieved(claim, "missing_images", lacking, attempts=self._settings.max_attempts)
                return
        self._studies.retrieved(claim, seconds)
        self._ring()

    def _not_retrieved(self, claim: StudyClaim, reason: str, told: str, *, attempts: int) -> None:
        log.warning("study %d of run %d: %s", claim.study_id, claim.run_id, told)
        self._studies.not_retrieved(
            claim, reason, told, now=self._clock(), pause_s=self._settings.retry_base_s, attempts=attempts
        )

    def _tell_pace(self, claim: StudyClaim, fault: str | None, seconds: float) -> None:
        """The run rests after an error of the peer's, and after three slow studies in a row."""
        retrospective = self._settings.retrospective
        self._slow = self._slow + 1 if seconds > retrospective.slow_s else 0
        if fault is None and self._slow >= _SLOW_IN_A_ROW:
            self._slow = 0
            fault = f"{_SLOW_IN_A_ROW} studies in a row took longer than slow_s = {retrospective.slow_s:g}"
        if fault is None:
            self._runs.served(claim.run_id)
        else:
            self._runs.fault(claim.run_id, fault, retrospective, self._clock())

    def plan_next(self, stop: threading.Event) -> int:
        """The cohort of a night's run stands, and it runs; returns how many were planned."""
        now = self._clock()
        if night(now, self._settings.retrospective) is None:
            return 0
        for run in self._runs.to_plan():
            if stop.is_set() or not self._is_plannable(run.name, now):
                continue
            try:
                plan(
                    self._settings,
                    self._database,
                    name=run.name,
                    criteria=Criteria.from_json(run.criteria),
                    source=self._peer(run.source),
                    deliver=run.deliver,
                )
            except QueryError as error:
                self._planned_in_vain[run.name] = now
                self._runs.fault(run.id, str(error), self._settings.retrospective, now)
                raise
            self._runs.begin(run.name, now)
            return 1
        return 0

    def _is_plannable(self, name: str, now: datetime) -> bool:
        tried_at = self._planned_in_vain.get(name)
        return tried_at is None or (now - tried_at).total_seconds() >= self._settings.retrospective.pause_s

    def _peer(self, name: str) -> Peer:
        return next(peer for peer in self._settings.sources if peer.name == name)
