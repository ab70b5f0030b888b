"""How long each training takes on this machine: a few steps of its recipe are measured, and all of them counted."""

from __future__ import annotations

import logging
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from training.evaluation.wording import duration
from training.experiment import plan, pretraining_set, validation_part
from training.fit import (
    OPTIMISERS,
    Images,
    Training,
    expanded,
    frozen_features,
    keep_frozen_statistics,
    precision,
    torch_device,
)
from training.models.registry import build
from training.papers import PAPERS
from training.papers.assembly import REPRODUCING
from training.train import hardware

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from training.data.manifest import Picture
    from training.papers.paper import DataSet
    from training.recipe import Recipe

log = logging.getLogger(__name__)


def timings(pictures: Sequence[Picture], device: str = "auto", steps: int = 2) -> dict[str, Any]:
    """Seconds that every variant of every paper trains by its own protocol, its first stage included.

    Parameters
    ----------
    pictures
        What there is to train on; their pixels are not read.
    steps
        How many steps of a recipe are measured, after one that is not.

    Returns
    -------
    ``hardware``, and ``seconds`` by paper, variant and profile.
    """
    seconds: dict[str, dict[str, dict[str, float]]] = {}
    for name, paper in PAPERS.items():
        seconds[name] = {variant: {} for variant in paper.variants}
        for variant in paper.variants:
            for profile in REPRODUCING:
                recipe = paper.recipe(variant, profile)
                data, runs = plan(paper, recipe, pictures, "paper", "covid19")
                whole = _seconds(recipe, data, [run.train for run in runs], device, steps)
                if recipe.weights == "pretraining" and recipe.pretraining is not None:
                    first = pretraining_set(pictures, [data.pictures[i] for run in runs for i in run.test])
                    trained, _ = validation_part(first, recipe.seed)
                    whole += _seconds(recipe.pretraining, first, [trained], device, steps)
                seconds[name][variant][profile] = float(f"{whole:.3g}")
                log.info("%s %s, %s profile: %s", name, variant, profile, duration(whole))
    return {"hardware": hardware(device), "seconds": seconds}


def _seconds(recipe: Recipe, data: DataSet, trained: Sequence[NDArray[np.int64]], device: str, steps: int) -> float:
    """Seconds of training on each of `trained` (indices into the data set), one after the other."""
    wanted = [recipe.classes.index(name) for name in recipe.train_on or recipe.classes]
    labels = [data.labels[index][np.isin(data.labels[index], wanted)] for index in trained]
    epoch = [len(expanded(_blank(0, one), recipe)) for one in labels]
    seen = recipe.epochs * sum(recipe.images_per_epoch or count for count in epoch)
    step, frozen = seconds_an_image(recipe, device, steps)
    return seen * step + sum(epoch) * frozen


def seconds_an_image(recipe: Recipe, device: str, steps: int = 2) -> tuple[float, float]:
    """Seconds of a training step divided by its images, and of the frozen part where that is computed only once."""
    place = torch_device(device)
    network = build(recipe.architecture, recipe.options).to(memory_format=torch.channels_last).to(place)
    images = _blank(recipe.resize, np.arange(recipe.batch) % len(recipe.classes))
    training = Training(network, recipe, images)
    keep_frozen_statistics(network)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = OPTIMISERS[recipe.optimiser](parameters, lr=recipe.learning_rate)
    given = images.squares(np.arange(recipe.batch)).to(place)
    frozen = 0.0
    if recipe.cache_features:
        plain = recipe.but(copies={})
        frozen = _took(lambda: frozen_features(network, plain, images, 0, place), steps, place) / recipe.batch
        training.features, _ = frozen_features(network, plain, images, 0, place)
        given = torch.arange(recipe.batch)
    labels = torch.from_numpy(images.labels).to(place)

    def step() -> None:
        mixed = precision(place) == "bf16-mixed"
        with torch.autocast(place.type, torch.bfloat16, enabled=mixed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*trainer.*not registered")  # there is nobody to log to
            torch.autograd.backward(training.training_step([given, labels], 0))
        optimiser.step()
        optimiser.zero_grad()

    return _took(step, steps, place) / recipe.batch, frozen


def _took(work: Callable[[], object], times: int, place: torch.device) -> float:
    """Mean seconds of one piece of work, after one that is not counted."""
    for count in (1, times):
        started = time.perf_counter()
        for _ in range(count):
            work()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
    return (time.perf_counter() - started) / times


def _blank(side: int, labels: NDArray[np.int64]) -> Images:
    return Images(np.zeros((len(labels), side, side), dtype=np.uint8), labels, [""] * len(labels))
