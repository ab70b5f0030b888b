"""The `dicom-node` command: builds the settings, wires the parts, runs."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dicom_node import __version__, bundle_cli, explain_cli, results_cli
from dicom_node.config import Settings, load
from dicom_node.domain import NodeError, State, invariant_holds
from dicom_node.retrospective import cli as retrospective_cli

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A DICOM node that screens chest X-rays. Research and decision support; not a medical device.",
)
_COMMANDS = "dicom_node.commands"
_KNOWN_ERROR = 2
_OURS = {"dicom_node", "workers", "__main__"}


class _Context:
    """The settings, loaded when a command first asks, so that `--help` works with broken ones."""

    def __init__(self, config: Path | None) -> None:
        self.config = config

    @property
    def settings(self) -> Settings:
        return load(self.config)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dicom-node {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; DICOM_NODE_CONFIG names one too.", show_default=False)
    ] = None,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,  # noqa: ARG001
) -> None:
    context.obj = _Context(config)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    # Other people's log lines and warnings may tell what is in a data set; ours never do.
    logging.getLogger().handlers[0].addFilter(lambda record: record.name.partition(".")[0] in _OURS)
    warnings.filterwarnings("ignore", module=r"(pydicom|pynetdicom|highdicom)\b")


@app.command()
def up(context: typer.Context) -> None:
    """Run the embedded node: listener, worker, delivery, sweep and what fetches for runs, in one process tree."""
    from dicom_node import node

    node.up(context.obj.settings, context.obj.config)


@app.command(hidden=True)
def role(context: typer.Context, name: str) -> None:
    """Run one child of `up` (listen, work, deliver, sweep, retrieve, web) or of `worker` (answer)."""
    from dicom_node import roles

    settings, stop = context.obj.settings, roles.stop_on_signal()
    if name in ("work", "answer"):
        _resolve(name)(settings, stop)
    elif name in ("listen", "deliver", "sweep"):
        getattr(roles, name)(settings, stop)
    elif name == "retrieve":
        from dicom_node.retrospective import fetching

        fetching.retrieve(settings, stop)
    elif name == "web":
        from dicom_node.worklist import serving

        serving.serve(settings, stop)
    else:
        raise NodeError(f"no role {name!r}: it is listen, work, deliver, sweep, retrieve, web or answer")


@app.command()
def listen(context: typer.Context) -> None:
    """Service: receive images (C-STORE, C-ECHO)."""
    _serve("listen", context)


@app.command()
def worker(
    context: typer.Context,
    device: Annotated[
        list[str] | None,
        typer.Option(help="cpu, cuda or cuda:N; once for each process. Default: the setting.", show_default=False),
    ] = None,
) -> None:
    """Service: screen what waits; a Celery worker with one process a device."""
    from dicom_node import roles, service

    settings = context.obj.settings
    service.worker(settings, context.obj.config, device or (settings.device,), roles.stop_on_signal())


@app.command()
def deliver(context: typer.Context) -> None:
    """Service: send results to the destinations."""
    _serve("deliver", context)


@app.command()
def sweep(context: typer.Context) -> None:
    """Service: give back what is stuck, and ring for what waits without a bell."""
    _serve("sweep", context)


@app.command("retrieve")
def retrieve_studies(context: typer.Context) -> None:
    """Service: fetch the studies of retrospective runs, while they are due."""
    _serve("retrieve", context)


@app.command()
def web(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option(help="Address to serve on. Default: the setting.", show_default=False)
    ] = None,
    port: Annotated[int | None, typer.Option(help="TCP port. Default: the setting.", show_default=False)] = None,
) -> None:
    """Serve the worklist's pages, the API and the metrics; `up` does so by itself."""
    from dicom_node import roles, service

    settings: Settings = context.obj.settings
    asked = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    service.web(settings.with_web(asked), roles.stop_on_signal())


def _serve(name: str, context: typer.Context) -> None:
    from dicom_node import roles, service

    getattr(service, name)(context.obj.settings, roles.stop_on_signal())


@app.command()
def health(
    context: typer.Context, name: Annotated[str, typer.Argument(metavar="listen|worker|deliver|sweep|retrieve|web")]
) -> None:
    """Say whether this machine's process of that name lives: exit status 0 or 1 (for container health checks)."""
    from dicom_node import watch

    settings: Settings = context.obj.settings
    try:
        if name == "listen":
            from dicom_node.pacs import Pacs  # the others, asked every few seconds, need no network

            Pacs.of_this_node(settings).echo()
            typer.echo(f"listen: {settings.ae_title} answers on port {settings.port}")
        elif name == "web":
            from dicom_node.worklist import health as of_web

            typer.echo(of_web.check(settings.web))
        else:
            typer.echo(watch.check(settings.health_dir, name))
    except NodeError as error:
        typer.echo(f"dicom-node: {error}", err=True)
        raise typer.Exit(1) from error


