"""What a bundle says of images that it never saw: the chapters of `docs/accuracy.md` on `val` and `external`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicom_node.evaluation.wording import NOTHING, interval, number, share
from training.evaluation.chapter import Chapter, paragraph
from training.evaluation.groups import THRESHOLDS
from training.evaluation.sections import counted
from training.evaluation.tasks import BY_PNEUMONIA, COVID19, PNEUMONIA
from training.evaluation.wording import markdown_table
from training.targets import ABNORMAL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dicom_node.evaluation.shape import AtThreshold, Task

VAL, EXTERNAL = "val, ", "external"
_PNEUMONIA = f"{VAL}pneumonia against normal, "
_BY_PNEUMONIA = f"{VAL}{BY_PNEUMONIA}pneumonia against normal, "
_TOGETHER = ("adults", "pooled")
_HOW = (
    "`val` was scored once for this release, by the shipped networks; nothing of it was used in their training, their "
    "calibration or the choice of their thresholds. A collection of one answer only has no AUC. No forest was grown "
    "for it, so that what is across collections (adults, pooled) may owe everything to telling collections apart."
)


def at_points(at: Mapping[str, AtThreshold]) -> Iterator[str]:
    """Sensitivity and specificity at each operating point."""
    for name in THRESHOLDS:
        yield share(at[name]["sensitivity"]) if name in at else NOTHING
        yield share(at[name]["specificity"]) if name in at else NOTHING


AT_POINTS = tuple(f"{what}, {point}" for point, _ in THRESHOLDS.values() for what in ("Sensitivity", "Specificity"))


def on_val(evaluation: Mapping[str, Any]) -> Chapter:
    """Split `val`, each collection on its own."""
    title = "On `val`, collection by collection"
    tasks = evaluation["combination"]["tasks"]
    within = {name.removeprefix(_PNEUMONIA): task for name, task in tasks.items() if name.startswith(_PNEUMONIA)}
    covid19 = {
        name.removeprefix(VAL): task
        for name, task in tasks.items()
        if name.startswith(VAL) and not name.startswith((_PNEUMONIA, _BY_PNEUMONIA))
    }
    own_answer = {
        name.removeprefix(_BY_PNEUMONIA): task for name, task in tasks.items() if name.startswith(_BY_PNEUMONIA)
    }
    if not within and not covid19:
        return Chapter(title, (paragraph("Not measured: the evaluation has no images of `val`."),))
    own = {target["name"]: target["operating_points"] for target in evaluation.get("targets") or []}
    return Chapter(
        title,
        (
            paragraph(_HOW),
            *_question("COVID-19 against the rest", "COVID-19", covid19, own.get(COVID19, {})),
            *_question(
                f"Pneumonia against normal, by the answer to `{ABNORMAL}`", "pneumonia", within, own.get(ABNORMAL, {})
            ),
            *_question(
                f"Pneumonia against normal, by the answer to `{PNEUMONIA}`",
                "pneumonia",
                own_answer,
                own.get(PNEUMONIA, {}),
            ),
        ),
    )


def _question(asked: str, positive: str, tasks: Mapping[str, Task], own: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {asked}\n"
    if not tasks:
        yield paragraph("Not measured on `val`.")
        return
    if any(task["figures"]["at"] for task in tasks.values()):
        yield paragraph(*_weakest(tasks), _thresholds(tasks, own))
    else:
        yield paragraph(
            "**At the operating points this was not measured on `val`**: the evaluation holds no sensitivity and "
            "specificity of it, only the AUC."
        )
    rows = [
        (name, counted(task["figures"]), f"{task['figures']['patients']:,}", interval(task["figures"]["auc"]),
         *at_points(task["figures"]["at"]))
        for name, task in tasks.items()
    ]  # fmt: skip
    yield markdown_table(("Collection", f"Images ({positive})", "Patients", "AUC", *AT_POINTS), rows)


def _weakest(tasks: Mapping[str, Task]) -> Iterator[str]:
    """Of the collections on their own the one with the lowest share, for each point."""
    for name, (point, _) in THRESHOLDS.items():
        found = []
        for kind in ("sensitivity", "specificity"):
            of = {
                where: figure
                for where, task in tasks.items()
                if where not in _TOGETHER and name in task["figures"]["at"]
                if (figure := task["figures"]["at"][name][kind])
            }
            if of:
                where = min(of, key=lambda where: of[where]["value"])
                found.append(f"{kind} {share(of[where])} ({where})")
        if found:
            yield f"The lowest of a single collection at `{point}`: {'; '.join(found)}."


def _thresholds(tasks: Mapping[str, Task], own: Mapping[str, Any]) -> str:
    """The thresholds that were applied, and the bundle's where they are others."""
    said, shipped = [], []
    for name, (point, _) in THRESHOLDS.items():
        used = {value for task in tasks.values() if name in task["figures"]["at"]
                for value in task["figures"]["at"][name]["thresholds"]}  # fmt: skip
        if used:
            said.append(f"`{point}` {', '.join(number(value) for value in sorted(used))}")
            shipped += [f"`{point}` {number(own[point]['threshold'])}"] if point in own else []
    if not said or not shipped or shipped == said:
        return f"Thresholds: {'; '.join(said)}." if said else ""
    return (
        f"Thresholds: {'; '.join(said)}, chosen on scores that each fold's own fit gave; the bundle's, from one fit, "
        f"are {'; '.join(shipped)}."
    )


def on_external(evaluation: Mapping[str, Any]) -> Chapter:
    """Sources that were never trained on: sensitivity alone."""
    title = "On `external`, sources that were never trained on"
    task = evaluation["combination"]["tasks"].get(EXTERNAL)
    if task is None:
        return Chapter(title, (paragraph("Not measured: the evaluation has no images of such a source."),))
    figures = task["figures"]
    rows = [
        (
            THRESHOLDS[name][0] if name in THRESHOLDS else name,
            ", ".join(number(value) for value in point["thresholds"]),
            share(point["sensitivity"]),
            share(point.get("specificity_when_chosen")),
        )
        for name, point in figures["at"].items()
    ]
    text = (
        f"{figures['images']:,} COVID-19 images of {figures['patients']:,} patients ({', '.join(task['sources'])}). "
        "There are hardly any images without it from there, so **specificity in a hospital never seen is not known**, "
        "and an AUC would mean nothing. Beside the sensitivity stands the specificity that the same threshold had on "
        "the out-of-fold images of adults that it was chosen on."
    )
    head = ("Operating point", "Threshold", "Sensitivity", "Specificity where it was chosen")
    return Chapter(title, (paragraph(text), markdown_table(head, rows)))
