"""Real servers for tests and for programs that kill them: PostgreSQL and Redis on free loopback ports.

Each keeps its port and its data from one `start` to the next, over a `kill` too, and dies with the process that
started it. A folder of their own is removed at the end of the `with` block; a given one stays.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import psycopg
import redis
from psycopg import sql

from dicom_node.demo.pacs import LOOPBACK, free_port
from dicom_node.process import dying_with_this_process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

_START_S = 30.0
_STOP_S = 30.0
_POLL_S = 0.02
_POSTGRES_USER = "postgres"  # who runs the server where the tests run as root, which PostgreSQL refuses
_ROLE = "cxr"
_ADMIN = "postgres"


def find_postgres() -> Path | None:
    """The folder of the newest PostgreSQL's programs: Debian's own place, else where PATH finds `postgres`."""
    found = [folder for folder in Path("/usr/lib/postgresql").glob("*/bin") if (folder / "postgres").exists()]
    if found:
        return max(found, key=lambda folder: int(re.sub(r"\D", "", folder.parent.name) or 0))
    on_path = shutil.which("postgres")
    return Path(on_path).resolve().parent if on_path else None


def find_redis() -> Path | None:
    """The program redis-server."""
    found = shutil.which("redis-server")
    return Path(found) if found else None


class _Server:
    """One process with a folder and a port."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self._own_folder = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix=f"cxr-{name}-")) if folder is None else folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.password = secrets.token_urlsafe(9) + "@/:%?# '"  # one that has to be quoted in a URL
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def start(self) -> None:
        """The server answers."""
        raise NotImplementedError

    def stop(self) -> None:
        """The server ended in order; nothing is lost."""
        self._end(signal.SIGINT)  # PostgreSQL: open connections are closed; Redis: as SIGTERM

    def kill(self) -> None:
        """The server ended as in a crash, every process of it."""
        if self._process is None:
            return
        # Stopped, it starts no child between the look at its children and its end.
        self._process.send_signal(signal.SIGSTOP)
        children = _children(self._process.pid)
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._end(signal.SIGKILL)
        _wait("the children to be gone", lambda: not any(_runs(pid) for pid in children))

    @property
    def pid(self) -> int | None:
        """The server's first process; None where it does not run."""
        return self._process.pid if self._process else None

    def _launch(self, command: Sequence[str], **arguments: Any) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **arguments)

    def _await(self, answers: Any) -> None:
        def ready() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"it ended at once: {(self.folder / 'log').read_text(errors='replace')[-2000:]}")
            return bool(answers())

        try:
            _wait("an answer", ready)
        except BaseException:
            self.kill()
            raise

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _leave(self) -> None:
        self.stop()
        if self._own_folder:
            shutil.rmtree(self.folder)


