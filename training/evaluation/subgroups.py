"""Whom a bundle answers worse: the chapter of `docs/accuracy.md` on view, sex and age."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicom_node.evaluation.plots import Mark
from dicom_node.evaluation.wording import interval
from training.evaluation.chapter import Chapter, forest, paragraph
from training.evaluation.held_back import AT_POINTS, at_points
from training.evaluation.probability import called
from training.evaluation.sections import counted
from training.evaluation.tasks import NOT_STATED
from training.evaluation.wording import markdown_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dicom_node.evaluation.shape import Brief, Task
    from training.evaluation.chapter import Drawing

_ASKED = ("covid19 against pneumonia, ", "pneumonia against normal, ", "val, adults", "val, pneumonia against normal, ")
_LEAST = 5  # of either answer, for a subgroup to be named as the lowest
_HOW = (
    "The same thresholds as for all images. A subgroup of one answer only has no AUC. Groups differ in more than what "
    "they are called by: bedside images (AP) are of sicker patients, and from other hospitals, than PA images. "
    "Differences between groups were not tested."
)


def by_subgroup(evaluation: Mapping[str, Any]) -> Chapter:
    """View, sex and age, question by question."""
    title = "By view, sex and age"
    asked = {
        name: task
        for name, task in evaluation["combination"]["tasks"].items()
        if name.startswith(_ASKED) and not name.endswith(", PA") and task["subgroups"]
    }
    if not asked:
        return Chapter(title, (paragraph("Not measured."),))
    parts: list[str | Drawing] = [paragraph(_HOW)]
    for name, task in asked.items():
        parts += _question(name, task)
    return Chapter(title, tuple(parts))


def _question(name: str, task: Task) -> Iterator[str | Drawing]:
    yield f"### {called(name, task)}\n"
    alike = [f"{kind} {next(iter(by))}" for kind, by in task["subgroups"].items() if len(by) == 1]
    groups = [
        (f"{kind} {value}", found)
        for kind, by_value in task["subgroups"].items()
        for value, found in by_value.items()
        if len(by_value) > 1
    ]
    if alike:
        yield paragraph(f"Of all {task['figures']['images']:,} images: {', '.join(alike)}.")
    if not groups:
        return
    yield paragraph(_worst(groups), _not_stated(task))
    rows = [(group, counted(found), interval(found["auc"]), *at_points(found["at"])) for group, found in groups]
    yield markdown_table(("Subgroup", "Images (positive)", "AUC", *AT_POINTS), rows)
    marks = [Mark(f"{group} ({counted(found)})", found["auc"]) for group, found in groups if found["auc"]]
    if len(marks) > 1:
        caption = f"AUC by subgroup, images (positive): {called(name, task)}."
        yield forest(f"subgroups, {name}", caption, marks, "AUC")


def _worst(groups: list[tuple[str, Brief]]) -> str:
    """The subgroup with the lowest area, and whether anything is told there."""
    known = {
        group: found
        for group, found in groups
        if found["auc"] and min(found["positives"], found["images"] - found["positives"]) >= _LEAST
    }
    if len(known) < 2:
        return f"No two subgroups have {_LEAST} images of either answer."

    def area(group: str) -> float:
        figure = known[group]["auc"]
        return figure["value"] if figure else 0.0

    group = min(known, key=area)
    figure = known[group]["auc"]
    low = figure["low"] if figure else None
    blind = "; the interval holds 0.5, at which nothing is told" if low is not None and low <= 0.5 else ""
    return (
        f"Of those with {_LEAST} or more of either answer **the lowest is {group}**: AUC {interval(figure)}, "
        f"{counted(known[group])} images (positive){blind}."
    )


def _not_stated(task: Task) -> str:
    said = [
        f"{kind} of {by_value[NOT_STATED]['images']:,}"
        for kind, by_value in task["subgroups"].items()
        if NOT_STATED in by_value and len(by_value) > 1
    ]
    return f"Not stated among {task['figures']['images']:,} images: {', '.join(said)}." if said else ""
