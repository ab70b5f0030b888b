"""The losses of the papers, by name: each takes a network's outputs, its inputs and the labels of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from training.models.zhang import classification_loss, deviation_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from training.models.jahan import Reconstructed
    from training.models.zhang import Scores

    Loss = Callable[[Any, Tensor, Tensor], Tensor]


def zhang() -> Loss:
    """Sum of the losses of the heads that the network has (Zhang 2020, eq. 1 and 2); label 1 is the anomaly."""

    def loss(outputs: Scores, _inputs: Tensor, labels: Tensor) -> Tensor:
        y = (labels == 1).float()
        parts = []
        if outputs.classification is not None:
            parts.append(classification_loss(outputs.classification.float(), y))
        if outputs.anomaly is not None:
            parts.append(deviation_loss(outputs.anomaly.float(), y))
        return torch.stack(parts).sum()

    return loss


def zhang_hierarchy(normal: int = 0, covid19: int = 3) -> Loss:
    """The anomaly head tells abnormal from normal, the classification head COVID-19 among the abnormal.

    Parameters
    ----------
    normal, covid19
        The labels of these classes; all others are other diseases.
    """

    def loss(outputs: Scores, _inputs: Tensor, labels: Tensor) -> Tensor:
        abnormal = labels != normal
        parts = []
        if outputs.classification is not None:
            among = outputs.classification.float()[abnormal]
            each = classification_loss(among, (labels[abnormal] == covid19).float()) if len(among) else among.sum()
            parts.append(each)
        if outputs.anomaly is not None:
            parts.append(deviation_loss(outputs.anomaly.float(), abnormal.float()))
        return torch.stack(parts).sum()

    return loss


def cross_entropy(class_weights: Sequence[float] = (), smoothing: float = 0.0, smoothing_form: str = "library") -> Loss:
    """Mean cross-entropy of logits of shape (N, classes).

    Parameters
    ----------
    class_weights
        Factor of an image's loss by its class, as Keras' `class_weight`: the mean is over images, not over weights.
    smoothing, smoothing_form
        Epsilon, and where it goes: ``paper`` gives epsilon / (classes - 1) to each other class (Zhong 2020, eq. 2),
        ``library`` epsilon / classes to every class (Szegedy et al. 2016; torch and Keras).
    """
    if smoothing_form not in ("paper", "library"):
        raise ValueError(f"smoothing form {smoothing_form!r} is not known; use paper or library")

    def loss(outputs: Tensor, _inputs: Tensor, labels: Tensor) -> Tensor:
        logits = outputs.float()
        targets = smoothed(labels, logits.shape[1], smoothing, smoothing_form)
        each = functional.cross_entropy(logits, targets, reduction="none")
        if class_weights:
            each = each * torch.tensor(class_weights, device=each.device)[labels]
        return each.mean()

    return loss


def smoothed(labels: Tensor, classes: int, epsilon: float, form: str) -> Tensor:
    """Target probabilities, shape (N, classes)."""
    exact = functional.one_hot(labels, classes).float()
    if form == "paper":
        return exact * (1 - epsilon) + (1 - exact) * (epsilon / (classes - 1))
    return exact * (1 - epsilon) + epsilon / classes


def reconstruction() -> Loss:
    """Mean squared error between the image and what the autoencoder makes of it (Jahan 2022, section III.C)."""

    def loss(outputs: Reconstructed, inputs: Tensor, _labels: Tensor) -> Tensor:
        return functional.mse_loss(outputs.reconstruction.float(), inputs.expand_as(outputs.reconstruction))

    return loss


LOSSES: dict[str, Callable[..., Loss]] = {
    "zhang": zhang,
    "zhang_hierarchy": zhang_hierarchy,
    "cross_entropy": cross_entropy,
    "reconstruction": reconstruction,
}
