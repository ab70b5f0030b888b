"""What the page says of one experiment: its questions, test images, lungs, anomalies, and the paper's numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.evaluation import plots
from dicom_node.evaluation.plots import Mark
from dicom_node.evaluation.section import Section, Table
from dicom_node.evaluation.wording import NOTHING, difference, interval, number, share
from training.evaluation.wording import HONEST, POOLED, best_baseline, duration, images, measured, profile, published

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from markupsafe import Markup

    from dicom_node.evaluation.shape import (
        Anomaly,
        AtThreshold,
        Brief,
        Calibration,
        Classes,
        ComparedTable,
        Experiment,
        Group,
        Lungs,
        Task,
        Tested,
    )


# Questions whose curves are drawn; of the others the figures say all.
_DRAWN = ("covid19 against pneumonia", "pneumonia against normal", POOLED, "val, pooled")


@dataclass(frozen=True, slots=True)
class Part:
    """One experiment, or the combination."""

    anchor: str
    title: str
    facts: tuple[tuple[str, str], ...] = ()
    differences: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()


def experiment_part(anchor: str, experiment: Experiment) -> Part:
    """All of one experiment, its questions within sources first."""
    record = experiment["record"]
    runs = record["runs"]
    facts = (
        ("Paper, variant", f"{record['paper']}, {record['variant']}"),
        ("Profile, protocol, task", f"{profile(record)}, {record['protocol']}, {record['task']}"),
        ("Images", images(record)),
        ("Trained", f"{len(runs)} runs in {duration(record['seconds'])} on {record['hardware']}, {record['started']}"),
        ("Seed", str(record["seed"])),
    )
    sections = [*task_sections(anchor, experiment["tasks"])]
    if experiment["lungs"]:
        sections.append(_lungs(experiment["lungs"]))
    if experiment["test"]:
        sections += _tested(anchor, experiment["test"], HONEST in experiment["tasks"])
    if experiment["anomaly"]:
        sections.append(_anomaly(anchor, experiment["anomaly"]))
    if experiment["published"]:
        sections.append(_published(experiment["published"], record["variant"]))
    return Part(anchor, experiment["title"], facts, tuple(record["differences"]), tuple(sections))


def task_sections(anchor: str, tasks: Mapping[str, Task]) -> Iterator[Section]:
    """All questions in one table, then each on its own; the curves of those that say most."""
    if not tasks:
        return
    names = list(dict.fromkeys(name for task in tasks.values() for name in task["baselines"]))
    rows = [
        (
            task["title"],
            counted(task["figures"]),
            interval(task["figures"]["auc"], runs=True),
            *(_baseline(task, name) for name in names),
        )
        for task in tasks.values()
    ]
    head = ("Question", "Images (positive)", "AUC", *(f"No lung: {name}; network minus it" for name in names))
    marks = [mark for name, task in tasks.items() if name.startswith(_DRAWN) for mark in marked(task["title"], task)]
    drawn = ((("AUC by question.", plots.forest(marks, "AUC", f"{anchor}: {in_words(marks)}"))),) if marks else ()
    yield Section("Every question", plots=drawn, tables=(Table(head, tuple(rows)),), shown=True)
    for name, task in tasks.items():
        key = f"{anchor}, {name}"
        curves = (*_curves(key, task), *_subgroup_marks(key, task)) if name.startswith(_DRAWN) else ()
        text = [f"{counted(task['figures'])} of {task['figures']['patients']} patients: {', '.join(task['sources'])}."]
        text += [f"No lung, {name}: {each['title']}." for name, each in task["baselines"].items()]
        at = task["figures"]["at"]
        tables = (*([_thresholds(at)] if at else []), *([_subgroups(task)] if task["subgroups"] else []))
        yield Section(task["title"], tuple(text), curves, tables, shown=name == HONEST)


def marked(title: str, task: Task) -> Iterator[Mark]:
    """The network's AUC and that of the best baseline, for a forest plot."""
    if task["figures"]["auc"]:
        yield Mark(title, task["figures"]["auc"])
    if baseline := best_baseline(task["baselines"]):
        yield Mark(f"no lung: {baseline['title']}", baseline["auc"], baseline=True)


def _curves(key: str, task: Task) -> Iterator[tuple[str, Markup]]:
    figures = task["figures"]
    if figures["roc"]:
        blind = {
            f"{name}, no lung ({each['auc']['value']:.3f})": each["roc"]
            for name, each in task["baselines"].items()
            if each["roc"]
        }
        area = f"AUC {interval(figures['auc'])}"
        caption = f"ROC: {area}{'; dashed, what sees no lung' if blind else ''}."
        yield caption, plots.roc(figures["roc"], blind, f"{key}: ROC, {area}")
    yield from _scores(key, figures, task["score"])
    if task["calibration"]:
        yield from _calibration(key, task["calibration"])


def _subgroup_marks(key: str, task: Task) -> Iterator[tuple[str, Markup]]:
    marks = [
        Mark(f"{kind}: {value} ({found['images']})", found["auc"])
        for kind, by_value in task["subgroups"].items()
        for value, found in by_value.items()
        if found["auc"]
    ]
    if marks:
        yield "AUC by subgroup (images).", plots.forest(marks, "AUC", f"{key}: {in_words(marks)}")


