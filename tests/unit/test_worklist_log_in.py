"""Log-ins: their form, their cookies and limits, where they lead, and the links by which people come."""

import re
from datetime import UTC, datetime, timedelta
from urllib.parse import urljoin, urlsplit

import pytest

from dicom_node.worklist.accounts import Role
from tests.worklist_factories import (  # noqa: F401 - fixtures among them
    FLAGGED,
    PASSWORD,
    WAITING,
    Page,
    Site,
    encrypted_fixture,
    form_of,
    log_in,
    prepared_fixture,
    quick_fixture,
    site_fixture,
)

EVIL = [
    "//evil.example",
    "///evil.example",
    "https://evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "javascript:alert(1)",
    "/\n/evil.example",
    "\n//evil.example",
    "/\t/evil.example",
    " //evil.example",
    "/\u2028/evil.example",
    "/x\r\nSet-Cookie: cxr=1",
    "evil.example",
    "@evil.example",
    "/\x00",
]


@pytest.fixture
def nobody_yet(database, tmp_path):
    """Before there is an administrator, on both databases."""
    found = Site(tmp_path, database, studies=False)
    yield found
    found.close()


@pytest.mark.parametrize("kind", ["site", "encrypted"])
def test_cookies_are_for_this_site_and_no_script(kind, request):
    site = request.getfixturevalue(kind)
    prefix, is_encrypted = ("__Host-", True) if kind == "encrypted" else ("", False)
    client = site.client()
    form_cookie = client.get("/").headers["Set-Cookie"]
    answer = log_in(client)
    assert answer.status_code == 303
    ended = client.post("/log-out", data={"csrf_token": csrf_of(client)}).headers["Set-Cookie"]
    named = {form_cookie: "cxr-form", answer.headers["Set-Cookie"]: "cxr", ended: "cxr"}
    for cookie, name in named.items():
        value, *flags = cookie.split("; ")
        assert value.startswith(f"{prefix}{name}=")
        flags = {flag.lower() for flag in flags}
        assert {"httponly", "samesite=lax", "path=/"} <= flags
        assert ("secure" in flags) == is_encrypted
        assert not any(flag.startswith("domain") for flag in flags)
    assert "Max-Age=43200" in answer.headers["Set-Cookie"]
    assert "Max-Age=0" in ended


def csrf_of(client):
    return Page(client.get("/account").text).all("input", name="csrf_token")[0]["value"]


def test_a_wrong_password_and_an_unknown_name_get_the_same_answer(site):
    client = site.client()
    form = form_of(client)
    wrong, unknown, nothing = (
        log_in(client, name, password, form=form)
        for name, password in (("a reader", "not it at all"), ("nobody", PASSWORD), ("", ""))
    )
    assert [one.status_code for one in (wrong, unknown, nothing)] == [401, 401, 401]
    assert wrong.text == unknown.text == nothing.text
    assert "name or password is wrong" in wrong.text
    assert "cxr=" not in wrong.headers.get("Set-Cookie", "").replace("cxr-form=", "")


@pytest.mark.parametrize("path", ["/log-in", "/welcome/LINK"])
def test_a_form_that_the_browser_did_not_ask_for_is_refused(site, path):
    path = path.replace("LINK", site.accounts.invite("Una", Role.READER, "a test"))
    client, other, none = site.client(), site.client(), site.client()
    form_of(client)
    fields = {"name": "a reader", "password": PASSWORD, "again": PASSWORD}
    for who, form in ((client, ""), (client, "guessed"), (client, form_of(other)), (none, form_of(client)), (none, "")):
        answer = who.post(path, data=fields | {"form": form})
        assert (answer.status_code, "Set-Cookie" in answer.headers) == (403, False)
    assert client.post(path, data=fields).status_code == 403
    assert client.get("/worklist").status_code == 303
    assert client.post(path, data=fields | {"form": form_of(client)}).status_code == 303


@pytest.mark.parametrize("after", EVIL)
def test_a_log_in_leads_nowhere_else(site, after):
    client = site.client()
    answer = log_in(client, after=after)
    for told in (answer, client.get("/", params={"after": after})):
        assert told.status_code == 303
        place = told.headers["Location"]
        assert urlsplit(urljoin(site.base_url, place.replace("\\", "/"))).netloc == "127.0.0.1:8080"
        assert re.fullmatch(r"/(?!/)[!-~]*", place)
    marked = client.post(f"/studies/{WAITING}/read", data={"csrf_token": csrf_of(client), "after": after})
    assert marked.headers["Location"] == place


