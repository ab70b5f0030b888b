"""Finished experiments become a bundle, and what was written is held against images that it never saw."""

from __future__ import annotations

import csv
import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch

from dicom_node.combination import sigmoid
from dicom_node.evaluation.bootstrap import RESAMPLES
from dicom_node.evaluation.statistics import finite
from training.card import model_card
from training.data.manifest import manifest_sha256, read_manifest
from training.evaluation.baselines import NoLungForests
from training.evaluation.groups import THRESHOLDS
from training.evaluation.page import write_page
from training.evaluation.parts import nested, scored, what_members_are_worth
from training.evaluation.tasks import (
    BY_PNEUMONIA,
    CHILDREN,
    COVID19,
    LEAST_IMAGES,
    NORMAL,
    PNEUMONIA,
    covid19_tasks,
    pneumonia_tasks,
)
from training.experiment import FINAL, FOLDS
from training.gate import DESCRIPTION
from training.golden import write_golden
from training.models.gate import pooled_values
from training.models.network import digest_of
from training.papers import PAPERS
from training.records import SCORES, WEIGHTS, counts, read_record, read_scores, recipe_of
from training.scoring import load_network, transform_of
from training.shipped import score_shipped, write_shards
from training.targets import ABNORMAL, fit_targets, readings_of
from training.train import changes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dicom_node.evaluation.shape import Task
    from training.data.manifest import Picture
    from training.evaluation.tasks import Forests
    from training.recipe import Recipe
    from training.shipped import Scores
    from training.targets import Fitted

TARGET = COVID19
VAL, EXTERNAL = "val", "external"
MANIFEST = "manifest.json"
_USUAL = 0.05
_MAPS = (COVID19,)  # of a network that tells classes: the heatmap of what the bundle is asked for first
_METHOD = {
    "AUC": "95 % percentile interval over {resamples} bootstrap draws of patients (near duplicates together)",
    "sensitivity, specificity": "95 % Clopper-Pearson interval over images",
    "scores": "of the rounded weights that the bundle holds; out of fold, those of the fold networks",
    "calibration, weights, thresholds": "val and external: the bundle's; out of fold, a fold's come from the others",
}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Member:
    """A finished experiment.

    Attributes
    ----------
    out_of_fold, fold_of
        By image id, the scores by the network that never saw the image's patient, and that network's run.
    """

    name: str
    experiment: Path
    record: Mapping[str, Any]
    recipe: Recipe
    out_of_fold: Mapping[str, Mapping[str, float]]
    fold_of: Mapping[str, str]


