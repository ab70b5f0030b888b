"""Who is let in to the worklist's pages, by forms of their own, and what every answer carries."""

import re

import pytest
from fastapi.routing import APIRoute

from dicom_node.worklist.accounts import Role
from tests.worklist_factories import (  # noqa: F401 - fixtures among them
    FLAGGED,
    WAITING,
    encrypted_fixture,
    prepared_fixture,
    quick_fixture,
    role_of,
    routes,
    site_fixture,
)

PUBLIC = {
    "/api/v1/openapi.json",
    "/static",
    "/",
    "/log-in",
    "/welcome/{token}",
    "/healthz",
    "/readyz",
    "/metrics",
}
SAFE = {"GET", "HEAD", "OPTIONS"}
# What each route that changes something takes; a new one has to be named here.
BODIES = {
    "/log-out": {},
    "/studies/{uid}/read": {"after": "/worklist"},
    "/studies/{uid}/feedback": {"verdict": "agree"},
    "/operations/retry": {"reason": "pixels_broken"},
    "/people/invite": {"name": "somebody new", "role": "reader"},
    "/people/role": {"name": "a reader", "role": "operator"},
    "/people/active": {"name": "a operator", "active": "false"},
    "/account/tokens": {"name": "a viewer"},
    "/account/tokens/{token_id}/revoke": {},
    "/api/v1/studies/{uid}/read": {"read": True},
    "/api/v1/studies/{uid}/feedback": {"verdict": "agree"},
}


def address(path):
    return path.format(uid=FLAGGED, instance_id=1, number=0, token_id=1, name="march")


def guarded(site):
    """(method, path, role) of all that is not public; a route without a role fails the test."""
    for path, methods, route in routes(site.app):
        if path in PUBLIC:
            continue
        assert isinstance(route, APIRoute), f"{path} is no route that could ask for a role"
        role = role_of(route)
        assert role is not None, f"{path} asks for no role: let it depend on needs(...)"
        for method in methods:
            yield method, path, role


def changing(site):
    return [one for one in guarded(site) if one[0] not in SAFE]


def send(client, method, path, *, token=None, field=None):
    """The request as its page or a program sends it, with that token in the header or as a field of the form."""
    headers = {} if token is None else {"X-CSRF-Token": token}
    given = {}
    if method not in SAFE:
        body = BODIES[path]
        if path.startswith("/api/"):
            given = {"json": body}
        else:
            given = {"data": body | ({} if field is None else {"csrf_token": field})}
    return client.request(method, address(path), headers=headers, **given)


# Who is let in


def test_the_sweeps_see_the_routes(site):
    found = {(method, path) for method, path, _ in guarded(site)}
    assert len(found) >= 27
    assert {("GET", "/people"), ("PUT", "/api/v1/studies/{uid}/read"), ("GET", "/feedback.csv")} <= found
    assert {path for _, path, _ in changing(site)} == set(BODIES)
    assert {path for path, _, _ in routes(site.app)} >= PUBLIC


def test_a_route_that_asks_for_no_role_is_found(site):
    site.app.get("/later")(lambda: "told to anybody")
    with pytest.raises(AssertionError, match="/later asks for no role"):
        list(guarded(site))


def test_nobody_gets_anything_without_a_log_in(site):
    before = site.contents()
    for client in (site.client(), site.client(cookies={"cxr": "guessed"})):
        for method, path, _ in guarded(site):
            answer = send(client, method, path, field="guessed")
            if path.startswith("/api/"):
                assert (answer.status_code, answer.json()["error"]) == (401, "not_signed_in"), path
                assert answer.headers["WWW-Authenticate"] == "Bearer"
            else:
                assert answer.status_code == 303, path
                wanted = re.escape("/?after=%2F") + "[^/]*" if method == "GET" else "/"
                assert re.fullmatch(wanted, answer.headers["Location"]), path
                assert not answer.content
    assert site.contents() == before


@pytest.mark.parametrize("token", ["Bearer cxr_guessed", "Bearer", "Basic YWRhOmFkYQ==", "cxr_x", "Bearer \xff"])
def test_a_wrong_token_lets_nobody_in_though_a_cookie_would(site, token):
    client = site.client(Role.ADMINISTRATOR)
    answer = client.get("/api/v1/worklist", headers={"Authorization": token.encode("latin-1")})
    assert answer.status_code == 401
    assert client.get("/worklist", headers={"Authorization": token.encode("latin-1")}).status_code == 303


def test_a_lower_role_is_refused_and_changes_nothing(site):
    clients = {role: site.client(role) for role in Role}
    before = site.contents()
    refused = 0
    for method, path, needed in guarded(site):
        for role, client in clients.items():
            if not role.allows(needed):
                answer = send(client, method, path, token=client.csrf)
                assert answer.status_code == 403, (method, path, role)
                assert needed in answer.text
                refused += 1
    assert refused == 14
    assert site.contents() == before


def test_the_own_role_and_those_above_are_let_in_everywhere(site):
    clients = {role: site.client(role) for role in Role}
    for method, path, needed in guarded(site):
        if method in SAFE:
            for role, client in clients.items():
                if role.allows(needed):
                    expected = {404} if path.endswith("{name}") else {200}
                    assert send(client, method, path).status_code in expected, (path, role)


