"""The commands that begin, pause and watch a run; the node's own processes do the work."""

from __future__ import annotations

import json
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from dicom_node.database import Database
from dicom_node.domain import RunState
from dicom_node.retrospective.progress import RunStatus, all_runs, run_status
from dicom_node.retrospective.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Iterator

_EVERY_S = 2.0

Name = Annotated[str, typer.Argument(help="The run's name, as it was planned.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return at once; `status` says how far it has come.")]


def run(
    context: typer.Context,
    name: Name,
    deliver: Annotated[
        bool | None,
        typer.Option(
            "--deliver/--shadow", help="Send its results to the destinations, or keep them; else as it was planned."
        ),
    ] = None,
    detach: Detach = False,
) -> None:
    """Fetch and screen a planned cohort whenever it is due, and watch it; to end the watching ends nothing else."""
    with _ledger(context) as database:
        Runs(database).begin(name, datetime.now(UTC), deliver=deliver)
        _follow(database, name, detach=detach)


def resume(
    context: typer.Context,
    name: Name,
    failed: Annotated[bool, typer.Option("--failed", help="Try the studies that failed once more, too.")] = False,
    study: Annotated[
        str | None, typer.Option(help="Try this study once more, by its UID, and no other.", show_default=False)
    ] = None,
    detach: Detach = False,
) -> None:
    """Go on with a run that was paused, or has ended with studies that failed."""
    with _ledger(context) as database:
        runs = Runs(database)
        if failed or study is not None:
            typer.echo(f"{runs.retry(name, study)} studies are tried once more")
        runs.begin(name, datetime.now(UTC))
        _follow(database, name, detach=detach)


def pause(context: typer.Context, name: Name) -> None:
    """Fetch nothing further for a run until it is resumed; what was fetched is screened."""
    with _ledger(context) as database:
        Runs(database).pause(name)
    typer.echo(f"run {name} is paused; `dicom-node retrospective resume {name}` goes on with it")


def status(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="One run; without it, all of them.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Say how far runs have come, and why nothing is fetched where nothing is."""
    with _ledger(context) as database:
        found = (
            list(all_runs(database, datetime.now(UTC)))
            if name is None
            else [run_status(database, name, datetime.now(UTC))]
        )
    if as_json:
        typer.echo(json.dumps([one.as_json() for one in found] if name is None else found[0].as_json()))
        return
    console = Console()
    if not found:
        console.print("no run was planned yet: `dicom-node retrospective plan --help`")
    for one in found:
        for line in one.lines():
            console.print(line, soft_wrap=True, markup=False)


@contextmanager
def _ledger(context: typer.Context) -> Iterator[Database]:
    with closing(Database(context.obj.settings.database_dsn)) as database:
        database.check_schema()
        yield database


def _follow(database: Database, name: str, *, detach: bool) -> None:
    """The live view until the run has ended or is paused; on no terminal, a line whenever something has changed."""
    console = Console()
    if detach:
        typer.echo(
            f"run {name} goes on whenever it is due; `dicom-node retrospective status {name}` says how far it is"
        )
        return
    progress = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console)
    bar = progress.add_task("studies", total=None)
    told: list[str] = []
    try:
        with Live(progress, console=console, refresh_per_second=4, transient=False) as live:
            while True:
                now = run_status(database, name, datetime.now(UTC))
                progress.update(bar, total=now.total, completed=now.ended)
                if console.is_terminal:
                    live.update(_shown(progress, now))
                elif now.lines() != told:
                    told = now.lines()
                    console.print("\n".join(told), soft_wrap=True, markup=False)
                if now.state is not RunState.RUNNING:
                    return
                time.sleep(_EVERY_S)
    except KeyboardInterrupt:
        console.print(f"no longer watched; run {name} goes on, `dicom-node retrospective pause {name}` pauses it")


def _shown(progress: Progress, now: RunStatus) -> Group:
    return Group(progress, *(Text(line) for line in now.lines()))
