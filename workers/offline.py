"""`dicom-node screen`: files in, answers out; no listener, no ledger."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Column, Table

from dicom_node.combination import anomalies
from dicom_node.decoding import PICTURE_MARKS, Wanted, decode, decoders
from dicom_node.domain import DeclinedByPixelsError, NodeError, PixelError, place_of
from dicom_node.picture import draw_heatmap
from dicom_node.products import StudyImage, build_picture, build_study_report
from workers.loop import load_ensemble

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from dicom_node.bundle import Manifest
    from dicom_node.children import Children
    from dicom_node.config import Settings
    from dicom_node.decoding import Decoded
    from dicom_node.domain import Prediction
    from workers.ensemble import Ensemble

_NAMES = {".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".ima"}


class OutputFolderError(NodeError):
    """Results cannot be written where they were asked for."""

    reason = "output_folder"


@dataclass
class _Answer:
    """One input and all that is known of it."""

    path: Path
    sop_instance_uid: str | None = None
    admitted: bool | None = None
    reason: str | None = None
    detail: str | None = None
    error: str | None = None
    prediction: Prediction | None = None
    decoded: Decoded | None = field(default=None, repr=False)

    def as_json(self, manifest: Manifest) -> dict[str, Any]:
        found = self.prediction
        first = found.targets[0] if found else None
        line: dict[str, Any] = {
            "path": str(self.path),
            "sop_instance_uid": self.sop_instance_uid,
            "admitted": self.admitted,
            "reason": self.reason,
            **({"detail": self.detail} if self.detail else {}),
            "probability": first.probability if first else None,
            "decision": first.decision if first else None,
            "flagged": first.flagged if first else None,
            "threshold": first.threshold if first else None,
            "bundle": f"{manifest.name} {manifest.release}",
            "targets": {
                result.target: {
                    "probability": result.probability,
                    "threshold": result.threshold,
                    "decision": result.decision,
                    "flagged": result.flagged,
                    "operating_point": result.operating_point,
                    "members": dict(result.members),
                }
                for result in found.targets
            }
            if found
            else {},
            "members": {name: dict(outputs) for name, outputs in found.members.items()} if found else {},
            "anomalous": anomalies(manifest, found.members) if found else {},
            "remarks": list(found.remarks) if found else [],
        }
        if self.error is not None:
            line["error"] = self.error
        return line


def screen(settings: Settings, paths: Sequence[Path], *, as_json: bool, out: Path | None) -> bool:
    """Every input has its line on standard output. Returns False where any could not be read."""
    ensemble = load_ensemble(settings)
    inputs = [found for path in paths for found in _inputs(path)]
    if out is not None:
        _make_folder(out)
    console = Console(stderr=True)
    table = Table(Column("input", overflow="fold"), "admitted", "probability", "threshold", "decision", "remark")
    readable = True
    with (
        Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress,
        decoders(settings) as children,
    ):
        task = progress.add_task("Screening", total=len(inputs))
        for answers in _screened(inputs, ensemble, children, settings):
            for answer in answers:
                if out is not None and answer.prediction is not None:
                    _write(answer, ensemble, settings, out)
                readable &= answer.error is None
                if as_json:
                    sys.stdout.write(json.dumps(answer.as_json(ensemble.manifest)) + "\n")
                    sys.stdout.flush()
                else:
                    table.add_row(*_row(answer))
                progress.advance(task)
    if not as_json:
        Console().print(table)
    return readable


def _inputs(path: Path) -> list[Path]:
    """The path itself, or the files below it that look like DICOM, PNG or JPEG, in order."""
    if not path.is_dir():
        return [path]
    return [found for found in sorted(path.rglob("*")) if found.is_file() and _looks_readable(found)]


def _looks_readable(path: Path) -> bool:
    """By name or by content; what cannot be opened is tried, so that its line says what is wrong."""
    try:
        start = _first_bytes(path)
    except PixelError:
        return True
    return path.suffix.lower() in _NAMES or start.startswith(PICTURE_MARKS) or start[128:132] == b"DICM"


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(132)
    except OSError as error:
        raise PixelError("unreadable", f"cannot be opened: {error.strerror}") from error


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputFolderError(f"--out {out} cannot be written: {error.strerror}") from error


def _screened(
    inputs: Sequence[Path], ensemble: Ensemble, children: Children, settings: Settings
) -> Iterator[list[_Answer]]:
    """The answers in order, as many at once as the device takes; children decode ahead of the networks."""
    wanted = Wanted(ensemble.squares, settings.heatmap_size, settings.max_pixels)
    ahead = 2 * (ensemble.batch_size + children.processes)
    coming = iter(inputs)
    decoding = deque((path, children.submit(decode, path, wanted, settings)) for path in islice(coming, ahead))
    while decoding:
        answers: list[_Answer] = []
        while decoding and len(answers) < ensemble.batch_size and (not answers or decoding[0][1].done()):
            answers.append(_opened(*decoding.popleft()))
            decoding.extend((path, children.submit(decode, path, wanted, settings)) for path in islice(coming, 1))
        asked = [answer for answer in answers if answer.decoded is not None and answer.admitted]
        for answer, one in zip(asked, _predicted(ensemble, asked), strict=True):
            if isinstance(one, DeclinedByPixelsError):
                answer.admitted, answer.reason, answer.detail = False, one.reason, str(one)
            elif isinstance(one, NodeError):
                answer.error = str(one)
            else:
                answer.prediction = one
        yield answers


def _predicted(ensemble: Ensemble, asked: Sequence[_Answer]) -> list[Prediction | NodeError]:
    """An error that nobody foresaw is held against the one image that it comes back with."""
    squares = [answer.decoded.squares for answer in asked if answer.decoded is not None]
    try:
        return ensemble.predict(squares)
    except (NodeError, MemoryError):
        raise
    except Exception:
        found: list[Prediction | NodeError] = []
        for one in squares:
            try:
                found += ensemble.predict([one])
            except (NodeError, MemoryError):
                raise
            except Exception as error:
                found.append(NodeError(place_of(error)))
        return found


def _opened(path: Path, future: Future[Decoded]) -> _Answer:
    """The input as the child decoded it, or why it could not."""
    answer = _Answer(path)
    try:
        decoded = future.result()
        header, admission = decoded.header, decoded.admission
        answer.decoded, answer.admitted = decoded, True
        if header is not None:
            answer.sop_instance_uid = str(header.get("SOPInstanceUID", "")) or None
        if admission is not None:
            answer.admitted, answer.reason = admission.admitted, admission.reason
    except DeclinedByPixelsError as error:
        answer.admitted, answer.reason, answer.detail = False, error.reason, str(error)
    except NodeError as error:
        answer.error = str(error)
    except OSError as error:
        answer.error = f"cannot be opened: {error.strerror}"
    except Exception as error:
        answer.error = place_of(error)
    return answer


def _write(answer: _Answer, ensemble: Ensemble, settings: Settings, out: Path) -> None:
    """Heatmap and report of an input, named after it; a digest of its path keeps equal names apart."""
    assert answer.prediction is not None and answer.decoded is not None  # noqa: PT018, S101 - the caller asked
    stem = f"{answer.path.stem}-{hashlib.sha256(str(answer.path.resolve()).encode()).hexdigest()[:8]}"
    header, picture = answer.decoded.header, answer.decoded.picture
    try:
        if header is None:
            pixels = picture.astype(np.float32) / np.float32(255)
            drawn = draw_heatmap(pixels, answer.prediction, ensemble.manifest, size=settings.heatmap_size)
            (out / f"{stem}.heatmap.png").write_bytes(cv2.imencode(".png", drawn[..., ::-1])[1].tobytes())
            return
        now, manifest_json = datetime.now(UTC), ensemble.manifest.model_dump_json()
        heatmap, _ = build_picture(
            header, picture, answer.prediction, manifest_json, now, heatmap_size=settings.heatmap_size
        )
        image = StudyImage(answer.path, answer.prediction, now, heatmap.sop_class_uid, heatmap.sop_instance_uid)
        report = build_study_report([image], manifest_json, node_ae_title=settings.ae_title, codes=settings.codes)
        for one in (heatmap, report):
            (out / f"{stem}.{one.kind}.dcm").write_bytes(one.content)
    except NodeError as error:
        answer.error = str(error)
    except OSError as error:
        answer.error = f"{error.filename or out}: {error.strerror}"
    except Exception as error:  # highdicom raises many kinds on odd headers
        answer.error = place_of(error)


def _row(answer: _Answer) -> tuple[str, ...]:
    found = answer.prediction.targets[0] if answer.prediction else None
    remarks = answer.prediction.remarks if answer.prediction else ()
    return (
        str(answer.path),
        {True: "yes", False: "no", None: "-"}[answer.admitted],
        f"{found.probability:.3f}" if found else "-",
        f"{found.threshold:.3f}" if found else "-",
        found.decision.replace("_", " ") if found else "-",
        answer.error or answer.detail or answer.reason or ", ".join(remarks),
    )
