"""A header that results can be built from, whatever the modality wrote.

Results repeat the source's patient and study (PS3.3 C.7.1, C.7.2) so that an archive files them beside it. One illegal
value there would make the results illegal too, or stop highdicom from building them at all.
"""

from __future__ import annotations

import copy
import re
import warnings
from math import isfinite
from typing import Any

from pydicom.charset import convert_encodings, default_encoding, python_encoding
from pydicom.config import RAISE, disable_value_validation
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import DA, DT, STR_VR_REGEXES, TM, validate_value

# What every result is written in (PS3.3 C.12.1.1.2: UTF-8).
CHARACTER_SET = "ISO_IR 192"

# Type 2 in the Patient and General Study modules, and Modality, which highdicom reads: present, if need be empty.
TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
    "Modality",
)

_PATIENT = (
    "IssuerOfPatientID",
    "TypeOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "PatientBirthTime",
    "QualityControlSubject",
    "OtherPatientNames",
    "OtherPatientIDsSequence",
    "EthnicGroupCodeSequence",
    "PatientComments",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
)
_STUDY = (
    "StudyInstanceUID",
    "IssuerOfAccessionNumberSequence",
    "ConsultingPhysicianName",
    "StudyDescription",
    "ProcedureCodeSequence",
    "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy",
    "ReferencedStudySequence",
    "RequestingService",
    "ReasonForPerformedProcedureCodeSequence",
    "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientBodyMassIndex",
    "MedicalAlerts",
    "Allergies",
    "Occupation",
    "SmokingStatus",
    "AdditionalPatientHistory",
    "PregnancyStatus",
    "LastMenstrualDate",
    "ReasonForVisit",
    "ReasonForVisitCodeSequence",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "ServiceEpisodeID",
    "ServiceEpisodeDescription",
    "PatientState",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)
_IMAGE = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "TimezoneOffsetFromUTC",
    "Manufacturer",
    "ManufacturerModelName",
    "SoftwareVersions",
    "DeviceSerialNumber",
    "StationName",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "AcquisitionDateTime",
    "Rows",
    "Columns",
    "PatientOrientation",
    "ImagerPixelSpacing",
    "BurnedInAnnotation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
KEPT = TYPE_2 + _PATIENT + _STUDY + _IMAGE
# What a result repeats of its source (PS3.3 C.7.1, C.7.2).
PATIENT_AND_STUDY = tuple(keyword for keyword in TYPE_2 if keyword != "Modality") + _PATIENT + _STUDY

