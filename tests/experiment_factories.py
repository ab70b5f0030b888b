"""Images of noise, and experiments that training would leave of them: random weights, scores that know a little."""

from __future__ import annotations

import csv
import hashlib
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from dicom_node.combination import sigmoid
from training.data.manifest import read_manifest
from training.models.classifier import class_scores
from training.models.registry import build
from training.records import plain, write_record, write_scores
from training.scoring import round_to_half

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from training.data.manifest import Picture
    from training.models.network import Network
    from training.recipe import Recipe


def write_collection(folder: Path, collection: Sequence[tuple[str, str, str, int]]) -> Path:
    """By source, finding and split, so many pictures of a patient each; the manifest lies beside them."""
    rng = np.random.default_rng(7)
    with (folder / "manifest.csv").open("w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["image_id", "path", "split", "source", "patient_id", "finding", "view"])
        for source, finding, split, images in collection:
            for number in range(images):
                name = f"{source}-{finding}-{split}-{number}"
                Image.fromarray(rng.integers(0, 255, (90, 80), dtype=np.uint8)).save(folder / f"{name}.png")
                writer.writerow([name, f"{name}.png", split, source, name, finding, "PA"])
    return folder


def network_of(recipe: Recipe, seed: int) -> Network:
    torch.manual_seed(seed)
    network = build(recipe.architecture, recipe.options)
    if recipe.paper == "jahan":
        network.set_density(torch.randn(40, 128), 0.5, torch.zeros(128), torch.ones(128), torch.randn(16, 128), 0.5)
    return network.eval()


def write_experiment(folder: Path, data: Path, recipe: Recipe, seed: int) -> Path:
    """Every fifth frontal picture of `train` and `val` is of the same fold."""
    network = network_of(recipe, seed)
    final = folder / "final"
    final.mkdir(parents=True)
    state = {name: t.half() if t.is_floating_point() else t for name, t in round_to_half(network).state_dict().items()}
    safetensors.torch.save_file({name: t.contiguous() for name, t in state.items()}, final / "weights.safetensors")
    rng = np.random.default_rng(seed)
    inside = [picture for picture in read_manifest(data) if picture.frontal and picture.split != "external"]
    write_scores(
        folder,
        [
            {"run": f"fold{index % 5}", "image_id": picture.image_id, "label": "", **_scores(network, picture, rng)}
            for index, picture in enumerate(inside)
        ],
    )
    runs = [{"name": f"fold{k}", "train": 1, "test": len(inside[k::5]), "seconds": 60} for k in range(5)]
    record = {
        "paper": recipe.paper,
        "variant": recipe.variant,
        "profile": recipe.profile,
        "protocol": "folds",
        "task": "covid19",
        "recipe": plain(recipe),
        "differences": ["Random weights."],
        "data": {"manifest_sha256": hashlib.sha256((data / "manifest.csv").read_bytes()).hexdigest(), "skipped": 0},
        "runs": [*runs, {"name": "final", "train": 65, "test": 9, "seconds": 60}],
        "seed": seed,
        "code": {"version": "0.1.0", "sha256": "0" * 64},
        "hardware": "2 CPU cores",
        "started": "2024-01-02T03:04:05+00:00",
        "seconds": 360,
    }
    write_record(folder, record)
    return folder


def _scores(network: Network, picture: Picture, rng: np.random.Generator) -> dict[str, float]:
    classes: tuple[str, ...] = getattr(network, "classes", ())
    if classes:
        logits = rng.normal(size=len(classes))
        if picture.finding in classes or "other" in classes:
            logits[classes.index(picture.finding if picture.finding in classes else "other")] += 1
        return {name: float(value[0]) for name, value in class_scores(torch.tensor(logits[None]), classes).items()}
    knows = "normal" if "reconstruction_error" in network.score_names else "covid19"
    right = float((picture.finding == "covid19") if knows == "covid19" else (picture.finding != "normal"))
    drawn = {name: rng.normal(right) for name in network.score_names}
    return {name: sigmoid(value) if name == "p_cls" else value for name, value in drawn.items()}
