"""Both PACS of the demo, asked by DCMTK as any other peer would."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import dcmread
from pynetdicom import AE

from dicom_node.config import Peer
from dicom_node.demo import pacs as demo_pacs
from dicom_node.demo.instances import phantom_dataset
from dicom_node.demo.pacs import OrthancPacs, PacsError, SmallPacs, free_port, open_pacs
from tests.conftest import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom.dataset import Dataset

    AnyPacs = OrthancPacs | SmallPacs

ASKER = Peer(name="asker", ae_title="ASKER", host="127.0.0.1", port=11113)
PARENT = """
import sys, time
from pathlib import Path
from dicom_node.demo.pacs import OrthancPacs
print(OrthancPacs(Path(sys.argv[1])).start().pid, flush=True)
time.sleep(120)
"""


@pytest.fixture
def orthanc_pacs(orthanc_program: None, tmp_path: Path) -> Iterator[OrthancPacs]:
    with OrthancPacs(tmp_path / "orthanc", peers=(ASKER,)) as pacs:
        yield pacs
        if pacs.pid is not None:
            os.kill(pacs.pid, signal.SIGKILL)  # an orderly end takes Orthanc 3.5 s


@pytest.fixture
def small_pacs(tmp_path: Path) -> Iterator[SmallPacs]:
    with SmallPacs(tmp_path / "small") as pacs:
        yield pacs


@pytest.fixture(params=["orthanc_pacs", "small_pacs"])
def pacs(request: pytest.FixtureRequest) -> AnyPacs:
    started: AnyPacs = request.getfixturevalue(request.param)
    return started


def dcmtk(tool: str, pacs: AnyPacs, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """DCMTK's tool against the PACS."""
    if shutil.which(tool) is None:
        missing(f"DCMTK's {tool} is not installed")
    return subprocess.run(
        [tool, "-v", "-aet", ASKER.ae_title, "-aec", pacs.ae_title, pacs.host, str(pacs.port), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"TCP_NODELAY": "1"},
    )


def written(ds: Dataset, path: Path) -> Path:
    ds.save_as(path, enforce_file_format=True)
    return path


def found(pacs: AnyPacs, folder: Path, level: str, *keys: str) -> list[Dataset]:
    """What findscu gets as answers."""
    folder.mkdir()
    wanted = [argument for key in keys for argument in ("-k", key)]
    told = dcmtk("findscu", pacs, "-S", "-X", "-od", folder, "-k", f"QueryRetrieveLevel={level}", *wanted)
    assert told.returncode == 0, told.stderr
    return [dcmread(path, force=True) for path in sorted(folder.glob("rsp*.dcm"))]


def children_of(pacs_folder: Path) -> set[Path]:
    return {path for path in pacs_folder.rglob("*") if path.is_file()}


