import ctypes
import errno
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from dicom_node import doctor
from dicom_node.bundle import Code
from dicom_node.config import Peer, Settings
from dicom_node.demo.pacs import free_port
from dicom_node.doctor import machine, network
from dicom_node.doctor.finding import Level, failure_of, ok
from dicom_node.domain import BundleError
from dicom_node.report import SOP_CLASSES
from tests.conftest import missing
from tests.ensemble_factories import write_ensemble
from tests.factories import chest_dataset
from tests.result_factories import results

YEAR_2026_S = 1.78e9


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def torch_is_there():
    if importlib.util.find_spec("torch") is None:
        missing("torch is not installed (the extra `worker`)")


def settings(**changed):
    return Settings(**({"port": free_port()} | changed))


def found(check, given):
    """The findings of one check; those that come later, two of which load torch, are not made."""
    findings = []
    with closing(doctor.examine(given)) as examined:
        for finding in examined:
            if finding.check == check:
                findings.append(finding)
            elif findings:
                break
    return findings


def test_a_machine_without_anything_is_told_what_to_start_and_nothing_is_made(tmp_path):
    findings = {finding.check: finding for finding in doctor.examine(settings())}
    assert findings["database"].level == Level.FAILURE
    assert findings["database"].remedy == "start `dicom-node up` once"
    assert findings["archive"].level == findings["listener"].level == Level.WARNING
    assert "schema" not in findings
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_hangs_is_left_alone_and_what_it_had_found_is_kept(monkeypatch):
    monkeypatch.setattr(doctor, "_LIMIT_S", 0.05)
    release = threading.Event()

    def hanging():
        yield ok("slow", "so far")
        release.wait(60)

    findings = list(doctor._bounded("slow", hanging))
    release.set()
    assert [finding.level for finding in findings] == ["ok", "failure"]
    assert "no answer within" in findings[1].what


def test_a_torch_that_takes_half_a_minute_to_load_is_waited_for():
    assert doctor._LIMITS_S["device"] > machine.DEVICE_ANSWER_S >= 60


def test_a_check_that_breaks_is_a_finding_that_tells_no_text_of_the_error():
    def breaking():
        raise RuntimeError("Muster^Erika")
        yield

    (finding,) = doctor._bounded("broken", breaking)
    assert (finding.level, "RuntimeError at test_doctor.py" in finding.what) == ("failure", True)
    assert "Muster" not in finding.what


def test_a_folder_that_may_not_be_entered_is_named(tmp_path):
    def entering():
        raise PermissionError(13, "Permission denied", str(tmp_path))
        yield

    (finding,) = doctor._bounded("archive", entering)
    assert (finding.level, finding.what) == ("failure", f"{tmp_path}: Permission denied")


def test_what_an_error_says_is_parted_into_fault_and_remedy():
    finding = failure_of("bundle", BundleError("it is\nnot there: fetch it: now"), "nothing")
    assert (finding.what, finding.remedy) == ("it is not there", "fetch it: now")
    assert failure_of("bundle", BundleError("it is not there"), "look").remedy == "look"


