"""What the node's processes share: database, broker and archive, and whether they belong together."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dicom_node.archive import INCOMING, OWNER, expect_owner, sync_folder
from dicom_node.bundles import difference, find_release
from dicom_node.database import Database, sqlite_file
from dicom_node.doctor.finding import failure, failure_of, ok, warning
from dicom_node.domain import NodeError
from dicom_node.ledger import Ledger
from dicom_node.releases import Releases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dicom_node.config import Settings
    from dicom_node.doctor.finding import Finding

_BROKER_ANSWER_S = 3.0
_PROBE_BYTES = 4096
_ROOM = "make room or take a larger disk; without room every image is refused with 0xA700"
_LEFT_BEHIND_S = 3600.0  # what is being received now is younger


class Stores:
    """The checks of one examination, in the order of their names; each uses what those before it found to be well.

    Attributes
    ----------
    bundle_folder
        Where the bundle is by which the ledger screens; None before `release` has found it.
    """

    def __init__(self, settings: Settings) -> None:
        self.bundle_folder: Path | None = None
        self._settings = settings
        self._database: Database | None = None
        self._at_head = False
        self._broker_answers = False

    def close(self) -> None:
        """All connections are closed."""
        if self._database is not None:
            self._database.close()

    def database(self) -> Iterator[Finding]:
        """Whether the database of the ledger answers."""
        try:
            database = Database(self._settings.database_dsn)
            if (file := sqlite_file(database.url)) is not None:
                if not file.exists():
                    yield failure("database", f"there is no ledger {file} yet", "start `dicom-node up` once")
                    return
                if not (os.access(file, os.W_OK) and os.access(file.absolute().parent, os.W_OK)):
                    yield failure(
                        "database", f"{file} or its folder is not writable", f"give both to {_user()} (chown)"
                    )
                    return
            database.clock_offset_s()
            unsafe = database.unsafe_settings()
        except NodeError as error:
            yield failure_of("database", error, "is database_url right?")
            return
        self._database = database
        yield ok("database", f"{database.place} answers")
        if unsafe:
            yield warning(
                "database",
                f"{', '.join(unsafe)} of {database.place} is off: a power cut may lose accepted images",
                "turn it on in postgresql.conf",
            )

    def schema(self) -> Iterator[Finding]:
        """Whether the migrations of this version were made."""
        if self._database is None:
            return
        remedy = "start `dicom-node up` once" if self._embedded else "run `dicom-node db upgrade`"
        try:
            self._database.check_schema()
        except NodeError as error:
            yield failure_of("schema", error, remedy)
            return
        self._at_head = True
        yield ok("schema", "the ledger is at this version's schema")

    def release(self) -> Iterator[Finding]:
        """Whether the ledger screens by a bundle that is installed here."""
        if self._database is None or not self._at_head:
            return
        active = Releases(self._database).active()
        if active is None:
            remedy = "start `dicom-node up` once" if self._embedded else "run `dicom-node db upgrade`"
            yield failure("release", "the ledger has no active release", remedy)
            return
        try:
            self.bundle_folder = find_release(active, self._settings)
        except NodeError as error:
            yield failure_of("release", error, "install that bundle, or run `dicom-node bundle use`")
            return
        screens = f"the ledger screens by {active.name} {active.release}"
        yield ok("release", difference(self._settings, active) or f"{screens}, the bundle of the settings")

    def broker(self) -> Iterator[Finding]:
        """Whether the service's broker answers; the embedded node has none."""
        settings = self._settings
        if not settings.broker_url:
            if self._embedded:
                yield ok("broker", "none is set; `dicom-node up` needs none")
            else:
                yield warning("broker", "none is set: `dicom-node up` alone can run", "for the service, set broker_url")
            return
        try:
            from dicom_node import dispatch  # of the extra `service`

            owner = dispatch.broker_owner(settings.broker_dsn)
            if owner is not None and self._at_head and self._database is not None:
                dispatch.check_broker(settings.broker_dsn, self._database.ledger_id())
        except NodeError as error:
            yield failure_of("broker", error, "is Redis started, and is broker_url right?")
            return
        self._broker_answers = True
        yield ok("broker", f"{_place(settings.broker_url)} answers")

    def archive(self) -> Iterator[Finding]:
        """Whether a file can be kept: a real one is written, synchronised and removed."""
        root = self._settings.archive_dir
        if not root.exists():
            existing = next(parent for parent in root.absolute().parents if parent.exists())
            if existing.is_dir() and os.access(existing, os.W_OK):
                yield warning("archive", f"{root} is not there yet", "the first start makes it")
            else:
                yield failure(
                    "archive", f"{root} is not there and cannot be made in {existing}", f"make it for {_user()}"
                )
            return
        if not root.is_dir():
            yield failure("archive", f"{root} is no folder", "set archive_dir to a folder, or move the file away")
            return
        try:
            _write_probe(root)
            closed = [
                folder for folder in root.iterdir() if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK)
            ]
        except OSError as error:
            remedy = (
                _ROOM if error.errno in (errno.ENOSPC, errno.EDQUOT) else "set its owner (chown), or mount it writable"
            )
            yield failure("archive", f"{root} cannot be written by {_user()} ({error.strerror})", remedy)
            return
        if closed:
            yield failure("archive", f"{closed[0]} cannot be written by {_user()}", f"give {root} to it (chown -R)")
            return
        if os.geteuid() == 0 and root.stat().st_uid != 0:
            yield warning(
                "archive", f"{root} belongs to another user than root, who may write anywhere", "run this as that user"
            )
        yield from self._space(root)
        yield from _leftovers(root)

    def _space(self, root: Path) -> Iterator[Finding]:
        least = self._settings.min_free_percent
        usage, inodes = shutil.disk_usage(root), os.statvfs(root)
        free = 100 * usage.free / usage.total if usage.total else 100.0
        free_inodes = 100 * inodes.f_favail / inodes.f_files if inodes.f_files else 100.0  # btrfs counts none
        told = f"{free:.1f} % ({usage.free / 2**30:.1f} GiB) of its disk is free"
        if free < least:
            yield failure("archive", f"{root}: only {told}, less than min_free_percent = {least:g}", _ROOM)
        elif free_inodes < least:
            yield failure("archive", f"{root}: only {free_inodes:.1f} % of its disk's inodes are free", _ROOM)
        else:
            yield ok("archive", f"{root} takes files; {told}")

    def owner(self) -> Iterator[Finding]:
        """Whether the archive holds the files of this ledger."""
        root = self._settings.archive_dir
        if self._database is None or not self._at_head:
            return
        if root.exists() and not root.is_dir():
            return  # `archive` says so
        if not (root / OWNER).exists():  # nobody has claimed it yet: the next start does
            if Ledger(self._database).has_files() and not any(root.glob("??/*")):
                yield failure(
                    "archive owner",
                    f"{root} is empty, but the ledger has files in it",
                    "mount or restore the archive before the node starts",
                )
            return
        try:
            expect_owner(root, self._database.ledger_id())
        except NodeError as error:
            yield failure_of("archive owner", error, f"see {root / OWNER}")
        except OSError as error:
            yield failure("archive owner", f"{root / OWNER} cannot be read ({error.strerror})", "set its owner (chown)")
        else:
            yield ok("archive owner", "the archive is that of this database")

    def clock_offsets_s(self, now: Callable[[], float]) -> dict[str, float]:
        """Seconds by which each server's clock is ahead of this machine's, of those that answer."""
        offsets = {}
        if self._database is not None:
            offsets["database"] = self._database.clock_offset_s()
        if self._broker_answers:
            import redis

            with redis.Redis.from_url(
                self._settings.broker_dsn,
                socket_connect_timeout=_BROKER_ANSWER_S,
                socket_timeout=_BROKER_ANSWER_S,
                retry=None,
            ) as client:
                client.ping()  # the connection is made before time is taken
                before, began = now(), time.monotonic()
                seconds, microseconds = client.time()
                offsets["broker"] = seconds + microseconds / 1e6 - before - (time.monotonic() - began) / 2
        return offsets

    @property
    def _embedded(self) -> bool:
        return self._settings.database_url.startswith("sqlite:") and not self._settings.broker_url


def _place(url: str) -> str:
    """Host, port and name of a server's URL, without user and password."""
    parts = urlsplit(url)
    return f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's
        return f"UID {os.geteuid()}"


def _write_probe(root: Path) -> None:
    handle, name = tempfile.mkstemp(prefix=".doctor-", dir=root)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        Path(name).unlink(missing_ok=True)
    sync_folder(root)


def _leftovers(root: Path) -> Iterator[Finding]:
    """Files that a killed process had begun to write; `dicom-node up` removes them, the service cannot know."""
    oldest = time.time() - _LEFT_BEHIND_S
    incoming = root / INCOMING
    left = 0
    for file in incoming.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # it was received meanwhile
            left += file.stat().st_mtime < oldest
    if left:
        yield warning(
            "archive",
            f"{incoming} holds {left} files that were never finished",
            f"delete those older than an hour (find {incoming} -type f -mmin +60 -delete)",
        )
