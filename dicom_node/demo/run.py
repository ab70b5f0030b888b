"""`dicom-node demo`: chest X-rays go in by C-STORE, and the results are asked of an embedded PACS by C-FIND."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pynetdicom import AE
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

from dicom_node.admission import SOP_CLASSES
from dicom_node.config import PREFIX, Peer, Settings
from dicom_node.database import Database
from dicom_node.demo.instances import phantom_dataset, picture_dataset
from dicom_node.demo.pacs import free_port, open_pacs
from dicom_node.domain import DeliveryError, NodeError, ObjectKind, State, place_of
from dicom_node.ledger import Ledger, Summary
from dicom_node.node import READY_LINE
from dicom_node.pacs import Pacs
from dicom_node.pixels import TRANSFER_SYNTAXES, read_instance
from dicom_node.process import dying_with_this_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PICTURES = {".png", ".jpg", ".jpeg"}
_LOOPBACK = "127.0.0.1"
_SENDER = "DEMOMODALITY"
_ENDED = (State.DELIVERED, State.WITHHELD, State.DECLINED, State.FAILED)
_START_TIMEOUT_S = 120.0
_PATIENCE_S = 60.0
_PATIENCE_PER_IMAGE_S = 15.0
_POLL_S = 0.05
_QUIET_S = 1.0  # each image of the demo is a study of its own


class DemoError(NodeError):
    """The demo cannot go on."""

    reason = "demo"


class RefusedError(NodeError):
    """The node did not take an image that it should have taken."""

    reason = "refused"


@dataclass
class _Sent:
    """One image on its way."""

    sop_instance_uid: str
    study_instance_uid: str
    sent_at: float
    refused: bool = False
    seconds: float | None = None
    in_pacs: frozenset[str] = frozenset()


def run(settings: Settings, *, images: Path | None, folder: Path, count: int) -> bool:
    """Whether every image that was not declined has its report and its heatmap in the PACS."""
    console = Console()
    sources = _sources(images, count)
    folder = folder.resolve() / time.strftime("%Y%m%d-%H%M%S")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise DemoError(f"{folder} cannot be made: {error.strerror}; set --folder") from error
    asking = Peer(name="demo", ae_title=_SENDER, host=_LOOPBACK, port=free_port())
    node = Peer(name="node", ae_title=settings.ae_title, host=_LOOPBACK, port=free_port())
    with open_pacs(folder / "pacs", peers=[asking, node]) as pacs:
        peer = Peer(name="demo-pacs", ae_title=pacs.ae_title, host=pacs.host, port=pacs.port, destination=True)
        web = f"http://{_LOOPBACK}:{free_port()}"
        config = _write_config(settings, peer, node.port, folder, web_port=int(web.rpartition(":")[2]))
        console.print(f"PACS: {pacs.name}, {pacs.ae_title} on {pacs.host}:{pacs.port}")
        with _running_node(config, folder / "node.log"):
            console.print(f"node: {node.ae_title} on {node.host}:{node.port}, log in {folder / 'node.log'}")
            console.print(f"worklist: {web}; its log names the first administrator's link", soft_wrap=True)
            database = Database(_database_url(folder))
            sent = _send(node, sources, folder / "sent", console)
            summaries = _wait(sent, Ledger(database), Pacs(peer, ae_title=_SENDER, timeout_s=30.0), console)
            database.close()
    console.print(_table(sent, summaries))
    for number, image in enumerate(sent, 1):
        console.print(f"{number} study {image.study_instance_uid}", soft_wrap=True)
        summary = summaries.get(image.sop_instance_uid)
        for kind, path in summary.objects.items() if summary else ():
            console.print(f"  {kind:7} {folder / 'archive' / path}", soft_wrap=True)
    console.print(f"database {folder / 'ledger.sqlite'}", soft_wrap=True)
    complete = all(_complete(summaries.get(image.sop_instance_uid), image) for image in sent)
    declined = sum(summary.state is State.DECLINED for summary in summaries.values())
    if declined:
        console.print(f"{declined} of {len(sent)} images were declined and have no result")
    if declined == len(sent):
        complete = False
        console.print("[bold red]no image was screened, so there is no result to show")
    elif complete:
        console.print("every result stands in the PACS")
    else:
        console.print("[bold red]results are missing in the PACS")
    console.print(f"to look at them: dicom-node --config {folder / 'node.toml'} up, and {web}", soft_wrap=True)
    console.print("Research and decision support only: not a medical device.")
    return complete


def _database_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'ledger.sqlite'}"


def _write_config(settings: Settings, peer: Peer, port: int, folder: Path, *, web_port: int) -> Path:
    """The node's settings as a file that `dicom-node --config` takes; JSON strings and numbers are TOML ones."""
    lines = {
        "ae_title": settings.ae_title,
        "host": _LOOPBACK,
        "port": port,
        "database_url": _database_url(folder),
        "archive_dir": str(folder / "archive"),
        "health_dir": str(folder / "health"),
        "bundle": settings.bundle,
        "bundles_dir": str(settings.bundles_dir),
        "device": settings.device,
        "study_quiet_s": _QUIET_S,
    }
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
    given = peer.model_dump(mode="json", exclude_defaults=True)
    text += f"\n[web]\nport = {web_port}\n"
    text += "\n[[peers]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items())
    path = folder / "node.toml"
    path.write_text(text)
    return path


