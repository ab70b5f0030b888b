"""Headers of every kind that senders write, legal and not, as they are read back from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from dicom_node.normalise import TYPE_2
from tests.factories import chest_dataset, chest_pixels, code
from tests.result_factories import stored

if TYPE_CHECKING:
    from collections.abc import Callable


def with_bytes(values: dict[str, bytes], terms: str = "", **elements: Any) -> Dataset:
    """A header in which these elements have these bytes, whatever pydicom thinks of them."""
    ds = stored(chest_dataset(**elements))
    if terms:
        values = {"SpecificCharacterSet": terms.encode()} | values
        ds.set_original_encoding(False, True, terms.split("\\"))
    for keyword, value in values.items():
        tag = Tag(tag_for_keyword(keyword) or 0)
        ds[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)
    return ds


def _plain(**elements: Any) -> Callable[[], Dataset]:
    return lambda: stored(chest_dataset(**elements))


def _bytes(terms: str = "", **values: bytes) -> Callable[[], Dataset]:
    return lambda: with_bytes(values, terms)


def _named(terms: str | list[str], name: str, **elements: Any) -> Callable[[], Dataset]:
    """Name and description in that Specific Character Set."""
    return _plain(SpecificCharacterSet=terms, PatientName=name, **elements)


def rich() -> Dataset:
    """Everything that results repeat."""
    return stored(
        chest_dataset(
            AccessionNumber="ACC123",
            BurnedInAnnotation="NO",
            DeviceSerialNumber="4711",
            ImagerPixelSpacing=["0.143", "0.143"],
            InstitutionName="Hospital",
            IssuerOfPatientID="SITE",
            LossyImageCompression="01",
            LossyImageCompressionMethod="ISO_10918_1",
            LossyImageCompressionRatio="10",
            Modality="DX",
            PatientAge="064Y",
            PatientBirthDate="19600101",
            PatientSex="F",
            PatientWeight="70.5",
            ProcedureCodeSequence=[code("XRCHEST", "L", "Chest X-ray")],
            ReferringPhysicianName="Bono",
            SOPClassUID=DigitalXRayImageStorageForPresentation,
            StudyDescription="XR CHEST PA",
            StudyID="S1",
            TimezoneOffsetFromUTC="-0330",
        )
    )


def private() -> Dataset:
    ds = chest_dataset()
    block = ds.private_block(0x0011, "SOMEBODY", create=True)
    block.add_new(1, "LO", "secret")
    block.add_new(2, "UN", bytes(range(256)))
    block.add_new(3, "SQ", [code("1", "L")])
    return stored(ds)


def _issuer(**elements: Any) -> list[Dataset]:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return [item]


def other_ids() -> Dataset:
    first, second = (
        _issuer(PatientID=identifier, IssuerOfPatientID=issuer, TypeOfPatientID="TEXT")[0]
        for identifier, issuer in (("OLD 1", "SITE A"), ("OLD 2", "SITE B"))
    )
    return stored(chest_dataset(IssuerOfPatientID="SITE", OtherPatientIDsSequence=[first, second]))


_MOST = (*TYPE_2, "Manufacturer", "PatientOrientation", "BodyPartExamined", "ViewPosition")

CHARACTER_SETS: dict[str, Callable[[], Dataset]] = {
    "no character set": _plain(SpecificCharacterSet=None),
    "ISO_IR 6": _plain(SpecificCharacterSet="ISO_IR 6"),
    "Latin-1": _named("ISO_IR 100", "Müller^Jörg", StudyDescription="Größe"),
    "Latin-2": _named("ISO_IR 101", "Wiśniewska^Łucja"),
    "Latin-3": _named("ISO_IR 109", "Ĉapelo^Ġorġ"),
    "Latin-4": _named("ISO_IR 110", "Žukauskas^Ēriks"),
    "Latin-5, Turkish": _named("ISO_IR 148", "Şahin^İbrahim"),
    "Cyrillic": _named("ISO_IR 144", "Люкceмбypг"),
    "Arabic": _named("ISO_IR 127", "قباني^لنزار"),
    "Greek": _named("ISO_IR 126", "Διονυσιος"),
    "Hebrew": _named("ISO_IR 138", "שרון^דבורה"),
    "Thai": _named("ISO_IR 166", "นามสกุล^ชื่อ"),
    "Japanese, kana": _named("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
    "Japanese, IR 87": _named(["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "Japanese, IR 13 and 87": _named(["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
    "Japanese, IR 159": _named(["", "ISO 2022 IR 87", "ISO 2022 IR 159"], "Yamada^Tarou=丂^太郎"),
    "Korean, IR 149": _named(["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "Chinese, IR 58": _bytes(  # PS3.5 K.2
        "\\ISO 2022 IR 58", PatientName=b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab= "
    ),
    "Chinese, GB18030": _named("GB18030", "Wang^XiaoDong=王^小东"),
    "Chinese, GBK": _named("GBK", "Wang^XiaoDong=王^小东"),
    "UTF-8": _named("ISO_IR 192", "Wiśniewska^Zoë=王^小东", StudyDescription="胸部 X-ray ☢"),
    "Latin-1 and Cyrillic with escapes": _named(["ISO 2022 IR 100", "ISO 2022 IR 144"], "Müller^Люк"),
    "misspelt": _bytes("ISO-IR 192", PatientName="Zoë".encode()),
    "UTF-8 said, Latin-1 written": _bytes("ISO_IR 192", PatientName=b"M\xfcller^J\xf6rg", PatientID=b"M\xfc"),
    "nothing said, Latin-1 written": _bytes(PatientName=b"M\xfcller^J\xf6rg", StudyDescription=b"Gr\xf6\xdfe"),
    "kanji said, an escape cut off": _bytes("\\ISO 2022 IR 87", PatientName=b"Yamada=\x1b$B;3"),
    "unknown term": _bytes("ISO_IR 999", PatientName=b"M\xfcller^J\xf6rg "),
    "codec of Python's": _bytes("utf_16", PatientName=b"M\xfcller^J\xf6rg "),
    "bytes after a known term": _bytes("ISO_IR 100\\\xff", PatientName=b"M\xfcller^J\xf6rg "),
}

MISSING: dict[str, Callable[[], Dataset]] = {
    **{f"without {keyword}": _plain(**{keyword: None}) for keyword in _MOST},
    "everything empty": _plain(**dict.fromkeys((*TYPE_2, "PatientOrientation", "Manufacturer"), "")),
    "stripped": _plain(**dict.fromkeys(_MOST)),
}

IDENTIFIERS: dict[str, Callable[[], Dataset]] = {
    "Patient ID of 64 characters": _plain(PatientID="P" * 64),
    "Patient ID of 65 characters": _bytes(PatientID=b"P" * 65),
    "Patient ID between spaces": _bytes(PatientID=b"  A 1  "),
    "Patient ID of spaces": _bytes(PatientID=b"    "),
    "Patient ID and NUL": _bytes(PatientID=b"A1\0\0"),
    "Patient ID, two values": _bytes(PatientID=b"A1\\A2"),
    "Patient ID, control character": _bytes(PatientID=b"A1\x07"),
    "Patient ID, new line": _bytes(PatientID=b"A1\r\nB"),
    "Patient ID, HL7's separators": _bytes(PatientID=b"A1^^^SITE&1.2.3&ISO"),
    "Patient ID, markup": _bytes(PatientID=b"<b>&amp;'\"; DROP"),
    "issuer": _plain(IssuerOfPatientID="SITE"),
    "issuer of 65 characters": _bytes(IssuerOfPatientID=b"S" * 65),
    "issuer with qualifiers": _plain(
        IssuerOfPatientID="SITE",
        IssuerOfPatientIDQualifiersSequence=_issuer(UniversalEntityID="1.2.3", UniversalEntityIDType="ISO"),
    ),
    "qualifiers of another kind": _plain(
        IssuerOfPatientIDQualifiersSequence=_issuer(
            UniversalEntityID="1.2.3",
            UniversalEntityIDType="ISO",
            IdentifierTypeCode="MR",
            AssigningFacilitySequence=_issuer(LocalNamespaceEntityID="WARD 7"),
            AssigningJurisdictionCodeSequence=[code("DE", "ISO3166_1", "Germany")],
            AssigningAgencyOrDepartmentCodeSequence=[code("7", "L", "Radiology")],
        )
    ),
    "qualifiers, half": _plain(IssuerOfPatientIDQualifiersSequence=_issuer(UniversalEntityID="1.2.3")),
    "qualifiers, empty item": _plain(IssuerOfPatientIDQualifiersSequence=[Dataset()]),
    "qualifiers, no item": _plain(IssuerOfPatientIDQualifiersSequence=[]),
    "qualifiers, facility without name": _plain(
        IssuerOfPatientIDQualifiersSequence=_issuer(
            IdentifierTypeCode="MR", AssigningFacilitySequence=_issuer(UniversalEntityIDType="ISO")
        )
    ),
    "qualifiers, type of no standard": _plain(
        IssuerOfPatientIDQualifiersSequence=_issuer(UniversalEntityID="1.2.3", UniversalEntityIDType="OID")
    ),
    "qualifiers, two items": _plain(
        IssuerOfPatientIDQualifiersSequence=[
            *_issuer(UniversalEntityID="1.2.3", UniversalEntityIDType="ISO"),
            *_issuer(IdentifierTypeCode="MR"),
        ]
    ),
    "other patient IDs": other_ids,
    "type of Patient ID": _plain(TypeOfPatientID="BARCODE"),
    "accession with issuer": _plain(
        AccessionNumber="A1",
        IssuerOfAccessionNumberSequence=_issuer(UniversalEntityID="1.2.3", UniversalEntityIDType="ISO"),
    ),
    "accession with half an issuer": _plain(
        AccessionNumber="A1", IssuerOfAccessionNumberSequence=_issuer(UniversalEntityIDType="ISO")
    ),
    "accession of 17 characters": _bytes(AccessionNumber=b"A" * 17),
    "admission with issuer": _plain(AdmissionID="1", IssuerOfAdmissionIDSequence=_issuer(LocalNamespaceEntityID="HIS")),
    "admission with half an issuer": _plain(
        AdmissionID="1", IssuerOfAdmissionIDSequence=_issuer(LocalNamespaceEntityID="HIS", UniversalEntityID="1.2")
    ),
    "study ID of 17 characters": _bytes(StudyID=b"17 characters long"),
    "UIDs of 64 characters": _plain(StudyInstanceUID="1.2." + "3" * 60, SOPInstanceUID="1.2." + "4" * 60),
    "UIDs padded with spaces": _bytes(StudyInstanceUID=b"1.2.3.4.5 ", SeriesInstanceUID=b"1.2.3.4.5.6  "),
    "private elements": private,
}

VALUES: dict[str, Callable[[], Dataset]] = {
    "plain": _plain(),
    "rich": rich,
    "illegal": _bytes(
        StudyDate=b"2025-01-01",
        StudyTime=b"10:15:30",
        PatientBirthDate=b"19600231",
        PatientSex=b"U",
        AccessionNumber=b"A" * 40,
        StudyID=b"17 characters long",
        ReferringPhysicianName=b"N" * 70,
        PatientAge=b"64",
        PatientWeight=b"heavy",
        TimezoneOffsetFromUTC=b"CET",
        PatientOrientation=b"left",
    ),
    "hours alone": _bytes(StudyTime=b"10"),
    "microseconds": _bytes(StudyTime=b"101530.123456"),
    "seven decimals": _bytes(StudyTime=b"101530.1234567"),
    "hour 24": _bytes(StudyTime=b"240000"),
    "old dates": _bytes(StudyDate=b"2020.01.02", PatientBirthDate=b"1960.01.01"),
    "a range of dates": _bytes(StudyDate=b"20200101-20200201"),
    "29 February": _bytes(StudyDate=b"20200229", PatientBirthDate=b"20190229"),
    "year 0": _bytes(StudyDate=b"00000000", PatientBirthDate=b"00000101"),
    "date and NUL": _bytes(StudyDate=b"20200102\0\0"),
    "name of carets": _bytes(PatientName=b"^^^^"),
    "name of equals signs": _bytes(PatientName=b"=="),
    "name of spaces": _bytes(PatientName=b"    "),
    "name of one component": _bytes(PatientName=b"Madonna"),
    "name of six components": _bytes(PatientName=b"a^b^c^d^e^f"),
    "name of four groups": _bytes(PatientName=b"a=b=c=d"),
    "name of 64 characters": _bytes(PatientName=b"N" * 64),
    "name of 65 characters": _bytes(PatientName=b"N" * 65),
    "name of two values": _bytes(PatientName=b"a^b\\c^d"),
    "name with a control character": _bytes(PatientName=b"a\x00b^\x1f"),
    "name with trailing carets and spaces": _bytes(PatientName=b" Test^Phantom^^^ "),
    "descriptions too long": _bytes(StudyDescription=b"D" * 65, StationName=b"S" * 17, InstitutionName=b"I" * 65),
    "descriptions with backslashes": _bytes(StudyDescription=b"a\\b", Manufacturer=b"a\\b", InstitutionName=b"a\\b"),
    "makers empty": _bytes(Manufacturer=b"", ManufacturerModelName=b"", SoftwareVersions=b""),
    "makers with spaces": _bytes(
        Manufacturer=b"  Maker  ", ManufacturerModelName=b"  Model ", DeviceSerialNumber=b" 1"
    ),
    "several software versions": _plain(SoftwareVersions=["1.0", "2.0", "3.0"]),
    "address of two lines": _bytes(InstitutionAddress=b"Street 1\r\nTown"),
    "comments of two lines": _bytes(PatientComments=b"one\r\ntwo", AdditionalPatientHistory=b"a\\b"),
    "illegal decimal strings": _bytes(PatientWeight=b"1e999", PatientSize=b"1,75", PatientBodyMassIndex=b"0" * 20),
    "long decimal strings": _bytes(PatientWeight=b"70.5000000000000", PatientSize=b"1.7499999999999998"),
    "spacing of zero": _bytes(ImagerPixelSpacing=b"0\\0"),
    "spacing without orientation": _plain(ImagerPixelSpacing=["0.143", "0.143"], PatientOrientation=None),
    "orientation illegal": _bytes(PatientOrientation=b"L\\X"),
    "orientation of the back": _plain(PatientOrientation=["R", "F"]),
    "burned in": _plain(BurnedInAnnotation="YES"),
    "burned in, illegal": _bytes(BurnedInAnnotation=b"MAYBE "),
    "lossy without a ratio": _plain(LossyImageCompression="01"),
    "lossy twice": _plain(
        LossyImageCompression="01",
        LossyImageCompressionRatio=["10", "12"],
        LossyImageCompressionMethod=["ISO_10918_1", "ISO_15444_1"],
    ),
    "a ratio without lossy": _plain(LossyImageCompressionRatio="10", LossyImageCompressionMethod="ISO_10918_1"),
    "not lossy with a ratio": _plain(LossyImageCompression="00", LossyImageCompressionRatio="10"),
    "time zones": _bytes(TimezoneOffsetFromUTC=b"+1400"),
    "time zone beyond the day": _bytes(TimezoneOffsetFromUTC=b"+1900"),
    "de-identified": _plain(PatientIdentityRemoved="YES", DeidentificationMethod="by hand"),
    "de-identified by code": _plain(
        PatientIdentityRemoved="YES", DeidentificationMethodCodeSequence=[code("113100", "DCM", "Basic Profile")]
    ),
    "de-identified without a method": _plain(PatientIdentityRemoved="YES"),
    "in a trial": _plain(ClinicalTrialSponsorName="S", ClinicalTrialProtocolID="P", ClinicalTrialSubjectID="1"),
    "half in a trial": _plain(ClinicalTrialProtocolID="P"),
    "time point of no trial": _plain(ClinicalTrialTimePointDescription="baseline"),
    "time point of a trial": _plain(
        ClinicalTrialSponsorName="S",
        ClinicalTrialProtocolID="P",
        ClinicalTrialSubjectID="1",
        ClinicalTrialTimePointDescription="baseline",
    ),
    "codes": _plain(
        ProcedureCodeSequence=[code("XR", "L", "Chest"), code("XR2", "L", "Chest 2")],
        AdmittingDiagnosesCodeSequence=[code("R05", "I10", "Cough")],
        ReasonForVisitCodeSequence=[code("A", "L", "B")],
    ),
    "codes without meaning": _plain(ProcedureCodeSequence=[code("XR", "L", "")]),
    "codes too long": lambda: with_bytes({}, ProcedureCodeSequence=[code("X" * 16, "L" * 16, "M" * 64)]),
    "code of an URN": _plain(
        ProcedureCodeSequence=_issuer(URNCodeValue="urn:oid:1.2.3", CodeMeaning="Chest"),
    ),
    "empty code sequence": _plain(ProcedureCodeSequence=[], ReferencedStudySequence=[]),
    "physicians": _plain(
        PhysiciansOfRecord=["A^B", "C^D"], NameOfPhysiciansReadingStudy="E^F", ConsultingPhysicianName="G^H"
    ),
    "pregnancy": _plain(PregnancyStatus=4, LastMenstrualDate="20200101", SmokingStatus="UNKNOWN"),
    "an animal": _plain(PatientSpeciesDescription="Canis lupus", ResponsiblePerson="A^B"),
    "laterality": _plain(Laterality="R", BodyPartExamined="CHEST"),
    "small letters": _bytes(Modality=b"cr", BodyPartExamined=b"chest", PatientSex=b"f"),
    "bytes of no meaning": lambda: with_bytes(
        dict.fromkeys(
            ("PatientAge", "StudyDescription", "PatientWeight", "AdmissionID", "MedicalAlerts", "Occupation"),
            bytes(range(1, 256)),
        )
    ),
}

KINDS: dict[str, Callable[[], Dataset]] = {
    "DX for presentation": _plain(SOPClassUID=DigitalXRayImageStorageForPresentation, Modality="DX"),
    "DX for processing": _plain(SOPClassUID=DigitalXRayImageStorageForProcessing, Modality="DX"),
    "Secondary Capture": _plain(SOPClassUID=SecondaryCaptureImageStorage, Modality="CR", ConversionType="DF"),
    "film": _plain(Modality="RG"),
    "implicit": _plain(TransferSyntaxUID=ImplicitVRLittleEndian),
    "landscape": lambda: stored(chest_dataset(chest_pixels(80, 200))),
    "one row": lambda: stored(chest_dataset(chest_pixels(2, 120))),
}

SOURCES: dict[str, Callable[[], Dataset]] = {**CHARACTER_SETS, **MISSING, **IDENTIFIERS, **VALUES, **KINDS}

# Legal by PS3.5 6.2, which dciodvfy (20220618) denies: by what it says of them.
MISJUDGED: dict[str, tuple[Callable[[], Dataset], str]] = {
    "64 characters of three bytes": (
        _named("ISO_IR 192", "王" * 64, StudyDescription="胸" * 64),
        r"Length invalid for this VR = 192, expected <= 64",
    ),
    "leap second": (_bytes(StudyTime=b"235960", PatientBirthTime=b"235960.5"), r"TM .* Character invalid .* '6'"),
    "leap second, acquired": (
        _bytes(AcquisitionDateTime=b"20161231235960.000000+0000"),
        r"DT .* Character invalid for this VR = '6'",
    ),
    "year 1": (_bytes(PatientBirthDate=b"00010101"), r"DA .* Character invalid for this VR = '0'"),
    "tab in a comment": (_bytes(PatientComments=b"one\ttwo"), r"LT Patient Comments"),
}