def test_the_file_and_the_variables_that_were_read_are_named_without_their_values(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("geheim")
    monkeypatch.setenv("DICOM_NODE_BROKER_PASSWORD_FILE", str(secret))
    (first, second) = doctor._settings(settings(), tmp_path / "node.toml")
    assert first.what == f"read from {tmp_path / 'node.toml'}, DICOM_NODE_BROKER_PASSWORD_FILE"
    assert (second.level, "sent to nobody" in second.what) == ("warning", True)


def test_the_json_form_says_the_same_as_the_lines(capsys):
    given = settings(bundle="nowhere")
    assert doctor.report(given, as_json=False) is False
    lines = capsys.readouterr().out.splitlines()
    assert doctor.report(given, as_json=True) is False
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert len(lines) == len(document["findings"]) + 1
    for line, finding in zip(lines, document["findings"], strict=False):
        assert line.startswith(finding["level"])
        for part in ("check", "what", "remedy"):
            assert finding[part] in line
    assert "bundle 'nowhere'" in "".join(lines)


def test_a_listener_machine_without_torch_is_no_fault(monkeypatch):
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    for device in ("cpu", "cuda:1"):
        (finding,) = machine.device(settings(device=device))
        assert (finding.level, "no worker" in finding.what) == ("ok", True)


@pytest.mark.usefixtures("torch_is_there")
def test_more_threads_than_cores_are_a_warning():
    (finding,) = machine.device(settings(threads=1024))
    assert (finding.level, finding.remedy) == ("warning", "set threads = 0")
    (finding,) = machine.device(settings())
    cores = len(os.sched_getaffinity(0))
    assert finding == ok("device", f"cpu (setting `device`): {cores} cores, {cores} threads a worker")


GIB = 2**30


@pytest.mark.parametrize(
    ("told", "level", "shown"),
    [
        ({"built_for": None, "error": "not compiled"}, "failure", "for CPUs alone"),
        ({"built_for": "13.0", "error": "The NVIDIA driver is too old"}, "failure", "driver is too old"),
        ({"built_for": "13.0", "count": 1}, "failure", "the machine has 1 GPU"),
        (
            {"built_for": "13.0", "count": 2, "name": "H200", "free": 139 * GIB, "total": 140 * GIB},
            "ok",
            "H200, 139.0 of 140.0 GiB free",
        ),
    ],
)
def test_what_torch_tells_of_a_gpu_is_said(monkeypatch, told, level, shown):
    answer = subprocess.CompletedProcess([], 0, stdout=json.dumps(told))
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: answer)
    finding = machine._cuda("cuda:1")
    assert (finding.level, shown in finding.what) == (level, True)
    assert finding.what.startswith("cuda:1 (setting `device`)")


@pytest.mark.usefixtures("torch_is_there")
def test_a_driver_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(machine, "_ASK_CUDA", "import time; time.sleep(60)")
    monkeypatch.setattr(machine, "DEVICE_ANSWER_S", 0.3)
    (finding,) = machine.device(settings(device="cuda"))
    assert (finding.level, "no answer" in finding.what) == ("failure", True)


def test_a_clock_of_another_time_is_a_failure_and_names_whose_it_is():
    findings = list(machine.clock({"database": 7.0, "broker": -3.0}, YEAR_2026_S))
    assert [finding.level for finding in findings] == ["failure", "failure"]
    assert "database's clock is 7.0 s ahead of" in findings[0].what
    assert "broker's clock is 3.0 s behind" in findings[1].what
    (finding,) = machine.clock({}, 0.0)
    assert (finding.level, "1970" in finding.what) == ("failure", True)


def test_a_clock_that_nothing_synchronises_is_only_a_warning(monkeypatch):
    monkeypatch.setattr(machine, "kernel_is_synchronised", lambda: False)
    assert [finding.level for finding in machine.clock({"database": 0.1}, YEAR_2026_S)] == ["warning"]
    monkeypatch.setattr(machine, "kernel_is_synchronised", lambda: True)
    assert [finding.level for finding in machine.clock({"database": 0.1}, YEAR_2026_S)] == ["ok"]


def test_a_kernel_that_may_not_be_asked_is_not_said_to_have_answered(monkeypatch):
    monkeypatch.setattr(machine, "kernel_is_synchronised", lambda: None)
    (finding,) = machine.clock({"database": 0.1}, YEAR_2026_S)
    assert finding == ok("clock", "the kernel cannot be asked whether it is synchronised; +0.100 s to the database")


def test_the_kernel_is_asked_without_being_changed():
    assert machine.kernel_is_synchronised() in (True, False, None)


@pytest.mark.parametrize(("state", "synchronised"), [(0, True), (1, True), (5, False), (-1, None)])
def test_what_adjtimex_returns_is_understood(monkeypatch, state, synchronised):
    class Kernel:
        def __init__(self, name):
            pass

        def adjtimex(self, timex):
            return state

    monkeypatch.setattr(ctypes, "CDLL", Kernel)
    assert machine.kernel_is_synchronised() is synchronised


def test_an_archive_is_probed_and_nothing_stays(tmp_path):
    (tmp_path / "archive").mkdir()
    (finding,) = found("archive", settings(archive_dir=tmp_path / "archive", min_free_percent=0))
    assert (finding.level, "% (" in finding.what) == ("ok", True)
    assert list((tmp_path / "archive").iterdir()) == []


