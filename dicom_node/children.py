"""Child processes that can be killed: each answers one call at a time, within a time and within a memory limit.

A call that loops for ever in C, that asks for all of the memory or that crashes costs its own child and nothing else:
the next child is forked within milliseconds by `dicom_node.fork_server`. Nothing outlives the parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, Future
from itertools import count
from multiprocessing import Pipe
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from dicom_node import fork_server
from dicom_node.domain import DecoderError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

_Result = TypeVar("_Result")
_START_TIMEOUT_S = 60.0  # of the server's imports
_END_TIMEOUT_S = 10.0
_CALLS = 200  # of one child: what a decoder leaks goes with it
# Each child is one core's worth: the parallel loops of the libraries would only stand in each other's way.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1")
# glibc would give the memory of each image back to the kernel, and take it anew, page by page, for the next.
_KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(64 << 20), "MALLOC_TRIM_THRESHOLD_": str(32 << 20)}


class _Task(NamedTuple):
    call: bytes
    future: Future[Any]


class _EndedError(Exception):
    """The child is gone; `status` is None where that was before the call or with the server: no fault of the call's."""

    def __init__(self, status: int | None, *, late: bool) -> None:
        super().__init__(status, late)
        self.status = status
        self.late = late


class Children:
    """So many children, each with its own limits; a context manager that closes them.

    Parameters
    ----------
    timeout_s
        Longest time of one call; the child is killed after it.
    memory_bytes
        What a child may allocate beside its imports.
    preload
        Modules that are imported once, before the children are forked; ``module:function`` is called then as well. None
        may start a thread.
    """

    def __init__(self, processes: int, *, timeout_s: float, memory_bytes: int, preload: Sequence[str] = ()) -> None:
        self.processes = processes
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._server = _Server(memory_bytes, preload)
        self._threads = [threading.Thread(target=self._run, name="children", daemon=True) for _ in range(processes)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., _Result], *arguments: Any) -> Future[_Result]:
        """What the function will have returned or raised in a child; it must be importable there.

        The future fails with `DecoderError` where a limit was met (``decoder_timeout``, ``decoder_memory``), the child
        crashed (``decoder_died``) or none could be started (``decoder_start``, which is not permanent); with
        `CancelledError` where the children were closed first.
        """
        task = _Task(pickle.dumps((function, arguments), pickle.HIGHEST_PROTOCOL), Future())
        with self._lock:
            if self._closed:
                raise RuntimeError("the children are closed")
            self._tasks.put(task)
        return task.future

    def close(self) -> None:
        """Every child has ended; calls that had not returned are cancelled."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with contextlib.suppress(Empty):
            while task := self._tasks.get_nowait():
                task.future.cancel()
        self._server.close()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Children:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closed."""
        self.close()

    def _run(self) -> None:
        """One child after the other answers."""
        child = self._renewed(None)
        while (task := self._tasks.get()) is not None:
            if task.future.set_running_or_notify_cancel():
                child = self._answer(task.call, task.future, child)
            del task
            child = self._renewed(child)  # ahead of the next call
        if child is not None:
            child.close()

    def _answer(self, call: bytes, future: Future[Any], child: _Child | None) -> _Child | None:
        """The future is done; returns the child that did it."""
        try:
            for again in (True, False):
                child = child or _Child(self._server)
                try:
                    future.set_result(child.ask(call, self._timeout_s))
                except _EndedError as ended:
                    if self._closed:
                        future.set_exception(CancelledError())
                    elif ended.status is None and not ended.late and again:
                        child.close()
                        child = None
                        continue
                    else:
                        future.set_exception(self._told(ended))
                return child
        except Exception as error:
            future.set_exception(error)
        return child

    def _renewed(self, child: _Child | None) -> _Child | None:
        """A child that can be asked; None where that has to wait for the next call, which tells what is wrong."""
        if child is not None and child.worn:
            child.close()
            child = None
        if child is None and not self._closed:
            with contextlib.suppress(Exception):
                return _Child(self._server)
        return child

    def _told(self, ended: _EndedError) -> DecoderError:
        if ended.late:
            return DecoderError(
                "decoder_timeout",
                f"decoding took longer than decode_timeout_s = {self._timeout_s:g} and was ended",
                permanent=False,  # perhaps the disk was slow
            )
        if ended.status is None:
            return DecoderError(
                "decoder_start", "no process could be started to decode it; the log says why", permanent=False
            )
        if ended.status >= 0:
            return DecoderError("decoder_died", f"the process that decoded it ended with status {ended.status}")
        name = signal.strsignal(-ended.status)
        killed = ended.status == -signal.SIGKILL  # then another process may have taken the memory
        if killed:
            cause = "the kernel does that where the machine has no memory left"
        else:
            cause = f"a library may crash so at the limit decode_memory_mb = {self._memory_bytes >> 20}"
        return DecoderError("decoder_died", f"the process that decoded it died ({name}); {cause}", permanent=not killed)


