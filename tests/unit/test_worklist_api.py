"""The JSON API: what its description promises, who may ask, and that nothing that is sent is an error of its own."""

from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from dicom_node.worklist.accounts import Role
from tests.worklist_factories import (  # noqa: F401 - fixtures among them
    ACCESSION,
    DECLINED,
    FAILED,
    FLAGGED,
    HOSTILE,
    NAME,
    PATIENT,
    PRIOR,
    WAITING,
    either_fixture,
    prepared_fixture,
    quick_fixture,
    role_of,
    routes,
    site_fixture,
)

API = "/api/v1"
STUDY = f"{API}/studies/{FLAGGED}"
DESCRIPTION = f"{API}/openapi.json"
OPERATIONS = {
    ("GET", "/api/v1/worklist"),
    ("GET", "/api/v1/studies/{uid}"),
    ("PUT", "/api/v1/studies/{uid}/read"),
    ("GET", "/api/v1/studies/{uid}/feedback"),
    ("POST", "/api/v1/studies/{uid}/feedback"),
    ("GET", "/api/v1/retrospective"),
    ("GET", "/api/v1/retrospective/{name}"),
    ("GET", "/api/v1/status"),
}


def expect_told(answer, status, reason=None):
    """An error in the form that the description promises."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error", "message"}
    assert all(isinstance(one, str) and one for one in body.values())
    assert reason is None or body["error"] == reason


# Whatever can be sent


def test_nothing_that_its_description_allows_or_forbids_is_an_error_of_the_nodes_own(site):
    site.night.run(20)
    token = site.accounts.make_token(site.name(Role.ADMINISTRATOR), "a fuzzer")
    described = schemathesis.openapi.from_asgi(DESCRIPTION, site.app)
    statuses = {}

    def try_all(operation, mode, real):
        @settings(
            max_examples=20,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def sent(case):
            case.path_parameters = (case.path_parameters or {}) | real
            answer = case.call(headers={"Authorization": f"Bearer {token}"})
            case.validate_response(answer, checks=[not_a_server_error])
            statuses.setdefault((operation.method.upper(), operation.path), set()).add(answer.status_code)

        sent()

    for operation in (result.ok() for result in described.get_all_operations()):
        known = {"uid": FLAGGED, "name": "march"}.items()
        real = {name: value for name, value in known if f"{{{name}}}" in operation.path}
        takes_nothing = operation.path in (f"{API}/retrospective", f"{API}/status")  # nor anything that is wrong
        for mode in [GenerationMode.POSITIVE] if takes_nothing else GenerationMode:
            try_all(operation, mode, {})
            if real:
                try_all(operation, mode, real)
    assert set(statuses) == OPERATIONS
    assert {200, 201, 404, 422} <= set().union(*statuses.values())
    assert max(max(own) for own in statuses.values()) < 500


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"1e999",
        b'{"verdict": NaN}',
        b"\xff\xfe",
        b'{"verdict": "agree", "comment": "\\ud800"}',
        b'{"verdict": "agree", "\\ud800": 1}',
        b'{"verdict": "agree", "<script>": 1}',
        b'{"verdict": "agree", "user_name": "another"}',
        b'{"verdict": "agree", "comment": null}',
        b'{"verdict": "maybe"}',
        b'{"verdict": "disagree", "reason": "nonsense"}',
        b'{"verdict": "agree", "comment": "' + b"x" * 1001 + b'"}',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"9" * 60_000,
    ],
    ids=range(18),
)
def test_a_body_that_is_not_what_is_wanted_is_told(site, body):
    client = site.program(Role.READER)
    before = client.get(f"{STUDY}/feedback").json()
    for method, path in (("POST", "feedback"), ("PUT", "read")):
        answer = client.request(
            method, f"{STUDY}/{path}", content=body, headers={"Content-Type": "application/json; charset=utf-8"}
        )
        assert answer.status_code in (400, 422)
        expect_told(answer, answer.status_code)
    assert client.get(f"{STUDY}/feedback").json() == before == []


def test_no_value_of_a_parameter_is_an_error_of_the_nodes_own(either):
    client = either.program(Role.READER)
    for name in ("read", "day", "location", "modality", "flagged", "state", "text", "after", "limit"):
        for value in ("", "\0", "a\0b", "-1", "0", "9" * 30, "9" * 5000, "x" * 300, "\U0010ffff", "' OR 1=1 --", "%_"):
            answer = client.get(f"{API}/worklist", params={name: value})
            assert answer.status_code in (200, 400, 422), (name, value)


# Who may ask


def test_each_route_is_for_its_role_and_those_above(site):
    programs = {role: site.program(role) for role in Role}
    for client in programs.values():
        client.get(STUDY)  # the first use of a token is kept
    asked = 0
    for path, methods, route in routes(site.app):
        if path.startswith(f"{API}/") and path != DESCRIPTION:
            needed = role_of(route)
            address = path.format(uid=FLAGGED, name="march")
            (method,) = methods
            for role, client in programs.items():
                before = site.contents()
                body = {"read": True} if path.endswith("/read") else {"verdict": "agree"}
                answer = client.request(method, address, json=None if method == "GET" else body)
                if role.allows(needed):
                    assert answer.status_code in ((404,) if "name" in path else (200, 201)), (path, role)
                else:
                    expect_told(answer, 403, "forbidden")
                    assert site.contents() == before
                asked += 1
    assert asked == len(OPERATIONS) * len(Role)


def test_a_token_that_is_revoked_or_whose_person_is_out_lets_nobody_in(either):
    client, other = either.program(Role.READER), either.program(Role.READER)
    assert client.get(f"{API}/worklist").status_code == other.get(f"{API}/worklist").status_code == 200
    first, _ = either.accounts.tokens("a reader")
    either.accounts.revoke(first.id, "a reader")
    expect_told(client.get(f"{API}/worklist"), 401, "not_signed_in")
    assert client.get("/worklist").status_code == 303
    assert other.get(f"{API}/worklist").status_code == 200
    either.accounts.set_active("a reader", False, "a test")
    answer = other.get(f"{API}/worklist")
    expect_told(answer, 401, "not_signed_in")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    either.accounts.set_active("a reader", True, "a test")
    assert other.get(f"{API}/worklist").status_code == 200


def test_a_token_has_the_role_that_its_person_has_now(site):
    client = site.program(Role.READER)
    expect_told(client.get(f"{API}/status"), 403, "forbidden")
    site.accounts.set_role("a reader", Role.OPERATOR, "a test")
    assert client.get(f"{API}/status").status_code == 200


def test_a_script_of_a_page_uses_the_log_in_with_its_own_token(site):
    client = site.client(Role.READER)
    assert client.get(STUDY).status_code == 200
    expect_told(client.put(f"{STUDY}/read", json={"read": True}), 403, "forged_form")
    expect_told(client.put(f"{STUDY}/read", json={"read": True, "csrf_token": client.csrf}), 403, "forged_form")
    assert client.get(STUDY).json()["read_at"] is None
    answer = client.put(f"{STUDY}/read", json={"read": True}, headers={"X-CSRF-Token": client.csrf})
    assert answer.json()["read_by"] == "a reader"


# What is told


def test_the_worklist_is_told_in_pages_each_study_once(either):
    client = either.program(Role.READER)
    whole = client.get(f"{API}/worklist").json()
    assert whole["next"] is None
    order = [one["study_instance_uid"] for one in whole["studies"]]
    assert set(order) == {FLAGGED, WAITING, DECLINED, FAILED, HOSTILE, PRIOR}
    seen, after = [], ""
    while after is not None:
        part = client.get(f"{API}/worklist", params={"limit": 1, "after": after}).json()
        (one,) = part["studies"]
        seen.append(one)
        after = part["next"]
    assert seen == whole["studies"]
    for limit in (0, 201, "x"):
        expect_told(client.get(f"{API}/worklist", params={"limit": limit}), 422, "invalid")
    expect_told(client.get(f"{API}/worklist", params={"after": "forged"}), 400, "cursor")


def test_a_study_is_told_with_its_images_and_what_each_member_answers(either):
    client = either.program(Role.READER)
    told = client.get(STUDY).json()
    wanted = {"patient_name": NAME, "patient_id": PATIENT, "accession_number": ACCESSION, "location": "WARD 3"}
    assert {name: told[name] for name in wanted} == wanted
    assert (told["flagged"], told["moved_up"], told["state"], told["images"]) == (True, True, "delivered", 1)
    assert told["probability"] == pytest.approx(0.9)
    (film,) = told["films"]
    assert film["sop_instance_uid"] == "1.2.10.1"
    (result,) = film["results"]
    assert (result["target"], result["decision"]) == ("covid", "flagged")
    failed, declined, waiting = (client.get(f"{API}/studies/{uid}").json() for uid in (FAILED, DECLINED, WAITING))
    assert (failed["state"], failed["films"][0]["reason"]) == ("failed", "pixels_broken")
    assert (declined["state"], declined["films"][0]["reason"]) == ("declined", "lateral")
    assert (waiting["state"], waiting["results"], waiting["probability"]) == ("waiting", [], None)


def test_a_study_is_read_and_unread(either):
    client = either.program(Role.READER)
    for _ in range(2):
        told = client.put(f"{STUDY}/read", json={"read": True})
        assert (told.status_code, told.json()["read_by"]) == (200, "a reader")
    assert FLAGGED not in str(client.get(f"{API}/worklist").json())
    (one,) = client.get(f"{API}/worklist", params={"read": "read"}).json()["studies"]
    assert one == told.json()
    told = client.put(f"{STUDY}/read", json={"read": False}).json()
    assert (told["read_at"], told["read_by"]) == (None, None)
    expect_told(client.put(f"{API}/studies/1.3.99/read", json={"read": True}), 404, "unknown_study")
    expect_told(client.put(f"{STUDY}/read", json={"read": "perhaps"}), 422, "invalid")


def test_what_is_said_is_created_and_told_the_newest_first(either):
    client = either.program(Role.READER)
    answer = client.post(f"{STUDY}/feedback", json={"verdict": "agree", "comment": "clear\0"})
    assert answer.status_code == 201
    assert [(one["verdict"], one["comment"], one["user_name"]) for one in answer.json()] == [
        ("agree", "clear", "a reader")
    ]
    body = {"verdict": "disagree", "reason": "false_positive"}
    assert client.post(f"{STUDY}/feedback", json=body).status_code == 201
    told = client.get(f"{STUDY}/feedback").json()
    assert [(one["verdict"], one["reason"]) for one in told] == [("disagree", "false_positive"), ("agree", None)]
    assert told[0]["release"] == "starter 2024.1"
    expect_told(client.post(f"{STUDY}/feedback", json={"verdict": "disagree"}), 400, "feedback")
    assert client.get(f"{STUDY}/feedback").json() == told


@pytest.mark.parametrize("path", ["", "/feedback"])
def test_a_study_that_is_not_there_or_cannot_be_is_told(either, path):
    client = either.program(Role.READER)
    expect_told(client.get(f"{API}/studies/1.3.99{path}"), 404, "unknown_study")
    for uid in ("1.3.x", "1" * 65, "\0", "1\n", "<script>", "1٣", "1" * 10_000):
        expect_told(client.get(f"{API}/studies/{quote(uid)}{path}"), 422, "invalid")
    expect_told(client.get(f"{API}/studies/..%2fstatus{path}"), 404)
    expect_told(client.get(f"{API}/nothing"), 404)
    expect_told(client.delete(STUDY), 405)
    expect_told(client.post(f"{API}/studies/1.3.99/feedback", json={"verdict": "agree"}), 404, "unknown_study")


def test_runs_and_the_nodes_standing_are_told_to_operators(either):
    either.night.run(20, 21)
    client = either.program(Role.OPERATOR)
    (run,) = client.get(f"{API}/retrospective").json()
    assert (run["name"], client.get(f"{API}/retrospective/march").json()["name"]) == ("march", "march")
    expect_told(client.get(f"{API}/retrospective/april"), 404, "run")
    expect_told(client.get(f"{API}/retrospective/{'x' * 65}"), 422, "invalid")
    status = client.get(f"{API}/status")
    assert status.json()["instances"]["received"] == 6
    assert status.json()["invariant_holds"] is True
    for secret in (*NAME.split("^"), PATIENT, ACCESSION, FLAGGED):
        assert secret not in status.text


def test_the_description_says_what_goes_wrong_and_how_it_is_told(site):
    described = site.client().get(DESCRIPTION).json()
    found = {(method.upper(), path) for path, own in described["paths"].items() for method in own}
    assert found == OPERATIONS
    for own in described["paths"].values():
        for operation in own.values():
            assert {"400", "401", "403", "404", "413", "422", "503"} < set(operation["responses"])
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Told"}
