"""The node as a service: what its bells say, who goes first, whom it refuses, and what happens to what hangs."""

import base64
import json
import os
import re
import time

import pytest
from sqlalchemy import select, text, update

from dicom_node.demo.instances import phantom_dataset
from dicom_node.demo.pacs import free_port
from dicom_node.tables import InstanceRow, ReleaseRow, ScreeningRow, TransitionRow
from tests.e2e.conftest import SHORT
from tests.e2e.harness import Node, Service, dcmsend, destination, results, wait_until
from tests.e2e.kills import KILLS, series
from tests.ensemble_factories import write_ensemble
from tests.servers import PostgresServer, RedisServer

pytestmark = pytest.mark.usefixtures("dcmtk")


@pytest.fixture
def service(tmp_path, postgres_server, redis_server):
    """Not started, and without a destination."""
    found = Service(tmp_path / "node", postgres_server, redis_server, **SHORT)
    yield found
    found.stop()


def film(folder, number=0):
    ds = phantom_dataset(number, fresh_uids=True)
    path = folder / f"{ds.SOPInstanceUID}.dcm"
    ds.save_as(path, enforce_file_format=True)
    return ds, path


def transitions(service, state):
    """Screening ids and times, in order."""
    with service.database.read() as session:
        query = select(TransitionRow.screening_id, TransitionRow.at).filter_by(to_state=state)
        return session.execute(query.order_by(TransitionRow.id)).all()


def test_a_bell_alone_starts_an_image_within_a_second_and_says_nothing_of_it(service, tmp_path):
    """No sweep runs. Without a worker, the bell can be read; with one, the image is claimed at once."""
    ds, path = film(tmp_path)
    service.start(["listen"])
    assert dcmsend(service.port, path)[0] == 0
    with service.broker() as client:
        wait_until(lambda: client.llen("live"), what="the bell")
        (message,) = client.lrange("live", 0, -1)
    told = json.loads(message)
    assert json.loads(base64.b64decode(told["body"]))[:2] == [[], {}]
    for secret in (ds.SOPInstanceUID, ds.StudyInstanceUID, ds.PatientID, str(ds.PatientName), str(service.archive)):
        assert secret not in message.decode() + base64.b64decode(told["body"]).decode()

    service.start(["worker", "deliver"])
    assert service.await_ended(ds.SOPInstanceUID).state == "withheld"
    second, path = film(tmp_path, 1)
    assert dcmsend(service.port, path)[0] == 0
    assert service.await_ended(second.SOPInstanceUID).state == "withheld"
    with service.database.read() as session:
        received = session.scalar(select(InstanceRow.received_at).filter_by(sop_instance_uid=second.SOPInstanceUID))
    assert (transitions(service, "claimed")[-1].at - received).total_seconds() < 1


def test_live_work_overtakes_retrospective_work(service, tmp_path):
    service.start(["listen", "worker", "deliver"])
    for number in range(3):
        old, path = film(tmp_path, number)
        assert dcmsend(service.port, path)[0] == 0
        service.await_ended(old.SOPInstanceUID)
    service.stop_one("worker")
    with service.database.write() as session:  # what a night's work leaves in the ledger
        release = session.scalar(select(ReleaseRow.id))
        for key in session.scalars(select(InstanceRow.id)).all():
            night = {"purpose": "retrospective", "delivers": False, "state": "waiting"}
            session.add(ScreeningRow(instance_id=key, release_id=release, **night))
    ds, path = film(tmp_path, 7)
    assert dcmsend(service.port, path)[0] == 0
    service.start(["sweep"])
    with service.broker() as client:
        wait_until(lambda: client.llen("retrospective") == 3, what="bells for the night's work")
    service.start(["worker"])
    wait_until(lambda: len(transitions(service, "withheld")) == 7, what="all of it")
    with service.database.read() as session:
        live = session.scalar(
            select(ScreeningRow.id).join(InstanceRow).where(InstanceRow.sop_instance_uid == str(ds.SOPInstanceUID))
        )
    assert [key for key, _ in transitions(service, "claimed")].index(live) == 3


