"""The COVID-19 image repository of Hannover Medical School (github.com/ml-workgroup/covid-19-image-repository).

``data.csv`` and ``png/<image_id>.png``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.data.readers.common import Collected, Listed, age, collect, find, sex, table, view

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# There is no label: all are patients with COVID-19. `admission_offset` is the day of admission, counted from the
# image; of images taken a week or more before it the owner says that they are not known to be positive, and after two
# weeks negative (his issue 4). These are left out.
LABEL = "COVID-19"
EARLIEST_DAYS = 7


def read(root: Path) -> Collected:
    """All images are ``covid19``, but for those taken long before admission."""
    file = find(root, "data.csv")
    return collect(file.parent, _listed(file))


def _listed(file: Path) -> Iterator[Listed]:
    for row in table(file, "patient_id", "image_id", "sex", "age", "admission_offset", "projection"):
        early = float(row["admission_offset"] or 0) >= EARLIEST_DAYS
        yield Listed(
            file=f"png/{row['image_id']}.png",
            source="hannover",
            patient=row["patient_id"],
            finding="" if early else "covid19",
            labels=LABEL,
            view=view(row["projection"]),
            sex=sex(row["sex"]),
            age=age(row["age"]),
            licence="CC BY 3.0",
            why=f"taken {EARLIEST_DAYS} days or more before admission" if early else "",
        )
