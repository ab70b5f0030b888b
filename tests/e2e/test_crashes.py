"""Real SIGKILLs between each pair of the eight steps, at points seen in the ledger, the archive or the PACS.

Every test kills the whole node at its point, starts it again and asks a real Orthanc: one report, one heatmap.
"""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time

import numpy as np
import pytest
from sqlalchemy import or_, select

from dicom_node.demo.instances import phantom_dataset
from dicom_node.tables import DeliveryRow, InstanceRow, ObjectRow, ScreeningRow
from tests.e2e.conftest import SHORT
from tests.e2e.harness import Node, alive, dcmsend, destination, results, wait_until

TRIES = 40


@pytest.fixture(scope="module")
def node(orthanc, tmp_path_factory):
    """The embedded node alone: the service has `tests.e2e.kills`."""
    found = Node(tmp_path_factory.mktemp("node"), destination(orthanc), **SHORT)
    try:
        yield found.start()
    finally:
        found.stop()


class Film:
    """A phantom as a file; `large` makes one that takes a while to write."""

    def __init__(self, folder, number, *, large=False):
        ds = phantom_dataset(number, fresh_uids=True)
        if large:
            pixels = np.kron(ds.pixel_array, np.ones((4, 4), np.uint16))
            ds.Rows, ds.Columns = pixels.shape
            ds.PixelData = pixels.tobytes()
        self.uid, self.study = str(ds.SOPInstanceUID), str(ds.StudyInstanceUID)
        self.path = folder / f"{self.uid}.dcm"
        ds.save_as(self.path, enforce_file_format=True)


@contextlib.contextmanager
def stopped(pid):
    """The process does not run while the block does, unless it was killed."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGCONT)


def state(node, uid):
    with node.database.read() as session:
        return session.scalar(
            select(ScreeningRow.state)
            .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
            .where(InstanceRow.sop_instance_uid == uid)
        )


def stored_files(node):
    return {path for path in node.archive.rglob("*.dcm") if path.parent.name != "incoming"}


def expect_one_result(node, pacs, film):
    node.start()
    if state(node, film.uid) is None:  # it never got Success, so the sender keeps it and sends it again
        returncode, output = dcmsend(node.port, film.path)
        assert returncode == 0, output
    assert node.await_ended(film.uid).state == "delivered"
    assert results(pacs, film.study) == (1, 1)
    assert node.status()["invariant_holds"]


@contextlib.contextmanager
def narrow_pipe(port, limit):
    """A way to the port that lets `limit` bytes through and then holds the rest back; gives its own port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        passed = threading.Event()

        def carry():
            with (
                contextlib.suppress(OSError),
                server.accept()[0] as near,
                socket.create_connection(("127.0.0.1", port)) as far,
            ):
                back = threading.Thread(target=answer, args=(far, near), daemon=True)
                back.start()
                left = limit
                while left and (part := near.recv(min(left, 65536))):
                    far.sendall(part)
                    left -= len(part)
                passed.set()
                back.join()

        def answer(far, near):
            with contextlib.suppress(OSError):
                while part := far.recv(65536):
                    near.sendall(part)

        carrier = threading.Thread(target=carry, daemon=True)
        carrier.start()
        yield server.getsockname()[1], passed
        carrier.join(10)


