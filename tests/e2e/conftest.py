import pytest

from dicom_node.demo.pacs import OrthancPacs
from tests.e2e.harness import Node, destination


@pytest.fixture(scope="module")
def orthanc(orthanc_program, dcmtk, tmp_path_factory):
    with OrthancPacs(tmp_path_factory.mktemp("orthanc")) as pacs:
        yield pacs


@pytest.fixture(scope="module")
def node(orthanc, tmp_path_factory):
    """A running node that delivers to Orthanc; short leases and pauses, so that tests need not wait."""
    found = Node(tmp_path_factory.mktemp("node"), destination(orthanc), lease_s=2.0, sweep_s=0.5, retry_base_s=0.2)
    yield found.start()
    found.stop()
