"""Write-once files of received and produced objects.

A file is named by the SHA-256 of its content, never by received text (PS3.10 leaves names to us; a received UID may
be ``../../x``), so that storing the same bytes twice is one file and a crash leaves nothing that a repeat cannot use.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

_INCOMING = "incoming"


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """Where a stored file lies, relative to the archive's root, and what it holds."""

    path: str
    sha256: str
    size_bytes: int


class Archive:
    """The folder `root`; created where it does not exist."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / _INCOMING
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

    def clear_incoming(self) -> int:
        """Remove what a killed process had begun to write; only when nothing else writes. Returns the count."""
        leftovers = list(self._incoming.iterdir())
        for leftover in leftovers:
            leftover.unlink()
        return len(leftovers)


def sync_folder(folder: Path) -> None:
    """The folder's entries are on the disk: a file is durable only with its name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
