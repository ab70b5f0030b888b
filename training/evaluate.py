"""What a bundle is worth: its shipped weights on images it never saw, source by source."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import roc_auc_score

from training.card import model_card
from training.datasets import read_index
from training.export import CALIBRATION_SOURCES, MEMBER, TARGET, load_shipped, read_out_of_fold
from training.metrics import RESAMPLES, auc, calibration_error, proportion
from training.models.calibration import Platt
from training.models.combine import combined_probability
from training.models.preprocess import Preprocess
from training.models.zhang import SCORE_NAMES
from training.scoring import score

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from training.datasets import Picture


def evaluate(data: Path, workdir: Path, folder: Path) -> dict[str, Any]:
    """`folder` holds `evaluation.json` and `MODEL_CARD.md`, and both are of the weights beside them.

    `val` is scored once, by the shipped weights; `external` gives sensitivity only; the out-of-fold figures are those
    of the networks that the calibration was fitted on.
    """
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    network = load_shipped(folder, manifest)
    transform = Preprocess.from_manifest(manifest["members"][0]["preprocessing"])
    out_of_fold = read_out_of_fold(workdir)
    result: dict[str, Any] = {
        "bundle": manifest["name"],
        "release": manifest["release"],
        "target": TARGET,
        "operating_points": manifest["targets"][0]["operating_points"],
        "method": {
            "auc": f"95 % percentile interval, {RESAMPLES} bootstrap draws of patients",
            "sensitivity, specificity": "95 % Clopper-Pearson interval over images",
        },
    }
    train, val, external = (read_index(data, split) for split in ("train", "val", "external"))
    external = tuple(picture for picture in external if picture.positive)  # a handful of others: no specificity
    result["out_of_fold"] = _figures(train, [out_of_fold[picture.image_id] for picture in train], manifest)
    result["val"] = _figures(val, score(network, transform, val), manifest)
    result["external"] = _figures(external, score(network, transform, external), manifest)
    (folder / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (folder / "MODEL_CARD.md").write_text(model_card(manifest, result, train), encoding="utf-8")
    return result


def _figures(
    pictures: Sequence[Picture], scores: Sequence[dict[str, float]], manifest: dict[str, Any]
) -> dict[str, Any]:
    """Figures by group: each source, the adult sources together, all together."""
    sources = sorted({picture.source for picture in pictures})
    groups = {source: [i for i, picture in enumerate(pictures) if picture.source == source] for source in sources}
    if len(sources) > 1:
        groups["adults"] = [i for i, picture in enumerate(pictures) if picture.source in CALIBRATION_SOURCES]
        groups["pooled"] = list(range(len(pictures)))
    return {
        name: _group([pictures[i] for i in chosen], [scores[i] for i in chosen], manifest)
        for name, chosen in groups.items()
    }


def _group(pictures: Sequence[Picture], scores: Sequence[dict[str, float]], manifest: dict[str, Any]) -> dict[str, Any]:
    calibration = manifest["members"][0]["calibration"][TARGET]
    platt = Platt(calibration["slope"], calibration["intercept"])
    weights = manifest["targets"][0]["weights"]
    probability = np.array(
        [combined_probability({MEMBER: platt.logit(found[calibration["output"]])}, weights) for found in scores]
    )
    positive = np.array([picture.positive for picture in pictures])
    patients = [picture.patient_id for picture in pictures]
    figures: dict[str, Any] = {
        "images": len(pictures),
        "patients": len(set(patients)),
        "positives": int(positive.sum()),
        "auc": auc(probability, positive, patients),
    }
    if figures["auc"] is not None:
        figures["auc_of_score"] = {
            name: float(roc_auc_score(positive, [found[name] for found in scores])) for name in SCORE_NAMES
        }
        figures["calibration"] = calibration_error(probability, positive)
    figures["at"] = {}
    for name, point in manifest["targets"][0]["operating_points"].items():
        flagged = probability >= point["threshold"]
        figures["at"][name] = {
            "sensitivity": proportion(int(flagged[positive].sum()), int(positive.sum())),
            "specificity": proportion(int((~flagged)[~positive].sum()), int((~positive).sum())),
        }
    return figures
