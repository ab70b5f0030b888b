"""An experiment, run by run: networks trained, finished, rounded as they ship, and their test images scored."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch

from training import records
from training.data.checks import require
from training.data.manifest import manifest_sha256, read_manifest
from training.data.squares import alone, load_squares
from training.experiment import (
    check_apart,
    for_task,
    plan,
    pretraining_set,
    validation_part,
)
from training.finishing import FINISHING
from training.fit import LAST, OPTIMISERS, Images, fit, identity, place, precision, torch_device
from training.frozen import shared_features
from training.localise import Localiser
from training.losses import LOSSES
from training.models.backbones import starting_weights
from training.models.registry import build
from training.papers import PAPERS
from training.recipe import BEST_VALIDATION_ACCURACY, KEEP_LAST
from training.schedules import SCHEDULES
from training.scoring import round_to_half, score_pictures, transform_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from training.data.manifest import Picture
    from training.papers.paper import DataSet, Run
    from training.recipe import Recipe

log = logging.getLogger(__name__)

_RUN = "run.json"


def train(
    recipe: Recipe,
    data: Path,
    workdir: Path,
    *,
    protocol: str = "paper",
    task: str = "covid19",
    resume: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """The folder of the finished experiment.

    Raises
    ------
    ValueError
        In one line, where the images, the recipe, the device or what already lies in `workdir` stand against it.
    """
    paper = PAPERS[recipe.paper]
    recipe = for_task(recipe, task)
    kind = protocol if task == "covid19" else f"{protocol}-{task}"
    experiment = workdir / recipe.paper / recipe.variant / f"{kind}-{recipe.profile}"
    if experiment.exists() and not resume:
        raise ValueError(f"{experiment} already exists; go on with it by --resume, or give another --workdir")
    if (experiment / records.RECORD).is_file():
        record = records.read_record(experiment)
        same = identity(records.recipe_of(record), 0) == identity(recipe, 0)
        if not same or record["data"]["manifest_sha256"] != manifest_sha256(data):
            raise ValueError(f"{experiment} was trained by other settings or on other images; give another --workdir")
        return experiment
    place(device)
    for stage in (recipe, recipe.pretraining):
        if stage is not None:
            check(stage)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    code = code_sha256()  # of what trains: the files may change while it does
    pictures = read_manifest(data)
    if not any(picture.cluster for picture in pictures):
        log.warning("%s marks no near duplicates: they may stand in training and test; see: data build", data)
    data_set, runs = plan(paper, recipe, pictures, protocol, task)
    require(data_set.pictures, data_set.labels, data_set.classes)
    for run in runs:
        check_apart(data_set, run)
        if recipe.keep == BEST_VALIDATION_ACCURACY and not len(run.validation):
            raise ValueError(
                f"keep {recipe.keep!r}: run {run.name} has no validation images; set keep to {KEEP_LAST!r}"
            )
    stock = _Stock(pictures, data, workdir, device, progress=progress)
    stock.unreadable(data_set, recipe)  # refuses before anything is made
    if recipe.options.get("lungs"):
        stock.localiser.masks()  # likewise
    experiment.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    figures: list[dict[str, Any]] = []
    for index, run in enumerate(runs):
        folder = experiment / run.name
        if not (folder / _RUN).is_file():
            tested = run.test if protocol == "folds" else np.concatenate([other.test for other in runs])
            _one(recipe, data_set, run, tested, stock, folder, recipe.seed + index, code)
        done = json.loads((folder / _RUN).read_text(encoding="utf-8"))
        if done["identity"] != identity(recipe, recipe.seed + index, _digest(data_set, run)):
            raise ValueError(f"{folder} was trained by other settings or on other images; give another --workdir")
        figures.append(done["figures"])
        if figures[0].get("lungs") != done["figures"].get("lungs"):
            raise ValueError(f"{folder} tells lungs by other outlines than {runs[0].name}; give another --workdir")
        rows += done["scores"]
        log.info("%s %s: %s", recipe.paper, run.name, done["figures"])
    records.write_scores(experiment, rows)
    record = {
        "paper": recipe.paper,
        "variant": recipe.variant,
        "profile": recipe.profile,
        "protocol": protocol,
        "task": task,
        "recipe": records.plain(recipe),
        "differences": [*paper.differences[recipe.profile], *settings_changed(recipe, task)],
        "data": {
            "manifest_sha256": manifest_sha256(data),
            "images": records.counts(f"{picture.source}/{picture.finding}" for picture in data_set.pictures),
            "skipped": stock.unreadable(data_set, recipe),
        },
        "runs": figures,
        "seed": recipe.seed,
        "code": {"version": version("cxr-dicom-node"), "sha256": code},
        "hardware": hardware(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]},
        "started": started,
        "seconds": round(sum(figure["seconds"] for figure in figures)),
    }
    records.write_record(experiment, record)
    return experiment


def check(recipe: Recipe) -> None:
    """Refuse a recipe that could not be trained to its end: in one line, before anything is trained.

    Raises
    ------
    ValueError
        Naming the setting.
    """
    transform_of(recipe)
    named = (("optimiser", OPTIMISERS), ("schedule", SCHEDULES), ("loss", LOSSES), ("finish", {"": None, **FINISHING}))
    for name, known in named:
        if getattr(recipe, name) not in known:
            raise ValueError(f"{name} {getattr(recipe, name)!r} is not known; known: {', '.join(filter(None, known))}")
    if _on_kept_features(recipe) and recipe.weights in ("none", "pretraining"):
        raise ValueError(f"weights {recipe.weights!r}: features are kept of weights that all runs share; use imagenet")
    if recipe.options.get("lungs") and not _on_kept_features(recipe):
        raise ValueError(
            "option lungs: what tells the lungs is fitted on frozen maps; set cache_features, or finish to last_layer"
        )
    if recipe.finish:
        try:
            inspect.signature(FINISHING[recipe.finish]).bind(None, recipe, None, 0, **recipe.finish_options)
        except TypeError as error:
            raise ValueError(f"finish_options do not fit finish {recipe.finish!r}: {error}") from error
    a_parameter = [torch.nn.Parameter(torch.zeros(1))]
    for name, make in (
        ("optimiser", lambda options: OPTIMISERS[recipe.optimiser](a_parameter, lr=recipe.learning_rate, **options)),
        ("schedule", lambda options: SCHEDULES[recipe.schedule](recipe.epochs, **options)),
        ("loss", lambda options: LOSSES[recipe.loss](**options)),
    ):
        try:
            make(getattr(recipe, f"{name}_options"))
        except TypeError as error:
            raise ValueError(f"{name}_options do not fit {name} {getattr(recipe, name)!r}: {error}") from error


def _on_kept_features(recipe: Recipe) -> bool:
    """Whether what is trained reads `training.frozen`'s features, made once for all runs."""
    return bool(recipe.options.get("levels")) and (recipe.cache_features or recipe.finish == "last_layer")


