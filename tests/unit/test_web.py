"""QIDO-RS and WADO-RS against servers that answer well, page strangely, or answer nonsense."""

import json
import threading
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from dicom_node.config import Peer, Settings
from dicom_node.retrospective.cohort import Criteria
from dicom_node.retrospective.query import QueryError, finder
from dicom_node.retrospective.web import WebClient, parts

DAY = date(2026, 3, 1)


@contextmanager
def served(answer):
    """A web server whose answers are `answer(path, parameters, headers) -> (status, content type, body[, headers])`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            split = urlsplit(self.path)
            status, kind, body, *more = answer(split.path, parse_qs(split.query), self.headers)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if status in (301, 302):
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            for name, value in more[0].items() if more else ():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Peer(
            name="pacs",
            ae_title="PACS",
            host="127.0.0.1",
            port=104,
            retrieve=("web",),
            find="web",
            web_url=f"http://127.0.0.1:{server.server_port}/dicom-web/",
            web_user="node",
            web_password="secret",  # noqa: S106
        )
    finally:
        server.shutdown()
        server.server_close()


def settings(peer):
    return Settings(peers=(peer,), network_timeout_s=2)


def as_json(known):
    return {
        "0020000D": {"vr": "UI", "Value": [f"1.2.{known}"]},
        "00080020": {"vr": "DA", "Value": ["20260301"]},
        "00080030": {"vr": "TM", "Value": [f"{known % 24:02d}0000"]},
        "00080061": {"vr": "CS", "Value": ["CR"]},
        "00201208": {"vr": "IS", "Value": [2]},
        "00100020": {"vr": "LO"},
    }


def archive(count, *, most=10**6, ignores_offset=False):
    """Studies 0 to `count`; at most `most` in an answer."""

    def answer(path, parameters, headers):
        if parameters.get("ModalitiesInStudy") != ["CR"]:
            return 204, "application/dicom+json", b""
        first = 0 if ignores_offset else int(parameters["offset"][0])
        last = first + min(int(parameters["limit"][0]), most)
        times = parameters.get("StudyTime", [""])[0]
        known = [number for number in range(count) if not times or times[:2] <= f"{number % 24:02d}" <= times[7:9]]
        found = [as_json(number) for number in known[first:last]]
        return 200, "application/dicom+json", json.dumps(found).encode()

    return answer


def found_by(answer):
    with served(answer) as peer, finder(peer, settings(peer)) as asked:
        return asked.studies_of_day(DAY, Criteria(DAY, DAY))


@pytest.mark.parametrize(
    ("count", "limits"),
    [
        (3, {}),
        (0, {}),
        (1234, {}),
        (333, {"most": 100}),
        (620, {"ignores_offset": True}),
        (60, {"ignores_offset": True}),
    ],
)
def test_every_study_is_found_however_the_server_pages(count, limits):
    found = found_by(archive(count, **limits))
    assert len({study.study_instance_uid for study in found}) == count
    assert all(study.instances == 2 for study in found)


def test_a_server_of_small_pages_is_believed_to_have_more_where_it_says_so():
    whole = archive(33, most=10)

    def answer(path, parameters, headers):
        status, kind, body = whole(path, parameters, headers)
        more = len(json.loads(body or b"[]")) == 10
        return status, kind, body, *([{"Warning": '299 pacs: "There are additional results"'}] if more else [])

    assert len(found_by(answer)) == 33


def test_the_password_goes_along_and_no_answer_may_lead_it_elsewhere():
    seen = []

    def answer(path, parameters, headers):
        seen.append(headers["Authorization"])
        return 302, "text/plain", b""

    with pytest.raises(QueryError, match="a redirection, which is not followed"):
        found_by(answer)
    assert seen
    assert seen[0].startswith("Basic ")


@pytest.mark.parametrize(
    ("status", "body", "told", "permanent"),
    [
        (401, b"", "status 401: see web_user and web_password", True),
        (403, b"", "status 403: see web_user", True),
        (404, b"", "web_url is wrong", True),
        (400, b"", "status 400", True),
        (500, b"", "status 500", False),
        (503, b"", "status 503", False),
        (429, b"", "status 429", False),
        (200, b"<html>", "what is no JSON", False),
        (200, b"{}", "JSON that is no list", False),
    ],
)
def test_what_goes_wrong_is_told_and_whether_it_may_pass(status, body, told, permanent):
    with pytest.raises(QueryError, match=told) as raised:
        found_by(lambda *_: (status, "application/dicom+json", body))
    assert raised.value.permanent is permanent
    assert "20260301" not in str(raised.value)


def test_a_server_that_finds_a_query_too_broad_is_asked_for_parts_of_the_day():
    whole = archive(40)

    def answer(path, parameters, headers):
        if "StudyTime" not in parameters:
            return 413, "text/plain", b""
        return whole(path, parameters, headers)

    assert len(found_by(answer)) == 40


@pytest.mark.parametrize(
    "element",
    [None, [], {}, {"Value": None}, {"Value": [{}]}, {"Value": ["../.."]}, {"Value": [None]}, {"Value": ["1." * 40]}],
)
def test_an_answer_without_a_legal_uid_is_left_out(element):
    broken = as_json(2) | {"0020000D": element}
    body = json.dumps([as_json(1), broken, "garbage"]).encode()
    found = found_by(lambda *_: (200, "application/dicom+json", body))
    assert [study.study_instance_uid for study in found] == ["1.2.1"]


def test_a_server_that_is_not_there_is_an_error_that_may_pass():
    peer = Peer(
        name="pacs",
        ae_title="PACS",
        host="127.0.0.1",
        port=104,
        retrieve=("web",),
        find="web",
        web_url="http://127.0.0.1:1/",
    )
    with finder(peer, settings(peer)) as asked, pytest.raises(QueryError, match="cannot be reached") as raised:
        asked.studies_of_day(DAY, Criteria(DAY, DAY))
    assert not raised.value.permanent


def test_an_answer_that_is_too_long_is_cut_off():
    with (
        served(lambda *_: (200, "text/plain", b"x" * 5000)) as peer,
        WebClient(peer, settings(peer)) as client,
        pytest.raises(QueryError, match="more than 1000 bytes"),
    ):
        client.get("studies", accept="*/*", largest=1000)


def multipart(body, content_type='multipart/related; type="application/dicom"; boundary="b1"'):
    return httpx.Response(200, headers={"Content-Type": content_type}, content=body)


HEAD = b"Content-Type: application/dicom\r\n\r\n"


@pytest.mark.parametrize(
    ("body", "content_type", "bodies"),
    [
        (b"--b1\r\n" + HEAD + b"one\r\n--b1--\r\n", None, [b"one"]),
        (b"--b1\r\n" + HEAD + b"one\r\n--b1\r\n" + HEAD + b"two\r\n\r\n--b1--", None, [b"one", b"two\r\n"]),
        (b"preamble\r\n--b1\r\n" + HEAD + b"\x00--b1 \r\n\xff\r\n--b1--", None, [b"\x00--b1 \r\n\xff"]),
        (b"--b1\r\n" + HEAD + b"one\r\n--b1--", "multipart/related; boundary=b1", [b"one"]),
        (b"--a,b;c\r\n" + HEAD + b"one\r\n--a,b;c--", 'multipart/related; boundary="a,b;c"', [b"one"]),
        (b"DICM", "application/dicom", [b"DICM"]),
    ],
)
def test_the_parts_of_an_answer_are_taken_byte_for_byte(body, content_type, bodies):
    assert parts(multipart(body, content_type) if content_type else multipart(body)) == bodies


@pytest.mark.parametrize("body", [b"", b"--b1\r\n" + HEAD + b"half", b"--b1\r\n" + HEAD + b"one\r\n--b1\r\n"])
def test_an_answer_of_several_parts_that_is_cut_off_is_told(body):
    with pytest.raises(QueryError, match="cut off"):
        parts(multipart(body))


def test_one_that_names_no_boundary_is_told():
    with pytest.raises(QueryError, match="no boundary"):
        parts(multipart(b"", "multipart/related"))
