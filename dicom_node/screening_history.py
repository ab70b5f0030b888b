"""Screenings as the ledger knows them: what the networks said of an image, held against what, when, by which bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import aliased

from dicom_node import object_history, predictions
from dicom_node.bundle import parse_manifest
from dicom_node.domain import SITE, ObjectKind, State
from dicom_node.explanation import (
    Answer,
    MapFile,
    MemberOutput,
    Origin,
    Release,
    ReleaseMember,
    ReleaseTarget,
    Screening,
    ScreeningName,
    Transition,
    WeightsFile,
)
from dicom_node.object_history import grouped
from dicom_node.releases import SiteThreshold
from dicom_node.results import ensemble_algorithm, member_algorithm
from dicom_node.tables import (
    MemberOutputRow,
    ObjectRow,
    OutcomeRow,
    ReleaseRow,
    ScreeningRow,
    ThresholdRow,
    TransitionRow,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session


def screenings(session: Session, screening_ids: Collection[int]) -> Mapping[int, tuple[Screening, ...]]:
    """By instance, its screenings of these ids, the first made first."""
    later, later_release = aliased(ScreeningRow), aliased(ReleaseRow)
    rows = (
        session.execute(
            select(ScreeningRow, ReleaseRow, later, later_release)
            .join(ReleaseRow, ReleaseRow.id == ScreeningRow.release_id)
            .outerjoin(later, later.id == ScreeningRow.replaced_by)
            .outerjoin(later_release, later_release.id == later.release_id)
            .where(ScreeningRow.id.in_(screening_ids))
            .order_by(ScreeningRow.id)
        )
        .tuples()
        .all()
    )
    transitions = _transitions(session, screening_ids)
    thresholds = _thresholds(session, {row.release_id for row, *_ in rows})
    outcomes = _outcomes(session, screening_ids)
    outputs = _outputs(session, screening_ids)
    maps = _maps(session, screening_ids)
    objects = object_history.of_screenings(session, screening_ids)
    return grouped(
        (
            row.instance_id,
            Screening(
                purpose=row.purpose,
                round=row.round,
                bundle=release.bundle,
                release=release.release,
                state=row.state,
                reason=row.reason,
                detail=row.detail,
                attempt=row.attempt,
                failures=row.failures,
                due_at=row.not_before,
                replaced_by=_name(newer, newer_release),
                transitions=transitions.get(row.id, ()),
                answers=_answers(
                    outcomes.get(row.id, ()), thresholds.get(row.release_id, ()), transitions.get(row.id, ())
                ),
                outputs=outputs.get(row.id, ()),
                remarks=tuple(row.remarks),
                maps=maps.get(row.id, ()),
                objects=objects.get(row.id, ()),
            ),
        )
        for row, release, newer, newer_release in rows
    )


def releases(session: Session, named: Collection[tuple[str, str]]) -> tuple[Release, ...]:
    """The releases of these bundles and names, with their networks and questions as their manifests describe them."""
    rows = session.scalars(select(ReleaseRow).order_by(ReleaseRow.id))  # there are few
    return tuple(_release(row) for row in rows if (row.bundle, row.release) in named)


def _release(row: ReleaseRow) -> Release:
    manifest = parse_manifest(row.manifest)
    ensemble = ensemble_algorithm(manifest)
    return Release(
        bundle=row.bundle,
        release=row.release,
        title=manifest.title,
        device_uid=str(ensemble.device_uid),
        weights_sha256=ensemble.weights_sha256,
        registered_at=row.registered_at,
        active=row.active,
        members=tuple(
            ReleaseMember(
                name=member.name,
                title=member.title,
                version=member.version,
                architecture=member.architecture,
                citation=member.citation,
                device_uid=str(member_algorithm(member).device_uid),
                weights_sha256=member.weights_sha256,
                weights=tuple(WeightsFile(part.file, part.sha256) for part in member.weights),
            )
            for member in manifest.members
        ),
        targets=tuple(
            ReleaseTarget(
                name=target.name,
                title=target.title,
                operating_point=target.operating_point,
                thresholds={name: point.threshold for name, point in target.operating_points.items()},
            )
            for target in manifest.targets
        ),
    )


def _name(row: ScreeningRow | None, release: ReleaseRow | None) -> ScreeningName | None:
    if row is None or release is None:
        return None
    return ScreeningName(row.purpose, row.round, release.bundle, release.release)


def _transitions(session: Session, screening_ids: Collection[int]) -> Mapping[int, tuple[Transition, ...]]:
    rows = session.scalars(
        select(TransitionRow).where(TransitionRow.screening_id.in_(screening_ids)).order_by(TransitionRow.id)
    )
    return grouped((row.screening_id, Transition(row.from_state, row.to_state, row.attempt, row.at)) for row in rows)


def _outcomes(session: Session, screening_ids: Collection[int]) -> Mapping[int, tuple[OutcomeRow, ...]]:
    rows = session.scalars(
        select(OutcomeRow).where(OutcomeRow.screening_id.in_(screening_ids)).order_by(OutcomeRow.position)
    )
    return grouped((row.screening_id, row) for row in rows)


def _outputs(session: Session, screening_ids: Collection[int]) -> Mapping[int, tuple[MemberOutput, ...]]:
    rows = session.scalars(
        select(MemberOutputRow)
        .where(MemberOutputRow.screening_id.in_(screening_ids))
        .order_by(MemberOutputRow.member, MemberOutputRow.output)
    )
    return grouped((row.screening_id, MemberOutput(row.member, row.output, row.value)) for row in rows)


def _maps(session: Session, screening_ids: Collection[int]) -> Mapping[int, tuple[MapFile, ...]]:
    rows = session.scalars(
        select(ObjectRow)
        .where(ObjectRow.screening_id.in_(screening_ids), ObjectRow.kind == ObjectKind.MAP)
        .order_by(ObjectRow.id)
    )
    return grouped((row.screening_id or 0, _map(row)) for row in rows)


def _map(row: ObjectRow) -> MapFile:
    member, _, name = row.name.partition("/")
    return MapFile(member, name, row.path, row.sha256, tuple(row.box) if row.box else None, row.created_at)


def _thresholds(session: Session, release_ids: Collection[int]) -> Mapping[int, tuple[SiteThreshold, ...]]:
    """By release, every threshold that the site ever set for it."""
    rows = session.scalars(
        select(ThresholdRow).where(ThresholdRow.release_id.in_(release_ids)).order_by(ThresholdRow.version)
    )
    return grouped(
        (row.release_id, SiteThreshold(row.target, row.version, row.threshold, row.set_by, row.basis, row.set_at))
        for row in rows
    )


def _answers(
    outcomes: Sequence[OutcomeRow], thresholds: Sequence[SiteThreshold], transitions: Sequence[Transition]
) -> tuple[Answer, ...]:
    claims = [step.at for step in transitions if step.to_state == State.CLAIMED]
    return tuple(
        Answer(
            target=row.target,
            probability=result.probability,
            threshold=result.threshold,
            decision=result.decision,
            operating_point=row.operating_point,
            origin=Origin.SITE if row.operating_point == SITE else Origin.BUNDLE,
            site=_site_threshold(row, thresholds, max(claims)) if row.operating_point == SITE and claims else None,
        )
        for row, result in zip(outcomes, predictions.target_results(outcomes), strict=True)
    )


def _site_threshold(
    outcome: OutcomeRow, thresholds: Sequence[SiteThreshold], claimed_at: datetime
) -> SiteThreshold | None:
    """That of the site's which the answer was held against: the newest of this value when the image was claimed."""
    same = [one for one in thresholds if (one.target, one.threshold) == (outcome.target, outcome.threshold)]
    return next((one for one in reversed(same) if one.set_at <= claimed_at), same[0] if same else None)
