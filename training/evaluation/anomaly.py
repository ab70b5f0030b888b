"""Scores of a network that was trained on one class (Jahan 2022, section IV): by finding, with their AUC."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dicom_node.evaluation import statistics
from dicom_node.evaluation.bootstrap import RESAMPLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dicom_node.evaluation.shape import Anomaly, Figure, Quantiles
    from training.data.manifest import Picture
    from training.evaluation.rows import Rows

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NORMAL = "normal"


def anomaly(rows: Rows, pictures: Mapping[str, Picture], resamples: int = RESAMPLES) -> Anomaly:
    """Quantiles of each score by source and finding, and each finding's AUC against normal.

    A density is large where nothing is unusual, so its AUC is that of the density turned.
    """
    shown = [pictures[image] for image in rows.images.tolist()]
    finding, source = (np.array([getattr(picture, name) for picture in shown]) for name in ("finding", "source"))
    groups = {f"{s}/{f}": (source == s) & (finding == f) for s in np.unique(source) for f in np.unique(finding)}
    groups |= {f"all/{f}": finding == f for f in np.unique(finding)}
    scores: dict[str, dict[str, Quantiles]] = {}
    areas: dict[str, dict[str, Figure | None]] = {}
    for name, values in rows.scores.items():
        found = {where: _quantiles(values[which], rows.groups[which], resamples) for where, which in groups.items()}
        scores[name] = {where: quantiles for where, quantiles in found.items() if quantiles is not None}
        turned = rows.column(f"-{name}" if "density" in name else name)
        areas[name] = {
            f"{other} against {_NORMAL}": statistics.auc(
                turned[which], finding[which] == other, rows.groups[which], resamples
            )
            for other in np.unique(finding).tolist()
            if other != _NORMAL and (which := np.isin(finding, (other, _NORMAL))).any()
        }
    return {
        "scores": scores,
        "auc": areas,
        "histograms": {name: statistics.histogram(values, finding.tolist()) for name, values in rows.scores.items()},
    }


def _quantiles(values: NDArray[np.float64], groups: NDArray[np.int64], resamples: int) -> Quantiles | None:
    mean = statistics.mean(values, groups, resamples)
    if mean is None:
        return None
    return {
        "images": len(values),
        "mean": mean,
        "deviation": float(values.std(ddof=1)) if len(values) > 1 else None,
        "quantiles": {str(part): float(np.quantile(values, part)) for part in _QUANTILES},
    }