def _subgroups(task: Task) -> Table:
    names = tuple(task["figures"]["at"])
    rows = [
        (f"{kind}: {value}", counted(found), interval(found["auc"]), *_at(found, names))
        for kind, by_value in task["subgroups"].items()
        for value, found in by_value.items()
    ]
    head = ("Subgroup", "Images (positive)", "AUC", *(f"Sensitivity; specificity ({name})" for name in names))
    return Table(head, tuple(rows), "Subgroups, at the same thresholds")


def _scores(key: str, figures: Group, score: str) -> list[tuple[str, Markup]]:
    """Precision over recall, and how the scores are spread."""
    drawn = []
    if figures["precision_recall"]:
        share_of_positives = figures["positives"] / max(figures["images"], 1)
        curve = plots.precision_recall(figures["precision_recall"], share_of_positives, f"{key}: precision over recall")
        drawn.append((f"Precision and recall: average precision {interval(figures['average_precision'])}.", curve))
    spread = plots.histogram(figures["histogram"], score, f"{key}: histogram of {score} by class")
    drawn.append((f"The score {score} by class (images).", spread))
    return drawn


def _calibration(key: str, found: Calibration) -> list[tuple[str, Markup]]:
    slope = NOTHING if found["slope"] is None else f"{found['slope']:.2f}"
    caption = f"Reliability: ECE {found['ece']:.3f}, Brier score {found['brier']:.3f}, slope {slope} (1 at best)."
    benefit = plots.decision(found["decision"], found["decision_all"], f"{key}: decision curve")
    return [
        (caption, plots.reliability(found["reliability"], f"{key}: reliability")),
        ("Decision curve of the calibrated probability.", benefit),
    ]


def _tested(anchor: str, tested: Tested, with_tasks: bool) -> Iterator[Section]:
    key, figures = f"{anchor}, test images", tested["figures"]
    drawn = []
    if figures["roc"]:
        alt = f"{key}: ROC, AUC {interval(figures['auc'])}"
        drawn.append((f"ROC: AUC {interval(figures['auc'])}.", plots.roc(figures["roc"], {}, alt)))
    drawn += _scores(key, figures, tested["score"])
    tables: list[Table] = []
    if classes := tested["classes"]:
        matrix = plots.confusion(classes["names"], classes["confusion"], f"{key}: confusion matrix")
        drawn.append((f"Confusion matrix: accuracy {share(classes['accuracy'])}.", matrix))
        tables.append(_by_class(classes))
    if figures["at"]:
        tables.append(_thresholds(figures["at"]))
    sources = [(name, counted(found), interval(found["auc"])) for name, found in tested["sources"].items()]
    tables.append(Table(("Source", "Images (positive)", "AUC"), tuple(sources), "By source"))
    marks = [Mark(f"{name} ({each['images']})", each["auc"]) for name, each in tested["sources"].items() if each["auc"]]
    if marks:
        drawn.append(("AUC by source (images).", plots.forest(marks, "AUC", f"{key}: {in_words(marks)}")))
    if tested["of_runs"]:
        tables.append(_by_run(tested))
    beside = "above" if with_tasks else "at the top of the page, where they were measured"
    where = "Where the class nearly equals the source this needs no lung"
    text = f"{tested['positive']} against the rest. {where}: read it beside the figures within one source {beside}."
    yield Section("Test images, all sources together", (text,), tuple(drawn), tuple(tables))
    rest = [
        (
            f"{name} against the rest: AUC {interval(found['auc'])}.",
            plots.roc(found["roc"], {}, f"{key}: ROC of {name}"),
        )
        for name, found in tested["one_against_rest"].items()
        if found["roc"]
    ]
    if rest:
        yield Section("Each class against the rest", plots=tuple(rest))


def _by_class(classes: Classes) -> Table:
    rows = [
        (name, share(each["precision"]), share(each["recall"]), interval(each["f1"]))
        for name, each in classes["per_class"].items()
    ]
    mean = ("mean of the classes", *(interval(classes["macro"][of]) for of in ("precision", "recall", "f1")))
    return Table(("Class", "Precision", "Recall", "F1"), (*rows, mean))


def _by_run(tested: Tested) -> Table:
    rows = [
        (
            name,
            ", ".join(f"{value:.3f}" for value in found["values"]),
            f"{found['mean']:.3f}",
            NOTHING if found["deviation"] is None else f"{found['deviation']:.3f}",
        )
        for name, found in tested["of_runs"].items()
    ]
    return Table(("Figure", "Run by run", "Mean", "Deviation"), tuple(rows), ", ".join(tested["runs"]))


