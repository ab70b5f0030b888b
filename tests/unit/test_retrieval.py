"""What is missing of a study is fetched from PACS that move, get and serve in every wrong way; and the ways in turn."""

import threading
import time
from contextlib import contextmanager

import pytest
from sqlalchemy import select

from dicom_node.archive import Archive
from dicom_node.config import Peer, Settings
from dicom_node.database import Database
from dicom_node.demo.pacs import free_port
from dicom_node.retrospective.retrieval import RetrievalError, Wanted, retrieve
from dicom_node.retrospective.tables import RunInstanceRow
from dicom_node.retrospective.ways import Retriever, retrieving_children
from dicom_node.tables import InstanceRow
from tests.archives_scp import Pacs
from tests.cohort_factories import Night
from tests.factories import chest_dataset
from tests.unit.test_web import served

STUDY, SERIES = "1.3.1", "1.4.1"


@pytest.fixture
def night(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    database.upgrade()
    found = Night(tmp_path, database)
    found.run(1)
    yield found
    database.close()


def film(number, **changed):
    uids = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES, "SOPInstanceUID": f"1.2.1.{number}"}
    return chest_dataset(**(uids | changed))


def settings_of(night, peer, **retrospective):
    values = {"stall_timeout_s": 1.5, "study_timeout_s": 20} | retrospective
    return Settings(
        database_url=night.database.url,
        archive_dir=night.archive.locate(""),
        peers=(peer,),
        network_timeout_s=3,
        retrospective=values,
    )


def fetched(night, peer, way, images=2, **retrospective):
    """The next study's images by that way; what the peer said, and what landed."""
    claim, missing = night.begin(images, way)
    wanted = Wanted(claim.study_id, STUDY, tuple((SERIES, uid) for uid in missing))
    try:
        said = retrieve(settings_of(night, peer, **retrospective), "pacs", way, wanted)
    finally:
        landed = sorted(uid for uid, row in night.expected(1).items() if row.landed)
    return said, landed


def getting(*films, after=None):
    """A C-GET handler that sends these films."""

    def handler(event):
        yield len(films)
        for number, one in enumerate(films):
            if event.is_cancelled:
                return
            yield 0xFF00, one
            if after is not None:
                after(event, number)

    return handler


def test_c_get_brings_every_image_into_archive_and_ledger(night):
    with Pacs([], get=getting(film(1), film(2))) as pacs:
        said, landed = fetched(night, pacs.peer(), "get")
    assert said == "C-GET 0x0000: 2 completed, 0 failed, 0 with a warning"
    assert landed == ["1.2.1.1", "1.2.1.2"]
    assert night.archive.locate(night.instance("1.2.1.1").path).exists()
    assert night.screening("1.2.1.1").purpose == "retrospective"


def test_a_pacs_that_sends_fewer_than_it_says_is_not_believed(night):
    with Pacs([], get=getting(film(1))) as pacs:
        said, landed = fetched(night, pacs.peer(), "get")
    assert "0x0000: 1 completed" in said
    assert landed == ["1.2.1.1"]


def test_an_image_that_nobody_asked_for_comes_along_and_does_no_harm(night):
    other = chest_dataset(StudyInstanceUID="1.3.99", SeriesInstanceUID="1.4.99", SOPInstanceUID="1.2.99.1")
    with Pacs([], get=getting(film(1), other, film(2))) as pacs:
        _, landed = fetched(night, pacs.peer(), "get")
    assert {"1.2.1.1", "1.2.1.2"} <= set(landed)


def test_an_object_that_is_not_what_it_says_is_refused_and_the_others_come(night):
    broken = film(1, StudyInstanceUID="")
    with Pacs([], get=getting(broken, film(2))) as pacs:
        said, landed = fetched(night, pacs.peer(), "get")
    assert landed == ["1.2.1.2"]
    assert "1 failed" in said


def test_an_association_that_is_dropped_half_way_is_an_error_that_may_pass(night):
    with (
        Pacs([], get=getting(film(1), film(2), after=lambda event, _: event.assoc.abort())) as pacs,
        pytest.raises(RetrievalError) as raised,
    ):
        fetched(night, pacs.peer(), "get")
    assert not raised.value.permanent
    assert [uid for uid, row in night.expected(1).items() if row.landed] == ["1.2.1.1"]


def test_a_pacs_that_goes_on_for_ever_and_sends_nothing_is_left(night):
    def slow(event):
        yield 1
        time.sleep(8)
        yield 0xFF00, film(1)

    with Pacs([], get=slow) as pacs:
        began = time.monotonic()
        with pytest.raises(RetrievalError, match=r"nothing came for 1\.5 s"):
            fetched(night, pacs.peer(), "get")
        assert time.monotonic() - began < 6


