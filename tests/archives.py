"""A PACS's archive of mixed studies: real pixels of the test data under invented identities.

python -m tests.archives FOLDER --studies 300     # as files, with the truth of each study beside them
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import random
import urllib.request
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

SCANNERS = (("Northlight", "Planar 500"), ("Northlight", "Cart 2"), ("Weitblick", "DR-7"))
FIRST_DAY = date(2026, 3, 1)
# Of twenty studies in turn: what they are. Most are one frontal film; some hold more; some are nothing for a run.
_KINDS = ("frontal",) * 12 + ("pair",) * 3 + ("two frontal", "with report", "hand", "ct", "ct")


@dataclass
class Study:
    """One study of the archive.

    `wanted` holds the SOP Instance UIDs of CR and DX; `truth` is whether the pictures are of COVID-19, or None.
    """

    uid: str
    accession_number: str
    patient_id: str
    day: date
    kind: str
    truth: bool | None = None
    objects: list[Dataset] = field(default_factory=list)

    @property
    def wanted(self):
        return {str(ds.SOPInstanceUID) for ds in self.objects if ds.Modality in ("CR", "DX")}


def uid(*words):
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:15], 'big')}"


def studies(data_dir, count, *, days=10, seed=0):
    """So many studies over so many days, always the same ones; each picture is taken once where there are enough."""
    with (data_dir / "cxr" / "index.csv").open(newline="") as file:
        index = [row for row in csv.DictReader(file) if row["split"] != "external"]
    rng = random.Random(seed)
    rng.shuffle(index)
    frontal = [row for row in index if row["view"] in ("PA", "AP") and row["source"] != "kermany"]
    lateral = [row for row in index if row["view"] == "LATERAL"]
    slices = [row for row in index if row["finding"] == "not_cxr"]
    found = []
    for number in range(count):
        kind = _KINDS[number % len(_KINDS)]
        row = frontal[number % len(frontal)]
        study = Study(
            uid=uid("study", seed, number),
            accession_number=f"A{seed}{number:06d}",
            patient_id=f"INV-{row['patient_id']}"[:64],
            day=FIRST_DAY + timedelta(days=number % days),
            kind=kind,
        )
        if kind == "ct":
            study.objects.append(_ct(study, slices[number % len(slices)], data_dir))
        else:
            study.truth = row["finding"] == "covid19"
            study.objects.append(_film(study, row, data_dir, number, 1, part="HAND" if kind == "hand" else "CHEST"))
        if kind == "pair":
            side = lateral[number % len(lateral)]
            study.objects.append(_film(study, side, data_dir, number, 2, view="LATERAL"))
        if kind == "two frontal":
            study.objects.append(_film(study, frontal[-1 - number % len(frontal)], data_dir, number, 2))
        if kind == "with report":
            study.objects.append(_text(study))
        found.append(study)
    return found


def _film(study, row, data_dir, number, series, *, part="CHEST", view=None):
    is_digital = number % 2 == 0
    sop_class = DigitalXRayImageStorageForPresentation if is_digital else ComputedRadiographyImageStorage
    ds = _instance(study, sop_class, "DX" if is_digital else "CR", series)
    ds.PatientSex = row["sex"] if row["sex"] in ("M", "F") else "O"
    if row["age"].isdigit():
        ds.PatientAge = f"{int(row['age']):03d}Y"
    ds.Manufacturer, ds.ManufacturerModelName = SCANNERS[number % len(SCANNERS)]
    ds.BodyPartExamined = part
    ds.ViewPosition = view or row["view"]
    if is_digital:
        ds.PresentationIntentType = "FOR PRESENTATION"
        ds.ImageLaterality = "U"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    content = (data_dir / "cxr" / row["path"]).read_bytes()
    picture = Image.open(io.BytesIO(content))
    # As they came where the file is grey: a PACS holds compressed films too.
    _set_pixels(ds, np.asarray(picture.convert("L")), content if picture.mode == "L" and number % 3 == 0 else None)
    return ds


def _ct(study, row, data_dir):
    ds = _instance(study, CTImageStorage, "CT", 1)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    _set_pixels(ds, np.asarray(Image.open(data_dir / "cxr" / row["path"]).convert("L")), None)
    return ds


def _text(study):
    ds = _instance(study, BasicTextSRStorage, "SR", 9)
    ds.CompletionFlag, ds.VerificationFlag, ds.ValueType = "COMPLETE", "UNVERIFIED", "CONTAINER"
    return ds


def _instance(study, sop_class, modality, series):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = uid(study.uid, series, "instance")
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study.uid, uid(study.uid, series)
    ds.PatientName, ds.PatientID = f"Invented^{study.patient_id[-12:]}", study.patient_id
    ds.PatientBirthDate = ""
    ds.PatientSex = "O"
    ds.AccessionNumber, ds.StudyID = study.accession_number, "1"
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = f"{study.day:%Y%m%d}"
    minutes = int(study.accession_number[-4:]) * 7 % 1440
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = f"{minutes // 60:02d}{minutes % 60:02d}00"
    ds.ReferringPhysicianName = ""
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = modality, series, 1
    return ds


def _set_pixels(ds, pixels, jpeg):
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    if jpeg is None:
        content = np.ascontiguousarray(pixels).tobytes()
        ds.PixelData = content + b"\0" * (len(content) % 2)
        return
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.LossyImageCompression, ds.LossyImageCompressionMethod = "01", "ISO_10918_1"
    ds.PixelData = encapsulate([jpeg])
    ds["PixelData"].VR = "OB"


def encoded(ds):
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def fill(pacs, found):
    """A real Orthanc holds the studies."""
    for study in found:
        for ds in study.objects:
            request = urllib.request.Request(f"http://127.0.0.1:{pacs.http_port}/instances", encoded(ds))
            urllib.request.urlopen(request, timeout=30).close()  # noqa: S310


def write_labels(path, found):
    """The truth of every study that has one, as a site would know it."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["study_instance_uid", "label"])
        table.writerows([study.uid, int(study.truth)] for study in found if study.truth is not None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the test data")
    parser.add_argument("--studies", type=int, default=300)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    found = studies(asked.data, asked.studies)
    for study in found:
        for ds in study.objects:
            (asked.folder / f"{ds.SOPInstanceUID}.dcm").write_bytes(encoded(ds))
    write_labels(asked.folder / "labels.csv", found)


if __name__ == "__main__":
    main()
