"""A report is made: the ledger read once, the tables written on the way, the page and the figures at the end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from dicom_node.archive import Archive
from dicom_node.bundle import parse_manifest
from dicom_node.domain import NodeError
from dicom_node.evaluation.statistics import finite
from dicom_node.releases import Releases
from dicom_node.retrospective.report.answers import study_answers
from dicom_node.retrospective.report.gathering import Gathered
from dicom_node.retrospective.report.labels import read_labels
from dicom_node.retrospective.report.page import page
from dicom_node.retrospective.report.summary import agreement, spreads
from dicom_node.retrospective.report.tables import Tables
from dicom_node.retrospective.report.validation import LEAST_POSITIVE, Validation, basis, validate
from dicom_node.retrospective.runs import find_run
from dicom_node.retrospective.tables import RunStudyRow
from dicom_node.tables import ReleaseRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from dicom_node.config import Settings
    from dicom_node.database import Database
    from dicom_node.releases import SiteThreshold
    from dicom_node.retrospective.report.answers import StudyAnswer
    from dicom_node.retrospective.tables import RunRow

    # The studies, and how many they are, to the same studies: something may be shown while they are read.
    Watch = Callable[[Iterable[StudyAnswer], int], Iterable[StudyAnswer]]


class ReportError(NodeError):
    """No report can be made, or no threshold be set by it."""

    reason = "report"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a report.

    Attributes
    ----------
    question
        None for the first of the active release.
    sensitivity
        For which a threshold is looked for, where there are labels.
    """

    name: str
    labels: Path | None = None
    question: str | None = None
    sensitivity: float = 0.95


@dataclass(frozen=True, slots=True)
class Made:
    """A report that lies in `folder`.

    Attributes
    ----------
    figures
        What stands in ``figures.json``.
    """

    folder: Path
    gathered: Gathered
    validation: Validation | None
    figures: dict[str, Any]


def make(settings: Settings, database: Database, wanted: Wanted, out: Path, watch: Watch) -> Made:
    """The report lies in a folder of the run's name in `out`, over what lay there.

    Raises
    ------
    RunError
        Where there is no such run.
    ReportError
        Where no release asks the question, or the folder cannot be written to.
    LabelError, ValidationError
        Where the labels cannot be used.
    """
    with database.read() as session:
        run = find_run(session, wanted.name)
        session.expunge(run)
    questions = _questions(database)
    if not questions:
        raise ReportError("the ledger knows no release, so that nothing was screened")
    target = wanted.question or questions[0]
    if target not in questions:
        raise ReportError(f"no release asks {target!r}; the questions are {', '.join(questions)}")
    labels = read_labels(wanted.labels, target, identity=settings.store_patient_identity) if wanted.labels else None
    studies, lines = _sizes(database, run)
    gathered = Gathered(target, labels, not_in_pacs=lines)
    folder = out / run.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Tables(folder, questions) as tables:
            for study in watch(study_answers(database, run.id), studies):
                gathered.add(study)
                tables.add(study, labels.of(study) if labels is not None else None)
        validation = None
        if labels is not None:
            validation = validate(target, gathered.labelled, gathered.label_thresholds, wanted.sensitivity)
        figures = _figures(run, questions, gathered, validation)
        (folder / "report.html").write_text(
            page(run, gathered, validation, Archive(settings.archive_dir)), encoding="utf-8"
        )
        (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{folder} cannot be written to: {error.strerror}") from error
    return Made(folder, gathered, validation, figures)


def set_threshold(database: Database, made: Made, by: str) -> SiteThreshold:
    """The site flags from the threshold that the labels gave on, by the release that answered.

    Raises
    ------
    ReportError
        Where several releases did, or too few positive studies stand behind it.
    """
    gathered, found = made.gathered, made.validation
    name = made.figures["run"]
    if found is None or found.aimed.threshold is None:
        raise ReportError("without labels there is no threshold to set")
    if len(gathered.releases) != 1:
        raise ReportError(
            f"several releases answered in run {name} ({', '.join(gathered.releases)}), and a threshold is one "
            "release's: plan its cohort as another run with --again"
        )
    if found.positive < LEAST_POSITIVE:
        raise ReportError(
            f"{found.positive} labelled studies with an answer are positive: a threshold needs {LEAST_POSITIVE} or more"
        )
    (told,) = gathered.releases
    with database.read() as session:
        manifests = [parse_manifest(text) for text in session.scalars(select(ReleaseRow.manifest))]
    manifest = next(one for one in manifests if f"{one.name} {one.release}" == told)
    return Releases(database).set_threshold(
        manifest, found.target, found.aimed.threshold, set_by=by, basis=basis(name, found)
    )


def _questions(database: Database) -> list[str]:
    """Those of every release that the ledger knows, the active one's first."""
    with database.read() as session:
        manifests = session.scalars(
            select(ReleaseRow.manifest).order_by(ReleaseRow.active.desc(), ReleaseRow.id.desc())
        )
        return list(dict.fromkeys(target.name for text in manifests for target in parse_manifest(text).targets))


def _sizes(database: Database, run: RunRow) -> tuple[int, int]:
    """How many studies the run has, and how many lines of a file that name none."""
    with database.read() as session:
        named, everything = session.execute(
            select(func.count(RunStudyRow.study_instance_uid), func.count()).where(RunStudyRow.run_id == run.id)
        ).one()
    return named, everything - named


def _figures(run: RunRow, questions: list[str], gathered: Gathered, validation: Validation | None) -> dict[str, Any]:
    labels, members = gathered.labels, agreement(gathered)
    told = finite(
        {
            "run": run.name,
            "question": gathered.target,
            "questions": questions,
            "counts": {one.key: one.number for one in gathered.flow()},
            "declined": dict(gathered.declined),
            "failed": dict(gathered.failed),
            "studies_failed": dict(gathered.study_failures),
            "releases": dict(gathered.releases),
            "thresholds": sorted(gathered.thresholds),
            "scores": {name: [asdict(one) for one in spreads(gathered, name)] for name in ("day", "scanner", "view")},
            "members": None if members is None else asdict(members),
            "labels": None
            if labels is None
            else {
                "with_answer": len(gathered.labelled),
                "without_answer": gathered.without_answer,
                "unlabelled": gathered.unlabelled,
                "unknown": gathered.unknown_labels,
                "blank": labels.blank,
            },
            "validation": None if validation is None else asdict(validation),
        }
    )
    assert isinstance(told, dict)  # noqa: S101 - of a dict a dict is made
    return told
