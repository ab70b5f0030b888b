"""The questions that a shortcut answers worst, all methods in one table each, beside what sees no lung."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicom_node.evaluation.wording import NOTHING, difference, interval, share
from training.evaluation.wording import HONEST, OWN, POOLED, cell, markdown_table, prose

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dicom_node.evaluation.shape import Combination, Experiment, Lungs, Task

EXTERNAL = "external"
_WITHIN = (HONEST.partition(",")[0], "pneumonia against normal")
_ACROSS = ("covid19 against the rest, adults", POOLED, OWN)


def honest_tables(experiments: Sequence[Experiment], combination: Combination | None) -> str:
    """Same-source tasks first, sensitivity on the external source, doubts, and last the figures across sources."""
    asked = [(found["title"], found["tasks"]) for found in experiments if found["tasks"]]
    if combination:
        asked.append((f"together: {', '.join(combination['members'])}", combination["tasks"]))
    names = list(dict.fromkeys(name for _, tasks in asked for name in tasks))
    within = sorted((name for name in names if name.startswith(_WITHIN)), key=lambda name: not name.startswith(HONEST))
    lungs = [(found["title"], found["lungs"]) for found in experiments if found["lungs"]]
    parts = [_task_table(name, asked) for name in within] or [_NOTHING_WITHIN]
    parts += [_external(asked)] if EXTERNAL in names else []
    parts += _doubts([(title, found) for title, found in lungs if found])
    across = [_task_table(name, asked) for name in _ACROSS if name in names]
    if across:
        parts.append(prose(_NO_EVIDENCE) + "\n")
    return "\n".join(parts + across)


_NOTHING_WITHIN = "No experiment here was asked anything within one source: that needs `--protocol folds`.\n"
_NO_EVIDENCE = (
    "Across sources, where telling the sources apart is enough. These figures are no evidence of recognising disease; "
    "they stand here for comparison with what sees no lung."
)


def _task_table(name: str, asked: Sequence[tuple[str, Mapping[str, Task]]]) -> str:
    """One question: AUC of each network, of each baseline on the same images and folds, and the difference."""
    told = [(title, tasks[name]) for title, tasks in asked if name in tasks]
    baselines = {key: each["title"] for _, task in told for key, each in task["baselines"].items()}
    rows = [
        (
            title,
            f"{task['figures']['images']:,} ({task['figures']['positives']:,})",
            interval(task["figures"]["auc"], runs=True),
            *(text for key in baselines for text in _against(task, key)),
        )
        for title, task in told
    ]
    columns = [text for key in baselines for text in (f"No lung: {key}", f"Minus {key}")]
    what = "; ".join(f"{key}: {title}" for key, title in baselines.items())
    lines = [f"### {cell(told[0][1]['title'])}\n"]
    if what:
        lines.append(prose(f"AUC. Random forests that see no lung, out of the same folds: {cell(what)}.") + "\n")
    return "\n".join([*lines, markdown_table(("Network", "Images (positive)", "AUC", *columns), rows)])


def _against(task: Task, key: str) -> tuple[str, str]:
    found = task["baselines"].get(key)
    return (interval(found["auc"]), difference(found["difference"])) if found else (NOTHING, NOTHING)


def _external(asked: Sequence[tuple[str, Mapping[str, Task]]]) -> str:
    told = [(title, tasks[EXTERNAL]) for title, tasks in asked if EXTERNAL in tasks]
    rows = [
        (
            title,
            str(task["figures"]["positives"]),
            name,
            share(point["sensitivity"]),
            share(point.get("specificity_when_chosen")),
            point["chosen"],
        )
        for title, task in told
        for name, point in task["figures"]["at"].items()
    ]
    head = ("Network", "Images", "Threshold", "Sensitivity", "Specificity where it was chosen", "Chosen")
    return f"### {cell(told[0][1]['title'])}\n\n{markdown_table(head, rows)}"


def _doubts(lungs: Sequence[tuple[str, Lungs]]) -> Iterator[str]:
    """What becomes of the AUC without lungs, and where the heatmaps look."""
    blanked = [
        (title, found.get("auc", {}), found.get("fall", {}))
        for title, found in lungs
        if any(found.get("auc", {}).values())
    ]
    if blanked:
        names = list(dict.fromkeys(name for _, auc, _ in blanked for name in auc))
        rows = [
            (
                title,
                *(
                    f"{interval(auc.get(name))}{f'; fall {difference(fall[name])}' if fall.get(name) else ''}"
                    for name in names
                ),
            )
            for title, auc, fall in blanked
        ]
        why = "AUC of the images whose lungs are outlined. Without its lungs an image should tell nothing."
        yield f"### Lungs blanked, lungs only\n\n{why}\n\n{markdown_table(('Network', *names), rows)}"
    looked = [
        (title, name, interval(each["inside"]), interval(each["area"]), difference(each["more_than_area"]))
        for title, found in lungs
        for name, each in found.get("energy", {}).items()
    ]
    if looked:
        head = ("Network", "Heatmap", "Energy inside the lungs", "Area of the lungs", "More than area")
        yield f"### Where the heatmaps look\n\n{markdown_table(head, looked)}"