def _lungs(found: Lungs) -> Section:
    title = "Does it look at the lungs?"
    if found["absent"]:
        return Section(title, (found["absent"],))
    tables = []
    if "auc" in found:
        falls = found.get("fall", {})
        means = found.get("mean_score", {})
        rows = [
            (name, interval(figure), difference(falls.get(name)), interval(means.get(name)))
            for name, figure in found["auc"].items()
        ]
        tables.append(Table(("Images", "AUC", "Fall", "Mean score of COVID-19"), tuple(rows), "Lungs taken away"))
    energy = [
        (name, interval(each["inside"]), interval(each["area"]), difference(each["more_than_area"]), str(each["empty"]))
        for name, each in found.get("energy", {}).items()
    ]
    if energy:
        head = ("Heatmap", "Energy inside the lungs", "Area of the lungs", "More than area", "Empty maps")
        tables.append(Table(head, tuple(energy), f"Where heatmaps of {found.get('heatmap_images', 0)} images look"))
    random = [
        (
            name,
            f"{each['layers']} of {each['of']}",
            interval(each["spearman"]),
            interval(each["kendall"]),
            str(each["empty"]),
            str(each.get("left_out", 0)),
        )
        for name, steps in found.get("randomisation", {}).items()
        for each in steps
    ]
    if random:
        columns = ("Heatmap", "Random layers", "Spearman", "Kendall", "Maps that vanish", "Empty before, left out")
        tables.append(Table(columns, tuple(random), "Heatmaps must change as weights become random"))
    counts = ", ".join(f"{name} {count}" for name, count in found.get("images", {}).items())
    outlines = ", ".join(f"{name} {count}" for name, count in found.get("outlines", {}).items())
    text = (f"On images whose lungs are outlined: {counts} ({outlines}). AUC must fall where lungs are blanked.",)
    return Section(title, text, tables=tuple(tables), shown=True)


def _anomaly(anchor: str, found: Anomaly) -> Section:
    drawn = [
        (f"{name} by finding (images).", plots.histogram(each, name, f"{anchor}: histogram of {name} by finding"))
        for name, each in found["histograms"].items()
    ]
    areas = [(name, what, interval(figure)) for name, by in found["auc"].items() for what, figure in by.items()]
    spread = [
        (
            name,
            where,
            str(each["images"]),
            measured(each["mean"], "mean score"),
            *(number(value) for value in each["quantiles"].values()),
        )
        for name, by in found["scores"].items()
        for where, each in by.items()
    ]
    quantiles = next((tuple(each["quantiles"]) for by in found["scores"].values() for each in by.values()), ())
    head = ("Score", "Source/finding", "Images", "Mean", *(f"Quantile {name}" for name in quantiles))
    tables = (
        Table(("Score", "Question", "AUC"), tuple(areas), "Anomaly: a larger error, a lower density"),
        Table(head, tuple(spread), "How the scores are spread"),
    )
    return Section("Anomaly scores of a network that was trained on one class", (), tuple(drawn), tables)


def _published(tables: Sequence[ComparedTable], variant: str) -> Section:
    head = ("Row", "Column", "Paper", "Ours", "n", "Remark")
    made = []
    for table in tables:
        rows = []
        for found in table["numbers"]:
            kind = found["measure"]["kind"] if found["measure"] else found["column"].lower()
            ours = found["ours"]
            rows.append(
                (
                    found["row"],
                    found["column"],
                    published(found["paper"], kind, found["deviation"], found["deviation_is"]),
                    measured(ours, kind) if ours else NOTHING,
                    str(ours["n"]) if ours else NOTHING,
                    " ".join(text for text in (found["why"], found["remark"]) if text),
                )
            )
        made.append(Table(head, tuple(rows), f"{table['name']}: {table['caption']}"))
    return Section(f"Beside the paper ({variant})", tables=tuple(made))


def _thresholds(at: Mapping[str, AtThreshold]) -> Table:
    """What each threshold gives, and what it would be worth at other prevalences."""
    prevalences = next((point["predictive_values"] for point in at.values() if point["predictive_values"]), [])
    worth = tuple(f"PPV; NPV at {100 * each['prevalence']:.0f} %" for each in prevalences)
    rows = []
    for name, point in at.items():
        values = [f"{_percent(each['ppv'])}; {_percent(each['npv'])}" for each in point["predictive_values"]]
        used = ", ".join(number(value, 3) for value in point["thresholds"])
        found = (share(point["sensitivity"]), share(point["specificity"]))
        rows.append((f"{name}: {used}", *found, *(values or [NOTHING] * len(worth))))
    chosen = "; ".join(f"{name}: {point['chosen']}" for name, point in at.items())
    return Table(("Threshold", "Sensitivity", "Specificity", *worth), tuple(rows), chosen)


def _at(found: Brief, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        point = found["at"].get(name)
        yield f"{share(point['sensitivity'])}; {share(point['specificity'])}" if point else NOTHING


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f} %"


def counted(found: Brief) -> str:
    """Images, and in brackets those that are positive."""
    return f"{found['images']:,} ({found['positives']:,})"


def _baseline(task: Task, name: str) -> str:
    found = task["baselines"].get(name)
    return f"{interval(found['auc'])}; {difference(found['difference'])}" if found else NOTHING


def in_words(marks: Sequence[Mark]) -> str:
    """A forest plot for those who do not see it."""
    return "; ".join(f"{mark.label} {interval(mark.figure)}" for mark in marks)
