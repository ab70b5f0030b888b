"""The report: one TID 1500 Structured Report per study, release and purpose.

`dicom_node.report_content` says what stands in it. What is not copied from the source is encoded here and stands in the
Dataset as raw elements: pydicom writes them as they are, and decodes one when somebody looks at it. A report is always
explicit VR little endian; for a peer that takes Implicit VR alone it is read and encoded again.

The same tree is legal in Comprehensive 3D, Comprehensive and Enhanced SR.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from pydicom.charset import convert_encodings
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
)

from dicom_node import __version__, uids
from dicom_node import codes as c
from dicom_node.content import CONCEPT_NAME, CONTENT_SEQUENCE, Code, encode_item, reference, template
from dicom_node.domain import MANUFACTURER, MODEL_NAME
from dicom_node.explicit_vr import check_cited, raw_sequence, raw_text, sequence, text, uid
from dicom_node.normalise import CHARACTER_SET, PATIENT_AND_STUDY
from dicom_node.report_content import explains, report_items
from dicom_node.results import (
    Algorithm,
    Reference,
    ResultError,
    algorithms,
    check,
    cite,
    find_target,
    local_time,
    long_string,
    short_text,
    thresholds,
    utc,
    weights_sha256,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from dicom_node import bundle
    from dicom_node.bundle import Manifest
    from dicom_node.results import Screened

# In order of preference.
SOP_CLASSES = (Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage)

SERIES_NUMBER = 9002
SERIES_DESCRIPTION = "AI result - RESEARCH, NOT FOR DIAGNOSTIC USE"

_ACQUISITION = "Acquisition equipment of the source image(s)"


def build_report(
    images: Sequence[Screened],
    manifest: Manifest,
    *,
    node_ae_title: str,
    sop_class: UID = Comprehensive3DSRStorage,
    predecessors: Sequence[Reference] = (),
    codes: Mapping[str, bundle.Code] | None = None,
) -> Dataset:
    """The Structured Report on the images of one study; the same arguments in any order give the same bytes.

    Its time is that of the latest prediction. Patient and study are those of the image that was predicted last, of
    several at one instant that with the greater SOP Instance UID.

    Parameters
    ----------
    images
        Of one study, each predicted by the bundle of `manifest`.
    sop_class
        One of `SOP_CLASSES`; each gives an instance of its own.
    predecessors
        The reports that this one replaces.
    codes
        The site's own codes of questions, by target; for the others the manifest's are written.

    Raises
    ------
    ResultError
        Where images, predictions and manifest do not fit together, or something cannot be written; naming the image.
    """
    if sop_class not in SOP_CLASSES:
        raise ResultError(f"{sop_class} is no SOP Class of a report")
    ordered = _ordered(images, manifest)
    questions = _questions(ordered, manifest, codes or {})
    newest = max(ordered, key=lambda image: (image.predicted_at, image.source.SOPInstanceUID)).source
    when = max(image.predicted_at for image in ordered)
    earlier = sorted(predecessors, key=lambda one: one.sop_instance_uid)
    instance_uid = _uid(ordered, manifest, questions, node_ae_title, sop_class, earlier)
    items = report_items(ordered, manifest, questions, node_ae_title)
    report = _frame(newest, instance_uid, sop_class)
    local = local_time(newest, when)
    date, time = local.strftime("%Y%m%d"), local.strftime("%H%M%S")
    for element in (
        *_CONSTANT,
        *(raw_text(tag, "DA", date) for tag in (0x00080012, 0x00080021, 0x00080023)),  # instance, series, content
        *(raw_text(tag, "TM", time) for tag in (0x00080013, 0x00080031, 0x00080033)),
        raw_text(0x00080016, "UI", sop_class),
        raw_text(0x00080018, "UI", instance_uid),
        raw_text(0x0020000E, "UI", uids.series_uid(instance_uid)),
        raw_text(0x00081010, "SH", long_string(node_ae_title)[:16]),
        raw_sequence(0x0018A001, _equipment(ordered, manifest, node_ae_title, when)),
        raw_sequence(0x0040A375, _hierarchy(_evidence(ordered))),
        raw_sequence(CONTENT_SEQUENCE, map(encode_item, items)),
        *([raw_sequence(0x0040A360, _hierarchy(earlier))] if earlier else []),
    ):
        report[element.tag] = element
    return report


def _ordered(images: Sequence[Screened], manifest: Manifest) -> list[Screened]:
    """The images by SOP Instance UID, after a check that they belong together."""
    if not images:
        raise ResultError("a report on no image")
    ordered = sorted(images, key=lambda image: str(image.source.SOPInstanceUID))
    study = ordered[0].source.StudyInstanceUID
    for image in ordered:
        name = f"image {image.source.SOPInstanceUID}"
        try:
            check(image.prediction, manifest)
        except ResultError as error:
            raise ResultError(f"{name}: {error}") from error
        if image.source.StudyInstanceUID != study:
            raise ResultError(
                f"{name} is of study {image.source.StudyInstanceUID}, others of the report are of {study}"
            )
        if image.heatmap is not None and image.heatmap.study_instance_uid != study:
            raise ResultError(f"{name}: its heatmap is of study {image.heatmap.study_instance_uid}, not of {study}")
    if len({image.source.SOPInstanceUID for image in ordered}) < len(ordered):
        raise ResultError(f"an image of study {study} is given twice for one report")
    return ordered


def _questions(images: Sequence[Screened], manifest: Manifest, codes: Mapping[str, bundle.Code]) -> dict[str, Code]:
    """The code of each question that is answered, by target: the site's, or else the manifest's."""
    found = {}
    for name in {result.target: None for image in images for result in image.prediction.targets}:
        code = codes.get(name) or find_target(manifest, name).code
        try:
            found[name] = Code(code.value, code.scheme, code.meaning)
        except ResultError as error:
            raise ResultError(f"code of {name}: {error}") from error
    return found


def _uid(
    images: Sequence[Screened],
    manifest: Manifest,
    questions: Mapping[str, Code],
    node_ae_title: str,
    sop_class: UID,
    predecessors: Sequence[Reference],
) -> UID:
    return uids.report_uid(
        images[0].source.StudyInstanceUID,
        [
            uids.ReportedImage(
                image.source.SOPInstanceUID,
                image.heatmap.sop_instance_uid if image.heatmap else "",
                {
                    result.target: result.operating_point or image.prediction.operating_point
                    for result in image.prediction.targets
                },
                thresholds(image.prediction),
                image.predicted_at,
            )
            for image in images
        ],
        manifest.name,
        manifest.release,
        sop_class,
        weights_sha256=weights_sha256(manifest),
        node_ae_title=node_ae_title,
        codes={name: (code.value, code.scheme, code.meaning) for name, code in questions.items()},
        predecessors=[one.sop_instance_uid for one in predecessors],
    )


def _frame(source: Dataset, instance_uid: UID, sop_class: UID) -> Dataset:
    """A Dataset with the source's patient and study that writes raw elements as they are."""
    report = Dataset()
    report.SpecificCharacterSet = CHARACTER_SET
    for keyword in (*PATIENT_AND_STUDY, "TimezoneOffsetFromUTC"):
        if keyword in source:
            report.add(_copied(source[keyword]))
    # What raw elements are encoded in; pydicom would decode and encode each of them were it not said to be the same.
    report.set_original_encoding(False, True, convert_encodings(CHARACTER_SET))
    report.preamble = b"\0" * 128
    report.file_meta = FileMetaDataset()
    report.file_meta.FileMetaInformationVersion = b"\x00\x01"
    report.file_meta.MediaStorageSOPClassUID = sop_class
    report.file_meta.MediaStorageSOPInstanceUID = instance_uid
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    report.file_meta.ImplementationClassUID = uids.IMPLEMENTATION_CLASS_UID
    report.file_meta.ImplementationVersionName = uids.IMPLEMENTATION_VERSION_NAME
    return report


