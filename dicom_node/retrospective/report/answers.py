"""The ledger's answers for a run, study by study: what a report is made of. Read in chunks, however long the run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select

from dicom_node.bundle import Manifest, parse_manifest
from dicom_node.combination import AnswerError, results
from dicom_node.domain import Decision, ObjectKind, StudyState
from dicom_node.retrospective.tables import RunInstanceRow, RunStudyRow
from dicom_node.tables import InstanceRow, MemberOutputRow, ObjectRow, OutcomeRow, ReleaseRow, ScreeningRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from dicom_node.database import Database

_CHUNK = 200  # studies


class Told(NamedTuple):
    """The answer to one question."""

    probability: float
    threshold: float
    decision: str


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
    not_landed
        Images that the PACS told of and that never came.
    """

    study_instance_uid: str
    study_date: str
    accession_number: str | None
    patient_id: str | None
    state: StudyState
    reason: str | None
    images: tuple[ImageAnswer, ...]
    not_landed: int = 0

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
            images, lost = _images(session, [study.id for study in studies], manifests)
        for study in studies:
            found = tuple(images.get(study.id, ()))
            yield StudyAnswer(
                study_instance_uid=study.study_instance_uid or "",
                study_date=study.study_date or "",
                accession_number=study.accession_number,
                patient_id=study.patient_id or next((one.patient_id for one in found if one.patient_id), None),
                state=StudyState(study.state),
                reason=study.reason,
                images=found,
                not_landed=lost.get(study.id, 0),
            )


def _images(
    session: Session, study_ids: Sequence[int], manifests: dict[int, Manifest]
) -> tuple[dict[int, list[ImageAnswer]], dict[int, int]]:
    expected: Select[Any] = (
        select(RunInstanceRow, InstanceRow, ScreeningRow)
        .outerjoin(ScreeningRow, ScreeningRow.id == RunInstanceRow.screening_id)
        .outerjoin(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
        .where(RunInstanceRow.study_id.in_(study_ids))
        .order_by(RunInstanceRow.study_id, RunInstanceRow.sop_instance_uid)
    )
    found: dict[int, list[ImageAnswer]] = defaultdict(list)
    lost: dict[int, int] = defaultdict(int)
    rows = session.execute(expected).all()  # without an image or a screening where none came
    keys = [screening.id for _, _, screening in rows if screening is not None]
    told, outputs, heatmaps = _told(session, keys), _outputs(session, keys), _heatmaps(session, keys)
    for row, instance, screening in rows:
        if instance is None or screening is None:
            lost[row.study_id] += not row.landed
            continue
        manifest = _manifest(session, screening.release_id, manifests)
        targets = told.get(screening.id, {})
        found[row.study_id].append(
            ImageAnswer(
                sop_instance_uid=row.sop_instance_uid,
                view=instance.view,
                sex=instance.patient_sex or "",
                age=instance.patient_age,
                scanner=" ".join(one for one in (instance.manufacturer, instance.model_name) if one),
                modality=instance.modality,
                patient_id=instance.patient_id,
                state=screening.state,
                reason=screening.reason,
                release=f"{manifest.name} {manifest.release}",
                targets=targets,
                members=_members(manifest, outputs.get(screening.id, {})) if targets else {},
                heatmap=heatmaps.get(screening.id),
            )
        )
    return found, lost


def _told(session: Session, keys: Sequence[int]) -> dict[int, dict[str, Told]]:
    found: dict[int, dict[str, Told]] = defaultdict(dict)
    query = select(OutcomeRow).where(OutcomeRow.screening_id.in_(keys)).order_by(OutcomeRow.position)
    for row in session.scalars(query):
        decision = row.decision or (Decision.FLAGGED if row.flagged else Decision.NOT_FLAGGED)
        found[row.screening_id][row.target] = Told(row.probability, row.threshold, decision)
    return found


def _outputs(session: Session, keys: Sequence[int]) -> dict[int, dict[str, dict[str, float]]]:
    found: dict[int, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in session.scalars(select(MemberOutputRow).where(MemberOutputRow.screening_id.in_(keys))):
        found[row.screening_id][row.member][row.output] = row.value
    return found


def _heatmaps(session: Session, keys: Sequence[int]) -> dict[int, str]:
    query = select(ObjectRow.screening_id, ObjectRow.path).where(
        ObjectRow.screening_id.in_(keys), ObjectRow.kind == ObjectKind.HEATMAP
    )
    return {key: path for key, path in session.execute(query).tuples() if key is not None}


def _manifest(session: Session, release_id: int, known: dict[int, Manifest]) -> Manifest:
    if release_id not in known:
        known[release_id] = parse_manifest(session.get_one(ReleaseRow, release_id).manifest)
    return known[release_id]


def _members(manifest: Manifest, outputs: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """By question, each member's own probability; none where the outputs of an older program give no answer."""
    try:
        return {result.target: result.members for result in results(manifest, outputs)}
    except (AnswerError, KeyError):
        return {}
