"""The node as a service: each process joins the others through the database, the archive and the broker.

A process waits for what is down, and is refused where it does not belong: a database of another version, the archive
or the broker of another node.
"""

from __future__ import annotations

import logging
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from dicom_node import roles, supervisor
from dicom_node.archive import Archive, owner_of
from dicom_node.database import Database, UnreachableError
from dicom_node.dispatch import QUEUE_OF, RETROSPECTIVE, Bells, BrokerError, Ringer, await_broker, check_broker
from dicom_node.ledger import Ledger
from dicom_node.node import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from dicom_node.config import Settings
    from dicom_node.domain import Purpose

log = logging.getLogger(__name__)

_END_MARGIN_S = 5.0
_RELEASE_LOOKS, _RELEASE_PAUSE_S = 10, 0.5
_ARCHIVE_PAUSE_S = 1.0


@contextmanager
def joined(
    settings: Settings,
    stop: threading.Event,
    *,
    needs_broker: bool = False,
    prepare: Callable[[Database], None] = lambda _: None,
) -> Iterator[Database | None]:
    """The process belongs to the node while the block runs; None where `stop` was set while it waited.

    A process that does not need the broker starts without it; one that is another node's is refused all the same.
    `prepare` is called once the ledger answers and has a release, and again where the database is then lost.

    Raises
    ------
    AlreadyRunningError
        Where an embedded node has the archive.
    SchemaError, ReleaseError, ForeignArchiveError, BrokerError
        Where it does not belong here; the message says what to do.
    """
    _expect_broker(settings)
    with locked(settings, alone=False), closing(Database(settings.database_dsn)) as database:
        belongs = _belongs(settings, database, stop, needs_broker=needs_broker, prepare=prepare)
        yield database if belongs else None


def _belongs(
    settings: Settings,
    database: Database,
    stop: threading.Event,
    *,
    takes_archive: bool = False,
    needs_broker: bool = False,
    prepare: Callable[[Database], None] = lambda _: None,
) -> bool:
    """Whether the process belongs to the node; False where `stop` was set first."""
    while database.await_ready(stop):
        try:
            if not _has_release(Ledger(database), stop):
                return False
            prepare(database)
            return _has_broker(settings, database.ledger_id(), stop, needs_it=needs_broker) and _has_archive(
                settings, database, stop, takes_it=takes_archive
            )
        except SQLAlchemyError as error:
            if (told := database.explain(error)).permanent:
                raise told from error
        except UnreachableError:  # lost again: it is waited for once more
            continue
    return False


def _has_release(ledger: Ledger, stop: threading.Event) -> bool:
    """The upgrade that made the tables may be about to name a release: that is waited for, a little."""
    for _ in range(_RELEASE_LOOKS):
        if ledger.active_manifest() is not None or stop.wait(_RELEASE_PAUSE_S):
            break
    if stop.is_set():
        return False
    ledger.expect_any_release()
    return True


def _has_broker(settings: Settings, ledger_id: str, stop: threading.Event, *, needs_it: bool) -> bool:
    if needs_it:
        return await_broker(settings.broker_dsn, ledger_id, stop)
    try:
        check_broker(settings.broker_dsn, ledger_id)
    except BrokerError as error:
        if error.permanent:
            raise
        log.warning("%s; images are accepted and wait", error)
    return True


def _has_archive(settings: Settings, database: Database, stop: threading.Event, *, takes_it: bool) -> bool:
    """Only a listener takes an archive that is nobody's yet: what another host mounts in its place, it never fills."""
    folder, told = settings.archive_dir, False
    while not takes_it and owner_of(folder) is None:
        if not told:
            log.warning("waiting for `listen` to take %s for this node; is it mounted here?", folder)
            told = True
        if stop.wait(_ARCHIVE_PAUSE_S):
            return False
    Archive(folder).belongs_to(database.ledger_id(), has_files=Ledger(database).has_files())
    return True


def _expect_broker(settings: Settings) -> None:
    if not settings.broker_url:
        raise BrokerError(
            "broker_url is not set: the service needs Redis, such as redis://127.0.0.1:6379/0; "
            "`dicom-node up` runs without",
            permanent=True,
        )


def listen(settings: Settings, stop: threading.Event) -> None:
    """Receive until told to stop, and ring for what waits; until the database is there, senders keep what they have."""
    _expect_broker(settings)
    with locked(settings, alone=False), closing(Database(settings.database_dsn)) as database:
        ringer, accepting = Ringer(settings.broker_dsn), threading.Event()
        listener = roles.start_listener(settings, database, ringer.ring, accepting)
        try:
            if _belongs(settings, database, stop, takes_archive=True):
                accepting.set()
                roles.announce_ready()
                stop.wait()
        finally:
            listener.stop()
            ringer.close()


def deliver(settings: Settings, stop: threading.Event) -> None:
    """Send what is due until told to stop."""
    with joined(settings, stop) as database:
        if database is not None:
            roles.deliver(settings, stop)


def sweep(settings: Settings, stop: threading.Event) -> None:
    """Give back what is stuck, and ring for what waits without a bell, until told to stop."""
    with joined(settings, stop) as database:
        if database is None:
            return
        bells = Bells(settings.broker_dsn)

        def top_up(waiting: Mapping[Purpose, int]) -> int:
            check_broker(settings.broker_dsn, database.ledger_id())  # a flushed one learns again whose it is
            queues: dict[str, int] = {}
            for purpose, count in waiting.items():
                queues[QUEUE_OF[purpose]] = queues.get(QUEUE_OF[purpose], 0) + count
            return bells.top_up(queues)

        roles.sweep(settings, stop, top_up)
        bells.close()


def retrieve(settings: Settings, stop: threading.Event) -> None:
    """Fetch the studies of runs that are due until told to stop."""
    from dicom_node.retrospective import fetching

    with joined(settings, stop) as database:
        if database is None:
            return
        ringer = Ringer(settings.broker_dsn, RETROSPECTIVE)
        try:
            fetching.retrieve(settings, stop, ringer.ring)
        finally:
            ringer.close()


def web(settings: Settings, stop: threading.Event) -> None:
    """Serve the worklist's pages until told to stop; beside an embedded node too, whose ledger and archive it reads."""
    from dicom_node.worklist import serving

    with closing(Database(settings.database_dsn)) as database:
        if database.await_ready(stop):
            serving.serve(settings, stop)


def worker(settings: Settings, config: Path | None, devices: Sequence[str], stop: threading.Event) -> None:
    """One process for each device, started again when it dies, until told to stop.

    Raises
    ------
    StartError
        Where one of them does not come up; its own message stands in the log.
    """
    _expect_broker(settings)
    children = [supervisor.Child("answer", config, {"DICOM_NODE_DEVICE": device}) for device in devices]
    try:
        for child in children:
            child.start()
        if supervisor.await_ready(children, stop, timeout_s=None):
            log.info("the worker is up: %s", ", ".join(devices))
            roles.announce_ready()
            supervisor.keep_alive(children, stop)
    finally:
        supervisor.end(children, settings.step_timeout_s + _END_MARGIN_S)
