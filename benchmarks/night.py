"""A whole night over a real Orthanc of mixed studies: killed at random moments, or with live films in between.

python -m benchmarks.night kills --data DATA --way move [--studies 300] [--kills 40]
python -m benchmarks.night live --data DATA [--studies 300] [--films 60]

`kills` plans, runs, kills listener, worker, the process that fetches, the sweep, Orthanc and the whole node at random
moments, and then compares the SOP Instance UIDs of Orthanc's CR and DX with what landed, was predicted once and ended.
`live` sends films to an idle node, one after the other, then as many while a run goes on, and prints the times from
C-STORE's row to the heatmap. Both use the shipped bundle, on the CPU, with one thread.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from dicom_node.bundle import find_bundle
from dicom_node.demo.instances import phantom_dataset
from dicom_node.demo.pacs import OrthancPacs
from dicom_node.domain import Purpose, State
from dicom_node.retrospective.progress import run_status
from dicom_node.retrospective.tables import RunInstanceRow, RunStudyRow
from dicom_node.tables import InstanceRow, ScreeningRow, TransitionRow
from tests import archives
from tests.e2e.harness import Node, dcmsend, source, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
VICTIMS = ("listen", "work", "retrieve", "sweep", "orthanc", "node")
DAYS = ("--from", "2026-03-01", "--to", "2026-03-31")
_ANSWERED = (State.REPORTED, State.WITHHELD, State.DECLINED)
RETROSPECTIVE = {"window": "", "pause_s": 1.0, "pause_max_s": 5.0}


def main() -> None:
    """Prints what came of it; exit status 1 where anything was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "live"))
    parser.add_argument("--data", type=Path, required=True, help="the test data")
    parser.add_argument("--way", choices=("move", "get", "web"), default="move")
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--films", type=int, default=60)
    parser.add_argument("--per-minute", type=int, default=10_000, help="studies_per_minute; 30 as shipped")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cxr-night-") as name:
        folder = Path(name)
        plugin = {"Plugins": [PLUGIN], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}}
        extra = plugin if Path(PLUGIN).exists() else {}
        with OrthancPacs(folder / "orthanc", extra=extra) as pacs:
            os.setpriority(os.PRIO_PROCESS, pacs.pid or 0, 10)  # a PACS has a machine of its own
            found = archives.studies(asked.data, asked.studies, days=30)
            archives.fill(pacs, found)
            node = Node(
                folder / "node",
                source(pacs, asked.way) | {"destination": False},
                bundle=str(find_bundle("starter")),
                threads=1,
                lease_s=5.0,
                sweep_s=1.0,
                retry_base_s=0.5,
                retrospective=RETROSPECTIVE | {"studies_per_minute": asked.per_minute},
            )
            try:
                node.start()
                good = _kills(node, pacs, found, asked) if asked.what == "kills" else _live(node, folder, asked)
            finally:
                node.stop()
    raise SystemExit(not good)


def _begin(node: Node) -> None:
    node.run("retrospective", "plan", "--name", "night", *DAYS, check=True)
    node.run("retrospective", "run", "night", "--detach", check=True)


def _kills(node: Node, pacs: OrthancPacs, found: Sequence[archives.Study], asked: argparse.Namespace) -> bool:
    rng, kills = random.Random(0), Counter[str]()  # noqa: S311 - of moments, no secret
    began = time.monotonic()
    _begin(node)
    while _status(node)["state"] != "ended" and sum(kills.values()) < asked.kills:
        time.sleep(rng.uniform(0.5, 4))
        victim = rng.choice(VICTIMS)
        kills[victim] += 1
        if victim == "node":
            node.sigkill()
            node.start()
        elif victim == "orthanc":
            os.kill(pacs.pid or 0, signal.SIGKILL)
            pacs.stop()
            pacs.start()
        elif pid := node.children().get(victim):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: _status(node)["state"] == "ended", timeout_s=3600, poll_s=1, what="the run's end")
    again = _status(node)["studies"]["failed"]
    if again:
        node.run("retrospective", "resume", "night", "--failed", "--detach", check=True)
        wait_until(lambda: _status(node)["state"] == "ended", timeout_s=3600, poll_s=1, what="the run's end")
    wanted = {uid for study in found for uid in study.wanted}
    with node.database.read() as session:
        landed = session.scalars(
            select(RunInstanceRow.sop_instance_uid).where(
                RunInstanceRow.landed, RunInstanceRow.screening_id.is_not(None)
            )
        ).all()
        twice = session.execute(
            select(TransitionRow.screening_id)
            .where(TransitionRow.to_state == State.PREDICTED)
            .group_by(TransitionRow.screening_id)
            .having(func.count() > 1)
        ).all()
        doubled = session.execute(
            select(ScreeningRow.instance_id).group_by(ScreeningRow.instance_id).having(func.count() > 1)
        ).all()
        states = Counter(session.scalars(select(RunStudyRow.state)).all())
    lost, others = wanted - set(landed), set(landed) - wanted
    told = ", ".join(f"{name} {count}" for name, count in kills.items())
    print(  # noqa: T201
        f"{asked.way}: {len(found)} studies in Orthanc, {sum(states.values())} in the run ({dict(states)}), "
        f"{len(landed)} of {len(wanted)} images in {time.monotonic() - began:.0f} s; kills: {told}; "
        f"{again} studies had to be resumed; lost {len(lost)}, not asked for {len(others)}, "
        f"predicted twice {len(twice)}, screened twice {len(doubled)}, "
        f"invariant {'holds' if node.status()['invariant_holds'] else 'DOES NOT HOLD'}",
        flush=True,
    )
    return not (lost or others or twice or doubled) and set(states) == {"done"}


