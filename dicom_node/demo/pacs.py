"""A PACS on this machine for the demo and the tests: Orthanc where it is installed, otherwise a small one of our own.

Both are started and stopped alike and are known by `ae_title`, `host`, `port`, `folder` and `name`. Neither is made
for patients. Orthanc 1.10 cannot bind its ports to one address: it takes C-ECHO and C-STORE from anywhere that
reaches this machine, allows queries and retrieval to the given peers at their own address only, and answers HTTP
from other machines with 401.
"""

from __future__ import annotations

import contextlib
import hashlib
import http
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any, Self, cast

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made at import from tables
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from dicom_node.archive import sync_folder
from dicom_node.demo import commitment
from dicom_node.domain import NodeError
from dicom_node.pixels import TRANSFER_SYNTAXES
from dicom_node.process import dying_with_this_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from pydicom.dataelem import DataElement
    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.events import Event
    from pynetdicom.transport import ThreadedAssociationServer

    from dicom_node.config import Peer

LOOPBACK = "127.0.0.1"
AE_TITLE = "DEMOPACS"
MAX_PDU = 131072  # the most that Orthanc takes
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0

# PS3.7 C and PS3.4 B.2.3, C.4.1.1.4
SUCCESS = 0x0000
INVALID_OBJECT_INSTANCE = 0x0117
OUT_OF_RESOURCES = 0xA700
IDENTIFIER_DOES_NOT_MATCH_CLASS = 0xA900
CANCELLED = 0xFE00
PENDING = 0xFF00

STORAGE_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
    BasicTextSRStorage,
    EnhancedSRStorage,
    ComprehensiveSRStorage,
    Comprehensive3DSRStorage,
    KeyObjectSelectionDocumentStorage,
)
UNIQUE_KEYS = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
UID_PATTERN = re.compile(r"[0-9.]{1,64}")
BULKY_VRS = {"SQ", "OB", "OD", "OF", "OL", "OV", "OW", "UN"}


class PacsError(NodeError):
    """The demo's PACS does not start."""

    reason = "demo_pacs"


