"""The pictures of `docs/reading-a-report.md`: three drawn phantoms, screened by the bundle that comes with the program.

python -m benchmarks.heatmaps [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from dicom_node.bundle import find_bundle
from dicom_node.demo.phantom import WHITE, draw_phantom
from dicom_node.domain import NodeError
from dicom_node.picture import draw_heatmap
from workers.ensemble import Ensemble

FOLDER = Path(__file__).parents[1] / "docs" / "heatmaps"
SIZE = 512  # of the X-ray's longer side, in pixels
LEVELS = 4  # to one: files half as large, and nothing that an eye would see


class _Case(NamedTuple):
    seed: int
    rows: int
    columns: int
    opacities: int
    inverted: bool = False


CASES = {
    "flagged": _Case(10, 876, 1024, 4),
    "not-flagged": _Case(12, 1024, 876, 0),
    "indeterminate": _Case(14, 1024, 1024, 2, inverted=True),
}


def main(folder: Path) -> None:
    """Write the pictures, without the film's grain and the finest levels, to keep them small."""
    ensemble = Ensemble.load(find_bundle("starter"))
    folder.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        drawn = draw_phantom(case.seed, rows=case.rows, columns=case.columns, opacities=case.opacities)
        image = drawn.astype(np.float32) / np.float32(WHITE)
        image = 1 - image if case.inverted else image
        (answer,) = ensemble.predict_images([image])
        if isinstance(answer, NodeError):
            raise answer
        smooth = cv2.GaussianBlur(image, (0, 0), 1.0).astype(np.float32)
        picture = draw_heatmap(smooth, answer, ensemble.manifest, size=SIZE) // LEVELS * LEVELS
        Image.fromarray(picture).save(folder / f"{name}.png", optimize=True)
        said = ", ".join(f"{result.target} {result.decision} ({result.probability:.3f})" for result in answer.targets)
        sys.stdout.write(f"{folder / name}.png: {said}; {', '.join(answer.remarks) or 'no remarks'}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