def _copied(element: DataElement) -> DataElement:
    """The element again, so that a change to the report is none to its source; a UID that is illegal stays as it is."""
    if element.VR == "SQ" or isinstance(element.value, MultiValue):
        return deepcopy(element)
    return DataElement(element.tag, element.VR, element.value, already_converted=True)


def _equipment(images: Sequence[Screened], manifest: Manifest, node_ae_title: str, when: datetime) -> Iterable[bytes]:
    """Items of Contributing Equipment Sequence (0018,A001): what made the sources, the node, and each algorithm."""
    took_part = {name for image in images for name in image.prediction.members}
    node = _processing(MODEL_NAME, __version__, uids.node_uid(node_ae_title), "Screening node", when)
    makers = dict.fromkeys(maker for image in images if (maker := _maker(image.source)))
    return [*makers, node, *(_algorithm(one, when) for one in algorithms(took_part, manifest))]


def _algorithm(one: Algorithm, when: datetime) -> bytes:
    return _processing(one.name, one.version, one.device_uid, one.description, when)


def _processing(name: str, version: str, device: str, description: str, when: datetime) -> bytes:
    """An item with purpose (109102, DCM, "Processing Equipment") (IHE AIR 6.5.3.1, PS3.3 table C.12-1)."""
    return (
        text(0x00080070, "LO", MANUFACTURER)
        + text(0x00081090, "LO", long_string(name))
        + uid(0x00181002, device)
        + text(0x00181020, "LO", long_string(version))
        + text(0x0018A002, "DT", utc(when))
        + text(0x0018A003, "ST", short_text(description))
        + sequence(0x0040A170, (c.PROCESSING_EQUIPMENT.encoded,))
    )


