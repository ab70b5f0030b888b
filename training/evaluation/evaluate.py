"""What trained networks are worth: `evaluation.json`, a page to look at, the papers' numbers beside ours."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from dicom_node.evaluation import statistics
from dicom_node.evaluation.bootstrap import RESAMPLES
from training.data.manifest import manifest_sha256, read_manifest
from training.evaluation import tested
from training.evaluation.anomaly import anomaly
from training.evaluation.baselines import NoLungForests
from training.evaluation.comparison import write_comparison
from training.evaluation.lungs import HEATMAP_IMAGES, RANDOMISED_IMAGES, lungs
from training.evaluation.page import write_page
from training.evaluation.rows import rows_of
from training.evaluation.tasks import (
    CHILDREN,
    COVID19,
    NORMAL,
    PNEUMONIA,
    combined,
    covid19_tasks,
    own_task,
    pneumonia_tasks,
    scored,
    together,
)
from training.evaluation.wording import profile
from training.experiment import FINAL
from training.papers import PAPERS
from training.records import read_labels, read_record, read_scores, recipe_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dicom_node.evaluation.shape import Combination, Experiment
    from training.data.manifest import Picture
    from training.evaluation.rows import Rows
    from training.evaluation.tasks import Scored
    from training.recipe import Recipe

log = logging.getLogger(__name__)

EVALUATION = "evaluation.json"
METHOD = {
    "AUC, average precision, means, F1": "95 % percentile interval over {resamples} bootstrap draws of "
    "patients (near duplicates together)",
    "sensitivity, specificity, accuracy, precision, recall": "95 % Clopper-Pearson interval over images, Wilson's and "
    "the normal approximation (Minaee 2020, eq. 3) beside it; all too narrow where a patient has several images",
    "of runs": "mean and sample deviation over the runs or folds",
    "out of fold": "each image scored by the network whose fold held its patient and its near duplicates back; "
    "one network's folds are pooled as they score, not calibrated to one another: the AUC fold by fold stands beside",
    "thresholds and calibration": "a fold's come from the other folds; the final network's from the out-of-fold "
    f"scores of split train; in questions of COVID-19 against the rest without {', '.join(CHILDREN)} (children). "
    "Calibration is Platt's",
    "all together": "COVID-19 against the rest: mean of the calibrated logits. Questions within one source: mean of "
    "the outputs in deviations of the other folds' outputs, each network weighed by the probit of its AUC there",
    "baselines": "random forests that see no lung, on the same images, folds and labels; the difference of the AUCs "
    "is paired over the same bootstrap draws. Where a paper's protocol tests all images by one run, the forests take "
    "five folds of these images among themselves. Figures of split val and of sources never trained on have none "
    "beside them",
    "lungs": "a blanked region takes the mean grey of what is kept; energy is the share of a heatmap's sum that "
    "lies on lung, of a network that reads lungs only by construction",
    "randomisation": "rank correlation of heatmaps before and after the last layers (those of parallel heads together) "
    f"get random weights, {RANDOMISED_IMAGES} images, without those whose heatmap was empty before "
    "(Adebayo et al. 2018)",
    "calibration": "Brier score; expected calibration error over ten bins of equal width; slope and intercept of the "
    "logistic recalibration; net benefit after Vickers and Elkin 2006",
}


def evaluate(
    experiments: Sequence[Path],
    data: Path,
    out: Path,
    *,
    heatmap_images: int = HEATMAP_IMAGES,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """What stands in `out/evaluation.json`, in the form of `dicom_node.evaluation.shape.Evaluation`.

    The page and the comparison lie beside it.

    Parameters
    ----------
    experiments
        Folders of finished experiments; two or more of protocol `folds` are also evaluated as one ensemble.
    data
        The manifest that they were trained by, or its folder; `masks` and `lung_boxes.json` beside it or the images.

    Raises
    ------
    ValueError
        Where an experiment is not finished, is given twice, or was trained by another manifest.
    """
    pictures = read_manifest(data)
    by_id = {picture.image_id: picture for picture in pictures}
    names = [_name(folder) for folder in experiments]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two experiments are called {twice}; evaluate them apart")
    sha256 = manifest_sha256(data)
    for folder in experiments:
        if read_record(folder)["data"]["manifest_sha256"] != sha256:
            raise ValueError(f"{folder} was trained by another manifest than {data}: its folds are not known here")
    forests = NoLungForests()
    found: dict[str, Experiment] = {}
    members: dict[str, Member] = {}
    for name, folder in zip(names, experiments, strict=True):
        log.info("evaluating %s", name)
        found[name], member = _experiment(folder, data, by_id, forests, heatmap_images, resamples)
        if member is not None:
            members[name] = member
    result: dict[str, Any] = statistics.finite(
        {
            "experiments": found,
            "combination": _combination(members, forests, resamples) if len(members) > 1 else None,
            "method": {name: text.format(resamples=resamples) for name, text in METHOD.items()},
            "manifest": {
                "sha256": sha256,
                "images": len(pictures),
                "patients": len({picture.patient_id for picture in pictures}),
            },
        }
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / EVALUATION).write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    write_page(result, out)
    write_comparison(result, out)
    return result


def _name(folder: Path) -> str:
    return "/".join(folder.resolve().parts[-3:])


def _experiment(
    folder: Path,
    data: Path,
    pictures: Mapping[str, Picture],
    forests: NoLungForests,
    heatmap_images: int,
    resamples: int,
) -> tuple[Experiment, Member | None]:
    """All about one experiment, and what it gives to a combination."""
    record = read_record(folder)
    recipe = recipe_of(record)
    rows = rows_of(record, read_scores(folder), read_labels(folder), list(pictures.values()))
    with_folds = record["protocol"] == "folds"
    judged = rows.chosen((rows.runs != FINAL) & (rows.labels >= 0))
    task = "" if record["task"] == COVID19 else f" ({record['task']})"
    found: Experiment = {
        "record": record,
        "title": f"{record['paper']} {record['variant']}, {record['protocol']}{task}, {profile(record)}",
        "test": tested.figures(record, judged, pictures, resamples),
        "published": [] if with_folds else tested.published(PAPERS[record["paper"]], record, judged, resamples),
        "tasks": {},
        "lungs": None,
        "anomaly": anomaly(judged, pictures, resamples) if recipe.train_on else None,
    }
    member = _member(rows, recipe, record["task"], pictures)
    if member is not None:
        found["tasks"] |= (
            covid19_tasks(member.out_of_fold, member.final, forests, resamples, member.given)
            if with_folds
            else own_task(member.out_of_fold, forests, resamples)
        )
        asked = member.out_of_fold.those(lambda picture: picture.finding in (COVID19, PNEUMONIA))
        found["lungs"] = lungs(folder, recipe, asked, data, heatmap_images=heatmap_images, resamples=resamples)
    if with_folds:
        out_of_fold = scored(rows.chosen(rows.runs != FINAL), recipe, record["task"], pictures, PNEUMONIA)
        if out_of_fold is not None:
            found["tasks"] |= pneumonia_tasks(out_of_fold, forests, resamples)
    return found, member if with_folds else None


class Member(NamedTuple):
    """What an experiment gives to a combination: its scores of three questions, out of fold and of the run `final`."""

    out_of_fold: Scored
    final: Scored | None
    given: Scored | None
    pneumonia: Scored | None


def _member(rows: Rows, recipe: Recipe, task: str, pictures: Mapping[str, Picture]) -> Member | None:
    """None where it is not asked about COVID-19."""
    last, others = rows.chosen(rows.runs == FINAL), rows.chosen(rows.runs != FINAL)
    out_of_fold = scored(others, recipe, task, pictures)
    if out_of_fold is None:
        return None
    final = scored(last, recipe, task, pictures) if len(last) else None
    given = scored(others, recipe, task, pictures, COVID19, PNEUMONIA)
    return Member(out_of_fold, final, given, scored(others, recipe, task, pictures, PNEUMONIA))


def _combination(members: Mapping[str, Member], forests: NoLungForests, resamples: int) -> Combination:
    out_of_fold, final = combined([(member.out_of_fold, member.final) for member in members.values()])
    given = [member.given for member in members.values() if member.given is not None]
    tasks = covid19_tasks(out_of_fold, final, forests, resamples, together(given, COVID19, PNEUMONIA))
    pneumonia = [member.pneumonia for member in members.values() if member.pneumonia is not None]
    if pneumonia:
        tasks |= pneumonia_tasks(together(pneumonia, PNEUMONIA, NORMAL), forests, resamples)
    return {
        "members": list(members),
        "images": len(out_of_fold),
        "tasks": tasks,
    }
