"""Manifests and predictions as a worker would have them, and sources for results."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from highdicom.sr import MeasurementReport
from pydicom import dcmread, dcmwrite
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, Comprehensive3DSRStorage, SecondaryCaptureImageStorage

from dicom_node import bundle
from dicom_node.bundle import Calibration, Manifest, Member, OperatingPoint, Target, WeightFile
from dicom_node.domain import Decision, MemberMap, Prediction, TargetResult, decided
from dicom_node.heatmap import build_heatmap
from dicom_node.normalise import normalise
from dicom_node.report import build_report
from dicom_node.results import Reference, Screened, cite
from tests.factories import ROOT, chest_dataset, chest_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

WHEN = datetime(2024, 1, 2, 23, 45, 6, 789, tzinfo=UTC)
COVID = bundle.Code(value="840539006", scheme="SCT", meaning="COVID-19")
PNEUMONIA = bundle.Code(value="233604007", scheme="SCT", meaning="Pneumonia")
ABNORMAL = bundle.Code(value="263654008", scheme="SCT", meaning="Abnormal")
QUESTIONS = ("covid", "pneumonia", "abnormal")


def member(called: str = "zhang", sha: str = "a", **changes: Any) -> Member:
    """A member whose calibrated output is `p_cls`."""
    fields: dict[str, Any] = {
        "name": called,
        "title": f"{called.capitalize()} 2020, anomaly detection",
        "version": "1.2.0",
        "architecture": "Zhang2020",
        "citation": "arXiv:2003.12338",
        "weights": (WeightFile(file=f"{called}.safetensors", sha256=sha * 64),),
        "preprocessing": {"size": 448},
        "calibration": {name: Calibration(output="p_cls", slope=1.0, intercept=0.0) for name in QUESTIONS},
    }
    return Member(**fields | changes)


def target(name: str = "covid", threshold: float = 0.5, members: Sequence[str] = ("zhang", "basu")) -> Target:
    """A question with two operating points of which `balanced` is in force."""
    code = {"covid": COVID, "abnormal": ABNORMAL}.get(name, PNEUMONIA)
    return Target(
        name=name,
        title=code.meaning,
        code=code,
        weights=dict.fromkeys(members, 0.5),
        operating_point="balanced",
        operating_points={
            "balanced": OperatingPoint(threshold=threshold, sensitivity=0.9, specificity=0.8),
            "sensitive": OperatingPoint(threshold=0.1, sensitivity=0.99, specificity=0.4),
        },
    )


def manifest(**changes: Any) -> Manifest:
    """Two members, one target."""
    fields: dict[str, Any] = {
        "name": "starter",
        "release": "2024.1",
        "title": "Starter bundle",
        "targets": (target(),),
        "members": (member("zhang", "a"), member("basu", "b")),
        "training": {},
    }
    return Manifest(**fields | changes)


def prediction(probability: float = 0.8125, threshold: float = 0.5, **changes: Any) -> Prediction:
    """An answer to `manifest`, flagged by its own numbers, with a map of each member."""
    fields: dict[str, Any] = {
        "bundle": "starter",
        "release": "2024.1",
        "operating_point": "balanced",
        "targets": (TargetResult("covid", probability, threshold, decided(probability, threshold)),),
        "members": {
            "basu": {"logit_covid": -1.25},
            "zhang": {"p_avg": 1.0437219, "p_cls": 0.91234567, "p_ano": 5.8761234},
        },
        "maps": (spot(), spot(member="basu", centre=(0.6, 0.4))),
    }
    return Prediction(**fields | changes)


def spot(
    member: str = "zhang",
    centre: tuple[float, float] = (0.55, 0.35),
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
    side: int = 56,
    radius: float = 0.12,
) -> MemberMap:
    """A map with one round hill; `centre` (down, across) and `radius` are fractions of the map."""
    down, across = np.mgrid[0.5:side, 0.5:side] / side
    hill = np.exp(-((down - centre[0]) ** 2 + (across - centre[1]) ** 2) / (2 * radius**2))
    return MemberMap(member, "p_cls", np.rint(hill / hill.max() * 255).astype(np.uint8), box)


def stored(ds: Dataset) -> Dataset:
    """`ds` as it is read back from a file: undecoded, in its own character set; no pixel data."""
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer, stop_before_pixels=True)


@lru_cache(maxsize=4)
def xray(rows: int = 96, columns: int = 80) -> NDArray[np.float32]:
    """A phantom chest as `dicom_node.pixels` renders it."""
    return (chest_pixels(rows, columns) / 4095).astype(np.float32)


def results(
    source: Dataset,
    answer: Prediction | None = None,
    made_by: Manifest | None = None,
    *,
    size: int = 256,
    sop_class: UID = Comprehensive3DSRStorage,
    node_ae_title: str = "CXRSCREEN",
) -> tuple[Dataset, Dataset]:
    """Heatmap and report of a source header, which is normalised first."""
    header, _ = normalise(source)
    answer, made_by = answer or prediction(), made_by or manifest()
    heatmap = build_heatmap(header, xray(header.Rows, header.Columns), answer, made_by, when=WHEN, size=size)
    image = Screened(header, answer, WHEN, cite(heatmap))
    return heatmap, build_report([image], made_by, node_ae_title=node_ae_title, sop_class=sop_class)


def image_of(number: int, pixels: NDArray[np.uint16] | None = None, **overrides: Any) -> Dataset:
    """The header of image `number` of one study, each in a series of its own."""
    uid = f"{ROOT}.1.{number}"
    return stored(chest_dataset(pixels, **{"SeriesInstanceUID": uid, "SOPInstanceUID": f"{uid}.1"} | overrides))


def screened(
    source: Dataset, answer: Prediction | None = None, when: datetime = WHEN, *, cited: bool = True
) -> Screened:
    """An image of a study, with a heatmap to cite that need not exist."""
    header, _ = normalise(source)
    uid = f"2.25.{int(hashlib.sha256(header.SOPInstanceUID.encode()).hexdigest()[:16], 16)}"
    heatmap = Reference(header.StudyInstanceUID, f"{uid}.1", SecondaryCaptureImageStorage, f"{uid}.1.1")
    return Screened(header, answer or prediction(), when, heatmap if cited else None)


def read_result(report: Dataset) -> dict[str, Any]:
    """What a machine makes of a report: answers by target code, outputs by member."""
    root = MeasurementReport.from_sequence([report])
    answers: dict[str, Any] = {}
    outputs: dict[str, dict[str, float]] = {}
    for group in root.get_image_measurement_groups():
        numbers = {number.name: number.value for number in group.get_measurements()}
        asked = group.get_qualitative_evaluations()
        if asked:
            answers[asked[0].name.value] = {
                "flagged": asked[0].value == codes.SCT.Positive,
                "probability": numbers[codes.DCM.Probability],
                "threshold": numbers[Code("122411", "DCM", "Threshold Value")],
            }
            continue
        (name,) = (item.value for item in group[0].ContentSequence if item.name == codes.DCM.AlgorithmName)
        outputs[name] = {
            "p_cls" if concept == codes.DCM.Probability else concept.value: value for concept, value in numbers.items()
        }
    return {"answers": answers, "outputs": outputs}


def two_results() -> tuple[TargetResult, TargetResult]:
    """One question answered with no, one with yes."""
    return (
        TargetResult("covid", 0.2, 0.5, Decision.NOT_FLAGGED),
        TargetResult("pneumonia", 0.7, 0.3, Decision.FLAGGED),
    )