def settings_changed(recipe: Recipe, task: str) -> list[str]:
    """What this training changed of its profile's recipe, in sentences; what follows from the task is not told."""
    found = [
        f"{name.replace('.', ' ')} {own}, the profile's is {usual}"
        for name, (own, usual) in changes(recipe, task).items()
    ]
    return [f"Changed for this training: {'; '.join(found)}."] if found else []


def changes(recipe: Recipe, task: str) -> dict[str, tuple[Any, Any]]:
    """By the name that ``--set`` takes, the recipe's value and its profile's, where they differ."""
    profile = for_task(PAPERS[recipe.paper].recipe(recipe.variant, recipe.profile), task)
    found: dict[str, tuple[Any, Any]] = {}
    for stage, own, usual in (("", recipe, profile), ("pretraining.", recipe.pretraining, profile.pretraining)):
        if own is None or usual is None:
            continue
        kept, expected = (json.loads(json.dumps(records.plain(one))) for one in (own, usual))
        found |= {
            f"{stage}{name}": (kept[name], expected[name])
            for name in kept
            if name not in ("pretraining", "seed") and kept[name] != expected[name]
        }
    return found


class _Stock:
    """The images and backbones that runs share."""

    def __init__(self, pictures: Sequence[Picture], data: Path, workdir: Path, device: str, *, progress: bool) -> None:
        self.pictures, self.workdir, self.device, self.progress = pictures, workdir, device, progress
        self.localiser = Localiser(pictures, data, workdir)

    def images(self, data: DataSet, index: NDArray[np.int64], recipe: Recipe) -> Images:
        """The readable ones of the images, as the recipe's training uses them."""
        squares, readable = self._squares(data, recipe)
        strata = [f"{p.source}/{data.classes[label]}" for p, label in zip(data.pictures, data.labels, strict=True)]
        return Images(squares, data.labels, strata).chosen(index[readable[index]])

    def readable(self, data: DataSet, index: NDArray[np.int64], recipe: Recipe) -> NDArray[np.int64]:
        """Those of the indices whose images can be read."""
        return index[self._squares(data, recipe)[1][index]]

    def unreadable(self, data: DataSet, recipe: Recipe) -> int:
        """How many of the images cannot be read."""
        return int((~self._squares(data, recipe)[1]).sum())

    def _squares(self, data: DataSet, recipe: Recipe) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        return load_squares(data.pictures, recipe.resize, self.workdir / "squares", recipe.resolution)

    def frozen(self, data: DataSet, index: NDArray[np.int64], recipe: Recipe) -> NDArray[Any]:
        """What the recipe's frozen layers make of the readable ones of the images and their mirror images."""
        wanted = [data.pictures[i] for i in self.readable(data, index, recipe)]
        return shared_features(recipe, wanted, self.pictures, self.workdir, self.localiser)

    def backbone(self, recipe: Recipe, tested: Sequence[Picture], seed: int) -> Path:
        """File of a backbone trained by Basu's first stage on images of no patient that is tested; made once."""
        data = pretraining_set(self.pictures, tested)
        what = records.plain(recipe.but(paper="", variant="", profile=""))
        names = sorted(picture.image_id for picture in data.pictures)
        digest = hashlib.sha256(json.dumps([what, names, seed], sort_keys=True).encode()).hexdigest()[:16]
        folder = self.workdir / "backbones" / digest
        file = folder / records.WEIGHTS
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / "lock"):
            if file.is_file():
                return file
            torch.manual_seed(seed)
            network = build(recipe.architecture, recipe.options)
            trained, held = validation_part(data, seed)
            figures = fit(
                network,
                recipe,
                self.images(data, trained, recipe),
                folder,
                validation=self.images(data, held, recipe),
                seed=seed,
                device=self.device,
                progress=self.progress,
            )
            figures |= {"images": len(trained), "seconds": round(figures["seconds"])}
            (folder / _RUN).write_text(json.dumps(figures), encoding="utf-8")
            _save(network.backbone_state(), file)
            _forget_checkpoints(folder)
            log.info("backbone %s: %s", network.backbone_name, figures)
        return file


