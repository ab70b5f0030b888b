"""What it takes to plan a run: time for each study and memory, over PACS of more and more studies.

python -m benchmarks.planning                                # 10,000, 100,000 and 1,000,000 studies into SQLite
python -m benchmarks.planning --studies 10000 --database postgresql://USER@HOST/NAME
python -m benchmarks.planning --claims                       # what a study costs the ledger, in runs of the same sizes

The PACS is simulated, in a process of its own: it answers C-FIND from a generator, some five hundred studies a day. The
reference is a bare pynetdicom SCU that asks the same days and throws the answers away.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import resource
import statistics
import tempfile
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]
from sqlalchemy import insert

from dicom_node.archive import Archive
from dicom_node.config import Peer, Retrospective, Settings
from dicom_node.database import Database
from dicom_node.demo.pacs import free_port
from dicom_node.retrospective.cohort import Criteria
from dicom_node.retrospective.planning import plan
from dicom_node.retrospective.runs import Runs
from dicom_node.retrospective.settling import Settling
from dicom_node.retrospective.studies import Studies
from dicom_node.retrospective.tables import RunRow, RunStudyRow

if TYPE_CHECKING:
    from collections.abc import Iterator

_PER_DAY = 499  # not a round number: one is asked about once more
_FIRST = date(1990, 1, 1)
_PENDING = 0xFF00


def serve(port: int) -> None:
    """The simulated PACS."""
    entity = AE("PACS")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    entity.maximum_pdu_size = 131_072
    entity.start_server(("127.0.0.1", port), block=True, evt_handlers=[(evt.EVT_C_FIND, _find)])


def _find(event: Any) -> Iterator[tuple[int, Dataset]]:
    query = event.identifier
    if query.get("ModalitiesInStudy") != "CR":
        return
    day = (date.fromisoformat(str(query.StudyDate)) - _FIRST).days
    answer = Dataset()
    answer.QueryRetrieveLevel, answer.StudyDate, answer.ModalitiesInStudy = "STUDY", query.StudyDate, "CR"
    answer.NumberOfStudyRelatedInstances = "2"
    for number in range(_PER_DAY):
        answer.StudyInstanceUID = f"1.2.826.0.1.3680043.10.543.{day + 1}.{number + 1}"
        answer.StudyTime = f"{number // 60:02d}{number % 60:02d}00"
        answer.AccessionNumber, answer.PatientID = f"A{day}-{number}", f"P{day}-{number}"
        yield _PENDING, answer


def bare(port: int, days: int) -> float:
    """Seconds in which the same questions are asked, and the answers thrown away."""
    entity = AE("BENCH")
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    association = entity.associate("127.0.0.1", port, ae_title="PACS")
    began = time.perf_counter()
    for number in range(days):
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyDate = "STUDY", f"{_FIRST + timedelta(days=number):%Y%m%d}"
        query.ModalitiesInStudy, query.StudyInstanceUID = "CR", ""
        for _ in association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
            pass
    seconds = time.perf_counter() - began
    association.release()
    return seconds


def measured(port: int, days: int, url: str, name: str) -> tuple[float, float]:
    """Seconds of the plan, and by how many MB the process has grown at most since it began."""
    peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, retrieve=("move",))
    settings = Settings(peers=(peer,), database_url=url)
    wanted = Criteria(_FIRST, _FIRST + timedelta(days=days - 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.closing(Database(url)) as database:
        database.upgrade()
        began = time.perf_counter()
        found = plan(settings, database, name=name, criteria=wanted, source=peer)
        seconds = time.perf_counter() - began
    if found.studies != days * _PER_DAY:
        raise SystemExit(f"{found.studies} studies were planned of {days * _PER_DAY}")
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def claims(size: int, url: str) -> float:
    """Seconds in which a study of a run of that size is claimed, settled and given back; a median of a few hundred."""
    settings = Retrospective(window="", studies_per_minute=10_000)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with contextlib.closing(Database(url)) as database:
        database.upgrade()
        with database.write() as session:
            run = RunRow(name="bench", source="pacs", criteria={"modalities": ["CR"]}, state="running", created_at=now)
            session.add(run)
            session.flush()
            for start in range(0, size, 10_000):
                rows = [
                    {
                        "run_id": run.id,
                        "study_instance_uid": f"1.2.{number}",
                        "state": "found" if number % 2 else "done",
                    }
                    for number in range(start, min(start + 10_000, size))
                ]
                session.execute(insert(RunStudyRow), rows)
    with contextlib.closing(Database(url)) as database:  # anew: what was inserted is in its place by then
        studies, runs = Studies(database), Runs(database)
        settling = Settling(database, Archive(Path(tempfile.mkdtemp())), purge=True)
        node = Settings(peers=(Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=104, retrieve=("move",)),))
        took = []
        for _ in range(300):
            began = time.perf_counter()
            claim = studies.claim("bench", 60, settings, now)
            settling.settle(now)
            runs.decide(node.model_copy(update={"retrospective": settings}), now)
            if claim is None:
                raise SystemExit("nothing was claimed")
            studies.give_back(claim)
            took.append(time.perf_counter() - began)
    return statistics.median(took)


def _in_a_process(port: int, days: int, url: str, name: str, results: Any) -> None:
    results.put(measured(port, days, url, name))


def main() -> None:
    """Prints a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--database", help="an empty database; a file in a temporary folder where not given")
    parser.add_argument("--claims", action="store_true", help="measure the ledger alone")
    asked = parser.parse_args()
    if asked.claims:
        with tempfile.TemporaryDirectory() as folder:
            for size in asked.studies:
                url = asked.database or f"sqlite:///{Path(folder) / f'{size}.sqlite'}"
                print(f"{size:9,} studies  {claims(size, url) * 1e3:.2f} ms to claim and give back one", flush=True)  # noqa: T201
        return
    port = free_port()
    spawn = multiprocessing.get_context("spawn")
    server = spawn.Process(target=serve, args=(port,), daemon=True)
    server.start()
    time.sleep(3)
    with tempfile.TemporaryDirectory() as folder:
        for size in asked.studies:
            days = round(size / _PER_DAY)
            url = asked.database or f"sqlite:///{Path(folder) / f'{size}.sqlite'}"
            reference = bare(port, min(days, 20)) / (min(days, 20) * _PER_DAY)
            results = spawn.Queue()
            child = spawn.Process(target=_in_a_process, args=(port, days, url, f"bench-{size}", results))
            child.start()
            seconds, grown = results.get()
            child.join()
            each = seconds / (days * _PER_DAY)
            print(  # noqa: T201
                f"{days * _PER_DAY:9,} studies  {seconds:7.1f} s  {each * 1e6:6.0f} us a study  "
                f"{each / reference:5.2f} of the bare SCU ({reference * 1e6:.0f} us)  grown by {grown:.0f} MB",
                flush=True,
            )
    server.terminate()


if __name__ == "__main__":
    main()
