"""The processes of the embedded node: what each child of `dicom-node up` does until it is told to stop.

Each role announces itself with one line on its standard output when it is ready; everything else goes to the log.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from dicom_node.archive import Archive
from dicom_node.claims import Claims
from dicom_node.database import Database
from dicom_node.delivery import deliver_due
from dicom_node.domain import NodeError, invariant_holds, place_of
from dicom_node.ledger import Ledger
from dicom_node.listener import Listener
from dicom_node.outbox import Outbox

if TYPE_CHECKING:
    from dicom_node.config import Settings

log = logging.getLogger(__name__)

READY = "ready"
_OUTBOX_POLL_S = 0.05
_PAUSE_AFTER_FAULT_S = 1.0


class StartError(NodeError):
    """A role cannot begin its work."""

    reason = "start"


def announce_ready() -> None:
    """The parent knows that this role does its work."""
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()


def stop_on_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set.

    Not from the handler, which may interrupt the very code that holds the event's lock, and then waits for ever: it
    writes to a pipe, and a thread that reads it sets the event.
    """
    stop = threading.Event()
    reading, writing = os.pipe()

    def wait() -> None:
        os.read(reading, 1)
        stop.set()

    threading.Thread(target=wait, daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(writing, b"."))
    return stop


def listen(settings: Settings) -> None:
    """Receive until told to stop."""
    stop = stop_on_signal()
    listener = Listener(settings, Archive(settings.archive_dir), Ledger(Database(settings.database_dsn)))
    try:
        listener.start()
    except OSError as error:
        raise StartError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; set host or port"
        ) from error
    log.info("listening as %s on %s:%d", settings.ae_title, settings.host, settings.port)
    announce_ready()
    stop.wait()
    listener.stop()


def deliver(settings: Settings) -> None:
    """Send what is due until told to stop."""
    stop = stop_on_signal()
    database = Database(settings.database_dsn)
    outbox = Outbox(database, retry_base_s=settings.retry_base_s, retry_max_s=settings.retry_max_s)
    archive = Archive(settings.archive_dir)
    outbox.recover()
    announce_ready()
    while not stop.is_set():
        try:
            busy = deliver_due(outbox, archive, settings)
        except Exception as error:
            log.warning("delivery pauses: %s", place_of(error))
            stop.wait(_PAUSE_AFTER_FAULT_S)
            continue
        if not busy:
            stop.wait(_OUTBOX_POLL_S)


def sweep(settings: Settings) -> None:
    """Every `sweep_s` seconds: give back the claims whose lease ran out, and check the invariant."""
    stop = stop_on_signal()
    database = Database(settings.database_dsn)
    claims, ledger = Claims(database), Ledger(database)
    announce_ready()
    while not stop.is_set():
        try:
            expired = claims.expire_leases(settings.max_attempts)
            if expired:
                log.warning("gave back %d screenings whose lease ran out", expired)
            if not invariant_holds(ledger.counts()):
                log.error("the invariant does not hold: see `dicom-node status`")
        except Exception as error:
            log.warning("sweep pauses: %s", place_of(error))
        stop.wait(settings.sweep_s)
