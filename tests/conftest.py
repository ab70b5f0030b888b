"""What all tests share: where the data and the real programs are, and what their absence means."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from dicom_node.database import Database
    from tests.servers import PostgresServer, RedisServer

# Of torch's threads, here and in every process that a test starts: one that waits for another sleeps. By default it
# spins, and where a node's processes share two cores, loading its networks takes six times the processor time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The same examples at every run, however long one takes; nothing of them is written to the working folder.
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.load_profile("same")

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
        errors = [line for line in lines if "Error" in line]
        assert not errors, "\n".join(errors)
        if any(line.endswith(("SR", "KeyObjectSelectionDocument")) for line in lines):  # the name of the IOD
            dumped = _run("dsrdump", file)
            assert dumped.returncode == 0, dumped.stderr
            assert "E: " not in dumped.stderr
        else:
            assert _run("dcmdump", "-q", file).returncode == 0

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


@pytest.fixture(scope="session")
def orthanc_dicomweb() -> str:
    """Orthanc's plugin for DICOMweb."""
    plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
    if not plugin.exists():
        missing("orthanc-dicomweb is not installed")
    return str(plugin)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator["PostgresServer"]:
    """A running PostgreSQL for the whole session; a test makes databases of its own on it."""
    from tests.servers import PostgresServer, find_postgres

    if find_postgres() is None:
        missing("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with PostgresServer(fsync=False) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator["RedisServer"]:
    """A running Redis for the whole session; a test removes what it wrote."""
    from tests.servers import RedisServer, find_redis

    if find_redis() is None:
        missing("Redis is not installed (Debian: apt-get install redis-server)")
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty ledger, to be copied."""
    from dicom_node.database import Database

    file = tmp_path_factory.mktemp("template") / "ledger.sqlite"
    database = Database(f"sqlite:///{file}")
    database.upgrade()
    database.close()
    return file


@pytest.fixture(scope="session")
def postgres_template(postgres_server: "PostgresServer") -> str:
    """The name of a database with an empty ledger, to be copied."""
    from dicom_node.database import Database

    name = "ledger_template"
    postgres_server.create_database(name)
    database = Database(postgres_server.dsn(name))
    database.upgrade()
    database.close()
    return name


@pytest.fixture
def postgres_dsn(postgres_server: "PostgresServer", postgres_template: str) -> Iterator[str]:
    """An empty ledger on PostgreSQL, of this test alone."""
    name = f"test_{uuid.uuid4().hex}"
    postgres_server.create_database(name, postgres_template)
    yield postgres_server.dsn(name)
    postgres_server.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator["Database"]:
    """An empty ledger, of this test alone: every test that asks for it runs on both databases."""
    from dicom_node.database import Database

    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_dsn")
    else:
        shutil.copyfile(request.getfixturevalue("sqlite_template"), tmp_path / "ledger.sqlite")
        url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    found = Database(url)
    yield found
    found.close()
