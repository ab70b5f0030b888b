"""What an ensemble is worth beside its members and beside what sees no lung: a chapter of `docs/accuracy.md`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicom_node.evaluation.plots import Mark
from dicom_node.evaluation.wording import NOTHING, difference, interval
from training.evaluation.chapter import Chapter, bullets, forest, listed, paragraph
from training.evaluation.tasks import COVID19, NORMAL, PNEUMONIA
from training.evaluation.wording import best_baseline, markdown_table, verdict
from training.targets import ABNORMAL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dicom_node.evaluation.shape import Baseline, Figure, Task
    from training.evaluation.chapter import Drawing

    Row = Mapping[str, Any]  # of `training.evaluation.parts.what_members_are_worth`

ASKED = {
    COVID19: "COVID-19 against other pneumonia",
    ABNORMAL: "Pneumonia against normal, by abnormality",
    PNEUMONIA: "Pneumonia against normal, by pneumonia",
}
_TASK = {COVID19: f"{COVID19} against {PNEUMONIA}", ABNORMAL: f"{PNEUMONIA} against {NORMAL}"}
_UNSURE = "not told apart"
_HARDLY = 0.0015  # of an AUC: what comes to 0.001 or less when it is printed
_HOW = (
    "Each image was scored by networks that never saw its patient or a near duplicate, and joined by weights and "
    "straight lines that the other folds gave. All images of a row come from one collection, so that telling "
    "collections apart helps less. AUC with its 95 % interval over patients; rows with the lowest first. *Pneumonia "
    "against normal* is read from the answer to `abnormal`. The best member is chosen on the very images that it is "
    "compared on, which favours it."
)


def honest_tasks(evaluation: Mapping[str, Any]) -> Chapter:
    """The questions within one collection."""
    tasks = evaluation["combination"]["tasks"]
    rows = sorted(evaluation.get("members") or [], key=lambda row: (row["ensemble"] or {"value": 0})["value"])
    title = "Within one collection: the ensemble, its members, and what sees no lung"
    if not rows:
        return Chapter(title, (paragraph("Not measured: no collection holds enough images of both answers."),))
    head = ("Question, within", "Images (positive)", "Ensemble", "Best member", "Ensemble minus it",
            "At least as good?", "Best without a lung", "Ensemble minus it")  # fmt: skip
    table = markdown_table(head, [_overview(row, _baseline(tasks, row)) for row in rows])
    parts: list[str | Drawing] = [paragraph(_HOW), table]
    if any(len(row["members"]) > 1 for row in rows):
        parts.append(bullets(list(_why(rows))))
    else:
        parts.append(paragraph("The bundle has one member: no ensemble is there to be compared with it."))
    parts += _condition(rows, evaluation.get("targets") or [])
    for row in rows:
        parts += _members(row, _baseline(tasks, row))
    return Chapter(title, tuple(parts))


def _named(row: Row) -> str:
    return f"{ASKED.get(row['question'], row['question'])}, {row['where']}"


def _baseline(tasks: Mapping[str, Task], row: Row) -> Baseline | None:
    task = tasks.get(f"{_TASK.get(row['question'], row['question'])}, {row['where']}")
    return best_baseline(task["baselines"]) if task else None


def _overview(row: Row, baseline: Baseline | None) -> tuple[str, ...]:
    more, several = row["more_than_best"], len(row["members"]) > 1
    best = row["members"].get(row["best"])
    return (
        _named(row),
        f"{row['images']:,} ({row['positives']:,})",
        interval(row["ensemble"]),
        f"{row['best']} {interval(best)}",
        difference(more) if several else NOTHING,
        f"{'yes' if _as_good(row) else 'no'}, {_told(more)}" if several else "one member",
        f"{baseline['title']}: {interval(baseline['auc'])}" if baseline else NOTHING,
        f"{difference(baseline['difference'])}: {verdict(baseline['difference'])}" if baseline else NOTHING,
    )


def _as_good(row: Row) -> bool:
    return bool(row["more_than_best"] and row["more_than_best"]["value"] >= 0)


def _told(found: Figure | None, better: str = "better", worse: str = "worse") -> str:
    """What the interval of a difference says."""
    if found is None or found["low"] is None or found["high"] is None:
        return "without an interval"
    return better if found["low"] > 0 else worse if found["high"] < 0 else _UNSURE


def _why(rows: Sequence[Row]) -> Iterator[str]:
    """Why the ensemble ships where it is no better than one of its members, and where it is better."""
    best: dict[str, list[str]] = {}
    for row in rows:
        best.setdefault(row["best"], []).append(_named(row))
    for row in (row for row in rows if not _as_good(row)):
        more = row["more_than_best"]
        said = _told(more)
        yield " ".join(
            (
                f"{_named(row)}: the ensemble is **not as good as {row['best']}** alone, {difference(more)}.",
                f"The interval lies below 0: what is lost is more than chance among these {row['images']:,} images."
                if said == "worse"
                else f"The interval holds 0: {row['images']:,} images do not tell which of the two is better."
                if said == _UNSURE
                else "No interval says whether that is chance.",
                "It ships so because one combination answers everywhere, and no member is the best everywhere: "
                + "; ".join(f"{name} in {' and '.join(where)}" for name, where in best.items())
                + "."
                if len(best) > 1
                else f"{row['best']} is the best member in every row.",
            )
        )
    good = [row for row in rows if _as_good(row)]
    unsure = [_named(row) for row in good if _told(row["more_than_best"]) != "better"]
    sure = [_named(row) for row in good if _told(row["more_than_best"]) == "better"]
    if unsure:
        yield (
            f"At least as good as its best member, but not shown to be better, as the interval of the difference holds "
            f"0: {'; '.join(unsure)}."
        )
    if sure:
        yield f"Better than its best member, by an interval above 0: {'; '.join(sure)}."


def _condition(rows: Sequence[Row], targets: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What it costs to withdraw an answer where the image seems normal."""
    conditions = {target["name"]: target["condition"] for target in targets if target.get("condition")}
    for question, condition in conditions.items():
        of = [row for row in rows if row["question"] == question]
        yield f"### What withdrawing {question} costs\n"
        rule = (
            f"The answer to `{question}` is withdrawn step by step where that to `{condition['target']}` is low: it is "
            f"halved where that is {condition['threshold']:g}."
        )
        known = [row for row in of if row.get("unconditional") and row["ensemble"]]
        if not known:
            yield paragraph(rule, "What that costs was not measured.")
            continue
        cost = [row["ensemble"]["value"] - row["unconditional"]["value"] for row in known]
        yield paragraph(
            rule,
            "It keeps normal images from being flagged. Here, where every image shows a pneumonia, it "
            f"**{'lowers' if min(cost) < 0 else 'does not lower'} the AUC**. Of the change no interval was computed.",
        )
        head = ("Within", "Images (positive)", "As shipped", "Never withdrawn", "Change by withdrawing")
        table = [
            (
                row["where"],
                f"{row['images']:,} ({row['positives']:,})",
                interval(row["ensemble"]),
                interval(row["unconditional"]),
                difference({"value": change, "low": None, "high": None, "n": row["images"], "interval": "none"}),
            )
            for row, change in zip(known, cost, strict=True)
        ]
        yield markdown_table(head, table)


