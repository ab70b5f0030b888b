"""What each process of the node does until it is told to stop: embedded (`dicom-node up`) and as a service.

Each role announces itself with one line on its standard output when it is ready; everything else goes to the log.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from dicom_node.archive import Archive
from dicom_node.claims import Claims
from dicom_node.database import Database
from dicom_node.decoding import decoders
from dicom_node.delivery import Depot, deliver_due
from dicom_node.domain import NodeError, invariant_holds, place_of
from dicom_node.ledger import Ledger
from dicom_node.listener import Listener
from dicom_node.outbox import Outbox
from dicom_node.proofs import Proofs
from dicom_node.reporting import Reporter
from dicom_node.reports import Reports
from dicom_node.retrospective.runs import Runs
from dicom_node.watch import IDLE_S, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dicom_node.children import Children
    from dicom_node.config import Settings
    from dicom_node.domain import Purpose

log = logging.getLogger(__name__)

READY = "ready"
_OUTBOX_POLL_S = 0.05
_REPORTING = 1  # process that builds reports, for each that delivers
_PAUSE_AFTER_FAULT_S = 1.0
_COUNT_S = 60.0
_ENDING = (signal.SIGTERM, signal.SIGINT)


class StartError(NodeError):
    """A role cannot begin its work."""

    reason = "start"


def announce_ready() -> None:
    """The parent knows that this role does its work."""
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()


def stop_on_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set.

    Not from a Python handler: the kernel may give the signal to another thread than the main one, which alone runs
    handlers and may sleep in `Event.wait` for ever. The interpreter's C code writes the signal's number to a pipe at
    once, in whatever thread, and a thread that reads it sets the event.
    """
    stop = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def wait() -> None:
        while not stop.is_set():
            if os.read(reading, 1)[0] in _ENDING:
                stop.set()

    threading.Thread(target=wait, daemon=True).start()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in _ENDING:
        signal.signal(number, lambda *_: None)  # a handler of Python's is what makes the interpreter catch it
    return stop


def listen(settings: Settings, stop: threading.Event) -> None:
    """Receive until told to stop."""
    listener = start_listener(settings, Database(settings.database_dsn))
    announce_ready()
    stop.wait()
    listener.stop()


def start_listener(
    settings: Settings,
    database: Database,
    ring: Callable[[], None] | None = None,
    accepting: threading.Event | None = None,
) -> Listener:
    """A listener that answers on the node's port.

    Raises
    ------
    StartError
        Where the port cannot be had.
    """
    proofs = Proofs(database, retry_base_s=settings.retry_base_s)
    archive = Archive(settings.archive_dir)
    listener = Listener(settings, archive, Ledger(database, settings.worklist), ring, accepting, proofs.answered)
    try:
        listener.start()
    except OSError as error:
        raise StartError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; set host or port"
        ) from error
    log.info("listening as %s on %s:%d", settings.ae_title, settings.host, settings.port)
    return listener


def deliver(settings: Settings, stop: threading.Event) -> None:
    """Make the reports that are due and send what is due, until told to stop."""
    database = Database(settings.database_dsn)
    # One step may be to connect and to associate, or an answer and a release: each has its own limit on the network.
    watch = Watch(settings.health_dir, "deliver", max(settings.step_timeout_s, 4 * settings.network_timeout_s))
    with decoders(settings, _REPORTING) as children:
        depot = make_depot(settings, database, children)
        announce_ready()
        reporting, delivery = Fault("reporting"), Fault("delivery")
        while not stop.is_set():
            watch.step()
            busy = tried(lambda: depot.reporter.issue_due(watch.step), reporting, database)
            watch.step()
            busy += tried(lambda: deliver_due(depot, watch.step, stop.is_set), delivery, database)
            if not busy:
                watch.rest()
                stop.wait(_OUTBOX_POLL_S)
    watch.close()


def make_depot(settings: Settings, database: Database, children: Children) -> Depot:
    """What makes reports and delivers."""
    archive = Archive(settings.archive_dir)
    return Depot(
        outbox=Outbox(database, retry_base_s=settings.retry_base_s, retry_max_s=settings.retry_max_s),
        proofs=Proofs(database, retry_base_s=settings.retry_base_s),
        archive=archive,
        reporter=Reporter(Reports(database), archive, children, settings),
        settings=settings,
    )


def tried(work: Callable[[], int], fault: Fault, database: Database) -> int:
    """How much of the work was done; after a fault, which is told, nothing for a while."""
    if fault.pauses():
        return 0
    try:
        done = work()
    except Exception as error:
        fault.tell(_explained(error, database))
        return 0
    fault.over()
    return done


def sweep(
    settings: Settings, stop: threading.Event, top_up: Callable[[Mapping[Purpose, int]], int] | None = None
) -> None:
    """Every `sweep_s` seconds: give back the claims whose lease ran out, ring for what waits, decide which run is due.

    Once a minute the invariant is checked.

    `top_up` takes how many screenings wait, by purpose, and says how often it rang.
    """
    database = Database(settings.database_dsn)
    claims, ledger, runs = Claims(database), Ledger(database), Runs(database)
    watch = Watch(settings.health_dir, "sweep", settings.step_timeout_s)
    announce_ready()
    faults = Fault("sweep"), Fault("ringing")
    expire_from = count_from = 0.0
    while not stop.is_set():
        watch.step()
        try:
            if time.monotonic() >= expire_from and (expired := claims.expire_leases(settings.max_attempts)):
                log.warning("gave back %d screenings whose lease ran out", expired)
            if time.monotonic() >= count_from:  # to count millions of rows takes its time
                count_from = time.monotonic() + _COUNT_S
                if not invariant_holds(ledger.counts()):
                    log.error("the invariant does not hold: see `dicom-node status`")
            runs.decide(settings, datetime.now(UTC))
            waiting = claims.waiting() if top_up else {}
        except Exception as error:
            faults[0].tell(_explained(error, database))
            expire_from = time.monotonic() + settings.lease_s  # their holders could not renew them: they go first
        else:
            faults[0].over()
            if top_up:
                _ring(top_up, waiting, faults[1])
        watch.rest(settings.sweep_s + IDLE_S)
        stop.wait(settings.sweep_s)
    watch.close()


def _ring(top_up: Callable[[Mapping[Purpose, int]], int], waiting: Mapping[Purpose, int], fault: Fault) -> None:
    try:
        rung = top_up(waiting)
    except Exception as error:
        fault.tell(error)
    else:
        fault.over()
        if rung:
            log.info("rang %d times for screenings that wait without a bell", rung)


def _explained(error: Exception, database: Database) -> Exception:
    """An error of the database as one line that says what it means."""
    return database.explain(error) if isinstance(error, SQLAlchemyError) else error


class Fault:
    """Says once that something pauses, and once that it goes on."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._told: str | None = None
        self._until = 0.0

    def pauses(self) -> bool:
        """Whether it was told of a moment ago."""
        return time.monotonic() < self._until

    def tell(self, error: Exception) -> None:
        """The log says why, unless it said the same the last time."""
        told = str(error) if isinstance(error, NodeError) else place_of(error)
        if told != self._told:
            log.warning("%s pauses: %s", self._what, told)
        self._told, self._until = told, time.monotonic() + _PAUSE_AFTER_FAULT_S

    def over(self) -> None:
        """The log says that it goes on, where it had said that it does not."""
        if self._told is not None:
            log.info("%s goes on", self._what)
        self._told = None