class PostgresServer(_Server):
    """A PostgreSQL cluster with a role `cxr` that logs in by password and owns its databases, and no superuser.

    Parameters
    ----------
    folder
        Where root runs the tests, the user `postgres` must be able to enter it.
    fsync
        Whether a commit survives a power cut; a kill it survives either way.
    """

    def __init__(self, folder: Path | None = None, *, fsync: bool = True, max_connections: int = 100) -> None:
        super().__init__(folder, "postgres")
        self._fsync = fsync
        self._max_connections = max_connections
        found = find_postgres()
        if found is None:
            raise RuntimeError("PostgreSQL is not installed (Debian: apt-get install postgresql)")
        self._programs = found

    def url(self, database: str = _ROLE) -> str:
        """Of a database, without a password."""
        return f"postgresql://{_ROLE}@{LOOPBACK}:{self.port}/{database}"

    def dsn(self, database: str = _ROLE) -> str:
        """Of a database, with the password."""
        return f"postgresql://{_ROLE}:{quote(self.password, safe='')}@{LOOPBACK}:{self.port}/{database}"

    def start(self) -> None:
        """The server answers; at the first start it has the role `cxr` and an empty database of that name."""
        new = not (self._data / "PG_VERSION").exists()
        if new:
            self._initialise()
        options = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": self._max_connections,
            "shared_buffers": "32MB",
            "fsync": "on" if self._fsync else "off",
            "full_page_writes": "on" if self._fsync else "off",
            "jit": "off",
        }
        flags = [flag for name, value in options.items() for flag in ("-c", f"{name}={value}")]
        command = [str(self._programs / "postgres"), "-D", str(self._data), *flags]
        if os.geteuid() == 0:
            # The kernel forgets whom to die with when the user changes: setpriv sets it afterwards.
            user = pwd.getpwnam(_POSTGRES_USER)
            ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups", "--pdeathsig=KILL"]
            command = ["setpriv", *ids, "--", *command]
        else:
            command = dying_with_this_process(command)
        self._launch(command, env=_environment(), cwd=self.folder)
        self._await(self._answers)
        if new:
            with self.admin() as admin:
                role = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(_ROLE), self.password)
                admin.execute(role)
            self.create_database(_ROLE)

    def create_database(self, name: str, template: str | None = None) -> None:
        """The role `cxr` owns a database of this name, empty or a copy of `template`, which nobody may be using."""
        create = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(
            sql.Identifier(name), sql.Identifier(_ROLE), sql.Identifier(template or "template0")
        )
        with self.admin() as admin:
            if admin.info.server_version >= 150_000:  # before, files were copied always; that is five times as fast
                create += sql.SQL(" STRATEGY file_copy")
            admin.execute(create)

    def drop_database(self, name: str) -> None:
        """The database is gone, and the connections to it."""
        with self.admin() as admin:
            admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def admin(self, database: str = _ADMIN) -> psycopg.Connection[Any]:
        """A connection of the superuser, each statement a transaction of its own."""
        return psycopg.connect(
            host=LOOPBACK,
            port=self.port,
            user=_ADMIN,
            password=self.password,
            dbname=database,
            connect_timeout=2,
            autocommit=True,
        )

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _answers(self) -> bool:
        try:
            self.admin().close()
        except psycopg.OperationalError:
            return False
        return True

    def _initialise(self) -> None:
        secret = self.folder / "password"
        secret.touch(0o600)
        secret.write_text(f"{self.password}\n")
        command = [str(self._programs / "initdb"), "-D", str(self._data), "-U", _ADMIN, "-A", "scram-sha-256"]
        command += ["--encoding=UTF8", "--no-sync", f"--pwfile={secret}"]
        arguments: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam(_POSTGRES_USER)
            for path in (self.folder, secret):
                os.chown(path, user.pw_uid, user.pw_gid)
            arguments = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": ()}
        made = subprocess.run(
            command, env=_environment(), cwd=self.folder, capture_output=True, check=False, timeout=120, **arguments
        )
        secret.unlink()
        if made.returncode != 0:
            raise RuntimeError(f"initdb: {made.stderr.decode(errors='replace')[-2000:]}")


class RedisServer(_Server):
    """A Redis that asks for a password and keeps what it has in an append-only file, written at every command."""

    def __init__(self, folder: Path | None = None, *, password: str | None = None) -> None:
        super().__init__(folder, "redis")
        if password is not None:
            self.password = password
        found = find_redis()
        if found is None:
            raise RuntimeError("Redis is not installed (Debian: apt-get install redis-server)")
        self._program = found

    @property
    def url(self) -> str:
        """Without a password."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    @property
    def dsn(self) -> str:
        """With the password."""
        return f"redis://:{quote(self.password, safe='')}@{LOOPBACK}:{self.port}/0"

    def start(self) -> None:
        """The server answers, with what it had."""
        options = {
            "bind": LOOPBACK,
            "port": str(self.port),
            "requirepass": self.password,
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "daemonize": "no",
        }
        flags = [flag for name, value in options.items() for flag in (f"--{name}", value)]
        self._launch(dying_with_this_process([str(self._program), *flags]), cwd=self.folder)
        self._await(self._answers)

    def client(self) -> redis.Redis:
        """A client; the caller closes it."""
        return redis.Redis(host=LOOPBACK, port=self.port, password=self.password, socket_connect_timeout=2)

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:  # BusyLoadingError too: it still reads its file
                return False


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C"}


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _runs(pid: int) -> bool:
    """Whether a process does anything yet; what nobody has waited for is dead all the same."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait(what: str, done: Any) -> None:
    until = time.monotonic() + _START_S
    while not done():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {_START_S:.0f} s for {what}")
        time.sleep(_POLL_S)
