"""What the worklist's pages make of whatever they are asked and whatever stands in the ledger."""

import csv
import io
import re
import unicodedata
from itertools import chain
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import select

from dicom_node.tables import InstanceRow
from dicom_node.worklist import pages
from dicom_node.worklist.accounts import Role
from tests.worklist_factories import (  # noqa: F401 - fixtures among them
    ACCESSION,
    BREAKERS,
    DECLINED,
    FAILED,
    FLAGGED,
    HOSTILE,
    PATIENT,
    PRIOR,
    SCRIPT,
    WAITING,
    Page,
    either_fixture,
    of,
    prepared_fixture,
    quick_fixture,
    site_fixture,
)

STUDIES = (FLAGGED, WAITING, DECLINED, FAILED, HOSTILE, PRIOR)
PARAMETERS = ("read", "day", "location", "modality", "flagged", "state", "text", "after")
GARBAGE = [
    "",
    "x",
    "x" * 70,
    "y" * 10_000,
    "\0",
    "a\0b",
    "-1",
    "0",
    "9" * 30,
    "9" * 5000,
    "%",
    "_",
    "' OR 1=1 --",
    "山田\u202e",
    "\U0010ffff",
    "ß" * 20,
    "2026-02-30",
    "0001-01-01",
    "9999-12-31",
    "2026-W01-1",
    "yes",
    "delivered",
    "^=,",
    "a " * 90,
]
RAW = ["%ff%fe", "%ed%a0%80", "%", "%zz", "&&&=", "text=a&text=b", "unknown=1", ";", "text[]=1"]
CURSORS = ["x", "1-", "-1", "9" * 40, "9999999999999999-999999999", "0-0", "1-1", "1٣0000000000000-1", " 1-1"]


def uids(html):
    return [row["data-uid"] for row in Page(html).all("tr") if "data-uid" in row]


def instance_id(site, study):
    with site.database.read() as session:
        return session.scalar(select(InstanceRow.id).filter_by(study_instance_uid=study))


# Filters


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/worklist", PARAMETERS),
        ("/worklist/rows", (*PARAMETERS, "mark")),
        (f"/studies/{FLAGGED}", ("image",)),
        ("/operations", ("done",)),
        ("/", ("after",)),
    ],
)
def test_no_value_of_a_parameter_is_an_error_of_the_nodes_own(site, path, names):
    client = site.client(Role.ADMINISTRATOR)
    for name in names:
        for value in GARBAGE:
            answer = client.get(path, params={name: value})
            assert answer.status_code in ({303, 422} if path == "/" else {200, 400, 422}), (name, value)
    for raw in RAW:
        assert client.get(f"{path}?{raw}").status_code in (200, 303), raw


def test_both_databases_take_what_filters_and_forms_hold(either):
    client = either.client(Role.ADMINISTRATOR)
    for name in PARAMETERS:
        for value in ("\0", "a\0b", "\U0010ffff", "%", "9" * 30, "' OR 1=1 --", "ß", "0001-01-01", "\ufffe"):
            assert client.get("/worklist", params={name: value}).status_code in (200, 400, 422), (name, value)
    for path, fields in (
        ("/operations/retry", {"study": "a\0b"}),
        ("/operations/retry", {"reason": "a\0b"}),
        ("/operations/retry", {"destination": "a\0b"}),
        ("/people/invite", {"name": "a\0b", "role": "reader"}),
        ("/account/tokens", {"name": "a\0b"}),
        (f"/studies/{FLAGGED}/feedback", {"verdict": "agree", "comment": "a\0b"}),
    ):
        answer = client.post(path, data=fields | {"csrf_token": client.csrf})
        assert answer.status_code in (303, 400, 422), (path, fields)
    for path in ("/studies/%00", "/studies/1%00/thumbnail", "/api/v1/retrospective/%00", "/welcome/%00"):
        assert client.get(path).status_code in (404, 422), path


@pytest.mark.parametrize("path", ["/worklist", "/worklist/rows", "/api/v1/worklist"])
def test_a_forged_mark_of_a_page_is_told(site, path):
    client = site.client(Role.READER)
    for mark in CURSORS:
        answer = client.get(path, params={"after": mark})
        if re.fullmatch(r"[0-9]{7,16}-[0-9]{1,9}", mark):
            assert answer.status_code == 200
        else:
            assert answer.status_code == 400, mark
            assert "begin at the first page" in answer.text


