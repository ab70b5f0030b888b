"""Children that never outlive the process that started them, however it ends (Linux).

A command is started as `dying_with_this_process(command)`, which runs this file as a launcher: no code of ours runs
between fork and exec in a process that has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def dying_with_this_process(command: Sequence[str]) -> list[str]:
    """The command, wrapped so that its process is killed when this one ends.

    The process id stays the same: the launcher becomes the command. The kernel counts the *thread* that started the
    child as its parent: start it from a thread that lives as long as the child should.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def die_with_parent(parent_pid: int) -> None:
    """From now on SIGKILL comes when the parent ends; the setting survives exec.

    A parent that was gone before sends no signal any more: where another process is the parent by now, this one ends.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  the caller's own argument list, no shell
