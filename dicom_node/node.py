"""The embedded node: one parent, one child a role, one life.

A lock file that the kernel releases with the parent keeps other nodes off the same archive and ledger, so that at the
start every claim found is a dead one. The service's processes share that lock among themselves (`dicom_node.service`).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from dicom_node import supervisor
from dicom_node.archive import Archive
from dicom_node.bundles import find_release
from dicom_node.claims import Claims
from dicom_node.database import Database, sqlite_file
from dicom_node.domain import NodeError
from dicom_node.ledger import Ledger
from dicom_node.outbox import Outbox
from dicom_node.retrospective.studies import Studies
from dicom_node.roles import StartError, stop_on_signal
from dicom_node.upgrade import settle, tell_difference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dicom_node.config import Settings

log = logging.getLogger(__name__)

ROLES = ("listen", "work", "deliver", "sweep")
RETRIEVE = "retrieve"  # where a peer is a source of retrospective runs
WEB = "web"  # where pages are served
READY_LINE = "the node is up"
_LOCK_FILE = "node.lock"
_READY_TIMEOUT_S = 120.0


class AlreadyRunningError(NodeError):
    """Another node owns the archive."""

    reason = "already_running"


def up(settings: Settings, config: Path | None) -> None:
    """Run the node until SIGTERM or SIGINT.

    Raises
    ------
    AlreadyRunningError
        Where a node runs on this archive.
    StartError
        Where a role does not come up; its own message stands in the log.
    """
    stop = stop_on_signal()
    with locked(settings, alone=True):
        _prepare(settings)
        further = [role for role, wanted in ((RETRIEVE, settings.sources), (WEB, settings.web.port)) if wanted]
        children = [supervisor.Child(role, config) for role in (*ROLES, *further)]
        try:
            for child in children:
                child.start()
            if not supervisor.await_ready(children, stop, _READY_TIMEOUT_S):
                return
            log.info(
                READY_LINE + ": %s on %s:%d, results to %s",
                settings.ae_title,
                settings.host,
                settings.port,
                ", ".join(peer.name for peer in settings.destinations) or "nobody (no destination is set)",
            )
            supervisor.keep_alive(children, stop)
        finally:
            supervisor.end(children)


def _prepare(settings: Settings) -> None:
    """The ledger has this version's schema, its release is installed, and nothing is claimed by a dead process."""
    archive = Archive(settings.archive_dir)
    archive.clear_incoming()
    database = Database(settings.database_dsn)
    active = settle(settings, database)
    archive.belongs_to(database.ledger_id(), has_files=Ledger(database).has_files())
    find_release(active, settings)
    tell_difference(settings, active)
    recovered = Claims(database).recover()
    Outbox(database, retry_base_s=settings.retry_base_s, retry_max_s=settings.retry_max_s).recover()
    Studies(database).recover()
    if settings.broker_url:
        log.warning("broker_url is set, but the embedded node needs no broker and uses none")
    if recovered:
        log.info("%d screenings of the last run go on", recovered)
    database.close()


@contextmanager
def locked(settings: Settings, *, alone: bool) -> Iterator[None]:
    """Archive and, where it is a file, ledger are this process's until it ends, however it ends.

    Not `alone`, it shares them with other processes that are not alone either.

    Raises
    ------
    AlreadyRunningError, StartError
        Where others have them, or a lock file cannot be written.
    """
    places = [settings.archive_dir / _LOCK_FILE]
    if (database := sqlite_file(settings.database_dsn)) is not None:
        places.append(database.with_name(database.name + ".lock"))
    with ExitStack() as held:
        for place in places:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                lock = held.enter_context(place.open("a+"))
            except OSError as error:
                raise StartError(
                    f"{place} cannot be written: {error.strerror}; see archive_dir and database_url"
                ) from error
            try:
                fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise AlreadyRunningError(
                    f"a node already runs on {place.parent}: {lock.read().strip() or 'it just started'}; "
                    "stop it first, or give this one its own archive_dir and database_url"
                ) from None
            with suppress(OSError):  # a full disk; what it says is only for people
                lock.truncate(0)
                lock.write(json.dumps({"pid": os.getpid(), "ae_title": settings.ae_title, "port": settings.port}))
                lock.flush()
        yield