def _maker(source: Dataset) -> bytes:
    """An item for the modality that made the source; empty where that has no name."""
    if not source.get("Manufacturer"):
        return b""
    told = b""
    for keyword, tag, vr in (
        ("Manufacturer", 0x00080070, "LO"),
        ("InstitutionName", 0x00080080, "LO"),
        ("InstitutionAddress", 0x00080081, "ST"),
        ("StationName", 0x00081010, "SH"),
        ("InstitutionalDepartmentName", 0x00081040, "LO"),
        ("ManufacturerModelName", 0x00081090, "LO"),
        ("DeviceSerialNumber", 0x00181000, "LO"),
        ("SoftwareVersions", 0x00181020, "LO"),
    ):
        if value := source.get(keyword):
            told += text(tag, vr, "\\".join(value) if isinstance(value, MultiValue) else str(value))
    if exposed := source.get("AcquisitionDateTime"):
        told += text(0x0018A002, "DT", str(exposed))
    return told + text(0x0018A003, "ST", _ACQUISITION) + sequence(0x0040A170, (c.ACQUISITION_EQUIPMENT.encoded,))


def _evidence(images: Sequence[Screened]) -> list[Reference]:
    """What the content tree cites: the sources, and the heatmaps that explain."""
    sources = [cite(image.source) for image in images]
    return sources + [image.heatmap for image in images if image.heatmap is not None and explains(image)]


def _hierarchy(references: Iterable[Reference]) -> Iterable[bytes]:
    """Items of a Hierarchical SOP Instance Reference Macro (PS3.3 table C.17-3): by study, then by series."""
    studies: dict[str, dict[str, list[bytes]]] = {}
    for one in references:
        for what in (one.study_instance_uid, one.series_instance_uid, one.sop_class_uid, one.sop_instance_uid):
            check_cited(what, "a UID of the evidence or of a predecessor")
        series = studies.setdefault(one.study_instance_uid, {})
        series.setdefault(one.series_instance_uid, []).append(reference(one.sop_class_uid, one.sop_instance_uid))
    for study_uid, series in studies.items():
        items = [sequence(0x00081199, cited) + uid(0x0020000E, series_uid) for series_uid, cited in series.items()]
        yield sequence(0x00081115, items) + uid(0x0020000D, study_uid)


_PRIVATE_SCHEME = (
    text(0x00080102, "SH", c.PRIVATE_SCHEME)
    + text(0x00080115, "ST", c.PRIVATE_SCHEME_NAME)
    + text(0x00080116, "ST", MANUFACTURER)
)
# What every report says alike.
_CONSTANT = (
    raw_text(0x00080060, "CS", "SR"),
    raw_text(0x00080070, "LO", MANUFACTURER),
    raw_sequence(0x00080110, [_PRIVATE_SCHEME]),
    raw_text(0x0008103E, "LO", SERIES_DESCRIPTION),
    raw_text(0x00081090, "LO", MODEL_NAME),
    raw_sequence(0x00081111, []),  # Referenced Performed Procedure Step Sequence, type 2
    raw_text(0x00181020, "LO", __version__),
    raw_text(0x00189004, "CS", "RESEARCH"),  # Content Qualification
    raw_text(0x00200011, "IS", str(SERIES_NUMBER)),
    raw_text(0x00200013, "IS", "1"),
    raw_text(0x0040A040, "CS", "CONTAINER"),
    raw_sequence(CONCEPT_NAME, [c.REPORT.encoded]),
    raw_text(0x0040A050, "CS", "CONTINUOUS"),
    raw_sequence(0x0040A372, [c.COMPUTER_AIDED_DIAGNOSIS.encoded]),
    raw_text(0x0040A491, "CS", "COMPLETE"),
    raw_text(0x0040A493, "CS", "UNVERIFIED"),
    raw_text(0x0040A496, "CS", "PRELIMINARY"),
    raw_sequence(0x0040A504, [template("1500")]),
)