def test_killed_while_bytes_arrive(node, orthanc, tmp_path):
    """Receive | admit: part of the object is in the listener's memory, nothing in archive or ledger."""
    film = Film(tmp_path, 1, large=True)
    files = stored_files(node)
    with narrow_pipe(node.port, film.path.stat().st_size // 2) as (port, passed):
        sender = subprocess.Popen(["dcmsend", "127.0.0.1", str(port), str(film.path)])
        assert passed.wait(30)
        assert stored_files(node) == files
        assert state(node, film.uid) is None
        node.sigkill()
        assert sender.wait(60) != 0
    expect_one_result(node, orthanc, film)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("point", ["written, not named", "named, not in the ledger"])
def test_killed_while_it_stores(node, orthanc, tmp_path, point):
    """Admit | store, and inside store: the temporary file, or the file without its row."""
    incoming = node.archive / "incoming"

    def seen(files):
        return any(incoming.iterdir()) if point.startswith("written") else stored_files(node) - files

    for attempt in range(TRIES):
        film = Film(tmp_path, attempt, large=True)
        listener, files = node.children()["listen"], stored_files(node)
        sender = subprocess.Popen(["dcmsend", "127.0.0.1", str(node.port), str(film.path)])
        while not seen(files) and sender.poll() is None:
            pass
        with stopped(listener):
            time.sleep(0.01)
            if seen(files) and state(node, film.uid) is None:
                node.sigkill()
        if node.process.poll() is not None:
            break
        assert sender.wait(60) == 0
        node.await_ended(film.uid)
    assert node.process.poll() is not None, f"the point was not hit in {TRIES} tries"
    assert sender.wait(60) != 0
    expect_one_result(node, orthanc, film)
    assert not any(incoming.iterdir())


def test_killed_when_it_waits(node, orthanc, tmp_path):
    """Store and dispatch | claim: Success was answered, no worker has it."""
    film = Film(tmp_path, 2)
    with stopped(node.children()["work"]):
        returncode, output = dcmsend(node.port, film.path)
        assert returncode == 0, output
        assert state(node, film.uid) == "waiting"
        node.sigkill()
    expect_one_result(node, orthanc, film)


@pytest.mark.parametrize("point", ["claimed", "predicted"])
def test_killed_while_a_worker_holds_it(node, orthanc, tmp_path, point):
    """Claim | predict, and predict | report."""
    for attempt in range(TRIES):
        film = Film(tmp_path, attempt)
        worker = node.children()["work"]
        sender = subprocess.Popen(["dcmsend", "127.0.0.1", str(node.port), str(film.path)])
        while state(node, film.uid) not in (point, "reported", "delivered"):
            pass
        with stopped(worker):
            if state(node, film.uid) == point:
                assert sender.wait(30) == 0
                node.sigkill()
        if node.process.poll() is not None:
            break
        assert sender.wait(30) == 0
        node.await_ended(film.uid)
    assert node.process.poll() is not None, f"the point was not hit in {TRIES} tries"
    assert state(node, film.uid) == point
    expect_one_result(node, orthanc, film)


def test_killed_when_it_is_reported(node, orthanc, tmp_path):
    """Report | deliver: both objects are archived, none is sent."""
    film = Film(tmp_path, 3)
    with stopped(node.children()["deliver"]):
        dcmsend(node.port, film.path)
        wait_until(lambda: state(node, film.uid) == "reported", what="the report")
        assert results(orthanc, film.study) == (0, 0)
        node.sigkill()
    expect_one_result(node, orthanc, film)


def test_killed_between_two_deliveries(node, orthanc, tmp_path):
    """In deliver: the heatmap is sent, the report is not."""

    def sent(film):
        with node.database.read() as session:
            rows = session.execute(
                select(ObjectRow.kind, DeliveryRow.state)
                .join(DeliveryRow, DeliveryRow.object_id == ObjectRow.id)
                .join(
                    ScreeningRow,
                    or_(ScreeningRow.id == ObjectRow.screening_id, ScreeningRow.report_id == ObjectRow.report_id),
                )
                .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
                .where(InstanceRow.sop_instance_uid == film.uid)
            ).all()
        return {kind for kind, delivered in rows if delivered != "pending"}

    for attempt in range(TRIES):
        film = Film(tmp_path, attempt)
        deliver = node.children()["deliver"]
        dcmsend(node.port, film.path)
        while not sent(film):
            pass
        with stopped(deliver):
            if sent(film) == {"heatmap"}:
                node.sigkill()
        if node.process.poll() is not None:
            break
        node.await_ended(film.uid)
    assert node.process.poll() is not None, f"the point was not hit in {TRIES} tries"
    expect_one_result(node, orthanc, film)


class Detour:
    """A way to a port on which the answers can be held back: the peer does its work, and its word gets lost."""

    def __init__(self, port):
        self._port = port
        self.hold = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, far = self._server.accept()[0], socket.create_connection(("127.0.0.1", self._port))
                threading.Thread(target=self._carry, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._carry, args=(far, near, True), daemon=True).start()

    def _carry(self, source, target, answers):
        with contextlib.suppress(OSError), source:
            first = True
            while part := source.recv(65536):
                if answers and self.hold.is_set() and not first:  # the association is accepted, then silence
                    return
                target.sendall(part)
                first = False
            target.shutdown(socket.SHUT_WR)

    def close(self):
        self._server.close()


def test_killed_when_the_pacs_has_it_and_the_ledger_does_not_know(orthanc, tmp_path):
    """In deliver: the PACS stored the heatmap, and its answer is lost with the node."""
    detour = Detour(orthanc.port)
    node = Node(tmp_path / "node", destination(orthanc, port=detour.port), retry_base_s=0.2)
    film = Film(tmp_path, 5)
    try:
        node.start()
        detour.hold.set()
        assert dcmsend(node.port, film.path)[0] == 0
        wait_until(lambda: results(orthanc, film.study) == (0, 1), what="the heatmap in the PACS")
        assert state(node, film.uid) == "reported"
        node.sigkill()
        detour.hold.clear()
        expect_one_result(node, orthanc, film)
    finally:
        node.stop()
        detour.close()


@pytest.mark.parametrize("role", ["work", "deliver", "listen", "sweep"])
def test_a_killed_role_starts_again_and_nothing_is_lost(node, orthanc, tmp_path, role):
    film = Film(tmp_path, 4)
    killed = node.children()[role]
    if role == "work":
        dcmsend(node.port, film.path)
        wait_until(lambda: state(node, film.uid) not in (None, "waiting"), poll_s=0, what="the claim")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: node.children().get(role, killed) != killed, what=f"the new {role}")
    if role != "work":
        wait_until(lambda: dcmsend(node.port, film.path)[0] == 0, what="a listener")
    assert node.await_ended(film.uid).state == "delivered"
    assert results(orthanc, film.study) == (1, 1)