def export(
    experiments: Sequence[Path],
    data: Path,
    out: Path,
    *,
    name: str,
    release: str,
    gate: Path | None = None,
    forests: Forests | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """`out` is a bundle of the experiments' final networks, with its scores, evaluation, page and model card.

    Calibration, weights, thresholds and reference distributions come from the out-of-fold scores of `train`
    (`training.targets` says of which). What is written was trained and fitted on nothing of `val` and `external`, which
    are scored once; the networks that gave the out-of-fold scores had the `val` images of other folds among their
    training images.

    Parameters
    ----------
    gate
        Folder that `training.gate.fit_gate` wrote; without it the bundle answers whatever image it is shown.
    forests, resamples
        The no-lung baselines and the bootstrap draws of the evaluation.

    Returns
    -------
    What `evaluation.json` holds.

    Raises
    ------
    ValueError
        In one line, where a name, an experiment or the images stand against it.
    """
    for text in (name, release):
        if not _PLAIN_NAME.fullmatch(text):
            raise ValueError(f"{text!r} cannot name a bundle or a release: letters, digits, '.', '_' and '-' can")
    if (out / MANIFEST).exists():
        raise ValueError(f"{out} holds a bundle already; give another --out")
    sha256 = manifest_sha256(data)
    members = [read_member(experiment, sha256) for experiment in experiments]
    if twice := [called for called, times in counts(member.name for member in members).items() if times > 1]:
        raise ValueError(f"two of the experiments are {twice[0]}; a bundle holds a network once")
    frontal = [picture for picture in read_manifest(data) if picture.frontal]
    train = [picture for picture in frontal if picture.split == "train"]
    held_back = [picture for picture in frontal if picture.split in (VAL, EXTERNAL)]
    known = [picture for picture in train if all(picture.image_id in member.out_of_fold for member in members)]
    fitted = fit_targets(readings(members), known, out_of_fold(members, known))
    manifest = make_manifest(members, train, known, fitted, name, release)
    out.mkdir(parents=True, exist_ok=True)
    for member, described in zip(members, manifest["members"], strict=True):
        state = load_network(member.experiment, FINAL).state_dict()
        described["weights"] = write_shards(state, out, f"{member.name}-{release}")
    told = None
    if gate is not None:
        manifest["gate"], told = _take_gate(gate, members, out, release)
    manifest["golden"] = write_golden(out, manifest, f"golden-{release}.json")
    shown, scores = score_shipped(out, manifest, held_back)
    _write_scores(out / SCORES, fitted, shown, scores)
    asked = [
        picture
        for picture in frontal
        if picture.split in ("train", VAL) and all(picture.image_id in member.out_of_fold for member in members)
    ]
    tasks, worth = _figures(members, asked, fitted, (shown, scores), forests or NoLungForests(), resamples)
    evaluation: dict[str, Any] = finite(
        {
            "bundle": name,
            "release": release,
            "target": TARGET,
            "operating_points": manifest["targets"][0]["operating_points"],
            "unreadable": len(held_back) - len(shown),
            "experiments": {},
            "combination": {"members": [m.name for m in members], "images": len(asked) + len(shown), "tasks": tasks},
            "members": worth,
            "gate": told,
            "targets": manifest["targets"],
            "method": {name: text.format(resamples=resamples) for name, text in _METHOD.items()},
            "manifest": {"sha256": sha256, "images": len(frontal), "patients": len({p.patient_id for p in frontal})},
        }
    )
    _write_json(out / "evaluation.json", evaluation)
    write_page(evaluation, out)
    (out / "MODEL_CARD.md").write_text(model_card(manifest, evaluation, train), encoding="utf-8")
    _write_json(out / MANIFEST, manifest)  # last: a folder without it is no bundle
    return evaluation


def read_member(experiment: Path, sha256: str) -> Member:
    """The experiment, once it has proved to be finished, of these images, and scored out of fold without a gap.

    Parameters
    ----------
    sha256
        Of the manifest that it must have been trained by.

    Raises
    ------
    ValueError
        Naming what is missing.
    """
    record = read_record(experiment)
    if record["protocol"] != "folds" or record["task"] != TARGET:
        raise ValueError(f"{experiment} has no out-of-fold scores of {TARGET}: train with --protocol folds")
    if record["data"]["manifest_sha256"] != sha256:
        raise ValueError(f"{experiment} was trained by another manifest than --data: which images are new is not known")
    if not (experiment / FINAL / WEIGHTS).is_file():
        raise ValueError(f"{experiment / FINAL / WEIGHTS} is missing: run the training to its end")
    tested = {run["name"]: run["test"] for run in record["runs"]}
    scores = read_scores(experiment) if (experiment / SCORES).is_file() else {}
    found: dict[str, dict[str, float]] = {}
    fold_of: dict[str, str] = {}
    for run in (f"fold{index}" for index in range(FOLDS)):
        have, expected = len(scores.get(run, {})), tested.get(run, 0)
        if have != expected or not have:
            raise ValueError(f"{experiment / SCORES} has the scores of {have} of the {expected} images of {run}")
        found |= scores[run]
        fold_of |= dict.fromkeys(scores[run], run)
    recipe = recipe_of(record)
    main = recipe.variant == PAPERS[recipe.paper].variants[0]
    called = recipe.paper if main else f"{recipe.paper}-{recipe.variant}"
    return Member(called, experiment, record, recipe, found, fold_of)


def make_manifest(
    members: Sequence[Member],
    train: Sequence[Picture],
    known: Sequence[Picture],
    fitted: Fitted,
    name: str,
    release: str,
) -> dict[str, Any]:
    """The manifest without files.

    Parameters
    ----------
    known
        Those of the images of `train` that every member scored out of fold.
    """
    targets = [target.model_dump(mode="json", exclude_defaults=True) for target in fitted.targets]
    adults = [picture for picture in known if picture.source not in CHILDREN]
    return {
        "name": name,
        "release": release,
        "title": "COVID-19, pneumonia and any abnormality on frontal chest X-rays, for research",
        "targets": targets,
        "members": [_described(member, fitted, known, release) for member in members],
        "training": {
            "command": "python -m training export RUN... --data DIR --out DIR",
            "data": {
                "manifest_sha256": members[0].record["data"]["manifest_sha256"],
                "images": counts(f"{picture.source}/{picture.finding}" for picture in train),
            },
            "calibration": {
                "on": f"out-of-fold scores of train, {FOLDS} folds grouped by patient and near duplicate",
                "left_out": list(CHILDREN),
                "not_scored": len(train) - len(known),
                "images": len(adults),
                "positives": sum(picture.finding == TARGET for picture in adults),
            },
            "members": {member.name: provenance(member) for member in members},
        },
    }


def _take_gate(
    folder: Path, members: Sequence[Member], out: Path, release: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The gate as the manifest has it, its file in the bundle, and all that was measured of it."""
    told = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    weights = folder / told["weights"]["file"]
    values = safetensors.torch.load_file(weights)["kinds.weight"].shape[1]
    member = next((one for one in members if _values_of(one, told["blocks_sha256"]) == values), None)
    if member is None:
        raise ValueError(f"{folder}: the gate reads levels of blocks that none of the experiments has")
    file = f"gate-{release}.safetensors"
    (out / file).write_bytes(weights.read_bytes())
    described = {name: told[name] for name in ("kinds", "threshold", "distance", "measured")}
    return {"reads": member.name, "weights": {**told["weights"], "file": file}, **described}, told


@torch.no_grad()
def _values_of(member: Member, blocks_sha256: str) -> int:
    """How many values a gate reads of the member's levels; 0 where its blocks are others.

    Members with the same blocks may read other levels of them.
    """
    network, side = load_network(member.experiment, FINAL), transform_of(member.recipe).crop
    if network.blocks is None or digest_of(network.blocks.stages) != blocks_sha256:
        return 0
    return pooled_values(network.lung_maps(torch.zeros(1, 3, side, side))).shape[1]


def readings(members: Sequence[Member]) -> dict[str, dict[str, dict[str, str]]]:
    """Which of each member's outputs answers which question."""
    found = {}
    for member in members:
        own = readings_of(member.recipe, tuple(next(iter(member.out_of_fold.values()))))
        found[member.name] = {name: own[name] for name in own}
    return found


def out_of_fold(members: Sequence[Member], pictures: Sequence[Picture]) -> list[Scores]:
    """The pictures' scores by the networks that never saw their patients."""
    return [{member.name: member.out_of_fold[picture.image_id] for member in members} for picture in pictures]


def anomaly_limits(member: Member, known: Sequence[Picture]) -> dict[str, dict[str, float]]:
    """Where an anomaly begins: beyond nineteen of twenty normal images, out of fold, as many of each collection.

    A density is an anomaly below its limit, an error above it (Jahan 2022); the paper gives no limits.
    """
    by_source: dict[str, list[Picture]] = {}
    for picture in known:
        if picture.finding == NORMAL:
            by_source.setdefault(picture.source, []).append(picture)
    shown = {source: found for source, found in by_source.items() if len(found) >= LEAST_IMAGES}
    if not shown:
        return {}
    least = min(map(len, shown.values()))
    normal = [picture for _, found in sorted(shown.items()) for picture in found[:least]]
    limits = {}
    for name in next(iter(member.out_of_fold.values())):
        values = [member.out_of_fold[picture.image_id][name] for picture in normal]
        kind, share = ("below", _USUAL) if "density" in name else ("above", 1 - _USUAL)
        limits[name] = {kind: float(np.quantile(values, share))}
    return limits


def _described(member: Member, fitted: Fitted, known: Sequence[Picture], release: str) -> dict[str, Any]:
    recipe = member.recipe
    calibration = fitted.calibrations[member.name]
    return {
        "name": member.name,
        "title": f"{PAPERS[recipe.paper].title.partition(':')[0]}: {recipe.variant}",
        "version": release,
        "architecture": recipe.architecture,
        "options": dict(recipe.options),
        "citation": PAPERS[recipe.paper].citation,
        "preprocessing": transform_of(recipe).to_manifest(),
        "calibration": {name: one.model_dump(exclude_defaults=True) for name, one in calibration.items()},
        # A method's own anomaly score is one of many; without a network that tells classes there is no answer.
        "required": not recipe.train_on,
        **({"anomalous": anomaly_limits(member, known)} if recipe.train_on else {}),
        **({"maps": list(_MAPS)} if "p_normal" in next(iter(member.out_of_fold.values())) else {}),
    }


def provenance(member: Member) -> dict[str, Any]:
    """The experiment's own record, and the command that made it."""
    record = member.record
    command = (
        f"python -m training train {record['paper']} --variant {record['variant']} --profile {record['profile']} "
        f"--protocol folds --task {record['task']} --seed {record['seed']} --data DIR --workdir DIR"
    )
    settings = (
        shlex.quote(f"{name}={own if isinstance(own, str) else json.dumps(own)}")
        for name, (own, _) in changes(member.recipe, record["task"]).items()
    )
    return {"command": " --set ".join([command, *settings]), **record}


def _figures(
    members: Sequence[Member],
    asked: Sequence[Picture],
    fitted: Fitted,
    held_back: tuple[Sequence[Picture], Sequence[Scores]],
    forests: Forests,
    resamples: int,
) -> tuple[dict[str, Task], list[dict[str, Any]]]:
    """What the bundle answers to the questions of `training.evaluation.tasks`, and what each member is worth.

    Out of fold, everything that is fitted comes from split `train` of the other folds; `val` and `external` are also
    shown to what is shipped.
    """
    scores, told = out_of_fold(members, asked), readings(members)
    runs = np.array([members[0].fold_of[picture.image_id] for picture in asked], dtype=np.str_)
    honest = nested(told, asked, scores, runs)
    shown, found = held_back
    final = fitted.answers(found)
    runs_of_final = np.array([FINAL] * len(shown), dtype=np.str_)
    tasks = covid19_tasks(
        scored(asked, honest, TARGET, runs),
        scored(shown, final, TARGET, runs_of_final) if shown else None,
        forests,
        resamples,
        shipped=_thresholds(fitted, TARGET),
    )
    val = [i for i, picture in enumerate(shown) if picture.split == VAL]
    for question, prefix in ((ABNORMAL, ""), (PNEUMONIA, BY_PNEUMONIA)):
        if all(question in answer for answer in honest):
            out = pneumonia_tasks(scored(asked, honest, question, runs), forests, resamples)
            on_val = scored([shown[i] for i in val], [final[i] for i in val], question, runs_of_final[val])
            held = pneumonia_tasks(on_val, None, resamples, _thresholds(fitted, question)) if val else {}
            tasks |= {f"{prefix}{name}": task for name, task in out.items()}
            tasks |= {f"val, {prefix}{name}": task for name, task in held.items()}
    return tasks, what_members_are_worth(told, asked, scores, runs, resamples)


def _thresholds(fitted: Fitted, question: str) -> dict[str, float]:
    """The shipped thresholds of a question, by the names of the evaluation."""
    (target,) = (target for target in fitted.targets if target.name == question)
    return {name: target.operating_points[point].threshold for name, (point, _) in THRESHOLDS.items()}


def _write_scores(file: Path, fitted: Fitted, pictures: Sequence[Picture], scores: Sequence[Scores]) -> None:
    """One row for each image of `val` and `external`: what the bundle says of it, to be checked against service."""
    rows = [
        {"image_id": picture.image_id, "split": picture.split, "source": picture.source, "finding": picture.finding}
        | {name: sigmoid(answer.logit) for name, answer in answers.items()}
        | {f"{member}.{name}": value for member, named in found.items() for name, value in named.items()}
        for picture, answers, found in zip(pictures, fitted.answers(scores), scores, strict=True)
    ]
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, list(rows[0]) if rows else ["image_id"])
        writer.writeheader()
        writer.writerows(rows)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
