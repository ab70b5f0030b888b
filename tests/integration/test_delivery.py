"""The SCU and the outbox against peers that misbehave in every way a PACS can."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, dsutils, evt
from sqlalchemy import select, update

from dicom_node.archive import Archive, Product
from dicom_node.claims import Claims
from dicom_node.config import Peer, Settings
from dicom_node.delivery import deliver_due
from dicom_node.demo.instances import phantom_dataset
from dicom_node.demo.pacs import free_port
from dicom_node.domain import DeliveryError, ObjectKind
from dicom_node.ledger import Ledger
from dicom_node.outbox import Outbox
from dicom_node.pacs import Pacs
from dicom_node.reports import Reports
from dicom_node.results import encode
from dicom_node.roles import make_depot
from dicom_node.tables import DeliveryRow, DeliveryTryRow, ObjectRow, ScreeningRow
from tests.ledger_factories import prediction, received
from tests.result_factories import manifest

COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"


@contextlib.contextmanager
def peer_answering(answer, *, sop_classes=(COMPUTED_RADIOGRAPHY,), require_called=None, syntax=ExplicitVRLittleEndian):
    """A peer that answers C-STORE by `answer(event)`."""
    entity = AE(ae_title="PACS")
    entity.add_supported_context("1.2.840.10008.1.1")
    for sop_class in sop_classes:
        entity.add_supported_context(sop_class, syntax)
    if require_called:
        entity.ae_title = require_called
        entity.require_called_aet = True
    port = free_port()
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)])
    try:
        yield Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, destination=True)
    finally:
        server.shutdown()
        entity.shutdown()


@pytest.fixture
def parcels(database, tmp_path):
    """A reported screening whose two objects are due at `pacs`."""
    archive = Archive(tmp_path / "archive")
    Ledger(database).activate_release(manifest())
    report(database, archive, ["pacs"])
    return database, Outbox(database, retry_base_s=60, retry_max_s=60), archive


def deliver(parcels, settings, **options):
    """One turn of the delivery."""
    database, _, archive = parcels
    fixed = {"retry_base_s": 60.0, "retry_max_s": 60.0, "archive_dir": archive.locate("")}
    return deliver_due(make_depot(settings.model_copy(update=fixed), database, None), **options)


def report(database, archive, destinations, number=0):
    """One more screening is reported, its two objects due at each destination."""
    claims = Claims(database)
    Ledger(database).record(received(f"5{number}"))
    claim = claims.claim("worker", 60)
    claims.save_prediction(claim, prediction(claim.manifest), None)
    products = []
    for offset, kind in enumerate((ObjectKind.HEATMAP, ObjectKind.REPORT)):
        ds = phantom_dataset(2 * number + offset)
        products.append(Product(kind, str(ds.SOPClassUID), str(ds.SOPInstanceUID), archive.store(encode(ds))))
    claims.save_heatmap(claim, products[0], destinations, [])
    reports = Reports(database)
    reports.issue(reports.draft(reports.due(0, 1)[0]), products[1], destinations)


def outcome(parcels, peer):
    """States of the deliveries, state of the screening and the statuses seen, after one try."""
    database, outbox, _ = parcels
    settings = Settings(peers=(peer,), network_timeout_s=2.0)
    assert deliver(parcels, settings) == 2
    with database.read() as session:
        screening = session.scalars(select(ScreeningRow.state)).one()
        statuses = session.scalars(select(DeliveryTryRow.status).order_by(DeliveryTryRow.id)).all()
    return outbox.counts()["pacs"], screening, statuses


def test_what_a_peer_takes_that_can_prove_nothing_is_unproven(parcels):
    with peer_answering(lambda _: 0x0000) as peer:
        assert outcome(parcels, peer) == ({"unproven": 2}, "delivered", [0, 0])


def test_what_the_peer_gets_is_what_is_archived(parcels):
    got = []

    def keep(event):
        got.append(event.request.DataSet.getvalue())
        return 0x0000

    with peer_answering(keep) as peer:
        outcome(parcels, peer)
    assert got == [dsutils.encode(phantom_dataset(number), False, True) for number in (0, 1)]


def test_a_warning_means_that_the_object_is_stored(parcels):
    with peer_answering(lambda _: 0xB000) as peer:
        assert outcome(parcels, peer) == ({"unproven": 2}, "delivered", [0xB000, 0xB000])


@pytest.mark.parametrize("status", [0xA700, 0xA701, 0x0110])
def test_a_lack_of_resources_is_tried_again(parcels, status):
    with peer_answering(lambda _: status) as peer:
        assert outcome(parcels, peer) == ({"pending": 2}, "reported", [status, status])


@pytest.mark.parametrize("status", [0xA900, 0xC000, 0x0122, 0x0124])
def test_a_refusal_of_the_object_ends_its_delivery(parcels, status):
    with peer_answering(lambda _: status) as peer:
        assert outcome(parcels, peer) == ({"rejected": 2}, "failed", [status, status])


def test_one_refused_object_does_not_keep_the_other_back(parcels):
    answers = iter([0xC000, 0x0000])
    with peer_answering(lambda _: next(answers)) as peer:
        assert outcome(parcels, peer) == ({"rejected": 1, "unproven": 1}, "failed", [0xC000, 0])


def test_an_abort_in_mid_association_is_tried_again(parcels):
    def abort(event):
        threading.Thread(target=event.assoc.abort).start()
        event.assoc.dul.kill_dul()
        return 0x0000

    with peer_answering(abort) as peer:
        states, screening, _ = outcome(parcels, peer)
    assert states == {"pending": 2}
    assert screening == "reported"


def test_nobody_at_the_port_is_tried_again(parcels):
    peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=free_port(), destination=True)
    assert outcome(parcels, peer) == ({"pending": 2}, "reported", [None, None])


def test_a_peer_that_accepts_and_then_says_nothing_is_tried_again(parcels):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=silent.getsockname()[1], destination=True)
        assert outcome(parcels, peer) == ({"pending": 2}, "reported", [None, None])


def test_an_unknown_ae_title_is_rejected_for_good(parcels):
    with peer_answering(lambda _: 0x0000, require_called="OTHER") as peer:
        assert outcome(parcels, peer) == ({"rejected": 2}, "failed", [None, None])


def test_a_peer_that_takes_no_such_object_is_rejected_for_good(parcels):
    with peer_answering(lambda _: 0x0000, sop_classes=("1.2.840.10008.5.1.4.1.1.2",)) as peer:
        assert outcome(parcels, peer) == ({"rejected": 2}, "failed", [None, None])


def test_a_destination_that_left_the_settings_is_kept_for_its_return(parcels):
    _, outbox, _ = parcels
    assert deliver(parcels, Settings()) == 2
    assert outbox.counts() == {"pacs": {"pending": 2}}


def test_a_host_name_that_does_not_resolve_is_tried_again_and_named(parcels):
    peer = Peer(name="pacs", ae_title="PACS", host="nowhere.invalid", port=104, destination=True)
    assert outcome(parcels, peer) == ({"pending": 2}, "reported", [None, None])


def test_a_peer_that_takes_only_implicit_vr_gets_the_same_data_set(parcels):
    got = []

    def keep(event):
        got.append((event.context.transfer_syntax, event.dataset))
        return 0x0000

    with peer_answering(keep, syntax=ImplicitVRLittleEndian) as peer:
        assert outcome(parcels, peer) == ({"unproven": 2}, "delivered", [0, 0])
    for number, (syntax, ds) in enumerate(got):
        assert syntax == ImplicitVRLittleEndian
        assert ds.PixelData == phantom_dataset(number).PixelData
        assert ds.PatientName == phantom_dataset(number).PatientName


@pytest.mark.parametrize("damage", ["missing", "garbage", "no file meta"])
def test_an_object_that_the_archive_lost_ends_and_the_others_go_on(parcels, damage):
    database, _, archive = parcels
    with database.read() as session:
        path = archive.locate(session.scalars(select(ObjectRow.path).order_by(ObjectRow.id)).first())
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"garbage" if damage == "garbage" else b"\0" * 128 + b"DICM")
    with peer_answering(lambda _: 0x0000) as peer:
        states, screening, _ = outcome(parcels, peer)
    assert states == {"rejected": 1, "unproven": 1}
    assert screening == "failed"


def test_an_association_that_dies_inside_the_request_is_tried_again(parcels, monkeypatch):
    """pynetdicom then meets its own missing socket; that is no fault of the object."""

    def dies(*_):
        raise AttributeError("'NoneType' object has no attribute 'send'")

    with peer_answering(lambda _: 0x0000) as peer, monkeypatch.context() as patched:
        patched.setattr("pynetdicom.association.Association.send_c_store", dies)
        assert outcome(parcels, peer) == ({"pending": 2}, "reported", [None])  # of the one that it died over


def test_a_lease_outlives_a_peer_that_takes_its_time(parcels):
    """Two leases long: nobody else is given the object meanwhile."""
    _, outbox, _ = parcels
    others = []

    def slowly(_):
        for _ in range(4):
            time.sleep(0.25)
            others.append(outbox.claim("other", 10, 20))
        return 0x0000

    with peer_answering(slowly) as peer:
        settings = Settings(peers=(peer,), network_timeout_s=5.0, lease_s=0.5)
        assert deliver(parcels, settings) == 2
    assert others == [[]] * 8
    assert outbox.counts() == {"pacs": {"unproven": 2}}


def test_who_lost_its_lease_stops_and_changes_nothing(parcels, caplog):
    database, outbox, _ = parcels

    def steal(_):
        with database.write() as session:
            session.execute(update(DeliveryRow).where(DeliveryRow.state == "pending").values(holder="thief"))
        time.sleep(0.4)
        return 0x0000

    with peer_answering(steal) as peer:
        deliver(parcels, Settings(peers=(peer,), network_timeout_s=5.0, lease_s=0.5))
    assert outbox.counts() == {"pacs": {"pending": 1, "sent": 1}}
    assert "another process has the objects for pacs by now" in caplog.text
    with database.read() as session:
        assert session.scalars(select(DeliveryRow.holder).order_by(DeliveryRow.id)).all() == ["thief", "thief"]


KILLED = """
import sys
from pathlib import Path
from dicom_node.config import Peer, Settings
from dicom_node.database import Database
from dicom_node.delivery import deliver_due
from dicom_node.roles import make_depot

