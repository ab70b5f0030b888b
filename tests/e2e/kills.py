"""Kill the parts of a running service under load, and count what is lost, doubled, and how long work stands still.

python -m tests.e2e.kills --times 10            # every part; the settings' own lease and sweep times
python -m tests.e2e.kills redis postgres --times 3
"""

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.demo.instances import phantom_dataset
from dicom_node.demo.pacs import OrthancPacs
from dicom_node.domain import NodeError
from dicom_node.tables import InstanceRow, ScreeningRow, TransitionRow
from tests.e2e.harness import Service, alive, dcmsend, destination, instances, wait_until
from tests.servers import PostgresServer, RedisServer

RESUME_LIMIT_S = 30.0
_ENDED = ("delivered", "withheld", "declined", "failed")


class Load:
    """Films sent one after the other until `stop`, each again and again until the node says Success."""

    def __init__(self, port, folder, pause_s=0.4):
        self._port, self._folder, self._pause_s = port, folder, pause_s
        self.accepted = {}  # SOP Instance UID -> Study Instance UID, in the order of Success
        self.refused = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        number = 0
        while not self._stop.is_set():
            ds = phantom_dataset(number, fresh_uids=True)
            number += 1
            path = self._folder / "film.dcm"
            ds.save_as(path, enforce_file_format=True)
            while dcmsend(self._port, path)[0] != 0:
                self.refused += 1
                time.sleep(0.2)
            self.accepted[str(ds.SOPInstanceUID)] = str(ds.StudyInstanceUID)
            self._stop.wait(self._pause_s)

    def stop(self):
        self._stop.set()
        self._thread.join(120)
        assert not self._thread.is_alive(), "a film was never accepted"


def _sigkill(pid):
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), timeout_s=10, what=f"the end of process {pid}")


def _restart(service, role):
    """The process is killed and started again, as a restart policy does."""
    process = service.living(role)[0]
    process.kill()
    process.wait()
    service.start_one(role, wait=False)


def _worker_child(service, servers):
    _sigkill(service.worker_children()[0])


def _server_down(server):
    server.kill()
    time.sleep(1)
    server.start()


def _flush(service, servers):
    with servers["redis"].client() as client:
        client.flushall()


def _sweep(service, servers):
    """And with it every bell: what waits now, only a new sweep can ring for."""
    _restart(service, "sweep")
    _flush(service, servers)


KILLS = {
    "worker-child": _worker_child,
    "worker-parent": lambda service, servers: _restart(service, "worker"),
    "listener": lambda service, servers: _restart(service, "listen"),
    "deliverer": lambda service, servers: _restart(service, "deliver"),
    "sweep": _sweep,
    "redis": lambda service, servers: _server_down(servers["redis"]),
    "redis-flush": _flush,
    "postgres": lambda service, servers: _server_down(servers["postgres"]),
}


@dataclass(frozen=True)
class Outcome:
    """What one series of kills of one part came to."""

    part: str
    kills: int
    films: int
    refused: int
    lost: int
    doubled: int
    predicted_twice: int
    resumed_s: list[float]
    caught_up_s: list[float]

    @property
    def good(self):
        return not self.lost and not self.doubled and max(self.resumed_s + self.caught_up_s) <= RESUME_LIMIT_S

    def __str__(self):
        return (
            f"{self.part:14} kills {self.kills:3}  films {self.films:4}  refused sends {self.refused:3}  "
            f"lost {self.lost}  doubled {self.doubled}  predicted twice {self.predicted_twice}  "
            f"work resumes after {statistics.median(self.resumed_s):.1f} s (max {max(self.resumed_s):.1f})  "
            f"all of before is done after {statistics.median(self.caught_up_s):.1f} s (max {max(self.caught_up_s):.1f})"
        )


def series(part, times, service, servers, pacs, folder):
    """Kill the part so often under load; the service runs and goes on running."""
    load = Load(service.port, folder)
    resumed, caught_up = [], []
    try:
        for _ in range(times):
            enough = len(load.accepted) + 3
            wait_until(lambda: len(load.accepted) >= enough, timeout_s=60, what="load")  # noqa: B023
            time.sleep(random.uniform(0, 1))
            before = list(load.accepted)
            killed_at = time.monotonic()
            KILLS[part](service, servers)
            done = _done(service, part)
            wait_until(lambda: _done(service, part) > done, timeout_s=120, poll_s=0.1, what="work to resume")  # noqa: B023
            resumed.append(time.monotonic() - killed_at)
            wait_until(lambda: _all_ended(service, before), timeout_s=180, poll_s=0.2, what="what came before")  # noqa: B023
            caught_up.append(time.monotonic() - killed_at)
    finally:
        load.stop()
    films = dict(load.accepted)
    wait_until(lambda: _all_ended(service, films), timeout_s=180, poll_s=0.2, what="the last films")
    held = {uid: Counter(modality for _, modality, _, _ in instances(pacs, study)) for uid, study in films.items()}
    return Outcome(
        part=part,
        kills=times,
        films=len(films),
        refused=load.refused,
        lost=sum(1 for found in held.values() if not (found["SR"] and found["OT"])),
        doubled=sum(1 for found in held.values() if found["SR"] > 1 or found["OT"] > 1),
        predicted_twice=sum(1 for count in _count(service, "predicted").values() if count > 1),
        resumed_s=resumed,
        caught_up_s=caught_up,
    )


def _query(service, statement):
    try:
        with service.database.read() as session:
            return session.execute(statement).all()
    except (SQLAlchemyError, NodeError):
        return []


def _count(service, state):
    return Counter(key for (key,) in _query(service, select(TransitionRow.screening_id).filter_by(to_state=state)))


def _done(service, part):
    """How much of the work that the part stands for was done so far."""
    return sum(_count(service, "delivered" if part == "deliverer" else "predicted").values())


def _all_ended(service, uids):
    rows = _query(
        service,
        select(ScreeningRow.state)
        .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
        .where(InstanceRow.sop_instance_uid.in_(list(uids))),
    )
    return len(rows) == len(uids) and all(state in _ENDED for (state,) in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *KILLS], default=[])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--lease-s", type=float, default=20.0)
    parser.add_argument("--sweep-s", type=float, default=5.0)
    asked = parser.parse_args()
    good = True
    with (
        tempfile.TemporaryDirectory(prefix="cxr-kills-") as name,
        PostgresServer() as postgres,
        RedisServer() as redis,
        OrthancPacs(Path(name) / "orthanc") as pacs,
    ):
        servers = {"postgres": postgres, "redis": redis}
        times = {"lease_s": asked.lease_s, "sweep_s": asked.sweep_s, "retry_base_s": 1.0}
        service = Service(Path(name) / "node", postgres, redis, destination(pacs), **times)
        try:
            service.start()
            for part in asked.parts or KILLS:
                outcome = series(part, asked.times, service, servers, pacs, Path(name))
                print(outcome, flush=True)  # noqa: T201
                good = good and outcome.good
            good = good and service.status()["invariant_holds"]
        finally:
            service.stop()
    print("nothing lost, nothing doubled" if good else "NOT GOOD")  # noqa: T201
    sys.exit(not good)


if __name__ == "__main__":
    main()
