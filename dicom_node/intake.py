"""One SOP instance as it came, by C-STORE or fetched: checked, admitted, archived and in the ledger."""

from __future__ import annotations

import hashlib
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_partial
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from dicom_node.admission import SOP_CLASSES, admit
from dicom_node.domain import Origin
from dicom_node.ledger import Received
from dicom_node.uids import IMPLEMENTATION_CLASS_UID

if TYPE_CHECKING:
    from datetime import tzinfo

    from pydicom.tag import BaseTag

    from dicom_node.archive import Archive
    from dicom_node.config import Settings
    from dicom_node.ledger import Ledger

# PS3.4 B.2.3, table B.2-1
DATASET_MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000

# Without a version: the same object sent again after an upgrade is still the same bytes.
_IMPLEMENTATION_VERSION_NAME = "CXR_DICOM_NODE"
_UID = re.compile(r"[0-9.]{1,64}")
_AGE = re.compile(r"(\d{3})([DWMY])")  # PS3.5 6.2, AS
_PER_YEAR = {"D": 365, "W": 52, "M": 12, "Y": 1}
_DATE = re.compile(r"\d{8}")
_DATE_TIME = re.compile(r"\d{14}")
_OFFSET = re.compile(r"([+-])([01]\d)([0-5]\d)")
_PIXELS = 0x7FE00008  # Float Pixel Data, the first of PS3.3 C.7.6.24's kinds of pixels
# Of an object that is declined by its class, what admission and the ledger ask for ends before group 0040, where the
# tree of a report stands.
_CONTENT = 0x00400000


class RefusedError(Exception):
    """An object that is answered with the C-STORE status `status`; the text names the data element, not its value."""

    def __init__(self, status: int, comment: str) -> None:
        super().__init__(comment)
        self.status = status


@dataclass(frozen=True, slots=True)
class Arrival:
    """One object as it came.

    Attributes
    ----------
    encoded
        Its data set in the transfer syntax, without File Meta Information.
    calling_ae_title
        Who sent it, or the source that it was fetched from.
    run_study_id
        The run's study for which this node fetched it, where `origin` is FETCHED.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    encoded: bytes = field(repr=False)
    calling_ae_title: str
    origin: Origin = Origin.SENT
    run_study_id: int | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of an arrival: ``new``, ``duplicate`` or ``conflict``, and whether a worker may have work now."""

    kind: str
    waits: bool


class Intake:
    """Takes objects into archive and ledger; safe to be called from several threads."""

    def __init__(self, settings: Settings, archive: Archive, ledger: Ledger) -> None:
        self._settings = settings
        self._archive = archive
        self._ledger = ledger

    def take(self, arrival: Arrival) -> Taken:
        """The object is on the disk, if it is to be kept, and in the ledger.

        Raises
        ------
        RefusedError
            Where it is not what it says that it is.
        OSError, sqlalchemy.exc.SQLAlchemyError, NodeError
            Where the archive or the ledger does not take it now.
        """
        if not _UID.fullmatch(arrival.sop_instance_uid):
            raise RefusedError(DATASET_MISMATCH, "(0000,1000) AffectedSOPInstanceUID is no UID")
        content = _part10(arrival) + arrival.encoded
        received = self._read(arrival, content)
        taken = self._ledger.record(received)
        if received.file is not None and not self._archive.locate(received.file.path).exists():
            self._archive.store(content)  # the same bytes were purged while they were recorded; now nobody purges them
        return Taken(*taken)

    def _read(self, arrival: Arrival, content: bytes) -> Received:
        """What the ledger is to record; an instance that will be screened is in the archive."""
        settings = self._settings
        header = _header(arrival, content)
        admission = admit(header, settings)
        keep = admission.admitted or settings.keep_declined
        file = self._archive.store(content) if keep else None
        identity = settings.store_patient_identity
        sender = arrival.calling_ae_title
        return Received(
            sop_instance_uid=arrival.sop_instance_uid,
            sop_class_uid=arrival.sop_class_uid,
            study_instance_uid=_text(header, "StudyInstanceUID"),
            series_instance_uid=_text(header, "SeriesInstanceUID"),
            transfer_syntax_uid=arrival.transfer_syntax_uid,
            sha256=file.sha256 if file else hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            file=file,
            calling_ae_title=sender,
            modality=_text(header, "Modality")[:16],
            admission=admission,
            patient_id=_text(header, "PatientID")[:64] if identity else None,
            patient_name=_text(header, "PatientName")[:324] if identity else None,
            accession_number=_text(header, "AccessionNumber")[:16] if identity else None,
            study_date=_text(header, "StudyDate")[:8] if identity else None,
            patient_sex=_text(header, "PatientSex")[:16] if identity else None,
            patient_age=age_in_years(header) if identity else None,
            acquired_at=acquired_at(header, ZoneInfo(settings.retrospective.time_zone)) if identity else None,
            location=location(header),
            manufacturer=_text(header, "Manufacturer")[:64],
            model_name=_text(header, "ManufacturerModelName")[:64],
            origin=arrival.origin,
            run_study_id=arrival.run_study_id,
            senders=tuple(peer.name for peer in settings.peers if peer.ae_title == sender),
        )


