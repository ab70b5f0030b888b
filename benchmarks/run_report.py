"""The picture of `docs/retrospective.md`: the report of a run of invented scores, with the drawn phantoms' heatmaps.

python -m benchmarks.run_report [FILE]           # needs chromium
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from dicom_node.archive import Archive
from dicom_node.bundle import find_bundle, read_manifest
from dicom_node.domain import StudyState
from dicom_node.results import encode
from dicom_node.retrospective.report.answers import ImageAnswer, StudyAnswer, Told
from dicom_node.retrospective.report.gathering import Gathered
from dicom_node.retrospective.report.labels import Labels
from dicom_node.retrospective.report.page import page
from dicom_node.retrospective.report.validation import validate
from dicom_node.retrospective.tables import RunRow

FILE = Path(__file__).parents[1] / "docs" / "retrospective-report.png"
HEATMAPS = Path(__file__).parents[1] / "docs" / "heatmaps"
SCANNERS = ("Northlight Planar 500", "Northlight Cart 2", "Weitblick DR-7")
THRESHOLD, REACH, COUNT = 0.5, 0.15, 900
WIDTH, HEIGHT = 1180, 5900
_COLOURS = 160  # of the picture: a third of the file, and nothing that an eye would see


def _heatmap(archive: Archive, picture: Path) -> str:
    """A picture as the Secondary Capture that the report takes it from."""
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.10.543.1"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = (*pixels.shape[:2], 3)
    ds.PhotometricInterpretation, ds.PlanarConfiguration, ds.PixelRepresentation = "RGB", 0, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = pixels.tobytes()
    return archive.store(encode(ds)).path


def _studies(archive: Archive) -> tuple[list[StudyAnswer], dict[str, bool]]:
    rng = np.random.default_rng(11)
    drawn = [_heatmap(archive, picture) for picture in sorted(HEATMAPS.glob("*.png"))]
    names = [member.name for member in read_manifest(find_bundle("starter")).members]
    studies, truth = [], {}
    for number in range(COUNT):
        uid = f"1.2.826.0.1.3680043.10.543.{number + 1}"
        scanner = int(rng.integers(3))
        is_positive = bool(rng.random() < 0.22)
        logit = rng.normal(1.1 if is_positive else -1.6, 1.1) - 0.5 * (scanner == 1)
        members = {name: float(1 / (1 + np.exp(-logit - rng.normal(0, 0.7)))) for name in names}
        probability = float(1 / (1 + np.exp(-logit)))
        decision = "indeterminate" if abs(logit) < REACH else "flagged" if probability >= THRESHOLD else "not_flagged"
        day = date(2026, 3, 1) + timedelta(days=int(rng.integers(31)))
        told = {"covid19": Told(probability, THRESHOLD, decision, REACH)}
        view = "AP" if scanner == 1 else "PA"
        flagged = decision == "flagged"
        image = ImageAnswer(
            sop_instance_uid=f"{uid}.1",
            view=view,
            sex="MF"[int(rng.integers(2))],
            age=int(rng.integers(18, 95)),
            scanner=SCANNERS[scanner],
            modality="DX",
            accession_number=None,
            patient_id=None,
            state="withheld",
            reason=None,
            release="starter 2.0.0",
            targets=told,
            members={"covid19": members},
            heatmap=drawn[number % len(drawn)] if flagged else None,
        )
        lateral = replace(
            image,
            sop_instance_uid=f"{uid}.2",
            view="lateral",
            state="declined",
            reason="lateral",
            targets={},
            members={},
            heatmap=None,
        )
        images = (image, lateral) if number % 4 == 0 else (image,)
        patient = f"INVENTED-{number // 2}"
        studies.append(StudyAnswer(uid, f"{day:%Y%m%d}", None, patient, StudyState.DONE, None, images))
        truth[uid] = is_positive
    studies += [
        StudyAnswer(f"1.2.{number}", "20260302", None, None, StudyState.FAILED, "missing_images", ())
        for number in range(3)
    ]
    return studies, truth


def main(file: Path) -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = Archive(folder / "archive")
        studies, truth = _studies(archive)
        patients = {study.study_instance_uid: study.patient_id for study in studies if study.patient_id}
        gathered = Gathered("covid19", Labels("study_instance_uid", truth, patients))
        for study in studies:
            gathered.add(study)
        run = RunRow(
            name="march (invented scores)",
            source="pacs",
            criteria={"first_day": "2026-03-01", "last_day": "2026-03-31", "modalities": ["CR", "DX"]},
            state="ended",
            deliver=False,
            begun_at=datetime(2026, 4, 1, 20, 0, tzinfo=UTC),
            ended_at=datetime(2026, 4, 2, 1, 12, tzinfo=UTC),
        )
        found = validate("covid19", gathered.labelled, [THRESHOLD], 0.95)
        (folder / "report.html").write_text(page(run, gathered, found, archive), encoding="utf-8")
        shot = folder / "shot.png"
        subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *(f"--window-size={WIDTH},{HEIGHT}", f"--user-data-dir={folder / 'browser'}"),
                *(f"--screenshot={shot}", (folder / "report.html").as_uri()),
            ],
            check=True,
            capture_output=True,
        )
        Image.open(shot).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FILE)
