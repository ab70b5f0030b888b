"""Zhang's network trained by its recipe: once per fold for out-of-fold scores, then on all of `train`."""

from __future__ import annotations

import csv
import logging
import math
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.progress import track

from training.augment import augment
from training.datasets import fold_of, load_squares, read_index
from training.models.preprocess import Preprocess
from training.models.zhang import SCORE_NAMES, Zhang2020, classification_loss, deviation_loss
from training.scoring import round_to_half, score

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from training.datasets import Picture
    from training.papers.zhang2020 import Recipe

log = logging.getLogger(__name__)


OUT_OF_FOLD = "out_of_fold.csv"
FINAL = "final.pt"


def fit(data: Path, workdir: Path, recipe: Recipe) -> None:
    """`workdir` holds the network trained on all of `train`, and the scores of each image by one that never saw it.

    Whatever an earlier run left there is kept: it costs a crash the epoch in which it happened.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    pictures = read_index(data, "train")
    squares = load_squares(pictures, recipe.resize)
    folds = fold_of(pictures, recipe.folds, recipe.seed)
    rows = []
    for fold in range(recipe.folds):
        kept, held_back = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        training = [pictures[i] for i in kept]
        checkpoint = workdir / f"fold{fold}.pt"
        network = round_to_half(train_network(training, squares[kept], recipe, checkpoint, recipe.seed + fold))
        tested = [pictures[i] for i in held_back]
        scores = score(network, Preprocess(recipe.resize, recipe.crop), tested)
        rows += [{"image_id": p.image_id, "fold": fold, **s} for p, s in zip(tested, scores, strict=True)]
        log.info("fold %d: %d held-back images scored", fold, len(tested))
    with (workdir / OUT_OF_FOLD).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["image_id", "fold", *SCORE_NAMES])
        writer.writeheader()
        writer.writerows(rows)
    train_network(pictures, squares, recipe, workdir / FINAL, recipe.seed + recipe.folds)


def step(network: Zhang2020, optimiser: torch.optim.Optimizer, inputs: Tensor, y: Tensor) -> float:
    """One update by the sum of both losses; returns that sum."""
    network.train()
    optimiser.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, _ = network(inputs.contiguous(memory_format=torch.channels_last))
    loss = classification_loss(scores.classification.float(), y) + deviation_loss(scores.anomaly.float(), y)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return float(loss.detach())


def train_network(
    pictures: Sequence[Picture], squares: Tensor, recipe: Recipe, checkpoint: Path, seed: int
) -> Zhang2020:
    """A network trained for `recipe.epochs`; picks up from `checkpoint`, which holds the last finished epoch.

    Parameters
    ----------
    squares
        uint8, shape (N, resize, resize), one for each picture.
    """
    torch.manual_seed(seed)
    network = Zhang2020().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=recipe.weight_decay)
    done, seconds = 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        done, seconds = state["epochs"], state["seconds"]
    labels = torch.tensor([float(picture.positive) for picture in pictures])
    steps = recipe.images_per_epoch // recipe.batch
    for epoch in range(done, recipe.epochs):
        started = time.monotonic()
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        order = draw_epoch(pictures, recipe, np.random.default_rng((seed, epoch)))
        losses = []
        for index in track(range(steps), f"{checkpoint.stem}, epoch {epoch + 1}", transient=True):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(epoch + index / steps, recipe)
            chosen = order[index * recipe.batch : (index + 1) * recipe.batch]
            inputs = augment(squares[chosen], recipe, generator)
            losses.append(step(network, optimiser, inputs, labels[chosen]))
        seconds += time.monotonic() - started
        _save(checkpoint, network, optimiser, epoch + 1, seconds)
        log.info(
            "%s: epoch %d of %d, loss %.3f, %.0f s so far",
            checkpoint.stem,
            epoch + 1,
            recipe.epochs,
            sum(losses) / len(losses),
            seconds,
        )
    return network.eval()


def learning_rate(epoch: float, recipe: Recipe) -> float:
    """The learning rate at a (broken) epoch: linear warm-up, then a cosine to zero."""
    if epoch < recipe.warmup_epochs:
        return recipe.learning_rate * (epoch + 0.01) / recipe.warmup_epochs
    part = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * part))


def draw_epoch(pictures: Sequence[Picture], recipe: Recipe, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of an epoch's images in random order, drawn by the recipe's share of each stratum.

    A stratum smaller than its share is gone through again: its images come up equally often, give or take one.
    """
    strata = np.array([picture.stratum for picture in pictures])
    drawn = []
    for stratum, share in recipe.shares.items():
        members = np.flatnonzero(strata == stratum)
        wanted = math.ceil(share * recipe.images_per_epoch)
        rounds = [rng.permutation(members) for _ in range(math.ceil(wanted / len(members)))]
        drawn.append(np.concatenate(rounds)[:wanted])
    return rng.permutation(np.concatenate(drawn))[: recipe.images_per_epoch]


def _save(checkpoint: Path, network: Zhang2020, optimiser: torch.optim.Optimizer, epochs: int, seconds: float) -> None:
    """Write the checkpoint beside and then over the old one, so that a crash leaves one whole."""
    unfinished = checkpoint.with_suffix(".part")
    state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "epochs": epochs, "seconds": seconds}
    torch.save(state, unfinished)
    unfinished.replace(checkpoint)
