"""What is screened: frontal chest radiographs, decided from the header alone.

Absent evidence is no refusal: a header that says nothing of body part or view is admitted as ``unknown``. A value
that is illegal counts as absent. For body part and view the first evidence that speaks decides.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from pydicom import Sequence, uid
from pydicom.multival import MultiValue

from dicom_node import anatomy
from dicom_node.domain import MANUFACTURER, MODEL_NAME, Admission, DeclineReason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom import Dataset

    from dicom_node.config import Settings

SOP_CLASSES = frozenset(
    {
        uid.ComputedRadiographyImageStorage,
        uid.DigitalXRayImageStorageForPresentation,
        uid.DigitalXRayImageStorageForProcessing,
        uid.SecondaryCaptureImageStorage,
    }
)

# What a PACS keeps in a film's study beside the films, our own reports among it. A rule that routes everything sends
# these too, and many a PACS tries a refused presentation context again for ever: so they are taken and declined.
COMPANION_SOP_CLASSES = frozenset(
    {
        uid.BasicTextSRStorage,
        uid.EnhancedSRStorage,
        uid.ComprehensiveSRStorage,
        uid.Comprehensive3DSRStorage,
        uid.XRayRadiationDoseSRStorage,
        uid.KeyObjectSelectionDocumentStorage,
        uid.GrayscaleSoftcopyPresentationStateStorage,
        uid.EncapsulatedPDFStorage,
    }
)

# RG is PS3.3 C.7.3.1.1.1's term for a radiograph on film.
MODALITIES = frozenset({"CR", "DX", "RG"})
CAPTURED_MODALITIES = frozenset({"CR", "DX"})

# From the one that belongs to the image alone to the one that belongs to the whole study, which may name more parts.
_SERIES_DESCRIPTIONS = (
    "AcquisitionDeviceProcessingDescription",
    "SeriesDescription",
    "ProtocolName",
    "PerformedProcedureStepDescription",
)
_DESCRIPTIONS = (*_SERIES_DESCRIPTIONS, "RequestedProcedureDescription", "StudyDescription")

_VIEW_REASONS = {anatomy.LATERAL: DeclineReason.LATERAL, anatomy.NOT_FRONTAL: DeclineReason.NOT_FRONTAL}


def admit(header: Dataset, settings: Settings) -> Admission:
    """Whether the instance with this header is screened, and what decided it.

    A declined instance carries what was read before the refusal: its `view` may also be ``lateral`` or
    ``not_frontal``, its `body_part` ``not_chest``.
    """
    # pydicom warns of odd values with the values in the text; here they simply count as absent.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        declined = _object_reason(header, accept_for_processing=settings.accept_for_processing)
        if declined is not None:
            reason, evidence = declined
            return Admission(reason, "unknown", "unknown", evidence)
        body_part, part_evidence = _first(_body_part_evidence(header))
        if body_part == anatomy.NOT_CHEST:
            return Admission(DeclineReason.NOT_CHEST, "unknown", body_part, part_evidence)
        view, view_evidence = _first(_view_evidence(header))
        return Admission(_VIEW_REASONS.get(view), view, body_part, part_evidence + view_evidence)


def _object_reason(header: Dataset, *, accept_for_processing: bool) -> tuple[DeclineReason, tuple[str, ...]] | None:
    """Why an object of this kind is not screened, whatever it shows."""
    if _is_ours(header):
        return DeclineReason.OWN_RESULT, ("Manufacturer", "ManufacturerModelName")
    if any(_is_ours(item) for item in _items(header, "ContributingEquipmentSequence")):
        return DeclineReason.OWN_RESULT, ("ContributingEquipmentSequence",)

    sop_class = _text(header, "SOPClassUID")
    if sop_class not in SOP_CLASSES:
        return DeclineReason.SOP_CLASS, ("SOPClassUID",)
    if not accept_for_processing:
        if sop_class == uid.DigitalXRayImageStorageForProcessing:
            return DeclineReason.FOR_PROCESSING, ("SOPClassUID",)
        if _text(header, "PresentationIntentType").upper() == "FOR PROCESSING":
            return DeclineReason.FOR_PROCESSING, ("PresentationIntentType",)

    # A Secondary Capture can hold anything, so there Modality has to say that it is a radiograph.
    modality = _text(header, "Modality").upper()
    captured = sop_class == uid.SecondaryCaptureImageStorage
    if modality not in (CAPTURED_MODALITIES if captured else MODALITIES) and (modality or captured):
        return DeclineReason.MODALITY, ("Modality",)
    if (_integer(header, "SamplesPerPixel") or 1) != 1:
        return DeclineReason.COLOUR, ("SamplesPerPixel",)
    if _text(header, "PhotometricInterpretation").upper() not in ("", "MONOCHROME1", "MONOCHROME2"):
        return DeclineReason.COLOUR, ("PhotometricInterpretation",)
    if (_integer(header, "NumberOfFrames") or 1) > 1:
        return DeclineReason.MULTI_FRAME, ("NumberOfFrames",)
    return None


def _body_part_evidence(header: Dataset) -> Iterator[tuple[str, str | None]]:
    regions = {anatomy.body_part_of_code(*code) for code in _codes(header, "AnatomicRegionSequence")}
    yield "AnatomicRegionSequence", next((part for part in (anatomy.CHEST, anatomy.NOT_CHEST) if part in regions), None)
    yield "BodyPartExamined", anatomy.body_part_of_term(_text(header, "BodyPartExamined"))
    for keyword in _DESCRIPTIONS:
        yield keyword, anatomy.body_part_of_description(_text(header, keyword))


def _view_evidence(header: Dataset) -> Iterator[tuple[str, str | None]]:
    views = (anatomy.view_of_code(*code) for code in _codes(header, "ViewCodeSequence"))
    yield "ViewCodeSequence", next((view for view in views if view), None)
    yield "ViewPosition", anatomy.view_of_term(_text(header, "ViewPosition"))
    orientation = _value(header, "PatientOrientation")
    if isinstance(orientation, MultiValue) and len(orientation) == 2:
        row, column = (str(direction).strip().upper() for direction in orientation)
        yield "PatientOrientation", anatomy.view_of_orientation(row, column)
    for keyword in _SERIES_DESCRIPTIONS:
        # A description is written for the examination; only a view that we must not screen is taken from it.
        view = anatomy.view_of_term(_text(header, keyword))
        yield keyword, view if view in _VIEW_REASONS else None


def _first(evidence: Iterator[tuple[str, str | None]]) -> tuple[str, tuple[str, ...]]:
    """What the first evidence that speaks says, and its keyword."""
    return next(((said, (keyword,)) for keyword, said in evidence if said is not None), ("unknown", ()))


def _is_ours(item: Dataset) -> bool:
    return _text(item, "Manufacturer") == MANUFACTURER and _text(item, "ManufacturerModelName") == MODEL_NAME


def _codes(header: Dataset, keyword: str) -> Iterator[tuple[str, str]]:
    """Value and scheme of the items of a code sequence (PS3.3 8.8) that have both."""
    for item in _items(header, keyword):
        value, scheme = _text(item, "CodeValue"), _text(item, "CodingSchemeDesignator").upper()
        if value and scheme:
            yield value, scheme


def _items(header: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none where it is absent or no sequence."""
    value = _value(header, keyword)
    return list(value) if isinstance(value, Sequence) else []


def _text(header: Dataset, keyword: str) -> str:
    """A single text without its padding; empty where it is absent, multi-valued or not a text."""
    value = _value(header, keyword)
    return value.strip(" \0\t\r\n") if isinstance(value, str) else ""


def _integer(header: Dataset, keyword: str) -> int | None:
    value = _value(header, keyword)
    return int(value) if isinstance(value, int) else None


def _value(header: Dataset, keyword: str) -> Any:
    """The value of an element; None where it is absent or pydicom cannot make it out."""
    try:
        return header.get(keyword)
    except Exception:  # raw elements are converted on access, and fail in many ways
        return None
