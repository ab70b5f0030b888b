"""One network trained by one recipe: the loop that all papers share, on Lightning."""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, Dataset, TensorDataset

from training.augment import augment
from training.losses import LOSSES
from training.recipe import BEST_VALIDATION_ACCURACY, BY_SOURCE_AND_CLASS, NO_BALANCE, Augmentation
from training.records import plain
from training.schedules import SCHEDULES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from training.models.network import Network
    from training.recipe import Recipe

log = logging.getLogger(__name__)

# Linux' names of what multiplies in bfloat16: AVX-512 and AMX of x86, ARM's.
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
LAST = "last.ckpt"
BEST = "best.ckpt"
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "sgd": torch.optim.SGD,
}


class Images(Dataset[tuple["Tensor", int]]):
    """Squares of a data set and their labels, as a run uses them; squares are read from their file as they are drawn.

    Attributes
    ----------
    labels
        Shape (N,).
    strata
        Source and class of each image, as text.
    features
        What `training.frozen` gives of each image and its mirror image, where that is trained on; or None.
    """

    def __init__(
        self,
        squares: NDArray[np.uint8],
        labels: NDArray[np.int64],
        strata: Sequence[str] | NDArray[np.str_],
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        self._squares = squares  # uint8, shape (M, side, side), maybe memory-mapped
        self._rows = np.arange(len(labels)) if rows is None else rows
        self.labels, self.strata = labels, np.array(strata)
        self.features: NDArray[Any] | None = None

    def chosen(self, index: NDArray[np.int64]) -> Images:
        """Some of the images, in the order of `index`."""
        return Images(self._squares, self.labels[index], self.strata[index], self._rows[index])

    def squares(self, index: NDArray[np.int64]) -> Tensor:
        """Some of the squares: uint8, shape (N, side, side)."""
        return torch.from_numpy(np.ascontiguousarray(self._squares[self._rows[index]]))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(np.array(self._squares[self._rows[index]])), int(self.labels[index])


class Training(lightning.LightningModule):
    """The step, the optimiser and the images of each epoch, all by the recipe and the seed."""

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        images: Images,
        validation: Images | None = None,
        *,
        seed: int = 0,
        identity: str = "",
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.images = images
        self.validation = validation
        self.seed = seed
        self.identity = identity
        self.kept: dict[str, float] = {}  # figures of the epochs before this process
        self.began = time.monotonic()
        self.loss = LOSSES[recipe.loss](**recipe.loss_options)
        self.features: Tensor | None = None
        self.order: NDArray[np.int64] | None = None
        freeze(network, recipe.trainable)

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser; the learning rate changes with each step."""
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        recipe = self.recipe
        options = dict(recipe.optimiser_options) | ({} if recipe.optimiser == "nadam" else {"fused": True})
        optimiser = OPTIMISERS[recipe.optimiser](parameters, lr=recipe.learning_rate, **options)
        # Lightning's own estimate would draw the first epoch's images before it knows at which epoch it goes on.
        batches = math.ceil(len(self.train_dataloader()) / self.trainer.world_size)
        steps = math.ceil(batches / recipe.accumulate)
        factor = SCHEDULES[recipe.schedule](recipe.epochs, **recipe.schedule_options)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: factor(step / steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Compute the frozen part once, where the recipe says so."""
        if self.images.features is not None:
            self.features = torch.from_numpy(self.images.features).flatten(0, 1)
        elif self.recipe.cache_features and self.features is None:
            self.features, self.order = frozen_features(self.network, self.recipe, self.images, self.seed, self.device)

    def train_dataloader(self) -> DataLoader[Any]:
        """The images of the present epoch, drawn by the seed and its number, so that a resumed run draws the same."""
        rng = np.random.default_rng((self.seed, self.current_epoch))
        data: Images | TensorDataset
        if self.recipe.cache_features:
            order = expanded(self.images, self.recipe)
            drawn = drawn_places(self.images, self.recipe, rng)
            data = TensorDataset(torch.from_numpy(drawn), torch.from_numpy(self.images.labels[order[drawn]]))
        else:
            data = self.images.chosen(draw_epoch(self.images, self.recipe, rng))
        # A last batch of one image would stop a BatchNorm.
        return DataLoader(data, self.recipe.batch, drop_last=len(data) % self.recipe.batch == 1)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The validation images, unchanged."""
        if self.validation is None:
            return []
        return DataLoader(self.validation, self.recipe.batch)

    def on_train_epoch_start(self) -> None:
        """Keep the statistics of frozen layers."""
        keep_frozen_statistics(self.network)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """The loss of one batch."""
        given, labels = batch
        seed = (self.seed * 10_007 + self.current_epoch) * 100_003 + index * 101 + self.global_rank
        torch.manual_seed(seed)  # of what the network draws itself
        if self.features is not None:
            inputs = self.features[given.cpu()].to(labels.device).float()
            outputs = self.network.judge({"features": inputs})
        else:
            generator = torch.Generator(labels.device)
            generator.manual_seed(seed)
            recipe = self.recipe
            inputs = augment(given, recipe.crop, recipe.standardise, recipe.augmentation, generator)
            outputs, _ = self.network(inputs.contiguous(memory_format=torch.channels_last))
        loss: Tensor = self.loss(outputs, inputs, labels)
        self.log("loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: list[Tensor], _index: int) -> None:
        """Accuracy of the likeliest class."""
        squares, labels = batch
        generator = torch.Generator(labels.device)
        inputs = augment(squares, self.recipe.crop, self.recipe.standardise, Augmentation(), generator)
        outputs, _ = self.network(inputs.contiguous(memory_format=torch.channels_last))
        right = (outputs.argmax(dim=1) == labels).float().mean()
        self.log("validation_accuracy", right, batch_size=len(labels), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say of which training the checkpoint is, and what is lost with the process otherwise."""
        checkpoint["identity"] = self.identity
        checkpoint["figures"] = self.figures()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the figures."""
        self.kept = checkpoint["figures"]

    def figures(self) -> dict[str, float]:
        """The last epoch's metrics, and the seconds of training, those of earlier processes among them."""
        seconds = self.kept.get("seconds", 0.0) + time.monotonic() - self.began
        return self.kept | {name: float(v) for name, v in self.trainer.callback_metrics.items()} | {"seconds": seconds}


class EpochLog(Callback):
    """One line in the log for each epoch."""

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Say how far the training is."""
        figures = {name: round(float(value), 4) for name, value in sorted(trainer.callback_metrics.items())}
        log.info("epoch %d of %d: %s", trainer.current_epoch + 1, trainer.max_epochs, figures)


def fit(
    network: Network,
    recipe: Recipe,
    images: Images,
    folder: Path,
    *,
    validation: Images | None = None,
    seed: int = 0,
    data: str = "",
    device: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Train the network by the recipe; goes on from the last finished epoch where `folder` holds one.

    Parameters
    ----------
    data
        What tells one set of images from another; a checkpoint of other images is refused.

    Returns
    -------
    ``epochs``, ``seconds``, the last one's ``loss``, and ``validation_accuracy`` where there are validation images.

    Raises
    ------
    ValueError
        Where the folder holds a checkpoint of another recipe, or the device is not there.
    """
    kept = folder / LAST
    whose = identity(recipe, seed, data)
    network.to(memory_format=torch.channels_last)
    training = Training(network, recipe, images, validation, seed=seed, identity=whose)
    if kept.is_file():
        _check_checkpoint(kept, whose)
    callbacks: list[Callback] = [EpochLog()]
    if recipe.keep == BEST_VALIDATION_ACCURACY:
        best = ModelCheckpoint(folder, "best", monitor="validation_accuracy", mode="max", enable_version_counter=False)
        callbacks.append(best)
    # After `best`: a run that goes on from the last checkpoint has to know of the best so far.
    callbacks.append(ModelCheckpoint(folder, "last", enable_version_counter=False))
    if progress:
        callbacks.append(RichProgressBar())
    with quiet():
        trainer = lightning.Trainer(
            **place(device),
            precision=precision(torch_device(device)),
            max_epochs=recipe.epochs,
            accumulate_grad_batches=recipe.accumulate,
            callbacks=callbacks,
            logger=TensorBoardLogger(folder, name="", version="log"),
            default_root_dir=folder,
            enable_model_summary=False,
            enable_progress_bar=progress,
            num_sanity_val_steps=0,
            limit_val_batches=None if validation is not None else 0,
            log_every_n_steps=1,
            reload_dataloaders_every_n_epochs=1,
            deterministic="warn",
        )
        trainer.fit(training, ckpt_path=str(kept) if kept.is_file() else None, weights_only=True)
        figures = training.figures()
        if recipe.keep == BEST_VALIDATION_ACCURACY:
            state = torch.load(folder / BEST, weights_only=True)["state_dict"]
            network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in state.items()})
            figures["validation_accuracy"] = float(best.best_model_score or 0)
    network.requires_grad_(True).eval().cpu()
    return {"epochs": recipe.epochs} | figures


