"""A process shows that it lives, and one whose step hangs is ended.

A small file tells `dicom-node health` how long the process promised to need; a watchdog in C, which no code that holds
Python's lock can stop, ends the process where a step needs longer. Its leases run out, and another process goes on.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import time
from typing import TYPE_CHECKING

from dicom_node.domain import NodeError

if TYPE_CHECKING:
    from pathlib import Path

IDLE_S = 30.0  # a loop without work comes round more often than this
_MARGIN_S = 10.0
_WRITE_EVERY_S = 1.0


class UnhealthyError(NodeError):
    """A process is not there, or is late."""

    reason = "unhealthy"


class Watch:
    """The signs of life of one process in one role; `close` takes them away.

    The file is locked as long as the process lives: its number may be another's by the time that somebody looks.
    """

    def __init__(self, folder: Path, role: str, step_timeout_s: float) -> None:
        self._path = folder / f"{role}.{os.getpid()}"
        self._step_timeout_s = step_timeout_s
        self._written_at = self._good_until = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{role}.*"):
            if not _is_held(old):
                old.unlink(missing_ok=True)
        self._file = self._path.open("w+")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.rest()

    def step(self) -> None:
        """A step begins: without another step or a rest within the time limit, the process ends with a traceback."""
        faulthandler.dump_traceback_later(self._step_timeout_s, exit=True)
        self._show(self._step_timeout_s + _MARGIN_S)

    def rest(self, good_for_s: float = IDLE_S) -> None:
        """Nothing is being done; the next sign comes within `good_for_s` seconds."""
        faulthandler.cancel_dump_traceback_later()
        self._show(good_for_s)

    def close(self) -> None:
        """The process ends as it should."""
        faulthandler.cancel_dump_traceback_later()
        self._path.unlink(missing_ok=True)
        self._file.close()

    def _show(self, good_for_s: float) -> None:
        now = time.monotonic()
        if now - self._written_at < _WRITE_EVERY_S and abs(now + good_for_s - self._good_until) < _WRITE_EVERY_S:
            return
        self._written_at, self._good_until = now, now + good_for_s
        with contextlib.suppress(OSError):  # a full disk is no reason to stop
            os.pwrite(self._file.fileno(), f"{self._good_until:020.3f}".encode(), 0)


def check(folder: Path, role: str) -> str:
    """One line on the living processes of a role on this machine.

    Raises
    ------
    UnhealthyError
        Where there is none, or one of them is late.
    """
    living = [file for file in folder.glob(f"{role}.*") if _is_held(file)]
    if not living:
        raise UnhealthyError(f"no process `{role}` of this node runs on this machine (looked in {folder})")
    for file in living:
        late_s = time.monotonic() - float(file.read_text() or 0)  # the clock since boot: no jump, one a machine
        if late_s > 0:
            raise UnhealthyError(f"{role}, process {file.suffix[1:]}: a sign of life is {late_s:.0f} s overdue")
    return f"{role}: {len(living)} alive"


def _is_held(file: Path) -> bool:
    """Whether the process that wrote it lives."""
    try:
        with file.open() as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
