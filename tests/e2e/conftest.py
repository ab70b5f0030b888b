import pytest

from dicom_node.bundle import find_bundle
from dicom_node.demo.pacs import OrthancPacs
from tests.e2e.harness import Node, Service, destination
from tests.ensemble_factories import write_ensemble

FORMS = ["embedded", "service"]
STARTER = str(find_bundle("starter"))
SHORT = {"lease_s": 2.0, "sweep_s": 0.5, "retry_base_s": 0.2}  # so that tests need not wait


@pytest.fixture(scope="session", autouse=True)
def small_bundle(tmp_path_factory):
    """What a node screens by unless a test names another: random networks, a gate that lets everything in."""
    folder = write_ensemble(tmp_path_factory.mktemp("bundle") / "random", gate=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Node, "bundle", str(folder))
        yield folder


@pytest.fixture(scope="module")
def orthanc(orthanc_program, dcmtk, tmp_path_factory):
    with OrthancPacs(tmp_path_factory.mktemp("orthanc")) as pacs:
        yield pacs


@pytest.fixture(params=FORMS)
def make_node(request, tmp_path):
    """Makes a node of each form, not started, which delivers to the given peer; it is stopped at the end."""
    made = []

    def make(*peers, **settings):
        settings = {"sweep_s": 0.5, "retry_base_s": 0.2} | settings
        made.append(of_form(request, tmp_path / "node", *peers, **settings))
        return made[-1]

    yield make
    for node in made:
        node.stop()


@pytest.fixture(scope="module", params=FORMS)
def node(request, orthanc, tmp_path_factory):
    """A running node that screens by the shipped bundle and delivers to Orthanc, in both forms."""
    found = of_form(request, tmp_path_factory.mktemp("node"), destination(orthanc), bundle=STARTER, **SHORT)
    try:
        yield found.start()
    finally:
        found.stop()


def of_form(request, folder, *peers, **settings):
    """A node in the form that the fixture's parameter names, not started."""
    if request.param == "embedded":
        return Node(folder, *peers, **settings)
    servers = request.getfixturevalue("postgres_server"), request.getfixturevalue("redis_server")
    return Service(folder, *servers, *peers, **settings)
