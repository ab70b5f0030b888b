"""What a probe says of real peers, by negotiation alone."""

import json
import os
import signal
import socket

import pytest
import typer.testing
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ImplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from dicom_node import probe
from dicom_node.cli import app
from dicom_node.config import Peer, Settings, SettingsError
from dicom_node.demo.pacs import OrthancPacs, SmallPacs, free_port
from dicom_node.pacs import COMMITMENT
from tests.peers import CommittingPeer

EVERYTHING = {*probe.ASKED, Verification}


@pytest.fixture(scope="module")
def orthanc(orthanc_program, tmp_path_factory):
    with OrthancPacs(tmp_path_factory.mktemp("orthanc"), extra={"HttpServerEnabled": False}) as pacs:
        yield destination(pacs)
        os.kill(pacs.pid, signal.SIGKILL)  # an orderly end takes Orthanc 3.5 s


def destination(pacs, **changed):
    values = {"name": "pacs", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port, "destination": True}
    return Peer(**values | changed)


def settings(*peers, **changed):
    return Settings(peers=peers, **{"network_timeout_s": 2.0} | changed)


def printed(capsys, given, name=None):
    """What is printed, and whether every peer would get a report."""
    good = probe.report(given, name, as_json=False)
    return capsys.readouterr().out, good


def test_a_real_pacs_would_get_everything_and_gets_nothing(orthanc, capsys):
    found = probe.probe(orthanc, settings())
    assert set(found.accepted) == EVERYTHING
    assert found.report_class == Comprehensive3DSRStorage
    out, good = printed(capsys, settings(orthanc))
    assert good
    assert "report             Comprehensive 3D SR Storage" in out
    assert "proof of delivery  storage commitment, C-FIND" in out
    assert "C-ECHO             yes" in out


def test_what_is_proposed_fits_into_one_association(monkeypatch):
    proposed = []
    with CommittingPeer() as pacs:
        handlers = [(evt.EVT_REQUESTED, lambda event: proposed.append(len(event.assoc.requestor.requested_contexts)))]
        for handler in handlers:
            pacs._server.bind(*handler)
        probe.probe(pacs.peer, settings())
    (count,) = proposed
    assert count == 2 * len(EVERYTHING)
    assert count <= 128


def test_the_small_pacs_takes_all_that_the_node_makes(tmp_path):
    with SmallPacs(tmp_path) as pacs:
        assert set(probe.probe(destination(pacs), settings()).accepted) == EVERYTHING


@pytest.mark.parametrize("older", [ComprehensiveSRStorage, EnhancedSRStorage], ids=lambda uid: uid.keyword)
def test_a_peer_of_older_reports_is_told_which_it_would_get(older, capsys):
    classes = (older, SecondaryCaptureImageStorage)
    with CommittingPeer(sop_classes=classes, commits=False, syntaxes=[ImplicitVRLittleEndian]) as pacs:
        out, good = printed(capsys, settings(pacs.peer))
    assert good
    assert f"report             {older.name}" in out
    assert "proof of delivery  C-FIND" in out
    assert "rejection note     none: it does not accept Key Object Selection Document Storage" in out
    assert f"{older.name}: Implicit VR Little Endian\n" in out


def test_a_destination_that_takes_no_report_fails_and_says_of_which_classes(capsys):
    classes = (SecondaryCaptureImageStorage, KeyObjectSelectionDocumentStorage)
    with CommittingPeer(sop_classes=classes, commits=False, queries=False) as pacs:
        out, good = printed(capsys, settings(pacs.peer))
    assert not good
    assert "none: it accepts none of Comprehensive 3D SR Storage, Comprehensive SR Storage or Enhanced SR" in out
    assert "none: it accepts neither storage commitment nor C-FIND" in out


