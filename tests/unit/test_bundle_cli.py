"""`dicom-node bundle ...` as a person types it, on an embedded ledger; what the first start makes of the setting."""

import json
import logging
import subprocess
import sys

import pytest

from dicom_node.bundle import find_bundle, read_manifest
from dicom_node.config import Settings
from dicom_node.database import Database
from dicom_node.domain import BundleError
from dicom_node.releases import Releases
from dicom_node.upgrade import settle, upgrade, use_bundle
from tests.bundle_factories import write_bundle
from tests.result_factories import target


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two releases of the bundle `mine` and one that cannot be read, in a site's `bundles_dir`."""
    monkeypatch.chdir(tmp_path)
    bundles = tmp_path / "cxr-node" / "bundles"
    for release in ("1", "2"):
        write_bundle(bundles / f"mine-{release}", name="mine", release=release)
    (bundles / "broken").mkdir()
    (bundles / "broken" / "manifest.json").write_text('{"name": "broken"}')
    return bundles


@pytest.fixture
def run(tmp_path):
    """The command; gives status, output and the lines that are no log."""

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "dicom_node", "bundle", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        told = [line for line in done.stderr.splitlines() if " INFO " not in line]
        return done.returncode, done.stdout, told

    return run


@pytest.fixture
def releases(folder):
    """The ledger, which screens by `mine` 1."""
    database = Database(Settings().database_dsn)
    database.upgrade()
    found = Releases(database)
    found.activate(read_manifest(folder / "mine-1"))
    yield found
    database.close()


def line(told):
    (only,) = told
    assert only.startswith("dicom-node: ")
    return only


def test_without_a_ledger_bundles_are_listed_shown_and_verified_and_no_ledger_is_made(folder, run, tmp_path):
    status, output, told = run("list", "--json")
    document = json.loads(output)
    assert (status, told, document["active"]) == (0, [], None)
    assert [(one["name"], one["release"]) for one in document["bundles"]] == [
        (None, None),
        ("mine", "1"),
        ("mine", "2"),
        ("starter", read_manifest(find_bundle("starter")).release),
    ]
    assert "release: Field required" in document["bundles"][0]["fault"]
    assert document["bundles"][1]["members"] == ["zhang", "basu"]
    assert document["bundles"][3]["megabytes"] > 1
    assert run("show")[1].startswith("starter ")
    assert run("verify", "mine@1")[:2] == (0, "mine 1 in cxr-node/bundles/mine-1 is whole\n")
    assert not (tmp_path / "cxr-node" / "ledger.sqlite").exists()


def test_the_list_says_by_which_bundle_the_ledger_screens_and_what_cannot_be_read(releases, run):
    status, output, _ = run("list")
    assert status == 0
    (screens,) = (row for row in output.splitlines() if " yes " in row)
    assert "mine@1" in screens
    assert "cannot be read: cxr-node/bundles/broken/manifest.json: release: Field required" in output
    active = json.loads(run("list", "--json")[1])["active"]
    assert active == {"name": "mine", "release": "1", "installed": True}


def test_an_active_release_that_is_gone_is_told_by_the_list(releases, folder, run):
    (folder / "mine-1").rename(folder.parent / "gone")
    assert "the ledger screens by mine 1, which is not installed" in run("list")[1]
    assert json.loads(run("list", "--json")[1])["active"]["installed"] is False
    assert "which is not among the installed bundles" in line(run("show")[2])


def test_a_ledger_that_cannot_be_asked_is_said_and_hides_no_bundle(folder, run, tmp_path):
    (tmp_path / "cxr-node" / "ledger.sqlite").write_text("no database" * 100)
    status, output, told = run("list", "--json")
    assert (status, len(json.loads(output)["bundles"])) == (0, 4)
    assert "the ledger is not asked: the database of database_url cannot be used" in line(told)


def test_it_shows_operating_points_members_digests_and_the_sites_thresholds(releases, folder, run):
    manifest = read_manifest(folder / "mine-1")
    releases.set_threshold(manifest, "covid", 0.35, set_by="Dr. Muster", basis="1,000 films of 2025")
    status, output, _ = run("show")
    assert status == 0
    for told in (
        "balanced: threshold 0.5000, sensitivity 0.900, specificity 0.800\n",
        "site: threshold 0.3500 (in force), version 1, set by Dr. Muster at ",
        "from 1,000 films of 2025",
        "arXiv:2003.12338",
        manifest.members[0].weights[0].sha256,
    ):
        assert told in output
    document = json.loads(run("show", "mine@1", "--json")[1])
    assert document["targets"][0]["site_threshold"]["threshold"] == 0.35
    assert [point["in_force"] for point in document["targets"][0]["operating_points"]] == [False, False]
    document = json.loads(run("show", "mine@2", "--json")[1])
    assert document["targets"][0]["site_threshold"] is None
    assert [point["in_force"] for point in document["targets"][0]["operating_points"]] == [True, False]


