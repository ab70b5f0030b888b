"""Predictions in the ledger: what the networks said, kept so that every result is built from it alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, insert, select

from dicom_node.domain import Decision, ObjectKind, Prediction, State, TargetResult
from dicom_node.tables import MemberOutputRow, ObjectRow, OutcomeRow, ScreeningRow, TransitionRow, db_now

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from dicom_node.archive import ArchivedFile
    from dicom_node.bundle import Manifest


@dataclass(frozen=True, slots=True)
class MapPlace:
    """A map, the archive's file that holds it (`dicom_node.maps`), and the part of the source that it covers."""

    path: str
    member: str
    name: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """A prediction as the ledger holds it: all results are built from this, whichever process builds them.

    Attributes
    ----------
    prediction
        Without its maps.
    """

    prediction: Prediction
    predicted_at: datetime
    maps: tuple[MapPlace, ...]


def save(session: Session, screening_id: int, prediction: Prediction, maps_file: ArchivedFile | None) -> None:
    """The prediction stands in the ledger when the caller's transaction is committed; `maps_file` holds its maps."""
    session.execute(
        insert(OutcomeRow),
        [
            {
                "screening_id": screening_id,
                "target": result.target,
                "position": position,
                "operating_point": result.operating_point or prediction.operating_point,
                "probability": result.probability,
                "threshold": result.threshold,
                "flagged": result.flagged,
                "decision": result.decision,
            }
            for position, result in enumerate(prediction.targets)
        ],
    )
    outputs = [
        {"screening_id": screening_id, "member": member, "output": output, "value": float(value)}
        for member, values in prediction.members.items()
        for output, value in values.items()
    ]
    if outputs:
        session.execute(insert(MemberOutputRow), outputs)
    if maps_file is not None and prediction.maps:
        now = session.scalar(select(db_now()))
        session.execute(
            insert(ObjectRow),
            [
                {
                    "screening_id": screening_id,
                    "kind": ObjectKind.MAP,
                    "name": f"{one.member}/{one.name}",
                    "path": maps_file.path,
                    "sha256": maps_file.sha256,
                    "box": list(one.box),
                    "created_at": now,
                }
                for one in prediction.maps
            ],
        )


def load(session: Session, screening_id: int, manifest: Manifest) -> StoredPrediction:
    """The prediction that the ledger holds for a screening by the release of `manifest`.

    Raises
    ------
    LookupError
        Where there is none.
    """
    outcomes = session.scalars(
        select(OutcomeRow).filter_by(screening_id=screening_id).order_by(OutcomeRow.position)
    ).all()
    outputs = session.execute(
        select(MemberOutputRow.member, MemberOutputRow.output, MemberOutputRow.value).filter_by(
            screening_id=screening_id
        )
    ).tuples()
    members: dict[str, dict[str, float]] = {}
    for member, output, value in outputs:
        members.setdefault(member, {})[output] = value
    maps = (
        session.execute(
            select(ObjectRow.name, ObjectRow.box, ObjectRow.path)
            .filter_by(screening_id=screening_id, kind=ObjectKind.MAP)
            .order_by(ObjectRow.id)
        )
        .tuples()
        .all()
    )
    at = select(func.max(TransitionRow.at)).filter_by(screening_id=screening_id, to_state=State.PREDICTED)
    predicted_at = session.scalar(at)
    if predicted_at is None or not outcomes:
        raise LookupError(f"screening {screening_id} has no prediction")
    remarks = session.scalars(select(ScreeningRow.remarks).filter_by(id=screening_id)).one()
    prediction = Prediction(
        bundle=manifest.name,
        release=manifest.release,
        operating_point=outcomes[0].operating_point,
        targets=target_results(outcomes),
        members=members,
        remarks=tuple(remarks),
    )
    return StoredPrediction(
        prediction,
        predicted_at,
        maps=tuple(_place(name, box, path) for name, box, path in maps),
    )


def target_results(outcomes: Sequence[OutcomeRow]) -> tuple[TargetResult, ...]:
    """The answers as plain data, in the rows' order."""
    return tuple(
        TargetResult(row.target, row.probability, row.threshold, _decision(row), operating_point=row.operating_point)
        for row in outcomes
    )


def _decision(row: OutcomeRow) -> Decision:
    if not row.decision:  # written by a process of an older version, beside those of this one
        return Decision.FLAGGED if row.flagged else Decision.NOT_FLAGGED
    return Decision(row.decision)


def _place(name: str, box: list[float] | None, path: str) -> MapPlace:
    member, _, map_name = name.partition("/")
    top, left, height, width = box or (0.0, 0.0, 1.0, 1.0)
    return MapPlace(path, member, map_name, (top, left, height, width))
