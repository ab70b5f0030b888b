"""The process that `dicom_node.children` forks from: it holds their imports and nothing else, no thread and no GPU.

Its parent runs this file, and asks it on a socket to fork a child or to kill one. It ends, and every child with it,
when its parent does. multiprocessing has such a server too: it imports the parent's main module again, and lives as
long as any of its children.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pickle
import resource
import select
import signal
import socket
import struct
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

# A number is the parent's name for a child; a pid could be somebody else's by the time that it is told to be killed.
MESSAGE = struct.Struct("=cQ")
FORK, KILL = b"F", b"K"
STATUS = struct.Struct("=i")
_ORPHANED_AFTER_S = 1.0


def serve(control: socket.socket, parent_pid: int, memory_bytes: int) -> None:
    """Fork and kill as told, until the parent ends or closes the socket; no child is left then.

    With the request for a child come two descriptors: the child's end of its connection, and a pipe that gets its exit
    status (as `Popen.returncode` has it) when it has ended.
    """
    own_pid = os.getpid()
    running: dict[int, tuple[int, int]] = {}  # pid: number, descriptor of its status pipe
    woken, wakes = socket.socketpair()
    for end in (woken, wakes):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.fileno())
    # A process that forked from the parent may hold the socket open: then only the parent's pid tells.
    while os.getppid() == parent_pid:
        readable, _, _ = select.select([control, woken], [], [], _ORPHANED_AFTER_S)
        if woken in readable:
            woken.recv(4096)
            _reap(running)
        if control not in readable:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE.size, 2)
        if not message:
            break
        order, number = MESSAGE.unpack(message)
        if order == FORK:
            connection, status = descriptors
            try:
                pid = os.fork()
            except OSError:  # no memory, no process left: the parent sees the end of both descriptors
                os.close(status)
            else:
                if pid == 0:
                    for inherited in (status, *(held for _, held in running.values())):
                        os.close(inherited)
                    control.close()
                    _be_a_child(Connection(connection), parent_pid=own_pid, memory_bytes=memory_bytes)
                running[pid] = number, status
            os.close(connection)
        for pid, (name, _) in running.items():
            if order == KILL and name == number:
                os.kill(pid, signal.SIGKILL)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    for pid in running:
        os.waitpid(pid, 0)


def _reap(running: dict[int, tuple[int, int]]) -> None:
    """The status of every child that has ended is told."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        _, pipe = running.pop(pid)
        with contextlib.suppress(BrokenPipeError):  # nobody wants to know
            os.write(pipe, STATUS.pack(os.waitstatus_to_exitcode(status)))
        os.close(pipe)


def _be_a_child(connection: Connection, *, parent_pid: int, memory_bytes: int) -> NoReturn:
    """Answer calls until the connection ends; nothing returns from here into the server's loop."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        from dicom_node.process import die_with_parent  # the parent's path leads to it by now

        die_with_parent(parent_pid)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold the patient's image
        _limit_memory(memory_bytes)
        with contextlib.suppress(EOFError, BrokenPipeError):  # nobody asks any more
            connection.send_bytes(b"")
            while True:
                connection.send_bytes(_answer(connection.recv_bytes(), memory_bytes))
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def _limit_memory(more_bytes: int) -> None:
    """The address space may grow by so much and no further."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _answer(call: bytes, memory_bytes: int) -> bytes:
    """Whether the pickled call returned, and what it returned or raised, pickled."""
    from dicom_node.domain import DecoderError

    try:
        function, arguments = pickle.loads(call)  # noqa: S301 - the parent's own
        return pickle.dumps((True, function(*arguments)), pickle.HIGHEST_PROTOCOL)
    except MemoryError:  # left behind with the arrays that its traceback holds
        message = f"decoding needs more memory than decode_memory_mb = {memory_bytes >> 20}"
        return pickle.dumps((False, DecoderError("decoder_memory", message)))
    except Exception as error:
        return _raised(error)


def _raised(error: Exception) -> bytes:
    """The error pickled with a note on where it was raised; one that does not survive it, told by type and place."""
    from dicom_node.domain import place_of

    error.add_note(f"in a child: {place_of(error)}")
    try:
        told = pickle.dumps((False, error))
        pickle.loads(told)  # noqa: S301 - as above
    except Exception:
        return pickle.dumps((False, RuntimeError(place_of(error))))
    return told


def main(descriptor: int, parent_pid: int, given: dict[str, Any]) -> None:
    """`given`: the parent's path, what to import before the first fork, and each child's memory in bytes.

    After a colon stands a function of the module that is called then.
    """
    # The parent alone decides: it finishes the image at hand when the terminal or the service manager tells all to stop
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.path[:] = given["path"]
    for entry in ("dicom_node.process", "dicom_node.domain", *given["preload"]):
        module, _, function = entry.partition(":")
        imported = importlib.import_module(module)
        if function:
            getattr(imported, function)()
    gc.freeze()  # a collection would touch, and so copy, the pages that all children share
    with socket.socket(fileno=descriptor) as control:
        serve(control, parent_pid, given["memory_bytes"])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
