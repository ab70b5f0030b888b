"""The questions that a `folds` experiment can answer honestly, each asked of networks that never saw the patient.

The class nearly equals the source, so that a network can answer "COVID-19 against the rest" by telling sources apart
(DeGrave et al. 2021). Hence the questions within one source, where telling sources apart helps less (a source itself
mixes hospitals and papers), and beside every pooled figure those of its sources.

A threshold or a calibration that is applied to a fold comes from the rows of the other folds; what is applied to the
network `final` comes from the out-of-fold rows of split `train`, and nothing from `val` or `external`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from dicom_node.evaluation import statistics
from dicom_node.evaluation.bootstrap import RESAMPLES
from training.data.splits import fold_of, groups_of
from training.evaluation.groups import at, best_thresholds, brief, group
from training.evaluation.wording import OWN
from training.experiment import FOLDS
from training.models.calibration import fit_platt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dicom_node.evaluation.shape import Baseline, Brief, Task
    from training.data.manifest import Picture
    from training.evaluation.rows import Rows
    from training.recipe import Recipe

COVID19, PNEUMONIA, NORMAL, REST = "covid19", "pneumonia", "normal", "the rest"
# A source is asked a question where it has this many images of either answer.
LEAST_IMAGES = 20
# Collections of children only: told from adults without a look at the lungs, they would move every threshold.
CHILDREN = ("kermany",)
NOT_STATED = "not stated"
BY_PNEUMONIA = "by the answer to pneumonia: "  # how the names of tasks begin that are else asked of abnormality's
_SEED = 20
_EPSILON = 1e-12
_PNEUMONIA_OR_NORMAL = "p_pneumonia / (p_pneumonia + p_normal)"
AGES = ((18, "under 18"), (40, "18 to 39"), (60, "40 to 59"), (200, "60 and over"))


@dataclass(frozen=True, slots=True)
class Scored:
    """Images with one score each.

    Attributes
    ----------
    name
        What the score is called.
    scores
        Larger is likelier positive; shape (N,).
    outputs
        What a calibration is fitted on, shape (N,): the score, in log-odds where the network gives them.
    runs
        The run whose network gave the score, shape (N,); that network never saw the image's patient.
    calibrated
        Whether `outputs` are the logits of a calibrated probability already.
    """

    pictures: tuple[Picture, ...]
    name: str
    scores: NDArray[np.float64]
    outputs: NDArray[np.float64]
    runs: NDArray[np.str_]
    calibrated: bool = False

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pictures)

    def those(self, fits: Callable[[Picture], bool]) -> Scored:
        """The images that fit."""
        return self.chosen(np.array([fits(picture) for picture in self.pictures], dtype=bool))

    def chosen(self, which: NDArray[np.bool_]) -> Scored:
        """Some of the images."""
        pictures = tuple(picture for picture, is_in in zip(self.pictures, which, strict=True) if is_in)
        return Scored(pictures, self.name, self.scores[which], self.outputs[which], self.runs[which], self.calibrated)

    def finding(self, name: str) -> NDArray[np.bool_]:
        """Which images have the finding."""
        return np.array([picture.finding == name for picture in self.pictures], dtype=bool)

    @property
    def patients(self) -> list[str]:
        """The patient of each image."""
        return [picture.patient_id for picture in self.pictures]

    @property
    def groups(self) -> NDArray[np.int64]:
        """What the bootstrap draws: the patient of each image, patients of near duplicates together; shape (N,)."""
        return groups_of(self.pictures)


class Forests(Protocol):
    """The no-lung baselines: title and out-of-fold score of each image, by name."""

    def __call__(  # noqa: D102
        self, pictures: Sequence[Picture], positive: NDArray[np.bool_], folds: NDArray[np.str_]
    ) -> dict[str, tuple[str, NDArray[np.float64]]]: ...


def scored(
    rows: Rows,
    recipe: Recipe,
    task: str,
    pictures: Mapping[str, Picture],
    positive: str = COVID19,
    negative: str = NORMAL,
) -> Scored | None:
    """The score of each row that answers "`positive`?"; None where the network is not asked that.

    "COVID-19?" is the recipe's own score; "COVID-19 or other pneumonia?" its `given`, where it has one. "Pneumonia?"
    (against normal) is the recipe's own score where that is the experiment's `task`, or where the network was trained
    on one class and so tells anomalies of any kind; its `abnormal`, where it has one; else
    ``p_pneumonia / (p_pneumonia + p_normal)`` where the network gives both.
    """
    name = recipe.score
    if positive == COVID19 and negative == PNEUMONIA:
        name = recipe.given or name
    elif positive == PNEUMONIA and task == COVID19 and not recipe.train_on:
        name = recipe.abnormal or _PNEUMONIA_OR_NORMAL
    if positive != task and task != COVID19:
        return None
    if name == _PNEUMONIA_OR_NORMAL and not {"p_pneumonia", "p_normal"} <= set(rows.scores):
        return None
    shown = tuple(pictures[image] for image in rows.images.tolist())
    scores = rows.column(name)
    return Scored(shown, name, scores, _outputs(rows, name, scores), rows.runs)


def _outputs(rows: Rows, name: str, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The log-odds where the score is a probability that they are known of, else the score."""
    odds = name.replace("p_", "logit_", 1)
    if name.startswith("p_") and odds in rows.scores:
        return rows.column(odds)
    return logit(scores.clip(_EPSILON, 1 - _EPSILON)) if " / " in name else scores


