"""Calls that hang, crash or ask for too much cost their own child and nothing else."""

import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from dicom_node.children import Children
from dicom_node.domain import DeclinedByPixelsError, DeclineReason, DecoderError, DeliveryError, PixelError

MEMORY = 256 << 20
ENDLESS = 10**9  # whose factorial is computed in one call of C, which holds the interpreter's lock


@pytest.fixture
def children():
    with Children(1, timeout_s=60, memory_bytes=MEMORY, preload=(__name__,)) as found:
        yield found


@pytest.fixture
def impatient():
    with Children(1, timeout_s=0.5, memory_bytes=MEMORY, preload=(__name__,)) as found:
        yield found


def gone(pid, within_s=10):
    """Whether the process has ended, or ends in time."""
    give_up_at = time.monotonic() + within_s
    while time.monotonic() < give_up_at:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def pid_and(function, *arguments):
    """The pid is told through a file, for the function does not return."""
    file, *rest = arguments
    part = Path(f"{file}.part")
    part.write_text(str(os.getpid()))
    part.rename(file)
    return function(*rest)


def meet(folder, name, others):
    """Return when so many calls run at once."""
    (folder / name).touch()
    while len(list(folder.iterdir())) < others:
        time.sleep(0.01)
    return os.getpid()


def crash():
    import ctypes

    return ctypes.string_at(0)


def raise_it(error):
    raise error


class StubbornError(Exception):
    def __init__(self, one, two):
        super().__init__("John Doe")


def refusal(future):
    error = future.exception(timeout=60)
    assert isinstance(error, DecoderError)
    assert isinstance(error, PixelError)
    return error


def test_a_call_is_answered_by_another_process_without_torch(children):
    assert children.submit(os.getpid).result() != os.getpid()
    assert children.submit(divmod, 17, 5).result() == (3, 2)
    found = children.submit(np.arange, 300_000).result()
    np.testing.assert_array_equal(found, np.arange(300_000))
    assert children.submit(eval, "'torch' in __import__('sys').modules").result() is False


def test_one_child_answers_many_calls_and_is_replaced_before_it_grows_old(children, monkeypatch):
    monkeypatch.setattr("dicom_node.children._CALLS", 3)
    pids = [children.submit(os.getpid).result() for _ in range(7)]
    assert [pids.index(pid) for pid in pids] == [0, 0, 0, 3, 3, 3, 6]


@pytest.mark.parametrize("call", [(math.factorial, ENDLESS), (time.sleep, 60)])
def test_what_never_ends_is_killed_and_the_next_call_is_on_time(impatient, tmp_path, call):
    late, after = impatient.submit(pid_and, call[0], tmp_path / "pid", call[1]), impatient.submit(os.getpid)
    error = refusal(late)
    assert error.reason == "decoder_timeout"
    assert "decode_timeout_s = 0.5" in str(error)
    assert not error.permanent, "once may be chance"
    assert after.result() != os.getpid()
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("call", [(bytearray, 1 << 30), (np.ones, 1 << 27), (eval, "[0] * (1 << 28)")])
def test_what_asks_for_too_much_memory_gets_none(children, call):
    first = children.submit(os.getpid).result()
    error = refusal(children.submit(*call))
    assert error.reason == "decoder_memory"
    assert "decode_memory_mb = 256" in str(error)
    assert error.permanent
    assert children.submit(os.getpid).result() != first
    assert len(children.submit(bytes, 64 << 20).result()) == 64 << 20


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ((crash,), "Segmentation fault"),
        ((os.abort,), "Aborted"),
        ((signal.raise_signal, signal.SIGKILL), "Killed"),
        ((signal.raise_signal, signal.SIGRTMAX), "Real-time signal"),
        ((os._exit, 3), "status 3"),
        ((os._exit, 0), "status 0"),
        ((sys.exit, 4), "status 1"),
        ((eval, "[__import__('os').closerange(3, 256), __import__('time').sleep(60)]"), "Killed"),
    ],
)
def test_a_child_that_dies_says_of_what_and_the_next_call_is_answered(children, call, named):
    died, after = children.submit(*call), children.submit(os.getpid)
    error = refusal(died)
    assert error.reason == "decoder_died"
    assert named in str(error)
    assert after.result() != os.getpid()