def _header(arrival: Arrival, content: bytes) -> Dataset:
    """The header of an object that is what it says that it is.

    Raises
    ------
    RefusedError
        Where it is not.
    """
    encoded = arrival.encoded
    if encoded[1:2] == b"\x00" and encoded[:1] < b"\x08":
        # Group 0002 would be read as File Meta and could name another transfer syntax than was negotiated.
        raise RefusedError(CANNOT_UNDERSTAND, "the data set begins with a group below 0008")
    header = _read_header(content, _PIXELS if arrival.sop_class_uid in SOP_CLASSES else _CONTENT)
    for keyword, tag, expected in (
        ("SOPClassUID", "(0008,0016)", arrival.sop_class_uid),
        ("SOPInstanceUID", "(0008,0018)", arrival.sop_instance_uid),
    ):
        if _text(header, keyword) != expected:
            raise RefusedError(DATASET_MISMATCH, f"{tag} {keyword} is not that of the C-STORE request")
    for keyword, tag in (("StudyInstanceUID", "(0020,000D)"), ("SeriesInstanceUID", "(0020,000E)")):
        if not _UID.fullmatch(_text(header, keyword)):
            raise RefusedError(DATASET_MISMATCH, f"{tag} {keyword} is missing or no UID")
    return header


def shown(uid: str) -> str:
    """The UID as a log may have it."""
    return uid if _UID.fullmatch(uid) else "an object without a legal UID"


def age_in_years(header: Dataset) -> int | None:
    """Whole years, by Patient's Age, else by birth date and study date; None where neither says."""
    if found := _AGE.fullmatch(_text(header, "PatientAge")):
        return int(found[1]) // _PER_YEAR[found[2]]
    born, seen = _text(header, "PatientBirthDate"), _text(header, "StudyDate")
    if not (_DATE.fullmatch(born) and _DATE.fullmatch(seen)) or seen < born:
        return None
    return int(seen[:4]) - int(born[:4]) - (seen[4:] < born[4:])


def acquired_at(header: Dataset, site: tzinfo) -> datetime | None:
    """When the image was taken, else the study begun; in the header's own time zone, else the site's; or None."""
    offset = _OFFSET.fullmatch(_text(header, "TimezoneOffsetFromUTC"))
    zone = timezone(int(offset[1] + "1") * timedelta(hours=int(offset[2]), minutes=int(offset[3]))) if offset else site
    for text in (
        _text(header, "AcquisitionDateTime"),
        *(_text(header, f"{of}Date") + _text(header, f"{of}Time") for of in ("Acquisition", "Content", "Study")),
    ):
        if found := _DATE_TIME.match(text):
            with suppress(ValueError, OverflowError):  # a 13th month
                return datetime.strptime(found[0], "%Y%m%d%H%M%S").replace(tzinfo=zone).astimezone(UTC)
    return None


def location(header: Dataset) -> str:
    """Where the patient was, by Current Patient Location, else by the department or the station that took the image."""
    keywords = ("CurrentPatientLocation", "InstitutionalDepartmentName", "StationName")
    return next(filter(None, (_text(header, keyword)[:64] for keyword in keywords)), "")


def _part10(arrival: Arrival) -> bytes:
    """Preamble and File Meta Information (PS3.10 7.1): the same for the same object, whoever sends it."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(arrival.sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(arrival.sop_instance_uid)
    meta.TransferSyntaxUID = UID(arrival.transfer_syntax_uid)
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = _IMPLEMENTATION_VERSION_NAME
    buffer = DicomBytesIO()
    buffer.write(b"\x00" * 128 + b"DICM")
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return buffer.getvalue()


def _read_header(content: bytes, end: int) -> Dataset:
    """The elements before the tag `end`; what cannot be parsed is met here and not later."""

    def at_end(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        return int(tag) >= end

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_partial(BytesIO(content), stop_when=at_end)
    except Exception as error:  # pydicom raises many kinds on broken input
        raise RefusedError(CANNOT_UNDERSTAND, f"the data set cannot be parsed ({type(error).__name__})") from error


def _text(header: Dataset, keyword: str) -> str:
    """A value as text; empty where it is absent or illegal: only the pixels decide whether an image is screened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = header.get(keyword)
            return "" if value is None else str(value).strip()
    except Exception:
        return ""
