"""What is fitted after the last epoch, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler

from training.augment import augment
from training.models.classifier import LAST_LAYER
from training.models.jahan import COMPONENTS, Jahan2022
from training.models.minaee import Minaee2020
from training.recipe import BY_SOURCE_AND_CLASS, NO_BALANCE, Augmentation

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from training.fit import Images
    from training.models.network import Network
    from training.recipe import Recipe

_STEPS = 1000
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


def last_layer(network: Network, recipe: Recipe, images: Images, _seed: int, *, strength: float) -> None:
    """Fit the last layer of a classifier by logistic regression on what its frozen layers make of the images.

    Parameters
    ----------
    strength
        See `regression`.
    """
    if not isinstance(network, Minaee2020) or images.features is None:
        raise ValueError(f"{recipe.paper} {recipe.variant} has no frozen features that a last layer could be fitted on")
    scaler, fitted = regression(images.features, images.labels, balanced(images, recipe.balance), strength)
    if len(fitted.classes_) != len(recipe.classes):
        raise ValueError(f"there are training images of {len(fitted.classes_)} of {len(recipe.classes)} classes only")
    weight = fitted.coef_ / scaler.scale_
    bias = fitted.intercept_ - weight @ scaler.mean_
    if len(recipe.classes) == 2:  # one row tells two classes apart
        weight, bias = (np.concatenate([-one, one]) / 2 for one in (weight, bias))
    last = network.backbone.get_submodule(LAST_LAYER[network.architecture])
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(weight))
        last.bias.copy_(torch.from_numpy(bias))


def balanced(images: Images, balance: str) -> NDArray[np.float64]:
    """The weight of each image, 1 in sum: equal in sum for each stratum, or each class, or for each image."""
    if balance == NO_BALANCE:
        return np.full(len(images), 1 / len(images))
    strata = images.strata if balance == BY_SOURCE_AND_CLASS else images.labels.astype(np.str_)
    _, stratum, count = np.unique(strata, return_inverse=True, return_counts=True)
    weights = (1 / count)[stratum]
    return np.asarray(weights / weights.sum())


def regression(
    features: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64], strength: float
) -> tuple[StandardScaler, LogisticRegression]:
    """What standardises the features, and a logistic regression on them.

    Parameters
    ----------
    features
        Of images and their mirror images, shape (N, 2, F).
    weights
        Of the images, 1 in sum.
    strength
        What the images' weighted mean log-likelihood is multiplied by, beside half the sum of the squared weights.
    """
    values, each = features.reshape(2 * len(features), -1), np.repeat(weights / 2, 2)
    scaler = StandardScaler().fit(values, sample_weight=each)
    fitted = LogisticRegression(C=strength, max_iter=_STEPS)
    return scaler, fitted.fit(scaler.transform(values), np.repeat(labels, 2), sample_weight=each)


FINISHING: dict[str, Callable[..., None]] = {"kernel_density": kernel_density, "last_layer": last_layer}
