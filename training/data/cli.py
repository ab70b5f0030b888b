"""`python -m training data`: build, check and describe manifests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.data.checks import SPLITS
from training.data.checks import check as refusals_of
from training.data.describe import describe as described
from training.data.describe import tables
from training.data.duplicates import clustered
from training.data.manifest import read_manifest, write_manifest
from training.data.readers import READERS
from training.data.splits import assign_splits, held_out_together

app = typer.Typer(help="Build, check and describe manifests.", no_args_is_help=True)

Manifest = Annotated[Path, typer.Argument(help="Manifest, or folder of manifest.csv or index.csv.", exists=True)]
_NAMED = 10  # problems of a collection that are printed


@app.command()
def build(
    reader: Annotated[str, typer.Argument(help=f"Whose form the collection has: {', '.join(READERS)}.")],
    root: Annotated[Path, typer.Argument(help="The collection, as its owner ships it.", exists=True)],
    out: Annotated[Path, typer.Option(help="The manifest that is written.")],
    append: Annotated[bool, typer.Option("--append", help="Add to the manifest.")] = False,
    split: Annotated[
        list[str] | None,
        typer.Option(help="NAME=SHARE, for each split, of what is not external; else the owner's stay."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same splits.")] = 20,
    external: Annotated[bool, typer.Option("--external", help="Keep all of it for tests.")] = False,
    mend: Annotated[
        bool, typer.Option("--mend", help="Move what straddles the owner's splits to the one furthest from training.")
    ] = False,
    clusters: Annotated[bool, typer.Option(help="Search for near duplicates; they are split together.")] = True,
) -> None:
    """Write the manifest of a collection; exits with 1 where it could not be trained on as it is."""
    parts = parts_of(split or [])
    if reader not in READERS:
        raise ValueError(f"reader {reader!r} is not known; known: {', '.join(READERS)}")
    if parts and external:
        raise ValueError("--external and --split exclude each other")
    if out.exists() != append:
        raise ValueError(f"{out} does not exist" if append else f"{out} already exists; add to it by --append")
    found = READERS[reader](root)
    for problem in found.problems[:_NAMED]:
        typer.echo(f"left out: {problem}", err=True)
    if (more := len(found.problems) - _NAMED) > 0:
        typer.echo(f"left out: {more} more", err=True)
    added = list(found.pictures)
    if external or parts:
        added = [replace(p, split="external" if external or p.split == "external" else "") for p in added]
    pictures = (*(read_manifest(out) if append else ()), *added)
    if clusters:
        pictures = clustered(pictures)
    if parts:
        pictures = assign_splits(pictures, parts, seed)
    if mend:
        mended = held_out_together(pictures)
        moved = sum(one.split != other.split for one, other in zip(pictures, mended, strict=True))
        typer.echo(f"{moved} images moved to another split")
        pictures = mended
    write_manifest(pictures, out)
    typer.echo(f"{out}: {len(added)} images of {reader}, {len(pictures)} in all")
    refused(refusals_of(pictures))


@app.command()
def check(
    path: Manifest,
    classes: Annotated[list[str] | None, typer.Option("--class", help="A finding that needs an image.")] = None,
) -> None:
    """Say what stands against training on a collection; exits with 1 where anything does."""
    pictures = read_manifest(path)
    refused(refusals_of(pictures, classes or []))
    typer.echo(f"{path}: {len(pictures)} images, nothing stands against them")


@app.command()
def describe(path: Manifest, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Count images by source, finding, split, view, sex, age and licence."""
    found = described(read_manifest(path))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        Console().print(*tables(found))


def parts_of(texts: list[str]) -> dict[str, float]:
    """The share of each split, from NAME=SHARE.

    Raises
    ------
    ValueError
        Naming the text that is none, or a split that there is not.
    """
    parts: dict[str, float] = {}
    for text in texts:
        name, _, share = text.partition("=")
        if name not in SPLITS:
            raise ValueError(f"--split {text}: the split is none of {', '.join(SPLITS)}")
        try:
            parts[name] = float(share)
        except ValueError:
            raise ValueError(f"--split {text}: NAME=SHARE is needed, such as train=0.8") from None
    return parts


def refused(refusals: list[str]) -> None:
    """Print the refusals and exit with 1, where there are any."""
    for refusal in refusals:
        typer.echo(f"refused: {refusal}", err=True)
    if refusals:
        raise typer.Exit(1)
