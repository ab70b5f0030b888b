import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from dicom_node import __version__, cli
from dicom_node.database import Database
from dicom_node.domain import NodeError
from dicom_node.ledger import Ledger
from tests.ledger_factories import received
from tests.result_factories import manifest


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run the command as a process in an empty folder; gives status, output and error."""

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "dicom_node", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_it_says_its_version():
    assert CliRunner().invoke(cli.app, ["--version"]).stdout.strip() == f"dicom-node {__version__}"


def test_help_names_the_commands_and_that_it_is_no_medical_device():
    told = " ".join(CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200"}).stdout.split())
    for name in ("up", "demo", "screen", "status"):
        assert name in told
    assert "not a medical device" in told


def test_status_without_a_ledger_says_what_to_do_and_makes_nothing(command, tmp_path):
    status, output, error = command("status")
    assert (status, output) == (2, "")
    assert error.startswith("dicom-node: there is no ledger cxr-node/ledger.sqlite yet")
    assert list(tmp_path.iterdir()) == []


def test_status_counts_and_its_exit_status_tells_a_broken_invariant(command, tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'cxr-node' / 'ledger.sqlite'}")
    database.upgrade()
    ledger = Ledger(database)
    ledger.activate_release(manifest())
    ledger.record(received())
    status, output, _ = command("status", "--json")
    counts = json.loads(output)
    assert status == 0
    assert (counts["received"], counts["waiting"], counts["invariant_holds"]) == (1, 1, True)
    with database.write() as session:
        session.connection().exec_driver_sql("PRAGMA foreign_keys=OFF")
        session.connection().exec_driver_sql("DELETE FROM transitions")
        session.connection().exec_driver_sql("DELETE FROM screenings")
    database.close()
    status, output, _ = command("status", "--json")
    assert status == 1
    assert json.loads(output)["invariant_holds"] is False


def test_a_worker_part_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(cli, "entry_points", lambda **_: ())
    with pytest.raises(NodeError, match="no worker part"):
        cli._resolve("screen")


def test_an_install_without_torch_says_what_to_install(monkeypatch):
    class Broken:
        def load(self):
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli, "entry_points", lambda **_: (Broken(),))
    with pytest.raises(NodeError, match=r"needs the package 'torch': install cxr-dicom-node\[worker\]"):
        cli._resolve("screen")


def test_a_missing_bundle_is_named_in_one_line(command, monkeypatch):
    monkeypatch.setenv("DICOM_NODE_BUNDLE", "nowhere")
    status, _, error = command("screen", "film.dcm")
    assert status == 2
    assert error.count("\n") == 1
    assert "bundle 'nowhere'" in error