def identity(recipe: Recipe, seed: int, data: str = "") -> str:
    """What a checkpoint must agree in to be gone on with."""
    return json.dumps({"recipe": plain(recipe), "seed": seed, "data": data}, sort_keys=True)


def _check_checkpoint(file: Path, expected: str) -> None:
    found = torch.load(file, map_location="cpu", weights_only=True).get("identity")
    if found != expected:
        kept = json.loads(found or '{"recipe": {}}')["recipe"]
        whose = f"{kept.get('paper', 'another')} {kept.get('variant', 'model')}, {kept.get('profile', '')} profile"
        raise ValueError(f"{file} is a checkpoint of {whose}, of other settings; give another working folder")


def place(device: str) -> dict[str, Any]:
    """Lightning's words for ``auto``, ``cpu``, ``cuda`` (the first) or ``cuda:N``."""
    kind, _, number = device.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count()
        if number and not number.isdecimal():
            raise ValueError(f"device {device!r} is not known; use auto, cpu, cuda or cuda:N")
        if count <= int(number or 0):
            raise ValueError(f"device {device} is not there: torch sees {count} CUDA devices; use --device cpu")
        return {"accelerator": "gpu", "devices": [int(number or 0)]}
    if kind not in ("auto", "cpu"):
        raise ValueError(f"device {device!r} is not known; use auto, cpu, cuda or cuda:N")
    return {"accelerator": kind, "devices": 1}


