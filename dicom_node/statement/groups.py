"""The context groups (PS3.16) that codes are taken from."""

from __future__ import annotations

from pydicom.sr.codedict import codes as dictionary
from pydicom.sr.coding import Code as SrCode

from dicom_node import codes as c
from dicom_node.content import Code
from dicom_node.domain import NodeError
from dicom_node.rejection import TITLES
from dicom_node.statement.markdown import coded, table

# Number, name, place, the codes of the group and those beside it.
_CONTEXT_GROUPS: tuple[tuple[int, str, str, tuple[Code, ...], tuple[Code, ...]], ...] = (
    (29, "Acquisition Modality", "TID 1602, Modality", tuple(c.MODALITIES.values()), (c.OTHER_MODALITY,)),
    (219, "Geometry Graphical Representation", "TID 1410 row 3c", (c.BOUNDED_BY,), ()),
    (222, "Normality", "Normality", (c.NORMAL, c.ABNORMAL, c.NORMALITY_UNDETERMINED), ()),
    (250, "Positive-Negative", "answer to a question", (c.POSITIVE, c.NEGATIVE), (c.UNDETERMINED,)),
    (270, "Observer Type", "TID 1002 row 1", (c.DEVICE,), ()),
    (
        7005,
        "Contributing Equipment Purpose of Reference",
        "Contributing Equipment Sequence",
        (c.ACQUISITION_EQUIPMENT, c.PROCESSING_EQUIPMENT),
        (),
    ),
    (
        7010,
        "Key Object Selection Document Title",
        "title of a rejection note",
        tuple(Code(title.value, title.scheme_designator, title.meaning) for title in TITLES.values()),
        (),
    ),
    (7021, "Measurement Report Document Title", "TID 1500 row 1", (c.REPORT,), ()),
    (7181, "Abstract Multi-dimensional Image Model Component Unit", "TID 300, unit", (c.NO_UNITS,), ()),
    (
        7202,
        "Source Image Purpose of Reference",
        "Source Image Sequence",
        (Code("121322", "DCM", "Source image for image processing operation"),),
        (),
    ),
    (7203, "Image Derivation", "Derivation Code Sequence", (), (c.VISUAL_EXPLANATION,)),
    (
        9231,
        "Workitem Definition",
        "Performed Procedure Code Sequence",
        (c.COMPUTER_AIDED_DIAGNOSIS,),
        (),
    ),
)


class GroupError(NodeError):
    """A context group of the standard does not hold a code that this page says it does."""

    reason = "statement"


def context_groups() -> str:
    """The context groups that codes are taken from, and the codes that stand beside them.

    Raises
    ------
    GroupError
        Where pydicom's copy of the standard's groups knows better.
    """
    rows = []
    for number, name, place, within, beyond in _CONTEXT_GROUPS:
        group = getattr(dictionary, f"cid{number}")
        for code in (*within, *beyond):
            if (SrCode(code.value, code.scheme, code.meaning) in group) is not (code in within):
                raise GroupError(f"{coded(code)} and CID {number}")
        rows.append((f"CID {number}", name, place, *("; ".join(map(coded, found)) for found in (within, beyond))))
    return table(("context group", "name", "place", "codes from it", "codes beyond it"), rows)