def test_two_workers_share_the_work_and_each_image_is_screened_once(service, tmp_path):
    service.start(["listen", "worker", "worker", "deliver"])
    films = [film(tmp_path, number) for number in range(12)]
    assert dcmsend(service.port, *[path for _, path in films])[0] == 0
    for ds, _ in films:
        assert service.await_ended(ds.SOPInstanceUID).state == "withheld"
    for state in ("claimed", "predicted", "reported"):
        keys = [key for key, _ in transitions(service, state)]
        assert sorted(keys) == sorted(set(keys))
        assert len(keys) == 12
    reported = [log.read_text().count(" reported") for role, _, log in service.processes if role == "worker"]
    assert sum(reported) == 12
    assert min(reported) > 0


@pytest.fixture(scope="module")
def loaded(orthanc, tmp_path_factory):
    """A whole service on servers that may be killed."""
    with PostgresServer() as postgres, RedisServer() as redis:
        service = Service(tmp_path_factory.mktemp("loaded"), postgres, redis, destination(orthanc), **SHORT)
        try:
            service.start()
            yield service, {"postgres": postgres, "redis": redis}
        finally:
            service.stop()


@pytest.mark.parametrize("part", KILLS)
def test_a_part_killed_under_load_loses_nothing_and_doubles_nothing(loaded, orthanc, tmp_path, part):
    service, servers = loaded
    outcome = series(part, 1, service, servers, orthanc, tmp_path)
    assert outcome.good, str(outcome)
    assert service.status()["invariant_holds"]
    if part == "postgres":  # whatever needs the database says so in a line, and says that it goes on
        told = service.logs
        assert outcome.refused
        for line in ("cannot keep ", "delivery pauses: ", "delivery goes on", "sweep pauses: ", "sweep goes on"):
            assert line in told
        assert f"the database 127.0.0.1:{servers['postgres'].port}/" in told


def test_servers_that_are_down_at_the_start_are_waited_for(orthanc, tmp_path):
    """The sender is told to come again while the database is away; without the broker, images are accepted."""
    ds, path = film(tmp_path)
    with PostgresServer() as postgres, RedisServer() as redis:
        service = Service(tmp_path / "node", postgres, redis, destination(orthanc), **SHORT)
        try:
            postgres.kill()
            redis.kill()
            for role in ("listen", "worker", "deliver", "sweep"):
                service.start_one(role, wait=False)
            wait_until(lambda: "OutOfResources" in dcmsend(service.port, path)[1], poll_s=0.2, what="a listener")
            wait_until(lambda: service.logs.count("waiting for it") >= 3, what="lines that say so")
            postgres.start()
            wait_until(lambda: dcmsend(service.port, path)[0] == 0, poll_s=0.2, what="Success")
            time.sleep(1)
            assert service.ledger.summary(ds.SOPInstanceUID).state == "waiting"
            redis.start()
            assert service.await_ended(ds.SOPInstanceUID).state == "delivered"
            assert results(orthanc, ds.StudyInstanceUID) == (1, 1)
            assert postgres.password not in service.logs
            assert redis.password not in service.logs
            assert len(service.living("worker")) == 1
        finally:
            service.stop()


def test_a_child_that_hangs_is_ended_and_at_last_the_image_fails(tmp_path, postgres_server, redis_server):
    """The archived file is replaced by a pipe that nobody writes to; reading it never returns."""
    service = Service(tmp_path / "node", postgres_server, redis_server, **SHORT, decode_timeout_s=4.0)
    hanging, path = film(tmp_path)
    good, other = film(tmp_path, 1)
    try:
        service.start(["listen", "sweep"])
        assert dcmsend(service.port, path)[0] == 0
        with service.database.read() as session:
            stored = service.archive / session.scalar(select(InstanceRow.path))
        stored.unlink()
        os.mkfifo(stored)
        service.start(["worker", "deliver"])
        assert dcmsend(service.port, other)[0] == 0
        summary = service.await_ended(hanging.SOPInstanceUID, timeout_s=120)
        assert (summary.state, summary.reason) == ("failed", "decoder_timeout")
        assert service.await_ended(good.SOPInstanceUID).state == "withheld"
        assert service.logs.count("decoding took longer than decode_timeout_s = 4 and") == 2
    finally:
        service.stop()


