"""Plain folders: one for each finding, named as in `manifest.FINDINGS`, with the files in it or a folder per patient.

``covid19/film.png`` or ``covid19/patient 7/film.png``. Without the folder each file counts as a patient of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.data.manifest import FINDINGS
from training.data.readers.common import Collected, Listed, collect, files_under, folders_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def read(root: Path) -> Collected:
    """All files; the source is the name of the folder `root`."""
    return collect(root, _listed(root))


def _listed(root: Path) -> Iterator[Listed]:
    for finding, path in by_finding(root):
        place = path.relative_to(root)
        yield Listed(
            file=place.as_posix(),
            source=root.resolve().name,
            patient=place.parts[1] if len(place.parts) > 2 else place.as_posix(),
            finding=finding,
            labels=place.parts[0],
            why=f"the folder is none of {', '.join(FINDINGS)}",
        )


def by_finding(root: Path) -> list[tuple[str, Path]]:
    """Each file below the folders of `root`, with the finding that its folder names, or empty.

    Raises
    ------
    ValueError
        Where no folder names a finding.
    """
    names = {folder: folder.name.lower() for folder in folders_of(root)}
    if not set(names.values()) & set(FINDINGS):
        raise ValueError(f"{root}: a folder for each finding is needed: {', '.join(FINDINGS)}")
    return [(name if name in FINDINGS else "", path) for folder, name in names.items() for path in files_under(folder)]
