"""What a bundle's members say, made into answers to its questions: everything that is fitted on out-of-fold scores.

Three questions. *Abnormal?* and *pneumonia?* are fitted and thresholded on collections that hold both answers, and as
many images of each. *COVID-19?* is asked as "if abnormal, is it COVID-19?" within collections that hold both COVID-19
and other pneumonia, as across collections it can be answered without a lung; the answer is withdrawn where the image
seems normal. Its last straight line and its thresholds come from adults of all collections. Networks that were never
taught other pneumonia are asked for COVID-19 against all else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from dicom_node.bundle import Calibration, Code, Manifest, Member, OperatingPoint, Target, WeightFile
from dicom_node.combination import Answer, answers, calibrated, disagreement, sigmoid
from dicom_node.evaluation.statistics import operating_points, proportion
from training.evaluation.groups import LEAST_SENSITIVITY
from training.evaluation.tasks import CHILDREN, COVID19, LEAST_IMAGES, NORMAL, PNEUMONIA
from training.models.calibration import fit_platt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from training.data.manifest import Picture
    from training.recipe import Recipe

    Scores = Mapping[str, Mapping[str, float]]  # of one image, by member and name
    Readings = Mapping[str, Mapping[str, dict[str, str]]]  # by member and question: output, over

ABNORMAL = "abnormal"
_CODES = {
    COVID19: ("COVID-19 suspected", Code(value="840539006", scheme="SCT", meaning="COVID-19")),
    PNEUMONIA: ("Pneumonia suspected", Code(value="233604007", scheme="SCT", meaning="Pneumonia")),
    ABNORMAL: ("Any abnormality", Code(value="263654008", scheme="SCT", meaning="Abnormal")),
}
# Where the probability of being abnormal is this, COVID-19's is halved. A higher one costs what tells COVID-19 from
# other pneumonia within a collection, as mild COVID-19 looks normal; a lower one lets normal images be flagged.
_WITHDRAWN = 0.05
_UNDECIDED = 0.05  # the share of images that the bound of disagreement leaves undecided
_LEAST_WEIGHT = 0.02
_SEED = 20
_QUANTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)  # per cent
_BINS = 20
_RATIO = re.compile(r"(p_\w+) / \(\1 \+ (p_\w+)\)")


def readings_of(recipe: Recipe, score_names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Which of a network's outputs answers which question; COVID-19 alone where it was taught nothing else."""
    own = recipe.score.removeprefix("-")
    if recipe.train_on:  # of one class: it tells anomalies of any kind, and no more
        return {ABNORMAL: {"output": own}, PNEUMONIA: {"output": own}}
    taught = {"p_covid19", "p_pneumonia", "p_normal"} <= set(score_names)
    if not (recipe.given or recipe.abnormal or taught):
        return {COVID19: {"output": own}}
    found = {}
    if recipe.abnormal or taught:
        found[ABNORMAL] = {"output": (recipe.abnormal or "logit_normal").removeprefix("-")}
        found[PNEUMONIA] = {"output": "p_covid19 + p_pneumonia", "over": "rest"} if taught else found[ABNORMAL]
    if not (recipe.given or taught):
        return found
    given = recipe.given or "p_covid19 / (p_covid19 + p_pneumonia)"
    if ratio := _RATIO.fullmatch(given):
        found[COVID19] = {"output": ratio[1], "over": ratio[2]}
    else:
        found[COVID19] = {"output": given, **({"over": "rest"} if given.startswith("p_cls") else {})}
    return found


@dataclass(frozen=True, slots=True)
class Fitted:
    """A manifest's targets and its members' calibrations, as they are fitted on some images."""

    targets: tuple[Target, ...]
    calibrations: Mapping[str, Mapping[str, Calibration]]

    def answers(self, scores: Sequence[Scores]) -> list[dict[str, Answer]]:
        """The answers to all questions, image by image, as service gives them."""
        manifest = _manifest(self.targets, self.calibrations)
        return [answers(manifest, each) for each in scores]