def _members(row: Row, baseline: Baseline | None) -> Iterator[str | Drawing]:
    """One row for each member: alone, and what is lost without it, the least useful first."""
    if len(row["members"]) < 2 and not row["without"]:
        return
    yield f"### {_named(row)}: each member\n"
    names = list(dict.fromkeys([*row["members"], *row["without"]]))

    def loss(name: str) -> Figure | None:
        left_out = row["without"].get(name)
        return left_out["loss"] if left_out else None

    names.sort(key=lambda name: (found := loss(name)) is None or found["value"])
    told = {name: _told(loss(name), "helps", "harms") for name in names}
    small = {name for name in names if (found := loss(name)) and abs(found["value"]) < _HARDLY}
    yield paragraph(
        f"{row['images']:,} images, {row['positives']:,} of them positive.",
        *(
            f"{what}: {listed(those)}."
            for what, said in (
                ("The ensemble is better without", "harms"),
                ("Leaving it out makes no difference that these images could show", _UNSURE),
                ("The ensemble is worse without", "helps"),
            )
            if (those := [name for name in names if told[name] == said])
        ),
    )
    table = [
        (
            name,
            interval(row["members"].get(name)),
            interval(row["without"][name]["auc"]) if name in row["without"] else NOTHING,
            difference(loss(name)),
            f"{told[name]}{', hardly' if name in small and told[name] != _UNSURE else ''}"
            if name in row["without"]
            else NOTHING,
        )
        for name in names
    ]
    yield markdown_table(("Member", "Alone", "Ensemble without it", "Lost without it", "So it"), table)
    marks = [Mark("ensemble", row["ensemble"])] if row["ensemble"] else []
    marks += [Mark(name, figure) for name, figure in row["members"].items() if figure]
    if baseline:
        marks.append(Mark(f"no lung: {baseline['title']}", baseline["auc"], baseline=True))
    yield forest(f"members, {_named(row)}", f"AUC of the ensemble, of each member alone, and of the best forest that "
                 f"sees no lung: {_named(row)}.", marks, "AUC")  # fmt: skip