def _live(node: Node, folder: Path, asked: argparse.Namespace) -> bool:
    _send(node, folder, 3, 0)  # the first ones find cold caches
    idle = _send(node, folder, asked.films, 100)
    _begin(node)
    wait_until(lambda: _status(node)["images"] > 10, timeout_s=120, poll_s=0.2, what="the run's first images")
    night = _send(node, folder, asked.films, 10_000, pause_s=1.0)
    goes_on = _status(node)["state"] == "running"
    one = _of_the_run(node)
    limit = _p95(idle) + one
    print(  # noqa: T201
        f"{len(idle)} live films each: idle median {statistics.median(idle):.2f} s, p95 {_p95(idle):.2f} s; "
        f"in the night median {statistics.median(night):.2f} s, p95 {_p95(night):.2f} s; "
        f"one retrospective image {one:.2f} s, so at most {limit:.2f} s: "
        f"{'reached' if _p95(night) <= limit else 'NOT REACHED'}"
        f"{'' if goes_on else ' (the run had ended before)'}",
        flush=True,
    )
    return goes_on and _p95(night) <= limit


def _send(node: Node, folder: Path, count: int, first: int, pause_s: float = 0.2) -> list[float]:
    """Seconds from each film's row to its heatmap."""
    uids = []
    for number in range(first, first + count):
        ds = phantom_dataset(number, fresh_uids=True)
        path = folder / "film.dcm"
        ds.save_as(path, enforce_file_format=True)
        returncode, output = dcmsend(node.port, path)
        if returncode:
            raise SystemExit(output)
        uids.append(str(ds.SOPInstanceUID))
        wait_until(lambda: node.ledger.summary(uids[-1]).state in _ANSWERED, timeout_s=120)
        time.sleep(pause_s)
    return _seconds(node, uids)


def _seconds(node: Node, uids: Sequence[str]) -> list[float]:
    """From the row to the heatmap, of each image; the medians of the stages are printed."""
    with node.database.read() as session:
        rows = session.execute(
            select(InstanceRow.sop_instance_uid, TransitionRow.to_state, TransitionRow.at)
            .join(ScreeningRow, ScreeningRow.instance_id == InstanceRow.id)
            .join(TransitionRow, TransitionRow.screening_id == ScreeningRow.id)
            .where(InstanceRow.sop_instance_uid.in_(uids))
            .order_by(TransitionRow.id)
        ).tuples()
        times: dict[str, dict[str, datetime]] = {}
        for uid, state, at in rows:
            times.setdefault(uid, {}).setdefault(state, at)
    found = []
    stages: dict[str, list[float]] = {}
    for of_one in times.values():
        end = next(of_one[state] for state in _ANSWERED if state in of_one)
        found.append((end - of_one[State.WAITING]).total_seconds())
        steps = [state for state in (State.WAITING, State.CLAIMED, State.PREDICTED, State.REPORTED) if state in of_one]
        for earlier, later in pairwise(steps):
            stages.setdefault(f"{earlier} to {later}", []).append((of_one[later] - of_one[earlier]).total_seconds())
    told = "; ".join(f"{name} {statistics.median(took):.2f} s" for name, took in stages.items())
    print(f"{len(found)} films, medians: {told}", flush=True)  # noqa: T201
    return found


def _of_the_run(node: Node) -> float:
    """Seconds that one image of the run takes a worker: the median time between two of them that follow each other."""
    with node.database.read() as session:
        ended = session.scalars(
            select(TransitionRow.at)
            .join(ScreeningRow, ScreeningRow.id == TransitionRow.screening_id)
            .where(ScreeningRow.purpose == Purpose.RETROSPECTIVE, TransitionRow.to_state == State.PREDICTED)
            .order_by(TransitionRow.at)
        ).all()
    return statistics.median((later - earlier).total_seconds() for earlier, later in pairwise(ended))


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def _status(node: Node) -> dict[str, Any]:
    return run_status(node.database, "night", datetime.now(UTC)).as_json()


if __name__ == "__main__":
    main()
