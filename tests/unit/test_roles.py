import subprocess
import sys

_WAITS = """
import signal, threading, time
from dicom_node.roles import stop_on_signal

def send():
    time.sleep(0.2)  # the main thread sleeps by now
    signal.pthread_kill(threading.get_ident(), signal.{name})

stop = stop_on_signal()
threading.Thread(target=send).start()
stop.wait()
print("told")
"""


def _ends_on(name):
    done = subprocess.run(
        [sys.executable, "-c", _WAITS.format(name=name)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode == 0 and done.stdout == "told\n"


def test_a_signal_that_the_kernel_gives_to_another_thread_wakes_the_main_one():
    assert _ends_on("SIGTERM")
    assert _ends_on("SIGINT")
