"""What a training leaves behind: `record.json`, `scores.csv` and the weights of each run."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from training.recipe import Augmentation, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

RECORD = "record.json"
SCORES = "scores.csv"
WEIGHTS = "weights.safetensors"


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record beside and then over the old one, so that a crash leaves one whole."""
    unfinished = folder / (RECORD + ".part")
    unfinished.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(folder / RECORD)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of an experiment.

    Raises
    ------
    ValueError
        Where the folder holds none.
    """
    file = folder / RECORD
    if not file.is_file():
        raise ValueError(f"{folder} holds no finished training: {RECORD} is missing; run the training to its end")
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


def recipe_of(record: Mapping[str, Any]) -> Recipe:
    """The recipe that a record keeps."""
    return _recipe(record["recipe"])


def _recipe(kept: Mapping[str, Any]) -> Recipe:
    given = dict(kept)
    ranges: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given["augmentation"].items()}
    given["augmentation"] = Augmentation(**ranges)
    for name in ("classes", "train_on", "trainable"):
        given[name] = tuple(given[name])
    given["pretraining"] = _recipe(given["pretraining"]) if given["pretraining"] else None
    return Recipe(**given)


def plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values."""
    return asdict(recipe)


def write_scores(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One row for each run and tested image: `run`, `image_id`, `label` (name of the class, or empty), the scores."""
    unfinished = folder / (SCORES + ".part")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(folder / SCORES)


def read_scores(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """By run and image id, the scores by name."""
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    with (folder / SCORES).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = {name: float(text) for name, text in row.items() if name not in ("run", "image_id", "label")}
            found[row["run"]][row["image_id"]] = values
    return dict(found)


def read_labels(folder: Path) -> dict[str, dict[str, str]]:
    """By run and image id, the class that the experiment gave the image; empty where it has none."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    with (folder / SCORES).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["run"]][row["image_id"]] = row["label"]
    return dict(found)


def counts(items: Iterable[str]) -> dict[str, int]:
    """How often each comes, in order of the names."""
    found: dict[str, int] = {}
    for item in items:
        found[item] = found.get(item, 0) + 1
    return dict(sorted(found.items()))
