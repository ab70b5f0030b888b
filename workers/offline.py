"""`dicom-node screen`: files in, answers out; no listener, no ledger."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import cv2
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Column, Table

from dicom_node.admission import admit
from dicom_node.domain import DeclinedByPixelsError, NodeError, PixelError
from dicom_node.heatmap import build_heatmap, draw_heatmap
from dicom_node.normalise import normalise
from dicom_node.pixels import read_instance, read_picture, render
from dicom_node.report import build_report
from dicom_node.results import encode
from workers.loop import load_ensemble

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicom_node.config import Settings
    from dicom_node.domain import Prediction
    from workers.ensemble import Ensemble

_NAMES = {".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".ima"}
_PICTURE_MARKS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # of PNG and JPEG


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
    error: str | None = None
    prediction: Prediction | None = None
    header: Dataset | None = field(default=None, repr=False)
    pixels: NDArray[np.float32] | None = field(default=None, repr=False)

    def as_json(self, bundle: str) -> dict[str, Any]:
        found = self.prediction
        first = found.targets[0] if found else None
        line: dict[str, Any] = {
            "path": str(self.path),
            "sop_instance_uid": self.sop_instance_uid,
            "admitted": self.admitted,
            "reason": self.reason,
            "probability": first.probability if first else None,
            "decision": first.decision if first else None,
            "flagged": first.flagged if first else None,
            "threshold": first.threshold if first else None,
            "bundle": bundle,
            "targets": {
                result.target: {
                    "probability": result.probability,
                    "threshold": result.threshold,
                    "decision": result.decision,
                    "flagged": result.flagged,
                    "operating_point": found.operating_point,
                }
                for result in found.targets
            }
            if found
            else {},
            "members": {name: dict(outputs) for name, outputs in found.members.items()} if found else {},
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
    bundle = f"{ensemble.manifest.name} {ensemble.manifest.release}"
    console = Console(stderr=True)
    table = Table(Column("input", overflow="fold"), "admitted", "probability", "threshold", "decision", "remark")
    readable = True
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
        for path in progress.track(inputs, description="Screening"):
            answer = _screen_one(path, ensemble, settings, out)
            readable &= answer.error is None
            if as_json:
                sys.stdout.write(json.dumps(answer.as_json(bundle)) + "\n")
                sys.stdout.flush()
            else:
                table.add_row(*_row(answer))
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
    return path.suffix.lower() in _NAMES or start.startswith(_PICTURE_MARKS) or start[128:132] == b"DICM"


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


def _screen_one(path: Path, ensemble: Ensemble, settings: Settings, out: Path | None) -> _Answer:
    answer = _Answer(path)
    try:
        start = _first_bytes(path)
        if start.startswith(_PICTURE_MARKS):
            answer.pixels = read_picture(path, max_pixels=settings.max_pixels)
            answer.admitted = True
        else:
            source = read_instance(path.read_bytes())
            answer.sop_instance_uid = str(source.get("SOPInstanceUID", "")) or None
            admission = admit(source, settings)
            answer.admitted, answer.reason = admission.admitted, admission.reason
            if not admission.admitted:
                return answer
            answer.pixels = render(source, max_pixels=settings.max_pixels)
            answer.header = source
        (answer.prediction,) = ensemble.predict([answer.pixels])
        if out is not None:
            _write(answer, ensemble, settings, out)
    except DeclinedByPixelsError as error:
        answer.admitted, answer.reason = False, error.reason
    except NodeError as error:
        answer.error = str(error)
    except OSError as error:
        answer.error = f"{error.filename or path}: {error.strerror}"
    except Exception as error:
        answer.error = f"{type(error).__name__}: {error}"
    return answer


def _write(answer: _Answer, ensemble: Ensemble, settings: Settings, out: Path) -> None:
    """Heatmap and report of an input, named after it; a digest of its path keeps equal names apart."""
    assert answer.prediction is not None  # noqa: S101 - the caller asked
    assert answer.pixels is not None  # noqa: S101 - as above
    stem = f"{answer.path.stem}-{hashlib.sha256(str(answer.path.resolve()).encode()).hexdigest()[:8]}"
    if answer.header is None:
        drawn = draw_heatmap(answer.pixels, answer.prediction, ensemble.manifest, size=settings.heatmap_size)
        (out / f"{stem}.heatmap.png").write_bytes(cv2.imencode(".png", drawn[..., ::-1])[1].tobytes())
        return
    header, _ = normalise(answer.header)
    when = datetime.now(UTC)
    heatmap = build_heatmap(
        header, answer.pixels, answer.prediction, ensemble.manifest, when=when, size=settings.heatmap_size
    )
    report = build_report(
        header, heatmap, answer.prediction, ensemble.manifest, when=when, node_ae_title=settings.ae_title
    )
    (out / f"{stem}.heatmap.dcm").write_bytes(encode(heatmap))
    (out / f"{stem}.report.dcm").write_bytes(encode(report))


def _row(answer: _Answer) -> tuple[str, ...]:
    found = answer.prediction.targets[0] if answer.prediction else None
    return (
        str(answer.path),
        {True: "yes", False: "no", None: "-"}[answer.admitted],
        f"{found.probability:.3f}" if found else "-",
        f"{found.threshold:.3f}" if found else "-",
        found.decision.replace("_", " ") if found else "-",
        answer.error or answer.reason or "",
    )
