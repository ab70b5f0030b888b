"""What every object of ours is held against before it is archived or sent: an invalid one never leaves.

A fault found here is one of this program, not of the sender's. An archive or a viewer would not name it: they refuse
the object, file it with another patient, or show it wrongly.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_sequence
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
)

from dicom_node.attributes import CONTENT_SEQUENCE, PIXEL_DATA, check_attributes, elements_of, is_empty, named
from dicom_node.content_tree import read_references
from dicom_node.normalise import CHARACTER_SET
from dicom_node.results import ResultError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydicom.dataset import Dataset

    from dicom_node.attributes import Elements

# Modality and template (PS3.16) of each SOP Class that we make.
_KINDS: dict[str, tuple[str, str]] = {
    SecondaryCaptureImageStorage: ("OT", ""),
    Comprehensive3DSRStorage: ("SR", "1500"),
    ComprehensiveSRStorage: ("SR", "1500"),
    EnhancedSRStorage: ("SR", "1500"),
    KeyObjectSelectionDocumentStorage: ("KO", "2010"),
}

# As every source has it: whose result it is, and in which study. A source may lack what another one has.
_WHOSE = ("PatientID", "IssuerOfPatientID")
# As one of the sources has it, the same one for all.
_REPEATED = (
    *_WHOSE,
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "IssuerOfPatientIDQualifiersSequence",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName",
    "TimezoneOffsetFromUTC",
)
_CITED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_META = {
    "MediaStorageSOPClassUID": "SOPClassUID",
    "MediaStorageSOPInstanceUID": "SOPInstanceUID",
}


class _Listed(NamedTuple):
    """Where the evidence says that an instance belongs."""

    study: str
    series: str
    sop_class: str


def check_object(ds: Dataset, sources: Sequence[Dataset]) -> None:
    """Refuse a heatmap, report or rejection note that is not sound.

    Parameters
    ----------
    ds
        The object with its file meta information, as it is about to be encoded.
    sources
        Headers from `dicom_node.normalise`: of a heatmap's one image, of every image in a report, of the image that a
        rejection note repeats patient and study of.

    Raises
    ------
    ResultError
        Names the attribute at fault, never a value of the patient's.
    """
    if not sources:
        raise ResultError("no source to hold the object against")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, with the value; what matters is said below
        found = elements_of(ds)
        sop_class = _text(found, "SOPClassUID")
        if sop_class not in _KINDS:
            raise _fault("SOPClassUID", "is none that is made here")
        modality, template = _KINDS[sop_class]
        _check_meta(ds)
        cited = frozenset(str(source.get(keyword, "")) for source in sources for keyword in _CITED)
        check_attributes(found, sop_class, cited)
        _expect(found, "Modality", modality)
        _expect(found, "ContentQualification", "RESEARCH")
        _expect(found, "SpecificCharacterSet", CHARACTER_SET)
        if _text(found, "PatientIdentityRemoved") == "YES" and not _has(
            found, "DeidentificationMethod", "DeidentificationMethodCodeSequence"
        ):
            raise _fault("DeidentificationMethod", "is missing where Patient Identity Removed is YES (type 1C)")
        _check_identity(found, sources)
        if template:
            _check_document(found, sources, template)
        else:
            _check_picture(found, sources)


def _check_meta(ds: Dataset) -> None:
    """PS3.10 7.1: the file meta information is that of the data set."""
    meta = getattr(ds, "file_meta", None) or {}
    for of_file, of_object in _META.items():
        if meta.get(of_file) != ds.get(of_object):
            raise _fault(of_file, f"is not {named(_tag(of_object))}")
    if meta.get("TransferSyntaxUID") != ExplicitVRLittleEndian:
        raise _fault("TransferSyntaxUID", "is not Explicit VR Little Endian")


def _check_identity(found: Elements, sources: Sequence[Dataset]) -> None:
    """Patient and study are the sources', instance and series its own."""
    for source in sources:
        if _text(found, "StudyInstanceUID") != str(source.get("StudyInstanceUID", "")):
            raise _fault("StudyInstanceUID", "is not the source's")
        for keyword in ("SeriesInstanceUID", "SOPInstanceUID"):
            if _text(found, keyword) == str(source.get(keyword, "")):
                raise _fault(keyword, "is the source's own")
        for keyword in _WHOSE:  # one of two images of a study may lack them, not contradict the other
            told = _comparable(source.get(keyword)) and _comparable(_value(found, keyword))
            if told and not _is_same(found, source, keyword):
                raise _fault(keyword, "is not the source's")
    strangers = [
        next((keyword for keyword in _REPEATED if not _is_same(found, source, keyword)), "") for source in sources
    ]
    if all(strangers):
        raise _fault(strangers[0], "is not the source's")


