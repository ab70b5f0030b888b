"""What this machine has: the bundle's files, the device of the networks, a clock."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dicom_node.bundle import MANIFEST, read_manifest
from dicom_node.bundles import find
from dicom_node.doctor.finding import failure, ok, warning
from dicom_node.domain import BundleError
from dicom_node.weights import faults

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from dicom_node.config import Settings
    from dicom_node.doctor.finding import Finding

DEVICE_ANSWER_S = 60.0  # a cold torch for CUDA reads gigabytes of libraries before it answers
NETWORKS_ANSWER_S = 150.0
_GOLDEN = "workers.golden"  # run, never imported
_FROM = "(setting `device`)"  # a worker's own --device is not known here
_MOST_OFFSET_S = 2.0
_YEARS = range(2025, 2100)
_CLOCK_REMEDY = "synchronise the clocks of both machines (systemd-timesyncd or chrony; timedatectl shows the state)"

# linux/timex.h: what adjtimex returns for a clock that nothing synchronises.
_TIME_ERROR = 5
_NOT_PERMITTED = -1  # a container's filter of system calls, say
_TIMEX_BYTES = 512  # more than struct timex has

# Asked in a process of its own: this one never loads torch, and a driver that hangs can be left alone.
_ASK_CUDA = """
import json, sys, torch
index = int(sys.argv[1])
told = {"built_for": torch.version.cuda}
try:
    torch.cuda.init()
    told["count"] = torch.cuda.device_count()
    if index < told["count"]:
        told["name"] = torch.cuda.get_device_name(index)
        told["free"], told["total"] = torch.cuda.mem_get_info(index)
        torch.ones(1, device=f"cuda:{index}").add(1).item()
except (RuntimeError, AssertionError) as error:
    told["error"] = str(error).partition("\\n")[0].partition(". ")[0] or type(error).__name__
print(json.dumps(told))
"""


def bundle(settings: Settings, folder: Path | None = None) -> Iterator[Finding]:
    """Whether the bundle in `folder`, or else that of the settings, is whole, and answers what `codes` names."""
    try:
        folder = folder or find(settings.bundle, settings)
        manifest = read_manifest(folder)
    except BundleError as error:
        yield failure("bundle", " ".join(str(error).split()), "set `bundle` to an installed one, or install it again")
        return
    for fault in faults(folder):
        yield failure("bundle", fault.what, fault.remedy)
        return
    parts = sum(len(member.weights) for member in manifest.members)
    yield ok("bundle", f"{manifest.name} {manifest.release}: {parts} files of weights are what {MANIFEST} names")
    asked = [target.name for target in manifest.targets]
    if unasked := sorted(set(settings.codes) - set(asked)):
        yield warning(
            "bundle",
            f"the setting `codes` names {', '.join(unasked)}, a question that {manifest.name} {manifest.release} "
            "does not ask",
            f"name one of {', '.join(asked)}, or remove it",
        )


def device(settings: Settings) -> Iterator[Finding]:
    """Whether the networks can run on the device of the settings, where this machine has them at all."""
    if importlib.util.find_spec("torch") is None:
        yield ok("device", "no worker runs on this machine: torch is not installed")
        return
    if settings.device == "cpu":
        cores = len(os.sched_getaffinity(0))
        if settings.threads > cores:
            yield warning("device", f"threads = {settings.threads}, but {cores} cores", "set threads = 0")
        else:
            yield ok("device", f"cpu {_FROM}: {cores} cores, {settings.threads or cores} threads a worker")
        return
    yield _cuda(settings.device)


def networks(settings: Settings, folder: Path | None = None) -> Iterator[Finding]:
    """Whether the device gives the scores back that are stored with the bundle; asked in a process of its own."""
    if importlib.util.find_spec("torch") is None:
        return
    try:
        folder = folder or find(settings.bundle, settings)
        if read_manifest(folder).golden is None:
            yield ok("networks", "not tried: the bundle holds no golden images")
            return
    except BundleError:  # `bundle` has told of it
        return
    try:
        asked = subprocess.run(
            [sys.executable, "-m", _GOLDEN, str(folder), settings.device],
            capture_output=True,
            text=True,
            timeout=NETWORKS_ANSWER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield failure(
            "networks", f"{settings.device} has not scored the golden images in {NETWORKS_ANSWER_S:.0f} s", "try again"
        )
        return
    last = (asked.stdout.strip() or asked.stderr.strip() or "no answer").splitlines()[-1]
    if asked.returncode:
        yield failure("networks", last, "use another device, or install the bundle and cxr-dicom-node[worker] again")
    else:
        yield ok("networks", last)


def _cuda(name: str) -> Finding:
    index = int(name.partition(":")[2] or 0)
    named = f"{name} {_FROM}"
    instead = "see nvidia-smi, or set device = cpu"
    try:
        asked = subprocess.run(
            [sys.executable, "-P", "-c", _ASK_CUDA, str(index)],
            capture_output=True,
            text=True,
            timeout=DEVICE_ANSWER_S,
            check=True,
        )
        told = json.loads(asked.stdout)
    except subprocess.TimeoutExpired:
        return failure("device", f"{named}: torch gives no answer in {DEVICE_ANSWER_S:.0f} s", f"try again; {instead}")
    except (subprocess.CalledProcessError, ValueError) as error:
        return failure(
            "device", f"{named}: torch cannot be asked ({type(error).__name__})", "install cxr-dicom-node[worker] again"
        )
    built_for = told["built_for"]
    if built_for is None:
        return failure(
            "device",
            f"{named}: this torch is built for CPUs alone",
            "install a torch for CUDA (docs/deployment.md, On a GPU), or set device = cpu",
        )
    if "error" in told:
        return failure("device", f"{named}, torch for CUDA {built_for}: {told['error']}", instead)
    if "name" not in told:
        return failure("device", f"{named} is not there: the machine has {told['count']} GPU", instead)
    total, free = told["total"] / 2**30, told["free"] / 2**30
    return ok("device", f"{named}: {told['name']}, {free:.1f} of {total:.1f} GiB free (torch for CUDA {built_for})")


def clock(offsets_s: Mapping[str, float], now_s: float) -> Iterator[Finding]:
    """Whether this machine's clock can be right, and agrees with those of the servers."""
    year = datetime.fromtimestamp(now_s, UTC).year
    if year not in _YEARS:
        yield failure("clock", f"this machine thinks that it is the year {year}", "set its clock (timedatectl)")
        return
    wrong = {name: offset for name, offset in offsets_s.items() if abs(offset) > _MOST_OFFSET_S}
    for name, offset in wrong.items():
        sense = "ahead of" if offset > 0 else "behind"
        yield failure("clock", f"the {name}'s clock is {abs(offset):.1f} s {sense} this machine's", _CLOCK_REMEDY)
    if wrong:
        return
    synchronised = kernel_is_synchronised()
    if synchronised is False:
        yield warning("clock", "nothing synchronises this machine's clock, says the kernel", _CLOCK_REMEDY)
        return
    says = (
        "the kernel calls it synchronised" if synchronised else "the kernel cannot be asked whether it is synchronised"
    )
    told = ", ".join(f"{offset:+.3f} s to the {name}" for name, offset in offsets_s.items())
    yield ok("clock", f"{says}{f'; {told}' if told else ''}")


def kernel_is_synchronised() -> bool | None:
    """Whether a time service steers the kernel's clock; None where the kernel may not be asked."""
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes = 0: nothing is set
    state = ctypes.CDLL(None).adjtimex(timex)
    return None if state == _NOT_PERMITTED else bool(state != _TIME_ERROR)