def fit_targets(readings: Readings, pictures: Sequence[Picture], scores: Sequence[Scores]) -> Fitted:
    """The questions that the members can answer, fitted on these images and their out-of-fold scores.

    Raises
    ------
    ValueError
        Where no member answers COVID-19, or there are no images with and without it.
    """
    if not any(COVID19 in own for own in readings.values()):
        raise ValueError(f"none of {', '.join(readings)} answers {COVID19}: a bundle needs a network that does")
    fit = _Fit(readings, pictures, scores)
    for question, positive in ((ABNORMAL, fit.abnormal), (PNEUMONIA, fit.pneumonia)):
        fit.add(question, fit.within(positive, ~fit.abnormal), positive)
    within = fit.collections(fit.covid19, fit.finding == PNEUMONIA) & np.isin(fit.finding, [COVID19, PNEUMONIA])
    taught = ABNORMAL in fit.targets and len(np.unique(fit.covid19[within])) == 2
    fit.add(COVID19, within if taught else fit.adults, fit.covid19, condition=taught)
    if COVID19 not in fit.targets:
        raise ValueError(
            f"calibration needs images with and without {COVID19} that every experiment scored out of fold"
        )
    order = [name for name in (COVID19, PNEUMONIA, ABNORMAL) if name in fit.targets]
    return Fitted(tuple(fit.targets[name] for name in order), fit.calibrations)


