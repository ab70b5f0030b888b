"""Faults planted in a node that is otherwise well: each has its own line, and only that one."""

import errno
import importlib.util
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification
from sqlalchemy import text

from dicom_node import doctor
from dicom_node.archive import OWNER, Archive
from dicom_node.bundle import find_bundle, read_manifest
from dicom_node.config import Settings
from dicom_node.database import Database
from dicom_node.demo.pacs import OrthancPacs, free_port
from dicom_node.doctor import machine, stores
from dicom_node.doctor.finding import ok
from dicom_node.ledger import Ledger
from dicom_node.listener import Listener
from tests.conftest import missing
from tests.ledger_factories import received
from tests.servers import PostgresServer, RedisServer

PATIENT = "Muster^Erika"
WRONG = "geheim-falsch"
CHECKS = [
    "settings",
    "database",
    "schema",
    "release",
    "broker",
    "archive",
    "archive owner",
    "bundle",
    "device",
    "networks",
    "clock",
    "listener",
    "peer pacs",
]


@pytest.fixture(autouse=True)
def _a_synchronised_machine(monkeypatch):
    """What the kernel says of this machine's clock is no matter of the node's."""
    monkeypatch.setattr(machine, "kernel_is_synchronised", lambda: True)


@pytest.fixture(autouse=True)
def _networks_that_were_asked_elsewhere(monkeypatch):
    """Loading them takes seconds each time; tests/unit/test_doctor.py asks real ones."""
    monkeypatch.setattr(machine, "networks", lambda *_: [ok("networks", "not asked")])


@pytest.fixture(scope="module")
def pacs(orthanc_program, tmp_path_factory):
    """A PACS that insists on its own AE title."""
    with OrthancPacs(tmp_path_factory.mktemp("pacs"), extra={"DicomCheckCalledAet": True}) as orthanc:
        yield orthanc


def install(values):
    """A ledger with one image of a patient, its archive and its running listener; the settings, and how to end it."""
    settings = Settings(**values)
    with_patient = received(patient_name=PATIENT, patient_id="4711")
    database = Database(settings.database_dsn)
    database.upgrade()
    ledger = Ledger(database)
    ledger.activate_release(read_manifest(find_bundle("starter")))
    ledger.record(with_patient)
    archive = Archive(settings.archive_dir)
    archive.belongs_to(database.ledger_id(), has_files=False)
    listener = Listener(settings, archive, ledger)
    listener.start()

    def end():
        listener.stop()
        database.close()

    return settings, end


def destination(pacs, **changed):
    values = {"name": "pacs", "ae_title": pacs.ae_title, "host": pacs.host, "port": pacs.port, "destination": True}
    return values | changed


def common(folder, pacs):
    return {
        "port": free_port(),
        "archive_dir": folder / "archive",
        "min_free_percent": 0,  # of the disk that runs the tests nothing is known
        "network_timeout_s": 2,
        "peers": [destination(pacs)],
    }


@pytest.fixture(scope="module")
def durable(postgres_server):
    """The tests' common server is not durable, and a doctor says so."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def service(durable, redis_server, pacs, tmp_path_factory):
    settings, end = install(
        common(tmp_path_factory.mktemp("service"), pacs)
        | {
            "database_url": durable.url(),
            "database_password": durable.password,
            "broker_url": redis_server.url,
            "broker_password": redis_server.password,
        }
    )
    yield settings
    end()


@pytest.fixture(scope="module")
def embedded(pacs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    settings, end = install(common(folder, pacs) | {"database_url": f"sqlite:///{folder / 'ledger.sqlite'}"})
    yield settings
    end()


@pytest.fixture(params=["service", "embedded"])
def well(request):
    """The settings of a node that is well, in both forms."""
    return request.getfixturevalue(request.param)


def changed(settings, **values):
    return Settings(**(settings.model_dump() | values))


def examined(settings):
    """The findings; none of them holds a secret, and no check takes longer than it may."""
    findings, began = [], time.monotonic()
    for finding in doctor.examine(settings):
        assert time.monotonic() - began < doctor._LIMITS_S.get(finding.check, doctor._LIMIT_S) + 1
        began = time.monotonic()
        findings.append(finding)
    shown = repr(findings)
    for secret in (settings.database_password.get_secret_value(), settings.broker_password.get_secret_value(), PATIENT):
        if secret:
            assert secret not in shown
            assert quote(secret, safe="") not in shown
    return findings


def seconds(finding, whose, sense):
    """By how much that server's clock is said to be off."""
    told = re.fullmatch(rf"the {whose}'s clock is (\d+\.\d) s {sense} this machine's", finding["what"])
    assert told, finding["what"]
    return float(told[1])


