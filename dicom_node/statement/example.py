"""One of each object that the node makes, of phantoms: once of a source with every attribute, once of a bare one.

What both have alike is fixed, what one lacks depends on its source.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.uid import ComputedRadiographyImageStorage, SecondaryCaptureImageStorage

from dicom_node.bundle import Calibration, Code, Manifest, Member, OperatingPoint, Target, WeightFile
from dicom_node.codes import ABNORMAL
from dicom_node.demo.phantom import WHITE, draw_phantom
from dicom_node.domain import MemberMap, Prediction, RejectionReason, TargetResult, decided
from dicom_node.heatmap import build_heatmap
from dicom_node.normalise import KEPT, normalise
from dicom_node.rejection import build_rejection_note
from dicom_node.report import SOP_CLASSES, build_report
from dicom_node.results import Reference, Screened, cite, encode
from dicom_node.uids import derive_uid
from dicom_node.validation import check_object

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS, _COLUMNS = 96, 80
_BY_VR: dict[str, Any] = {
    "AE": "EXAMPLE",
    "AS": "050Y",
    "CS": "EXAMPLE",
    "DA": "20240101",
    "DS": "1.5",
    "DT": "20240101120000",
    "LO": "Example",
    "LT": "Example",
    "PN": "Example^One",
    "SH": "Example",
    "ST": "Example",
    "TM": "120000",
    "UT": "Example",
}
# Attributes whose values mean something.
_SPECIAL: dict[str, Any] = {
    "PatientSex": "O",
    "Modality": "CR",
    "TypeOfPatientID": "TEXT",
    "QualityControlSubject": "NO",
    "PatientIdentityRemoved": "YES",
    "SmokingStatus": "NO",
    "PregnancyStatus": 4,
    "SOPClassUID": ComputedRadiographyImageStorage,
    "TimezoneOffsetFromUTC": "+0100",
    "PatientOrientation": ["L", "F"],
    "ImagerPixelSpacing": ["0.15", "0.15"],
    "BurnedInAnnotation": "NO",
    "LossyImageCompression": "01",
    "LossyImageCompressionMethod": "ISO_10918_1",
    "Rows": _ROWS,
    "Columns": _COLUMNS,
}


@dataclass(frozen=True, slots=True)
class Example:
    """A source as results see it, and what was made of it."""

    source: Dataset
    heatmap: Dataset
    report: Dataset
    note: Dataset


@lru_cache(maxsize=1)
def examples() -> tuple[Example, Example]:
    """Of a source with every attribute that is taken over, and of one with none that may be absent."""
    return _made(_full(), "FULL", with_maps=True), _made(_bare(), "BARE", with_maps=False)


def phantom() -> NDArray[np.uint16]:
    """A drawn chest."""
    return draw_phantom(1, rows=_ROWS, columns=_COLUMNS, opacities=2)


def _made(header: Dataset, name: str, *, with_maps: bool) -> Example:
    source, _ = normalise(header)
    manifest, prediction = _manifest(name), _prediction(name, with_maps=with_maps)
    when = datetime(2024, 1, 2, 23, 45, 6, tzinfo=UTC) if with_maps else datetime(2025, 3, 4, 10, 11, 12, tzinfo=UTC)
    pixels = (phantom() / WHITE).astype(np.float32)
    heatmap = build_heatmap(source, pixels, prediction, manifest, when=when, size=256 if with_maps else 300)
    report = build_report(
        [Screened(source, prediction, when, cite(heatmap))],
        manifest,
        node_ae_title=name,
        sop_class=SOP_CLASSES[0] if with_maps else SOP_CLASSES[-1],
        predecessors=[_earlier(source)] if with_maps else (),
    )
    reason = RejectionReason.QUALITY if with_maps else RejectionReason.SAFETY
    given = [cite(heatmap), cite(report)]
    note = build_rejection_note(given, source, reason=reason, when=when, node_ae_title=name)
    for made in (heatmap, report, note):
        check_object(made, [source])
    return Example(source, *(dcmread(BytesIO(encode(made))) for made in (heatmap, report, note)))


def _full() -> Dataset:
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    for keyword in KEPT:
        if keyword in _SPECIAL:
            value = _SPECIAL[keyword]
        elif dictionary_VR(keyword) == "SQ":
            value = [_item(keyword)]
        elif dictionary_VR(keyword) == "UI":
            value = derive_uid("statement", "full", keyword)
        else:
            value = 1 if dictionary_VR(keyword) == "US" else _BY_VR[dictionary_VR(keyword)]
        setattr(header, keyword, value)
    header.set_original_encoding(False, True, ["utf-8"])
    return header


def _bare() -> Dataset:
    header = Dataset()
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(header, keyword, derive_uid("statement", "bare", keyword))
    header.SOPClassUID = SecondaryCaptureImageStorage
    header.Rows, header.Columns = _ROWS, _COLUMNS
    header.set_original_encoding(False, True, ["ascii"])
    return header


def _item(keyword: str) -> Dataset:
    item = Dataset()
    if keyword.endswith("CodeSequence"):
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "99EXAMPLE", "Example"
    elif keyword.startswith("Referenced"):
        item.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
        item.ReferencedSOPInstanceUID = derive_uid("statement", keyword)
    elif keyword == "OtherPatientIDsSequence":
        item.PatientID, item.TypeOfPatientID = "Example", "TEXT"
    else:  # of the HL7v2 Hierarchic Designator Macro
        item.UniversalEntityID, item.UniversalEntityIDType = "example.org", "DNS"
    return item


def _earlier(source: Dataset) -> Reference:
    instance = derive_uid("statement", "predecessor")
    return Reference(source.StudyInstanceUID, derive_uid("statement", "series"), SecondaryCaptureImageStorage, instance)


def _manifest(name: str) -> Manifest:
    code = Code(value=ABNORMAL.value, scheme=ABNORMAL.scheme, meaning=ABNORMAL.meaning)
    return Manifest(
        name=name,
        release=f"{name}-1",
        title=f"Example {name}",
        targets=(
            Target(
                name="abnormal",
                title="Any abnormality",
                code=code,
                weights={"member": 1.0},
                operating_point="balanced",
                operating_points={"balanced": OperatingPoint(threshold=0.5, sensitivity=0.9, specificity=0.8)},
            ),
        ),
        members=(
            Member(
                name="member",
                title=f"Member {name}",
                version=f"{name}-2",
                architecture="Example",
                citation="none",
                weights=(WeightFile(file="member.safetensors", sha256=("a" if name == "FULL" else "b") * 64),),
                preprocessing={},
                calibration={"abnormal": Calibration(output="p_cls", slope=1.0, intercept=0.0)},
            ),
        ),
        training={},
    )


def _prediction(name: str, *, with_maps: bool) -> Prediction:
    probability = 0.75 if with_maps else 0.25
    down, across = np.mgrid[0.5:32, 0.5:32] / 32
    hill = np.exp(-((down - 0.6) ** 2 + (across - 0.4) ** 2) / 0.02)
    maps = (MemberMap("member", "p_cls", np.rint(hill / hill.max() * 255).astype(np.uint8), (0.0, 0.0, 1.0, 1.0)),)
    return Prediction(
        bundle=name,
        release=f"{name}-1",
        operating_point="balanced",
        targets=(TargetResult("abnormal", probability, 0.5, decided(probability, 0.5)),),
        members={"member": {"p_cls": probability, "p_ano": 2.5, "p_avg": 1.25}},
        maps=maps if with_maps else (),
        remarks=("turned:90",) if with_maps else (),
    )
