"""Finished experiments become a bundle, and what was written is held against images that it never saw."""

from __future__ import annotations

import csv
import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import logit

from training.card import model_card
from training.data.manifest import manifest_sha256, read_manifest
from training.data.splits import groups_of
from training.evaluation.baselines import NoLungForests
from training.evaluation.bootstrap import RESAMPLES
from training.evaluation.groups import LEAST_SENSITIVITY
from training.evaluation.page import write_page
from training.evaluation.statistics import auc, finite, operating_points
from training.evaluation.tasks import CHILDREN, COVID19, Scored, covid19_tasks
from training.experiment import FINAL, FOLDS
from training.models.calibration import Platt, fit_platt
from training.papers import PAPERS
from training.records import SCORES, WEIGHTS, counts, read_record, read_scores, recipe_of
from training.scoring import load_network, transform_of
from training.shipped import logits_of, probabilities_of, score_shipped, write_shards
from training.train import changes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.manifest import Picture
    from training.evaluation.shape import Task
    from training.evaluation.tasks import Forests
    from training.recipe import Recipe
    from training.shipped import Scores

TARGET = COVID19
VAL, EXTERNAL = "val", "external"
MANIFEST = "manifest.json"
_QUANTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)  # per cent
_BINS = 20
_EPSILON = 1e-12
_METHOD = {
    "AUC": "95 % percentile interval over {resamples} bootstrap draws of patients (near duplicates together)",
    "sensitivity, specificity": "95 % Clopper-Pearson interval over images",
    "scores": "of the rounded weights that the bundle holds; out of fold, those of the fold networks",
    "calibration": "of val and external only: it was fitted on the out-of-fold scores",
    "thresholds": "val and external: the bundle's own; out of fold, a fold's come from the other folds",
}
_HELD_BACK = (VAL, EXTERNAL)  # how the names of their tasks begin
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

    @property
    def output(self) -> str:
        """The score that is calibrated; which way it goes, the calibration's slope says."""
        return self.recipe.score.removeprefix("-")


