"""Whether the score needs the lungs, the heatmaps lie on them, and the heatmaps come from what the network has learnt.

Asked of the images whose lungs are outlined (`masks/IMAGE_ID.png`, else the boxes of `lung_boxes.json`), each of the
fold's network that never saw its patient.

- A blanked region takes the mean of what is kept, so that nothing of it is left in the grey of the blank. The lungs'
  silhouette is left, and it can tell something by itself; `lung boxes blanked` takes the silhouette away too. `lungs
  only` blanks what is outside the lungs.
- The energy of a heatmap inside the lungs stands beside the share of the input's area that is lung.
- The third is `training.evaluation.randomisation`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image
from torch.nn import functional

from training.data.squares import pixels_of
from training.evaluation import statistics
from training.evaluation.bootstrap import RESAMPLES
from training.evaluation.randomisation import Randomisation, heatmaps
from training.evaluation.rows import answer
from training.models.preprocess import square
from training.scoring import load_network, score_images, transform_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from training.data.manifest import Picture
    from training.evaluation.shape import Energy, Lungs
    from training.evaluation.tasks import Scored
    from training.models.preprocess import Preprocess
    from training.recipe import Recipe

MASKS, BOXES = "masks", "lung_boxes.json"
AS_IT_IS, BLANKED, BOXES_BLANKED, ONLY = "as it is", "lungs blanked", "lung boxes blanked", "lungs only"
HEATMAP_IMAGES = 60  # a map by occlusion costs as much as the scores of some fifty images
RANDOMISED_IMAGES = 12
_SEED = 20


class Outline(NamedTuple):
    """Where the lungs are: `inside` has the image's own shape (H, W); `origin` is "mask" or "boxes"."""

    origin: str
    inside: NDArray[np.bool_]


def outlines(folder: Path, pictures: Sequence[Picture]) -> dict[str, Outline]:
    """The outlines by image id; an image without one, or without lungs in it, is left out.

    `masks` and `lung_boxes.json` are looked for in the folder of the manifest, of the image, and the one above that.
    """
    boxes_in = cache(_boxes)
    found: dict[str, Outline] = {}
    for picture in pictures:
        for place in (folder, *picture.path.absolute().parents[:2]):
            mask, boxes = place / MASKS / f"{picture.image_id}.png", boxes_in(place).get(picture.image_id)
            if mask.is_file():
                height, width = pixels_of(picture).shape
                with Image.open(mask) as image:
                    drawn = image.convert("L").resize((width, height), Image.Resampling.NEAREST)
                found[picture.image_id] = Outline("mask", np.asarray(drawn) > 0)
                break
            if boxes:
                inside = np.zeros(pixels_of(picture).shape, dtype=bool)
                for left, top, width, height in boxes:
                    rows = slice(max(round(top), 0), max(round(top + height), 0))
                    inside[rows, max(round(left), 0) : max(round(left + width), 0)] = True
                found[picture.image_id] = Outline("boxes", inside)
                break
    return {image_id: outline for image_id, outline in found.items() if outline.inside.any()}


def _boxes(place: Path) -> dict[str, list[tuple[float, float, float, float]]]:
    """(left, top, width, height) of each lung in pixels of the image, by image id."""
    file = place / BOXES
    if not file.is_file():
        return {}
    return {
        image_id: [tuple(lung["box"]) for lung in lungs_of]
        for image_id, lungs_of in json.loads(file.read_text(encoding="utf-8")).items()
    }