@dataclass(frozen=True, slots=True)
class Applied:
    """What other images taught, for each image: thresholds by name and the calibrated logit, each of shape (N,)."""

    thresholds: dict[str, NDArray[np.float64]]
    logits: NDArray[np.float64]
    learnt_on: str


def learnt(asked: Scored, fit: Scored, positive: str, learnt_on: str) -> Applied | None:
    """Thresholds and calibration for each of `asked`, from those of `fit` that other networks scored.

    None where a fold leaves one class only.
    """
    thresholds: dict[str, NDArray[np.float64]] = {}
    logits = asked.outputs.copy()
    for run in np.unique(asked.runs):
        others, here = fit.chosen(fit.runs != run), asked.runs == run
        truth = others.finding(positive)
        if truth.all() or not truth.any():
            return None
        for name, threshold in best_thresholds(others.scores, truth).items():
            thresholds.setdefault(name, np.zeros(len(asked)))[here] = threshold
        if not asked.calibrated:
            platt = fit_platt(others.outputs, truth)
            logits[here] = platt.slope * asked.outputs[here] + platt.intercept
    return Applied(thresholds, logits, learnt_on)


def covid19_tasks(
    out_of_fold: Scored,
    final: Scored | None,
    forests: Forests | None = None,
    resamples: int = RESAMPLES,
    given: Scored | None = None,
    shipped: Mapping[str, float] | None = None,
) -> dict[str, Task]:
    """COVID-19 against other pneumonia within a source, against the rest by source and pooled, and on `external`.

    Parameters
    ----------
    out_of_fold
        Each image once, scored by the fold network that never saw it.
    final
        The images of `val` and `external`, scored by the network trained on `train`.
    given
        The images of `out_of_fold` with the score that tells COVID-19 from other pneumonia, where that is another.
    shipped
        The thresholds that `final` is held against, by the names of `THRESHOLDS`; without them, those that the
        out-of-fold scores of split `train`'s adults give.
    """
    found = dict(within_sources(given or out_of_fold, COVID19, PNEUMONIA, forests, resamples))
    adults = out_of_fold.those(lambda picture: picture.source not in CHILDREN)
    adults = adults if len(adults) else out_of_fold
    for where, asked in _by_source(out_of_fold):
        applied = learnt(asked, adults, COVID19, "on the other folds' images of adults")
        found[f"covid19 against the rest, {where}"] = _task(
            f"COVID-19 against the rest, {where}, out of fold", asked, COVID19, REST, applied, forests, resamples
        )
    if final is None:
        return found
    fit = adults.those(lambda picture: picture.split == "train")
    on = "on the out-of-fold scores of the adults of split train"
    for where, asked in _by_source(final.those(lambda picture: picture.split == "val")):
        applied = _shipped(asked, shipped, on) if shipped else learnt(asked, fit, COVID19, on)
        title = f"COVID-19 against the rest, {where}, split val, network of split train"
        found[f"val, {where}"] = _task(title, asked, COVID19, REST, applied, None, resamples)
    # Hardly any other image: sensitivity only. A group that was moved here whole brings twins from sources trained on.
    known = {picture.source for picture in (*out_of_fold.pictures, *final.pictures) if picture.split != "external"}
    asked = final.those(lambda picture: picture.source not in known and picture.finding == COVID19)
    if len(asked):
        title = "Sensitivity to COVID-19 on a source never trained on, network of split train"
        applied = _shipped(asked, shipped, on) if shipped else learnt(asked, fit, COVID19, on)
        found["external"] = _task(title, asked, COVID19, REST, applied, None, resamples)
        for point in found["external"]["figures"]["at"].values():
            (frozen,) = point["thresholds"]
            when_chosen = statistics.at_thresholds(fit.scores, fit.finding(COVID19), frozen, on)
            point["specificity_when_chosen"] = when_chosen["specificity"]
    return found