def _one(
    recipe: Recipe,
    data: DataSet,
    run: Run,
    tested: NDArray[np.int64],
    stock: _Stock,
    folder: Path,
    seed: int,
    code: str,
) -> None:
    """Train one run and score its test images; `run.json` is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"name": run.name, "code_sha256": code}
    weights = recipe.weights
    if weights == "pretraining":
        if recipe.pretraining is None:
            raise ValueError(f"{recipe.paper} {recipe.variant} has no pretraining stage")
        file = stock.backbone(recipe.pretraining, [data.pictures[i] for i in tested], recipe.seed)
        figures["pretraining"] = json.loads((file.parent / _RUN).read_text(encoding="utf-8"))
        weights = str(file)
    torch.manual_seed(seed)
    network = build(recipe.architecture, recipe.options)
    starting_weights(weights, network)
    if lungs := stock.localiser.teach(network, recipe):
        figures["lungs"] = lungs
    wanted = [recipe.classes.index(name) for name in recipe.train_on or recipe.classes]
    trained = run.train[np.isin(data.labels[run.train], wanted)]
    images = stock.images(data, trained, recipe)
    test = stock.readable(data, run.test, recipe)
    validation = stock.images(data, run.validation, recipe) if len(run.validation) else None
    if _on_kept_features(recipe):
        images.features = stock.frozen(data, trained, recipe)
    if recipe.epochs:
        figures |= fit(
            network,
            recipe,
            images,
            folder,
            validation=validation,
            seed=seed,
            data=_digest(data, run),
            device=stock.device,
            progress=stock.progress,
        )
    began = time.monotonic()
    if recipe.finish:
        FINISHING[recipe.finish](network, recipe, images, seed, **recipe.finish_options)
    figures["seconds"] = figures.get("seconds", 0) + time.monotonic() - began
    _save(round_to_half(network).state_dict(), folder / records.WEIGHTS)
    figures |= {
        "epochs": recipe.epochs,
        "train": len(images.labels),
        "test": len(test),
        "train_by_class": records.counts(recipe.classes[label] for label in images.labels),
        "seconds": round(figures["seconds"]),
    }
    pictures = [data.pictures[i] for i in test]
    found = score_pictures(network.to(torch_device(stock.device)), transform_of(recipe), pictures)
    scores = [
        {"run": run.name, "image_id": picture.image_id, "label": data.classes[data.labels[i]], **score}
        for i, picture, score in zip(test, pictures, found, strict=True)
    ]
    unfinished = folder / (_RUN + ".part")
    done = {"identity": identity(recipe, seed, _digest(data, run)), "figures": figures, "scores": scores}
    unfinished.write_text(json.dumps(done), encoding="utf-8")
    unfinished.replace(folder / _RUN)
    _forget_checkpoints(folder)


def _digest(data: DataSet, run: Run) -> str:
    """What tells a run's images, and what is done with them, from another's."""
    parts = [
        [(data.pictures[i].image_id, data.pictures[i].sha256, int(data.labels[i])) for i in part]
        for part in (run.train, run.validation, run.test)
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _save(state: dict[str, torch.Tensor], file: Path) -> None:
    """Write the tensors as float16, beside and then in place."""
    halves = {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in state.items()}
    for name, tensor in halves.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds values that half precision cannot: the training has diverged")
    unfinished = file.with_suffix(".part")
    safetensors.torch.save_file(halves, unfinished)
    unfinished.replace(file)


def _forget_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished training: optimiser states are large."""
    for file in folder.glob(f"*{Path(LAST).suffix}"):
        file.unlink()


def code_sha256() -> str:
    """One digest over the source files of `training`, in the order of their names."""
    root = Path(__file__).parent
    files = sorted(root.rglob("*.py"))
    parts = [f"{file.relative_to(root)} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def hardware(device: str) -> str:
    """What a training ran on, and in which precision."""
    place_of = torch_device(device)
    name = torch.cuda.get_device_name(place_of) if place_of.type == "cuda" else _cores()
    return f"{name}, {precision(place_of)}"


def _cores() -> str:
    used, there = torch.get_num_threads(), os.cpu_count()
    return f"{there} CPU cores" if used == there else f"{used} of {there} CPU cores"