@app.command()
def doctor(
    context: typer.Context,
    peer: Annotated[
        str | None, typer.Argument(help="With --probe: this peer alone, a destination or not.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="Print what each destination would get, sending nothing: exit status 1 without a report."
        ),
    ] = False,
) -> None:
    """Examine settings, database, broker, archive, bundle, device, clock and peers: exit status 1 for a failure."""
    from dicom_node import doctor as examiner
    from dicom_node import probe as prober

    if probe:
        if not prober.report(context.obj.settings, peer, as_json=as_json):
            raise typer.Exit(1)
        return
    if peer is not None:
        raise NodeError(f"doctor examines every peer; to ask {peer!r} alone what it accepts, say --probe")
    if not examiner.report(context.obj.settings, as_json=as_json, config=context.obj.config):
        raise typer.Exit(1)


_database = typer.Typer(no_args_is_help=True, help="The ledger's database.")
app.add_typer(_database, name="db")
app.add_typer(bundle_cli.app, name="bundle")
app.add_typer(retrospective_cli.app, name="retrospective")
for _command in (explain_cli.explain, results_cli.resend, results_cli.rescreen, results_cli.retract):
    app.command()(_command)


@_database.command("upgrade")
def upgrade_database(context: typer.Context) -> None:
    """Bring the ledger to this version's schema; a new ledger also gets the settings' bundle. The node may run on."""
    from dicom_node.upgrade import upgrade

    upgrade(context.obj.settings)


@app.command()
def screen(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help="DICOM, PNG or JPEG files, or folders of them.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line and input.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the heatmaps and, of DICOM inputs, the reports.", show_default=False)
    ] = None,
) -> None:
    """Screen files offline: no listener, no database. Exit status 1 where any file could not be read."""
    if not _resolve("screen")(context.obj.settings, paths, as_json=as_json, out=out):
        raise typer.Exit(1)


@app.command()
def status(context: typer.Context, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Count images and deliveries by state, say what needs a person, and whether the invariant holds (else exit 1)."""
    from dicom_node.database import Database
    from dicom_node.ledger import Ledger
    from dicom_node.outbox import Outbox
    from dicom_node.overview import overview

    settings: Settings = context.obj.settings
    with closing(Database(settings.database_dsn)) as database:
        database.check_schema()
        counts, beside = Ledger(database).counts(), overview(database)
        outbox = Outbox(database, retry_base_s=settings.retry_base_s, retry_max_s=settings.retry_max_s)
        deliveries, errors = outbox.counts(), outbox.last_errors()
    holds = invariant_holds(counts)
    if as_json:
        told = {"deliveries": deliveries, "delivery_errors": errors, **beside.as_json(), "invariant_holds": holds}
        typer.echo(json.dumps({**counts, **told}))
    else:
        table = Table("state", "instances", title="Ledger")
        for name in ("received", *State, "duplicates", "conflicts"):
            table.add_row(str(name), str(counts[str(name)]))
        console = Console()
        console.print(table)
        for destination, states in deliveries.items():
            shown = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
            console.print(f"objects to {destination}: {shown}", soft_wrap=True)
            if destination in errors:
                console.print(f"  last error: {errors[destination]}", soft_wrap=True)
        for line in beside.lines():
            console.print(line, soft_wrap=True)
        console.print(
            "received = delivered + withheld + declined + failed + waiting " + ("holds" if holds else "DOES NOT HOLD")
        )
    if not holds:
        raise typer.Exit(1)


@app.command()
def demo(
    context: typer.Context,
    images: Annotated[
        Path | None, typer.Option(help="Folder of DICOM, PNG or JPEG instead of phantoms.", show_default=False)
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where the demo keeps everything.")] = Path("cxr-node/demo"),
    count: Annotated[int, typer.Option(min=1, help="How many phantoms to draw.")] = 6,
) -> None:
    """Show the main job: an embedded PACS, the node, chest X-rays in, results back in the PACS."""
    from dicom_node.demo.run import run

    if not run(context.obj.settings, images=images, folder=folder, count=count):
        raise typer.Exit(1)


def _resolve(name: str) -> Any:
    """The function of the workers behind a command; this module never imports them."""
    found = entry_points(group=_COMMANDS, name=name)
    if not found:
        raise NodeError(f"this install has no worker part: no entry point {name!r} in the group {_COMMANDS}")
    try:
        return next(iter(found)).load()
    except ModuleNotFoundError as error:
        raise NodeError(f"this command needs the package {error.name!r}: install cxr-dicom-node[worker]") from error


def main() -> None:
    """Run the command; an error that we know is one line on standard error and exit status 2."""
    try:
        app()
    except NodeError as error:
        if str(error):
            sys.stderr.write(f"dicom-node: {error}\n")
        sys.exit(_KNOWN_ERROR)