def export(
    experiments: Sequence[Path],
    data: Path,
    out: Path,
    *,
    name: str,
    release: str,
    forests: Forests | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """`out` is a bundle of the experiments' final networks, with its scores, evaluation, page and model card.

    Calibration, thresholds and reference distribution come from the out-of-fold scores of `train` without the
    collections of children: a child is told from an adult at a glance, so thresholds fitted on them too would be those
    of another task than the adult images that a node receives. What is written was trained and
    fitted on nothing of `val` and `external`, which are scored once; the networks that gave the out-of-fold scores had
    the `val` images of other folds among their training images.

    Parameters
    ----------
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
    manifest = make_manifest(members, train, known, name, release)
    out.mkdir(parents=True, exist_ok=True)
    for member, described in zip(members, manifest["members"], strict=True):
        state = load_network(member.experiment, FINAL).state_dict()
        described["weights"] = write_shards(state, out, f"{member.name}-{release}")
    shown, scores = score_shipped(out, manifest, held_back)
    _write_scores(out / SCORES, manifest, shown, scores)
    tasks, alone = _figures(members, manifest, known, (shown, scores), forests or NoLungForests(), resamples)
    evaluation: dict[str, Any] = finite(
        {
            "bundle": name,
            "release": release,
            "target": TARGET,
            "operating_points": manifest["targets"][0]["operating_points"],
            "unreadable": len(held_back) - len(shown),
            "experiments": {},
            "combination": {"members": [m.name for m in members], "images": len(known) + len(shown), "tasks": tasks},
            "members": alone,
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
    members: Sequence[Member], train: Sequence[Picture], known: Sequence[Picture], name: str, release: str
) -> dict[str, Any]:
    """The manifest without the files of the weights.

    Parameters
    ----------
    known
        Those of the images of `train` that every member scored out of fold.
    """
    fitted = [picture for picture in known if picture.source not in CHILDREN]
    positive = np.array([picture.finding == TARGET for picture in fitted], dtype=bool)
    if not positive.any() or positive.all():
        raise ValueError(f"calibration needs images with and without {TARGET} that every experiment scored out of fold")
    target: dict[str, Any] = {
        "name": TARGET,
        "title": "COVID-19 suspected",
        "code": {"value": "840539006", "scheme": "SCT", "meaning": "COVID-19"},
        "weights": {member.name: 1.0 / len(members) for member in members},
        "operating_point": "balanced",
    }
    manifest: dict[str, Any] = {
        "name": name,
        "release": release,
        "title": "COVID-19 against all else on frontal chest X-rays, for research",
        "targets": [target],
        "members": [_described(member, fitted, positive, release) for member in members],
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
                "images": len(fitted),
                "positives": int(positive.sum()),
            },
            "combination": "sigmoid of the mean of the members' logits, with equal weights; each fitted, then the mean",
            "members": {member.name: provenance(member) for member in members},
        },
    }
    scores = [{member.name: member.out_of_fold[picture.image_id] for member in members} for picture in fitted]
    probability = probabilities_of(manifest, scores)
    if len(members) > 1:
        columns, weights = logits_of(manifest, scores), target["weights"]
        mean = np.average([columns[name] for name in weights], axis=0, weights=list(weights.values()))
        _calibrate_mean(manifest, fit_platt(mean, positive))
        probability = probabilities_of(manifest, scores)
    target["operating_points"] = operating_points(probability, positive, LEAST_SENSITIVITY)
    target["reference"] = {
        "positive": distribution(probability[positive]),
        "negative": distribution(probability[~positive]),
    }
    return manifest


def _calibrate_mean(manifest: dict[str, Any], platt: Platt) -> None:
    """Let the mean of the members' logits be the calibrated one: the mean of calibrated logits is not, by itself."""
    for member in manifest["members"]:
        scaling = member["calibration"][TARGET]
        scaling["intercept"] = platt.slope * scaling["intercept"] + platt.intercept
        scaling["slope"] *= platt.slope


def _described(member: Member, fitted: Sequence[Picture], positive: NDArray[np.bool_], release: str) -> dict[str, Any]:
    recipe = member.recipe
    outputs = np.array([member.out_of_fold[picture.image_id][member.output] for picture in fitted])
    platt: Platt = fit_platt(outputs, positive)
    return {
        "name": member.name,
        "title": f"{PAPERS[recipe.paper].title.partition(':')[0]}: {recipe.variant}",
        "version": release,
        "architecture": recipe.architecture,
        "options": dict(recipe.options),
        "citation": PAPERS[recipe.paper].citation,
        "preprocessing": transform_of(recipe).to_manifest(),
        "calibration": {TARGET: {"output": member.output, "slope": platt.slope, "intercept": platt.intercept}},
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


def distribution(probability: NDArray[np.float64]) -> dict[str, Any]:
    """How probabilities are spread: how many they are, their quantiles, and a histogram of 0 to 1."""
    quantiles = np.percentile(probability, _QUANTILES)
    return {
        "images": len(probability),
        "quantiles": {str(per_cent): float(at) for per_cent, at in zip(_QUANTILES, quantiles, strict=True)},
        "histogram": np.histogram(probability, bins=_BINS, range=(0.0, 1.0))[0].tolist(),
    }


def _figures(
    members: Sequence[Member],
    manifest: Mapping[str, Any],
    known: Sequence[Picture],
    held_back: tuple[Sequence[Picture], Sequence[Scores]],
    forests: Forests,
    resamples: int,
) -> tuple[dict[str, Task], dict[str, Any]]:
    """What the bundle answers to the questions of `training.evaluation.tasks`, and each member's AUC alone."""
    out_of_fold = [{member.name: member.out_of_fold[picture.image_id] for member in members} for picture in known]
    folds = [members[0].fold_of[picture.image_id] for picture in known]
    asked = _scored(manifest, known, out_of_fold, folds)
    final = _scored(manifest, *held_back, [FINAL] * len(held_back[0])) if held_back[0] else None
    val = [(picture, found) for picture, found in zip(*held_back, strict=True) if picture.split == VAL]
    alone = {
        "out of fold": _alone(manifest, known, out_of_fold, resamples),
        VAL: _alone(manifest, [picture for picture, _ in val], [found for _, found in val], resamples),
    }
    tasks = covid19_tasks(asked, final, forests, resamples)
    for name, task in tasks.items():
        if not name.startswith(_HELD_BACK):
            task["calibration"] = None  # it was fitted on these very images
    return tasks, alone


def _scored(
    manifest: Mapping[str, Any], pictures: Sequence[Picture], scores: Sequence[Scores], runs: Sequence[str]
) -> Scored:
    """The images with the bundle's probability of each."""
    probability = probabilities_of(manifest, scores)
    logits = logit(probability.clip(_EPSILON, 1 - _EPSILON))
    return Scored(tuple(pictures), "probability", probability, logits, np.array(runs, dtype=np.str_), calibrated=True)


def _alone(
    manifest: Mapping[str, Any], pictures: Sequence[Picture], scores: Sequence[Scores], resamples: int
) -> dict[str, dict[str, Any]]:
    """AUC of each member alone, within each source and pooled, where both classes are."""
    source = np.array([picture.source for picture in pictures])
    positive = np.array([picture.finding == TARGET for picture in pictures], dtype=bool)
    drawn = groups_of(pictures).astype(str)
    groups = {name: source == name for name in np.unique(source).tolist()}
    groups |= {"adults": ~np.isin(source, CHILDREN), "pooled": np.ones(len(source), dtype=bool)}
    found: dict[str, dict[str, Any]] = {}
    for member, logits in logits_of(manifest, scores).items():
        areas = {
            name: auc(np.array(logits)[chosen], positive[chosen], drawn[chosen].tolist(), resamples)
            for name, chosen in groups.items()
        }
        found[member] = {name: area for name, area in areas.items() if area is not None}
    return found


def _write_scores(
    file: Path, manifest: Mapping[str, Any], pictures: Sequence[Picture], scores: Sequence[Scores]
) -> None:
    """One row for each image of `val` and `external`: what the bundle says of it, to be checked against service."""
    rows = [
        {"image_id": picture.image_id, "split": picture.split, "source": picture.source, "finding": picture.finding}
        | {"probability": probability}
        | {f"{member}.{name}": value for member, named in found.items() for name, value in named.items()}
        for picture, probability, found in zip(pictures, probabilities_of(manifest, scores), scores, strict=True)
    ]
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, list(rows[0]) if rows else ["image_id"])
        writer.writeheader()
        writer.writerows(rows)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
