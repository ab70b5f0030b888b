"""`evaluation.html`: everything that was measured, to look at, in one file that asks nobody for anything.

The same-source figure and what sees no lung come first, and out-of-fold figures across sources have the latter beside
them. Figures of split `val` and of sources never trained on have not: no forest was grown for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dicom_node.evaluation import plots
from dicom_node.evaluation.section import Section, Table, environment
from dicom_node.evaluation.wording import DISCLAIMER, NOTHING, difference, interval, share
from training.evaluation.sections import Part, counted, experiment_part, in_words, marked, task_sections
from training.evaluation.wording import HONEST, OWN, POOLED, best_baseline, images, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dicom_node.evaluation.plots import Mark
    from dicom_node.evaluation.shape import Combination, Evaluation, Task

PAGE = "evaluation.html"
TEMPLATE = "page.html.j2"
_HOW = (
    "Each image was scored by a network that never saw its patient. All come from one collection, so that telling "
    "collections apart helps less; the collection itself is of many hospitals and papers."
)
_BESIDE = (
    "Random forests that see no lung were asked the same, on the same images and folds: what surrounds the picture, "
    "what its file is like, what a thumbnail holds. The best of them is shown. A network is worth what it adds to that."
)


def write_page(result: Mapping[str, Any], out: Path) -> Path:
    """Write `evaluation.html` into the folder `out`; `result` is what `evaluation.json` holds."""
    file = out / PAGE
    file.write_text(page(result), encoding="utf-8")
    return file


def page(result: Mapping[str, Any]) -> str:
    """The page of a result, as text; that of a bundle says whose it is."""
    template = environment(Path(__file__).parent).get_template(TEMPLATE)
    title = f"Evaluation of {result['bundle']} {result['release']}" if "bundle" in result else "Evaluation"
    return template.render(title=title, disclaimer=DISCLAIMER, **_view(cast("Evaluation", result)))


def _view(result: Evaluation) -> dict[str, Any]:
    experiments = list(result["experiments"].values())
    parts = [experiment_part(f"experiment-{number}", found) for number, found in enumerate(experiments, 1)]
    together = [_together(result["combination"])] if result["combination"] else []
    return {
        "honest": _honest(list(_asked(result))),
        "headline": _headline(result),
        "parts": together + parts,
        "method": result["method"],
        "manifest": result["manifest"],
    }


def _together(found: Combination) -> Part:
    facts = (("Networks", ", ".join(found["members"])), ("Images", str(found["images"])))
    sections = tuple(task_sections("together", found["tasks"]))
    return Part("together", "All together", facts, sections=sections)


def _asked(result: Evaluation) -> Iterator[tuple[str, Mapping[str, Task]]]:
    """The tasks of each experiment, and of all together, by a title."""
    for experiment in result["experiments"].values():
        if experiment["tasks"]:
            yield experiment["title"], experiment["tasks"]
    if result["combination"]:
        yield "all together", result["combination"]["tasks"]


def _honest(asked: Sequence[tuple[str, Mapping[str, Task]]]) -> Section | None:
    """COVID-19 against other pneumonia of the same source, and only then the figure across sources."""
    told = [(title, tasks) for title, tasks in asked if HONEST in tasks]
    if not told:
        return None
    marks: list[Mark] = []
    rows: list[tuple[str, ...]] = []
    for title, tasks in told:
        task = tasks[HONEST]
        figure, baseline = task["figures"]["auc"], best_baseline(task["baselines"])
        marks += marked(title, task)
        gap = baseline["difference"] if baseline else None
        rows.append(
            (
                title,
                counted(task["figures"]),
                interval(figure, runs=True),
                interval(baseline["auc"]) if baseline else NOTHING,
                f"{difference(gap)}: {verdict(gap)}",
                _pooled(tasks),
                _external(tasks),
            )
        )
    drawn = (("AUC and its 95 % interval; at 0.5 nothing is told.", plots.forest(marks, "AUC", in_words(marks))),)
    head = ("Network", "Images (COVID-19)", "AUC, same source", "Best without a lung", "Difference",
            "AUC across sources", "External source: sensitivity")  # fmt: skip
    title = "Within one source: COVID-19 against other pneumonia"
    return Section(title, (_HOW, _BESIDE), drawn if marks else (), (Table(head, tuple(rows)),), shown=True)


def _pooled(tasks: Mapping[str, Task]) -> str:
    """The AUC across sources, never without that of the best baseline."""
    task = tasks.get(POOLED)
    if task is None or task["figures"]["auc"] is None:
        return NOTHING
    baseline = best_baseline(task["baselines"])
    beside = f"{interval(baseline['auc'])} without a lung" if baseline else "not compared with what sees no lung"
    return f"{interval(task['figures']['auc'])}; {beside}"


def _external(tasks: Mapping[str, Task]) -> str:
    """The sensitivity on a source never trained on, and the specificity that its frozen thresholds had when chosen."""
    frozen = tasks["external"]["figures"]["at"] if "external" in tasks else {}
    told = (
        f"{share(point['sensitivity'])} ({name}; specificity where it was chosen "
        f"{share(point.get('specificity_when_chosen'))})"
        for name, point in frozen.items()
    )
    return "; ".join(told) or NOTHING


def _headline(result: Evaluation) -> Table | None:
    """The papers' own protocols: figures across sources, beside the honest ones of the same network."""
    rows: list[tuple[str, ...]] = []
    for experiment in result["experiments"].values():
        tested = experiment["test"]
        if experiment["record"]["protocol"] == "folds" or tested is None:
            continue
        record = experiment["record"]
        own = best_baseline(experiment["tasks"][OWN]["baselines"]) if OWN in experiment["tasks"] else None
        twin = next(
            (
                other["tasks"][HONEST]["figures"]["auc"]
                for other in result["experiments"].values()
                if HONEST in other["tasks"]
                and all(other["record"][name] == record[name] for name in ("paper", "variant"))
            ),
            None,
        )
        rows.append(
            (
                experiment["title"],
                interval(tested["figures"]["auc"]),
                interval(own["auc"]) if own else NOTHING,
                interval(twin) if twin else "not measured here",
                images(record),
            )
        )
    head = (
        "Experiment",
        "AUC on its own test images",
        "Best without a lung",
        "The same network within one source",
        "Images",
    )
    return Table(head, tuple(rows)) if rows else None
