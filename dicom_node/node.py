"""The embedded node: one parent, one child a role, one life.

The parent's death ends its children (PR_SET_PDEATHSIG), whatever killed it. A lock file that the kernel releases with
the parent keeps a second node off the same archive and ledger, so that at the start every claim found is a dead one.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING

from dicom_node.archive import Archive
from dicom_node.bundle import find_bundle, read_manifest
from dicom_node.claims import Claims
from dicom_node.database import Database, sqlite_file
from dicom_node.domain import NodeError
from dicom_node.ledger import Ledger
from dicom_node.process import dying_with_this_process
from dicom_node.roles import READY, StartError, stop_on_signal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dicom_node.config import Settings

log = logging.getLogger(__name__)

ROLES = ("listen", "work", "deliver", "sweep")
READY_LINE = "the node is up"
_TOLD = 2  # exit status of a command that has said what is wrong
_LOCK_FILE = "node.lock"
_READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
_SHORTEST_PAUSE_S, _DOUBLINGS = 0.5, 6
_STEADY_AFTER_S = 60.0


class AlreadyRunningError(NodeError):
    """Another node owns the archive."""

    reason = "already_running"


class _Child:
    """One role's process, restarted with growing pauses when it dies."""

    def __init__(self, role: str, config: Path | None) -> None:
        self.role = role
        self._command = [sys.executable, "-m", "dicom_node"]
        if config is not None:
            self._command += ["--config", str(config)]
        self._command += ["role", role]
        self._deaths = 0
        self._started_at = self._start_again_at = 0.0
        self.ready = threading.Event()
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """The process runs; `ready` is set when it says so."""
        self.ready.clear()
        self._started_at = time.monotonic()
        self.process = subprocess.Popen(dying_with_this_process(self._command), stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None  # noqa: S101 - PIPE was asked for
        threading.Thread(target=self._wait_ready, args=(self.process.stdout,), daemon=True).start()

    def _wait_ready(self, output: IO[str]) -> None:
        for line in output:
            if line.strip() == READY:
                self.ready.set()

    def keep_alive(self) -> None:
        """A dead process is started again, after a pause that doubles with every death."""
        if self.process is None or self.process.poll() is None:
            return
        now = time.monotonic()
        if not self._start_again_at:
            if now - self._started_at > _STEADY_AFTER_S:
                self._deaths = 0
            pause_s = _SHORTEST_PAUSE_S * 2 ** min(self._deaths, _DOUBLINGS)
            self._deaths += 1
            self._start_again_at = now + pause_s
            log.error("%s ended with status %s; it starts again in %.1f s", self.role, self.process.returncode, pause_s)
        elif now >= self._start_again_at:
            self._start_again_at = 0.0
            self.start()


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
    with _only_node(settings):
        _prepare(settings)
        children = [_Child(role, config) for role in ROLES]
        try:
            for child in children:
                child.start()
            if not _await_ready(children, stop):
                return
            log.info(
                READY_LINE + ": %s on %s:%d, results to %s",
                settings.ae_title,
                settings.host,
                settings.port,
                ", ".join(peer.name for peer in settings.destinations) or "nobody (no destination is set)",
            )
            while not stop.wait(0.2):
                for child in children:
                    child.keep_alive()
        finally:
            _end(children)


def _prepare(settings: Settings) -> None:
    """The ledger has this version's schema and the bundle's release, and nothing is claimed by a dead process."""
    manifest = read_manifest(find_bundle(settings.bundle))
    Archive(settings.archive_dir).clear_incoming()
    database = Database(settings.database_dsn)
    database.upgrade()
    recovered = Claims(database).recover()
    Ledger(database).activate_release(manifest)
    if settings.broker_url:
        log.warning("broker_url is set, but the embedded node needs no broker and uses none")
    if recovered:
        log.info("%d screenings of the last run go on", recovered)
    database.close()


@contextmanager
def _only_node(settings: Settings) -> Iterator[None]:
    """Archive and, where it is a file, ledger are this process's own until it ends, however it ends."""
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
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise AlreadyRunningError(
                    f"a node already runs on {place.parent}: {lock.read().strip() or 'it just started'}; "
                    "stop it first, or give this one its own archive_dir and database_url"
                ) from None
            lock.truncate(0)
            lock.write(json.dumps({"pid": os.getpid(), "ae_title": settings.ae_title, "port": settings.port}))
            lock.flush()
        yield


def _await_ready(children: list[_Child], stop: threading.Event) -> bool:
    """Whether every role is ready; False where the node was told to stop first."""
    give_up_at = time.monotonic() + _READY_TIMEOUT_S
    for child in children:
        while not child.ready.wait(0.05):
            if stop.is_set():
                return False
            status = child.process.poll() if child.process is not None else None
            if status == _TOLD:
                raise StartError  # the role's own line says it all
            if status is not None or time.monotonic() > give_up_at:
                raise StartError(f"the role {child.role} did not start; its message stands above")
    return True


def _end(children: list[_Child]) -> None:
    processes = [child.process for child in children if child.process is not None]
    for process in processes:
        process.terminate()
    give_up_at = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        try:
            process.wait(max(0.1, give_up_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
