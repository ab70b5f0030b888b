"""The ledger's answers for a run, study by study: what a report is made of. Read in chunks, however long the run."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from sqlalchemy import select

from dicom_node.bundle import Manifest, parse_manifest
from dicom_node.combination import AnswerError, answers, sigmoid
from dicom_node.domain import Decision, ObjectKind, State, StudyState
from dicom_node.retrospective.tables import RunInstanceRow, RunStudyRow
from dicom_node.tables import InstanceRow, MemberOutputRow, ObjectRow, OutcomeRow, ReleaseRow, ScreeningRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy.orm import Session

    from dicom_node.database import Database

_Row = TypeVar("_Row", InstanceRow, ScreeningRow)
_CHUNK = 200  # studies
_WITHOUT_ANSWER = (State.DECLINED, State.FAILED)
_KEYS = 5000  # in one statement: databases limit its parameters


class Told(NamedTuple):
    """The answer to one question.

    Attributes
    ----------
    reach
        How near the threshold's logit may lie to the probability's before nothing is decided; 0 where that is not
        known, or always is.
    """

    probability: float
    threshold: float
    decision: str
    reach: float = 0.0


@dataclass(frozen=True, slots=True)
class ImageAnswer:
    """One image of a study, and what the screening that answers for it says.

    Attributes
    ----------
    targets
        By question; none where it was declined, failed or still waits.
    members
        By question and member, the probability if that member were alone.
    heatmap
        Path in the archive; None where none was made.
    """

    sop_instance_uid: str
    view: str
    sex: str
    age: int | None
    scanner: str
    modality: str
    accession_number: str | None
    patient_id: str | None
    state: str
    reason: str | None
    release: str
    targets: Mapping[str, Told] = field(default_factory=dict)
    members: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    heatmap: str | None = None


@dataclass(frozen=True, slots=True)
class StudyAnswer:
    """One study of a run.

    Attributes
    ----------
    missing
        Images that the PACS told of and that have not come.
    waiting
        Images that have come and that no screening answers for yet.
    """

    study_instance_uid: str
    study_date: str
    accession_number: str | None
    patient_id: str | None
    state: StudyState
    reason: str | None
    images: tuple[ImageAnswer, ...]
    missing: int = 0
    waiting: int = 0

    def strongest(self, target: str) -> tuple[ImageAnswer, Told] | None:
        """The image with the highest probability, whose answer is the study's; None where no image has one."""
        told = [(image, image.targets[target]) for image in self.images if target in image.targets]
        return max(told, key=lambda one: one[1].probability, default=None)

    def flagged(self, target: str) -> bool:
        """Whether any of its images is."""
        told = (image.targets[target] for image in self.images if target in image.targets)
        return any(one.decision == Decision.FLAGGED for one in told)

    def decision(self, target: str) -> str | None:
        """Flagged where any of its images is, else what was decided on the strongest; None where no image has one."""
        if self.flagged(target):
            return Decision.FLAGGED
        strongest = self.strongest(target)
        return None if strongest is None else strongest[1].decision


def study_answers(database: Database, run_id: int) -> Iterator[StudyAnswer]:
    """Every study of the run, in its order; lines of a file that name none are left out."""
    manifests: dict[int, Manifest] = {}
    last = 0
    while True:
        with database.read() as session:
            studies = session.scalars(
                select(RunStudyRow)
                .where(RunStudyRow.run_id == run_id, RunStudyRow.id > last, RunStudyRow.study_instance_uid.is_not(None))
                .order_by(RunStudyRow.id)
                .limit(_CHUNK)
            ).all()
            if not studies:
                return
            last = studies[-1].id
            images, missing, waiting = _images(session, [study.id for study in studies], manifests)
        for study in studies:
            found = tuple(images.get(study.id, ()))
            yield StudyAnswer(
                study_instance_uid=study.study_instance_uid or "",
                study_date=study.study_date or "",
                accession_number=study.accession_number or _first(one.accession_number for one in found),
                patient_id=study.patient_id or _first(one.patient_id for one in found),
                state=StudyState(study.state),
                reason=study.reason,
                images=found,
                missing=missing[study.id],
                waiting=waiting[study.id],
            )


def _first(found: Iterable[str | None]) -> str | None:
    return next(filter(None, found), None)


