"""What a bundle's probabilities and decisions are worth: chapters of `docs/accuracy.md`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicom_node.evaluation import plots
from dicom_node.evaluation.statistics import predictive_values, proportion
from dicom_node.evaluation.wording import NOTHING, number, share
from training.evaluation.chapter import Chapter, Drawing, bullets, paragraph, slug
from training.evaluation.groups import THRESHOLDS
from training.evaluation.sections import counted
from training.evaluation.wording import markdown_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dicom_node.evaluation.shape import AtThreshold, Calibration, Curve, Task

_AT = (0.05, 0.1, 0.2, 0.3, 0.5)
_WITHIN, _ADULTS = "covid19 against pneumonia, ", "covid19 against the rest, adults"
_PNEUMONIA = "pneumonia against normal, "


def called(name: str, task: Task) -> str:
    """The question and the images that it was asked of; the title of one on `val` does not always say so."""
    title = task["title"].removesuffix(", out of fold")
    for end in (", network of split train", ", split val"):
        title = title.removesuffix(end)
    return f"{title}, {'val' if name.startswith('val, ') else 'out of fold'}"


def calibration(evaluation: Mapping[str, Any]) -> Chapter:
    """How far a probability can be taken at its word, the worst question first."""
    title = "Calibration: does the probability mean what it says?"
    found = {
        name: (task, task["calibration"])
        for name, task in evaluation["combination"]["tasks"].items()
        if task["calibration"]
    }
    if not found:
        return Chapter(title, (paragraph("Not measured: no question has images of both answers."),))
    ordered = sorted(found.items(), key=lambda each: -each[1][1]["ece"])
    head = ("Question", "Images (positive)", "Share positive", "ECE", "Brier score", "Slope (1 at best)", "Intercept")
    rows = [(called(name, task), *_errors(task, errors)) for name, (task, errors) in ordered]
    missing = sorted(
        called(name, task)
        for name, task in evaluation["combination"]["tasks"].items()
        if name.startswith("val, ") and task["figures"]["auc"] and not task["calibration"]
    )
    text = paragraph(
        "ECE is the mean distance between the probability and the share of positives over ten bins, Brier score the "
        "mean squared error; both are 0 at best. Of these figures no intervals were computed: the counts under each "
        "curve say how much a bend in it may be chance.",
        _fitted_on(evaluation),
        f"Not measured: {'; '.join(missing)}." if missing else "",
    )
    drawn = [_reliability(name, task, errors) for name, (task, errors) in ordered if _is_drawn(name, list(found))]
    return Chapter(title, (text, markdown_table(head, rows), *drawn))


def _errors(task: Task, errors: Calibration) -> tuple[str, ...]:
    figures = task["figures"]
    slope, intercept = errors["slope"], errors["intercept"]
    return (
        counted(figures),
        f"{100 * figures['positives'] / max(figures['images'], 1):.0f} %",
        f"{errors['ece']:.3f}",
        f"{errors['brier']:.3f}",
        NOTHING if slope is None else number(round(slope, 2)),
        NOTHING if intercept is None else number(round(intercept, 2)),
    )


def _fitted_on(evaluation: Mapping[str, Any]) -> str:
    """The share of positives among the images that a probability was fitted on."""
    said = []
    for target in evaluation.get("targets") or []:
        counts = _counts(target)
        if counts:
            said.append(f"`{target['name']}` {100 * counts[0] / sum(counts):.0f} % of {sum(counts):,}")
    if not said:
        return ""
    return (
        "A probability is right only where as many images are positive as among those that it was fitted on "
        f"({'; '.join(said)}): where the share is another, as within one collection and nearly everywhere in practice, "
        "it is not."
    )


def _is_drawn(name: str, known: Sequence[str]) -> bool:
    """Within one collection (of all views), and adults together, or what stands for them."""
    if name.startswith((_WITHIN, _PNEUMONIA, f"val, {_PNEUMONIA}")):
        return not name.endswith(", PA")
    return name in (_ADULTS, "val, adults") or (name == "val, pooled" and "val, adults" not in known)


def _reliability(name: str, task: Task, errors: Calibration) -> str | Drawing:
    curve, counts = errors["reliability"], task["figures"]["histogram"]
    asked = called(name, task)
    if not _kept(curve) or not _kept(counts):
        return paragraph(f"{asked}: no curve was kept.")
    caption = f"Reliability: {asked}; ECE {errors['ece']:.3f}, {counted(task['figures'])} images (positive)."
    return Drawing(f"reliability-{slug(name)}", caption, lambda: plots.counted_reliability(curve, counts, caption))


def indeterminate(evaluation: Mapping[str, Any]) -> Chapter:
    """Where the members disagree too far for an answer."""
    title = "Indeterminate: where the members disagree"
    rows, said = [], []
    for target in evaluation.get("targets") or []:
        apart, counts = target.get("disagreement"), _counts(target)
        if not apart:
            said.append(f"`{target['name']}` has no bound: it is never indeterminate.")
            continue
        if not counts:
            cells = [f"{100 * apart[name]:.1f} %" for name in ("share", "error", "error_beyond")]
            rows.append((target["name"], f"{apart['bound']:.2f}", NOTHING, *cells))
            continue
        images = sum(counts)
        beyond = round(apart["share"] * images)
        within = images - beyond
        error = proportion(round(apart["error"] * within), within)
        error_beyond = proportion(round(apart["error_beyond"] * beyond), beyond)
        undecided = proportion(beyond, images)
        rows.append(
            (
                target["name"],
                f"{apart['bound']:.2f}",
                f"{images:,}",
                share(undecided),
                share(error),
                share(error_beyond),
            )
        )
        if error and error_beyond:
            clear = (error_beyond["low"] or 0) > (error["high"] or 1)
            said.append(
                f"`{target['name']}`: wrong answers are more frequent beyond the bound, and the intervals do not meet."
                if clear
                else f"`{target['name']}`: the intervals meet, so that **the bound is not shown to single out errors**."
            )
    if not rows:
        return Chapter(title, (paragraph("Not measured: no question has a bound of disagreement.", *said),))
    text = (
        "Nothing is decided where the spread of the members' logits, over the distance of their mean from the "
        "threshold, is beyond a bound. Measured out of fold on the images that the bound was chosen on, so that its "
        "share is so by choice; errors are wrong decisions at the threshold in force."
    )
    head = ("Question", "Bound", "Images", "Indeterminate", "Wrong within the bound", "Would be wrong beyond it")
    said.sort(key=lambda line: "**" not in line)
    return Chapter(title, (paragraph(text), markdown_table(head, rows), bullets(said)))


def _counts(target: Mapping[str, Any]) -> tuple[int, int] | None:
    """How many images the question was fitted on: positive, negative."""
    reference = target.get("reference") or {}
    if not {"positive", "negative"} <= set(reference):
        return None
    return int(reference["positive"]["images"]), int(reference["negative"]["images"])


def decisions(evaluation: Mapping[str, Any]) -> Chapter:
    """Net benefit, and predictive values at prevalences that occur."""
    tasks = evaluation["combination"]["tasks"]
    title = "Deciding by it: net benefit and predictive values"
    name = next((name for name in ("val, adults", "val, pooled", _ADULTS) if _has_curve(tasks.get(name))), None)
    parts: list[str | Drawing] = []
    if name is None:
        parts.append(paragraph("No decision curve: COVID-19 against the rest was not calibrated on `val` or adults."))
    else:
        parts += _net_benefit(name, tasks[name])
    asked = [each for each in tasks if each.startswith(_WITHIN) and not each.endswith(", PA")]
    rows = [row for each in (*asked, *([name] if name else [])) for row in _predictive(called(each, tasks[each]),
            tasks[each]["figures"]["at"])]  # fmt: skip
    parts.append("### Predictive values were COVID-19 as frequent as this\n")
    if not rows:
        return Chapter(title, (*parts, paragraph("Not measured.")))
    worth = next(point["predictive_values"] for each in (*asked, name) if each
                 for point in tasks[each]["figures"]["at"].values() if point["predictive_values"])  # fmt: skip
    head = ("Images", "At", "Sensitivity", "Specificity",
            *(f"PPV; NPV at {100 * each['prevalence']:.0f} %" for each in worth))  # fmt: skip
    text = (
        "Positive and negative predictive value from the sensitivity and specificity on these images. In brackets what "
        "follows where both stand at the lower ends of their 95 % intervals, and where both stand at the upper. The "
        "first rows are of one collection and of pneumonia only; across collections they flatter."
    )
    return Chapter(title, (*parts, paragraph(text), markdown_table(head, rows)))


def _has_curve(task: Task | None) -> bool:
    return bool(task and task["calibration"] and _kept(task["calibration"]["decision"]))


def _kept(curve: object) -> bool:
    """Whether a copy of an evaluation has its curves still."""
    return curve is not None


def _net_benefit(name: str, task: Task) -> Iterator[str | Drawing]:
    found = task["calibration"]
    if found is None:
        return
    model, everything = found["decision"], found["decision_all"]
    asked = called(name, task)
    of_all = dict(zip(everything["x"], everything["y"], strict=True))
    worse = [
        at for at, ours in zip(model["x"], model["y"], strict=True) if at in of_all and ours < max(of_all[at], 0.0)
    ]
    yield paragraph(
        f"{asked}, {counted(task['figures'])} images (COVID-19): true positives minus false positives weighted by the "
        "threshold's odds, per image (Vickers and Elkin 2006), for the bundle, for calling everybody positive, and for "
        "calling nobody so.",
        f"The bundle is **worse than the better of these two** at a threshold probability of {_ranges(worse)}."
        if worse
        else "The bundle is never worse than the better of these two.",
        "That holds for as many with COVID-19 as are among these images and across collections; no interval was "
        "computed.",
    )
    rows = [(f"{at:g}", _net(model, at), _net(everything, at), "0") for at in _AT]
    yield markdown_table(("Threshold probability", "Bundle", "Everybody", "Nobody"), rows)
    caption = f"Decision curve: {asked}."
    yield Drawing("decision-covid19", caption, lambda: plots.decision(model, everything, caption))


def _net(curve: Curve, at: float) -> str:
    """The point of the curve that lies nearest."""
    place = min(range(len(curve["x"])), key=lambda i: abs(curve["x"][i] - at))
    return number(round(curve["y"][place], 3), 3)


def _ranges(values: Sequence[float]) -> str:
    """Hundredths that follow each other as one range."""
    found: list[list[int]] = []
    for value in (round(100 * value) for value in values):
        if found and value == found[-1][1] + 1:
            found[-1][1] = value
        else:
            found.append([value, value])
    return ", ".join(f"{low / 100:g}" if low == high else f"{low / 100:g} to {high / 100:g}" for low, high in found)


def _predictive(asked: str, at: Mapping[str, AtThreshold]) -> Iterator[tuple[str, ...]]:
    for name, point in at.items():
        sensitivity, specificity = point["sensitivity"], point["specificity"]
        if not point["predictive_values"] or sensitivity is None or specificity is None:
            continue
        ends = [predictive_values(sensitivity[end] or 0.0, specificity[end] or 0.0) for end in ("low", "high")]
        cells = []
        for own in point["predictive_values"]:
            low, high = (next((each for each in end if each["prevalence"] == own["prevalence"]), own) for end in ends)
            cells.append("; ".join(_between(own[kind], low[kind], high[kind]) for kind in ("ppv", "npv")))
        yield asked, THRESHOLDS[name][0], share(sensitivity), share(specificity), *cells


def _between(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return NOTHING
    ends = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f} %{ends}"