def test_pages_give_every_study_once_and_in_order(either, monkeypatch):
    client = either.client(Role.READER)
    whole = uids(client.get("/worklist").text)
    assert set(whole) == set(STUDIES)
    assert set(whole[:2]) == {FLAGGED, HOSTILE}
    assert whole[2:] == [DECLINED, FAILED, PRIOR, WAITING]
    monkeypatch.setattr(pages, "_LINES", 2)
    seen, path = [], "/worklist?read=all"
    while path:
        html = client.get(path).text
        assert "<b>6</b> studies" in html
        seen.append(uids(html))
        following = Page(html).all("a", rel="next")
        path = following[0]["href"] if following else None
    assert [len(one) for one in seen] == [2, 2, 2]
    assert list(chain(*seen)) == whole


def test_studies_are_found_by_parts_of_names_by_id_and_by_accession_number(either):
    client = either.client(Role.READER)
    wanted = {
        "secretname": [FLAGGED],
        "jane secret": [FLAGGED],
        "müller": [WAITING],
        "JÖRG, müll": [WAITING],
        "o'b": [FAILED],
        "ann": [FAILED],
        PATIENT: [FLAGGED],
        "P-1": [FAILED, WAITING],
        "acc11": [WAITING],
        ACCESSION.lower()[:7]: [FLAGGED],
        "nobody": [],
        "%": [],
        "onerror=alert(2)>": [HOSTILE, PRIOR],
    }
    assert {sought: uids(client.get("/worklist", params={"text": sought}).text) for sought in wanted} == wanted


def test_filters_leave_what_they_say_and_stay_in_the_form(site):
    client = site.client(Role.READER)

    def found(**asked):
        return set(uids(client.get("/worklist", params=asked).text))

    assert found(flagged="yes") == {FLAGGED, HOSTILE}
    assert found(state="declined") == {DECLINED}
    assert found(state="failed", flagged="no") == {FAILED}
    assert found(location="WARD 3") == {FLAGGED}
    assert found(state="nonsense", day="nonsense") == set(STUDIES)
    assert found(day="1990-01-01") == found(read="read") == set()
    client.post(f"/studies/{WAITING}/read", data={"csrf_token": client.csrf})
    assert found(read="read") == {WAITING}
    assert found(read="all") == set(STUDIES)
    page = Page(client.get("/worklist", params={"location": "WARD 3", "text": 'a"b', "state": "delivered"}).text)
    assert page.all("input", name="text")[0]["value"] == 'a"b'
    assert {one.get("value") for one in page.all("option") if "selected" in one} >= {"WARD 3", "delivered", "unread"}


def test_rows_that_are_as_the_page_has_them_are_not_sent_again(site):
    client = site.client(Role.READER)
    mark = Page(client.get("/worklist").text).all("div", id="rows")[0]["data-mark"]
    again = client.get("/worklist/rows", params={"mark": mark})
    if again.status_code == 200:  # a minute passed in between
        again = client.get("/worklist/rows", params={"mark": Page(again.text).all("div", id="rows")[0]["data-mark"]})
    assert (again.status_code, again.content) == (204, b"")
    client.post(f"/studies/{WAITING}/read", data={"csrf_token": client.csrf})
    changed = client.get("/worklist/rows", params={"mark": mark})
    assert WAITING not in uids(changed.text)
    assert "<html" not in changed.text


# Paths


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/studies/%2e%2e%2fpeople",
        "/studies/..%2f..%2fetc%2fpasswd",
        "/studies/" + "1" * 65,
        "/studies/" + "1" * 10_000,
        "/" + "x" * 10_000,
        "/studies/1.3.x",
        "/studies/1.3.10%00",
        "/studies/1.3.10%0a",
        "/studies/1.3.10/",
        "/studies/%ff%fe",
        "/studies/1.3.10;x",
        "/studies/1٣10",
        f"/studies/{'1' * 65}/thumbnail",
        "/studies/1.3.99",
        f"/studies/{DECLINED}/thumbnail",
        f"/studies/{FLAGGED}/images/x/grey",
        f"/studies/{FLAGGED}/images/-1/grey",
        f"/studies/{FLAGGED}/images/{'9' * 30}/grey",
        f"/studies/{FLAGGED}/images/{'9' * 5000}/grey",
        f"/studies/{FLAGGED}/images/1/maps/-1",
        f"/studies/{FLAGGED}/images/1/maps/99",
        f"/studies/{FLAGGED}/images/1/maps/{'9' * 30}",
        "/static/../access.py",
        "/static/%2e%2e/access.py",
        "/static/..%2faccess.py",
        "/static/..%5caccess.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/site.css%00",
        "/static/",
        "/static/" + "x" * 10_000,
        "/docs",
        "/openapi.json",
    ],
)
def test_bad_paths_lead_nowhere(site, path):
    answer = site.client(Role.ADMINISTRATOR).get(path)
    assert answer.status_code in (307, 404, 422), answer.text
    if answer.status_code == 307:  # without the last slash
        assert answer.headers["Location"] == f"{site.base_url}/studies/{FLAGGED}"
    assert "import" not in answer.text
    assert "root:" not in answer.text


