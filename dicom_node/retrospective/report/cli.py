"""`dicom-node retrospective report`. The packages of the report are imported when one is made, and not before."""

from __future__ import annotations

import importlib
import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track

from dicom_node.database import Database
from dicom_node.domain import NodeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dicom_node.config import Settings
    from dicom_node.retrospective.report.answers import StudyAnswer
    from dicom_node.retrospective.report.making import Made

PACKAGES = ("matplotlib", "pyarrow", "scipy", "sklearn")  # of the extra `report`


def report(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The run's name.")],
    out: Annotated[
        Path, typer.Option(help="The page and the tables come into a folder of the run's name in it.")
    ] = Path("cxr-node/reports"),
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
    _expect_packages()
    from dicom_node.retrospective.report import making

    settings: Settings = context.obj.settings
    if set_threshold and (labels is None or not by):
        raise making.ReportError("--set-threshold needs --labels, from which it is chosen, and --by, who sets it")
    with closing(Database(settings.database_dsn)) as database:
        database.check_schema()
        wanted = making.Wanted(name, labels, question, sensitivity)
        made = making.make(settings, database, wanted, out, _watched)
        if as_json:
            typer.echo(json.dumps(made.figures))
        else:
            _print(made)
        if set_threshold and by:
            site = making.set_threshold(database, made, by)
            typer.echo(
                f"{site.target} is flagged from {site.threshold:.4f} on at this site (version {site.version}): "
                f"{site.basis}",
                err=True,
            )


def _expect_packages() -> None:
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise NodeError(
                f"the report needs the package {error.name!r}: pip install 'cxr-dicom-node[report]'"
            ) from error


def _watched(studies: Iterable[StudyAnswer], total: int) -> Iterable[StudyAnswer]:
    console = Console(stderr=True)
    return track(studies, total=total, description="reading the ledger", console=console, transient=True)


def _print(made: Made) -> None:
    from dicom_node.evaluation.wording import interval, share

    console = Console()
    lines = [f"{'  ' if one.part else ''}{one.label}: {one.number}" for one in made.gathered.flow()]
    if (found := made.validation) is not None:
        lines += [
            f"{found.studies} labelled studies with an answer, {found.positive} of them positive",
            f"labels that name no study of the run: {made.gathered.unknown_labels}",
            f"  area under the ROC curve {interval(found.auc)}",
            f"  sensitivity as screened {share(found.current.sensitivity)}",
            f"  specificity as screened {share(found.current.specificity)}",
        ]
    for line in [*lines, str(made.folder / "report.html")]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
