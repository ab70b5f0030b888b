"""Children that never outlive the process that started them, however it ends (Linux).

A child of our own calls `die_with_parent` first; a foreign program is started as `dying_with_this_process(command)`,
which runs this file as a launcher: no code of ours between fork and exec in a process that has threads.
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


def die_with_parent(signal_number: int = signal.SIGKILL, *, parent_pid: int | None = None) -> None:
    """From now on this process gets the signal when its parent ends; call it in the child, before anything else.

    The kernel counts the *thread* that started the child as the parent: start such a child from a thread that lives
    as long as the child should. The setting survives exec. Elsewhere than on Linux nothing happens.

    Parameters
    ----------
    parent_pid
        Who the parent should be. A parent that was gone before this call sends no signal any more, so where the
        parent is another one by now, the signal is raised here. Without it that is taken to have happened where
        process 1 is the parent, which is wrong for a child of a container's first process: give it.

    Raises
    ------
    OSError
        Where the kernel refuses.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal_number), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    orphaned = os.getppid() == 1 if parent_pid is None else os.getppid() != parent_pid
    if orphaned:
        os.kill(os.getpid(), signal_number)


def dying_with_this_process(command: Sequence[str]) -> list[str]:
    """The command, wrapped so that its process is killed when this one ends.

    The process id stays the same: the launcher becomes the command.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


if __name__ == "__main__":
    die_with_parent(parent_pid=int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  the caller's own argument list, no shell
