"""A study's results taken back: a rejection note (IHE IOCM) to where they are, and a mark on each in the ledger."""

from __future__ import annotations

import logging
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydicom import dcmread

from dicom_node.archive import Archive, Product
from dicom_node.database import Database
from dicom_node.domain import ObjectKind
from dicom_node.maps import MissingFileError
from dicom_node.normalise import normalise
from dicom_node.rejection import build_rejection_note
from dicom_node.results import Reference, encode
from dicom_node.retractions import Retractions
from dicom_node.uids import series_uid
from dicom_node.validation import check_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

    from dicom_node.config import Settings
    from dicom_node.domain import RejectionReason
    from dicom_node.retractions import Standing

log = logging.getLogger(__name__)


def retract(
    settings: Settings, study_instance_uid: str, reason: RejectionReason, *, comment: str, asked_by: str
) -> tuple[int, tuple[str, ...]]:
    """What the node has said of the study is taken back; returns how many objects, and where a note goes.

    Nothing that is not the node's own is named. What was not sent yet is not sent any more.

    Raises
    ------
    SchemaError, UnreachableError, RetractionError, ResultError, MissingFileError
        Where the ledger cannot be used, there is nothing to take back, or no note can be made.
    """
    with closing(Database(settings.database_dsn)) as database:
        database.check_schema()
        retractions = Retractions(database)
        standing = retractions.standing(study_instance_uid)
        notes = _notes(settings, standing, reason)
        retractions.retract(standing, notes, reason=reason, comment=comment, asked_by=asked_by)
    log.info("took back %d objects of study %s", len(standing.object_ids), study_instance_uid)
    return len(standing.object_ids), tuple(notes)


def _notes(settings: Settings, standing: Standing, reason: RejectionReason) -> dict[str, Product]:
    """By destination, the note on what it may hold: the same one where two hold the same."""
    if not standing.given_away:
        return {}
    archive = Archive(settings.archive_dir)
    try:
        source = dcmread(archive.locate(standing.source_path), stop_before_pixels=True, force=True)
    except FileNotFoundError as error:
        raise MissingFileError(f"{standing.source_path} is not in the archive") from error
    header, _ = normalise(source)
    now = datetime.now(UTC)
    return {
        destination: _note(settings, archive, header, standing.study_instance_uid, objects, reason, now)
        for destination, objects in standing.given_away.items()
    }


def _note(
    settings: Settings,
    archive: Archive,
    header: Dataset,
    study_instance_uid: str,
    objects: Sequence[tuple[str, str]],
    reason: RejectionReason,
    when: datetime,
) -> Product:
    named = [Reference(study_instance_uid, series_uid(uid), sop_class_uid, uid) for sop_class_uid, uid in objects]
    note = build_rejection_note(named, header, reason=reason, when=when, node_ae_title=settings.ae_title)
    check_object(note, [header])
    return Product(ObjectKind.NOTE, str(note.SOPClassUID), str(note.SOPInstanceUID), archive.store(encode(note)))
