"""A trained network becomes a bundle: weights in half precision and the manifest that says what they are."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch

from training.datasets import read_index
from training.metrics import operating_points
from training.models.calibration import fit_platt
from training.models.combine import combined_probability
from training.models.preprocess import Preprocess
from training.models.zhang import SCORE_NAMES, Zhang2020
from training.papers.zhang2020 import CITATION, DIFFERENCES, PAPER, Recipe
from training.train import FINAL, OUT_OF_FOLD

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from training.datasets import Picture

TARGET = "covid19"
MEMBER = "zhang"
OUTPUT = "p_avg"
# Children's images are 75 % of the collection and told apart at a glance: thresholds fitted on them too would be
# those of another task than the adult images that the node receives.
CALIBRATION_SOURCES = ("cohen", "hannover", "nih")
LEAST_SENSITIVITY = 0.95
LARGEST_SHARD_BYTES = 20_000_000


def export(data: Path, workdir: Path, folder: Path, *, name: str, release: str, recipe: Recipe) -> None:
    """`folder` holds the weights of `workdir` as safetensors, and their manifest.

    Calibration and operating points come from the out-of-fold scores of `train`, never from `val` or `external`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = torch.load(workdir / FINAL, weights_only=True)
    if state["epochs"] != recipe.epochs:
        raise ValueError(f"{workdir / FINAL} has {state['epochs']} of {recipe.epochs} epochs; finish the training")
    pictures = read_index(data, "train")
    scores = read_out_of_fold(workdir)
    fitted = [picture for picture in pictures if picture.source in CALIBRATION_SOURCES]
    outputs = np.array([scores[picture.image_id][OUTPUT] for picture in fitted])
    positive = np.array([picture.positive for picture in fitted])
    platt = fit_platt(outputs, positive)
    probability = np.array([combined_probability({MEMBER: platt.logit(x)}, {MEMBER: 1.0}) for x in outputs.tolist()])
    manifest = {
        "name": name,
        "release": release,
        "title": "Starter bundle: COVID-19 against all else on frontal chest X-rays, for research",
        "targets": [
            {
                "name": TARGET,
                "title": "COVID-19 suspected",
                "code": {"value": "840539006", "scheme": "SCT", "meaning": "COVID-19"},
                "weights": {MEMBER: 1.0},
                "operating_point": "balanced",
                "operating_points": operating_points(probability, positive, LEAST_SENSITIVITY),
            }
        ],
        "members": [
            {
                "name": MEMBER,
                "title": "Zhang 2020: ResNet-18 with a classification and an anomaly head",
                "version": release,
                "architecture": Zhang2020.__name__,
                "citation": CITATION,
                "weights": write_shards(state["network"], folder, f"{MEMBER}-{release}"),
                "preprocessing": Preprocess(recipe.resize, recipe.crop).to_manifest(),
                "calibration": {TARGET: {"output": OUTPUT, "slope": platt.slope, "intercept": platt.intercept}},
            }
        ],
        "training": {
            "command": "python -m training train zhang --data DIR --workdir DIR",
            "recipe": asdict(recipe),
            "differences_from_the_paper": list(DIFFERENCES),
            "paper": PAPER,
            "index_sha256": hashlib.sha256((data / "index.csv").read_bytes()).hexdigest(),
            "images": _counts(pictures),
            "calibration": {
                "on": f"out-of-fold scores of train, {recipe.folds} folds grouped by patient",
                "sources": list(CALIBRATION_SOURCES),
                "images": len(fitted),
                "positives": int(positive.sum()),
            },
            "hardware": f"{os.cpu_count()} CPU cores, forward pass in bfloat16",
            "seconds_of_the_final_training": round(state["seconds"]),
            "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]},
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read_out_of_fold(workdir: Path) -> dict[str, dict[str, float]]:
    """By image id, the scores of the network that never saw the image's patient."""
    with (workdir / OUT_OF_FOLD).open(newline="", encoding="utf-8") as file:
        return {row["image_id"]: {name: float(row[name]) for name in SCORE_NAMES} for row in csv.DictReader(file)}


def write_shards(state: dict[str, torch.Tensor], folder: Path, stem: str) -> list[dict[str, str]]:
    """The tensors in float16 as files of at most `LARGEST_SHARD_BYTES`; their names and SHA-256, in order."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        half = tensor.half().contiguous() if tensor.is_floating_point() else tensor.contiguous()
        if not half.isfinite().all():
            raise ValueError(f"{name} does not fit into half precision")
        size += half.nbytes
        if size > LARGEST_SHARD_BYTES - 100_000:  # room for the file's own header
            shards.append({})
            size = half.nbytes
        shards[-1][name] = half
    written = []
    for index, shard in enumerate(shards, 1):
        data = safetensors.torch.save(shard)
        path = folder / f"{stem}-{index}-of-{len(shards)}.safetensors"
        path.write_bytes(data)
        written.append({"file": path.name, "sha256": hashlib.sha256(data).hexdigest()})
    return written


def load_shipped(folder: Path, manifest: dict[str, Any]) -> Zhang2020:
    """The network as it is shipped, rounded weights and all, for its own evaluation."""
    network = Zhang2020()
    tensors: dict[str, torch.Tensor] = {}
    for part in manifest["members"][0]["weights"]:
        tensors |= safetensors.torch.load_file(folder / part["file"])
    network.load_state_dict(tensors)
    return network.eval()


def _counts(pictures: Sequence[Picture]) -> dict[str, int]:
    return dict(sorted(Counter(f"{picture.source}/{picture.finding}" for picture in pictures).items()))
