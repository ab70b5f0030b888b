"""Whole runs over a real Orthanc of mixed studies: every image accounted for, none screened twice, by every way."""

import csv
import json
import os
import random
import signal
import time
import warnings
from collections import Counter
from datetime import UTC, datetime

import numpy as np
import pytest
from pydicom import dcmread
from sklearn.metrics import average_precision_score, roc_auc_score
from sqlalchemy import func, select

from dicom_node.demo.pacs import OrthancPacs
from dicom_node.retrospective.progress import run_status
from dicom_node.retrospective.tables import RunInstanceRow, RunStudyRow
from dicom_node.tables import InstanceRow, ScreeningRow, TransitionRow
from tests import archives
from tests.e2e.conftest import SHORT
from tests.e2e.harness import Node, Service, dcmsend, instances, results, source, wait_until
from tests.study_factories import predecessors

STUDIES = 20
ALL_DAY = {"window": "", "studies_per_minute": 10_000, "pause_s": 0.5, "pause_max_s": 2.0, "stall_timeout_s": 10.0}
DAYS = ("--from", "2026-03-01", "--to", "2026-03-10")


@pytest.fixture(scope="module")
def archive(orthanc_program, orthanc_dicomweb, data_dir, tmp_path_factory):
    """An Orthanc with DICOMweb, and what it holds."""
    plugin = {"Plugins": [orthanc_dicomweb], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}}
    with OrthancPacs(tmp_path_factory.mktemp("archive"), extra=plugin) as pacs:
        found = archives.studies(data_dir, STUDIES)
        archives.fill(pacs, found)
        yield pacs, found


@pytest.fixture
def make(request, tmp_path, archive):
    """Makes and starts a node of either form that fetches from the archive; stopped at the end."""
    made = []

    def start(*ways, form=Node, **settings):
        peer = source(archive[0], *ways, **settings.pop("peer", {}))
        retrospective = ALL_DAY | settings.pop("retrospective", {})
        values = {**SHORT, "retrospective": retrospective, **settings}
        if form is Service:
            servers = request.getfixturevalue("postgres_server"), request.getfixturevalue("redis_server")
            node = Service(tmp_path / "node", *servers, peer, **values)
            made.append(node)
            return node.start((*Service.ROLES, "retrieve"))
        made.append(Node(tmp_path / "node", peer, **values))
        return made[-1].start()

    yield start
    for node in made:
        node.stop()


def plan(node, name="march", *arguments):
    return json.loads(node.run("retrospective", "plan", "--name", name, *DAYS, "--json", *arguments, check=True).stdout)


def status(node, name="march"):
    """What the command `status --json` prints, without a process for each look."""
    return run_status(node.database, name, datetime.now(UTC)).as_json()


def run(node, name="march", *arguments, timeout_s=120):
    node.run("retrospective", "run", name, "--detach", *arguments, check=True)
    wait_until(lambda: status(node, name)["state"] == "ended", timeout_s=timeout_s, poll_s=0.5, what="the run's end")


def expect_all_accounted_for(node, found, name="march"):
    """The SOP Instance UIDs of CR and DX are those that landed, each of them once, and each was predicted once."""
    wanted = {study.uid: study.wanted for study in found if study.wanted}
    with node.database.read() as session:
        told = session.execute(
            select(RunStudyRow.study_instance_uid, RunInstanceRow.sop_instance_uid)
            .join(RunInstanceRow, RunInstanceRow.study_id == RunStudyRow.id)
            .where(RunInstanceRow.landed, RunInstanceRow.screening_id.is_not(None))
        ).all()
        held = session.scalars(select(InstanceRow.sop_instance_uid)).all()
        predicted = session.execute(
            select(ScreeningRow.instance_id, func.count())
            .join(TransitionRow, TransitionRow.screening_id == ScreeningRow.id)
            .where(TransitionRow.to_state == "predicted")
            .group_by(ScreeningRow.instance_id)
        ).all()
    landed = {}
    for study, instance in told:
        landed.setdefault(study, set()).add(instance)
    assert landed == wanted
    assert Counter(held) == Counter(uid for uids in wanted.values() for uid in uids)
    assert all(count == 1 for _, count in predicted)
    now = status(node, name)
    assert now["studies"]["done"] == now["total"] == len(wanted)
    assert node.status()["invariant_holds"]


def expect_nothing_of_ours(pacs, found):
    for study in found:
        assert {uid for _, _, uid, _ in instances(pacs, study.uid)} == {str(ds.SOPInstanceUID) for ds in study.objects}


