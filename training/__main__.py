"""`python -m training`: train the published methods, evaluate them beside their papers, export them as bundles."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from dicom_node.domain import NodeError
from training.data.cli import app as data_app
from training.papers import PAPERS, robust

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.recipe import Recipe

app = typer.Typer(help="Train, evaluate and export the published methods.", no_args_is_help=True)
app.add_typer(data_app, name="data")

PaperName = StrEnum("PaperName", {name.upper(): name for name in PAPERS})  # type: ignore[misc]


class Profile(StrEnum):
    """The paper's recipe, what two CPU cores do of it within the hour, or what holds where shortcuts help least."""

    PAPER = "paper"
    SMALL = "small"
    ROBUST = "robust"


class Protocol(StrEnum):
    """The paper's own data set and splits, or five folds over everything at hand and a final network."""

    PAPER = "paper"
    FOLDS = "folds"


class Task(StrEnum):
    """What a network with two classes is asked for."""

    COVID19 = "covid19"
    PNEUMONIA = "pneumonia"


Data = Annotated[Path, typer.Option(help="Manifest, or folder of manifest.csv or index.csv.", exists=True)]
Workdir = Annotated[Path, typer.Option(help="Folder of checkpoints, decoded images and finished experiments.")]
Runs = Annotated[list[Path], typer.Argument(help="Folders of finished experiments.", exists=True, file_okay=False)]
Out = Annotated[Path, typer.Option(help="Folder that is written.")]


@app.callback()
def _log() -> None:
    handler = RichHandler(console=Console(stderr=True), show_path=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])


@app.command()
def train(
    paper: Annotated[PaperName, typer.Argument(help="Which paper.")],
    data: Data,
    workdir: Workdir,
    variant: Annotated[str, typer.Option(help="Network or ablation; without it the paper's main one.")] = "",
    profile: Annotated[Profile, typer.Option(help=Profile.__doc__ or "")] = Profile.PAPER,
    protocol: Annotated[Protocol, typer.Option(help=Protocol.__doc__ or "")] = Protocol.PAPER,
    task: Annotated[Task, typer.Option(help=Task.__doc__ or "")] = Task.COVID19,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what lies in the working folder.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda (the first) or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(help="The same seed gives the same numbers.")] = 20,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE: a field of the recipe, or pretraining.NAME=VALUE.")
    ] = None,
) -> None:
    """Train a paper's method and score its test images."""
    from training.train import train as run

    recipe = PAPERS[paper].recipe(variant or PAPERS[paper].variants_of(profile)[0], profile).but(seed=seed)
    recipe = changed(recipe, settings or [])
    progress = sys.stderr.isatty()
    where = run(recipe, data, workdir, protocol=protocol, task=task, resume=resume, device=device, progress=progress)
    typer.echo(where)


@app.command()
def evaluate(runs: Runs, data: Data, out: Out) -> None:
    """Write evaluation.json, a page of plots, and a table that sets ours beside the paper's."""
    from training.evaluation.evaluate import evaluate as run

    run(runs, data, out)
    typer.echo(out)


@app.command()
def export(
    runs: Runs,
    data: Data,
    out: Out,
    name: str = "ensemble",
    release: str = "0.1.0",
    gate: Annotated[
        Path | None, typer.Option(help="Folder that `gate` wrote, for the last of RUN that has its blocks.")
    ] = None,
) -> None:
    """Write the networks of `folds` experiments as a bundle that `dicom-node` loads, and evaluate it."""
    from training.export import export as run

    run(runs, data, out, name=name, release=release, gate=gate)
    typer.echo(out)


@app.command()
def gate(
    run: Annotated[Path, typer.Argument(help="A finished experiment whose network reads levels of a backbone.")],
    data: Data,
    out: Out,
) -> None:
    """Fit what tells frontal chest X-rays from everything else, and measure it by kind."""
    from training.gate import fit_gate

    fit_gate(run, data, out)
    typer.echo(out)


@app.command()
def reproduction(
    evaluations: Annotated[list[Path], typer.Argument(help="evaluation.json files.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="The Markdown file that is written.")],
    keep: Annotated[Path | None, typer.Option(help="Folder for copies without curves, to lie beside it.")] = None,
    timings: Annotated[Path | None, typer.Option(help="What `timings` wrote.", exists=True, dir_okay=False)] = None,
) -> None:
    """Write the table of every paper's every number beside ours."""
    from training.evaluation import reproduction as document

    document.write_reproduction(document.keep(evaluations, keep) if keep else evaluations, out, timings)
    typer.echo(out)


@app.command()
def accuracy(
    bundle: Annotated[
        Path, typer.Argument(help="Folder of a bundle that `export` wrote.", exists=True, file_okay=False)
    ],
    out: Annotated[Path, typer.Option(help="The Markdown file that is written; its plots go into a folder beside it.")],
) -> None:
    """Write how accurate a bundle is, and where it is not, from its evaluation.json."""
    from training.evaluation.accuracy import write_accuracy

    write_accuracy(bundle, out)
    typer.echo(out)


@app.command()
def probe(
    data: Data,
    workdir: Workdir,
    variant: Annotated[str, typer.Option(help="Backbone of `minaee`, profile robust.")] = "efficientnet_lite0",
    seed: Annotated[int, typer.Option(help="The same seed gives the same folds and images.")] = 20,
    settings: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE: a field of the recipe.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="A collection that is not learnt from.")] = None,
    share: Annotated[float, typer.Option(help="Share of cohen's patients that is learnt from.")] = 1.0,
    most: Annotated[int, typer.Option(help="Images of a collection at most; 0: all.")] = 1000,
) -> None:
    """Ask a linear layer on frozen features the questions within one source: a try of minutes."""
    from training.data.manifest import read_manifest
    from training.evaluation.wording import probed
    from training.probe import Choice
    from training.probe import probe as run

    recipe = changed(PAPERS["minaee"].recipe(variant, robust.PROFILE).but(seed=seed), settings or [])
    tasks = run(recipe, read_manifest(data), data, workdir, Choice(most, tuple(without or ()), share))
    typer.echo(probed(tasks))


@app.command()
def timings(
    data: Data, out: Annotated[Path, typer.Option(help="The JSON file that is written.")], device: str = "auto"
) -> None:
    """Measure how long every training takes on this machine, by a few steps of each."""
    from training.data.manifest import read_manifest
    from training.timing import timings as measured

    out.write_text(json.dumps(measured(read_manifest(data), device), indent=1) + "\n", encoding="utf-8")
    typer.echo(out)


def changed(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with the given fields changed; the record keeps what was trained.

    Raises
    ------
    ValueError
        Where a setting is no NAME=VALUE, or names no field.
    """
    for setting in settings:
        name, equals, text = setting.partition("=")
        stage, _, field = name.rpartition(".")
        if not equals:
            raise ValueError(f"--set {setting}: NAME=VALUE is needed")
        target = recipe.pretraining if stage == "pretraining" else recipe if not stage else None
        if target is None or field not in {known.name for known in fields(target)}:
            raise ValueError(f"--set {setting}: a recipe has no field {name}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        value = tuple(value) if isinstance(value, list) else value
        usual = getattr(target, field)
        if type(value) is not type(usual) and not (isinstance(usual, float) and isinstance(value, int)):
            raise ValueError(f"--set {setting}: {name} is a {type(usual).__name__}, such as {usual!r}")
        target = target.but(**{field: value})
        recipe = recipe.but(pretraining=target) if stage else target
    return recipe


def main() -> None:
    """Run a command; what stands against it is one line and exit code 2."""
    try:
        app()
    except (ValueError, NodeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
