"""Studies come to the worklist, and results move them up in it; both in the caller's transaction.

A study's place is a time, `due_at`: its arrival, or earlier where a result moved it up, by at most the ageing limit. So
the order needs no clock and no second look, an index gives every page of it, and nothing waits behind what came more
than the limit after it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from dicom_node.admission import SOP_CLASSES
from dicom_node.domain import Purpose
from dicom_node.tables import InstanceRow, OutcomeRow, ScreeningRow, db_now, storable
from dicom_node.worklist.tables import StudyRow, StudyWordRow

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.orm import Session

    from dicom_node.config import Worklist
    from dicom_node.ledger import Received

# A flagged study goes before all that came up to so much of the ageing limit before it, the surest before all of it.
_LEAST_SHARE = 0.75
_LONGEST_WORD = 64
_SEPARATORS = str.maketrans("^=,", "   ")  # of a person's name (PS3.5 6.2.1), and of what people type


def words(*texts: str | None) -> list[str]:
    """The words by which a study is found, each once, in lower case."""
    joined = " ".join(filter(None, texts)).lower().translate(_SEPARATORS)
    return sorted({word[:_LONGEST_WORD] for word in joined.split()})


def arrive(session: Session, received: Received) -> None:
    """The study of an image that came live stands in the worklist; one that was read is unread again, and comes last.

    What a study holds beside images brings none.
    """
    if received.sop_class_uid not in SOP_CLASSES:
        return
    now = session.execute(select(db_now())).scalar_one()
    found = select(StudyRow).filter_by(study_instance_uid=received.study_instance_uid).with_for_update()
    study = session.scalar(found)
    if study is not None:
        if study.read_at is not None:
            study.read_at = study.read_by = None
            study.arrived_at = study.due_at = now
        study.acquired_at = study.acquired_at or received.acquired_at
        study.location = study.location or storable(received.location)
        return
    _add(session, received, now, received.acquired_at, received.location)


def _add(
    session: Session, of: Received | InstanceRow, at: datetime, acquired_at: datetime | None, location: str
) -> None:
    """The study stands in the worklist; another association may bring its next image at this moment."""
    row = {
        "study_instance_uid": of.study_instance_uid,
        "arrived_at": at,
        "acquired_at": acquired_at,
        "due_at": at,
        "flagged": False,
        "modality": storable(of.modality),
        "location": storable(location),
        "study_date": storable(of.study_date),
        "patient_id": storable(of.patient_id),
        "patient_name": storable(of.patient_name),
        "accession_number": storable(of.accession_number),
    }
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    study_id = session.scalar(insert(StudyRow).values(row).on_conflict_do_nothing().returning(StudyRow.id))
    if study_id is not None:
        texts = (of.patient_name, of.patient_id, of.accession_number)
        found_by = words(*(storable(text) for text in texts))
        session.add_all(StudyWordRow(word=word, study_id=study_id) for word in found_by)
        session.flush()


def move_up(session: Session, screening_id: int, policy: Worklist) -> None:
    """The study of a live screening shows what its images' newest screenings say, and goes up by it, never down."""
    instance = session.scalar(
        select(InstanceRow)
        .join(ScreeningRow, ScreeningRow.instance_id == InstanceRow.id)
        .where(ScreeningRow.id == screening_id, ScreeningRow.purpose == Purpose.LIVE)
    )
    if instance is None:
        return
    found = select(StudyRow).filter_by(study_instance_uid=instance.study_instance_uid).with_for_update()
    study = session.scalar(found)
    if study is None:  # a listener of an older version took the image
        _add(session, instance, instance.received_at, None, "")
        study = session.scalars(found).one()
    flagged = session.execute(
        select(OutcomeRow.target, OutcomeRow.probability)
        .join(ScreeningRow, ScreeningRow.id == OutcomeRow.screening_id)
        .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
        .where(
            InstanceRow.study_instance_uid == study.study_instance_uid,
            ScreeningRow.purpose == Purpose.LIVE,
            ScreeningRow.replaced_by.is_(None),
            OutcomeRow.flagged,
        )
    ).tuples()
    probabilities = dict[str, float]()
    for target, probability in flagged:
        probabilities[target] = max(probability, probabilities.get(target, 0.0))
    study.flagged = bool(probabilities)
    moving = [probability for target, probability in probabilities.items() if policy.moves_up(target)]
    study.probability = max(moving, default=None)
    if moving and study.location not in policy.fixed_locations:
        study.due_at = min(study.due_at, study.arrived_at - lead(max(moving), policy))


def lead(probability: float, policy: Worklist) -> timedelta:
    """How much earlier than it came a flagged study is due."""
    share = _LEAST_SHARE + (1 - _LEAST_SHARE) * min(max(probability, 0.0), 1.0)
    return timedelta(hours=policy.ageing_hours) * share