class _Fit:
    def __init__(self, readings: Readings, pictures: Sequence[Picture], scores: Sequence[Scores]) -> None:
        self._readings = readings
        self._scores = scores
        self.source = np.array([picture.source for picture in pictures])
        self.finding = np.array([picture.finding for picture in pictures])
        self.covid19 = self.finding == COVID19
        self.abnormal = self.finding != NORMAL
        # nih's other diseases carry the label pneumonia too; no collection at hand tells the two apart.
        self.pneumonia = np.isin(self.finding, [COVID19, PNEUMONIA])
        self.adults = ~np.isin(self.source, CHILDREN)
        self.targets: dict[str, Target] = {}
        self.calibrations: dict[str, dict[str, Calibration]] = {name: {} for name in readings}

    def collections(self, one: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The images of collections that hold enough of both."""
        names = [
            name
            for name in np.unique(self.source)
            if min((one & (self.source == name)).sum(), (other & (self.source == name)).sum()) >= LEAST_IMAGES
        ]
        return np.isin(self.source, names)

    def within(self, one: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The same number of images of each such collection, drawn by chance, with either answer."""
        inside = self.collections(one, other) & (one | other)
        names, counts = np.unique(self.source[inside], return_counts=True)
        chosen = np.zeros(len(self.source), dtype=bool)
        generator = np.random.default_rng(_SEED)
        for name in names:
            here = np.flatnonzero(inside & (self.source == name))
            chosen[generator.choice(here, counts.min(), replace=False)] = True
        return chosen

    def add(
        self, question: str, fitted: NDArray[np.bool_], positive: NDArray[np.bool_], *, condition: bool = False
    ) -> None:
        """Fit one question, where any member answers it and both answers are there."""
        names = [name for name, reading in self._readings.items() if question in reading]
        if not names or len(np.unique(positive[fitted])) < 2:
            return
        weights = {}
        for name in names:
            reading = self._readings[name][question]
            raw = np.array([_raw(reading, self._scores[i][name]) for i in np.flatnonzero(fitted).tolist()])
            platt = fit_platt(raw, positive[fitted])
            self.calibrations[name][question] = Calibration(**reading, slope=platt.slope, intercept=platt.intercept)
            weights[name] = _apart(raw * np.sign(platt.slope), positive[fitted], self.source[fitted])
        title, code = _CODES[question]
        whole = {"name": question, "title": title, "code": code, "weights": weights, "operating_point": "balanced"}
        whole["operating_points"] = {"balanced": OperatingPoint(threshold=0.5, sensitivity=0, specificity=0)}
        asked = fitted
        if condition:
            whole["condition"] = {"target": ABNORMAL, "threshold": _WITHDRAWN}
            asked = self.adults
        self.targets[question] = Target(**whole)
        logits = np.array([answer.logit for answer in self._answers(question, asked)])
        platt = fit_platt(logits, positive[asked])
        whole["scaling"] = {"slope": platt.slope, "intercept": platt.intercept}
        self.targets[question] = Target(**whole)
        whole |= _described(self._answers(question, asked), positive[asked])
        self.targets[question] = Target(**whole)

    def _answers(self, question: str, asked: NDArray[np.bool_]) -> list[Answer]:
        found = Fitted(tuple(self.targets.values()), self.calibrations)
        return [each[question] for each in found.answers([self._scores[i] for i in np.flatnonzero(asked).tolist()])]


def _described(found: Sequence[Answer], positive: NDArray[np.bool_]) -> dict[str, Any]:
    """Operating points, the bound of disagreement, and the reference distribution."""
    probability = np.array([sigmoid(answer.logit) for answer in found])
    points: dict[str, dict[str, Any]] = {**operating_points(probability, positive, LEAST_SENSITIVITY)}
    for point in points.values():
        flagged = probability >= point["threshold"]
        for name, right, those in (
            ("sensitivity", flagged & positive, positive),
            ("specificity", ~flagged & ~positive, ~positive),
        ):
            figure = proportion(int(right.sum()), int(those.sum()))
            point[f"{name}_interval"] = (figure["low"], figure["high"]) if figure else None
    threshold = points["balanced"]["threshold"]
    apart = np.array([disagreement(answer, threshold) for answer in found])
    described: dict[str, Any] = {
        "operating_points": points,
        "reference": {
            "positive": distribution(probability[positive]),
            "negative": distribution(probability[~positive]),
        },
    }
    bound = float(np.quantile(apart, 1 - _UNDECIDED))
    if 0 < bound < np.inf:
        wrong, beyond = (probability >= threshold) != positive, apart > bound
        described["disagreement"] = {
            "bound": bound,
            "share": float(beyond.mean()),
            "error": float(wrong[~beyond].mean()),
            "error_beyond": float(wrong[beyond].mean()) if beyond.any() else 0.0,
        }
        bound_of = described["disagreement"]["bound"]
        for point in points.values():
            left = np.array([disagreement(answer, point["threshold"]) > bound_of for answer in found])
            flagged = (probability >= point["threshold"]) & ~left
            point["undecided"] = float(left.mean())
            point["flagged_sensitivity"] = float(flagged[positive].mean())
    return described


def distribution(probability: NDArray[np.float64]) -> dict[str, Any]:
    """How probabilities are spread: how many they are, their quantiles, and a histogram of 0 to 1."""
    quantiles = np.percentile(probability, _QUANTILES)
    return {
        "images": len(probability),
        "quantiles": {str(per_cent): float(at) for per_cent, at in zip(_QUANTILES, quantiles, strict=True)},
        "histogram": np.histogram(probability, bins=_BINS, range=(0.0, 1.0))[0].tolist(),
    }


def _raw(reading: Mapping[str, str], scores: Mapping[str, float]) -> float:
    return calibrated(Calibration(**reading, slope=1, intercept=0), scores)


def _apart(values: NDArray[np.float64], positive: NDArray[np.bool_], source: NDArray[np.str_]) -> float:
    """A member's weight: how many deviations the two answers lie apart in what it says, by the probit of the AUC.

    The mean over the collections that hold both; where none holds enough, over all. One that tells nothing keeps a
    little, so that leaving it out changes something.
    """
    probits = []
    for name in np.unique(source):
        here = source == name
        positives = int(positive[here].sum())
        negatives = int(here.sum()) - positives
        if min(positives, negatives) >= LEAST_IMAGES:
            area = roc_auc_score(positive[here], values[here])
            probits.append(norm.ppf(np.clip(area, 0.5, 1 - 1 / (2 * positives * negatives))))
    if not probits:
        probits = [norm.ppf(np.clip(roc_auc_score(positive, values), 0.5, 1 - 1e-6))]
    return round(max(float(np.mean(probits)), _LEAST_WEIGHT), 4)


def _manifest(targets: Sequence[Target], calibrations: Mapping[str, Mapping[str, Calibration]]) -> Manifest:
    """As much of a manifest as the sums need."""
    members = [
        Member(
            name=name, title=name, version="0", architecture="", citation="", preprocessing={}, calibration=dict(own),
            weights=(WeightFile(file="none.safetensors", sha256="0" * 64),),
        )
        for name, own in calibrations.items()
    ]  # fmt: skip
    return Manifest(name="fitted", release="0", title="", targets=tuple(targets), members=tuple(members), training={})