def _is_same(found: Elements, source: Dataset, keyword: str) -> bool:
    return bool(_comparable(_value(found, keyword)) == _comparable(source.get(keyword)))


def _comparable(value: Any) -> Any:
    """What a comparison goes by: text as it is written; absent is empty."""
    return value if hasattr(value, "__iter__") and not hasattr(value, "encode") else str(value or "")


def _check_picture(found: Elements, sources: Sequence[Dataset]) -> None:
    """What PS3.3 asks of a Secondary Capture (A.8.1) under conditions, and of one that was derived from a source."""
    if list(_value(found, "ImageType") or ())[:2] != ["DERIVED", "SECONDARY"]:
        raise _fault("ImageType", "is not DERIVED\\SECONDARY")
    for keyword in ("PatientOrientation", "ContentDate", "ContentTime"):
        if _tag(keyword) not in found:
            raise _fault(keyword, "is missing (type 2C, General Image)")
    # Both ways: it stands for a paired part of the body, and Laterality (2C) is for these alone.
    if _text(found, "BodyPartExamined") != "CHEST":
        raise _fault("BodyPartExamined", "is not CHEST: Laterality would be needed (type 2C, General Series)")
    if _tag("Laterality") in found:
        raise _fault("Laterality", "is there, and a chest is not paired (type 2C, General Series)")
    for source in sources:
        if not _is_same(found, source, "BurnedInAnnotation"):
            raise _fault("BurnedInAnnotation", "is not the source's")
    _check_pixels(found)

    listed = _listed(found, "ReferencedSeriesSequence", "ReferencedInstanceSequence", _text(found, "StudyInstanceUID"))
    _check_sources(listed, sources, "ReferencedSeriesSequence")
    derived_from = {item.ReferencedSOPInstanceUID for item in _items(found, "SourceImageSequence")}
    if derived_from != {source.SOPInstanceUID for source in sources}:
        raise _fault("SourceImageSequence", "does not name the sources and nothing else")


def _check_pixels(found: Elements) -> None:
    rows, columns, samples, bits, stored, high = (
        _value(found, keyword)
        for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit")
    )
    if samples > 1 and not _has(found, "PlanarConfiguration"):
        raise _fault("PlanarConfiguration", "is missing (type 1C, Image Pixel)")
    if stored > bits or high != stored - 1:
        raise _fault("HighBit", "does not fit Bits Stored and Bits Allocated")
    if PIXEL_DATA not in found:
        raise _fault("PixelData", "is missing (type 1C, Image Pixel)")
    length = rows * columns * samples * bits // 8
    if len(_value(found, "PixelData") or b"") not in (length, length + length % 2):  # padded or to be padded
        raise _fault("PixelData", "does not fit Rows, Columns, Samples per Pixel and Bits Allocated")


