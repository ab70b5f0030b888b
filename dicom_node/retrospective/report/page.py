"""`report.html`: what came of a run, in one file that asks nobody for anything. It names no patient."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from pydicom import dcmread

from dicom_node.evaluation import plots
from dicom_node.evaluation.section import Section, Table, environment
from dicom_node.evaluation.wording import DISCLAIMER, NOTHING, interval, number, share
from dicom_node.retrospective.report import plots as drawings
from dicom_node.retrospective.report.gathering import MOST_SHOWN

if TYPE_CHECKING:
    from dicom_node.archive import Archive
    from dicom_node.retrospective.report.answers import StudyAnswer
    from dicom_node.retrospective.report.gathering import Gathered
    from dicom_node.retrospective.report.validation import AtThreshold, Validation
    from dicom_node.retrospective.tables import RunRow

_TEMPLATE = "page.html.j2"
_THUMBNAIL = 320  # pixels of its width
_SCORE = (
    "A study's probability is that of its strongest image; a study is flagged where any of its images is. "
    "Indeterminate, where the members disagree too far, counts as not flagged."
)


@dataclass(frozen=True, slots=True)
class Flagged:
    """One line of the list of flagged studies."""

    study_instance_uid: str
    day: str
    view: str
    scanner: str
    probability: str
    threshold: str
    picture: str | None


def page(run: RunRow, gathered: Gathered, validation: Validation | None, archive: Archive) -> str:
    """The page as text."""
    template = environment(Path(__file__).parent).get_template(_TEMPLATE)
    sections: list[Section | None] = [_flow(gathered)]
    if validation is not None:
        sections += [_agreement_with_truth(validation, gathered), _subgroups(validation)]
    sections += [_scores(gathered), _members(gathered)]
    return template.render(
        title=f"Run {run.name}: {gathered.target}",
        disclaimer=DISCLAIMER,
        facts=_facts(run, gathered),
        sections=[section for section in sections if section is not None],
        flagged=[_line(study, gathered.target, archive) for study in gathered.shown],
        flagged_in_all=gathered.decisions["flagged"],
        most=MOST_SHOWN,
    )


def _facts(run: RunRow, gathered: Gathered) -> list[tuple[str, str]]:
    criteria = run.criteria
    days = f"{criteria.get('first_day') or 'the first'} to {criteria.get('last_day') or 'the last'}"
    asked = "a list" if criteria.get("accessions") or criteria.get("patients") else days
    thresholds = ", ".join(number(one) for one in sorted(gathered.thresholds)) or NOTHING
    return [
        ("Source", run.source),
        ("Studies of", f"{asked}; {', '.join(criteria.get('modalities', []))}"),
        ("Begun", f"{run.begun_at:%Y-%m-%d %H:%M} UTC" if run.begun_at else "not yet"),
        ("Ended", f"{run.ended_at:%Y-%m-%d %H:%M} UTC" if run.ended_at else f"not yet: {run.state}"),
        ("Bundle", ", ".join(f"{name} ({count} images)" for name, count in gathered.releases.items()) or NOTHING),
        ("Question", f"{gathered.target}; threshold {thresholds}"),
        ("Results", "sent to the destinations" if run.deliver else "known to the ledger and this report alone"),
    ]


def _flow(gathered: Gathered) -> Section:
    rows = tuple((name, f"{count:,}") for name, count in gathered.flow())
    reasons = [
        *(("image declined", reason, str(count)) for reason, count in gathered.declined.most_common()),
        *(("image failed", reason, str(count)) for reason, count in gathered.failed.most_common()),
        *(
            ("study failed", reason, str(count))
            for reason, count in gathered.study_reasons.most_common()
            if reason != "already_screened"
        ),
    ]
    tables = [Table(("What", "Count"), rows)]
    if reasons:
        tables.append(Table(("What", "Reason", "Count"), tuple(reasons), "Why there is no answer"))
    return Section("From the archive to an answer", (_SCORE,), tables=tuple(tables), shown=True)


def _agreement_with_truth(found: Validation, gathered: Gathered) -> Section:
    drawn = "patients" if found.by_patient else "studies, for not every study's patient is known"
    text = (
        (
            f"{found.studies:,} studies of the run have a label and an answer, {found.positive:,} of them positive; "
            f"{gathered.without_answer:,} have a label and no answer, {gathered.unlabelled:,} no label. These "
            "figures are of this cohort, labelled as it is, and of no other. Intervals of areas draw "
            f"{drawn} (2.5 to 97.5 %); those of shares are exact (Clopper-Pearson), Wilson's beside them."
        ),
    )
    rows = (
        _at("as it screened", found.current),
        _at(f"for a sensitivity of {found.aimed_sensitivity:g}, chosen on these studies", found.aimed),
    )
    head = ("Threshold", "Value", "Sensitivity", "Specificity", "PPV", "NPV")
    calibration = found.calibration
    measured = Table(
        ("Figure", "Value"),
        (
            ("Area under the ROC curve", interval(found.auc)),
            ("Average precision", interval(found.average_precision)),
            ("Brier score", f"{calibration['brier']:.4f}"),
            ("Expected calibration error, ten bins", f"{calibration['ece']:.4f}"),
        ),
    )
    area = f"area {interval(found.auc)}"
    curves = (
        (f"ROC: {area}.", plots.roc(found.roc, {}, f"ROC curve, {area}")),
        (
            f"Precision and recall: average precision {interval(found.average_precision)}.",
            plots.precision_recall(
                found.precision_recall, found.positive / found.studies, "Precision-recall curve of the labelled studies"
            ),
        ),
        (
            "Calibration: the share of positives in ten bins of the probability.",
            plots.reliability(calibration["reliability"], "Reliability diagram of the labelled studies"),
        ),
    )
    return Section("Against the labels", text, curves, (measured, Table(head, rows)), shown=True)


def _at(name: str, found: AtThreshold) -> tuple[str, ...]:
    value = NOTHING if found.threshold is None else number(found.threshold)
    told = []
    for figure in (found.sensitivity, found.specificity, found.ppv, found.npv):
        wilson = figure.get("wilson") if figure else None
        beside = f"; Wilson [{100 * wilson[0]:.1f}, {100 * wilson[1]:.1f}]" if wilson else ""
        told.append(f"{share(figure)}{beside}")
    return (name, value, *told)


def _subgroups(found: Validation) -> Section:
    rows = tuple(
        (
            f"{one.name}: {one.group}",
            f"{one.studies} ({one.positive})",
            interval(one.auc),
            share(one.sensitivity),
            share(one.specificity),
        )
        for one in found.subgroups
    )
    marks = [plots.Mark(f"{one.name}: {one.group}", one.auc) for one in found.subgroups if one.auc is not None]
    drawing = (
        ((("Area under the ROC curve by subgroup."), plots.forest(marks, "AUC", "AUC by subgroup")),) if marks else ()
    )
    text = ("Groups with fewer than ten studies of either label are counted, and not measured.",)
    head = ("Group", "Studies (positive)", "AUC", "Sensitivity as it screened", "Specificity")
    return Section("Subgroups", text, drawing, (Table(head, rows),), shown=True)


def _scores(gathered: Gathered) -> Section | None:
    if not gathered.scores:
        return None
    flags = gathered.flags
    drawn = [
        (
            "Probability by date of the study: median, quartiles, and the share flagged.",
            drawings.over_time(gathered.scores["day"], flags["day"], "Probability over time"),
        ),
        *(
            (
                f"Probability by {name}: quartiles, 5th and 95th percentile; the largest groups.",
                drawings.by_group(gathered.scores[name], f"Probability by {name}"),
            )
            for name in ("scanner", "view")
        ),
    ]
    rows = tuple(
        (
            f"{name}: {group}",
            f"{len(scores):,}",
            f"{np.median(scores):.3f}",
            f"{100 * flags[name][group] / len(scores):.1f} %",
        )
        for name in ("scanner", "view")
        for group, scores in sorted(gathered.scores[name].items(), key=lambda one: -len(one[1]))
    )
    table = Table(("Group", "Studies", "Median probability", "Flagged"), rows)
    return Section("Scores over time, by scanner and by view", (), tuple(drawn), (table,), shown=True)


def _members(gathered: Gathered) -> Section | None:
    """How far the members of the ensemble say the same."""
    names = sorted(gathered.members)
    if len(names) < 2:
        return None
    values = np.array([gathered.members[name] for name in names], dtype=np.float64)
    if values.shape[1] < 2:
        return None
    ranks = values.argsort(axis=1).argsort(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.atleast_2d(np.corrcoef(ranks))
    same = (values[:, None] >= 0.5) == (values[None] >= 0.5)
    rows = tuple(
        (
            name,
            *(
                ""
                if first == second
                else f"{correlation[first, second]:.2f}; {100 * same[first, second].mean():.0f}\N{NO-BREAK SPACE}%"
                for second in range(len(names))
            ),
        )
        for first, name in enumerate(names)
    )
    text = (
        (
            f"Rank correlation of two members' probabilities, and how often both lie on the same side of 0.5, over "
            f"{values.shape[1]:,} images."
        ),
    )
    return Section("Agreement between members", text, (), (Table(("Member", *names), rows),), shown=True)


def _line(study: StudyAnswer, target: str, archive: Archive) -> Flagged:
    strongest = study.strongest(target)
    assert strongest is not None  # noqa: S101 - it was flagged
    image, told = strongest
    day = study.study_date
    return Flagged(
        study_instance_uid=study.study_instance_uid,
        day=f"{day[:4]}-{day[4:6]}-{day[6:]}" if day else NOTHING,
        view=image.view,
        scanner=image.scanner or NOTHING,
        probability=f"{told.probability:.3f}",
        threshold=number(told.threshold),
        picture=_thumbnail(archive, image.heatmap) if image.heatmap else None,
    )


def _thumbnail(archive: Archive, path: str) -> str | None:
    """The heatmap as a small JPEG, as a data URL; None where it is not in the archive any more."""
    try:
        pixels = dcmread(archive.locate(path)).pixel_array
        picture = Image.fromarray(pixels)
    except Exception:  # a file that is gone or broken costs its picture, not the page
        return None
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
