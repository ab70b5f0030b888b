"""Fixtures of the integration tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from pathlib import Path


class Validate(Protocol):
    def __call__(self, file: Path) -> None: ...


@pytest.fixture(scope="session")
def validators() -> Validate:
    """Fails where dciodvfy finds an error in the file, or DCMTK cannot read it as the Structured Report that it is.

    Neither is enough: dciodvfy does not check the relationships in an SR tree, dsrdump does not check modules.
    """
    missing = [tool for tool in ("dciodvfy", "dsrdump", "dcmdump") if shutil.which(tool) is None]
    if missing:
        message = f"{', '.join(missing)} not installed (Debian: apt-get install dcmtk dicom3tools)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)

    def validate(file: Path) -> None:
        found = _run("dciodvfy", file)
        lines = (found.stdout + found.stderr).splitlines()
        assert [line for line in lines if "Error" in line] == []
        assert _run("dcmdump", "-q", file).returncode == 0
        if any(line.endswith("SR") for line in lines):  # the name of the IOD
            dumped = _run("dsrdump", file)
            assert dumped.returncode == 0, dumped.stderr
            assert "E: " not in dumped.stderr

    return validate


def _run(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tool, *map(str, arguments)], capture_output=True, text=True, errors="replace", timeout=60, check=False
    )
