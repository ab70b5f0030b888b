"""What is fitted after the last epoch, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler

from training.augment import augment
from training.models.jahan import COMPONENTS, Jahan2022
from training.recipe import Augmentation

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from training.fit import Images
    from training.models.network import Network
    from training.recipe import Recipe

_FACTORS = np.logspace(-1, 1, 15)


def kernel_density(network: Network, recipe: Recipe, images: Images, seed: int) -> None:
    """Fit both densities of Jahan's autoencoder on the latents of the images that it was trained on.

    The paper's form is a Gaussian kernel on the 128 values, its bandwidth by Scott's rule (the paper is silent). The
    other standardises, keeps 16 principal components, and takes the bandwidth that is likeliest in five folds.
    """
    if not isinstance(network, Jahan2022):
        raise TypeError(f"a kernel density belongs to Jahan2022, not to {type(network).__name__}")
    rng = np.random.default_rng(seed)
    wanted = network.reference_count
    chosen = rng.permutation(len(images.labels))[:wanted]
    latents = _latents(network, recipe, images.squares(chosen))
    scaler = StandardScaler().fit(latents)
    pca = PCA(COMPONENTS, random_state=seed).fit(scaler.transform(latents))
    projected = scaler.transform(latents) @ pca.components_.T
    references = latents[np.arange(wanted) % len(latents)]  # fewer than wanted are gone through again
    network.set_density(
        torch.from_numpy(references),
        float(latents.std(axis=0).mean()) * _scott(*latents.shape),
        torch.from_numpy(scaler.mean_),
        torch.from_numpy(scaler.scale_),
        torch.from_numpy(pca.components_),
        _likeliest(projected),
    )


def _scott(count: int, dimensions: int) -> float:
    """Scott's factor (1992) of the deviation."""
    return float(count ** (-1 / (dimensions + 4)))


def _likeliest(points: NDArray[np.float64]) -> float:
    widths = points.std() * _scott(*points.shape) * _FACTORS
    search = GridSearchCV(KernelDensity(), {"bandwidth": widths}, cv=5).fit(points)
    return float(search.best_params_["bandwidth"])


@torch.inference_mode()
def _latents(network: Jahan2022, recipe: Recipe, squares: torch.Tensor) -> NDArray[np.float64]:
    network.eval()
    found = []
    for start in range(0, len(squares), 64):
        part = squares[start : start + 64]
        inputs = augment(part, recipe.crop, recipe.standardise, Augmentation(), torch.Generator())
        found.append(network.embed(inputs)["latent"])
    return torch.cat(found).double().numpy()


FINISHING: dict[str, Callable[[Network, Recipe, Images, int], None]] = {"kernel_density": kernel_density}