def test_a_crash_leaves_no_core_that_would_hold_the_image(children):
    assert children.submit(eval, "__import__('resource').getrlimit(4)").result() == (0, 0)


@pytest.mark.parametrize(
    "error",
    [
        PixelError("pixels_missing", "(7FE0,0010) PixelData is missing"),
        DeclinedByPixelsError(DeclineReason.CONSTANT, "all pixels have one value"),
        DecoderError("decoder_start", "no process", permanent=False),
        DeliveryError("refused", permanent=False, status=0xA700),
        FileNotFoundError(2, "No such file", "chest.dcm"),
        RecursionError("deep"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_call_raises_comes_back_as_itself(children, error):
    found = children.submit(raise_it, error).exception()
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert found.args == error.args
    told = dict(vars(found))
    assert told.pop("__notes__") == [f"in a child: {type(error).__name__} at test_children.py:{raised_at()}"]
    assert told == vars(error)


def raised_at():
    return raise_it.__code__.co_firstlineno + 1


def test_an_error_that_cannot_be_pickled_is_told_by_type_and_place_alone(children):
    found = children.submit(eval, "__import__('tests.unit.test_children').unit.test_children.fail_stubbornly()")
    error = found.exception()
    assert type(error) is RuntimeError
    assert "StubbornError at test_children.py:" in str(error)
    assert "John Doe" not in str(error)


def fail_stubbornly():
    raise StubbornError(1, 2)


def test_a_result_that_cannot_be_pickled_is_an_error_of_its_call_alone(children):
    assert isinstance(children.submit(eval, "lambda: 0").exception(), (pickle.PicklingError, AttributeError))
    assert children.submit(int, "5").result() == 5


def test_a_call_that_cannot_be_pickled_is_refused_at_once(children):
    with pytest.raises((pickle.PicklingError, AttributeError)):
        children.submit(lambda: 0)
    assert children.submit(int, "5").result() == 5


def test_three_children_run_at_once_and_a_fourth_call_waits_for_none_that_hangs(tmp_path):
    with Children(3, timeout_s=60, memory_bytes=MEMORY) as children:
        pids = [children.submit(meet, tmp_path, name, 3) for name in "abc"]
        assert len({pid.result() for pid in pids}) == 3
        hanging = [children.submit(time.sleep, 60) for _ in range(2)]
        assert [children.submit(int, str(n)).result(timeout=30) for n in range(20)] == list(range(20))
        assert not any(future.done() for future in hanging)


def test_each_future_gets_its_own_answer_whatever_happens_to_the_others(impatient):
    calls = [(divmod, n, 3) for n in range(6)]
    calls[1:1] = [(time.sleep, 60)]
    calls[3:3] = [(os.abort,)]
    calls[5:5] = [(bytearray, 1 << 30)]
    futures = [impatient.submit(*call) for call in calls]
    told = [future.exception() or future.result() for future in futures]
    assert [str(one.reason) for one in told if isinstance(one, DecoderError)] == [
        "decoder_timeout",
        "decoder_died",
        "decoder_memory",
    ]
    assert [one for one in told if isinstance(one, tuple)] == [divmod(n, 3) for n in range(6)]


def test_a_cancelled_call_is_never_made(children, tmp_path):
    running = children.submit(meet, tmp_path, "a", 2)
    waiting = children.submit(Path.touch, tmp_path / "never")
    assert waiting.cancel()
    (tmp_path / "b").touch()
    running.result()
    children.submit(int).result()
    assert not (tmp_path / "never").exists()


def test_closing_ends_every_child_and_cancels_what_had_not_returned(tmp_path):
    children = Children(2, timeout_s=60, memory_bytes=MEMORY)
    files = [tmp_path / "one", tmp_path / "two"]
    running = [children.submit(pid_and, math.factorial, file, ENDLESS) for file in files]
    waiting = children.submit(int)
    while not all(file.is_file() for file in files):
        time.sleep(0.01)
    children.close()
    children.close()
    assert waiting.cancelled()
    assert all(isinstance(future.exception(timeout=0), CancelledError) for future in running)
    assert all(gone(int(file.read_text()), within_s=1) for file in files)
    with pytest.raises(RuntimeError, match="closed"):
        children.submit(int)


def test_a_server_that_is_killed_costs_no_call(children, tmp_path):
    """What the server's end does to a child is no fault of the image that it holds."""
    running = children.submit(pid_and, meet, tmp_path / "a", tmp_path, "b", 3)
    while not (tmp_path / "a").is_file():
        time.sleep(0.01)
    os.kill(children._server._process.pid, signal.SIGKILL)
    assert gone(int((tmp_path / "a").read_text()))
    (tmp_path / "c").touch()
    assert running.result(timeout=60) != os.getpid()


def test_a_child_that_is_killed_while_it_is_idle_costs_no_call(children):
    idle = children.submit(os.getpid).result()
    os.kill(idle, signal.SIGKILL)
    assert gone(idle)
    assert children.submit(os.getpid).result() != idle


def test_where_no_child_can_be_started_the_call_can_be_made_again_later(capfd):
    with Children(1, timeout_s=60, memory_bytes=MEMORY, preload=("no_such_module",)) as children:
        error = refusal(children.submit(int))
        assert error.reason == "decoder_start"
        assert not error.permanent
    assert "no_such_module" in capfd.readouterr().err


def test_what_stops_the_parent_politely_does_not_end_a_child(children, tmp_path):
    """A service manager signals every process, and the image at hand is still finished."""
    running = children.submit(pid_and, meet, tmp_path / "a", tmp_path, "b", 3)
    while not (tmp_path / "a").is_file():
        time.sleep(0.01)
    for pid in (int((tmp_path / "a").read_text()), children._server._process.pid):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
    (tmp_path / "c").touch()
    assert running.result(timeout=60) != os.getpid()


def test_threads_share_the_children(children):
    answers = []

    def ask(n):
        answers.append((n, children.submit(abs, -n).result()))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [(n, n) for n in range(20)]


# A script without a guard of its main part, as a console script may be: nothing of it may run twice.
PARENT = """
import math, os, sys, time
from dicom_node.children import Children
from tests.unit.test_children import pid_and

print("started", flush=True)
folder, forks = sys.argv[1:]
children = Children(2, timeout_s=600, memory_bytes=1 << 28)
for name in ("one", "two"):
    children.submit(pid_and, math.factorial, f"{folder}/{name}", 10**9)
while not {"one", "two"} <= set(os.listdir(folder)):
    time.sleep(0.01)
other = 0
if forks == "forks":  # what is forked holds the parent's descriptors
    other = os.fork()
    if not other:
        time.sleep(600)
print(children._server._process.pid, other, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("forks", ["alone", "forks"])
def test_nothing_outlives_a_parent_that_is_killed_not_even_an_endless_loop_in_c(tmp_path, forks):
    script = tmp_path / "script.py"
    script.write_text(PARENT)
    folder = tmp_path / "pids"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, str(script), str(folder), forks], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        other = 0
        try:
            assert parent.stdout.readline() == "started\n"
            server, other = map(int, parent.stdout.readline().split())
            pids = [int(file.read_text()) for file in folder.iterdir()]
            assert len(pids) == 2
            parent.kill()
            assert all(gone(pid) for pid in (server, *pids))
        finally:
            parent.kill()
            if other:
                os.kill(other, signal.SIGKILL)
        assert parent.stdout.read() == ""
