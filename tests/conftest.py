"""What all tests share: where the data and the real programs are, and what their absence means."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn, Protocol

import pytest

IN_CI = os.environ.get("CI") == "true"
DCMTK = ("echoscu", "dcmsend", "storescu", "storescp", "findscu", "dcmdump", "dsrdump", "dcm2pnm", "dcmdjpeg")


def missing(what: str) -> NoReturn:
    """A skip on a laptop, a failure where everything has to be there."""
    if IN_CI:
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real images: `cxr/` with its index and `dicom/`."""
    value = os.environ.get("CXR_TEST_DATA")
    if not value:
        missing("CXR_TEST_DATA does not name the folder of test images")
    folder = Path(value)
    if not (folder / "cxr" / "index.csv").is_file():
        missing(f"CXR_TEST_DATA={folder} holds no cxr/index.csv")
    return folder


@pytest.fixture(scope="session")
def dcmtk() -> None:
    """DCMTK's programs are there."""
    absent = [name for name in DCMTK if shutil.which(name) is None]
    if absent:
        missing(f"DCMTK is not installed: {', '.join(absent)}")


class Validate(Protocol):
    """Fails the test where a validator finds an error in the file."""

    def __call__(self, file: Path) -> None: ...


@pytest.fixture(scope="session")
def validators() -> Validate:
    """Fails where dciodvfy finds an error in the file, or DCMTK cannot read it as the Structured Report that it is.

    Neither is enough: dciodvfy does not check the relationships in an SR tree, dsrdump does not check modules.
    """
    absent = [name for name in ("dciodvfy", "dsrdump", "dcmdump") if shutil.which(name) is None]
    if absent:
        missing(f"not installed: {', '.join(absent)} (Debian: apt-get install dcmtk dicom3tools)")

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


@pytest.fixture(scope="session")
def orthanc_program() -> None:
    """Orthanc is there."""
    from dicom_node.demo.pacs import find_orthanc

    if find_orthanc() is None:
        missing("Orthanc is not installed")