@pytest.mark.parametrize("way", ["move", "get", "web"])
def test_a_run_fetches_and_screens_every_film_once_and_leaves_the_pacs_as_it_was(make, archive, way):
    pacs, found = archive
    node = make(way)
    told = plan(node)
    assert told["studies"] == len([study for study in found if study.wanted])
    assert status(node)["images"] == 0  # a plan fetches nothing
    run(node)
    expect_all_accounted_for(node, found)
    expect_nothing_of_ours(pacs, found)
    assert not list(node.archive.glob("[0-9a-f][0-9a-f]/*.dcm"))  # purged: the random bundle flags nothing
    (printed,) = json.loads(node.run("retrospective", "status", "--json", check=True).stdout)
    assert (printed["state"], printed["studies"]["done"]) == ("ended", told["studies"])
    again = plan(node, "again")
    assert again["already_screened"] > 0
    run(node, "again")
    assert node.ledger.counts()["received"] == len({uid for study in found for uid in study.wanted})


def test_the_three_ways_bring_the_same_bytes(archive, tmp_path):
    """So that what came live and is fetched later, or the other way round, is no conflict."""
    pacs, _ = archive
    digests = {}
    for way in ("move", "get", "web"):
        node = Node(tmp_path / way, source(pacs, way), **SHORT, retrospective=ALL_DAY)
        try:
            node.start()
            plan(node)
            run(node)
            with node.database.read() as session:
                digests[way] = dict(session.execute(select(InstanceRow.sop_instance_uid, InstanceRow.sha256)).all())
        finally:
            node.stop()
    assert digests["move"] == digests["get"] == digests["web"]


def test_as_a_service_the_same(make, archive):
    pacs, found = archive
    node = make("move", form=Service)
    plan(node)
    run(node)
    expect_all_accounted_for(node, found)
    expect_nothing_of_ours(pacs, found)


def test_where_one_way_fails_the_next_is_taken(make, archive):
    pacs, found = archive
    nowhere = f"http://127.0.0.1:{pacs.http_port}/nowhere"
    node = make("web", "get", peer={"find": "dicom", "web_url": nowhere})
    plan(node)
    run(node)
    expect_all_accounted_for(node, found)
    with node.database.read() as session:
        assert set(session.scalars(select(RunStudyRow.method))) == {"get"}


def test_killed_at_random_moments_the_run_goes_on_and_nothing_is_lost_or_screened_twice(make, archive):
    pacs, found = archive
    node = make("move", retrospective={"studies_per_minute": 60})
    plan(node)
    node.run("retrospective", "run", "march", "--detach", check=True)
    rng = random.Random(8)
    kills = Counter()
    while status(node)["state"] != "ended" and sum(kills.values()) < 14:
        time.sleep(rng.uniform(0.3, 1.5))
        victim = rng.choice(["listen", "work", "retrieve", "orthanc", "sweep", "node"])
        kills[victim] += 1
        if victim == "node":
            node.sigkill()
            node.start()
        elif victim == "orthanc":
            os.kill(pacs.pid, signal.SIGKILL)
            pacs.stop()
            pacs.start()
        elif pid := node.children().get(victim):
            os.kill(pid, signal.SIGKILL)
    assert sum(kills.values()) >= 5, kills
    wait_until(lambda: status(node)["state"] == "ended", timeout_s=180, poll_s=0.5, what="the run's end")
    if failed := status(node)["studies"]["failed"]:  # killed three times while it was fetched: tried once more
        node.run("retrospective", "resume", "march", "--failed", "--detach", check=True)
        wait_until(lambda: status(node)["state"] == "ended", timeout_s=120, poll_s=0.5, what=f"{failed} once more")
    expect_all_accounted_for(node, found)
    expect_nothing_of_ours(pacs, found)


def test_a_run_that_is_paused_fetches_nothing_until_it_is_resumed(make, archive):
    _, found = archive
    node = make("get", retrospective={"studies_per_minute": 40})
    plan(node)
    node.run("retrospective", "run", "march", "--detach", check=True)
    wait_until(lambda: status(node)["images"] > 0, what="the first image")
    node.run("retrospective", "pause", "march", check=True)
    wait_until(lambda: status(node)["studies"]["retrieving"] == 0, what="the study at hand")
    time.sleep(1)
    left = status(node)["studies"]["found"]
    time.sleep(3)
    assert status(node)["studies"]["found"] == left > 0
    node.run("retrospective", "resume", "march", "--detach", check=True)
    wait_until(lambda: status(node)["state"] == "ended", timeout_s=120, poll_s=0.5, what="the run's end")
    expect_all_accounted_for(node, found)


def test_outside_the_window_nothing_is_fetched_and_the_status_says_when_it_opens(make, archive):
    hour = (int(time.strftime("%H", time.gmtime())) + 2) % 24
    node = make("get", retrospective={"window": f"{hour:02d}:00-{(hour + 1) % 24:02d}:00"})
    plan(node)
    node.run("retrospective", "run", "march", "--detach", check=True)
    wait_until(lambda: "it opens at" in (status(node)["rests_because"] or ""), what="the reason")
    assert status(node)["images"] == 0