def is_running(pid: int) -> bool:
    """Whether the process lives; one that waits for its parent to look at it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pid: int, timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


def test_it_answers_echo(pacs: AnyPacs) -> None:
    assert dcmtk("echoscu", pacs).returncode == 0


@pytest.mark.parametrize("tool", ["storescu", "dcmsend"])
def test_a_phantom_sent_is_found_at_every_level(pacs: AnyPacs, tool: str, tmp_path: Path) -> None:
    phantoms = [phantom_dataset(0), phantom_dataset(2)]
    paths = [written(ds, tmp_path / f"{number}.dcm") for number, ds in enumerate(phantoms)]
    told = dcmtk(tool, pacs, *paths)
    assert told.returncode == 0, told.stderr + told.stdout
    wanted = phantoms[1]
    keys = {
        "STUDY": [f"StudyInstanceUID={wanted.StudyInstanceUID}", "PatientID", "StudyDate"],
        "SERIES": [f"StudyInstanceUID={wanted.StudyInstanceUID}", "SeriesInstanceUID", "Modality"],
        "IMAGE": [
            f"StudyInstanceUID={wanted.StudyInstanceUID}",
            f"SeriesInstanceUID={wanted.SeriesInstanceUID}",
            f"SOPInstanceUID={wanted.SOPInstanceUID}",
            "SOPClassUID",
        ],
    }
    for level, requested in keys.items():
        answers = found(pacs, tmp_path / level, level, *requested)
        assert len(answers) == 1, level
        for keyword in (key.split("=")[0] for key in requested):
            assert answers[0][keyword].value == wanted[keyword].value, (level, keyword)


def test_queries_match_by_value_by_list_of_uids_and_universally(pacs: AnyPacs, tmp_path: Path) -> None:
    phantoms = [phantom_dataset(index) for index in range(3)]
    for number, ds in enumerate(phantoms):
        ds.Rows, ds.Columns, ds.PixelData = 2, 2, bytes(8)
        assert dcmtk("storescu", pacs, written(ds, tmp_path / f"{number}.dcm")).returncode == 0
    uids = [ds.StudyInstanceUID for ds in phantoms]

    def studies(name: str, *keys: str) -> set[str]:
        return {answer.StudyInstanceUID for answer in found(pacs, tmp_path / name, "STUDY", *keys)}

    assert studies("all", "StudyInstanceUID", "PatientID") == set(uids)
    assert studies("list", f"StudyInstanceUID={uids[0]}\\{uids[2]}") == {uids[0], uids[2]}
    assert studies("patient", "StudyInstanceUID", f"PatientID={phantoms[1].PatientID}") == {uids[1]}
    assert studies("day", "StudyInstanceUID", f"StudyDate={phantoms[2].StudyDate}") == {uids[2]}
    assert studies("days", "StudyInstanceUID", f"StudyDate={phantoms[1].StudyDate}-") == set(uids[1:])
    assert studies("nobody", "StudyInstanceUID", "PatientID=NOBODY") == set()


def test_every_requested_key_is_answered(small_pacs: SmallPacs, tmp_path: Path) -> None:
    dcmtk("storescu", small_pacs, written(phantom_dataset(0), tmp_path / "phantom.dcm"))
    keys = ("StudyInstanceUID", "ModalitiesInStudy", "NumberOfStudyRelatedInstances", "PatientComments")
    (answer,) = found(small_pacs, tmp_path / "answers", "STUDY", *keys)
    assert answer.ModalitiesInStudy == "CR"
    assert answer.NumberOfStudyRelatedInstances == 1
    assert answer["PatientComments"].is_empty


def test_names_of_patients_survive_a_query(pacs: AnyPacs, tmp_path: Path) -> None:
    ds = phantom_dataset(0)
    ds.PatientName = "Wiśniewska^Zoë"
    dcmtk("storescu", pacs, written(ds, tmp_path / "phantom.dcm"))
    (answer,) = found(pacs, tmp_path / "answers", "STUDY", "StudyInstanceUID", "PatientName")
    assert answer.PatientName == "Wiśniewska^Zoë"


def test_what_it_archived_outlives_a_restart(pacs: AnyPacs, tmp_path: Path) -> None:
    ds = phantom_dataset(0)
    assert dcmtk("storescu", pacs, written(ds, tmp_path / "phantom.dcm")).returncode == 0
    pacs.stop()
    pacs.start()
    (answer,) = found(pacs, tmp_path / "answers", "IMAGE", "StudyInstanceUID", "SOPInstanceUID")
    assert answer.SOPInstanceUID == ds.SOPInstanceUID


def test_the_first_content_of_an_instance_is_kept(pacs: AnyPacs, tmp_path: Path) -> None:
    ds = phantom_dataset(0)
    dcmtk("storescu", pacs, written(ds, tmp_path / "first.dcm"))
    ds.StudyID = "CHANGED"
    assert dcmtk("storescu", pacs, written(ds, tmp_path / "second.dcm")).returncode == 0
    (answer,) = found(pacs, tmp_path / "answers", "STUDY", "StudyInstanceUID", "StudyID")
    assert answer.StudyID == "PH1"


@pytest.mark.parametrize("uid", ["../../escaped", "/tmp/escaped", "1.2.3/../../escaped"])  # noqa: S108
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_received_uid_never_becomes_a_path(pacs: AnyPacs, uid: str, tmp_path: Path) -> None:
    ds = phantom_dataset(0)
    ds.Rows, ds.Columns, ds.PixelData = 2, 2, bytes(8)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(ds, keyword, uid)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    sent = written(ds, tmp_path / "hostile.dcm")
    dcmtk("storescu", pacs, sent)
    assert [path for path in children_of(tmp_path) if "escaped" in str(path)] == []
    assert not Path("/tmp/escaped").exists()  # noqa: S108
    assert {path for path in children_of(tmp_path) if pacs.folder not in path.parents} == {sent}
    assert dcmtk("echoscu", pacs).returncode == 0


def test_the_small_pacs_names_files_by_digest(small_pacs: SmallPacs, tmp_path: Path) -> None:
    ds = phantom_dataset(0)
    sent = written(ds, tmp_path / "phantom.dcm")
    dcmtk("storescu", small_pacs, sent)
    (path,) = children_of(small_pacs.folder)
    assert re.fullmatch(r"[0-9a-f]{64}\.dcm", path.name)
    assert dcmread(path) == dcmread(sent)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_the_small_pacs_refuses_a_data_set_that_is_not_what_the_command_says(small_pacs: SmallPacs) -> None:
    assert _store_status(small_pacs, phantom_dataset(0), "1.2.3") == 0xA900
    assert _store_status(small_pacs, phantom_dataset(0), "../../x") == 0x0117
    assert children_of(small_pacs.folder) == set()


def _store_status(pacs: AnyPacs, ds: Dataset, affected_uid: str) -> int:
    """Status of a C-STORE whose command names another instance than its data set."""
    ae = AE("ASKER")
    ae.add_requested_context(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID)
    association = ae.associate(pacs.host, pacs.port, ae_title=pacs.ae_title)
    assert association.is_established
    original = association.dimse.send_msg

    def send_other(request: Any, context_id: int) -> None:
        request._affected_sop_instance_uid = request._AffectedSOPInstanceUID = affected_uid
        original(request, context_id)

    association.dimse.send_msg = send_other  # type: ignore[method-assign]
    status = int(association.send_c_store(ds).Status)
    association.release()
    return status


def test_the_small_pacs_does_not_serve_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "note.dcm").write_text("not DICOM")
    (tmp_path / "half.dcm").write_bytes(bytes(128) + b"DICM\2\0")
    with SmallPacs(tmp_path) as pacs:
        assert found(pacs, tmp_path / "answers", "STUDY", "StudyInstanceUID") == []


def test_an_unlisted_peer_may_not_query_orthanc(orthanc_program: str, tmp_path: Path) -> None:
    with OrthancPacs(tmp_path / "orthanc", extra={"HttpServerEnabled": False}) as pacs:
        told = dcmtk("findscu", pacs, "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID")
        assert "Peer Aborted Association" in told.stderr + told.stdout


def test_orthancs_web_server_serves_the_loopback_only(orthanc_pacs: OrthancPacs) -> None:
    address = own_address()
    if address is None:
        pytest.skip("this machine has only a loopback")
    assert http_status("127.0.0.1", orthanc_pacs.http_port) == 200
    assert http_status(address, orthanc_pacs.http_port) == 401


def own_address() -> str | None:
    """An address of this machine that is not the loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: only the route is looked up
        except OSError:
            return None
        return str(probe.getsockname()[0])


