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
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session

from dicom_node.domain import NodeError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BUSY_TIMEOUT_S = 5.0


class SchemaError(NodeError):
    """The database is not at the schema of this code."""

    reason = "schema"


class Database:
    """Connections to the ledger's database; opens nothing before the first transaction."""

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise SchemaError(
                "database_url is not a SQLAlchemy URL, such as sqlite:///cxr-node/ledger.sqlite"
            ) from error
        self.url = url
        if parsed.get_backend_name() == "sqlite":
            self.engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S})
            _tune_sqlite(self.engine)
        else:
            self.engine = create_engine(url, pool_pre_ping=True)

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
        folder = _sqlite_folder(self.url)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        command.upgrade(_alembic(self.url), "head")

    def check_schema(self) -> None:
        """Refuse a database that was not upgraded.

        Raises
        ------
        SchemaError
            Saying what is there and what is wanted.
        """
        folder = _sqlite_folder(self.url)
        if folder is not None and not folder.is_dir():
            raise SchemaError(f"there is no ledger in {folder} yet: start `dicom-node up` once")
        wanted = ScriptDirectory.from_config(_alembic(self.url)).get_current_head()
        with self.engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        if found != wanted:
            raise SchemaError(
                f"the ledger's schema is {found or 'empty'}, this version needs {wanted}: start `dicom-node up` once"
            )

    def close(self) -> None:
        """All connections are closed."""
        self.engine.dispose()


def _sqlite_folder(url: str) -> Path | None:
    parsed = make_url(url)
    on_disk = parsed.get_backend_name() == "sqlite" and parsed.database
    return Path(parsed.database).parent if on_disk and parsed.database else None


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
