"""What a collection holds, counted."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from training.data.manifest import Picture

NOT_STATED = "not stated"
AGES = ((18, "0-17"), (40, "18-39"), (65, "40-64"), (200, "65 and more"))  # years, below the first


def describe(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Counts of images: ``findings`` by source, finding and split, all others by source and value.

    ``images``, ``patients`` and ``clusters`` are totals.
    """
    findings: dict[str, dict[str, dict[str, int]]] = {}
    for picture in pictures:
        splits = findings.setdefault(picture.source, {}).setdefault(picture.finding, {})
        splits[picture.split or NOT_STATED] = splits.get(picture.split or NOT_STATED, 0) + 1
    return {
        "images": len(pictures),
        "patients": len({picture.patient_id for picture in pictures}),
        "clusters": len({picture.cluster for picture in pictures if picture.cluster}),
        "findings": findings,
        "views": _by_source(pictures, lambda picture: picture.view),
        "sex": _by_source(pictures, lambda picture: picture.sex),
        "age": _by_source(pictures, lambda picture: _band(picture.age)),
        "licences": _by_source(pictures, lambda picture: picture.licence),
    }


def _by_source(pictures: Sequence[Picture], value: Callable[[Picture], str]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for picture in pictures:
        found.setdefault(picture.source, Counter())[value(picture) or NOT_STATED] += 1
    return {source: dict(sorted(counts.items())) for source, counts in found.items()}


def _band(age: str) -> str:
    try:
        years = float(age)
    except ValueError:
        return NOT_STATED
    return next((name for below, name in AGES if 0 <= years < below), NOT_STATED)


def tables(found: dict[str, Any]) -> list[Table]:
    """What `describe` found, to be printed."""
    findings = [
        (source, finding, split, count)
        for source, rows in found["findings"].items()
        for finding, splits in sorted(rows.items())
        for split, count in sorted(splits.items())
    ]
    title = f"{found['images']} images, {found['patients']} patients, {found['clusters']} clusters"
    return [
        _table(title, ("source", "finding", "split"), findings),
        *(
            _table(name, ("source", name), [(s, v, n) for s, counts in found[name].items() for v, n in counts.items()])
            for name in ("views", "sex", "age", "licences")
        ),
    ]


def _table(title: str, names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, overflow="fold")
    table.add_column("images", justify="right")
    for row in rows:
        table.add_row(*map(str, row))
    return table