def http_status(host: str, port: int) -> int:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", "/system")
        return connection.getresponse().status
    finally:
        connection.close()


def test_extra_configuration_goes_over_ours(tmp_path: Path) -> None:
    pacs = OrthancPacs(tmp_path, extra={"DicomCheckCalledAet": True, "MaximumPduLength": 16384})
    assert pacs.configuration()["MaximumPduLength"] == 16384
    assert pacs.configuration()["DicomCheckCalledAet"] is True
    assert pacs.configuration()["OverwriteInstances"] is False


def test_an_orthanc_that_cannot_start_shows_the_end_of_its_log(orthanc_program: str, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        pacs = OrthancPacs(tmp_path, http_port=other.getsockname()[1])
        with pytest.raises(PacsError, match=r"(?s)ended with status.*orthanc\.log.*port"):
            pacs.start()
    assert pacs.pid is None


def test_orthanc_stops_when_told(orthanc_pacs: OrthancPacs) -> None:
    pid = orthanc_pacs.pid
    assert pid is not None
    assert is_running(pid)
    orthanc_pacs.stop()
    assert not is_running(pid)
    orthanc_pacs.stop()


def test_orthanc_dies_with_a_killed_parent(orthanc_program: str, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, tmp_path], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            pid = int(parent.stdout.readline())
            assert is_running(pid)
        finally:
            parent.send_signal(signal.SIGKILL)
            parent.wait()
    assert wait_until_gone(pid)


def test_a_launcher_whose_parent_is_gone_already_starts_nothing(tmp_path: Path) -> None:
    from dicom_node.process import dying_with_this_process

    command = dying_with_this_process(["touch", str(tmp_path / "started")])
    command[command.index(str(os.getpid()))] = "999999999"  # the parent that it had is another one
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "started").exists()


def test_orthanc_is_preferred_and_the_small_pacs_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_pacs, "find_orthanc", lambda: "/somewhere/Orthanc")
    assert isinstance(open_pacs(tmp_path, peers=(ASKER,)), OrthancPacs)
    monkeypatch.setattr(demo_pacs, "find_orthanc", lambda: None)
    assert isinstance(open_pacs(tmp_path, peers=(ASKER,)), SmallPacs)


def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    port = free_port()
    with (
        SmallPacs(tmp_path / "first", port=port),
        pytest.raises(PacsError, match="is taken"),
        SmallPacs(tmp_path / "second", port=port),
    ):
        pass
