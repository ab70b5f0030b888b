"""Finding one's way in a content tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def items(ds: Dataset, value_type: str) -> list[Dataset]:
    """Every content item of that value type, depth first."""
    found = []
    for item in ds.get("ContentSequence", ()):
        if item.ValueType == value_type:
            found.append(item)
        found += items(item, value_type)
    return found


def name_of(item: Dataset) -> tuple[str, str]:
    concept = item.ConceptNameCodeSequence[0]
    return concept.CodeValue, concept.CodingSchemeDesignator


def groups_of(report: Dataset) -> list[Dataset]:
    return [item for item in items(report, "CONTAINER") if name_of(item) == ("125007", "DCM")]


def cited_in(report: Dataset) -> set[str]:
    return {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in items(report, "IMAGE")}


def evidence_of(report: Dataset) -> set[str]:
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == report.StudyInstanceUID
    return {
        instance.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }


def value_of(group: Dataset, code: str) -> Any:
    (item,) = [item for item in group.ContentSequence if name_of(item)[0] == code]
    return item.get("TextValue") or item.get("UID")