class _Child:
    """One child's connection; `worn` where it shall answer no further call."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._connection, theirs = Pipe()
        self._status, status = os.pipe()
        try:
            self._number = server.fork(theirs.fileno(), status)
        finally:
            theirs.close()
            os.close(status)
        self._started = False
        self._late = False
        self._calls = 0
        self.worn = False

    def ask(self, call: bytes, timeout_s: float) -> Any:
        """What the call returned; what it raised is raised.

        Raises
        ------
        _EndedError
            The child ended, or was killed, before it had answered.
        """
        if not self._started:
            try:
                self._receive(_START_TIMEOUT_S)
            except _EndedError as ended:
                raise _EndedError(None, late=False) from ended
            self._started = True
        if self._connection.poll():  # unasked, it has nothing to say: it ended while it was idle
            raise _EndedError(None, late=False)
        self._calls += 1
        returned, value = pickle.loads(self._receive(timeout_s, call))  # noqa: S301 - from our own child
        # After a lack of memory, what is left is in pieces.
        self.worn |= self._calls >= _CALLS or isinstance(value, DecoderError)
        if not returned:
            raise value
        return value

    def _receive(self, timeout_s: float, call: bytes | None = None) -> bytes:
        timer = threading.Timer(timeout_s, self._kill)
        timer.daemon = True
        timer.start()
        try:
            if call is not None:
                self._connection.send_bytes(call)
            return self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            self.worn = True
            self._server.kill(self._number)  # or its status would never come, should it have closed its end and live
            told = os.read(self._status, fork_server.STATUS.size)
            status = fork_server.STATUS.unpack(told)[0] if told else None
            raise _EndedError(status, late=self._late) from error
        finally:
            timer.cancel()
            self.worn |= self._late

    def _kill(self) -> None:
        self._late = True
        self._server.kill(self._number)

    def close(self) -> None:
        """It has ended, or ends when it sees that nobody asks it any more."""
        self._connection.close()
        os.close(self._status)


class _Server:
    """The process that children are forked from; a dead one is started again with the next child."""

    def __init__(self, memory_bytes: int, preload: Sequence[str]) -> None:
        self._given = {
            "path": [str(entry) for entry in sys.path],
            "preload": list(preload),
            "memory_bytes": memory_bytes,
        }
        self._numbers = count()
        self._lock = threading.Lock()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        given = json.dumps(self._given)
        with theirs:
            self._process = subprocess.Popen(
                # Isolated: the folder of this package is no place to import modules from.
                [sys.executable, "-I", fork_server.__file__, str(theirs.fileno()), str(os.getpid()), given],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the parent's is for answers
                pass_fds=[theirs.fileno()],
                env=os.environ | _ONE_THREAD | _KEPT_MEMORY,
            )

    def fork(self, connection: int, status: int) -> int:
        """The number of a new child, which gets these descriptors; where there can be none, they are not used."""
        message = fork_server.MESSAGE
        with self._lock:
            number = next(self._numbers)
            for _ in range(2):
                if self._closed:
                    break
                try:
                    if self._control is None:
                        self._start()
                    assert self._control is not None  # noqa: S101 - started
                    socket.send_fds(self._control, [message.pack(fork_server.FORK, number)], [connection, status])
                    break
                except OSError:
                    self._end()
            return number

    def kill(self, number: int) -> None:
        """The child with this number is killed, if it lives."""
        with self._lock, contextlib.suppress(OSError):  # where the server is gone, so are its children
            if self._control is not None:
                self._control.send(fork_server.MESSAGE.pack(fork_server.KILL, number))

    def close(self) -> None:
        """The server and every child have ended."""
        with self._lock:
            self._closed = True
            self._end()

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