def variants(pixels: NDArray[np.float32], inside: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
    """The image as it is, and with each of three regions at the mean of the pixels outside that region."""
    box = np.zeros_like(inside)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    regions = {AS_IT_IS: np.zeros_like(inside), BLANKED: inside, BOXES_BLANKED: box, ONLY: ~inside}
    return {name: _blanked(pixels, region) for name, region in regions.items()}


def _blanked(pixels: NDArray[np.float32], region: NDArray[np.bool_]) -> NDArray[np.float32]:
    kept = pixels[~region]
    grey = kept.mean() if kept.size else 0.0  # where nothing is kept, nothing is told
    return np.where(region, grey, pixels).astype(np.float32)


def lung_share(inside: NDArray[np.bool_], transform: Preprocess, cells: Sequence[int]) -> Tensor:
    """How much of each cell of a heatmap is lung; the cells tile the network's input."""
    start = (transform.resize - transform.crop) // 2
    window = slice(start, start + transform.crop)
    seen = square(inside.astype(np.float32), transform.resize)[:, window, window]
    return functional.adaptive_avg_pool2d(seen[None], (cells[0], cells[1]))[0, 0]


def lungs(
    experiment: Path,
    recipe: Recipe,
    asked: Scored,
    folder: Path,
    *,
    positive: str = "covid19",
    heatmap_images: int = HEATMAP_IMAGES,
    seed: int = _SEED,
    resamples: int = RESAMPLES,
) -> Lungs:
    """All three.

    Parameters
    ----------
    asked
        Out-of-fold images of two classes; those with outlined lungs are taken, all for the blanking, `heatmap_images`
        by `seed` for the heatmaps' energy, and the first few of these for the randomisation check.
    folder
        Of the manifest; see `outlines`.
    """
    outlined = outlines(folder, asked.pictures)
    shown = asked.those(lambda picture: picture.image_id in outlined)
    if not len(shown):
        return {"absent": f"no image has outlined lungs: no {MASKS} and no {BOXES} beside the manifest or the images"}
    drawn = np.random.default_rng(seed).permutation(len(shown))[:heatmap_images].tolist()
    transform, energies, randomisation = transform_of(recipe), _Energies(), Randomisation()
    scores: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(shown)))
    groups = shown.groups
    for run in np.unique(shown.runs).tolist():
        network = load_network(experiment, run)
        checked: dict[str, Tensor] = {}
        for index in np.flatnonzero(shown.runs == run).tolist():
            picture = shown.pictures[index]
            pixels, inside = pixels_of(picture), outlined[picture.image_id].inside
            made = variants(pixels, inside)
            for name, row in zip(made, score_images(network, transform, made.values()), strict=True):
                scores[name][index] = answer(row, recipe.given or recipe.score)
            if index in drawn:
                for name, heatmap in heatmaps(network, transform(pixels)).items():
                    energies.add(name, heatmap, lung_share(inside, transform, heatmap.shape), int(groups[index]))
            if index in drawn[:RANDOMISED_IMAGES]:
                checked[picture.image_id] = transform(pixels)
        group_of = {picture.image_id: group for picture, group in zip(shown.pictures, groups.tolist(), strict=True)}
        randomisation.add(network, checked, group_of, seed)
    truth = shown.finding(positive)
    means = {name: statistics.mean(found[truth], groups[truth], resamples) for name, found in scores.items()}
    return {
        "absent": "",
        "images": dict(sorted(Counter(picture.finding for picture in shown.pictures).items())),
        "outlines": dict(sorted(Counter(outlined[picture.image_id].origin for picture in shown.pictures).items())),
        "auc": {name: statistics.auc(found, truth, groups, resamples) for name, found in scores.items()},
        "fall": {
            name: statistics.auc_difference(scores[AS_IT_IS], scores[name], truth, groups, resamples)
            for name in (BLANKED, BOXES_BLANKED, ONLY)
        },
        "mean_score": {name: figure for name, figure in means.items() if figure is not None},
        "heatmap_images": len(drawn),
        "energy": energies.figures(resamples),
        "randomisation": randomisation.figures(resamples),
    }


class _Energies:
    """Per heatmap: its share inside the lungs (NaN of an empty one), the lungs' area, and the group of the patient."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._groups: dict[str, list[int]] = defaultdict(list)

    def add(self, name: str, heatmap: Tensor, share: Tensor, group: int) -> None:
        whole = float(heatmap.sum())
        inside = float((heatmap * share).sum()) / whole if whole > 0 else np.nan
        self._found[name].append((inside, float(share.mean())))
        self._groups[name].append(group)

    def figures(self, resamples: int) -> dict[str, Energy]:
        result: dict[str, Energy] = {}
        for name, found in self._found.items():
            inside, area = np.array(found).T
            groups, there = np.array(self._groups[name]), np.isfinite(inside)
            of_area = statistics.mean(area, groups, resamples)
            if of_area is not None:
                result[name] = {
                    "inside": statistics.mean(inside[there], groups[there], resamples),
                    "area": of_area,
                    "more_than_area": statistics.mean((inside - area)[there], groups[there], resamples),
                    "empty": int((~there).sum()),
                }
        return result
