"""Children that are kept alive: each is one command, started again with growing pauses when it dies.

The parent's death ends them (PR_SET_PDEATHSIG), whatever killed it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from typing import IO, TYPE_CHECKING

from dicom_node.process import dying_with_this_process
from dicom_node.roles import READY, StartError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 15.0
_TOLD = 2  # exit status of a command that has said what is wrong
_SHORTEST_PAUSE_S, _DOUBLINGS = 0.5, 5
_STEADY_AFTER_S = 60.0
_POLL_S = 0.2
_READY_POLL_S = 0.05


class Child:
    """One role's process; `environment` goes over this process's own."""

    def __init__(self, role: str, config: Path | None, environment: Mapping[str, str] | None = None) -> None:
        self.role = role
        self._environment = os.environ | dict(environment or {})
        self._command = [sys.executable, "-m", "dicom_node"]
        if config is not None:
            self._command += ["--config", str(config)]
        self._command += ["role", role]
        self._deaths = 0
        self._started_at = self._start_again_at = 0.0
        self.ready = threading.Event()
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """The process runs; `ready` is set when it says so."""
        self.ready.clear()
        self._started_at = time.monotonic()
        self.process = subprocess.Popen(
            dying_with_this_process(self._command), stdout=subprocess.PIPE, text=True, env=self._environment
        )
        assert self.process.stdout is not None  # noqa: S101 - PIPE was asked for
        threading.Thread(target=self._wait_ready, args=(self.process.stdout,), daemon=True).start()

    def _wait_ready(self, output: IO[str]) -> None:
        for line in output:
            if line.strip() == READY:
                self.ready.set()

    def keep_alive(self) -> None:
        """A dead process is started again, after a pause that doubles with every death."""
        if self.process is None or self.process.poll() is None:
            return
        now = time.monotonic()
        if not self._start_again_at:
            if now - self._started_at > _STEADY_AFTER_S:
                self._deaths = 0
            pause_s = _SHORTEST_PAUSE_S * 2 ** min(self._deaths, _DOUBLINGS)
            self._deaths += 1
            self._start_again_at = now + pause_s
            log.error("%s ended with status %s; it starts again in %.1f s", self.role, self.process.returncode, pause_s)
        elif now >= self._start_again_at:
            self._start_again_at = 0.0
            self.start()


def await_ready(children: Sequence[Child], stop: threading.Event, timeout_s: float | None) -> bool:
    """Whether every role is ready; False where the parent was told to stop first.

    Raises
    ------
    StartError
        Where a role ended, or was not ready in time; its own message stands in the log.
    """
    give_up_at = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
    while not all(child.ready.is_set() for child in children):
        if stop.wait(_READY_POLL_S):
            return False
        for child in children:
            status = child.process.poll() if child.process is not None else None
            if status == _TOLD:
                raise StartError  # the role's own line says it all
            if status is not None or time.monotonic() > give_up_at:
                raise StartError(f"the role {child.role} did not start; its message stands above")
    return True


def keep_alive(children: Sequence[Child], stop: threading.Event) -> None:
    """The children run until `stop` is set."""
    while not stop.wait(_POLL_S):
        for child in children:
            child.keep_alive()


def end(children: Sequence[Child], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Every child has ended: by SIGTERM, or by SIGKILL after the time limit."""
    processes = [child.process for child in children if child.process is not None]
    for process in processes:
        process.terminate()
    give_up_at = time.monotonic() + timeout_s
    for process in processes:
        try:
            process.wait(max(0.1, give_up_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