url, archive, port = sys.argv[1:]
peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=int(port), destination=True)
settings = Settings(peers=(peer,), lease_s=1.0, archive_dir=Path(archive))
deliver_due(make_depot(settings, Database(url), None))
"""


def test_what_a_killed_deliverer_held_goes_on_within_its_lease(parcels):
    """A real SIGKILL after the first object is at the peer and before its row is closed."""
    database, outbox, archive = parcels
    got, running = [], []

    def kill_at_first(event):
        got.append(event.request.AffectedSOPInstanceUID)
        if len(got) == 1:
            running[0].kill()
            running[0].wait()
        return 0x0000

    with peer_answering(kill_at_first) as peer:
        running.append(
            subprocess.Popen([sys.executable, "-c", KILLED, database.url, str(archive.locate("")), str(peer.port)])
        )
        assert running[0].wait(30) == -signal.SIGKILL
        settings, until = Settings(peers=(peer,), lease_s=20), time.monotonic() + 4
        while not deliver(parcels, settings):
            assert time.monotonic() < until
            time.sleep(0.02)
    assert outbox.counts() == {"pacs": {"unproven": 2}}
    assert got == [got[0], *got[:1], got[2]]  # the first one twice: the same object


def test_a_destination_that_hangs_keeps_no_other_waiting(parcels):
    """Two deliverers: one is held by the peer that hangs, the other one goes on."""
    database, outbox, archive = parcels
    for number in (1, 2):
        report(database, archive, ["pacs", "quick"], number)
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent, peer_answering(lambda _: 0x0000) as quick:
        hanging = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=silent.getsockname()[1], destination=True)
        settings = Settings(peers=(hanging, quick.model_copy(update={"name": "quick"})), network_timeout_s=15.0)
        held = threading.Thread(target=deliver, args=(parcels, settings))
        held.start()
        connection, _ = silent.accept()
        while outbox.counts()["quick"].get("unproven") != 4:
            assert time.monotonic() - began < 10
            deliver(parcels, settings)
        assert held.is_alive()
        connection.close()
        held.join()
    assert outbox.counts() == {"pacs": {"pending": 6}, "quick": {"unproven": 4}}


@pytest.mark.usefixtures("dcmtk")
def test_a_peer_that_stops_reading_in_mid_object_costs_its_time_limit_and_no_more(tmp_path):
    """More is sent than the sockets' buffers take: the thread that sends is stuck, where no DICOM timer reaches it."""
    ds = phantom_dataset(0)
    ds.Rows, ds.Columns = 5000, 4000
    ds.PixelData = bytes(2 * 5000 * 4000)
    path = tmp_path / "large.dcm"
    ds.save_as(path, enforce_file_format=True)
    peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=free_port())
    with subprocess.Popen(["storescp", "--output-directory", str(tmp_path), str(peer.port)]) as scp:
        try:
            pacs = Pacs(peer, ae_title="CXRSCREEN", timeout_s=2.0)
            while True:
                with contextlib.suppress(DeliveryError):
                    pacs.echo()
                    break
            with pacs.store([ds.SOPClassUID]) as sender:
                scp.send_signal(signal.SIGSTOP)
                began = time.monotonic()
                with pytest.raises(DeliveryError) as raised:
                    sender.send(path)
            assert not raised.value.permanent
            assert time.monotonic() - began < 20
        finally:
            scp.send_signal(signal.SIGCONT)
            scp.kill()


def test_who_is_told_to_stop_begins_no_further_object_and_gives_the_rest_back(parcels):
    database, outbox, _ = parcels
    sent = []
    with peer_answering(lambda event: sent.append(event) or 0x0000) as peer:
        settings = Settings(peers=(peer,), network_timeout_s=2.0)
        deliver(parcels, settings, stopping=lambda: bool(sent))
        assert outbox.counts()["pacs"] == {"sent": 1, "pending": 1}
        with database.read() as session:
            row = session.scalars(select(DeliveryRow).filter_by(state="pending")).one()
        assert (row.holder, row.lease_expires_at, row.tries) == (None, None, 0)
        deliver(parcels, settings)
    assert outbox.counts()["pacs"] == {"unproven": 2}