def test_images_are_those_of_their_own_study(site):
    client = site.client(Role.READER)
    own, other = instance_id(site, FLAGGED), instance_id(site, HOSTILE)
    assert client.get(f"/studies/{FLAGGED}/images/{own}/grey").content.startswith(b"CXRG")
    assert client.get(f"/studies/{FLAGGED}/images/{own}/maps/0").headers["Content-Type"] == "image/png"
    assert client.get(f"/studies/{FLAGGED}/images/{own}/maps/1").content.startswith(b"\x89PNG")
    for part in ("grey", "maps/0"):
        assert client.get(f"/studies/{FLAGGED}/images/{other}/{part}").status_code == 404
    assert f"/images/{own}/" in client.get(f"/studies/{FLAGGED}?image={other}").text
    assert client.get(f"/studies/{DECLINED}/images/{instance_id(site, DECLINED)}/grey").status_code in (400, 404)


def test_long_bodies_and_those_of_unknown_length_are_not_read(site):
    client = site.client(Role.READER)
    for path in ("/log-in", f"/studies/{FLAGGED}/read", f"/api/v1/studies/{FLAGGED}/feedback", "/nowhere"):
        assert client.post(path, content=b"x" * ((64 << 10) + 1)).status_code == 413
        assert client.post(path, content=iter([b"name=a"])).status_code == 413
        for length in ("-1", "x", "9" * 30, "9" * 5000, "٣", "", "1_0"):
            headers = {"Content-Length": length.encode()}
            assert client.post(path, headers=headers).status_code == 413, length
        assert client.post(path, headers={"Transfer-Encoding": "Chunked"}).status_code == 413
    answer = client.post(f"/api/v1/studies/{FLAGGED}/feedback", content=b"x" * (65 << 10))
    assert answer.json() == {"error": "too_large", "message": "the request is too long"}
    assert client.post("/log-in", data={"name": "x" * 60_000}).status_code in (403, 422)


def test_words_that_a_form_does_not_know_are_refused(site):
    client = site.client(Role.ADMINISTRATOR)
    before = site.contents()
    for path, fields in (
        (f"/studies/{FLAGGED}/feedback", {"verdict": "maybe"}),
        (f"/studies/{FLAGGED}/feedback", {}),
        (f"/studies/{FLAGGED}/feedback", {"verdict": "agree", "comment": "x" * 4001}),
        ("/people/invite", {"name": "Una", "role": "emperor"}),
        ("/people/role", {"name": "a reader", "role": ""}),
        ("/people/role", {"role": "reader"}),
        ("/people/active", {"name": "a reader", "active": "maybe"}),
        ("/account/tokens", {"name": "x" * 257}),
        (f"/studies/{FLAGGED}/read", {"unread": "maybe"}),
    ):
        answer = client.post(path, data=fields | {"csrf_token": client.csrf})
        assert answer.status_code == 422, (path, fields)
        assert "cannot be used as it is" in answer.text
    for path, fields in (
        (f"/studies/{FLAGGED}/feedback", {"verdict": "disagree"}),
        (f"/studies/{FLAGGED}/feedback", {"verdict": "disagree", "reason": "nonsense"}),
        (f"/studies/{FLAGGED}/feedback", {"verdict": "agree", "comment": "x" * 1001}),
        ("/studies/1.3.99/feedback", {"verdict": "agree"}),
        ("/people/role", {"name": "nobody", "role": "reader"}),
        ("/people/active", {"name": "a administrator", "active": "false"}),
        ("/account/tokens", {"name": "\n"}),
    ):
        assert client.post(path, data=fields | {"csrf_token": client.csrf}).status_code in (400, 404), (path, fields)
    assert site.contents() == before


# What senders and people wrote