def the_fault(settings, check):
    """The one failure, which is that check's; everything else is well."""
    findings = examined(settings)
    assert [(finding.check, str(finding.level)) for finding in findings if finding.level != "ok"] == [
        (check, "failure")
    ], findings
    (found,) = (finding for finding in findings if finding.level == "failure")
    assert found.remedy
    return found


def test_a_node_that_is_well_has_no_fault_in_either_form(well):
    findings = examined(well)
    assert [finding for finding in findings if finding.level != "ok"] == []
    assert [finding.check for finding in findings] == CHECKS


def test_the_command_says_the_same_in_lines_and_in_json_and_shows_no_secret(well, tmp_path, monkeypatch, capsys):
    assert doctor.report(well, as_json=False) is True
    lines = capsys.readouterr().out
    assert [line.split()[0] for line in lines.splitlines()[:-1]] == ["ok"] * len(CHECKS)
    assert doctor.report(well, as_json=True) is True
    as_json = capsys.readouterr().out
    document = json.loads(as_json)
    assert document["ok"] is True
    assert [finding["check"] for finding in document["findings"]] == CHECKS
    for output in (lines, as_json):
        assert PATIENT not in output
        assert not well.database_password.get_secret_value() or well.database_password.get_secret_value() not in output


def test_it_changes_nothing(service):
    def state():
        return sorted(str(path) for path in Path(service.archive_dir).rglob("*"))

    before = state()
    examined(service)
    assert state() == before


def test_it_makes_no_folder_in_an_archive_that_was_just_restored(embedded, tmp_path):
    shutil.copy(embedded.archive_dir / OWNER, tmp_path / OWNER)
    findings = {finding.check: finding.level for finding in examined(changed(embedded, archive_dir=tmp_path))}
    assert findings["archive owner"] == "ok"
    assert [path.name for path in tmp_path.iterdir()] == [OWNER]


def test_1_a_database_that_is_down(service):
    with PostgresServer(fsync=False) as server:
        server.kill()
        database_url, password = server.url(), server.password
        fault = the_fault(changed(service, database_url=database_url, database_password=password), "database")
    assert f"127.0.0.1:{server.port}/cxr" in fault.what


def test_1_a_ledger_that_is_no_database(embedded, tmp_path):
    (tmp_path / "ledger.sqlite").write_text("no database" * 1000)
    the_fault(changed(embedded, database_url=f"sqlite:///{tmp_path / 'ledger.sqlite'}"), "database")


def test_2_a_wrong_database_password(service):
    fault = the_fault(changed(service, database_password=WRONG), "database")
    assert "password" in fault.what + fault.remedy


@pytest.mark.parametrize("revision", ["0001", None, "9999"])
def test_3_a_schema_of_another_version(service, durable, revision):
    durable.create_database("doctor_old")
    try:
        settings = changed(service, database_url=durable.url("doctor_old"))
        if revision is not None:
            database = Database(settings.database_dsn)
            database.upgrade()
            with database.write() as session:
                session.execute(text("UPDATE alembic_version SET version_num = :it"), {"it": revision})
            database.close()
        fault = the_fault(settings, "schema")
        assert (revision or "empty") in fault.what
        if revision != "9999":
            assert "dicom-node db upgrade" in fault.remedy
    finally:
        durable.drop_database("doctor_old")


def test_4_a_broker_that_is_down(service):
    with RedisServer() as server:
        server.kill()
        fault = the_fault(changed(service, broker_url=server.url, broker_password=server.password), "broker")
    assert f"127.0.0.1:{server.port}/0" in fault.what


def test_5_a_wrong_broker_password(service):
    fault = the_fault(changed(service, broker_password=WRONG), "broker")
    assert "set broker_password" in fault.remedy


def test_6_an_archive_that_cannot_be_written(well, tmp_path):
    (tmp_path / "archive").touch()
    fault = the_fault(changed(well, archive_dir=tmp_path / "archive"), "archive")
    assert "no folder" in fault.what


def test_6_an_archive_whose_disk_is_not_mounted(well, tmp_path):
    (tmp_path / "archive").mkdir()
    fault = the_fault(changed(well, archive_dir=tmp_path / "archive"), "archive owner")
    assert "mount" in fault.remedy


