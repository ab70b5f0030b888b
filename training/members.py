"""Trained members as files for a bundle: rounded weights, calibration of each question, scores out of fold."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

from training.data.manifest import manifest_sha256, read_manifest
from training.evaluation.rows import rows_of
from training.evaluation.tasks import CHILDREN, COVID19, NORMAL, PNEUMONIA, both_answers, scored
from training.experiment import FINAL
from training.export import provenance, read_member
from training.models.calibration import fit_platt
from training.papers import PAPERS
from training.records import read_labels, read_scores
from training.scoring import load_network, transform_of
from training.shipped import write_shards

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from training.data.manifest import Picture
    from training.export import Member

MEMBERS = "members.json"
# By the name of a calibration: what is asked, against what.
QUESTIONS = {"covid19": (COVID19, ""), "covid19 given pneumonia": (COVID19, PNEUMONIA), "abnormal": (PNEUMONIA, NORMAL)}
_ON = {
    "covid19": f"adults of split train (without {', '.join(CHILDREN)})",
    "covid19 given pneumonia": "images of these two in collections that hold both, split train",
    "abnormal": "pneumonia against normal in collections that hold both, split train",
}


def keep_members(experiments: Sequence[Path], data: Path, out: Path, release: str) -> None:
    """Write into `out` the final weights of `folds` experiments, their scores out of fold, and `members.json`.

    Raises
    ------
    ValueError
        Where an experiment is not finished, or was trained by another manifest.
    """
    sha256, pictures = manifest_sha256(data), read_manifest(data)
    out.mkdir(parents=True, exist_ok=True)
    described = []
    for experiment in experiments:
        member = read_member(experiment, sha256)
        stem = f"{member.name}-{release}"
        scores = f"{stem}-out-of-fold.csv"
        _write_scores(out / scores, member)
        described.append(
            {
                "name": member.name,
                "version": release,
                "citation": PAPERS[member.recipe.paper].citation,
                "architecture": member.recipe.architecture,
                "options": dict(member.recipe.options),
                "preprocessing": transform_of(member.recipe).to_manifest(),
                "weights": write_shards(load_network(experiment, FINAL).state_dict(), out, stem),
                "out_of_fold": scores,
                "calibration": _calibrations(member, pictures),
                "training": provenance(member),
            }
        )
    file = out / MEMBERS
    file.write_text(json.dumps({"release": release, "members": described}, indent=1) + "\n", encoding="utf-8")


def _calibrations(member: Member, pictures: Sequence[Picture]) -> dict[str, Any]:
    """By question, the score that answers it and Platt's slope and intercept of its log-odds."""
    rows = rows_of(member.record, read_scores(member.experiment), read_labels(member.experiment), pictures)
    by_id = {picture.image_id: picture for picture in pictures}
    found: dict[str, Any] = {}
    for name, (positive, negative) in QUESTIONS.items():
        asked = scored(rows.chosen(rows.runs != FINAL), member.recipe, COVID19, by_id, positive, negative)
        if asked is None:
            continue
        asked = both_answers(asked, positive, negative) if negative else asked
        fitted = asked.those(lambda picture: picture.split == "train")
        if not negative:
            fitted = fitted.those(lambda picture: picture.source not in CHILDREN)
        truth = fitted.finding(positive)
        platt = fit_platt(fitted.outputs, truth)
        found[name] = {
            "score": asked.name,
            "slope": platt.slope,
            "intercept": platt.intercept,
            "on": _ON[name],
            "images": len(fitted),
            "positives": int(truth.sum()),
        }
    return found


def _write_scores(file: Path, member: Member) -> None:
    """One row for each image: its fold, and every score but log-odds that a probability gives already."""
    first = next(iter(member.out_of_fold.values()))
    names = [name for name in first if name.replace("logit_", "p_", 1) not in first or not name.startswith("logit_")]
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image_id", "run", *names])
        for image_id, scores in member.out_of_fold.items():
            writer.writerow([image_id, member.fold_of[image_id], *(f"{scores[name]:.7g}" for name in names)])
