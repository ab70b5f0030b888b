"""The gate of a bundle: fitted on frontal X-rays upright, turned and inverted, and on what is none, and measured.

Laterals and CT slices come with the images; parts of X-rays and what is no X-ray at all are drawn. Every figure is of
images whose patients, or whose family of drawings, the measured gate had not seen.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from rich.console import Console
from rich.progress import track
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dicom_node.evaluation.statistics import proportion
from training.data.manifest import read_manifest
from training.data.splits import groups_of
from training.data.squares import load_squares
from training.experiment import FINAL
from training.models.fold import fold_batch_norm
from training.models.gate import FRONTAL, FRONTALS, KINDS, LATERAL, OTHER, PART, SLICE, TURNS, Gate, pooled_values
from training.models.network import digest_of
from training.models.preprocess import square
from training.records import read_record, recipe_of
from training.scoring import load_network, transform_of
from training.strangers import FAMILIES, part_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.manifest import Picture
    from training.models.network import Network
    from training.models.preprocess import Preprocess

log = logging.getLogger(__name__)

WEIGHTS, DESCRIPTION = "gate.safetensors", "gate.json"
_SIDE = 256  # of the squares that are turned, cut and spoilt
_OF_EACH = 320  # frontal X-rays of a large collection that are shown in all eight ways
_UPRIGHT = 700  # further ones of the largest, upright only
_PARTS, _OF_FAMILY = 900, 80
_FOLDS, _SEED = 5, 20
_STRENGTH = 3e-4  # inverse of the penalty on the linear layer's weights
_COMPONENTS = 64
_LOST = 0.01  # the largest share of a collection's frontal X-rays that the threshold may decline
_LEAST = 50  # images of a collection that counts in that
_MARGIN = 1.1  # of the bound on the distance, over the largest of a frontal X-ray out of fold
_BATCH = 16


class _Shown(NamedTuple):
    """One image that the gate is shown: which picture, as what, in which of the eight ways or with which seed."""

    picture: int
    kind: str
    family: str
    way: int


def fit_gate(experiment: Path, data: Path, out: Path) -> dict[str, Any]:
    """Write the gate that reads the final network of a finished experiment: `WEIGHTS` and `DESCRIPTION` in `out`.

    Raises
    ------
    ValueError
        Where the network has no blocks to read, or the images hold no laterals or CT slices.
    """
    network, pictures = load_network(experiment, FINAL), read_manifest(data)
    if network.blocks is None:
        raise ValueError(f"{experiment}: its network reads no levels of blocks; give one that does")
    out.mkdir(parents=True, exist_ok=True)
    squares, readable = load_squares(pictures, _SIDE, out / "squares")
    shown = _choose(pictures, readable)
    if missing := {LATERAL, SLICE} - {one.kind for one in shown}:
        raise ValueError(f"{data} holds no images of the kind {', '.join(sorted(missing))}: no gate can be fitted")
    blocks = digest_of(network.blocks.stages)
    transform = transform_of(recipe_of(read_record(experiment)))
    values = _values(network, transform, squares, shown)
    found = _Fitting(pictures, shown, values).described()
    weights = safetensors.torch.save({name: t.contiguous() for name, t in found.pop("state").items()})
    (out / WEIGHTS).write_bytes(weights)
    sha256 = hashlib.sha256(weights).hexdigest()
    found = {"weights": {"file": WEIGHTS, "sha256": sha256}, "blocks_sha256": blocks, **found}
    (out / DESCRIPTION).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _choose(pictures: Sequence[Picture], readable: NDArray[np.bool_]) -> list[_Shown]:
    """What is shown: learnt from are frontal images of `train` only, and every lateral and slice."""
    rng = np.random.default_rng(_SEED)
    frontal = [i for i, picture in enumerate(pictures) if picture.frontal and readable[i]]
    train: dict[str, list[int]] = {}
    for i in frontal:
        if pictures[i].split == "train":
            train.setdefault(pictures[i].source, []).append(i)
    learnt = [
        i
        for _, found in sorted(train.items())
        for i in (found if len(found) <= 2 * _OF_EACH else sorted(rng.choice(found, _OF_EACH, replace=False).tolist()))
    ]
    shown = [_Shown(i, FRONTALS[way], FRONTAL, way) for i in learnt for way in range(len(FRONTALS))]
    rest = sorted(set(frontal) - set(learnt))
    largest = max(train, key=lambda name: len(train[name]))
    many = [i for i in rest if pictures[i].source == largest and pictures[i].split == "train"]
    dropped = set(many) - set(rng.choice(many, min(len(many), _UPRIGHT), replace=False).tolist())
    shown += [_Shown(i, FRONTALS[0], "upright", 0) for i in rest if i not in dropped]
    for i, picture in enumerate(pictures):
        if not picture.frontal and readable[i]:
            kind = SLICE if picture.finding == "not_cxr" else LATERAL
            shown += [_Shown(i, kind, kind, way) for way in range(2 * len(FRONTALS))]
    shown += [_Shown(int(rng.choice(learnt)), PART, PART, number) for number in range(_PARTS)]
    for family in FAMILIES:
        shown += [_Shown(int(rng.choice(learnt)), OTHER, family, number) for number in range(_OF_FAMILY)]
    return shown


def draw(xray: NDArray[np.float64], one: _Shown) -> NDArray[np.float64]:
    """The image that is shown, from its X-ray; ways beyond the eight are mirrored."""
    rng = np.random.default_rng([one.picture, one.way, len(one.family)])
    if one.kind == OTHER:
        return FAMILIES[one.family](rng, xray)
    if one.kind == PART:
        return part_of(rng, xray)
    if one.way >= len(FRONTALS):
        xray = xray[:, ::-1]
    xray = np.rot90(xray, -(one.way % len(TURNS)))
    return np.ascontiguousarray(1 - xray if one.way // len(TURNS) % 2 else xray)


@torch.no_grad()
def _values(
    network: Network, transform: Preprocess, squares: NDArray[np.uint8], shown: Sequence[_Shown]
) -> NDArray[np.float32]:
    """What the gate reads of each image."""
    fold_batch_norm(network)
    network.to(memory_format=torch.channels_last)

    def batches() -> Iterator[Sequence[_Shown]]:
        for start in range(0, len(shown), _BATCH):
            yield shown[start : start + _BATCH]

    console = Console(stderr=True)
    found = []
    total = -(-len(shown) // _BATCH)
    for batch in track(batches(), "Reading", total, console=console, disable=not console.is_terminal):
        drawn = [draw(squares[one.picture] / 255.0, one).astype(np.float32) for one in batch]
        inputs = transform.finish(torch.stack([square(image, *transform.square) for image in drawn]))
        maps = network.lung_maps(inputs.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last))
        found.append(pooled_values(maps).numpy())
    return np.concatenate(found)


class _Fitting:
    """The fits: one a fold, one a family that is left out, and the one that is kept."""

    def __init__(self, pictures: Sequence[Picture], shown: Sequence[_Shown], values: NDArray[np.float32]) -> None:
        self.values = values
        self.kind = np.array([one.kind for one in shown])
        self.family = np.array([one.family for one in shown])
        self.way = np.array([one.way for one in shown])
        self.source = np.array([pictures[one.picture].source for one in shown])
        self.split = np.array([pictures[one.picture].split for one in shown])
        groups = groups_of(pictures)
        self.fold = np.random.default_rng(_SEED).integers(0, _FOLDS, groups.max() + 1)[groups][
            [one.picture for one in shown]
        ]
        self.frontal = np.isin(self.kind, FRONTALS)
        self.learnt = (self.split == "train") | (~self.frontal & (self.split != "external"))

    def described(self) -> dict[str, Any]:
        """The kept gate and its measures."""
        probability = np.zeros((len(self.values), len(KINDS)))
        distance = np.zeros(len(self.values))
        drawn = np.isin(self.kind, [PART, OTHER])
        for fold in range(_FOLDS):
            here = self.fold == fold
            self._apply(self._fit(self.learnt & ~here), here & ~drawn, probability, distance)
        for family in np.unique(self.family[drawn]):
            here = self.family == family
            self._apply(self._fit(self.learnt & ~here), here, probability, distance)
        seems_frontal = probability[:, : len(FRONTALS)].sum(axis=1)
        upright = self.frontal & (self.way == 0)
        threshold = self._threshold(seems_frontal, upright & (self.split == "train"))
        bound = float(distance[upright & (self.split == "train")].max()) * _MARGIN
        declined = (seems_frontal < threshold) | (distance > bound)
        told = np.array(KINDS)[probability.argmax(axis=1)]
        return {
            "state": self._fit(self.learnt).state_dict(),
            "kinds": list(KINDS),
            "threshold": threshold,
            "distance": bound,
            "measured": {name: (int(those.sum()), int(declined[those].sum())) for name, those in self._shares()},
            "told": {
                kind: proportion(int((told[those] == kind).sum()), int(those.sum()))
                for kind in FRONTALS
                if (those := (self.kind == kind) & (self.family == FRONTAL)).any()
            },
        }

    def _shares(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Names of kinds, and which images they are."""
        upright = self.frontal & (self.way == 0)
        for split, inside in (
            ("out of fold", self.split == "train"),
            ("val", self.split == "val"),
            ("external", self.split == "external"),
        ):
            for source in np.unique(self.source[upright & inside]).tolist():
                yield f"frontal, {source}, {split}", upright & inside & (self.source == source)
        for kind in (LATERAL, SLICE):
            yield f"{kind}, as it is", (self.kind == kind) & (self.way == 0)
            yield f"{kind}, turned, mirrored, inverted", (self.kind == kind) & (self.way > 0)
        yield f"{PART} (drawn)", self.kind == PART
        for family in FAMILIES:
            yield f"{OTHER}: {family}", self.family == family

    def _threshold(self, seems_frontal: NDArray[np.float64], those: NDArray[np.bool_]) -> float:
        """The highest that declines no more than `_LOST` of any collection."""
        found = [
            float(np.quantile(seems_frontal[those & (self.source == source)], _LOST, method="lower"))
            for source in np.unique(self.source[those])
            if (those & (self.source == source)).sum() >= _LEAST
        ]
        return min(found)

    def _fit(self, those: NDArray[np.bool_]) -> Gate:
        values, kinds = self.values[those], self.kind[those]
        scaler = StandardScaler().fit(values)
        counts = {kind: int((kinds == kind).sum()) for kind in np.unique(kinds)}
        weights = np.array([1 / np.sqrt(counts[kind]) for kind in kinds])
        linear = LogisticRegression(C=_STRENGTH, max_iter=60, tol=1e-3)
        linear.fit(scaler.transform(values), kinds, sample_weight=weights / weights.mean())
        place = {kind: index for index, kind in enumerate(linear.classes_)}
        order = [place[kind] for kind in KINDS if kind in place]
        known = [index for index, kind in enumerate(KINDS) if kind in place]
        upright = values[(kinds == FRONTAL)]
        own = StandardScaler().fit(upright)
        axes = PCA(_COMPONENTS, whiten=True, random_state=_SEED).fit(own.transform(upright))
        gate = Gate(values.shape[1], _COMPONENTS)
        with torch.no_grad():
            gate.kinds.weight.zero_()
            gate.kinds.bias.fill_(-1e4)  # a kind that was left out is never told
            _take(gate.kinds, known, linear.coef_[order], linear.intercept_[order], scaler)
            whitened = axes.components_ / np.sqrt(axes.explained_variance_)[:, None]
            _take(gate.axes, range(_COMPONENTS), whitened, -whitened @ axes.mean_, own)
        return gate.eval()

    def _apply(
        self,
        gate: Gate,
        those: NDArray[np.bool_],
        probability: NDArray[np.float64],
        distance: NDArray[np.float64],
    ) -> None:
        with torch.no_grad():
            told, far = gate.tell(torch.from_numpy(self.values[those]))
        probability[those], distance[those] = told.numpy(), far.numpy()


def _take(
    layer: torch.nn.Linear,
    rows: Sequence[int] | range,
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    scaler: StandardScaler,
) -> None:
    """A layer on standardised values becomes one on values as they are."""
    plain = weight / scaler.scale_
    layer.weight[list(rows)] = torch.from_numpy(plain).float()
    layer.bias[list(rows)] = torch.from_numpy(bias - plain @ scaler.mean_).float()
