"""`python -m training`: train a published method, export it as a bundle, evaluate the bundle."""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler

from training import evaluate as evaluation
from training import export as exporting
from training.papers import zhang2020
from training.train import fit

app = typer.Typer(help="Train, export and evaluate the published methods.", no_args_is_help=True)


class Method(StrEnum):
    """The methods that can be trained."""

    ZHANG = "zhang"


RECIPES = {Method.ZHANG: zhang2020.RECIPE}

MethodArgument = Annotated[Method, typer.Argument(help="Which method.")]
Data = Annotated[Path, typer.Option(help="Folder of index.csv and its images.", exists=True, file_okay=False)]
Workdir = Annotated[Path, typer.Option(help="Folder of checkpoints and out-of-fold scores; a run resumes from it.")]
Bundle = Annotated[Path, typer.Option(help="Folder of the bundle.", file_okay=False)]


@app.callback()
def _log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])


@app.command()
def train(method: MethodArgument, data: Data, workdir: Workdir) -> None:
    """Train once per fold and then on all of `train`; a run that was stopped goes on where it was."""
    fit(data, workdir, RECIPES[method])


@app.command()
def export(
    method: MethodArgument, data: Data, workdir: Workdir, bundle: Bundle, name: str = "starter", release: str = "1.0.0"
) -> None:
    """Write the trained weights and their manifest as a bundle."""
    exporting.export(data, workdir, bundle, name=name, release=release, recipe=RECIPES[method])


@app.command()
def evaluate(data: Data, workdir: Workdir, bundle: Bundle) -> None:
    """Score the bundle's weights on `val` and `external`; write its evaluation.json and MODEL_CARD.md."""
    evaluation.evaluate(data, workdir, bundle)


if __name__ == "__main__":
    app()
