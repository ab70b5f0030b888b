"""Images that travel with a bundle, and the scores that they must give on whatever device it is loaded on."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from dicom_node.domain import BundleError, NodeError
from workers.loading import read_verified

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from workers.ensemble import Ensemble

log = logging.getLogger(__name__)


def check_golden(ensemble: Ensemble, folder: Path) -> None:
    """The device gives the stored scores back; members that do so in bfloat16 too use it from now on, on a GPU.

    Raises
    ------
    BundleError
        Naming the member, the score and by how much it is off, or what is wrong with the file.
    """
    golden = ensemble.manifest.golden
    if golden is None:
        return
    images, expected = read_golden(folder / golden.file, golden.sha256)
    squares = [ensemble.draw(image) for image in images]
    try:
        found = ensemble.scores(squares)
        worst, where = _furthest(found, expected)
    except (NodeError, RuntimeError) as error:
        told = str(error) if isinstance(error, NodeError) else type(error).__name__
        raise BundleError(f"{folder}: {ensemble.device} cannot score the golden images: {told}") from error
    except KeyError as error:
        raise BundleError(f"{folder / golden.file} holds no score {error}: it is of another bundle") from error
    if worst > golden.tolerance:
        raise BundleError(
            f"{folder}: {ensemble.device} does not give the golden scores back: {where} is off by {worst:.2g}, at most "
            f"{golden.tolerance:g} is allowed; use another device"
        )
    log.info("%s gives the golden scores back: off by %.2g at most (%s)", ensemble.device, worst, where)
    if ensemble.device.type != "cpu":  # CPUs would differ from one another by whether they know bfloat16
        _choose_precision(ensemble, squares, expected, golden.half_tolerance)


def _choose_precision(
    ensemble: Ensemble, squares: Sequence[Any], expected: Sequence[Mapping[str, Mapping[str, float]]], tolerance: float
) -> None:
    for group in ensemble.groups:
        for member in group:
            member.half = True
        names = {member.name for member in group}
        try:
            found = [{name: row[name] for name in names} for row in ensemble.scores(squares)]
            worst, where = _furthest(found, expected)
        except (NodeError, RuntimeError) as error:  # a device that does not know bfloat16, or an overflow
            worst, where = float("inf"), type(error).__name__
        if not worst <= tolerance:
            for member in group:
                member.half = False
        precision = "bfloat16" if worst <= tolerance else "float32"
        log.info("%s in %s: bfloat16 is off by %.2g at most (%s)", ", ".join(sorted(names)), precision, worst, where)


def _furthest(
    found: Sequence[Mapping[str, Mapping[str, float]]], expected: Sequence[Mapping[str, Mapping[str, float]]]
) -> tuple[float, str]:
    """The largest difference of a score found from the one stored, by its own size where that is above 1."""
    worst, where = 0.0, "nothing"
    for index, (row, stored) in enumerate(zip(found, expected, strict=True)):
        for member, scores in row.items():
            for name, value in scores.items():
                off = abs(value - stored[member][name]) / max(1.0, abs(stored[member][name]))
                if not off <= worst:
                    worst, where = off, f"{name} of {member}, image {index + 1}"
    return worst, where


def read_golden(file: Path, sha256: str) -> tuple[list[NDArray[np.float32]], list[dict[str, dict[str, float]]]]:
    """The images, in [0, 1], and each one's scores by member and name.

    Raises
    ------
    BundleError
        Where the file is not the one that the manifest names, or not what `golden_text` writes.
    """
    try:
        content = json.loads(read_verified(file, sha256))
        images = [_decoded(each["png"]) for each in content]
        scores = [each["scores"] for each in content]
    except (ValueError, KeyError, TypeError, binascii.Error, cv2.error) as error:
        raise BundleError(f"{file} holds no golden images: {type(error).__name__}") from error
    if not images:
        raise BundleError(f"{file} holds no golden images: it is empty")
    return images, scores


def _decoded(text: str) -> NDArray[np.float32]:
    image = cv2.imdecode(np.frombuffer(base64.b64decode(text, validate=True), np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise ValueError("no picture")
    return image.astype(np.float32) / np.float32(255)


def main() -> None:
    """Load the bundle in a folder on a device, and say in one line whether it gives its golden scores back."""
    from workers.ensemble import Ensemble

    folder, device = sys.argv[1:]
    try:
        ensemble = Ensemble.load(Path(folder), device)
    except NodeError as error:
        sys.stdout.write(f"{error}\n")
        sys.exit(1)
    halved = [member.name for group in ensemble.groups for member in group if member.half]
    precision = f"; in bfloat16: {', '.join(halved)}" if halved else ""
    manifest = ensemble.manifest
    sys.stdout.write(f"{device} gives the golden scores of {manifest.name} {manifest.release} back{precision}\n")


if __name__ == "__main__":
    main()
