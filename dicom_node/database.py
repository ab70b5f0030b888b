"""The engine under the ledger: one transaction form, one durability, migrations; SQLite or PostgreSQL."""

from __future__ import annotations

import importlib.util
import logging
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from dicom_node import postgres
from dicom_node.domain import NodeError
from dicom_node.tables import NodeRow, db_now

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from alembic.runtime.migration import MigrationInfo

log = logging.getLogger(__name__)

_BUSY_TIMEOUT_S = 5.0
_TELL_AGAIN_S = 60.0
_MIGRATION_PATIENCE_S = 60.0  # of a process that starts while `dicom-node db upgrade` may still be at work
_TURN_PATIENCE_S = 600.0
_TURN_POLL_S = 0.2
_LOCK_TRIES = 10
_LOCK_PAUSE_S = 1.0


class SchemaError(NodeError):
    """The database cannot be used, or is not at the schema of this code."""

    reason = "schema"


class UnreachableError(NodeError):
    """The database does not answer now: it is down, starting, full or busy."""

    permanent = False
    reason = "database"


class _OutdatedError(SchemaError):
    """The schema is empty or older than this code's."""


class Database:
    """Connections to the ledger's database; opens nothing before the first transaction.

    Attributes
    ----------
    embedded
        Whether it is an SQLite file, which only the processes of one `dicom-node up` share.
    place
        Its file, or ``host:port/name``.

    Raises
    ------
    SchemaError
        Where the URL names no database that this program knows.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._parsed = _parse(url)
        self.embedded = self._parsed.get_backend_name() == "sqlite"
        self.place = (self._parsed.database or "memory") if self.embedded else postgres.place(self._parsed)
        try:
            if self.embedded:
                self.engine = create_engine(
                    self._parsed, connect_args={"timeout": _BUSY_TIMEOUT_S}, hide_parameters=True
                )
                _tune_sqlite(self.engine)
                self._reading: Engine = self.engine
                self._writing: Engine = self.engine.execution_options(write=True)
            else:
                arguments = postgres.connect_arguments(self._parsed)
                self.engine = create_engine(
                    self._parsed,
                    connect_args=arguments,
                    isolation_level="READ COMMITTED",
                    hide_parameters=True,  # of what was asked in vain: they may be a patient's
                    **postgres.POOL,
                )
                # Said in the BEGIN itself: no further round trip.
                self._reading = self.engine.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
                self._writing = self.engine
        except ImportError as error:
            raise SchemaError(
                "database_url names PostgreSQL, whose driver is not installed: pip install 'cxr-dicom-node[service]'"
            ) from error
        except ArgumentError as error:
            raise _unusable_url(error) from error

    @contextmanager
    def write(self, *, alone: str | None = None) -> Iterator[Session]:
        """A transaction that is committed, durably, when the block ends without an exception.

        Where `alone` names a matter, no other transaction of that name runs at the same time, in any process.
        """
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            if alone is not None and not self.embedded:  # on SQLite every writer is alone
                session.execute(select(func.pg_advisory_xact_lock(postgres.lock_key(alone))))
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent view: what others commit meanwhile is not in it. Never waits for a writer."""
        with Session(self._reading) as session:
            yield session

    def upgrade(self, revision: str = "head") -> None:
        """The schema is that of this code, or of an older revision; of two callers at once the second finds it done.

        Raises
        ------
        SchemaError, UnreachableError
            Where nothing was changed.
        """
        try:
            if (file := sqlite_file(self.url)) is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
            engine = self._engine_of_migrations()
            try:
                with engine.connect() as connection:
                    self._migrate(connection, revision)
            finally:
                engine.dispose()
        except (OSError, SQLAlchemyError) as error:
            raise self.explain(error) from error

    def _engine_of_migrations(self) -> Engine:
        """One connection, apart from the node's own: it ends with the migration, and its lock with it."""
        if not self.embedded:
            arguments = postgres.connect_arguments(self._parsed, migrating=True)
            return create_engine(self._parsed, poolclass=NullPool, connect_args=arguments)
        # Without foreign keys, for a table that is made anew is dropped; and BEGIN is ours, for the driver would commit
        # before every DDL statement.
        engine = create_engine(self._parsed, poolclass=NullPool, connect_args={"timeout": _BUSY_TIMEOUT_S})
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        return engine

    def _migrate(self, connection: Connection, revision: str) -> None:
        if not self.embedded:
            self._await_turn(connection)
        config = _alembic()
        config.attributes["connection"] = connection
        config.attributes["on_version_apply"] = _tell_revision
        for remaining in reversed(range(_LOCK_TRIES)):
            try:
                command.upgrade(config, revision)
            except DBAPIError as error:
                connection.rollback()
                if postgres.sqlstate(error) != postgres.LOCK_NOT_AVAILABLE:
                    raise
                if not remaining:
                    raise UnreachableError(
                        f"a long transaction holds the tables of {self.place}: the schema is as it was, try again later"
                    ) from error
                log.info("the ledger's tables are in use; the upgrade is tried again")
                time.sleep(_LOCK_PAUSE_S)
            else:
                return

    def _await_turn(self, connection: Connection) -> None:
        """The lock of migrations is this connection's, until it closes."""
        patience_ends, is_told = time.monotonic() + _TURN_PATIENCE_S, False
        while not connection.scalar(select(func.pg_try_advisory_lock(postgres.lock_key("migration")))):
            connection.rollback()
            if time.monotonic() > patience_ends:
                raise UnreachableError(f"another process has been upgrading {self.place} all the time: try again later")
            if not is_told:
                log.info("another process upgrades the ledger; waiting for it")
                is_told = True
            time.sleep(_TURN_POLL_S)
        connection.commit()

    def check_schema(self) -> None:
        """Refuse a database that was not upgraded.

        Raises
        ------
        SchemaError
            Saying what is there and what is wanted.
        UnreachableError
            Where it does not answer.
        """
        if (file := sqlite_file(self.url)) is not None and not file.exists():
            raise SchemaError(f"there is no ledger {file} yet: start `dicom-node up` once")
        scripts = ScriptDirectory.from_config(_alembic())
        wanted = scripts.get_current_head()
        try:
            with self.engine.connect() as connection:
                found = MigrationContext.configure(connection).get_current_revision()
        except SQLAlchemyError as error:
            raise self.explain(error) from error
        if found == wanted:
            return
        versions = f"the ledger's schema is {found or 'empty'}, this version needs {wanted}"
        if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
            raise SchemaError(f"{versions}: a later version of the program upgraded it, install that one")
        remedy = "start `dicom-node up` once" if self.embedded else "run `dicom-node db upgrade`"
        raise _OutdatedError(f"{versions}: {remedy}")

    def await_ready(self, stop: threading.Event, pause_s: float = 2.0) -> bool:
        """The server answers and the schema is this code's; False where `stop` was set before that.

        What does not answer is waited for without end; an upgrade that may be under way, for a minute.

        Raises
        ------
        SchemaError
            For what waiting cannot cure.
        """
        if self.embedded:
            self.check_schema()
            return True
        told: type[NodeError] | None = None
        told_at = 0.0
        outdated_since: float | None = None
        while not stop.is_set():
            now = time.monotonic()
            try:
                self.check_schema()
            except UnreachableError as error:
                met: NodeError = error
                until, outdated_since = "waiting for it", None
            except _OutdatedError as error:
                outdated_since = now if outdated_since is None else outdated_since
                if now - outdated_since >= _MIGRATION_PATIENCE_S:
                    raise
                met, until = error, f"waiting {_MIGRATION_PATIENCE_S:.0f} s for that"
            else:
                if told is not None:
                    log.info("the database %s is ready", self.place)
                return True
            if told is not type(met) or now - told_at >= _TELL_AGAIN_S:
                log.warning("%s; %s", met, until)
                told, told_at = type(met), now
            stop.wait(pause_s)
        return False

    def ledger_id(self) -> str:
        """The identity of this ledger, made with its tables.

        Raises
        ------
        SchemaError, UnreachableError
            Where it cannot be read.
        """
        try:
            with self.read() as session:
                return session.scalars(select(NodeRow.ledger_id)).one()
        except SQLAlchemyError as error:
            raise self.explain(error) from error

    def clock_offset_s(self) -> float:
        """The database's clock minus this machine's, in seconds.

        Raises
        ------
        SchemaError, UnreachableError
            Where it cannot be asked.
        """
        try:
            with self.read() as session:
                session.scalar(select(db_now()))  # the connection is made, the statement known
                before, began = time.time(), time.monotonic()
                there = session.scalars(select(db_now())).one()
                return there.timestamp() - before - (time.monotonic() - began) / 2
        except SQLAlchemyError as error:
            raise self.explain(error) from error

    def unsafe_settings(self) -> list[str]:
        """The server's settings with which a commit may not outlive a power cut; none in good order.

        Raises
        ------
        SchemaError, UnreachableError
            Where it cannot be asked.
        """
        if self.embedded:  # its own are set with every connection
            return []
        try:
            with self.read() as session:
                return list(session.scalars(text(postgres.UNSAFE_SETTINGS)))
        except SQLAlchemyError as error:
            raise self.explain(error) from error

    def explain(self, error: OSError | SQLAlchemyError) -> SchemaError | UnreachableError:
        """What an error of this database means, in one line; without its text, which may hold a password or a row."""
        if self.embedded or not isinstance(error, SQLAlchemyError):
            told = error.strerror if isinstance(error, OSError) else type(error).__name__
            return SchemaError(
                f"the database of database_url cannot be used ({told}); is it there, writable and a database?"
            )
        told = postgres.told(error)
        if postgres.passes(error):
            return UnreachableError(f"the database {self.place} does not answer ({told}): is the server up?")
        return SchemaError(
            f"the database {self.place} cannot be used ({told}): "
            "check database_url and database_password, and the server's roles, databases and pg_hba.conf"
        )

    def close(self) -> None:
        """All connections are closed."""
        self.engine.dispose()


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite database; None for other databases.

    Raises
    ------
    SchemaError
        Where it would be in memory, where no second process can see it.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() != "sqlite":
        return None
    if not parsed.database or parsed.database == ":memory:":
        raise SchemaError("database_url names no file; the node's processes share the ledger, it cannot be in memory")
    return Path(parsed.database)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: the port is no number
        raise _unusable_url(error) from error
    backend = parsed.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return postgres.with_driver(parsed)
    if backend != "sqlite":
        raise _unusable_url(ArgumentError())
    return parsed


def _unusable_url(error: Exception) -> SchemaError:
    return SchemaError(
        f"database_url cannot be used ({type(error).__name__}); "
        "examples: sqlite:///cxr-node/ledger.sqlite, postgresql://USER@HOST/NAME"
    )


def _alembic() -> Config:
    spec = importlib.util.find_spec("migrations")
    if spec is None or not spec.submodule_search_locations:
        raise SchemaError("the package `migrations` is not installed beside `dicom_node`")
    config = Config()
    config.set_main_option("script_location", str(spec.submodule_search_locations[0]).replace("%", "%%"))
    return config


def _tell_revision(*, step: MigrationInfo, **_: Any) -> None:
    made = step.up_revision
    if made is not None:
        log.info("the ledger's schema is now %s: %s", made.revision, str(getattr(made, "doc", "")).rstrip("."))


def _tune_sqlite(engine: Engine) -> None:
    """WAL: readers never block. FULL: a commit survives a power cut. BEGIN is ours: the driver would begin too late."""

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A writer takes the lock at once: upgrading a read transaction would fail instead of wait.
        immediate = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
