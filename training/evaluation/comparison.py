"""The papers' numbers, row for row, and ours beside them: `comparison.md` of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from dicom_node.evaluation.wording import DISCLAIMER, NOTHING
from training.evaluation.honest import honest_tables
from training.evaluation.wording import cell, images, markdown_table, measured, profile, prose, published
from training.papers import PAPERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from dicom_node.evaluation.shape import Compared, Evaluation, Experiment, Figure
    from training.papers.paper import Paper, Published, Table

COMPARISON = "comparison.md"
HEAD = ("Row", "Column", "Paper", "Ours, 95 % interval", "n", "On which data", "What differs")


@dataclass(frozen=True, slots=True)
class Beside:
    """A published number with ours and the experiment that gave it; where `ours` is None, `why` says why."""

    number: Published
    ours: Figure | None
    experiment: Experiment | None
    why: str


def write_comparison(result: Mapping[str, Any], out: Path) -> Path:
    """Write `comparison.md` into the folder `out`; `result` is what `evaluation.json` holds."""
    file = out / COMPARISON
    file.write_text(comparison(cast("Evaluation", result)), encoding="utf-8")
    return file


def comparison(result: Evaluation) -> str:
    """Every table of every paper that the result has an experiment of, after what is left within one source."""
    experiments = list(result["experiments"].values())
    names = {experiment["record"]["paper"] for experiment in experiments}
    parts = [
        "# Ours beside the papers'\n",
        prose(f"{DISCLAIMER} {how_to_read()}") + "\n",
        "## What is left within one source\n",
        honest_tables(experiments, result["combination"]),
        *(paper_section(paper, experiments) for name, paper in PAPERS.items() if name in names),
    ]
    return "\n".join(parts)


def how_to_read() -> str:
    """What the columns mean."""
    return (
        "Ours is the value over the pooled test images of all runs with its 95 % interval in brackets (Clopper-Pearson "
        "for proportions, else bootstrap over patients, near duplicates together), then mean and deviation of the "
        "runs where there are several. "
        "n is the number of images that the figure is of. A dash says that there is no such number of ours, and the "
        "last column why; the differences that it counts are listed under the paper."
    )


def beside(paper: Paper, experiments: Sequence[Experiment]) -> Iterator[tuple[Table, list[Beside]]]:
    """Every table of the paper, in its order, with ours from the experiments by the paper's own protocol.

    Of the profiles `paper` comes first.
    """
    own = [found for found in experiments if _is_own(found["record"], paper.name)]
    own.sort(key=lambda found: found["record"]["profile"] != "paper")
    for table in paper.tables:
        yield table, [_beside(paper, table, number, own) for number in table.numbers]


def _is_own(record: Mapping[str, Any], paper: str) -> bool:
    return (record["paper"], record["protocol"], record["task"]) == (paper, "paper", "covid19")


def _beside(paper: Paper, table: Table, number: Published, own: Sequence[Experiment]) -> Beside:
    if number.measure is None:
        return Beside(number, None, None, "not a figure of a trained network here" if not number.remark else "")
    variant = number.measure.variant or paper.variants[0]
    candidates = [found for found in own if number.measure.of_data or found["record"]["variant"] == variant]
    candidates.sort(key=lambda found: found["record"]["variant"] != variant)
    why = f"variant {variant} was not trained by the paper's protocol"
    for experiment in candidates:
        found = _found(experiment, table, number)
        if found is not None and found["ours"] is not None:
            return Beside(number, found["ours"], experiment, "")
        why = found["why"] if found else "the evaluation is older than this row: evaluate again"
    return Beside(number, None, None, why)


def _found(experiment: Experiment, table: Table, number: Published) -> Compared | None:
    """The row of the experiment's evaluation that is about the number."""
    wanted = (number.row, number.column, number.value)
    rows = [row for found in experiment["published"] if found["name"] == table.name for row in found["numbers"]]
    return next((row for row in rows if (row["row"], row["column"], row["paper"]) == wanted), None)


def paper_section(paper: Paper, experiments: Sequence[Experiment]) -> str:
    """The paper's citation, what differs, what it leaves open, and its tables."""
    tables = list(beside(paper, experiments))
    used = [row.experiment for _, rows in tables for row in rows if row.experiment]
    differences = list(dict.fromkeys(text for experiment in used for text in experiment["record"]["differences"]))
    command = f"python -m training train {paper.name} --data DIR --workdir DIR"
    lines = [f"## {cell(paper.title)}\n", prose(f"{cell(paper.citation).rstrip('.')}. Command: `{command}`.") + "\n"]
    if differences:
        lines.append("What differs from the paper:\n")
        lines.append("".join(_item(f"{number}.", text) for number, text in enumerate(differences, 1)))
    elif not used:
        lines.append("No experiment by the paper's own protocol is among these evaluations.\n")
    if paper.silent:
        lines.append("Where the paper is silent or contradicts itself:\n")
        lines.append("".join(_item("-", text) for text in paper.silent))
    for table, rows in tables:
        lines.append(f"### {cell(table.name)}\n")
        if table.caption:
            lines.append(prose(cell(table.caption)) + "\n")
        lines.append(markdown_table(HEAD, [_row(row, differences) for row in rows]))
    return "\n".join(lines)


def _item(mark: str, text: str) -> str:
    return prose(f"{mark} {cell(text)}", " " * (len(mark) + 1)) + "\n"


def _row(found: Beside, differences: Sequence[str]) -> tuple[str, ...]:
    number, ours, experiment = found.number, found.ours, found.experiment
    kind = kind_of(number)
    printed = published(number.value, kind, number.deviation, number.deviation_is)
    if ours is None or experiment is None:
        why = "; ".join(text for text in (found.why, number.remark) if text)
        return number.row, number.column, printed, NOTHING, NOTHING, NOTHING, why
    record = experiment["record"]
    differs = _ranges("difference", [differences.index(text) + 1 for text in record["differences"]])
    return (
        number.row,
        number.column,
        printed,
        measured(ours, kind),
        str(ours["n"]),
        f"{images(record)}; {profile(record)}",
        "; ".join(text for text in (differs, number.remark) if text),
    )


def kind_of(number: Published) -> str:
    """The kind of a number, which says its unit; that of its column where nothing measures it here."""
    return number.measure.kind if number.measure else number.column.lower()


def _ranges(what: str, numbers: Sequence[int]) -> str:
    """Rising numbers with runs shortened: ``differences 1 to 4, 6``; empty of none."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    shown = ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
    return f"{what}{'s' if len(numbers) > 1 else ''} {shown}" if parts else ""