def find_orthanc() -> str | None:
    """Where the Orthanc program is; Debian keeps it out of a user's PATH."""
    return shutil.which("Orthanc", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def open_pacs(folder: Path, *, ae_title: str = AE_TITLE, peers: Sequence[Peer] = ()) -> OrthancPacs | SmallPacs:
    """The best PACS that this machine has, not started yet; `folder` keeps its instances and is made when missing."""
    if find_orthanc() is None:
        return SmallPacs(folder, ae_title=ae_title, peers=peers)
    return OrthancPacs(folder, ae_title=ae_title, peers=peers)


class OrthancPacs:
    """Orthanc as a child process, with its configuration, its instances and its log in `folder`.

    Parameters
    ----------
    peers
        Who may query and retrieve, and where C-MOVE and storage commitment reports go.
    port, http_port
        Free ones where not given; the HTTP server serves this machine's loopback only.
    extra
        Configuration of Orthanc that goes over ours.
    """

    name = "Orthanc"
    host = LOOPBACK

    def __init__(
        self,
        folder: Path,
        *,
        ae_title: str = AE_TITLE,
        peers: Sequence[Peer] = (),
        port: int | None = None,
        http_port: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.ae_title = ae_title
        self.port = port or free_port()
        self.http_port = http_port or free_port()
        self.log = self.folder / "orthanc.log"
        self._peers = tuple(peers)
        self._extra = dict(extra or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the running Orthanc."""
        return self._process.pid if self._process else None

    def configuration(self) -> dict[str, Any]:
        """What Orthanc is told."""
        ours = {
            "Name": self.ae_title,
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "Plugins": [],
            "DicomAet": self.ae_title,
            "DicomPort": self.port,
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowStore": True,
            "DicomCheckModalityHost": True,
            "DicomModalities": {peer.name: _modality(peer) for peer in self._peers},
            "DefaultEncoding": "Utf8",  # C-FIND answers lose letters in the default, Latin1
            "MaximumPduLength": MAX_PDU,
            "OverwriteInstances": False,
            "HttpServerEnabled": True,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,  # 401 to anybody but the loopback
        }
        return ours | self._extra

    def introduce(self, peer: Peer) -> None:
        """One more peer may query and retrieve, and is reported to: at once where Orthanc runs, and when it starts."""
        self._peers = (*(known for known in self._peers if known.name != peer.name), peer)
        if self._process is None:
            return
        connection = http.client.HTTPConnection(self.host, self.http_port, timeout=5)
        try:
            connection.request("PUT", f"/modalities/{peer.name}", json.dumps(_modality(peer)))
            if connection.getresponse().status != http.HTTPStatus.OK:
                raise PacsError(f"Orthanc does not take the peer {peer.name}")
        finally:
            connection.close()

    def start(self) -> Self:
        """Orthanc runs and answers C-ECHO; it dies with this process, so start it from a thread that stays.

        Raises
        ------
        PacsError
            With the end of Orthanc's log, where it ends at once or does not answer in 30 s.
        """
        program = find_orthanc()
        if program is None:
            raise PacsError("Orthanc is not installed (Debian: apt install orthanc)")
        if self._process is not None:
            raise PacsError("this Orthanc is running already")
        (self.folder / "storage").mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "orthanc.json"
        configuration.write_text(json.dumps(self.configuration(), indent=2), encoding="utf-8")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                dying_with_this_process([program, str(configuration)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=os.environ | {"TCP_NODELAY": "1"},  # DCMTK inside; else every answer waits for an ACK
                start_new_session=True,  # Ctrl+C is for the demo, which then stops Orthanc in order
            )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Orthanc has ended; its files stay."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise PacsError(f"Orthanc ended with status {process.returncode}. {self._end_of_log()}")
            if self._web_server_is_up() and _answers_echo(self.host, self.port, self.ae_title):
                return
            time.sleep(0.05)
        raise PacsError(
            f"Orthanc does not answer C-ECHO on port {self.port} after {READY_TIMEOUT_S:.0f} s. {self._end_of_log()}"
        )

    def _web_server_is_up(self) -> bool:
        """Whether Orthanc's last step of starting is done; another program on its HTTP port does not count."""
        if not self.configuration()["HttpServerEnabled"]:
            return True
        connection = http.client.HTTPConnection(self.host, self.http_port, timeout=1)
        try:
            connection.request("GET", "/system")
            answer = connection.getresponse()
            system = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            return False
        finally:
            connection.close()
        return isinstance(system, dict) and system.get("DicomPort") == self.port

    def _end_of_log(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        return "\n  ".join([f"End of {self.log}:", *lines])


def _modality(peer: Peer) -> list[str | int]:
    """A peer as Orthanc wants it: it compares a caller's address with this text."""
    return [peer.ae_title, socket.gethostbyname(peer.host), peer.port]


class SmallPacs:
    """An archive of our own, as threads of this process, listening on the loopback.

    It answers C-ECHO, C-STORE of X-rays, Secondary Captures, reports and key objects, Study Root C-FIND at STUDY,
    SERIES and IMAGE level, and storage commitment, on which it reports to the address of the peer that asked, or
    over the association at hand. The files are the truth: the index of their headers is made anew at each start.
    Whoever sends an instance a second time gets Success, and the first one is kept.
    """

    name = "small PACS"
    host = LOOPBACK

    def __init__(
        self, folder: Path, *, ae_title: str = AE_TITLE, port: int | None = None, peers: Sequence[Peer] = ()
    ) -> None:
        self.folder = folder.absolute()
        self.ae_title = ae_title
        self.port = port or free_port()
        self._peers = {peer.ae_title: peer for peer in peers}
        self._server: ThreadedAssociationServer | None = None
        self._headers: dict[str, Dataset] = {}
        self._lock = threading.Lock()

    def start(self) -> Self:
        """The archive listens.

        Raises
        ------
        PacsError
            Where the port is taken.
        """
        if self._server is not None:
            raise PacsError("this small PACS is running already")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._headers = dict(self._read_headers())
        ae = AE(self.ae_title)
        ae.maximum_pdu_size = MAX_PDU
        ae.add_supported_context(Verification)
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        ae.add_supported_context(StorageCommitmentPushModel)
        for storage_class in STORAGE_CLASSES:
            ae.add_supported_context(storage_class, list(TRANSFER_SYNTAXES))
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_N_ACTION, self._commit),
        ]
        try:
            self._server = ae.start_server((self.host, self.port), block=False, evt_handlers=handlers)
        except OSError as error:
            raise PacsError(f"port {self.port} of {self.host} is taken: {error}") from error
        return self

    def stop(self) -> None:
        """Nobody listens any more and open associations are aborted; the files stay."""
        server, self._server = self._server, None
        if server is not None:
            server.ae.shutdown()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _read_headers(self) -> Iterator[tuple[str, Dataset]]:
        for path in sorted(self.folder.glob("*.dcm")):
            # A foreign file is not served.
            with contextlib.suppress(InvalidDicomError, AttributeError, ValueError):
                header = _header(path)
                yield str(header.SOPInstanceUID), header

    def _store(self, event: Event) -> int:
        """C-STORE (PS3.4 B): Success only after the file is on the disk."""
        uid = str(cast("C_STORE", event.request).AffectedSOPInstanceUID)
        if not UID_PATTERN.fullmatch(uid):
            return INVALID_OBJECT_INSTANCE
        path = self.folder / f"{hashlib.sha256(uid.encode()).hexdigest()}.dcm"
        with self._lock:
            if uid in self._headers:
                return SUCCESS
            temporary = path.with_suffix(".part")
            try:
                with temporary.open("wb") as file:
                    file.write(event.encoded_dataset())
                    file.flush()
                    os.fsync(file.fileno())
                header = _header(temporary)
                if header.get("SOPInstanceUID") != uid:
                    return IDENTIFIER_DOES_NOT_MATCH_CLASS
                temporary.replace(path)
                sync_folder(self.folder)
            except OSError:
                return OUT_OF_RESOURCES
            finally:
                temporary.unlink(missing_ok=True)
            self._headers[uid] = header
        return SUCCESS

    def _commit(self, event: Event) -> tuple[int, None]:
        """N-ACTION (PS3.4 J.3.2): Success, and the report follows."""
        with self._lock:
            held = {uid: str(header.get("SOPClassUID", "")) for uid, header in self._headers.items()}
        report = commitment.report_on(event.action_information, held)
        asking = self._peers.get(str(event.assoc.requestor.ae_title).strip())
        commitment.send_later(report, self.ae_title, asking, event.assoc)
        return SUCCESS, None

    def _find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        """C-FIND (PS3.4 C.4.1): one answer for each study, series or instance that matches."""
        query = event.identifier
        level = str(query.get("QueryRetrieveLevel", ""))
        if level not in UNIQUE_KEYS:
            yield IDENTIFIER_DOES_NOT_MATCH_CLASS, None
            return
        with self._lock:
            headers = list(self._headers.values())
        keys = [key for key in query if key.keyword not in ("QueryRetrieveLevel", "SpecificCharacterSet")]
        groups: dict[str, list[Dataset]] = {}
        for header in headers:
            groups.setdefault(str(header.get(UNIQUE_KEYS[level], "")), []).append(header)
        for group in groups.values():
            if event.is_cancelled:
                yield CANCELLED, None
                return
            found = _described(group)
            if all(_matches(key, found.get(key.tag)) for key in keys):
                yield PENDING, self._answer(level, keys, found)

    def _answer(self, level: str, keys: Sequence[DataElement], found: Dataset) -> Dataset:
        answer = Dataset()
        answer.QueryRetrieveLevel = level
        answer.RetrieveAETitle = self.ae_title
        if "SpecificCharacterSet" in found:
            answer.SpecificCharacterSet = found.SpecificCharacterSet
        for key in keys:
            if key.tag in found:
                answer[key.tag] = found[key.tag]
            elif key.tag not in answer:
                answer.add_new(key.tag, key.VR, [] if key.VR == "SQ" else None)
        return answer


def _answers_echo(host: str, port: int, ae_title: str) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    ae = AE("DEMO")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 5
    ae.add_requested_context(Verification)
    association = ae.associate(host, port, ae_title=ae_title)
    if not association.is_established:
        if association.dul.socket is not None:
            association.dul.socket.close()  # pynetdicom leaves it open where the peer goes away meanwhile
        return False
    status = association.send_c_echo()
    association.release()
    return bool(status) and status.Status == SUCCESS


def _header(path: Path) -> Dataset:
    """The elements of a file that a query may ask for, with their values read."""
    header = Dataset()
    with path.open("rb") as file:
        for element in dcmread(file, stop_before_pixels=True):
            if element.VR not in BULKY_VRS:
                header[element.tag] = element
    return header


def _described(group: Sequence[Dataset]) -> Dataset:
    """The header of the group's first instance, and what only the group can tell (PS3.4 C.3.4)."""
    found = Dataset()
    found.update(group[0])
    found.ModalitiesInStudy = sorted({str(header.get("Modality", "")) for header in group} - {""})
    found.NumberOfStudyRelatedInstances = found.NumberOfSeriesRelatedInstances = len(group)
    found.NumberOfStudyRelatedSeries = len({header.get("SeriesInstanceUID") for header in group})
    return found


def _matches(key: DataElement, element: DataElement | None) -> bool:
    """Universal, single value, list of UIDs and date range matching (PS3.4 C.2.2.2); no wildcards."""
    wanted = [str(value) for value in _values(key)]
    if not wanted or wanted == ["*"]:
        return True
    held = [str(value) for value in _values(element)] if element is not None else []
    if key.VR == "DA" and "-" in wanted[0]:
        first, last = wanted[0].split("-", 1)
        return any(first <= value <= (last or "99991231") for value in held)
    return any(value in wanted for value in held)


def _values(element: DataElement) -> list[Any]:
    """The element's values, none where it is empty."""
    if element.VM == 0 or element.VR == "SQ":
        return []
    return list(element.value) if element.VM > 1 else [element.value]
