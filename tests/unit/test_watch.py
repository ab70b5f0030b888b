import os
import subprocess
import sys
import time

import pytest

from dicom_node.watch import UnhealthyError, Watch, check

HANGS = """
import sys, time
from pathlib import Path
from dicom_node.watch import Watch
watch = Watch(Path(sys.argv[1]), "worker", 0.3)
watch.step()
{hang}
"""
# A pattern that backtracks for hours inside one call, with Python's lock held.
LOCKED = 'import re; re.match(r"(a+)+$", "a" * 64 + "b")'


def test_a_process_that_lives_is_said_to_live_and_one_that_ended_is_not(tmp_path):
    watch = Watch(tmp_path / "new" / "folder", "sweep", 60)
    assert check(tmp_path / "new" / "folder", "sweep") == "sweep: 1 alive"
    watch.close()
    with pytest.raises(UnhealthyError, match="no process `sweep`"):
        check(tmp_path / "new" / "folder", "sweep")


def test_a_process_that_is_late_is_unhealthy(tmp_path):
    watch = Watch(tmp_path, "sweep", 60)
    watch.rest(good_for_s=-2)
    with pytest.raises(UnhealthyError, match=r"sweep, process \d+: a sign of life is \d s overdue"):
        check(tmp_path, "sweep")
    watch.step()
    check(tmp_path, "sweep")
    watch.close()


def test_a_killed_process_leaves_no_sign_that_counts(tmp_path):
    with subprocess.Popen(["sleep", "0"]) as ended:
        pass
    (tmp_path / f"sweep.{ended.pid}").write_text(str(time.monotonic() + 60))
    with pytest.raises(UnhealthyError, match="no process"):
        check(tmp_path, "sweep")
    Watch(tmp_path, "sweep", 60).close()
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_another_process_by_now_counts_for_nothing(tmp_path):
    (tmp_path / f"sweep.{os.getppid()}").write_text(str(time.monotonic() + 60))
    with pytest.raises(UnhealthyError, match="no process"):
        check(tmp_path, "sweep")


@pytest.mark.parametrize("hang", ["time.sleep(60)", LOCKED], ids=["in a call", "with the interpreter's lock held"])
def test_a_step_that_hangs_ends_its_process_with_its_place(tmp_path, hang):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANGS.format(hang=hang), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert time.monotonic() - started < 20


def test_a_step_in_time_ends_nothing(tmp_path):
    code = HANGS.format(hang="time.sleep(0.1); watch.rest(); time.sleep(0.6); watch.step(); watch.close()")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=30, check=False)
    assert done.returncode == 0