def _check_document(found: Elements, sources: Sequence[Dataset], template: str) -> None:
    """What PS3.3 C.17 asks of a document: its root, its tree, and that all it cites stands in its evidence."""
    _expect(found, "ValueType", "CONTAINER")
    if _text(found, "ContinuityOfContent") not in ("SEPARATE", "CONTINUOUS"):
        raise _fault("ContinuityOfContent", "is neither SEPARATE nor CONTINUOUS")
    # No validator misses it, but a reader knows the template by nothing else.
    named_templates = [
        (item.get("MappingResource"), item.get("TemplateIdentifier"))
        for item in _items(found, "ContentTemplateSequence")
    ]
    if named_templates != [("DCMR", template)]:
        raise _fault("ContentTemplateSequence", f"does not name DCMR and {template}")
    if not _has(found, "ConceptNameCodeSequence"):
        raise _fault("ConceptNameCodeSequence", "is missing or empty (type 1C, SR Document Content)")

    listed: dict[str, _Listed] = {}
    for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"):
        for study in _items(found, keyword):
            more = _listed(
                elements_of(study), "ReferencedSeriesSequence", "ReferencedSOPSequence", study.StudyInstanceUID
            )
            if not listed.keys().isdisjoint(more):
                raise _fault("ReferencedSOPInstanceUID", f"is listed twice in {named(_tag(keyword))}")
            listed |= more
    evidence = "CurrentRequestedProcedureEvidenceSequence"
    if any(instance.study != _text(found, "StudyInstanceUID") for instance in listed.values()):
        raise _fault(evidence, "holds another study")
    if _text(found, "SOPInstanceUID") in listed:
        raise _fault(evidence, "holds the object itself")
    cited = read_references(_content(found))
    for sop_class, instance_uid in sorted(cited):
        if instance_uid not in listed or listed[instance_uid].sop_class != sop_class:
            raise ResultError(
                f"{named(_tag('ReferencedSOPInstanceUID'), ((CONTENT_SEQUENCE, 1),))} {instance_uid} is not in the "
                f"evidence, {named(_tag(evidence))}"
            )
    if _text(found, "Modality") == "KO":
        if len(cited) != len(listed):
            raise _fault(evidence, "holds instances that the content tree does not name")
    else:
        _check_sources(listed, sources, evidence)


def _listed(found: Elements, series: str, instances: str, study: str) -> dict[str, _Listed]:
    """Where each instance belongs that stands in a sequence of series, by its UID; nothing stands there twice."""
    listed: dict[str, _Listed] = {}
    of_series: set[str] = set()
    for item in _items(found, series):
        series_uid = str(item.get("SeriesInstanceUID", ""))
        if series_uid in of_series:
            raise _fault("SeriesInstanceUID", f"is listed twice in {named(_tag(series))}")
        of_series.add(series_uid)
        for instance in item.get(instances, ()):
            instance_uid = str(instance.ReferencedSOPInstanceUID)
            if instance_uid in listed:
                raise _fault("ReferencedSOPInstanceUID", f"is listed twice in {named(_tag(series))}")
            listed[instance_uid] = _Listed(str(study), series_uid, str(instance.ReferencedSOPClassUID))
    return listed


def _check_sources(listed: dict[str, _Listed], sources: Sequence[Dataset], where: str) -> None:
    for source in sources:
        expected = _Listed(*(str(source.get(k, "")) for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID")))
        if listed.get(str(source.SOPInstanceUID)) != expected:
            raise _fault(where, f"does not list the source {source.SOPInstanceUID} with its series and SOP Class")


def _content(found: Elements) -> bytes:
    """The content tree in explicit VR little endian."""
    element = found.get(CONTENT_SEQUENCE)
    if element is None:
        raise _fault("ContentSequence", "is missing")
    if isinstance(element, RawDataElement):
        if element.is_implicit_VR or not element.is_little_endian:
            raise _fault("ContentSequence", "is not in explicit VR little endian")
        return element.value or b""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_sequence(buffer, element, ["utf-8"])
    return buffer.getvalue()


def _items(found: Elements, keyword: str) -> Iterator[Dataset]:
    return iter(_value(found, keyword) or ())


def _has(found: Elements, *keywords: str) -> bool:
    """Whether one of these is there with a value."""
    return any(tag in found and not is_empty(found[tag].value) for tag in map(_tag, keywords))


def _text(found: Elements, keyword: str) -> str:
    return str(_value(found, keyword) or "")


def _value(found: Elements, keyword: str) -> Any:
    """The element's value; None where there is no such element."""
    element = found.get(_tag(keyword))
    return None if element is None else element.value


def _expect(found: Elements, keyword: str, value: str) -> None:
    if _text(found, keyword) != value:
        raise _fault(keyword, f"is not {value}")


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword  # noqa: S101 - keywords are written above
    return tag


def _fault(keyword: str, what: str) -> ResultError:
    return ResultError(f"{named(_tag(keyword))} {what}")
