"""What is missing of a study is fetched from PACS that move, get and serve in every wrong way; and the ways in turn."""

import threading
import time
from contextlib import contextmanager, suppress

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


def landed_after(night, peer, way, **settings):
    """What landed, whether or not the retrieval came to a good end."""
    with suppress(RetrievalError):
        fetched(night, peer, way, **settings)
    return sorted(uid for uid, row in night.expected(1).items() if row.landed)


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (404, "text/plain", b""),
        (500, "text/plain", b""),
        (200, "multipart/related; boundary=b", b"--b\r\n\r\nhalf"),
        (200, "multipart/related", b"--b\r\n\r\nhalf"),
        (200, "text/html", b"<html>"),
    ],
)
def test_an_instance_that_wado_cannot_serve_does_not_keep_the_next_from_coming(night, status, kind, body):
    well = wado({"1.2.1.2": part10(film(2))})

    def answer(path, parameters, headers):
        return (status, kind, body) if path.endswith("1.2.1.1") else well(path, parameters, headers)

    with served(answer) as peer:
        assert landed_after(night, peer, "web") == ["1.2.1.2"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_wado_that_serves_nothing_at_all_is_an_error_for_good(night, status):
    with served(lambda *_: (status, "text/plain", b"")) as peer, pytest.raises(RetrievalError) as raised:
        fetched(night, peer, "web")
    assert raised.value.permanent


@pytest.mark.parametrize("status", [401, 429, 503])
def test_a_web_service_that_serves_nobody_is_not_asked_again(night, status):
    asked = []

    def answer(path, parameters, headers):
        asked.append(path)
        return status, "text/plain", b""

    with served(answer) as peer, pytest.raises(RetrievalError):
        fetched(night, peer, "web")
    assert len(asked) == 1


def test_a_wrong_password_is_a_fault_that_the_run_hears_of(night):
    with served(lambda *_: (401, "text/plain", b"")) as peer:
        came, _, _ = fetch(night, peer)
    assert "web_password" in came.fault


def test_file_meta_information_of_a_wrong_length_does_not_shift_the_data_set(night):
    right = part10(film(1))
    length = int.from_bytes(right[140:144], "little")
    wrong = right[:140] + (length + 6).to_bytes(4, "little") + right[144:]
    with served(wado({"1.2.1.1": wrong})) as peer:
        _, landed = fetched(night, peer, "web", images=1)
    assert landed == ["1.2.1.1"]
    (kept,) = night.archive.locate("").rglob("*.dcm")
    assert kept.read_bytes().endswith(right[144 + length :])


def test_an_image_that_c_get_cannot_bring_does_not_keep_the_next_from_coming(night):
    def handler(event):
        yield 1
        if event.identifier.get("SOPInstanceUID") == "1.2.1.2":
            yield 0xFF00, film(2)
        else:
            yield 0xC000, None

    with Pacs([], get=handler) as pacs:
        assert landed_after(night, pacs.peer(), "get") == ["1.2.1.2"]


def test_a_series_that_c_move_cannot_bring_does_not_keep_the_next_from_being_asked_for(night):
    asked = []

    def fails(event):
        asked.append(str(event.identifier.SeriesInstanceUID))
        raise ValueError

    with Pacs([], move=fails) as pacs:
        claim, missing = night.begin(2, "move")
        wanted = Wanted(claim.study_id, STUDY, tuple(zip(("1.4.1", "1.4.2"), missing, strict=True)))
        with pytest.raises(RetrievalError, match="C-MOVE 0xC511"):
            retrieve(settings_of(night, pacs.peer()), "pacs", "move", wanted)
    assert asked == ["1.4.1", "1.4.2"]


def test_a_c_move_that_says_nothing_goes_on_while_images_land(night):
    def silent(event):
        yield "127.0.0.1", free_port()
        for number in range(1, 4):
            time.sleep(1)
            night.arrive(f"1.2.1.{number}", run_study_id=night.study(1).id, sender="PACS")
        yield 0

    with Pacs([], move=silent) as pacs:
        _, landed = fetched(night, pacs.peer(), "move", images=3)
    assert len(landed) == 3


def test_a_c_move_that_says_nothing_and_brings_nothing_is_left(night):
    def silent(event):
        yield "127.0.0.1", free_port()
        for _ in range(40):
            time.sleep(0.2)
            if not event.assoc.is_established:
                return
        yield 0

    with Pacs([], move=silent) as pacs, pytest.raises(RetrievalError, match=r"nothing came for 1\.5 s"):
        fetched(night, pacs.peer(), "move")


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