def test_7_a_disk_without_room(embedded):
    fault = the_fault(changed(embedded, min_free_percent=100), "archive")
    assert "less than min_free_percent = 100" in fault.what


def test_7_a_disk_that_is_full(embedded, monkeypatch):
    synchronise = os.fsync

    def full(descriptor):
        """What a disk without one free block does: the names of its files are safe, content is not taken."""
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synchronise(descriptor)

    monkeypatch.setattr(stores.os, "fsync", full)
    fault = the_fault(embedded, "archive")
    assert "No space left" in fault.what
    assert "make room" in fault.remedy
    assert list(embedded.archive_dir.glob(".doctor-*")) == []


def test_8_a_weight_file_with_one_changed_byte(embedded, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(find_bundle("starter"), folder)
    weights = folder / read_manifest(folder).members[0].weights[-1].file
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    fault = the_fault(changed(embedded, bundle=str(folder)), "bundle")
    assert weights.name in fault.what


def test_9_a_gpu_that_is_not_there(embedded):
    if importlib.util.find_spec("torch") is None:
        missing("torch is not installed (the extra `worker`)")
    fault = the_fault(changed(embedded, device="cuda:99"), "device")
    assert "cuda:99" in fault.what
    # a torch for CPUs; one for CUDA on a machine without a driver, with its GPUs hidden, and with fewer than a hundred
    assert re.search("built for CPUs alone|no NVIDIA driver|No CUDA GPUs|is not there: the machine has", fault.what)


def test_10_a_machine_whose_clock_is_not_the_brokers(service):
    findings = [f for f in doctor.examine(service, now=lambda: time.time() + 60) if f.level != "ok"]
    assert [(finding.check, str(finding.level)) for finding in findings] == [("clock", "failure")]
    assert seconds(asdict(findings[0]), "broker", "behind") == pytest.approx(60, abs=0.5)


def test_11_a_peer_that_is_down(embedded, pacs):
    port = free_port()
    fault = the_fault(changed(embedded, peers=[destination(pacs, port=port)]), "peer pacs")
    assert f"127.0.0.1:{port} refuses the connection" in fault.what


def test_11_a_peer_whose_name_does_not_resolve(embedded, pacs):
    fault = the_fault(changed(embedded, peers=[destination(pacs, host="pacs.invalid")]), "peer pacs")
    assert "pacs.invalid does not resolve" in fault.what


def test_12_a_peer_that_rejects_our_called_ae_title(embedded, pacs):
    fault = the_fault(changed(embedded, peers=[destination(pacs, ae_title="NOBODY")]), "peer pacs")
    assert "NOBODY" in fault.what
    assert "Called AE title not recognised" in fault.what
    assert "ae_title" in fault.remedy


def test_13_another_bundle_than_the_ledgers(well):
    database = Database(well.database_dsn)
    ledger = Ledger(database)
    ours = read_manifest(find_bundle("starter"))
    try:
        ledger.activate_release(ours.model_copy(update={"release": "0.9.9"}))
        fault = the_fault(well, "release")
    finally:
        ledger.activate_release(ours)
        database.close()
    assert "0.9.9" in fault.what
    assert ours.release in fault.what
    assert "dicom-node bundle use" in fault.remedy


def test_14_the_archive_of_another_ledger(well, tmp_path):
    other = str(uuid.uuid4())
    archive = Archive(tmp_path / "archive")
    archive.belongs_to(other, has_files=False)
    fault = the_fault(changed(well, archive_dir=tmp_path / "archive"), "archive owner")
    assert other in fault.what


def test_15_a_port_that_a_stranger_has_taken(well, pacs):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        fault = the_fault(changed(well, port=port), "listener")
    assert f"what holds 127.0.0.1:{port} does not answer C-ECHO" in fault.what
    assert str(port) in fault.remedy
    assert "what holds" in the_fault(changed(well, port=pacs.port), "listener").what


def test_15_a_port_that_another_dicom_program_has_taken(embedded):
    entity = AE(ae_title=embedded.ae_title)
    entity.implementation_class_uid = "1.2.3.4"
    entity.add_supported_context(Verification)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_ECHO, lambda _: 0)])
    try:
        fault = the_fault(changed(embedded, port=server.server_address[1]), "listener")
    finally:
        server.shutdown()
        entity.shutdown()
    assert "another DICOM program" in fault.what


