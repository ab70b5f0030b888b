"""Ten drawn images, and the scores that a bundle's networks give them: any device must give them back."""

from __future__ import annotations

import base64
import hashlib
import json
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dicom_node.demo.phantom import WHITE, draw_phantom
from training.scoring import score_images
from training.shipped import load_shipped
from training.strangers import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_SIDE = 256
_PHANTOMS = 6
_SPOILT = ("clouds", "shuffled", "burnt", "remnant")
# Of 1, or of a score above 1: CPUs and GPUs add up in another order; bfloat16 has eight bits.
TOLERANCE, HALF_TOLERANCE = 1e-4, 0.02


def golden_images() -> list[NDArray[np.uint8]]:
    """Phantoms with more and more opacities, and phantoms spoilt: shape (256, 256)."""
    drawn = [draw_phantom(seed, rows=_SIDE, columns=_SIDE, opacities=seed) / WHITE for seed in range(_PHANTOMS)]
    drawn += [FAMILIES[name](np.random.default_rng(seed), drawn[seed]) for seed, name in enumerate(_SPOILT)]
    return [(image * 255).round().clip(0, 255).astype(np.uint8) for image in drawn]


def write_golden(folder: Path, manifest: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The file in the bundle's folder, and what the manifest says of it; the weights must lie there already."""
    images = golden_images()
    pixels = [(image / np.float32(255)).astype(np.float32) for image in images]
    scores: list[dict[str, dict[str, float]]] = [{} for _ in images]
    for member in manifest["members"]:
        network, transform = load_shipped(folder, member)
        for row, image in zip(scores, pixels, strict=True):
            (row[member["name"]],) = score_images(network, transform, [image])
    content = [{"png": _png(image), "scores": row} for image, row in zip(images, scores, strict=True)]
    text = json.dumps(content, indent=1).encode() + b"\n"
    (folder / file).write_bytes(text)
    return {
        "file": file,
        "sha256": hashlib.sha256(text).hexdigest(),
        "tolerance": TOLERANCE,
        "half_tolerance": HALF_TOLERANCE,
    }


def _png(image: NDArray[np.uint8]) -> str:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
