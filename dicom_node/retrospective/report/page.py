"""`report.html`: what came of a run, in one file that asks nobody for anything. It names no patient."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from pydicom import dcmread

from dicom_node.evaluation import plots
from dicom_node.evaluation.bootstrap import RESAMPLES
from dicom_node.evaluation.section import Section, Table, environment
from dicom_node.evaluation.wording import DISCLAIMER, NOTHING, interval, number, share
from dicom_node.retrospective.report import plots as drawings
from dicom_node.retrospective.report.gathering import MOST_COMPARED, MOST_SHOWN
from dicom_node.retrospective.report.summary import PERCENTILES, agreement, spreads

if TYPE_CHECKING:
    from dicom_node.archive import Archive
    from dicom_node.retrospective.report.answers import StudyAnswer
    from dicom_node.retrospective.report.gathering import Gathered
    from dicom_node.retrospective.report.validation import AtThreshold, Validation
    from dicom_node.retrospective.tables import RunRow

_TEMPLATE = "page.html.j2"
_THUMBNAIL = 320  # pixels of its width
_ONLY_IF_ANY = ("not_in_pacs", "images_not_fetched", "images_never_came")
_SCORE = (
    "A study's probability is that of its strongest image; a study is flagged where any of its images is. "
    "Indeterminate, where the members disagree too far, counts as not flagged. A study of which every image was "
    "declined or failed has no probability, and is counted apart."
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
    rows = tuple(
        (f"– {one.label}" if one.part else one.label, f"{one.number:,}")
        for one in gathered.flow()
        if one.number or one.key not in _ONLY_IF_ANY
    )
    reasons = [
        (what, reason, f"{count:,}")
        for what, found in (
            ("image declined", gathered.declined),
            ("image failed", gathered.failed),
            ("study failed", gathered.study_failures),
        )
        for reason, count in found.most_common()
    ]
    tables = [Table(("What", "Count"), rows)]
    if reasons:
        tables.append(Table(("What", "Reason", "Count"), tuple(reasons), "Why there is no answer"))
    return Section("From the archive to an answer", (_SCORE,), tables=tuple(tables), shown=True)


def _agreement_with_truth(found: Validation, gathered: Gathered) -> Section:
    blank = gathered.labels.blank if gathered.labels is not None else 0
    drawn = "patients" if found.by_patient else "studies, for not every study's patient is known"
    text = (
        (
            f"{found.studies:,} studies of the run have a label and an answer, {found.positive:,} of them positive; "
            f"{gathered.without_answer:,} have a label and no answer, {gathered.unlabelled:,} no label. "
            f"Labels that name no study of the run: {gathered.unknown_labels:,}; lines without a label: {blank:,}."
        ),
        (
            "These figures are of this cohort, labelled as it is, and of no other: another site, another scanner or "
            "another share of positives gives others. The predictive values are those at this cohort's share of "
            "positives. A threshold for a sensitivity was chosen on these very studies, and may do less well on others."
        ),
        (
            f"Intervals are of 95 %. Those of areas, of the average precision and of the curves draw {drawn} "
            f"({RESAMPLES:,} times, 2.5th to 97.5th percentile); those of shares are exact (Clopper-Pearson), with "
            "Wilson's beside them."
        ),
    )
    thresholds = [
        _at("As it screened", found.current),
        _at(f"For a sensitivity of {found.aimed_sensitivity:g}, by the probability alone", found.aimed),
    ]
    if any(found.aimed_decided.indeterminate):
        thresholds.append(_at("The same, where the members disagree too far not flagged", found.aimed_decided))
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
        (f"ROC: {area}.", plots.roc(found.roc, {}, f"ROC curve, {area}", found.roc_band)),
        (
            f"Precision and recall: average precision {interval(found.average_precision)}.",
            plots.precision_recall(
                found.precision_recall,
                found.positive / found.studies,
                "Precision-recall curve of the labelled studies",
                found.precision_recall_band,
            ),
        ),
        (
            "Calibration: the share of positives in ten bins of the probability.",
            plots.reliability(calibration["reliability"], "Reliability diagram of the labelled studies"),
        ),
    )
    return Section("Against the labels", text, curves, (measured, *thresholds), shown=True)


def _at(name: str, found: AtThreshold) -> Table:
    value = "thresholds that differ" if found.threshold is None else number(found.threshold)
    rows = tuple(
        (
            label,
            NOTHING if figure is None else f"{100 * figure['value']:.1f} %",
            _ends(figure["low"], figure["high"]) if figure else NOTHING,
            _ends(*figure["wilson"]) if figure and "wilson" in figure else NOTHING,
            f"{figure['hits']:,} of {figure['n']:,}" if figure and "hits" in figure else NOTHING,
        )
        for label, figure in (
            ("Sensitivity", found.sensitivity),
            ("Specificity", found.specificity),
            ("Positive predictive value", found.ppv),
            ("Negative predictive value", found.npv),
        )
    )
    caption = f"{name}: flagged from {value} on"
    if any(found.indeterminate):
        caption += "; indeterminate, and so not flagged: {:,} positive and {:,} negative".format(*found.indeterminate)
    return Table(("Figure", "Share", "Exact interval, %", "Wilson's, %", "Studies"), rows, caption)


def _ends(low: float | None, high: float | None) -> str:
    return NOTHING if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


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
    by_day = spreads(gathered, "day")
    if not by_day:
        return None
    groups = {name: spreads(gathered, name) for name in ("scanner", "view")}
    drawn = [
        (
            "Probability by date of the study: median, quartiles, and the share flagged.",
            drawings.over_time(by_day, "Probability over time"),
        ),
        *(
            (
                f"Probability by {name}: quartiles, 5th and 95th percentile"
                + (f"; the {drawings.MOST_GROUPS} largest groups." if len(found) > drawings.MOST_GROUPS else "."),
                drawings.by_group(found, f"Probability by {name}"),
            )
            for name, found in groups.items()
        ),
    ]
    rows = tuple(
        (
            f"{name}: {one.group}",
            f"{one.studies:,}",
            f"{one.percentiles[PERCENTILES.index(50)]:.3f}",
            f"{100 * one.flagged / one.studies:.1f} %",
        )
        for name, found in groups.items()
        for one in found
    )
    table = Table(("Group", "Studies", "Median probability", "Flagged"), rows)
    return Section("Scores over time, by scanner and by view", (), tuple(drawn), (table,), shown=True)


def _members(gathered: Gathered) -> Section | None:
    """How far the members of the ensemble say the same."""
    if (found := agreement(gathered)) is None:
        return None
    rows = tuple(
        (
            name,
            *(
                NOTHING
                if first == second
                else f"{_correlation(found.correlation[first][second])}; {_percent(found.same_half[first][second])}; "
                f"{_percent(found.same_side[first][second])}"
                for second in range(len(found.members))
            ),
        )
        for first, name in enumerate(found.members)
    )
    text = (
        (
            "Of each two members: the rank correlation of what each would answer alone; how often both lie on the same "
            "side of 0.5; and how often on the same side of the threshold. Over "
            f"{found.images:,} images{', the first of the run' if found.images == MOST_COMPARED else ''}."
        ),
    )
    return Section("Agreement between members", text, (), (Table(("Member", *found.members), rows),), shown=True)


def _percent(value: float) -> str:
    return f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def _correlation(value: float | None) -> str:
    return NOTHING if value is None else number(round(value, 2))


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
