"""What all tests share: where the data and the real programs are, and what their absence means."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

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


@pytest.fixture(scope="session")
def validators() -> None:
    """dciodvfy (dicom3tools) and dsrdump (DCMTK) are there."""
    absent = [name for name in ("dciodvfy", "dsrdump") if shutil.which(name) is None]
    if absent:
        missing(f"validators are not installed: {', '.join(absent)}")


@pytest.fixture(scope="session")
def orthanc_program() -> None:
    """Orthanc is there."""
    from dicom_node.demo.pacs import find_orthanc

    if find_orthanc() is None:
        missing("Orthanc is not installed")
