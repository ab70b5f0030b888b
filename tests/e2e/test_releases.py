"""Several bundles side by side: what a running node, and one that starts again, screens by; in both forms."""

import pytest
from sqlalchemy import select

from dicom_node.bundle import read_manifest
from dicom_node.demo.instances import phantom_dataset
from dicom_node.tables import InstanceRow, ReleaseRow, ScreeningRow
from tests.e2e.harness import Node, dcmsend
from tests.ensemble_factories import write_ensemble

pytestmark = pytest.mark.usefixtures("dcmtk")


@pytest.fixture
def bundles(tmp_path):
    """A site's folder with a second release of the bundle."""
    write_ensemble(tmp_path / "bundles" / "next", gate=True, release="9.9.9")
    return tmp_path / "bundles"


def screened_by(node, folder, number):
    """The release by which the node screens one more film."""
    ds = phantom_dataset(number, fresh_uids=True)
    path = folder / f"{number}.dcm"
    ds.save_as(path, enforce_file_format=True)
    assert dcmsend(node.port, path)[0] == 0
    assert node.await_ended(ds.SOPInstanceUID).state == "withheld"
    query = select(ReleaseRow.release).join(ScreeningRow).join(InstanceRow)
    with node.database.read() as session:
        return session.scalars(query.where(InstanceRow.sop_instance_uid == str(ds.SOPInstanceUID))).one()


def test_a_running_node_changes_over_with_no_restart_by_hand(make_node, small_bundle, bundles, tmp_path):
    node = make_node(bundles_dir=str(bundles)).start()
    assert screened_by(node, tmp_path, 0) == read_manifest(small_bundle).release
    node.run("bundle", "use", "random@9.9.9", check=True)
    assert screened_by(node, tmp_path, 1) == "9.9.9"


def test_a_restart_keeps_the_ledgers_release_and_says_that_the_setting_names_another(bundles, tmp_path):
    node = Node(tmp_path / "node", bundles_dir=str(bundles))
    try:
        node.start()
        node.run("bundle", "use", "random@9.9.9", check=True)
        node.stop()
        node.start()
        assert screened_by(node, tmp_path, 0) == "9.9.9"
        told = "the ledger screens by random 9.9.9; the setting `bundle` names random 0.2"
        assert node.log.read_text().count(told) == 1
    finally:
        node.stop()


def test_a_start_without_the_ledgers_release_is_refused_in_one_line(bundles, tmp_path):
    node = Node(tmp_path / "node", bundles_dir=str(bundles))
    node.run("db", "upgrade", check=True)
    node.run("bundle", "use", "random@9.9.9", check=True)
    (bundles / "next").rename(tmp_path / "gone")
    done = node.run("up")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("dicom-node: the ledger screens by random 9.9.9, which is not among the installed bundles")