@contextmanager
def _running_node(config: Path, log: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "dicom_node", "--config", str(config), "up"]
    # Variables go over the file: those of a real node must not lead the demo's phantoms into its ledger and PACS.
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    with log.open("w") as output:
        process = subprocess.Popen(
            dying_with_this_process(command),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        try:
            give_up_at = time.monotonic() + _START_TIMEOUT_S
            while READY_LINE not in log.read_text():
                if process.poll() is not None or time.monotonic() > give_up_at:
                    raise DemoError(f"the node did not start: {log.read_text()[-600:].strip()}")
                time.sleep(_POLL_S)
            yield
        finally:
            process.terminate()
            process.wait()


def _sources(images: Path | None, count: int) -> list[Path | int]:
    """The files to send, or the numbers of the phantoms."""
    if images is None:
        return list(range(count))
    found: list[Path | int] = [path for path in sorted(images.rglob("*")) if path.is_file()]
    if not found:
        raise DemoError(f"{images} holds no files")
    return found


def _send(node: Peer, sources: list[Path | int], folder: Path, console: Console) -> list[_Sent]:
    """Every image was sent over an association of its own; one that the node refused is marked so."""
    folder.mkdir()
    sent: list[_Sent] = []
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
        for source in progress.track(sources, description="Sending"):
            try:
                ds = phantom_dataset(source, fresh_uids=True) if isinstance(source, int) else _read(source)
                ds.save_as(folder / f"{len(sent):05}.dcm", enforce_file_format=True)
            except (NodeError, OSError, ValueError, AttributeError) as error:
                told = error if isinstance(error, NodeError) else place_of(error)
                console.print(f"{source} is left out: {told}", soft_wrap=True)
                continue
            image = _Sent(str(ds.SOPInstanceUID), str(ds.get("StudyInstanceUID", "")), time.monotonic())
            sent.append(image)
            try:
                _store(node, ds)
            except RefusedError as error:
                image.refused = True
                console.print(f"{source} was refused: {error}", soft_wrap=True)
    if not sent:
        raise DemoError("there was nothing to send")
    return sent


def _read(path: Path) -> Dataset:
    if path.suffix.lower() in _PICTURES:
        return picture_dataset(path)
    ds = read_instance(path.read_bytes())
    if ds.SOPClassUID not in SOP_CLASSES or ds.file_meta.TransferSyntaxUID not in TRANSFER_SYNTAXES:
        raise DemoError("the node takes no such SOP class or transfer syntax")
    return ds


def _store(node: Peer, ds: Dataset) -> None:
    entity = AE(ae_title=_SENDER)
    entity.add_requested_context(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID)
    association = entity.associate(node.host, node.port, ae_title=node.ae_title)
    if not association.is_established:
        raise RefusedError("no association with the node")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = association.send_c_store(ds)
    finally:
        association.release()
    if not answer or answer.Status != 0x0000:
        shown = f"0x{answer.Status:04X}" if answer else "nothing"
        raise RefusedError(f"the node answered C-STORE with {shown}")


def _wait(sent: list[_Sent], ledger: Ledger, pacs: Pacs, console: Console) -> dict[str, Summary]:
    """What became of every image, when it was seen in the PACS."""
    summaries: dict[str, Summary] = {}
    give_up_at = time.monotonic() + _PATIENCE_S + _PATIENCE_PER_IMAGE_S * len(sent)
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
        task = progress.add_task("Screening", total=sum(not image.refused for image in sent))
        open_images = [image for image in sent if not image.refused]
        while open_images and time.monotonic() < give_up_at:
            for image in list(open_images):
                summary = ledger.summary(image.sop_instance_uid)
                if summary is None or summary.state not in _ENDED:
                    continue
                summaries[image.sop_instance_uid] = summary
                image.in_pacs = _found(pacs, image.study_instance_uid)
                image.seconds = time.monotonic() - image.sent_at
                open_images.remove(image)
                progress.advance(task)
            time.sleep(_POLL_S)
    return summaries


def _found(pacs: Pacs, study_instance_uid: str) -> frozenset[str]:
    """SOP Instance UIDs that the PACS lists for a study, asked series by series (PS3.4 C.4.1.3)."""
    query = Dataset()
    query.QueryRetrieveLevel = "SERIES"
    query.StudyInstanceUID = study_instance_uid
    query.SeriesInstanceUID = ""
    found: set[str] = set()
    try:
        for series in pacs.find(query):
            query = Dataset()
            query.QueryRetrieveLevel = "IMAGE"
            query.StudyInstanceUID = study_instance_uid
            query.SeriesInstanceUID = series.SeriesInstanceUID
            query.SOPInstanceUID = ""
            found.update(str(answer.SOPInstanceUID) for answer in pacs.find(query))
    except DeliveryError as error:
        raise DemoError(str(error)) from error
    return frozenset(found)


def _complete(summary: Summary | None, image: _Sent) -> bool:
    if summary is None:
        return False
    if summary.state is State.DECLINED:
        return True
    wanted = {summary.sop_instance_uids.get(kind) for kind in (ObjectKind.REPORT, ObjectKind.HEATMAP)}
    return summary.state is State.DELIVERED and wanted <= image.in_pacs


def _table(sent: list[_Sent], summaries: dict[str, Summary]) -> Table:
    table = Table(title="Screened")
    for heading in ("study", "state", "probability", "decision", "in PACS", "seconds"):
        table.add_column(heading, overflow="fold")
    for number, image in enumerate(sent, 1):
        summary = summaries.get(image.sop_instance_uid)
        if summary is None:
            table.add_row(f"{number}", "refused" if image.refused else "not finished in time", *("-",) * 4)
            continue
        first = summary.targets[0] if summary.targets else None
        held = sum(uid in image.in_pacs for uid in summary.sop_instance_uids.values())
        table.add_row(
            f"{number}",
            summary.state if not summary.reason else f"{summary.state}: {summary.reason}",
            f"{first.probability:.3f}" if first else "-",
            first.decision.replace("_", " ") if first else "-",
            f"{held} of {len(summary.sop_instance_uids)}",
            f"{image.seconds:.1f}" if image.seconds is not None else "-",
        )
    return table