_YES_NO = frozenset({"YES", "NO"})
_ENUMERATED = {
    "PatientSex": frozenset({"M", "F", "O"}),
    "TypeOfPatientID": frozenset({"TEXT", "RFID", "BARCODE"}),
    "QualityControlSubject": _YES_NO,
    "PatientIdentityRemoved": _YES_NO,
    "SmokingStatus": frozenset({"YES", "NO", "UNKNOWN"}),
    "PregnancyStatus": frozenset({1, 2, 3, 4}),
    "BurnedInAnnotation": _YES_NO,
    "LossyImageCompression": frozenset({"00", "01"}),
    "UniversalEntityIDType": frozenset({"DNS", "EUI64", "ISO", "URI", "UUID", "X400", "X500"}),
}
_STRINGS = frozenset(
    {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
)
_NUMBERS = frozenset({"FD", "FL", "SL", "SS", "UL", "US"})
_DATES = {"DA": DA, "TM": TM, "DT": DT}
# Without these the results could not be filed at all: as they came, legal or not.
_CITED = frozenset({"StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"})
# What an item must hold (type 1), by the sequence's keyword.
_REQUIRED = (
    (re.compile(r".*CodeSequence"), ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")),
    (re.compile(r"Referenced.*"), ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")),
    (re.compile(r"OtherPatientIDsSequence"), ("PatientID", "TypeOfPatientID")),
)
# Whose identifiers these are: one item, which names him in his own way or in everybody's (PS3.3 10.14, 10.15).
_ISSUER = re.compile(r"Issuer.*Sequence|AssigningFacilitySequence")
_QUALIFIERS = "IssuerOfPatientIDQualifiersSequence"  # of an issuer who is named elsewhere
_TRIAL_TYPE_1 = ("ClinicalTrialSponsorName", "ClinicalTrialProtocolID")
_TRIAL_SUBJECT = ("ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID")  # either
_TRIAL_TYPE_2 = ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName")
_TRIAL_STUDY = ("ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription")  # the first of type 2
_PARAGRAPHS = frozenset({"LT", "ST", "UT"})
_ORIENTATIONS = frozenset("APRLHF")
_OPPOSITES = ({"A", "P"}, {"R", "L"}, {"H", "F"})
_MISSPELT = re.compile(r"ISO.(2022.)?IR.(\d+)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_UNDECODED = "\ufffd"
# pydicom 3.0 decodes what follows it and leaves it in the text: it designates GB 2312 (PS3.5 K.2, ISO 2022 IR 58).
_ESCAPE_TO_GB_2312 = "\x1b$)A"
_DEEPEST = 4


class _IllegalError(Exception):
    """The value is not legal; the message says how, without the value."""


def normalise(header: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    """What results take over from a source, legal throughout, and notes on what had to be done for it.

    The copy holds the attributes of `KEPT` alone: no pixel data, nothing private, text in UTF-8 whatever the source's
    Specific Character Set. Those of `TYPE_2` are always there; an illegal value makes one of them empty and any other
    absent. The header itself is left as it is.

    Returns
    -------
    tuple
        The copy, and a note per change: keyword and what was done, never a value, which may be the patient's.
    """
    notes: list[str] = []
    normal = Dataset()
    normal.SpecificCharacterSet = CHARACTER_SET
    # pydicom reports what it cannot decode as warnings, and logs illegal values with the value; here they become notes.
    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        encodings = _encodings(header, notes)
        source = Dataset()
        is_implicit_vr, is_little_endian = header.original_encoding
        source.set_original_encoding(is_implicit_vr, is_little_endian, encodings or [default_encoding])
        for keyword in KEPT:
            if encodings is None and dictionary_VR(keyword) == "SQ":
                continue  # items decode themselves, and there is nothing to decode them with
            _take(keyword, header, source, normal, notes)
    _complete(normal, notes)
    return normal, tuple(notes)


def _take(keyword: str, header: Dataset, source: Dataset, normal: Dataset, notes: list[str]) -> None:
    """Add the attribute to `normal` as it may stand there; `source` decodes it, so that `header` need not."""
    tag = tag_for_keyword(keyword)
    assert tag is not None  # noqa: S101 - KEPT is checked by a test
    done = "emptied" if keyword in TYPE_2 else "left out"
    value: Any = None
    if tag in header:
        try:
            raw = header.get_item(tag)
            if dictionary_VR(tag) == "SQ":
                raw = copy.deepcopy(raw)
            source[tag] = raw
            value, note = _legal(source[tag], keyword)
            if note:
                notes.append(f"{keyword}: {note}")
        except _IllegalError as error:
            notes.append(f"{keyword}: {error}, {done}")
        except Exception:  # whatever pydicom makes of a malformed element, it is not copied
            notes.append(f"{keyword}: unreadable, {done}")
    elif keyword in TYPE_2:
        notes.append(f"{keyword}: absent, added empty")
    if value is not None:
        normal.add(DataElement(tag, dictionary_VR(tag), value))
    elif keyword in TYPE_2:
        normal.add(DataElement(tag, dictionary_VR(tag), ""))


def _complete(normal: Dataset, notes: list[str]) -> None:
    """Leave out attributes that are legal only together with others that are not there."""
    if normal.get("PatientIdentityRemoved") == "YES" and not (
        "DeidentificationMethod" in normal or "DeidentificationMethodCodeSequence" in normal
    ):
        del normal.PatientIdentityRemoved
        notes.append("PatientIdentityRemoved: without a method (type 1C), left out")
    trial = [element.keyword for element in normal if element.keyword.startswith("ClinicalTrial")]
    whole = all(keyword in trial for keyword in _TRIAL_TYPE_1) and any(keyword in trial for keyword in _TRIAL_SUBJECT)
    if trial and not whole:
        for keyword in trial:
            delattr(normal, keyword)
        notes.append("ClinicalTrialProtocolID: incomplete module, left out")
    elif trial:
        of_study = _TRIAL_STUDY[:1] if any(keyword in trial for keyword in _TRIAL_STUDY) else ()
        for keyword in (*_TRIAL_TYPE_2, *of_study):
            if keyword not in normal:
                setattr(normal, keyword, "")


def _legal(element: DataElement, keyword: str, depth: int = 0) -> tuple[Any, str]:
    """The element's value as it may be written, or None where it is empty; and a note, or an empty string."""
    vr = dictionary_VR(element.tag)
    if vr == "SQ":
        return _legal_items(element, depth), ""
    if element.is_empty:
        return None, ""
    values = list(element.value) if isinstance(element.value, MultiValue | list | tuple) else [element.value]
    if len(values) > 1 and dictionary_VM(element.tag) == "1":
        raise _IllegalError("more than one value")
    if vr in _NUMBERS:
        legal: list[Any] = [_legal_number(value, vr) for value in values]
    elif vr in _STRINGS:
        legal = [_legal_text(value, "LO" if keyword in _CITED else vr) for value in values]
    else:
        raise _IllegalError(f"{vr} is not copied")
    _check_meaning(keyword, legal)
    note = ""
    if keyword in _CITED and not re.fullmatch(STR_VR_REGEXES["UI"], legal[0]):
        note = "illegal UI, kept"
    if any(_UNDECODED in value for value in legal if isinstance(value, str)):
        # A name with a gap is still read by people; an identifier with a gap is somebody else's.
        if vr != "PN":
            raise _IllegalError("not in the Specific Character Set")
        note = "not in the Specific Character Set, characters replaced"
    return (legal[0] if len(legal) == 1 else legal), note


def _legal_number(value: Any, vr: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise _IllegalError(f"illegal {vr}")
    return value


def _legal_text(value: Any, vr: str) -> str:
    """One value as str, checked by its VR (PS3.5 6.2)."""
    if isinstance(value, bytes) or value is None:
        raise _IllegalError(f"illegal {vr}")
    text = str(value).replace(_ESCAPE_TO_GB_2312, "").rstrip(" \0")
    if vr == "CS":
        text = text.strip()
    control = _CONTROL.sub("", text) if vr not in _PARAGRAPHS else re.sub(r"[\x00-\x08\x0b\x0e-\x1f\x7f]", "", text)
    if control != text or ("\\" in text and vr not in _PARAGRAPHS):
        raise _IllegalError(f"illegal {vr}")
    try:
        text.encode()
        validate_value(vr, text, RAISE)
        if vr == "PN" and any(group.count("^") > 4 for group in text.split("=")):
            raise _IllegalError("illegal PN")
        if vr in ("DA", "TM") and "-" in text:  # a range, legal in queries only
            raise _IllegalError(f"illegal {vr}")
        if vr in _DATES and text:
            _DATES[vr](text)  # the calendar: no 30 February
        if vr == "DS" and text and not isfinite(float(text)):
            raise _IllegalError(f"illegal {vr}")
        if vr == "IS" and text and not -(2**31) <= int(text) < 2**31:
            raise _IllegalError(f"illegal {vr}")
    except (ValueError, OverflowError) as error:
        raise _IllegalError(f"illegal {vr}") from error
    return text


def _check_meaning(keyword: str, values: list[Any]) -> None:
    """Refuse values that are legal for their VR and still mean nothing in this attribute."""
    allowed = _ENUMERATED.get(keyword)
    if allowed is not None and not allowed.issuperset(values):
        raise _IllegalError("not an enumerated value")
    if keyword == "TimezoneOffsetFromUTC" and not re.fullmatch(r"[+-][01]\d[0-5]\d", values[0]):
        raise _IllegalError("not an offset")
    if keyword in ("Rows", "Columns") and not 0 < values[0] <= 0xFFFF:
        raise _IllegalError("not a size")
    if keyword == "ImagerPixelSpacing" and (len(values) != 2 or any(float(value) <= 0 for value in values)):
        raise _IllegalError("not a spacing")
    if keyword == "PatientOrientation" and not _is_orientation(values):
        raise _IllegalError("not a direction of row and column")


def _is_orientation(values: list[str]) -> bool:
    """Whether these are two directions of a biped: up to three letters each, no opposites (PS3.3 C.7.6.1.1.1)."""
    return len(values) == 2 and all(
        0 < len(value) <= 3
        and len(set(value)) == len(value)
        and _ORIENTATIONS.issuperset(value)
        and not any(opposite <= set(value) for opposite in _OPPOSITES)
        for value in values
    )


def _legal_items(element: DataElement, depth: int) -> list[Dataset] | None:
    """The items of a sequence with every public attribute; one illegal value condemns the whole sequence."""
    if depth >= _DEEPEST:
        raise _IllegalError("nested too deep")
    name = keyword_for_tag(element.tag)
    items = []
    for item in element.value or ():
        legal = Dataset()
        for part in item:
            keyword = keyword_for_tag(part.tag)
            if not keyword or keyword == "SpecificCharacterSet" or part.tag.is_private:
                continue
            value, note = _legal(part, keyword, depth + 1)
            if note:
                raise _IllegalError("not in the Specific Character Set")
            if value is not None:
                legal.add(DataElement(part.tag, dictionary_VR(part.tag), value))
        if any(pattern.fullmatch(name) and not all(key in legal for key in keys) for pattern, keys in _REQUIRED):
            raise _IllegalError("incomplete item")
        if not _names_entity(name, legal):
            raise _IllegalError("incomplete item")
        if len(legal):
            items.append(legal)
    if len(items) > 1 and _ISSUER.fullmatch(name):
        raise _IllegalError("more than one item")
    return items or None


def _names_entity(sequence: str, item: Dataset) -> bool:
    """Whether an identifier of anybody's comes with its type (1C), and an issuer is named at all."""
    if ("UniversalEntityID" in item) != ("UniversalEntityIDType" in item):
        return False
    named = "LocalNamespaceEntityID" in item or "UniversalEntityID" in item
    return named or not len(item) or sequence == _QUALIFIERS or not _ISSUER.fullmatch(sequence)


def _encodings(header: Dataset, notes: list[str]) -> list[str] | None:
    """Python's names of the source's character sets; None, noted, where it names one that DICOM does not know.

    pydicom would take an unknown term for the name of any codec of Python's, and make other text of the bytes.
    """
    try:
        stated = header.get("SpecificCharacterSet") or ""
        terms = [stated] if isinstance(stated, str) else [str(term) for term in stated]
    except Exception:
        terms = ["?"]
    known = [_spelt(term) for term in terms]
    if any(term not in python_encoding for term in known):
        notes.append("SpecificCharacterSet: unknown term, read as ISO_IR 100")
        return None
    if known != terms:
        notes.append("SpecificCharacterSet: misspelt term")
    return convert_encodings(known)


def _spelt(term: str) -> str:
    found = _MISSPELT.fullmatch(term.strip())
    return ("ISO 2022 IR " if found[1] else "ISO_IR ") + found[2] if found else term
