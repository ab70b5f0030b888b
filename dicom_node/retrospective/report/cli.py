"""`dicom-node retrospective report`."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from sqlalchemy import func, select

from dicom_node.archive import Archive
from dicom_node.bundle import parse_manifest
from dicom_node.database import Database
from dicom_node.domain import NodeError
from dicom_node.releases import Releases
from dicom_node.retrospective.report.answers import study_answers
from dicom_node.retrospective.report.labels import read_labels
from dicom_node.retrospective.runs import find_run
from dicom_node.retrospective.tables import RunStudyRow
from dicom_node.tables import ReleaseRow

if TYPE_CHECKING:
    from dicom_node.bundle import Manifest
    from dicom_node.config import Settings
    from dicom_node.retrospective.report.gathering import Gathered
    from dicom_node.retrospective.report.validation import Validation
    from dicom_node.retrospective.tables import RunRow


class ReportError(NodeError):
    """No report can be made, or no threshold be set by it."""

    reason = "report"


def report(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The run's name.")],
    out: Annotated[Path, typer.Option(help="Folder for the page and the tables.")] = Path("cxr-node/reports"),
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV with the truth: study_instance_uid or accession_number, and label.", show_default=False),
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="The bundle's question; its first where not given.", show_default=False)
    ] = None,
    sensitivity: Annotated[
        float,
        typer.Option(min=0.01, max=1.0, help="With --labels: the sensitivity for which a threshold is looked for."),
    ] = 0.95,
    set_threshold: Annotated[
        bool, typer.Option("--set-threshold", help="With --labels: flag from that threshold on, at this site.")
    ] = False,
    by: Annotated[str | None, typer.Option(help="Who sets the threshold.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Write what came of a run: a page, tables, and with labels the site's own validation."""
    try:
        import jinja2  # noqa: F401
        import matplotlib as mpl  # noqa: F401
        import pyarrow as pa  # noqa: F401
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise NodeError(f"the report needs the package {error.name!r}: install 'cxr-dicom-node[report]'") from error
    from dicom_node.retrospective.report.page import page
    from dicom_node.retrospective.report.validation import as_json as figures_of

    settings: Settings = context.obj.settings
    if set_threshold and (labels is None or not by):
        raise ReportError("--set-threshold needs --labels, from which it is chosen, and --by, who sets it")
    with closing(Database(settings.database_dsn)) as database:
        database.check_schema()
        with database.read() as session:
            run = find_run(session, name)
            session.expunge(run)
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        gathered, targets, validation = _gathered(database, settings, run, folder, labels, question, sensitivity)
        text = page(run, gathered, validation, Archive(settings.archive_dir))
        (folder / "report.html").write_text(text, encoding="utf-8")
        told: dict[str, Any] = {
            "run": name,
            "question": gathered.target,
            "questions": list(targets),
            "counts": dict(gathered.flow()),
            "declined": dict(gathered.declined),
            "failed": dict(gathered.failed),
            "releases": dict(gathered.releases),
            "validation": None if validation is None else figures_of(validation),
        }
        (folder / "figures.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
        if set_threshold and validation is not None and by:
            _set_threshold(database, name, gathered, validation, by)
    if as_json:
        typer.echo(json.dumps(told))
        return
    console = Console()
    for line, count in gathered.flow():
        console.print(f"{line}: {count}", markup=False, highlight=False)
    if validation is not None:
        area = validation.auc
        console.print(
            f"area under the ROC curve {area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}] over "
            f"{validation.studies} labelled studies",
            highlight=False,
        )
    console.print(f"{folder / 'report.html'}", soft_wrap=True, markup=False, highlight=False)


def _gathered(
    database: Database,
    settings: Settings,
    run: RunRow,
    folder: Path,
    labels: Path | None,
    question: str | None,
    sensitivity: float,
) -> tuple[Gathered, list[str], Validation | None]:
    """Everything that the page shows; the tables are written on the way."""
    from dicom_node.retrospective.report.gathering import Gathered
    from dicom_node.retrospective.report.tables import Tables
    from dicom_node.retrospective.report.validation import validate

    targets = _targets(database)
    target = question or targets[0]
    if target not in targets:
        raise ReportError(f"no release asks {target!r}; the questions are {', '.join(targets)}")
    truth = read_labels(labels, target, identity=settings.store_patient_identity) if labels is not None else None
    gathered = Gathered(target, truth)
    with database.read() as session:
        total = session.scalar(
            select(func.count()).where(RunStudyRow.run_id == run.id, RunStudyRow.study_instance_uid.is_not(None))
        )
    with Tables(folder, targets) as tables:
        for study in track(
            study_answers(database, run.id),
            total=total,
            description="reading the ledger",
            console=Console(stderr=True),
            transient=True,
        ):
            gathered.add(study)
            tables.add(study, truth.of(study) if truth is not None else None)
    if truth is None:
        return gathered, targets, None
    thresholds = sorted(gathered.label_thresholds)
    return gathered, targets, validate(target, gathered.labelled, thresholds, sensitivity)


def _targets(database: Database) -> list[str]:
    """The questions of every release that the ledger knows, those of the active one first."""
    with database.read() as session:
        manifests = session.scalars(
            select(ReleaseRow.manifest).order_by(ReleaseRow.active.desc(), ReleaseRow.id.desc())
        )
        return list(dict.fromkeys(target.name for text in manifests for target in parse_manifest(text).targets))


def _set_threshold(database: Database, name: str, gathered: Gathered, found: Validation, by: str) -> None:
    """The site flags from the threshold that the labels gave, for the release that answered.

    Raises
    ------
    ReportError
        Where several releases did, or too few positive studies stand behind it.
    """
    from dicom_node.retrospective.report.validation import LEAST_POSITIVE, basis

    if len(gathered.releases) != 1:
        raise ReportError(
            f"several releases answered in run {name} ({', '.join(gathered.releases)}): a threshold is of one; plan "
            "the run once more with --again"
        )
    if found.positive < LEAST_POSITIVE:
        raise ReportError(f"{found.positive} positive studies bear no threshold: at least {LEAST_POSITIVE} are needed")
    manifest = _release(database, next(iter(gathered.releases)))
    assert found.aimed.threshold is not None  # noqa: S101 - it was chosen
    made = Releases(database).set_threshold(
        manifest, found.target, found.aimed.threshold, set_by=by, basis=basis(name, found)
    )
    typer.echo(
        f"{manifest.name} {manifest.release} flags {made.target} from {made.threshold:.4f} on at this site (version "
        f"{made.version}): {made.basis}",
        err=True,
    )


def _release(database: Database, told: str) -> Manifest:
    with database.read() as session:
        for row in session.scalars(select(ReleaseRow)):
            if f"{row.bundle} {row.release}" == told:
                return parse_manifest(row.manifest)
    raise ReportError(f"the ledger does not know release {told}")