def _shipped(asked: Scored, thresholds: Mapping[str, float], learnt_on: str) -> Applied:
    """What a bundle ships, applied to scores that it has calibrated."""
    return Applied({name: np.full(len(asked), value) for name, value in thresholds.items()}, asked.outputs, learnt_on)


def own_task(tested: Scored, forests: Forests | None = None, resamples: int = RESAMPLES) -> dict[str, Task]:
    """COVID-19 against the rest on the test images of a paper's own protocol.

    Where all are tested by one run, the forests take folds of these images among themselves.
    """
    several = len(np.unique(tested.runs)) > 1
    applied = learnt(tested, tested, COVID19, "on the other runs' test images") if several else None
    folds = None if several else _drawn_folds(tested)
    title = "COVID-19 against the rest, test images of the paper's own protocol"
    return {OWN: _task(title, tested, COVID19, REST, applied, forests, resamples, folds)}


def _drawn_folds(images: Scored) -> NDArray[np.str_]:
    strata = [f"{picture.source}/{picture.finding}" for picture in images.pictures]
    return fold_of(images.pictures, strata, FOLDS, _SEED).astype(np.str_)


def pneumonia_tasks(
    asked: Scored,
    forests: Forests | None = None,
    resamples: int = RESAMPLES,
    shipped: Mapping[str, float] | None = None,
) -> dict[str, Task]:
    """Pneumonia against normal within each source that holds both; `shipped` as in `covid19_tasks`."""
    return dict(within_sources(asked, PNEUMONIA, NORMAL, forests, resamples, shipped))


def within_sources(
    out_of_fold: Scored,
    positive: str,
    negative: str,
    forests: Forests | None,
    resamples: int,
    shipped: Mapping[str, float] | None = None,
) -> Iterator[tuple[str, Task]]:
    """One finding against another in each source that has enough of both; COVID-19 on PA images alone too.

    With thresholds that are `shipped` the images are those of split `val`.
    """
    how = "split val, network of split train" if shipped else "out of fold"
    both = out_of_fold.those(lambda picture: picture.finding in (positive, negative))
    titles = {COVID19: "COVID-19", PNEUMONIA: "pneumonia", NORMAL: "normal"}
    against = "other pneumonia" if negative == PNEUMONIA else titles[negative]
    for source in sorted({picture.source for picture in both.pictures}):
        views = ("", "PA") if positive == COVID19 else ("",)
        for view in views:
            asked = both.those(lambda p, s=source, v=view: p.source == s and v in ("", p.view))  # type: ignore[misc]
            truth = asked.finding(positive)
            if min(truth.sum(), (~truth).sum()) < LEAST_IMAGES:
                continue
            applied = (
                _shipped(asked, shipped, "on the out-of-fold scores of split train")
                if shipped
                else learnt(asked, asked, positive, "on the other folds' images of this question")
            )
            where = f"{source}, {view}" if view else source
            title = f"{titles[positive]} against {against} within {where}, {how}"
            title = title[0].upper() + title[1:]
            task = _task(title, asked, positive, negative, applied, forests, resamples)
            yield f"{positive} against {negative}, {where}", task