def _images(
    session: Session, study_ids: Sequence[int], manifests: dict[int, Manifest]
) -> tuple[dict[int, list[ImageAnswer]], Counter[int], Counter[int]]:
    """By study: its images that a screening answers for, and how many have not come or have no screening yet."""
    expected = session.scalars(
        select(RunInstanceRow)
        .where(RunInstanceRow.study_id.in_(study_ids))
        .order_by(RunInstanceRow.study_id, RunInstanceRow.sop_instance_uid)
    ).all()
    screenings = _latest(session, [row.screening_id for row in expected if row.screening_id is not None])
    instances = _by_id(session, InstanceRow, {screening.instance_id for screening in screenings.values()})
    keys = [screening.id for screening in screenings.values()]
    told, outputs, heatmaps = _told(session, keys), _outputs(session, keys), _heatmaps(session, keys)
    found: dict[int, list[ImageAnswer]] = defaultdict(list)
    missing: Counter[int] = Counter()
    waiting: Counter[int] = Counter()
    for row in expected:
        if row.screening_id is None:
            missing[row.study_id] += not row.landed
            waiting[row.study_id] += row.landed
            continue
        screening = screenings[row.screening_id]
        instance = instances[screening.instance_id]
        manifest = _manifest(session, screening.release_id, manifests)
        has_answer = screening.state not in _WITHOUT_ANSWER
        targets, members = _explained(manifest, told[screening.id] if has_answer else {}, outputs[screening.id])
        found[row.study_id].append(
            ImageAnswer(
                sop_instance_uid=row.sop_instance_uid,
                view=instance.view,
                sex=instance.patient_sex or "",
                age=instance.patient_age,
                scanner=" ".join(one for one in (instance.manufacturer, instance.model_name) if one),
                modality=instance.modality,
                accession_number=instance.accession_number,
                patient_id=instance.patient_id,
                state=screening.state,
                reason=screening.reason,
                release=f"{manifest.name} {manifest.release}",
                targets=targets,
                members=members,
                heatmap=heatmaps.get(screening.id),
            )
        )
    return found, missing, waiting


def _latest(session: Session, screening_ids: Iterable[int]) -> dict[int, ScreeningRow]:
    """By the screening that was asked for, itself, or where it failed the one that took its place.

    What answered keeps answering for its run, whatever a later release says of the image.
    """
    found = _by_id(session, ScreeningRow, screening_ids)
    while after := {
        key: row.replaced_by for key, row in found.items() if row.replaced_by is not None and row.state == State.FAILED
    }:
        later = _by_id(session, ScreeningRow, set(after.values()))
        found |= {key: later[replaced_by] for key, replaced_by in after.items()}
    return found


def _by_id(session: Session, table: type[_Row], keys: Iterable[int]) -> dict[int, _Row]:
    return {row.id: row for part in _parts(keys) for row in session.scalars(select(table).where(table.id.in_(part)))}


def _parts(keys: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """The keys, as many at a time as a statement may hold."""
    left = iter(keys)
    while part := tuple(islice(left, _KEYS)):
        yield part


def _told(session: Session, keys: Sequence[int]) -> dict[int, dict[str, Told]]:
    found: dict[int, dict[str, Told]] = defaultdict(dict)
    for part in _parts(keys):
        query = select(OutcomeRow).where(OutcomeRow.screening_id.in_(part)).order_by(OutcomeRow.position)
        for row in session.scalars(query):
            decision = row.decision or (Decision.FLAGGED if row.flagged else Decision.NOT_FLAGGED)
            found[row.screening_id][row.target] = Told(row.probability, row.threshold, decision)
    return found


def _outputs(session: Session, keys: Sequence[int]) -> dict[int, dict[str, dict[str, float]]]:
    found: dict[int, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for part in _parts(keys):
        for row in session.scalars(select(MemberOutputRow).where(MemberOutputRow.screening_id.in_(part))):
            found[row.screening_id][row.member][row.output] = row.value
    return found


def _heatmaps(session: Session, keys: Sequence[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    for part in _parts(keys):
        query = select(ObjectRow.screening_id, ObjectRow.path).where(
            ObjectRow.screening_id.in_(part),
            ObjectRow.kind == ObjectKind.HEATMAP,
            ObjectRow.retraction_id.is_(None),  # nobody is shown what was taken back
        )
        found |= {key: path for key, path in session.execute(query).tuples() if key is not None}
    return found


def _manifest(session: Session, release_id: int, known: dict[int, Manifest]) -> Manifest:
    if release_id not in known:
        known[release_id] = parse_manifest(session.get_one(ReleaseRow, release_id).manifest)
    return known[release_id]


def _explained(
    manifest: Manifest, told: Mapping[str, Told], outputs: Mapping[str, Mapping[str, float]]
) -> tuple[dict[str, Told], dict[str, Mapping[str, float]]]:
    """The answers with their reach, and by question each member's own probability.

    Neither is added where the outputs, which an older program may have written, give no answer.
    """
    if not told:
        return {}, {}
    try:
        found = answers(manifest, outputs)
    except (AnswerError, KeyError):
        return dict(told), {}
    bounds = {target.name: target.disagreement.bound for target in manifest.targets if target.disagreement is not None}
    return (
        {
            name: one._replace(reach=found[name].spread / bounds[name]) if name in found and name in bounds else one
            for name, one in told.items()
        },
        {name: {member: sigmoid(logit) for member, logit in one.members.items()} for name, one in found.items()},
    )
