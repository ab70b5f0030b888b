import pytest

from dicom_node.demo.pacs import OrthancPacs
from tests.e2e.harness import Node, Service, destination

SHORT = {"lease_s": 2.0, "sweep_s": 0.5, "retry_base_s": 0.2}  # so that tests need not wait


@pytest.fixture(scope="module")
def orthanc(orthanc_program, dcmtk, tmp_path_factory):
    with OrthancPacs(tmp_path_factory.mktemp("orthanc")) as pacs:
        yield pacs


@pytest.fixture(scope="module", params=["embedded", "service"])
def node(request, orthanc, tmp_path_factory):
    """A running node that delivers to Orthanc, in both forms."""
    folder = tmp_path_factory.mktemp("node")
    if request.param == "embedded":
        found = Node(folder, destination(orthanc), **SHORT)
    else:
        servers = request.getfixturevalue("postgres_server"), request.getfixturevalue("redis_server")
        found = Service(folder, *servers, destination(orthanc), **SHORT)
    try:
        yield found.start()
    finally:
        found.stop()