def _by_source(images: Scored) -> Iterator[tuple[str, Scored]]:
    """Each source alone, the adults' together, all together."""
    sources = sorted({picture.source for picture in images.pictures})
    for source in sources:
        yield source, images.those(lambda picture, source=source: picture.source == source)  # type: ignore[misc]
    if len(set(sources) - set(CHILDREN)) > 1:
        yield "adults", images.those(lambda picture: picture.source not in CHILDREN)
    if len(sources) > 1:
        yield "pooled", images


def _task(
    title: str,
    asked: Scored,
    positive: str,
    negative: str,
    applied: Applied | None,
    forests: Forests | None,
    resamples: int,
    folds: NDArray[np.str_] | None = None,
) -> Task:
    """`folds` are the forests', where they are not the runs."""
    truth = asked.finding(positive)
    two_classes = bool(truth.any() and not truth.all())
    thresholds, learnt_on = (applied.thresholds, applied.learnt_on) if applied else ({}, "")
    by_threshold = at(asked.scores, truth, thresholds, learnt_on)
    figures = group(asked.scores, truth, asked.patients, asked.groups, by_threshold, resamples=resamples)
    if figures["auc"] is not None:
        each = [_area(asked.chosen(asked.runs == run), positive) for run in np.unique(asked.runs)]
        figures["auc"]["of_runs"] = statistics.of_runs(each)
    return {
        "title": title,
        "positive": positive,
        "negative": negative,
        "score": asked.name,
        "figures": figures,
        "calibration": statistics.calibration(expit(applied.logits), truth) if applied else None,
        "baselines": _baselines(asked, truth, asked.runs if folds is None else folds, forests, resamples)
        if two_classes and forests
        else {},
        "subgroups": _subgroups(asked, truth, thresholds, learnt_on, resamples) if two_classes else {},
        "sources": sorted({picture.source for picture in asked.pictures}),
    }


def _area(asked: Scored, positive: str) -> float | None:
    found = statistics.auc(asked.scores, asked.finding(positive), asked.groups, resamples=0)
    return found and found["value"]


def _baselines(
    asked: Scored, truth: NDArray[np.bool_], folds: NDArray[np.str_], forests: Forests, resamples: int
) -> dict[str, Baseline]:
    found: dict[str, Baseline] = {}
    groups = asked.groups
    for name, (title, scores) in forests(asked.pictures, truth, folds).items():
        area = statistics.auc(scores, truth, groups, resamples)
        more = statistics.auc_difference(asked.scores, scores, truth, groups, resamples)
        if area is not None and more is not None:
            found[name] = {
                "title": title,
                "auc": area,
                "difference": more,
                "roc": statistics.roc(scores, truth),
            }
    return found


def _subgroups(
    asked: Scored,
    truth: NDArray[np.bool_],
    thresholds: Mapping[str, NDArray[np.float64]],
    learnt_on: str,
    resamples: int,
) -> dict[str, dict[str, Brief]]:
    """By view, sex and age, at the same thresholds."""
    patients, groups = np.array(asked.patients), asked.groups
    found: dict[str, dict[str, Brief]] = {}
    for kind, value_of in SUBGROUPS.items():
        values = np.array([value_of(picture) for picture in asked.pictures])
        found[kind] = {}
        for value in np.unique(values).tolist():
            chosen = values == value
            part = {name: threshold[chosen] for name, threshold in thresholds.items()}
            by_threshold = at(asked.scores[chosen], truth[chosen], part, learnt_on)
            found[kind][value] = brief(
                asked.scores[chosen], truth[chosen], patients[chosen], groups[chosen], by_threshold, resamples
            )
    return found


def age_group(picture: Picture) -> str:
    """The age in four bands."""
    try:
        age = float(picture.age)
    except ValueError:
        return NOT_STATED
    return next((name for under, name in AGES if age < under), NOT_STATED)


SUBGROUPS: dict[str, Callable[[Picture], str]] = {
    "view": lambda picture: picture.view or NOT_STATED,
    "sex": lambda picture: picture.sex or NOT_STATED,
    "age": age_group,
}