@pytest.fixture
def other(orthanc_program, data_dir, tmp_path):
    """An Orthanc of its own, for what is written into it."""
    with OrthancPacs(tmp_path / "other") as pacs:
        found = archives.studies(data_dir, 8, seed=1)
        archives.fill(pacs, found)
        yield pacs, found


def test_a_run_that_delivers_puts_reports_and_heatmaps_into_the_pacs_and_a_late_film_is_told_of_with_them(
    other, tmp_path
):
    pacs, found = other
    node = Node(tmp_path / "node", source(pacs, "get"), **SHORT, retrospective=ALL_DAY)
    try:
        node.start()
        plan(node, "loud", "--deliver")
        run(node, "loud")
        films = [study for study in found if study.kind == "frontal"]
        for study in films:
            assert results(pacs, study.uid) == (1, 1)
        with node.database.read() as session:
            rows = session.scalars(select(InstanceRow).where(InstanceRow.header_path.is_not(None))).all()
        assert rows
        assert all(row.path is None for row in rows)
        late = films[0].objects[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            late.SOPInstanceUID = late.file_meta.MediaStorageSOPInstanceUID = archives.uid("late")
        path = tmp_path / "late.dcm"
        path.write_bytes(archives.encoded(late))
        returncode, output = dcmsend(node.port, path)
        assert returncode == 0, output
        assert node.await_ended(late.SOPInstanceUID).state == "delivered"
        assert results(pacs, films[0].uid) == (2, 2)
        summary = node.ledger.summary(str(late.SOPInstanceUID))
        report = dcmread(node.archive / summary.objects["report"])
        assert len(predecessors(report)) == 1
        assert node.status()["invariant_holds"]
    finally:
        node.stop()


def test_a_film_that_comes_live_while_a_shadow_run_holds_it_is_screened_once_and_delivered(other, tmp_path):
    pacs, found = other
    node = Node(tmp_path / "node", source(pacs, "get"), **SHORT, retrospective=ALL_DAY)
    film = next(study for study in found if study.kind == "frontal")
    path = tmp_path / "film.dcm"
    path.write_bytes(archives.encoded(film.objects[0]))
    uid = str(film.objects[0].SOPInstanceUID)
    try:
        node.start()
        os.kill(node.children()["work"], signal.SIGSTOP)  # the run holds it, and no worker has seen it
        plan(node)
        node.run("retrospective", "run", "march", "--detach", check=True)
        wait_until(lambda: node.ledger.summary(uid), what="the film by the run")
        returncode, output = dcmsend(node.port, path)
        assert returncode == 0, output
        os.kill(node.children()["work"], signal.SIGCONT)
        assert node.await_ended(uid).state == "delivered"
        wait_until(lambda: status(node)["state"] == "ended", poll_s=0.5, what="the run's end")
        assert results(pacs, film.uid) == (1, 1)
        with node.database.read() as session:
            (screening,) = session.scalars(
                select(ScreeningRow)
                .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
                .where(InstanceRow.sop_instance_uid == uid)
            )
            times = session.scalars(
                select(TransitionRow.id).filter_by(screening_id=screening.id, to_state="predicted")
            ).all()
        assert (screening.purpose, len(times)) == ("live", 1)
        assert (node.archive / node.ledger.summary(uid).objects["heatmap"]).exists()
    finally:
        node.stop()


def test_the_report_s_figures_are_those_of_an_independent_computation(make, archive, tmp_path):
    _, found = archive
    node = make("get")
    plan(node)
    run(node)
    archives.write_labels(tmp_path / "labels.csv", found)
    done = node.run(
        *("retrospective", "report", "march", "--out", str(tmp_path / "out")),
        *("--labels", str(tmp_path / "labels.csv"), "--json"),
        check=True,
    )
    told = json.loads(done.stdout)
    name = told["question"]
    with (tmp_path / "out" / "march" / "studies.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] and row[f"{name}_probability"]]
    labels = np.array([int(row["label"]) for row in rows])
    scores = np.array([float(row[f"{name}_probability"]) for row in rows])
    truth = {study.uid: int(study.truth) for study in found if study.truth is not None}
    assert [truth[row["study_instance_uid"]] for row in rows] == labels.tolist()
    figures = told["validation"]
    assert figures["studies"] == len(rows)
    assert figures["auc"]["value"] == pytest.approx(roc_auc_score(labels, scores))
    assert figures["average_precision"]["value"] == pytest.approx(average_precision_score(labels, scores))
    page = (tmp_path / "out" / "march" / "report.html").read_text()
    assert all(study.patient_id not in page and study.accession_number not in page for study in found)
