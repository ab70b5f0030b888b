"""The engine under the ledger: one transaction form, one durability, migrations."""

from __future__ import annotations

import importlib.util
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session

from dicom_node.domain import NodeError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BUSY_TIMEOUT_S = 5.0


class SchemaError(NodeError):
    """The database cannot be used, or is not at the schema of this code."""

    reason = "schema"


class Database:
    """Connections to the ledger's database; opens nothing before the first transaction."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            if _parse(url).get_backend_name() == "sqlite":
                self.engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S})
                _tune_sqlite(self.engine)
            else:
                self.engine = create_engine(url, pool_pre_ping=True)
        except (ArgumentError, ImportError) as error:  # an unknown database, or its driver is not installed
            raise _unusable_url(error) from error

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is committed, durably, when the block ends without an exception."""
        engine = self.engine.execution_options(write=True)
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent view; never waits for a writer on SQLite in WAL mode."""
        with Session(self.engine) as session:
            yield session

    def upgrade(self) -> None:
        """The schema is that of this code."""
        try:
            if (file := sqlite_file(self.url)) is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
            command.upgrade(_alembic(self.url), "head")
        except (OSError, SQLAlchemyError) as error:
            raise _unusable(error) from error

    def check_schema(self) -> None:
        """Refuse a database that was not upgraded.

        Raises
        ------
        SchemaError
            Saying what is there and what is wanted.
        """
        if (file := sqlite_file(self.url)) is not None and not file.exists():
            raise SchemaError(f"there is no ledger {file} yet: start `dicom-node up` once")
        wanted = ScriptDirectory.from_config(_alembic(self.url)).get_current_head()
        try:
            with self.engine.connect() as connection:
                found = MigrationContext.configure(connection).get_current_revision()
        except SQLAlchemyError as error:
            raise _unusable(error) from error
        if found != wanted:
            raise SchemaError(
                f"the ledger's schema is {found or 'empty'}, this version needs {wanted}: start `dicom-node up` once"
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
        return make_url(url)
    except ArgumentError as error:
        raise _unusable_url(error) from error


def _unusable_url(error: Exception) -> SchemaError:
    return SchemaError(
        f"database_url cannot be used ({type(error).__name__}); an example: sqlite:///cxr-node/ledger.sqlite"
    )


def _unusable(error: Exception) -> SchemaError:
    """The error without its text, which may hold a password or a row."""
    told = error.strerror if isinstance(error, OSError) else type(error).__name__
    return SchemaError(f"the database of database_url cannot be used ({told}); is it there, writable and a database?")


def _alembic(url: str) -> Config:
    spec = importlib.util.find_spec("migrations")
    if spec is None or not spec.submodule_search_locations:
        raise SchemaError("the package `migrations` is not installed beside `dicom_node`")
    config = Config()
    config.set_main_option("script_location", str(spec.submodule_search_locations[0]).replace("%", "%%"))
    config.attributes["url"] = url
    return config


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