def combined(members: Sequence[tuple[Scored, Scored | None]]) -> tuple[Scored, Scored | None]:
    """The out-of-fold and the final scores of several networks as one: the mean of their calibrated logits.

    Each is calibrated on out-of-fold scores of split `train`'s adults, a fold's on those of the other folds. Images
    that one of the networks has not scored are left out; the folds are those of the first.

    Raises
    ------
    ValueError
        Where a fold leaves one class only.
    """
    out_of_folds = [out_of_fold for out_of_fold, _ in members]
    finals = [final for _, final in members if final is not None]
    whole = len(finals) == len(members)
    adults = [
        one.those(lambda picture: picture.split == "train" and picture.source not in CHILDREN) for one in out_of_folds
    ]
    return _mean(out_of_folds, adults), _mean(finals, adults) if whole else None


def together(members: Sequence[Scored], positive: str, negative: str) -> Scored:
    """The weighted mean of what the networks say of `both_answers`, in deviations of what they say of the other folds.

    A network weighs as much as the two answers lie apart in what it says of the other folds: `_apart`. Nothing else is
    fitted on the answers: of a few dozen images that would differ from fold to fold by chance.
    """
    asked = [both_answers(member, positive, negative) for member in members]
    shown = _shared(asked)
    weights = np.stack([_of(member, _apart(member, positive), shown) for member in asked])
    values = np.stack([_of(member, _standardised(member), shown) for member in asked])
    mean = (weights * values).sum(axis=0) / weights.sum(axis=0)
    return Scored(shown.pictures, "weighted mean of standardised outputs", mean, mean, shown.runs)


def _standardised(member: Scored) -> NDArray[np.float64]:
    found = np.zeros(len(member))
    for run in np.unique(member.runs):
        here = member.runs == run
        others = member.outputs[~here]
        found[here] = (member.outputs[here] - others.mean()) / (others.std() or 1.0)
    return found


def _apart(member: Scored, positive: str) -> NDArray[np.float64]:
    """How many deviations the two answers lie apart in the other folds, shape (N,): probit of the AUC, at least 0.

    The mean over the collections that hold enough of both. A network that tells nothing weighs nothing beside others,
    and one that makes no mistake as much as if it made half a one.
    """
    truth, source = member.finding(positive), np.array([picture.source for picture in member.pictures])
    found = np.zeros(len(member))
    for run in np.unique(member.runs):
        here = member.runs == run
        probits = []
        for name in np.unique(source):
            those = ~here & (source == name)
            positives = int(truth[those].sum())
            negatives = int(those.sum()) - positives
            if min(positives, negatives) >= LEAST_IMAGES:
                area = roc_auc_score(truth[those], member.outputs[those])
                probits.append(norm.ppf(np.clip(area, 0.5 + _EPSILON, 1 - 1 / (2 * positives * negatives))))
        found[here] = np.mean(probits) if probits else _EPSILON
    return found


def both_answers(asked: Scored, positive: str, negative: str) -> Scored:
    """The images with either finding, of collections that hold both.

    Where a collection holds one of them only, telling collections apart would count.
    """
    asked = asked.those(lambda picture: picture.finding in (positive, negative))
    kinds = {(picture.source, picture.finding) for picture in asked.pictures}
    return asked.those(lambda picture: {(picture.source, positive), (picture.source, negative)} <= kinds)


def _mean(asked: Sequence[Scored], fits: Sequence[Scored]) -> Scored:
    """Mean calibrated logit of each image that all of `asked` have scored, calibrated on `fits`."""
    shown = _shared(asked)
    each = []
    for member, fit in zip(asked, fits, strict=True):
        applied = learnt(member, fit, COVID19, "")
        if applied is None:
            raise ValueError("the scores cannot be calibrated: a fold leaves adults of one class only in split train")
        each.append(_of(member, applied.logits, shown))
    logits = np.mean(each, axis=0)
    return Scored(shown.pictures, "mean calibrated logit", expit(logits), logits, shown.runs, calibrated=True)


def _shared(asked: Sequence[Scored]) -> Scored:
    """The images that all have scored, with the scores and folds of the first."""
    shared = set.intersection(*({picture.image_id for picture in member.pictures} for member in asked))
    return asked[0].those(lambda picture: picture.image_id in shared)


def _of(member: Scored, values: NDArray[np.float64], shown: Scored) -> NDArray[np.float64]:
    """The member's values of the images shown, in their order."""
    place = {picture.image_id: i for i, picture in enumerate(member.pictures)}
    return values[[place[picture.image_id] for picture in shown.pictures]]
