"""The doorbell: Celery messages that wake the workers.

A message says that work waits, and nothing else: no pixels, no patient data, not even which image. The ledger knows
what waits, so a message may be lost, doubled or late: a lost one costs one sweep, one too many returns at once.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dicom_node.domain import NodeError, Purpose, place_of

try:
    import redis
    from celery import Celery
    from kombu.entity import Exchange, Queue
    from kombu.exceptions import KombuError
except ModuleNotFoundError as error:
    raise NodeError(f"broker_url needs the package {error.name!r}: install cxr-dicom-node[service]") from error

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

LIVE, RETROSPECTIVE = "live", "retrospective"
QUEUE_OF = {Purpose.LIVE: LIVE, Purpose.SHADOW: RETROSPECTIVE, Purpose.RETROSPECTIVE: RETROSPECTIVE}
BELL = "dicom_node.bell"

_OWNER_KEY = "cxr-dicom-node:ledger"
_CONNECT_TIMEOUT_S, _ANSWER_TIMEOUT_S = 3.0, 5.0
_REDIS_PORT = 6379
_PAUSE_AFTER_FAULT_S = 1.0
_MOST_BELLS_AT_ONCE = 1000
_FAULTS = (KombuError, redis.RedisError, OSError)


class BrokerError(NodeError):
    """The broker does not answer, or will not serve this node."""

    reason = "broker"

    def __init__(self, message: str, *, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


def celery_app(broker_dsn: str, *, answer_timeout_s: float | None = None) -> Celery:
    """The Celery application; it connects when it is first used.

    Who waits for bells sets no limit on an answer; who rings does.
    """
    app = Celery("cxr-dicom-node", broker=broker_dsn, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        task_default_queue=LIVE,
        task_create_missing_queues=False,
        # The default exchange needs no binding in Redis, which FLUSHALL would remove until the next restart.
        task_queues=[Queue(name, Exchange(""), routing_key=name) for name in (LIVE, RETROSPECTIVE)],
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "queue_order_strategy": "priority",  # `live` is asked first
            "socket_connect_timeout": _CONNECT_TIMEOUT_S,
            "socket_timeout": answer_timeout_s,
            "socket_keepalive": True,
        },
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app


def check_broker(broker_dsn: str, ledger_id: str | None = None) -> None:
    """The broker answers and, where `ledger_id` is given, serves no other ledger; from now on it is this ledger's.

    Raises
    ------
    BrokerError
        `permanent` where waiting cannot help: a wrong URL or password, or another node's broker.
    """
    owner = _ask(broker_dsn, ledger_id)
    if ledger_id is not None and owner != ledger_id:
        raise BrokerError(
            f"the broker {_place(broker_dsn)} serves a node with another database: give each node a broker, or a "
            f"database number in broker_url, of its own; if that node is gone, delete the key {_OWNER_KEY}",
            permanent=True,
        )


def broker_owner(broker_dsn: str) -> str | None:
    """The ledger whose bells the broker has; None where no process of a node has joined it yet.

    Raises
    ------
    BrokerError
        Where it cannot be asked.
    """
    return _ask(broker_dsn, None)


def _ask(broker_dsn: str, claim_for: str | None) -> str | None:
    place = _place(broker_dsn)
    try:
        with redis.Redis.from_url(
            broker_dsn,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            socket_timeout=_ANSWER_TIMEOUT_S,
            retry=None,
            decode_responses=True,
        ) as client:
            client.ping()
            if claim_for is not None:
                client.set(_OWNER_KEY, claim_for, nx=True)
            owner = client.get(_OWNER_KEY)
            return None if owner is None else str(owner)
    except (redis.AuthenticationError, redis.AuthenticationWrongNumberOfArgsError) as error:
        raise BrokerError(f"the broker {place} refuses the password: set broker_password", permanent=True) from error
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise BrokerError(
            f"the broker {place} does not answer ({type(error).__name__}): is Redis there, is broker_url right?",
            permanent=False,
        ) from error
    except redis.RedisError as error:
        full_or_read_only = isinstance(error, (redis.OutOfMemoryError, redis.ReadOnlyError)) or "MISCONF" in str(error)
        raise BrokerError(f"the broker {place} cannot be used: {error}", permanent=not full_or_read_only) from error


def await_broker(broker_dsn: str, ledger_id: str, stop: threading.Event, pause_s: float = 2.0) -> bool:
    """True once the broker answers; False where `stop` is set first. Says once that it waits.

    Raises
    ------
    BrokerError
        Where waiting cannot help.
    """
    waiting = False
    while not stop.is_set():
        try:
            check_broker(broker_dsn, ledger_id)
        except BrokerError as error:
            if error.permanent:
                raise
            if not waiting:
                log.warning("%s; waiting for it", error)
            waiting = True
            stop.wait(pause_s)
        else:
            if waiting:
                log.info("the broker is back")
            return True
    return False


class Bells:
    """Rings from one thread, and says how many bells hang in a queue. Connects when first used."""

    def __init__(self, broker_dsn: str) -> None:
        self._app = celery_app(broker_dsn, answer_timeout_s=_ANSWER_TIMEOUT_S)
        self._place = _place(broker_dsn)

    def ring(self, queue: str, times: int = 1) -> None:
        """`times` messages stand in the queue.

        Raises
        ------
        BrokerError
            Where the broker does not take them.
        """
        try:
            with self._app.producer_pool.acquire(block=True) as producer:
                for _ in range(times):
                    self._app.send_task(BELL, queue=queue, producer=producer, retry=False)
        except _FAULTS as error:
            raise self._silent(error) from error

    def top_up(self, waiting: Mapping[str, int]) -> int:
        """Each queue holds a bell for each piece of work that waits, as far as one call may ring; returns the rings.

        Raises
        ------
        BrokerError
            Where the broker does not answer.
        """
        rung = 0
        for queue, count in waiting.items():
            short = min(count - self._length(queue), _MOST_BELLS_AT_ONCE)
            if short > 0:
                self.ring(queue, short)
                rung += short
        return rung

    def hanging(self) -> int:
        """How many bells no worker has taken yet; none where the broker does not answer."""
        try:
            return self._length(LIVE) + self._length(RETROSPECTIVE)
        except BrokerError:
            return 0

    def _length(self, queue: str) -> int:
        try:
            with self._app.connection_for_write() as connection:
                declared = self._app.amqp.queues[queue](connection.default_channel).queue_declare()
        except _FAULTS as error:
            raise self._silent(error) from error
        return int(declared.message_count)

    def _silent(self, error: Exception) -> BrokerError:
        return BrokerError(f"the broker {self._place} does not answer ({type(error).__name__})", permanent=False)

    def close(self) -> None:
        """All connections are closed."""
        self._app.close()


class Ringer:
    """Rings from a thread of its own, so that an answer to a sender never waits for the broker."""

    def __init__(self, broker_dsn: str, queue: str = LIVE) -> None:
        self._bells = Bells(broker_dsn)
        self._queue = queue
        self._due = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="ringer")
        self._thread.start()

    def ring(self) -> None:
        """The queue gets a bell soon, or never: then the sweep rings. Returns at once."""
        with self._changed:
            self._due += 1
            self._changed.notify()

    def close(self) -> None:
        """Bells that are due were rung, if the broker takes them."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(_CONNECT_TIMEOUT_S)

    def _run(self) -> None:
        reachable = True
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._due or self._closed)
                due, self._due = min(self._due, _MOST_BELLS_AT_ONCE), 0
                if not due:
                    self._bells.close()
                    return
            try:
                self._bells.ring(self._queue, due)
            except Exception as error:  # this thread outlives everything: nobody would miss it but the images
                if reachable:
                    told = error if isinstance(error, BrokerError) else place_of(error)
                    log.warning("%s; the sweep rings for what waits", told)
                reachable = False
                time.sleep(_PAUSE_AFTER_FAULT_S)
            else:
                if not reachable:
                    log.info("the broker takes bells again")
                reachable = True


def _place(broker_dsn: str) -> str:
    """Host, port and database number, without the password."""
    parts = urlsplit(broker_dsn)
    try:
        if parts.scheme in ("redis", "rediss") and parts.hostname and int(parts.path.strip("/") or 0) >= 0:
            return f"{parts.hostname}:{parts.port or _REDIS_PORT}{parts.path}"
    except ValueError:  # a port or a database that is no number
        pass
    raise BrokerError("broker_url cannot be used; an example: redis://127.0.0.1:6379/0", permanent=True)