def test_nothing_changes_without_the_forms_own_token(site):
    other = site.client(Role.ADMINISTRATOR)
    client = site.client(Role.ADMINISTRATOR)
    site.accounts.make_token(site.name(Role.ADMINISTRATOR), "a program")
    before = site.contents()
    for method, path, _ in changing(site):
        for given in (
            {},
            {"field": ""},
            {"field": "guessed"},
            {"field": other.csrf},
            {"token": ""},
            {"token": "guessed"},
            {"token": other.csrf},
            {"token": "guessed", "field": client.csrf},
        ):
            answer = send(client, method, path, **given)
            assert answer.status_code == 403, (path, given)
            assert "not made for this log-in" in answer.text
    assert site.contents() == before
    assert client.get("/account").status_code == 200  # nor is it logged out


def test_a_token_in_the_address_or_in_another_kind_of_body_does_not_count(site):
    client = site.client(Role.READER)
    path = f"/studies/{FLAGGED}/read"
    assert client.post(f"{path}?csrf_token={client.csrf}").status_code == 403
    plain = {"Content-Type": "text/plain"}
    assert client.post(path, content=f"csrf_token={client.csrf}", headers=plain).status_code == 403
    assert client.post(path, files={"csrf_token": ("x.txt", client.csrf)}).status_code == 403
    assert client.post(path, data={"csrf_token": client.csrf}).status_code == 303


def test_with_its_token_every_form_and_script_does_what_it_says(site):
    for method, path, role in changing(site):
        client = site.client(role)
        site.accounts.make_token(site.name(role), "a program")
        ids = [one.id for one in site.accounts.tokens(site.name(role))]
        if path.endswith("revoke"):
            answer = client.post(f"/account/tokens/{ids[-1]}/revoke", data={"csrf_token": client.csrf})
            assert ids[-1] not in [one.id for one in site.accounts.tokens(site.name(role))]
        else:
            answer = send(client, method, path, token=client.csrf)
        assert answer.status_code in (200, 201, 303), (path, answer.text)


def test_one_does_not_revoke_anothers_token(site):
    site.accounts.make_token(site.name(Role.ADMINISTRATOR), "a program")
    (one,) = site.accounts.tokens(site.name(Role.ADMINISTRATOR))
    client = site.client(Role.READER)
    answer = client.post(f"/account/tokens/{one.id}/revoke", data={"csrf_token": client.csrf})
    assert answer.status_code == 400
    assert site.accounts.tokens(site.name(Role.ADMINISTRATOR)) == [one]


@pytest.mark.parametrize("token_id", ["0", "-1", "9" * 30, "9" * 5000, "x"])
def test_a_tokens_number_that_cannot_be_one_is_refused(site, token_id):
    client = site.client(Role.READER)
    answer = client.post(f"/account/tokens/{token_id}/revoke", data={"csrf_token": client.csrf})
    assert answer.status_code == 422


# What every answer carries


def answers(site, monkeypatch):
    """One of each kind."""
    client, nobody = site.client(Role.READER), site.client()
    yield 200, client.get("/worklist")
    yield 200, nobody.get("/")
    yield 303, nobody.get("/worklist")
    yield 204, client.post(f"/studies/{WAITING}/read", headers={"HX-Request": "true", "X-CSRF-Token": client.csrf})
    yield 401, nobody.get("/worklist/rows", headers={"HX-Request": "true"})
    yield 401, nobody.get("/api/v1/worklist")
    yield 403, client.get("/people")
    yield 404, client.get("/nowhere")
    yield 404, nobody.get("/welcome/guessed")
    yield 405, client.post("/worklist")
    yield 405, client.request("TRACE", "/")
    yield 413, client.post("/log-in", content=b"x" * (65 << 10))
    yield 422, client.get("/worklist?read=maybe")
    yield 422, client.get("/api/v1/worklist?limit=no")
    yield 200, client.get("/api/v1/worklist")
    yield 200, nobody.get("/metrics")
    yield 200, nobody.get("/api/v1/openapi.json")
    yield 200, client.get(f"/studies/{FLAGGED}/thumbnail")
    yield 200, client.get(f"/studies/{FLAGGED}/images/1/grey")
    found = nobody.get("/static/site.css")
    yield 200, found
    yield 304, nobody.get("/static/site.css", headers={"If-None-Match": found.headers["ETag"]})
    yield 404, nobody.get("/static/nothing.css")

    def broken(*_, **__):
        raise RuntimeError("what stands in a row")

    monkeypatch.setattr("dicom_node.worklist.listing.page", broken)
    yield 500, client.get("/worklist")
    yield 500, client.get("/api/v1/worklist")


@pytest.mark.parametrize("kind", ["site", "encrypted"])
def test_every_answer_carries_the_headers_that_protect_it(kind, request, monkeypatch):
    site = request.getfixturevalue(kind)
    for status, answer in answers(site, monkeypatch):
        where = (status, answer.request.url.path)
        assert answer.status_code == status, where
        headers = answer.headers
        policy = dict(part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert "*" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "same-origin"
        assert "server" not in headers
        is_thumbnail = where[1].endswith("/thumbnail") and answer.status_code == 200
        if not where[1].startswith("/static/"):
            assert headers["Cache-Control"] == ("private, max-age=3600" if is_thumbnail else "no-store"), where
        assert ("Strict-Transport-Security" in headers) == (kind == "encrypted")