@pytest.mark.parametrize("path", ["/worklist?text=a&read=all", f"/studies/{FLAGGED}?image=2", "/worklist?text=%C3%B6"])
def test_a_log_in_leads_to_the_page_that_was_asked_for(site, path):
    client = site.client()
    sent = client.get(path).headers["Location"]
    page = Page(client.get(sent).text)
    (after,) = page.all("input", name="after")
    answer = log_in(client, after=after["value"])
    assert answer.headers["Location"] == path
    assert client.get(path).status_code == 200


def test_an_address_that_is_too_long_to_come_back_to_leads_to_the_form_all_the_same(site):
    client = site.client()
    place = client.get("/worklist?text=" + "x" * 5000).headers["Location"]
    assert place == "/"
    assert client.get("/?after=/" + "x" * 5000).status_code == 422


def test_too_many_log_ins_are_told_to_wait(site):
    client = site.client()
    form = form_of(client)
    assert [log_in(client, password="wrong " * 3, form=form).status_code for _ in range(5)] == [401] * 5
    answer = log_in(client, form=form)
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 900
    assert "too many log-ins" in answer.text
    assert client.get("/worklist").status_code == 303


def test_a_log_out_ends_the_session_wherever_its_cookie_is(site):
    client = site.client(Role.READER)
    cookie = client.cookies["cxr"]
    answer = client.post("/log-out", data={"csrf_token": client.csrf})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    assert site.client(cookies={"cxr": cookie}).get("/worklist").status_code == 303


def test_a_session_that_expired_goes_to_the_form_and_back(site, monkeypatch):
    client = site.client(Role.READER)
    path = "/worklist?text=x&read=all"
    assert client.get(path).status_code == 200
    later = datetime.now(UTC) + timedelta(hours=12, minutes=1)
    monkeypatch.setattr(site.accounts, "_clock", lambda: later)
    assert client.get(path).headers["Location"] == "/?after=%2Fworklist%3Ftext%3Dx%26read%3Dall"
    part = client.get("/worklist/rows", headers={"HX-Request": "true"})
    assert (part.status_code, part.headers["HX-Redirect"], part.content) == (401, "/", b"")
    assert client.post(f"/studies/{FLAGGED}/read", data={"csrf_token": client.csrf}).headers["Location"] == "/"
    assert log_in(client, after=path).headers["Location"] == path
    assert client.get(path).status_code == 200


def test_a_person_who_is_deactivated_is_out_at_once(site):
    chief, client = site.client(Role.ADMINISTRATOR), site.client(Role.READER)
    fields = {"name": "a reader", "active": "false", "csrf_token": chief.csrf}
    assert chief.post("/people/active", data=fields).status_code == 303
    assert client.get("/worklist").status_code == 303
    assert log_in(client).status_code == 401


def test_a_one_time_link_works_once(site):
    chief, client = site.client(Role.ADMINISTRATOR), site.client()
    fields = {"name": "Una <b>", "role": "reader", "csrf_token": chief.csrf}
    page = Page(chief.post("/people/invite", data=fields).text)
    (link,) = re.findall(r"http://127\.0\.0\.1:8080(/welcome/[\w-]+)", page.text)
    assert link not in chief.get("/people").text
    form = form_of(client, link)
    for password, again in (("short", "short"), (PASSWORD, PASSWORD + "x"), ("", "")):
        answer = client.post(link, data={"password": password, "again": again, "form": form})
        assert answer.status_code == 400
        assert not password or password not in answer.text
    fields = {"name": "another", "password": PASSWORD, "again": PASSWORD, "form": form}
    assert client.post(link, data=fields).headers["Location"] == "/"
    assert client.get(link).status_code == client.post(link, data=fields).status_code == 404
    assert log_in(client, "Una <b>").status_code == 303
    assert client.get("/people").status_code == 403


def test_the_form_is_there_before_an_administrator_is_and_the_first_link_makes_one(nobody_yet):
    client = nobody_yet.client()
    assert "Log in" in client.get("/").text
    assert log_in(client).status_code == 401
    assert client.get("/worklist").status_code == 303
    link = f"/welcome/{nobody_yet.accounts.first_link()}"
    fields = {"name": "Ada", "password": PASSWORD, "again": PASSWORD, "form": form_of(client, link)}
    assert client.post(link, data=fields).status_code == 303
    assert client.get(link).status_code == 404
    assert log_in(client, "ada").headers["Location"] == "/worklist"
    assert client.get("/people").status_code == 200
    assert "Nothing waits here" in client.get("/worklist").text
    assert client.get("/operations").status_code == client.get("/metrics").status_code == 200


def test_a_form_keeps_what_it_came_with_inert(site):
    page = Page(site.client().get("/", params={"after": '/"><script>alert(1)</script>'}).text)
    assert not page.all("script")
    assert page.all("input", name="after")[0]["value"] == '/"><script>alert(1)</script>'
