"""Platt scaling: an output of a network becomes a logit whose sigmoid is a calibrated probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Platt:
    """``logit = slope * output + intercept``."""

    slope: float
    intercept: float

    def logit(self, output: float) -> float:
        """The calibrated logit of one output."""
        return self.slope * output + self.intercept


def fit_platt(outputs: NDArray[np.float64], positive: NDArray[np.bool_]) -> Platt:
    """The scaling that is likeliest on held-back outputs.

    Platt's smoothed targets keep it finite where the classes do not overlap. Newton's method, as the loss is convex
    in two parameters.

    Parameters
    ----------
    outputs, positive
        Both of shape (N,).
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not (n_positive and n_negative):
        raise ValueError("calibration needs images of both classes")
    target = np.where(positive, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    centre, spread = float(outputs.mean()), float(outputs.std()) or 1.0
    design = np.stack([(outputs - centre) / spread, np.ones_like(outputs)], axis=1)
    beta = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-design @ beta))
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        change = np.linalg.solve(hessian, design.T @ (p - target))
        beta -= change * min(1.0, 2.0 / float(np.abs(change).max() or 1.0))
        if np.abs(change).max() < 1e-10:
            break
    slope = float(beta[0] / spread)
    return Platt(slope, float(beta[1]) - slope * centre)