def test_verify_has_one_line_a_fault_and_exit_status_1(folder, run):
    (folder / "mine-1" / "zhang.safetensors").write_bytes(b"other")
    (folder / "mine-1" / "old.pt").touch()
    status, output, told = run("verify", "mine@1")
    assert (status, told, output.count("\n")) == (1, [], 2)
    assert "mine-1/zhang.safetensors is not the file that manifest.json names" in output
    assert "mine-1/old.pt may be a pickle" in output
    status, output, _ = run("verify", "broken")
    assert (status, output.count("\n")) == (1, 1)


@pytest.mark.parametrize("command", ["show", "verify", "use"])
def test_a_name_that_nothing_has_or_that_fits_several_is_one_line(releases, run, command):
    for name, told in (("nowhere", "no such name is installed"), ("mine", "mine@1 in"), ("mine@3", "no such name")):
        status, _, lines = run(command, name)
        assert status == 2
        assert told in line(lines)


def test_use_changes_over_and_back(releases, run):
    for release in ("2", "1"):
        assert run("use", f"mine@{release}")[0] == 0
        assert releases.active().release == release


def test_use_without_a_name_takes_the_settings_bundle(releases, run, monkeypatch):
    monkeypatch.setenv("DICOM_NODE_BUNDLE", "mine@2")
    assert run("use")[0] == 0
    assert releases.active().release == "2"


def test_use_refuses_what_workers_would_not_find_or_could_not_load(releases, folder, run, tmp_path):
    write_bundle(tmp_path / "elsewhere", name="mine", release="3")
    status, _, told = run("use", str(tmp_path / "elsewhere"))
    assert status == 2
    assert "is not where workers look for bundles: put it into cxr-node/bundles" in line(told)
    (folder / "mine-2" / "zhang.safetensors").unlink()
    status, _, told = run("use", "mine@2")
    assert status == 2
    assert "mine 2 cannot be used: " in line(told)
    assert releases.active().release == "1"


def test_use_before_there_is_a_ledger_says_what_to_do(folder, run):
    status, _, told = run("use", "mine@1")
    assert status == 2
    assert "start `dicom-node up` once" in line(told)


def test_a_threshold_is_set_for_the_active_release_and_bars_the_next_one_without(releases, folder, run):
    given = ("threshold", "covid", "0.35", "--by", "Dr. Muster", "--basis", "1,000 films")
    status, output, _ = run(*given)
    assert (status, output) == (
        0,
        "mine 1 flags covid from 0.35 on: version 1, set by Dr. Muster; it holds for what is claimed from now on\n",
    )
    status, _, told = run("use", "mine@2")
    assert status == 2
    assert "mine 2 has none for covid: set it with `dicom-node bundle threshold covid" in line(told)
    assert run(*given, "mine@2")[0] == 0
    assert run("use", "mine@2")[0] == 0
    write_bundle(folder / "mine-3", name="mine", release="3", targets=(target("pneumonia"),))
    status, _, told = run("use", "mine@3")
    assert status == 2
    assert "mine 3 has no target covid" in line(told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("tb", "0.5", "--by", "x", "--basis", "y"), "mine 1 has no target 'tb'; its targets: covid"),
        (("covid", "5", "--by", "x", "--basis", "y"), "threshold 5 of covid: it is a probability, between 0 and 1"),
        (("covid", "nan", "--by", "x", "--basis", "y"), "it is a probability"),
        (("covid", "0.5", "--by", "", "--basis", "y"), "--by names who"),
        (("covid", "0.5", "--by", "x", "--basis", " "), "--basis says from which data"),
        (("covid", "0.5", "--by", "x", "--basis", "y", "nowhere"), "no such name is installed"),
    ],
)
def test_a_wrong_threshold_is_one_line(releases, folder, run, arguments, told):
    status, _, lines = run("threshold", *arguments)
    assert status == 2
    assert told in line(lines)
    assert releases.thresholds(read_manifest(folder / "mine-1")) == {}


def test_the_first_start_takes_the_settings_bundle_and_a_later_one_the_ledgers(folder, caplog):
    first = Settings(bundle="mine@1")
    with caplog.at_level(logging.INFO, "dicom_node"):
        upgrade(first)
        upgrade(first)
        assert not [record for record in caplog.records if record.levelname == "WARNING"]
        upgrade(Settings(bundle="mine@2"))
    (told,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert told.startswith("the ledger screens by mine 1; the setting `bundle` names mine 2")
    use_bundle(Settings(bundle="mine@2"))
    database = Database(first.database_dsn)
    assert settle(first, database).release == "2"
    assert settle(Settings(bundle="nowhere"), database).release == "2"
    database.close()


def test_a_first_start_with_a_wrong_setting_makes_nothing(folder, tmp_path):
    with pytest.raises(BundleError, match="nowhere"):
        upgrade(Settings(bundle="nowhere"))
    assert not (tmp_path / "cxr-node" / "ledger.sqlite").exists()


def test_an_upgrade_of_the_schema_does_not_need_the_active_release_to_be_installed(releases, folder, caplog):
    (folder / "mine-1").rename(folder.parent / "gone")
    upgrade(Settings(bundle="mine@2"))
    (told,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert told.startswith("no worker can start here: the ledger screens by mine 1, which is not among")