def torch_device(device: str) -> torch.device:
    """The one device that scores are computed on."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


@cache
def precision(device: torch.device) -> Literal["bf16-mixed", "32-true"]:
    """What is trained in: mixed with bfloat16, but in full where a processor would have to emulate that.

    There it is some fourteen times as slow as float32.
    """
    if device.type == "cuda":
        return "bf16-mixed"
    cpuinfo = Path("/proc/cpuinfo")
    known = set(cpuinfo.read_text(encoding="ascii", errors="replace").split()) if cpuinfo.is_file() else set()
    return "bf16-mixed" if known & _BFLOAT16 else "32-true"


def freeze(network: Network, trainable: tuple[str, ...]) -> None:
    """Only parameters whose name starts with one of `trainable` get gradients; all do where it is empty."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not trainable or name.startswith(trainable))
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"no parameter's name starts with any of {', '.join(trainable)}")


def keep_frozen_statistics(network: Network) -> None:
    """Training mode, but for the layers that are frozen whole."""
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def expanded(images: Images, recipe: Recipe) -> NDArray[np.int64]:
    """Index of each image of an epoch that holds every image, in as many copies as the recipe says, in order.

    Of images whose features are at hand, the mirror image is the second copy.
    """
    if images.features is not None:
        return np.repeat(np.arange(len(images)), 2)
    copies = np.array([recipe.copies.get(recipe.classes[label], 1) for label in images.labels])
    return np.repeat(np.arange(len(copies)), copies)


def draw_epoch(images: Images, recipe: Recipe, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of an epoch's images in random order.

    Without `balance`, each comes as often as its copies say, or is drawn from those. With it, each stratum gives an
    equal share; one smaller than its share is gone through again: its images come up equally often, give or take one.
    """
    return expanded(images, recipe)[drawn_places(images, recipe, rng)]


def drawn_places(images: Images, recipe: Recipe, rng: np.random.Generator) -> NDArray[np.int64]:
    """The same as places in `expanded`."""
    everything = expanded(images, recipe)
    wanted = recipe.images_per_epoch or len(everything)
    if recipe.balance == NO_BALANCE:
        return rng.permutation(len(everything))[:wanted]
    strata = (images.strata if recipe.balance == BY_SOURCE_AND_CLASS else images.labels)[everything]
    names = np.unique(strata)
    share = math.ceil(wanted / len(names))
    drawn = []
    for name in names:
        members = np.flatnonzero(strata == name)
        rounds = [rng.permutation(members) for _ in range(math.ceil(share / len(members)))]
        drawn.append(np.concatenate(rounds)[:share])
    return rng.permutation(np.concatenate(drawn))[:wanted]


@torch.inference_mode()
def frozen_features(
    network: Network, recipe: Recipe, images: Images, seed: int, device: torch.device
) -> tuple[Tensor, NDArray[np.int64]]:
    """What the frozen part makes of each image of an epoch: the first copy unchanged, further copies augmented once.

    Returns
    -------
    float16 features, the first axis in the order of `expanded`, and that order.
    """
    order = expanded(images, recipe)
    first = np.concatenate([[True], order[1:] != order[:-1]])
    network.eval()
    found = []
    for start in range(0, len(order), recipe.batch):
        part = slice(start, start + recipe.batch)
        squares = images.squares(order[part]).to(device)
        generator = torch.Generator(device)
        generator.manual_seed(seed * 100_003 + start)
        inputs = augment(squares, recipe.crop, recipe.standardise, recipe.augmentation, generator)
        plain_inputs = augment(squares, recipe.crop, recipe.standardise, Augmentation(), generator)
        unchanged = torch.from_numpy(first[part]).to(device)[:, None, None, None]
        found.append(network.embed(torch.where(unchanged, plain_inputs, inputs))["features"].half().cpu())
    network.train()
    return torch.cat(found), order


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's hints and banners: images are in memory, so that workers would only copy them."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning.utilities.rank_zero", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated")
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
