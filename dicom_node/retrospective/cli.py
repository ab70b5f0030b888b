"""`dicom-node retrospective`: plan a cohort; `run_cli` has the commands on a run, `report.cli` that on its report."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import datetime
from pathlib import Path  # noqa: TC003 - typer looks the annotations up
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dicom_node.database import Database
from dicom_node.retrospective import run_cli
from dicom_node.retrospective.cohort import CohortError, criteria
from dicom_node.retrospective.planning import Plan, plan
from dicom_node.retrospective.report import cli as report_cli

if TYPE_CHECKING:
    from dicom_node.config import Peer, Settings

app = typer.Typer(no_args_is_help=True, help="Screen an archive: plan a cohort, run it by night, report on it.")
_MOST_DAYS_SHOWN = 62

app.command()(run_cli.run)
app.command()(run_cli.resume)
app.command()(run_cli.pause)
app.command()(run_cli.status)
app.command()(report_cli.report)


@app.command("plan")
def plan_run(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="The run's name.")],
    first: Annotated[
        str | None, typer.Option("--from", help="First day, such as 2026-01-01.", show_default=False)
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", help="Last day; today where not given.", show_default=False)
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="Once for each modality; CR and DX where not given.", show_default=False)
    ] = None,
    body_part: Annotated[
        str | None,
        typer.Option(help="Body Part Examined, such as CHEST; films that name none count.", show_default=False),
    ] = None,
    accessions: Annotated[
        Path | None, typer.Option(help="File of accession numbers, one a line, or a CSV.", show_default=False)
    ] = None,
    patients: Annotated[
        Path | None, typer.Option(help="File of patient IDs, one a line, or a CSV.", show_default=False)
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="The peer that holds them, where several can be fetched from.", show_default=False),
    ] = None,
    deliver: Annotated[
        bool, typer.Option("--deliver", help="Send the results to the destinations, once it runs.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Screen anew what this release has screened already.")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Ask a PACS which studies there are, and print what fetching them would take; nothing is fetched."""
    settings: Settings = context.obj.settings
    wanted = criteria(
        first,
        last,
        today=datetime.now(ZoneInfo(settings.retrospective.time_zone)).date(),
        modalities=tuple(modality or ()),
        body_part=body_part,
        accessions=accessions,
        patients=patients,
    )
    peer = source_of(settings, source)
    console = Console(stderr=True)
    with closing(Database(settings.database_dsn)) as database, _progress(console) as progress:
        database.check_schema()
        bar = progress.add_task(f"asking {peer.name}", total=None)
        found = plan(
            settings,
            database,
            name=name,
            criteria=wanted,
            source=peer,
            deliver=deliver,
            again=again,
            on_step=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    if as_json:
        typer.echo(json.dumps(found.as_json()))
    else:
        _print(Console(), found)


def source_of(settings: Settings, name: str | None) -> Peer:
    """The peer of that name that can be fetched from, or the only one.

    Raises
    ------
    CohortError
        Where there is none, or more than one.
    """
    sources = {peer.name: peer for peer in settings.sources}
    if not sources:
        raise CohortError('no peer can be fetched from: give one of [[peers]] retrieve = ["move"], ["get"] or ["web"]')
    if name is None and len(sources) > 1:
        raise CohortError(f"several peers can be fetched from: say --source, one of {', '.join(sources)}")
    if name is not None and name not in sources:
        raise CohortError(
            f"no peer {name} with a way to retrieve stands in the settings; there is {', '.join(sources)}"
        )
    return sources[name] if name is not None else next(iter(sources.values()))


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _print(console: Console, found: Plan) -> None:
    days = found.per_day
    by_month = len(days) > _MOST_DAYS_SHOWN
    table = Table("month" if by_month else "day", "studies", title=f"Run {found.name}, from {found.source}")
    shown: dict[str, int] = {}
    for day, count in days.items():
        key = f"{day[:4]}-{day[4:6]}" if by_month else f"{day[:4]}-{day[4:6]}-{day[6:]}"
        shown[key if day.isdigit() else day] = shown.get(key if day.isdigit() else day, 0) + count
    for key, count in shown.items():
        table.add_row(key, str(count))
    console.print(table)
    images = "" if found.instances is None else f", {found.instances} objects of all kinds in them"
    lines = [f"studies: {found.studies}{images}", f"already screened by this release: {found.already_screened}"]
    if found.not_found:
        lines.append(f"not in the PACS: {found.not_found} of the file's lines; `status` counts them as failed")
    if found.unanswered:
        lines.append(f"not told in full: {found.unanswered} of the file's lines; `status` counts them as failed")
    if found.repeated:
        lines.append(f"named before: {found.repeated} of the file's lines")
    if found.skipped:
        lines.append(f"answers of the PACS that could not be used: {found.skipped}")
    nights = "" if found.nights is None else f", {found.nights:.1f} nights"
    lines += [
        f"to be fetched: about {found.gigabytes:.1f} GB in {found.hours:.1f} hours{nights}",
        f"  ({found.basis})",
        f"nothing was fetched; `dicom-node retrospective run {found.name}` begins",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
