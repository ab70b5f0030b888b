"""The layer that tells the lungs, fitted on outlined images: where lungs are, not what is wrong with them."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from training.data.outlines import MASKS, OF_MASK, lung_share, outlines
from training.data.squares import alone, pixels_of
from training.models.lungs import cells_of
from training.records import plain
from training.scoring import transform_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from training.data.manifest import Picture
    from training.data.outlines import Outline
    from training.models.lungs import Lungs
    from training.models.network import Network
    from training.recipe import Recipe

_SPLIT = "train"
_STRENGTH = 0.01
_STEPS = 200
SEEN_BY = ("weights", "resize", "crop", "resolution", "standardise")  # what decides how an image is seen


class Localiser:
    """Gives networks the weights of their `lungs`; fitted once for each backbone and preprocessing, and kept.

    Parameters
    ----------
    pictures, data
        Of a manifest, and the manifest or its folder; the frontal ones of split train that have a mask are fitted on.
    """

    def __init__(self, pictures: Sequence[Picture], data: Path, workdir: Path) -> None:
        self._pictures = [one for one in pictures if one.frontal and one.split == _SPLIT]
        self._data, self._workdir = data, workdir
        self._outlined: dict[str, Outline] | None = None

    def teach(self, network: Network, recipe: Recipe) -> str:
        """Fit the layer, or take the one that is kept; the name of it, empty for a network without lungs.

        Raises
        ------
        ValueError
            Where no picture has a mask.
        """
        if network.lungs is None:
            return ""
        masks = self.masks()
        what = [
            network.backbone_name, recipe.options["levels"],
            {name: plain(recipe)[name] for name in SEEN_BY},
            [[one.image_id, one.sha256, hashlib.sha256(masks[one.image_id].inside.tobytes()).hexdigest()]
             for one in self._pictures if one.image_id in masks],
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
        file = self._workdir / "lungs" / f"{digest}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        with alone(file.with_suffix(".lock")):
            if not file.is_file():
                self._fit(network, network.lungs, recipe, masks)
                part = file.with_suffix(".part")
                safetensors.torch.save_file(network.lungs.state_dict(), part)
                part.replace(file)
        network.lungs.load_state_dict(safetensors.torch.load_file(file))
        return digest

    def masks(self) -> dict[str, Outline]:
        """The outlines that are fitted on, by image id; ValueError where there are none."""
        if self._outlined is None:
            found = outlines(self._data, self._pictures)
            self._outlined = {name: outline for name, outline in found.items() if outline.origin == OF_MASK}
        if not self._outlined:
            raise ValueError(
                f"lungs: no frontal image of split {_SPLIT} has its lungs outlined; put {MASKS}/IMAGE_ID.png beside "
                "the images, or leave the option lungs out"
            )
        return self._outlined

    @torch.inference_mode()
    def _fit(self, network: Network, lungs: Lungs, recipe: Recipe, masks: dict[str, Outline]) -> None:
        training = network.training
        network.eval()
        transform = transform_of(recipe)
        values, inside = [], []
        for picture in self._pictures:
            if picture.image_id in masks:
                x = transform(pixels_of(picture))[None].expand(-1, 3, -1, -1)
                maps = network.lung_maps(x)
                values.append(cells_of(maps))
                share = lung_share(masks[picture.image_id].inside, transform, maps[0].shape[-2:])
                inside.append(share.flatten() > 1 / 2)
        scaler = StandardScaler()
        fitted = LogisticRegression(C=_STRENGTH, max_iter=_STEPS)
        fitted.fit(scaler.fit_transform(torch.cat(values).numpy()), torch.cat(inside).numpy())
        weight = fitted.coef_[0] / scaler.scale_
        bias = fitted.intercept_[0] - weight @ scaler.mean_
        lungs.take(torch.from_numpy(weight).float(), float(bias))
        network.train(training)
