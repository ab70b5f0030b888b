"""Whether the score needs the lungs, the heatmaps lie on them, and the heatmaps come from what the network has learnt.

Asked of the images whose lungs are outlined (`training.data.outlines`), each of the fold's network that never saw its
patient. (A layer that tells the lungs has seen outlines of patients that are asked about: where their lungs are, not
what was found.)

- A blanked region takes the mean of what is kept, so that nothing of it is left in the grey of the blank. The lungs'
  silhouette is left, and it can tell something by itself; `lung boxes blanked` takes the silhouette away too. `lungs
  only` blanks what is outside the lungs.
- The energy of a heatmap inside the lungs stands beside the share of the input's area that is lung.
- The third is `training.evaluation.randomisation`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np

from dicom_node.evaluation import statistics
from dicom_node.evaluation.bootstrap import RESAMPLES
from training.data.outlines import BOXES, MASKS, lung_share, outlines
from training.data.squares import pixels_of
from training.evaluation.randomisation import Randomisation, heatmaps
from training.evaluation.rows import answer
from training.scoring import load_network, score_images, transform_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from dicom_node.evaluation.shape import Energy, Lungs
    from training.evaluation.tasks import Scored
    from training.recipe import Recipe

AS_IT_IS, BLANKED, BOXES_BLANKED, ONLY = "as it is", "lungs blanked", "lung boxes blanked", "lungs only"
HEATMAP_IMAGES = 60  # a map by occlusion costs as much as the scores of some fifty images
RANDOMISED_IMAGES = 12
_SEED = 20


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


def lungs(
    experiment: Path,
    recipe: Recipe,
    asked: Scored,
    data: Path,
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
    data
        The manifest, or its folder; see `outlines`.
    """
    outlined = outlines(data, asked.pictures)
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