def test_a_node_that_does_not_run_here_is_only_a_warning(embedded):
    findings = examined(changed(embedded, port=free_port()))
    assert [(finding.check, finding.level) for finding in findings if finding.level != "ok"] == [
        ("listener", "warning")
    ]


@pytest.mark.parametrize("older", [None, "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.88.22"])
def test_a_destination_that_takes_no_reports_is_warned_of_by_the_class(embedded, older):
    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(Verification)
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.7")
    if older:
        entity.add_supported_context(older)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    peer = {"name": "pacs", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": server.server_address[1]}
    try:
        findings = examined(changed(embedded, peers=[peer | {"destination": True}]))
    finally:
        server.shutdown()
        entity.shutdown()
    bad = [finding for finding in findings if finding.level != "ok"]
    if older:  # a report of that class is what it gets
        assert bad == []
        return
    (finding,) = bad
    assert (finding.check, finding.level) == ("peer pacs", "warning")
    assert "Comprehensive 3D SR Storage" in finding.what
    assert "it gets no reports" in finding.what


def test_a_peer_that_takes_the_connection_and_says_nothing(embedded):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer = {"name": "pacs", "ae_title": "SILENT", "host": "127.0.0.1", "port": silent.getsockname()[1]}
        fault = the_fault(changed(embedded, network_timeout_s=0.5, peers=[peer | {"destination": True}]), "peer pacs")
    assert "gives no DICOM answer" in fault.what


def test_10_a_machine_whose_clock_is_off(service, tmp_path):
    if shutil.which("faketime") is None:
        missing("faketime is not installed (Debian: apt-get install faketime)")
    secrets = {}
    for name in ("database_password", "broker_password"):
        file = tmp_path / name
        file.write_text(getattr(service, name).get_secret_value())
        secrets[f"DICOM_NODE_{name.upper()}_FILE"] = str(file)
    peers = [peer.model_dump(mode="json") for peer in service.peers]
    plain = {name: str(getattr(service, name)) for name in ("port", "archive_dir", "database_url", "broker_url")}
    variables = {f"DICOM_NODE_{name.upper()}": value for name, value in plain.items()}
    done = subprocess.run(
        ["faketime", "-f", "+10s", sys.executable, "-m", "dicom_node", "doctor", "--json"],
        env=os.environ
        | secrets
        | variables
        | {"DICOM_NODE_PEERS": json.dumps(peers), "DICOM_NODE_MIN_FREE_PERCENT": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    faults = [finding for finding in json.loads(done.stdout)["findings"] if finding["level"] == "failure"]
    assert [finding["check"] for finding in faults] == ["clock", "clock"]
    for finding, whose in zip(faults, ("database", "broker"), strict=True):
        assert seconds(finding, whose, "behind") == pytest.approx(10, abs=0.5)
        assert "synchronise" in finding["remedy"]


def test_a_database_that_a_power_cut_would_cost_images_is_warned_of(service, postgres_server, postgres_dsn):
    settings = changed(service, database_url=postgres_dsn, database_password="")
    warnings = [found for found in examined(settings) if found.check == "database" and found.level == "warning"]
    (found,) = warnings
    assert found.what.startswith("fsync, full_page_writes of ")
    assert found.remedy == "turn it on in postgresql.conf"


def test_a_source_is_asked_for_what_its_ways_need(embedded, pacs):
    """The small PACS of the demo answers C-FIND, and moves nothing."""
    peer = destination(pacs, retrieve=["move", "get"])
    told = {
        (finding.level, finding.what)
        for finding in examined(changed(embedded, peers=[peer]))
        if finding.check == "source pacs"
    }
    offers = {"C-FIND", "C-MOVE", "C-GET"}
    accepted = {service for service in offers if any(level == "ok" and service in what for level, what in told)}
    refused = {service for service in offers if any(level == "warning" and service in what for level, what in told)}
    assert accepted | refused == offers
    assert "C-FIND" in accepted


def test_a_source_by_the_web_that_is_not_there_is_a_failure(embedded, pacs):
    web = {"retrieve": ["web"], "find": "web", "web_url": f"http://127.0.0.1:{free_port()}/dicom-web"}
    fault = the_fault(changed(embedded, peers=[destination(pacs, **web)]), "source pacs")
    assert "cannot be reached" in fault.what
    assert "web_url" in fault.remedy