def test_files_that_were_never_finished_are_counted_and_those_at_hand_are_not(tmp_path):
    incoming = tmp_path / "archive" / "incoming"
    incoming.mkdir(parents=True)
    for name, age_s in (("old", 7200), ("new", 1)):
        (incoming / name).touch()
        os.utime(incoming / name, (time.time() - age_s,) * 2)
    given = settings(archive_dir=tmp_path / "archive", min_free_percent=0)
    assert [finding.level for finding in found("archive", given)] == ["ok", "warning"]
    assert "holds 1 files" in found("archive", given)[1].what
    assert len(list(incoming.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_a_failure(tmp_path):
    (tmp_path / "file").touch()
    (finding,) = found("archive", settings(archive_dir=tmp_path / "file" / "archive"))
    assert (finding.level, "cannot be made" in finding.what) == ("failure", True)


def test_an_install_without_the_service_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "dicom_node.dispatch", raising=False)
    monkeypatch.delattr("dicom_node.dispatch", raising=False)
    monkeypatch.setitem(sys.modules, "celery", None)
    (finding,) = found("broker", settings(broker_url="redis://127.0.0.1:1/0"))
    assert (finding.level, finding.remedy) == ("failure", "install cxr-dicom-node[service]")


def test_an_address_of_another_machine_cannot_be_listened_on():
    (finding,) = network.listener(settings(host="192.0.2.1", network_timeout_s=0.2))
    assert (finding.level, "cannot be listened on" in finding.what) == ("failure", True)


def test_a_peer_that_is_reached_from_elsewhere_alone_may_be_this_containers_fault(monkeypatch):
    def unreachable(*_, **__):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(network.socket, "create_connection", unreachable)
    peer = Peer(name="pacs", ae_title="PACS", host="192.0.2.1", port=104)
    finding = network._unreachable("peer pacs", "PACS at 192.0.2.1:104", peer)
    assert finding.what == "PACS at 192.0.2.1:104 cannot be reached (Network is unreachable)"
    assert "from this machine or container" in finding.remedy


def test_it_asks_for_the_classes_that_the_node_makes():
    heatmap, told = results(chest_dataset())
    assert {"reports": tuple(SOP_CLASSES), "heatmaps": (heatmap.SOPClassUID,)} == network.RESULT_CLASSES
    assert told.SOPClassUID == network.RESULT_CLASSES["reports"][0]


def test_a_code_of_a_question_that_the_bundle_does_not_ask_is_a_warning(tmp_path):
    folder = write_ensemble(tmp_path / "bundle")
    code = Code(value="840539006", scheme="SCT", meaning="COVID-19")
    known, typo = settings(codes={"covid19": code}), settings(codes={"covid19": code, "covid": code})
    assert [finding.level for finding in machine.bundle(known, folder)] == ["ok"]
    whole, told = machine.bundle(typo, folder)
    assert (whole.level, told.level, told.check) == ("ok", "warning", "bundle")
    assert told.what == "the setting `codes` names covid, a question that random 0.2 does not ask"
    assert told.remedy == "name one of covid19, or remove it"


def test_it_loads_no_torch():
    code = "import sys, dicom_node.doctor; print('torch' in sys.modules, 'celery' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]


def test_the_device_is_asked_for_the_golden_scores_of_the_bundle(tmp_path, monkeypatch):
    folder = write_ensemble(tmp_path / "bundle", golden=True)
    (finding,) = machine.networks(settings(), folder)
    assert finding == ok("networks", "cpu gives the golden scores of random 0.2 back")
    content = json.loads((folder / "golden.json").read_text())
    content[0]["scores"]["zhong"]["p_normal"] += 0.5
    text = json.dumps(content).encode()
    (folder / "golden.json").write_bytes(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["golden"]["sha256"] = hashlib.sha256(text).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (fault,) = machine.networks(settings(), folder)
    assert fault.level is Level.FAILURE
    assert "p_normal of zhong, image 1 is off by 0.5" in fault.what
    del manifest["golden"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (finding,) = machine.networks(settings(), folder)
    assert "holds no golden images" in finding.what
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    assert list(machine.networks(settings(), folder)) == []