def expect_inert(html):
    """Nothing but our own elements, scripts and addresses, and no character that could hide or turn others."""
    assert not {one for one in html if unicodedata.category(one)[0] == "C" and one != "\n"}
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"i", "u", "s", "iframe", "object", "embed", "base", "style"}
    for tag, own in page.elements:
        assert not [name for name in own if name.startswith("on") or name in ("style", "srcdoc")], (tag, own)
        assert tag != "b" or not own
        assert tag != "script" or own["src"].startswith("/static/")
        assert tag != "img" or own["src"].startswith("/studies/")
        for name in ("href", "src", "action", "hx-get", "hx-post"):
            assert re.match(r"/(?!/)|[?#]", own.get(name) or "/"), (tag, own)


def test_hostile_names_and_tags_come_out_inert_on_every_page(either):
    client = either.client(Role.ADMINISTRATOR)
    either.accounts.invite(SCRIPT[:50], Role.READER, '"><script>')
    comment = SCRIPT + BREAKERS
    fields = {"verdict": "disagree", "reason": "other", "comment": comment, "csrf_token": client.csrf}
    assert client.post(f"/studies/{HOSTILE}/feedback", data=fields).status_code == 303
    tokens = client.post("/account/tokens", data={"name": '"><script>x</script>', "csrf_token": client.csrf})
    for study in (HOSTILE, PRIOR):
        client.post(f"/studies/{study}/read", data={"csrf_token": client.csrf})
    shown = [tokens.text]
    for path in (
        "/worklist?read=all",
        "/worklist/rows?read=all",
        "/worklist?text=%3Cscript%3E&location=%22%3E%3Cscript%3E&modality=%3Cb%20onclick%3E",
        f"/studies/{HOSTILE}",
        f"/studies/{PRIOR}",
        "/operations?done=%3Cscript%3E%E2%80%AE",
        "/people",
        "/account",
        "/studies/%3Cscript%3E",
        "/%3Cscript%3E",
        "/worklist?read=%3Cscript%3E",
    ):
        answer = client.get(path)
        assert answer.status_code in (200, 404, 422)
        shown.append(answer.text)
    for html in shown:
        expect_inert(html)
    assert Page(shown[4]).text.count("<script>alert(1)</script><img src=x onerror=alert(2)>") >= 2
    assert "{{7*7}}" in Page(shown[4]).text


def test_a_long_name_is_cut(site):
    site.come(30, patient_name="A" * 10_000, patient_id="B" * 10_000)
    client = site.client(Role.READER)
    for path in ("/worklist", "/studies/1.3.30"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "A" * 65 not in answer.text
        assert "A" * 63 + "…" in answer.text


def test_feedback_leaves_without_formulas(either):
    client = either.client(Role.OPERATOR)
    for comment in ("=HYPERLINK(1)", "+1", "-1", "@SUM(1)", " =1", "\t=1", 'a, "b"\nc', SCRIPT):
        fields = {"verdict": "disagree", "reason": "other", "comment": comment, "csrf_token": client.csrf}
        assert client.post(f"/studies/{FLAGGED}/feedback", data=fields).status_code == 303
    answer = client.get("/feedback.csv")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="feedback.csv"'
    rows = list(csv.reader(io.StringIO(answer.text, newline="")))
    assert len(rows) == 9
    assert {len(row) for row in rows} == {7}
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert {"'=HYPERLINK(1)", "'=1", 'a, "b"\nc', SCRIPT} <= {row[-1] for row in rows}


def test_the_sites_viewer_is_asked_for_what_the_study_holds_and_nothing_else(prepared, tmp_path):
    url = "https://viewer.example/?a={accession_number}&p={patient_id}&s={study_instance_uid}"
    with of(prepared, tmp_path, worklist={"viewer_url": url}) as site:
        client = site.client(Role.READER)
        for path in ("/worklist", f"/studies/{HOSTILE}"):
            links = [one["href"] for one in Page(client.get(path).text).all("a", target="_blank")]
            (link,) = (one for one in links if HOSTILE in one)
            assert urlsplit(link).netloc == "viewer.example"
            assert re.fullmatch(r"[!-~]+", link)
            assert not re.search("[<>\"'{}]", link)
            assert parse_qs(urlsplit(link).query) == {
                "a": ['"><b onclick=x>'],
                "p": [BREAKERS[:64]],
                "s": [HOSTILE],
            }
        assert not Page(client.get(f"/studies/{DECLINED}").text).all("a", target="_blank")  # it has no such numbers
