"""Content trees, templates and codes of the documents that the node makes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dicom_node import codes as c
from dicom_node.bundle import MANIFEST, find_bundle, parse_manifest
from dicom_node.codes import KNOWN, OUTPUTS, PRIVATE_SCHEME
from dicom_node.config import Settings
from dicom_node.content import Code
from dicom_node.statement.example import examples
from dicom_node.statement.markdown import coded, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom.dataset import Dataset

_TITLES = {
    "300": "Measurement",
    "1002": "Observer Context",
    "1004": "Device Observer Identifying Attributes",
    "1204": "Language of Content Item and Descendants",
    "1410": "Planar ROI Measurements and Qualitative Evaluations",
    "1500": "Measurement Report",
    "1501": "Measurement and Qualitative Evaluation Group",
    "1600": "Image Library",
    "1601": "Image Library Entry",
    "1602": "Image Library Entry Descriptors",
    "1603": "Image Library Entry Descriptors for Projection Radiography",
    "2010": "Key Object Selection",
    "4019": "Algorithm Identification",
}
_NAMES = {(code.value, code.scheme): code for code in KNOWN.values()}
_ANSWER = "TID 1501 row 11"
_GROUPS = ("1501", "1410")


def report_tree() -> str:
    """The content tree of a report on one image with one question, one member and a heatmap."""
    return _tree(examples()[0].report)


def note_tree() -> str:
    """The content tree of a rejection note."""
    return _tree(examples()[0].note)


def _tree(document: Dataset) -> str:
    root = ("", "CONTAINER", _concept(document), _row(document, ""), "")
    head = ("nesting and relationship", "value type", "concept name", "template", "value")
    return table(head, [root, *_below(document, 1, "")])


def _below(parent: Dataset, depth: int, group: str) -> Iterator[tuple[str, str, str, str, str]]:
    """One row for each content item; of neighbours that differ in their text alone, the first.

    `group` is the template of the measurement group that they stand in.
    """
    before = None
    for item in parent.get("ContentSequence", ()):
        named = _template(item) or group
        head = (f"{'>' * depth} {item.RelationshipType}", item.ValueType, _concept(item), _row(item, named))
        if head == before and item.ValueType == "TEXT":
            continue
        before = head
        yield (*head, _value(item))
        yield from _below(item, depth + 1, named)


def _concept(item: Dataset) -> str:
    return _code(item.ConceptNameCodeSequence[0]) if "ConceptNameCodeSequence" in item else ""


def _template(item: Dataset) -> str:
    named = [part.TemplateIdentifier for part in item.get("ContentTemplateSequence", ())]
    return named[0] if named and named[0] in _GROUPS else ""


def _row(item: Dataset, group: str) -> str:
    """Where the table of codes says that the concept stands; of a concept with several places, the group's."""
    if "ConceptNameCodeSequence" not in item:
        return ""
    code = item.ConceptNameCodeSequence[0]
    known = _NAMES.get((code.CodeValue, code.CodingSchemeDesignator))
    if known is None:
        return _ANSWER if item.ValueType == "CODE" else "TID 300 row 1" if item.ValueType == "NUM" else ""
    if item.ValueType == "CODE" and known is c.ABNORMAL:  # as a name, it is the question
        return f"{_ANSWER}: the question"
    if known is c.SOURCE and not (item.ValueType == "IMAGE" and "ContentSequence" in item):
        return ""  # a citation, and no entry of the Image Library
    places = known.used.partition(":")[0].partition(",")[0].split(" and ")
    of_others = [other for other in _GROUPS if other != group]
    fitting = (place for place in places if not any(f"TID {other} " in f"{place} " for other in of_others))
    return next(fitting, "")


def _value(item: Dataset) -> str:
    match item.ValueType:
        case "CODE":
            return _code(item.ConceptCodeSequence[0])
        case "NUM":
            return f"unit {_code(item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0])}"
        case "SCOORD":
            return str(item.GraphicType)
        case "CONTAINER" if named := _template(item):
            return f"template {named} of DCMR"
    return ""


def _code(item: Dataset) -> str:
    return f'({item.CodeValue}, {item.CodingSchemeDesignator}, "{item.CodeMeaning}")'


def templates() -> str:
    """Every template that a row of the table of codes names, and the rejection note's."""
    named = {found for code in KNOWN.values() for found in re.findall(r"TID (\d+)", code.used)} | {"2010"}
    return table(("template", "title"), ((f"TID {number}", _TITLES[number]) for number in sorted(named, key=int)))


def codes() -> str:
    """Every code of public schemes that a report writes, but for those of the questions."""
    public = [code for code in KNOWN.values() if code.scheme != PRIVATE_SCHEME]
    return table(("code", "where"), ((coded(code), code.used) for code in public))


def private_codes() -> str:
    """The private coding scheme, as far as it is fixed."""
    outputs = [(name, code) for name, code in OUTPUTS.items() if code.scheme == PRIVATE_SCHEME]
    return table(("code", "output of a member"), ((coded(code), f"`{name}`") for name, code in outputs))


def question_codes() -> str:
    """The questions of the bundle that comes with the program."""
    bundle = Settings.model_fields["bundle"].default
    manifest = parse_manifest((find_bundle(bundle) / MANIFEST).read_text())
    rows = (
        (f"`{target.name}`", target.title, coded(Code(target.code.value, target.code.scheme, target.code.meaning)))
        for target in manifest.targets
    )
    return f"Bundle `{manifest.name}`, release {manifest.release}:\n\n" + table(("question", "title", "code"), rows)
