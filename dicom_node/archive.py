"""Write-once files of received and produced objects.

A file is named by the SHA-256 of its content, never by received text (PS3.10 leaves names to us; a received UID may
be ``../../x``), so that storing the same bytes twice is one file and a crash leaves nothing that a repeat cannot use.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dicom_node.domain import NodeError, ObjectKind

INCOMING = "incoming"
OWNER = "ledger.json"


class ForeignArchiveError(NodeError):
    """The archive holds the files of another ledger."""

    reason = "archive"


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """Where a stored file lies, relative to the archive's root, and what it holds."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Product:
    """A DICOM object of ours in the archive."""

    kind: ObjectKind
    sop_class_uid: str
    sop_instance_uid: str
    file: ArchivedFile


class Archive:
    """The folder `root`; created where it does not exist."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / INCOMING
        self._incoming.mkdir(parents=True, exist_ok=True)
        for number in range(256):
            (root / f"{number:02x}").mkdir(exist_ok=True)
        sync_folder(root)

    def store(self, content: bytes, suffix: str = ".dcm") -> ArchivedFile:
        """The content is on the disk under its digest, file and folder entry both synchronised.

        Raises
        ------
        OSError
            Where the disk is full or read-only; nothing half-written is left behind.
        """
        digest = hashlib.sha256(content).hexdigest()
        relative = f"{digest[:2]}/{digest}{suffix}"
        final = self._root / relative
        handle, temporary = tempfile.mkstemp(dir=self._incoming)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(final)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise
        sync_folder(final.parent)
        return ArchivedFile(relative, digest, len(content))

    def locate(self, relative: str) -> Path:
        """Path of a stored file."""
        return self._root / relative

    def belongs_to(self, ledger_id: str, *, has_files: bool) -> None:
        """The archive is that ledger's from now on; `has_files` says that the ledger knows of files in it.

        Raises
        ------
        ForeignArchiveError
            Where it is another's, or empty though it should not be.
        """
        if owner_of(self._root) is None:
            if has_files and not any(self._root.glob("[0-9a-f][0-9a-f]/*")):
                raise ForeignArchiveError(
                    f"the archive {self._root} is empty, but the ledger has files in it: is it mounted? Mount or "
                    f'restore it; to go on without them, write {{"ledger_id": "{ledger_id}"}} to {self._root / OWNER}'
                )
            self._take_for(ledger_id)
        expect_owner(self._root, ledger_id)

    def _take_for(self, ledger_id: str) -> None:
        """The first of several that do this at the same time has it, and nobody ever sees half a file."""
        handle, temporary = tempfile.mkstemp(dir=self._incoming)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(json.dumps({"ledger_id": ledger_id}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            with contextlib.suppress(FileExistsError):
                os.link(temporary, self._root / OWNER)
        finally:
            Path(temporary).unlink(missing_ok=True)
        sync_folder(self._root)

    def clear_incoming(self) -> int:
        """Remove what a killed process had begun to write; only when nothing else writes. Returns the count."""
        leftovers = list(self._incoming.iterdir())
        for leftover in leftovers:
            leftover.unlink()
        return len(leftovers)


def expect_owner(root: Path, ledger_id: str) -> None:
    """The archive in `root` is that ledger's; nothing is made or written.

    Raises
    ------
    ForeignArchiveError
        Where it is another's, or says not whose.
    """
    if (owner := owner_of(root)) != ledger_id:
        raise ForeignArchiveError(
            f"the archive {root} belongs to ledger {owner}, the database is ledger {ledger_id}: give each "
            f"node an archive_dir and a database of its own; after a restore, delete {root / OWNER}"
        )


def owner_of(root: Path) -> str | None:
    """The ledger whose files these are; None where nobody has said so yet."""
    try:
        return str(json.loads((root / OWNER).read_text())["ledger_id"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ForeignArchiveError(f"{root / OWNER} cannot be read; it names the ledger of the files") from error


def sync_folder(folder: Path) -> None:
    """The folder's entries are on the disk: a file is durable only with its name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
