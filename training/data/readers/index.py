"""Our own form: a folder with ``manifest.csv`` or ``index.csv``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.data.manifest import read_manifest
from training.data.readers.common import Collected, opened

if TYPE_CHECKING:
    from pathlib import Path


def read(root: Path) -> Collected:
    """The manifest's pictures as they are, with their hashes; a file whose hash is not the listed one is left out."""
    return opened(read_manifest(root))
