"""What is read of a received instance, what for, and what is declined."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from dicom_node.admission import admit
from dicom_node.config import Settings
from dicom_node.domain import MANUFACTURER, DeclineReason
from dicom_node.normalise import KEPT, TYPE_2
from dicom_node.pixels import render
from dicom_node.statement.example import Example, examples, phantom
from dicom_node.statement.instances import is_copied, presence
from dicom_node.statement.markdown import attribute, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_CITED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_RESULTS: dict[str, Callable[[Example], Dataset]] = {
    "heatmap": lambda example: example.heatmap,
    "report": lambda example: example.report,
    "note": lambda example: example.note,
}
# By whom each reason is found, and of what it speaks.
_DECLINED = {
    DeclineReason.OWN_RESULT: ("header", "The node made it, or had a part in it (Contributing Equipment)."),
    DeclineReason.FOR_PROCESSING: (
        "header",
        "The SOP Class or Presentation Intent Type is For Processing; admitted by `accept_for_processing`.",
    ),
    DeclineReason.SOP_CLASS: ("header", "The SOP Class is none of those that are screened."),
    DeclineReason.MODALITY: (
        "header",
        "Modality is none of CR, DX and RG; of a Secondary Capture, which has to have one, none of CR and DX.",
    ),
    DeclineReason.COLOUR: ("header, pixels", "More than one sample per pixel, or neither MONOCHROME1 nor MONOCHROME2."),
    DeclineReason.MULTI_FRAME: ("header, pixels", "More than one frame."),
    DeclineReason.NOT_CHEST: ("header, pixels", "Another part of the body."),
    DeclineReason.LATERAL: ("header, pixels", "A lateral view."),
    DeclineReason.NOT_FRONTAL: ("header", "Another view that is not frontal."),
    DeclineReason.CONSTANT: ("pixels", "All pixels have one value."),
    DeclineReason.NOT_CXR: ("pixels", "No chest X-ray, by the bundle's gate."),
}


# pydicom's table also knows spellings that the standard does not have.
_DEFINED_TERM = re.compile(r"ISO_IR \d+|ISO 2022 IR \d+|GB18030|GBK")


class _Watched(Dataset):
    """Remembers what was asked of it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.__dict__["asked"] = {}

    def get(self, key: Any, default: Any = None) -> Any:
        """The value, as of any data set."""
        self.__dict__["asked"][key if isinstance(key, str) else keyword_for_tag(key)] = None
        return super().get(key, default)


def decline_reasons() -> str:
    """Why an instance is not screened."""
    return table(
        ("reason", "found in", "what it says"),
        ((f"`{reason}`", *_DECLINED[reason]) for reason in DeclineReason),
    )


def attributes() -> str:
    """Every attribute that is read of an image, apart from those that only the pixels' decoding needs."""
    deciding, showing = dict.fromkeys(admission_reads()), dict.fromkeys(rendering_reads())
    keywords = sorted({*KEPT, *deciding, *showing}, key=Tag)
    rows = (
        (
            *attribute(keyword),
            dictionary_VR(keyword),
            "; ".join(_uses(keyword, decides=keyword in deciding, shows=keyword in showing)),
            _in_results(keyword),
            _if_illegal(keyword),
        )
        for keyword in keywords
    )
    return table(("attribute", "tag", "VR", "read for", "in results", "where it is illegal"), rows)


def character_sets() -> str:
    """The defined terms of Specific Character Set that are read."""
    terms = sorted(term for term in python_encoding if _DEFINED_TERM.fullmatch(term))
    extending = [term for term in terms if term.startswith("ISO 2022")]
    alone = [term for term in terms if term not in extending]
    rows = (", ".join(f"`{term}`" for term in found) for found in (alone, extending))
    return table(("without code extensions", "with code extensions"), [tuple(rows)])


def admission_reads() -> tuple[str, ...]:
    """What admission asks of a header that says nothing, in its order."""
    header = _Watched()
    header.Manufacturer = MANUFACTURER  # or it would not ask for the model's name
    header.SOPClassUID = ComputedRadiographyImageStorage
    admit(header, Settings.model_construct())
    return tuple(header.__dict__["asked"])


def rendering_reads() -> tuple[str, ...]:
    """What is asked of an image that says how its pixels lie and what pads them, and nothing else."""
    image = _Watched()
    image.Rows, image.Columns = phantom().shape
    image.PhotometricInterpretation = "MONOCHROME2"
    image.SamplesPerPixel = 1
    image.BitsAllocated = image.BitsStored = 16
    image.PixelPaddingValue = 0  # or it would not ask for the limit
    image["PixelPaddingValue"].VR = "US"
    image.PixelData = phantom().tobytes()
    image["PixelData"].VR = "OW"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    render(image, max_pixels=phantom().size)
    return tuple(image.__dict__["asked"])


def _uses(keyword: str, *, decides: bool, shows: bool) -> Iterable[str]:
    if keyword in _CITED:
        yield "identity"
    if decides:
        yield "admission"
    if shows:
        yield "pixels"
    if keyword in KEPT:
        yield "results"


def _in_results(keyword: str) -> str:
    """Where the source's value stands at the root of a result, and how far it is there."""
    if keyword not in KEPT:
        return ""
    full, bare = examples()
    found: dict[str, list[str]] = {}
    for name, of in _RESULTS.items():
        if is_copied(keyword, of(full), full.source) and keyword not in ("SOPClassUID", "Rows", "Columns"):
            elements = [made.get(Tag(keyword)) for made in (of(full), of(bare))]
            found.setdefault(presence(elements), []).append(name)
    if not found:
        return "cited" if keyword in _CITED else "named in content or equipment"
    told = (f"{how} in {'all' if len(names) == len(_RESULTS) else ', '.join(names)}" for how, names in found.items())
    return "; ".join(told)


def _if_illegal(keyword: str) -> str:
    if keyword not in KEPT:
        return "counts as absent" if keyword in admission_reads() else "see 4.2.1.4.3"
    if keyword in _CITED:
        return "kept as it is"
    return "emptied" if keyword in TYPE_2 else "left out"