def test_one_peer_without_a_report_is_enough_to_fail(orthanc, capsys):
    with CommittingPeer(sop_classes=(SecondaryCaptureImageStorage,)) as pacs:
        out, good = printed(capsys, settings(orthanc, pacs.peer.model_copy(update={"name": "other"})))
    assert not good
    assert "pacs: DEMOPACS" in out
    assert "other: PACS" in out


def test_a_peer_that_accepts_nothing_is_one_line(capsys):
    entity = AE(ae_title="PACS")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.2")
    server = entity.start_server(("127.0.0.1", 0), block=False)
    try:
        peer = Peer(name="ct", ae_title="PACS", host="127.0.0.1", port=server.server_address[1], destination=True)
        out, good = printed(capsys, settings(peer))
    finally:
        server.shutdown()
        entity.shutdown()
    assert not good
    assert out.count("\n") == 1
    assert "accepts neither C-ECHO nor what is sent to it" in out


def test_a_peer_that_rejects_is_one_line_with_its_reason(capsys):
    with CommittingPeer() as pacs:
        pacs._entity.require_called_aet = True
        out, good = printed(capsys, settings(pacs.peer.model_copy(update={"ae_title": "OTHER"})))
    assert not good
    assert out.count("\n") == 1
    assert "rejects the association: Called AE title not recognised -> set this peer's ae_title" in out


def test_a_peer_that_gives_no_answer_and_one_that_is_not_there_are_one_line_each(capsys):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer = Peer(name="silent", ae_title="S", host="127.0.0.1", port=silent.getsockname()[1], destination=True)
        absent = Peer(name="absent", ae_title="A", host="127.0.0.1", port=free_port(), destination=True)
        out, good = printed(capsys, settings(peer, absent, network_timeout_s=0.5))
    assert not good
    first, second = out.splitlines()
    assert first.startswith("silent: S at ")
    assert "gives no DICOM answer" in first
    assert second.startswith("absent: A at ")
    assert "refuses the connection" in second


def run(tmp_path, *arguments, peers):
    config = tmp_path / "node.toml"
    config.write_text(
        "network_timeout_s = 2\n"
        + "".join(
            "[[peers]]\n"
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in peer.model_dump(mode="json").items())
            for peer in peers
        )
    )
    return typer.testing.CliRunner().invoke(app, ["--config", str(config), "doctor", *arguments])


def test_the_command_prints_json_of_the_destinations_or_of_the_named_peer(tmp_path):
    with CommittingPeer() as pacs, CommittingPeer(sop_classes=()) as other:
        peers = (pacs.peer, other.peer.model_copy(update={"name": "sender", "destination": False}))
        all_of_them = run(tmp_path, "--probe", "--json", peers=peers)
        the_other = run(tmp_path, "--probe", "sender", "--json", peers=peers)
    assert all_of_them.exit_code == 0
    document = json.loads(all_of_them.stdout)
    (found,) = document["peers"]
    assert document["ok"] is True
    assert (found["peer"], found["report"], found["heatmap"]) == ("pacs", Comprehensive3DSRStorage, True)
    assert (found["rejection_note"], found["storage_commitment"], found["query"], found["echo"]) == (
        False,
        True,
        True,
        True,
    )
    assert found["transfer_syntaxes"][COMMITMENT] == ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]
    assert the_other.exit_code == 1
    document = json.loads(the_other.stdout)
    assert (document["ok"], document["peers"][0]["report"]) == (False, None)


def test_nobody_to_probe_is_an_error_that_says_what_to_do():
    with pytest.raises(SettingsError, match="no peer is a destination"):
        probe.report(settings(), as_json=False)
    peer = Peer(name="pacs", ae_title="A", host="127.0.0.1", port=104)
    with pytest.raises(SettingsError, match="no peer is named 'pax'; the settings' peers: pacs"):
        probe.report(settings(peer), "pax", as_json=False)


def test_a_peer_is_named_to_the_probe_only(tmp_path):
    told = run(tmp_path, "pacs", peers=())
    assert told.exit_code != 0
    assert "say --probe" in str(told.exception)
