"""The worker as a Celery consumer: one solo process a device, and the one task, which answers a bell.

Solo, because a process that has touched CUDA must not fork: the task runs in the process that loaded the weights.
"""

from __future__ import annotations

import logging
import socket
import threading
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.worker import state

from dicom_node.archive import Archive
from dicom_node.claims import Claims
from dicom_node.decoding import decoders
from dicom_node.dispatch import BELL, LIVE, RETROSPECTIVE, Bells, celery_app
from dicom_node.domain import BundleError
from dicom_node.roles import announce_ready
from dicom_node.service import joined
from dicom_node.upgrade import tell_difference
from dicom_node.watch import Watch
from workers.ensemble import DeviceError
from workers.loop import WORKER, load_active
from workers.screening import Screener

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from dicom_node.config import Settings
    from dicom_node.database import Database
    from workers.ensemble import Ensemble

log = logging.getLogger(__name__)

_FAULT = 1  # exit status
_PULSE_S = 2.5
_DEAF_AFTER = 2  # pulses
_RECONNECT_S = 15.0


def answer_bells(settings: Settings, stop: threading.Event) -> None:
    """Screen a batch for each bell until told to stop; the screening at hand is finished first.

    Raises
    ------
    BundleError
        Where the ledger's active release is not installed, or it or its device cannot be used.
    ReleaseError
        Where no release is active.
    SystemExit
        Where the process cannot go on; a new one can.
    """
    loaded: list[Ensemble] = []

    def load(database: Database) -> None:
        loaded[:] = [load_active(settings, database)]
        tell_difference(settings, loaded[0].manifest)

    with joined(settings, stop, needs_broker=True, prepare=load) as database:
        if database is None:
            return
        (ensemble,) = loaded
        watch = Watch(settings.health_dir, WORKER, settings.step_timeout_s)
        children = decoders(settings)
        claims, archive = Claims(database, settings.worklist), Archive(settings.archive_dir)
        screener = Screener(claims, archive, ensemble, children, settings, watch.step)
        app = celery_app(settings.broker_dsn)
        bells = Bells(settings.broker_dsn)
        _register(app, screener, watch, Ear(bells.hanging))
        worker = app.WorkController(
            pool_cls="solo",
            hostname=f"worker@{socket.gethostname()}",
            queues=[LIVE, RETROSPECTIVE],
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            ready_callback=lambda _: announce_ready(),
        )
        threading.Thread(target=_stop_with, args=(stop,), daemon=True).start()
        worker.start()
        children.close()
        watch.close()
        if worker.exitcode:
            raise SystemExit(worker.exitcode)


class Ear:
    """Finds out that bells hang in the broker and do not come through.

    Celery 5.7 on Redis: an acknowledgement that fails with the connection is logged and forgotten, its message counts
    against the prefetch limit for ever, and the worker fetches nothing any more, over a healthy new connection.
    """

    def __init__(self, hanging: Callable[[], int]) -> None:
        self._hanging = hanging
        self._heard = False
        self._missed = 0

    def hear(self) -> None:
        """A bell came through."""
        self._heard = True

    def check(self) -> None:
        """To be called every few seconds from the loop that takes bells.

        Raises
        ------
        ConnectionResetError
            Where bells hung there twice in a row, and none came through: only a new connection helps.
        """
        missed = not self._heard and self._hanging() > 0
        self._heard, self._missed = False, self._missed + 1 if missed else 0
        if self._missed >= _DEAF_AFTER:
            self._missed = 0
            raise ConnectionResetError("bells hang in the broker and do not come through")


def _register(app: Celery, screener: Screener, watch: Watch, ear: Ear) -> None:
    connected = threading.Event()

    @app.task(name=BELL)  # type: ignore[untyped-decorator]
    def bell() -> None:
        ear.hear()
        try:
            screener.screen_next(lambda: state.should_stop is not None)
        except (DeviceError, BundleError, MemoryError) as error:
            log.error("the worker ends: %s", error or type(error).__name__)  # noqa: TRY400
            state.should_stop = _FAULT
        finally:
            watch.rest()

    class Pulse(bootsteps.StartStopStep):  # type: ignore[misc]
        """Signs of life from the event loop, while it is connected: the watchdog ends one that hangs."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, consumer: Any) -> None:
            log.info("answering bells")
            consumer.timer.call_repeatedly(_PULSE_S, self._beat)
            watch.rest()
            connected.set()

        def _beat(self) -> None:
            watch.step()
            screener.return_what_is_left()
            ear.check()

        def stop(self, consumer: Any) -> None:
            if state.should_stop is not None:
                watch.step()  # the end is a step as well
                return
            connected.clear()
            log.warning("the broker is out of reach; waiting for it")
            watch.rest()
            threading.Thread(target=give_up, daemon=True).start()

    def give_up() -> None:
        """Celery's pauses between two tries grow; a new process asks every two seconds."""
        if not connected.wait(_RECONNECT_S) and state.should_stop is None:
            state.should_stop = _FAULT

    app.steps["consumer"].add(Pulse)


def _stop_with(stop: threading.Event) -> None:
    """Celery's loop looks at this flag between two tasks, and at least once a second."""
    stop.wait()
    if state.should_stop is None:
        state.should_stop = 0
