"""A process shows that it lives, and one whose step hangs is ended.

A small file tells `dicom-node health` how long the process promised to need; a watchdog in C, which no code that holds
Python's lock can stop, ends the process where a step needs longer. Its leases run out, and another process goes on.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
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
    """The signs of life of one process in one role; `close` takes them away."""

    def __init__(self, folder: Path, role: str, step_timeout_s: float) -> None:
        self._file = folder / f"{role}.{os.getpid()}"
        self._step_timeout_s = step_timeout_s
        self._written_at = self._good_until = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        for old in _files(folder, role):
            if not _alive(old):
                old.unlink(missing_ok=True)
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
        self._file.unlink(missing_ok=True)

    def _show(self, good_for_s: float) -> None:
        now = time.monotonic()
        if now - self._written_at < _WRITE_EVERY_S and abs(now + good_for_s - self._good_until) < _WRITE_EVERY_S:
            return
        self._written_at, self._good_until = now, now + good_for_s
        with contextlib.suppress(OSError):  # a full disk is no reason to stop
            fresh = self._file.with_name(self._file.name + ".new")
            fresh.write_text(json.dumps(self._good_until))
            fresh.replace(self._file)


def check(folder: Path, role: str) -> str:
    """One line on the living processes of a role on this machine.

    Raises
    ------
    UnhealthyError
        Where there is none, or one of them is late.
    """
    living = [file for file in _files(folder, role) if _alive(file)]
    if not living:
        raise UnhealthyError(f"no process `{role}` of this node runs on this machine (looked in {folder})")
    for file in living:
        late_s = time.monotonic() - float(json.loads(file.read_text()))  # the clock since boot: no jump, one a machine
        if late_s > 0:
            raise UnhealthyError(f"{role}, process {_pid(file)}: a sign of life is {late_s:.0f} s overdue")
    return f"{role}: {len(living)} alive"


def _files(folder: Path, role: str) -> list[Path]:
    return [file for file in folder.glob(f"{role}.*") if file.suffix[1:].isdigit()]


def _pid(file: Path) -> int:
    return int(file.suffix[1:])


def _alive(file: Path) -> bool:
    try:
        os.kill(_pid(file), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