@pytest.mark.parametrize("way", ["move", "get"])
def test_a_pacs_that_does_not_offer_the_way_is_an_error_for_good(night, way):
    from pynetdicom import AE
    from pynetdicom.sop_class import Verification

    entity = AE("PACS")
    entity.add_supported_context(Verification)
    port = free_port()
    server = entity.start_server(("127.0.0.1", port), block=False)
    peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, retrieve=(way,))
    try:
        with pytest.raises(RetrievalError, match="accepts none") as raised:
            fetched(night, peer, way)
        assert raised.value.permanent
    finally:
        server.shutdown()


def test_a_destination_that_the_pacs_does_not_know_is_told_with_what_to_set_there(night):
    def nowhere(event):
        yield None, None

    with (
        Pacs([], move=nowhere) as pacs,
        pytest.raises(RetrievalError, match="has to know this node as a destination: CXRSCREEN") as raised,
    ):
        fetched(night, pacs.peer(), "move")
    assert raised.value.permanent


def part10(ds):
    from io import BytesIO

    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def wado(films):
    def answer(path, parameters, headers):
        content = films.get(path.rpartition("/")[2])
        if content is None:
            return 404, "text/plain", b""
        body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--b--"
        return 200, 'multipart/related; type="application/dicom"; boundary=b', body

    return answer


def test_wado_brings_what_is_there_and_says_what_is_not(night):
    with served(wado({"1.2.1.1": part10(film(1))})) as peer:
        said, landed = fetched(night, peer, "web")
    assert landed == ["1.2.1.1"]
    assert "status 404" in said


@pytest.mark.parametrize("content", [b"", b"no DICOM", b"\0" * 128 + b"DICM" + b"\xff" * 40])
def test_wado_that_is_no_dicom_is_told(night, content):
    with served(wado({"1.2.1.1": content})) as peer, pytest.raises(RetrievalError, match="what is no DICOM file"):
        fetched(night, peer, "web", images=1)


@contextmanager
def retriever(night, peer, **retrospective):
    settings = settings_of(night, peer, **retrospective)
    with retrieving_children(settings) as children:
        yield Retriever(settings, children)


def fetch(night, peer, images=2, **retrospective):
    claim, missing = night.begin(images, "none")
    ways = []
    with retriever(night, peer, **retrospective) as found:
        came = found.fetch(
            peer,
            claim.study_id,
            STUDY,
            [(SERIES, uid) for uid in missing],
            lambda: night.studies.still_missing(claim),
            lambda way: (ways.append(way), night.studies.on_way(claim, way)),
        )
    return came, ways, night.studies.still_missing(claim)


def test_what_one_way_leaves_the_next_one_fetches(night):
    def nowhere(event):
        yield None, None

    with Pacs([], move=nowhere, get=getting(film(1), film(2))) as pacs:
        came, ways, missing = fetch(night, pacs.peer(retrieve=("move", "get")))
    assert missing == []
    assert ways == ["move", "get"]
    assert came.fault is None  # it served
    assert "get: 2 of 2 came" in came.told


def test_where_every_way_fails_it_is_the_peer_s_fault(night):
    peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=free_port(), retrieve=("get", "move"))
    came, ways, missing = fetch(night, peer)
    assert ways == ["get", "move"]
    assert len(missing) == 2
    assert "does not answer" in came.fault


def test_a_retrieval_that_takes_too_long_is_killed_and_the_next_study_is_fetched(night):
    first = threading.Event()

    def once_slow(event):
        yield 1
        if not first.is_set():
            first.set()
            for _ in range(100):
                time.sleep(0.1)
                if not event.assoc.is_established:
                    return
        yield 0xFF00, film(1)

    with Pacs([], get=once_slow) as pacs:
        peer = pacs.peer(retrieve=("get",))
        claim, missing = night.begin(1, "get")
        with retriever(night, peer, study_timeout_s=1, stall_timeout_s=60) as found:
            arguments = (
                peer,
                claim.study_id,
                STUDY,
                [(SERIES, uid) for uid in missing],
                lambda: night.studies.still_missing(claim),
                lambda way: None,
            )
            late = found.fetch(*arguments)
            assert "longer than study_timeout_s = 1" in late.fault
            assert night.studies.still_missing(claim) == missing
            assert found.fetch(*arguments).fault is None
    assert night.studies.still_missing(claim) == []


def test_what_the_archive_does_not_take_is_answered_so_and_may_come_again(night, monkeypatch):
    def full(self, content, suffix=".dcm"):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Archive, "store", full)
    with Pacs([], get=getting(film(1))) as pacs, pytest.raises(RetrievalError, match="0 completed, 1 failed"):
        fetched(night, pacs.peer(), "get", images=1)
    with night.database.read() as session:
        assert session.scalars(select(InstanceRow)).all() == []
        assert not session.scalars(select(RunInstanceRow)).one().landed
