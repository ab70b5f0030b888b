"""The attributes of the objects that the node makes: which are there, and where their values come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydicom.datadict import keyword_for_tag
from pydicom.multival import MultiValue
from pydicom.uid import UID

from dicom_node.normalise import KEPT, PATIENT_AND_STUDY
from dicom_node.statement.example import Example, examples
from dicom_node.statement.markdown import attribute, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pydicom.dataset import Dataset

    Row = tuple[str, str, str, str, str]

_WHEN = "the time of the result (8.1.1.1)"
_OF_THE_MODALITY = "; of the modality"
_MODALITY = "of the modality: the source's"
# Where a value comes from that is neither fixed nor the source's.
_DERIVED = {
    "SOPInstanceUID": "derived from what decides the content (8.1.1.1)",
    "SOPClassUID": "by what the destination accepts (4.2.2.3.2)",
    "SeriesInstanceUID": "derived from the SOP Instance UID",
    "StationName": "setting `ae_title`",
    "ContentSequence": "the content tree, below",
    "ConceptNameCodeSequence": "by the reason that was given",
    "Rows": "height of the picture",
    "Columns": "width of the picture",
    "PixelData": "the picture, uncompressed",
    "DeviceUID": "derived: of an algorithm from name, version and weights, of the node from AE title and version",
    "ManufacturerModelName": "name of bundle or member, or `cxr-dicom-node`; of the modality: the source's",
    "SoftwareVersions": "release or version; of the modality: the source's",
    "Manufacturer": "`cxr-dicom-node project`; of the modality: the source's",
    "ContributionDateTime": "the same in UTC; of the modality: Acquisition DateTime",
    "ContributionDescription": "what the equipment did",
    "PurposeOfReferenceCodeSequence": '(109102, DCM, "Processing Equipment"); of the modality: '
    '(109101, DCM, "Acquisition Equipment")',
    **{f"{what}{of}": _WHEN for what in ("InstanceCreation", "Series", "Content") for of in ("Date", "Time")},
    **{f"{of}OfSecondaryCapture": _WHEN for of in ("Date", "Time")},
}
# In items, whatever the examples have there.
_OF_OTHERS = {
    "ReferencedSOPClassUID": "what is cited",
    "ReferencedSOPInstanceUID": "what is cited",
    "SeriesInstanceUID": "series of what is cited",
    "StudyInstanceUID": "the study",
    "InstitutionName": _MODALITY,
    "InstitutionAddress": _MODALITY,
    "InstitutionalDepartmentName": _MODALITY,
    "StationName": _MODALITY,
    "DeviceSerialNumber": _MODALITY,
}


def heatmap_attributes() -> str:
    """Of the Secondary Capture."""
    return _attributes(lambda example: example.heatmap)


def report_attributes() -> str:
    """Of the Structured Report, whatever its SOP Class."""
    return _attributes(lambda example: example.report)


def note_attributes() -> str:
    """Of the Key Object Selection Document."""
    return _attributes(lambda example: example.note)


def file_meta() -> str:
    """Of the files in which results are kept, and from which they are sent."""
    full, _ = examples()
    meta = full.report.file_meta
    keywords = ("TransferSyntaxUID", "ImplementationClassUID", "ImplementationVersionName")
    return table(
        ("attribute", "tag", "value"),
        ((*attribute(keyword), _shown(meta[keyword].value)) for keyword in keywords),
    )


def _attributes(of: Callable[[Example], Dataset]) -> str:
    full, bare = examples()
    rows = _rows([of(full)], [of(bare)], (full.source, bare.source), 0)
    return table(("attribute", "tag", "VR", "presence", "value"), rows)


def _rows(
    full: Sequence[Dataset], bare: Sequence[Dataset], sources: tuple[Dataset, Dataset] | None, depth: int
) -> Iterator[Row]:
    """One for each attribute of both examples' items; `sources` is given where these are the objects themselves."""
    for tag in sorted({element.tag for item in (*full, *bare) for element in item}):
        keyword = keyword_for_tag(tag)
        if sources is not None and keyword in PATIENT_AND_STUDY:
            continue  # they stand in a table of their own
        found = [item.get(tag) for item in (*full, *bare)]
        elements = [element for element in found if element is not None]
        copied = sources is not None and is_copied(keyword, full[0], sources[0])
        name, number = attribute(keyword)
        value = "source" if copied and keyword not in _DERIVED else _value(keyword, elements, depth)
        if all("DeviceUID" in item for item in (*full, *bare)):  # ours alone
            value = value.partition(_OF_THE_MODALITY)[0]
        yield (f"{'>' * depth}{name}", number, elements[0].VR, presence(found), value)
        if elements[0].VR == "SQ" and keyword != "ContentSequence" and not _is_coded(keyword):
            inner_full, inner_bare = (
                [one for item in items for one in item.get(keyword, ())] for items in (full, bare)
            )
            yield from _rows(inner_full, inner_bare, None, depth + 1)


def _items(found: Sequence[Dataset], keyword: str) -> list[Dataset]:
    return [item for each in found for item in each.get(keyword, ())]


def is_copied(keyword: str, made: Dataset, source: Dataset) -> bool:
    """Whether the object has the source's value."""
    return keyword in KEPT and keyword in source and made.get(keyword) == source.get(keyword)


def _is_coded(keyword: str) -> bool:
    return keyword.endswith("CodeSequence")


def presence(found: Sequence[Any]) -> str:
    """PS3.2's word for whether an attribute and its value are there, of the elements or None where there is none."""
    filled = [element is not None and not element.is_empty for element in found]
    if all(filled):
        return "ALWAYS"
    if any(element is None for element in found):
        return "ANAP"
    return "VNAP" if any(filled) else "EMPTY"


def _value(keyword: str, elements: Sequence[Any], depth: int) -> str:
    if depth and keyword in _OF_OTHERS:
        return _OF_OTHERS[keyword]
    if elements[0].VR == "SQ" and not _is_coded(keyword) and keyword not in _DERIVED:
        return ""
    if _are_equal(elements):
        return _shown(elements[0].value)
    if keyword not in _DERIVED:
        raise LookupError(f"dicom_node/statement/instances.py does not say where {keyword} comes from")
    return _DERIVED[keyword]


def _are_equal(elements: Sequence[Any]) -> bool:
    return all(element.value == elements[0].value for element in elements)


def _shown(value: Any) -> str:
    if isinstance(value, UID):
        return f"`{value}`" if value.name == value else f"{value.name} `{value}`"
    if isinstance(value, MultiValue):
        return "`" + "\\".join(str(one) for one in value) + "`"
    if hasattr(value, "__iter__") and not isinstance(value, str | bytes):
        return ", ".join(_code(item) for item in value)
    return "" if value in ("", None) else f"`{value}`"


def _code(item: Dataset) -> str:
    return f'({item.CodeValue}, {item.CodingSchemeDesignator}, "{item.CodeMeaning}")'
