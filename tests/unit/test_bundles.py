import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from dicom_node.bundle import Code, find_bundle, read_manifest
from dicom_node.bundles import difference, find, find_release, installed
from dicom_node.config import Settings
from dicom_node.domain import BundleError
from tests.bundle_factories import write_bundle


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Settings(bundles_dir=tmp_path / "bundles")


def test_the_shipped_bundle_is_installed_where_nothing_else_is(settings):
    (one,) = installed(settings)
    assert (one.folder, one.manifest.name, one.fault) == (find_bundle("starter"), "starter", "")


def test_the_settings_folder_goes_first_then_bundles_dir_and_each_is_there_once(settings, tmp_path):
    write_bundle(tmp_path / "bundles" / "b", name="b")
    write_bundle(tmp_path / "bundles" / "a", name="a")
    write_bundle(tmp_path / "own", name="own")
    (tmp_path / "bundles" / ".hidden").mkdir()
    given = settings.model_copy(update={"bundle": str(tmp_path / "own")})
    assert [one.manifest.name for one in installed(given)] == ["own", "a", "b", "starter"]
    given = settings.model_copy(update={"bundle": str(tmp_path / "bundles" / "b")})
    assert [one.manifest.name for one in installed(given)] == ["b", "a", "starter"]


def test_a_bundle_that_cannot_be_read_says_why_and_hides_no_other(settings, tmp_path):
    write_bundle(tmp_path / "bundles" / "good", name="good")
    (tmp_path / "bundles" / "empty").mkdir()
    (tmp_path / "bundles" / "broken").mkdir()
    (tmp_path / "bundles" / "broken" / "manifest.json").write_text('{"name": "x"}')
    faults = {one.folder.name: one.fault for one in installed(settings)}
    assert "release: Field required" in faults["broken"]
    assert "manifest.json cannot be read: No such file" in faults["empty"]
    assert faults["good"] == ""


def test_a_bundles_dir_that_is_no_folder_is_named(settings, tmp_path):
    (tmp_path / "bundles").touch()
    with pytest.raises(BundleError, match=r"bundles cannot be read: Not a directory; see bundles_dir"):
        installed(settings)


def test_a_bundle_is_found_by_name_by_release_by_folder_and_by_its_folders_name(settings, tmp_path):
    write_bundle(tmp_path / "bundles" / "somewhere", name="mine", release="7")
    folder = tmp_path / "bundles" / "somewhere"
    for name in ("mine", "mine@7", str(folder), "somewhere"):
        assert find(name, settings) == folder
    assert find("starter", settings) == find_bundle("starter")


@pytest.mark.parametrize("name", ["nowhere", "mine@8", "@", "mine@", "a/b", "x" * 5000, "\0"])
def test_a_name_that_nothing_has_is_refused(settings, tmp_path, name):
    write_bundle(tmp_path / "bundles" / "mine", name="other")
    with pytest.raises(BundleError) as raised:
        find(name, settings)
    assert "\n" not in str(raised.value)


def test_a_name_that_fits_several_releases_is_refused_and_all_are_named(settings, tmp_path):
    for release in ("1", "2"):
        write_bundle(tmp_path / "bundles" / release, name="mine", release=release)
    with pytest.raises(BundleError, match=r"bundle 'mine' may be mine@1 in .*1, mine@2 in .*2: name the release"):
        find("mine", settings)
    assert find("mine@2", settings) == tmp_path / "bundles" / "2"


def test_one_release_with_two_manifests_is_refused_and_a_mere_copy_is_not(settings, tmp_path):
    write_bundle(tmp_path / "bundles" / "a", name="mine", release="1")
    shutil.copytree(tmp_path / "bundles" / "a", tmp_path / "bundles" / "b")
    assert find("mine@1", settings) == tmp_path / "bundles" / "a"
    write_bundle(tmp_path / "bundles" / "c", name="mine", release="1", title="changed")
    with pytest.raises(BundleError, match=r"mine@1 in .*a, mine@1 in .*c: name the release.*or the folder"):
        find("mine@1", settings)


def test_the_ledgers_release_is_found_by_its_very_manifest(settings, tmp_path):
    wanted = write_bundle(tmp_path / "bundles" / "b", name="mine", release="1")
    write_bundle(tmp_path / "bundles" / "a", name="mine", release="1", title="changed")
    assert find_release(wanted, settings) == tmp_path / "bundles" / "b"


def test_a_release_that_is_not_installed_is_named_with_those_that_are(settings, tmp_path):
    wanted = write_bundle(tmp_path / "elsewhere", name="mine", release="1")
    shipped = read_manifest(find_bundle("starter"))
    with pytest.raises(
        BundleError,
        match=rf"screens by mine 1, which is not among the installed bundles \(starter {shipped.release}\): "
        r"put its folder into .*bundles \(bundles_dir\), or run `dicom-node bundle use`",
    ):
        find_release(wanted, settings)
    write_bundle(tmp_path / "bundles" / "a", name="mine", release="1", title="changed")
    with pytest.raises(BundleError, match=r"mine 1 in .*a has another manifest than the ledger's mine 1"):
        find_release(wanted, settings)


def test_where_setting_and_ledger_differ_is_one_line(settings, tmp_path):
    active = write_bundle(tmp_path / "bundles" / "mine", name="mine", release="1")
    assert difference(settings.model_copy(update={"bundle": "mine"}), active) == ""
    told = difference(settings, active)
    assert told.startswith("the ledger screens by mine 1; the setting `bundle` names starter ")
    told = difference(settings.model_copy(update={"bundle": "nowhere"}), active)
    assert "fits no bundle: bundle 'nowhere'" in told


def test_a_manifest_with_a_field_left_out_is_the_ledgers_own(settings, tmp_path):
    """What older manifests leave out is left out again, and a manifest that spells a default out has the same sense."""
    folder = tmp_path / "bundles" / "mine"
    wanted = write_bundle(folder, name="mine")
    spelt = json.loads((folder / "manifest.json").read_text())
    spelt["targets"][0]["reference"] = {}
    (folder / "manifest.json").write_text(json.dumps(spelt))
    assert find_release(wanted, settings) == folder


def test_a_folder_that_may_not_be_entered_is_a_fault_of_its_own(settings, tmp_path, monkeypatch):
    write_bundle(tmp_path / "bundles" / "closed", name="closed")
    read_bytes = Path.read_bytes

    def refused(path):  # root, as whom tests may run, enters every folder
        if path.parent.name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    fault = next(one.fault for one in installed(settings) if one.folder.name == "closed")
    assert "Permission denied" in fault


@pytest.mark.parametrize(
    "changed",
    [{"value": "882784691000119100"}, {"value": ""}, {"scheme": "x" * 17}, {"meaning": "x" * 65}, {"meaning": "a\\b"}],
    ids=str,
)
def test_a_code_that_no_report_could_hold_is_no_code_of_a_question(changed):
    legal = {"value": "840539006", "scheme": "SCT", "meaning": "COVID-19"}
    Code.model_validate(legal)
    with pytest.raises(ValidationError, match=next(iter(changed))):
        Code.model_validate(legal | changed)
