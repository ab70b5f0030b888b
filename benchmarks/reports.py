"""The picture of `docs/retrospective.md`: a run's report on invented scores, over drawn phantoms, in a real browser.

python -m benchmarks.reports [FILE] [--dark] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image

from dicom_node.archive import Archive
from dicom_node.config import Settings
from dicom_node.database import Database
from dicom_node.demo.instances import phantom_dataset
from dicom_node.demo.phantom import WHITE, draw_phantom
from dicom_node.domain import NodeError
from dicom_node.heatmap import build_heatmap
from dicom_node.normalise import normalise
from dicom_node.results import encode
from dicom_node.retrospective.report.making import Wanted, make
from tests.browser import find_browser
from tests.report_factories import Cohort, filled, write_labels
from tests.result_factories import WHEN, manifest, prediction, spot, stored

FILE = Path(__file__).parents[1] / "docs" / "retrospective-report.png"
WIDTH, HEIGHT, SHOWN = 1100, 5600, 0.75  # of the page in pixels, and how large the picture is
STUDIES, PHANTOMS = 400, 6
COLOURS = 128


def main(file: Path, folder: Path, *, dark: bool) -> None:
    """Write the picture; the report lies in `folder`."""
    browser = find_browser()
    if browser is None:
        raise NodeError("a picture of the page needs Chromium (Debian: apt-get install chromium)")
    settings = Settings(database_url=f"sqlite:///{folder / 'ledger.sqlite'}", archive_dir=folder / "archive")
    heatmaps = tuple(_heatmap(Archive(settings.archive_dir), seed) for seed in range(PHANTOMS))
    with closing(Database(settings.database_dsn)) as database:
        database.upgrade()
        truth = filled(Cohort(database, name="spring 2026"), STUDIES, heatmaps=heatmaps)
        labels = write_labels(folder / "labels.csv", truth)
        made = make(settings, database, Wanted("spring 2026", labels), folder / "reports", lambda found, _: found)
    shot = folder / "shot.png"
    browser.picture(made.folder / "report.html", shot, width=WIDTH, height=HEIGHT, dark=dark, scale=SHOWN)
    with Image.open(shot) as picture:
        picture.convert("RGB").quantize(COLOURS).save(file, optimize=True)
    sys.stdout.write(f"{file}: {file.stat().st_size / 1e3:.0f} kB, of {made.folder / 'report.html'}\n")


def _heatmap(archive: Archive, seed: int) -> str:
    """A drawn phantom with invented maps over it, as the node would archive it."""
    rng = np.random.default_rng(seed)
    image = draw_phantom(seed, rows=1024, columns=940, opacities=2).astype(np.float32) / np.float32(WHITE)
    header, _ = normalise(stored(phantom_dataset(seed)))
    centre = float(rng.uniform(0.4, 0.65)), float(rng.choice([rng.uniform(0.25, 0.35), rng.uniform(0.65, 0.75)]))
    answer = prediction(float(rng.uniform(0.6, 0.95)), maps=(spot(centre=centre), spot("basu", centre)))
    return archive.store(encode(build_heatmap(header, image, answer, manifest(), when=WHEN, size=512))).path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--keep", type=Path, help="where the report stays")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        kept = given.keep or Path(temporary)
        kept.mkdir(parents=True, exist_ok=True)
        main(given.file, kept, dark=given.dark)