def test_sigterm_lets_a_worker_finish_and_nothing_is_counted_against_the_image(service, tmp_path):
    service.start(["listen", "worker"])
    films = [film(tmp_path, number) for number in range(4)]
    assert dcmsend(service.port, *[path for _, path in films])[0] == 0
    wait_until(lambda: transitions(service, "claimed"), poll_s=0.005, what="a claim")
    process = service.living("worker")[0]
    assert service.run("health", "worker", check=True).stdout == "worker: 1 alive\n"
    process.terminate()
    assert process.wait(30) == 0
    with service.database.read() as session:
        rows = session.scalars(select(ScreeningRow)).all()
        assert {row.state for row in rows} <= {"waiting", "reported"}
        assert all(row.failures == 0 and row.lease_expires_at is None for row in rows)
    service.start(["worker", "sweep", "deliver"])
    for ds, _ in films:
        assert service.await_ended(ds.SOPInstanceUID).state == "withheld"


@pytest.mark.parametrize("role", ["listen", "deliver", "sweep"])
def test_sigterm_ends_every_process_in_order(service, role):
    service.start(dict.fromkeys(["listen", role]))
    process = service.living(role)[0]
    assert service.run("health", role, check=True).stdout.startswith(role)
    process.terminate()
    assert process.wait(30) == 0
    done = service.run("health", role)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def refused(service, role, told, **variables):
    done = service.run(role, env=os.environ | variables)
    lines = [line for line in done.stderr.splitlines() if line.startswith("dicom-node: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert re.search(told, lines[0]), lines[0]
    return lines[0]


@pytest.mark.parametrize("role", ["listen", "worker", "deliver", "sweep"])
def test_each_service_refuses_a_wrong_password_by_name(service, role):
    refused(service, role, "password", DICOM_NODE_DATABASE_PASSWORD="no")  # noqa: S106
    if role != "worker":  # which asks the broker by the same code, and takes long to start
        refused(service, role, "refuses the password", DICOM_NODE_BROKER_PASSWORD="no")  # noqa: S106


def test_what_waiting_cannot_cure_is_refused_by_name(service):
    refused(service, "listen", "broker_url is not set", DICOM_NODE_BROKER_URL="", DICOM_NODE_BROKER_PASSWORD="")
    with service.database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    refused(service, "listen", "9999")
    with service.database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0003'"))


def test_two_nodes_with_one_ae_title_and_different_databases_are_kept_apart(
    service, postgres_server, redis_server, tmp_path
):
    """The second would take the first's archive, or its bells."""
    service.start(["listen"])
    name = "second_node"
    postgres_server.create_database(name)
    second = {"DICOM_NODE_DATABASE_URL": postgres_server.url(name), "DICOM_NODE_PORT": str(free_port())}
    other_broker = {"DICOM_NODE_BROKER_URL": f"{redis_server.url.removesuffix('/0')}/15"}
    try:
        service.run("db", "upgrade", check=True, env=os.environ | second)
        refused(service, "listen", "the archive .* belongs to ledger", **second, **other_broker)
        second["DICOM_NODE_ARCHIVE_DIR"] = str(tmp_path / "archive")
        refused(service, "listen", "the broker .* serves a node with another database", **second)
        refused(service, "deliver", "the broker .* serves a node with another database", **second)
    finally:
        postgres_server.drop_database(name)


def test_a_worker_without_the_ledgers_release_is_refused_by_name(service, tmp_path):
    other = write_ensemble(tmp_path / "other", release="9.9.9")
    service.run("bundle", "use", check=True, env=os.environ | {"DICOM_NODE_BUNDLE": str(other)})
    assert service.ledger.active_manifest().release == "9.9.9"
    told = refused(service, "worker", r"random 9\.9\.9, which is not among the installed bundles")
    assert "dicom-node bundle use" in told


def test_a_listener_without_a_release_is_refused(service):
    with service.database.write() as session:
        session.execute(update(ReleaseRow).values(active=False))
    refused(service, "listen", "dicom-node db upgrade")


def test_a_worker_without_its_device_ends_with_one_clear_line(service):
    import torch

    index = torch.cuda.device_count()
    done = service.run("worker", "--device", f"cuda:{index}")
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert f"device 'cuda:{index}' is not there" in done.stderr


def test_an_embedded_node_and_a_service_never_share_an_archive(service, tmp_path):
    service.start(["listen"])
    done = service.run("up")
    assert done.returncode == 2
    assert "a node already runs on" in done.stderr
    other = Node(tmp_path / "other", archive_dir=str(service.archive))
    assert "a node already runs on" in other.run("up").stderr
    service.stop_one("listen")
    assert "belongs to ledger" in other.run("up").stderr
