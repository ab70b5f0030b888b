"""What is PostgreSQL's own about the ledger's database: how it is reached, and what its errors mean."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError, TimeoutError  # noqa: A004 - SQLAlchemy's name

if TYPE_CHECKING:
    from sqlalchemy import URL

_CONNECT_TIMEOUT_S = 5
_DEAD_PEER_S = 20  # a connection whose other end vanished without a word is given up after that
_PORT = 5432

POOL: dict[str, Any] = {
    "pool_pre_ping": True,  # a restarted server costs the next transaction nothing
    "pool_size": 5,
    "max_overflow": 15,
    "pool_timeout": 10,
    "pool_recycle": 1800,
    "pool_use_lifo": True,
}
_NODE_LIMITS_MS = {
    "statement_timeout": 30_000,
    "lock_timeout": 10_000,
    "idle_in_transaction_session_timeout": 60_000,
}
# A statement that waits for a table makes all later ones wait behind it: a migration must not wait long.
_MIGRATION_LIMITS_MS = {"statement_timeout": 0, "lock_timeout": 2_000, "idle_in_transaction_session_timeout": 0}

# psycopg 3 knows no SQLSTATE of what went wrong while it connected: there is only the text of server and libpq. What
# is not in this list is waited for, so that a text in another language costs patience and not the node.
_LASTING = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "no pg_hba.conf entry",
    "pg_hba.conf rejects",
    "permission denied for database",
    "not permitted to log in",
    "does not support SSL",
    "certificate verify failed",
    "unrecognized configuration parameter",
)
# Classes and codes of SQLSTATE that a server in good health does not know a moment later (PostgreSQL, appendix A).
_PASSING = ("08", "40", "53", "55P03", "57", "25006")
LOCK_NOT_AVAILABLE = "55P03"
UNSAFE_SETTINGS = (
    "SELECT name FROM pg_settings WHERE setting = 'off' "
    "AND name IN ('fsync', 'full_page_writes', 'synchronous_commit') ORDER BY name"
)


def with_driver(url: URL) -> URL:
    """The URL for psycopg 3, whatever driver it names or leaves out."""
    return url.set(drivername="postgresql+psycopg")


def place(url: URL) -> str:
    """``host:port/name``, which may be told anywhere."""
    return f"{url.host or 'localhost'}:{url.port or _PORT}/{url.database or url.username or ''}"


def connect_arguments(url: URL, *, migrating: bool = False) -> dict[str, Any]:
    """How the server is connected to: nothing waits for ever. What the URL itself asks for goes before."""
    limits = _MIGRATION_LIMITS_MS if migrating else _NODE_LIMITS_MS
    options = " ".join(f"-c {name}={value}" for name, value in {**limits, "timezone": "UTC"}.items())
    ours = {
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "keepalives": 1,
        "keepalives_idle": _DEAD_PEER_S // 2,
        "keepalives_interval": _DEAD_PEER_S // 4,
        "keepalives_count": 2,
        "tcp_user_timeout": _DEAD_PEER_S * 1000,
        "application_name": "dicom-node",
    }
    asked = url.query.get("options", "")
    options += f" {asked}" if isinstance(asked, str) and asked else ""
    return {name: value for name, value in ours.items() if name not in url.query} | {"options": options}


def lock_key(name: str) -> int:
    """The advisory lock of this name; 64 bits, signed, as PostgreSQL numbers them."""
    digest = hashlib.sha256(f"cxr-dicom-node {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def passes(error: SQLAlchemyError) -> bool:
    """Whether waiting may cure the error: the server is down, starting, full or busy."""
    if isinstance(error, TimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if (code := sqlstate(error)) is not None:
        return code.startswith(_PASSING)
    return isinstance(error, OperationalError) and not any(text in str(error.orig) for text in _LASTING)


def told(error: SQLAlchemyError) -> str:
    """What went wrong, in few words: the server's own where they are about the connection, which name no data."""
    if isinstance(error, TimeoutError):
        return "all connections are in use"
    if not isinstance(error, DBAPIError):
        return type(error).__name__
    if sqlstate(error) is not None or not isinstance(error, OperationalError):
        return type(error.orig).__name__
    lines = [line for line in str(error.orig).splitlines() if line and not line.startswith(("\t", "DETAIL"))]
    chosen = next((line for line in lines if any(text in line for text in _LASTING)), lines[-1] if lines else "")
    return " ".join(chosen.rpartition(" failed: ")[2].removeprefix("FATAL:").split())[:200]


def sqlstate(error: DBAPIError) -> str | None:
    """The error's code, where the server gave one."""
    return getattr(error.orig, "sqlstate", None)
