"""What the worklist writes down of who does what, and what stands in no log, no metric and no message."""

import logging
import re

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from dicom_node.worklist import listing
from dicom_node.worklist.accounts import Role
from dicom_node.worklist.tables import AuditRow
from tests.worklist_factories import (  # noqa: F401 - fixtures among them
    ACCESSION,
    FAILED,
    FLAGGED,
    NAME,
    PASSWORD,
    PATIENT,
    WAITING,
    either_fixture,
    form_of,
    log_in,
    ours,
    prepared_fixture,
    quick_fixture,
    site_fixture,
)

SECRET = "SECRET what stands in a row"  # noqa: S105
# The text format, version 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/
_VALUE = r"(?:[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|NaN|[+-]Inf)"
_LABEL = r'[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"([a-zA-Z_:][\w:]*)(\{{{_LABEL}(?:,{_LABEL})*\}})? ({_VALUE})")


def told(site):
    """What was written down since the site was made."""
    return [row for row in site.audit() if row[0] != "a test" and row[1] not in ("link_used", "invited")]


# The audit


def test_whatever_a_reader_sees_and_does_is_written_down(either):
    client = either.client()
    log_in(client, either.name(Role.READER))
    form = {"csrf_token": csrf_of(client)}
    client.get("/worklist")
    client.get(f"/studies/{FLAGGED}")
    client.get("/studies/1.3.99")  # there is none
    client.post(f"/studies/{FLAGGED}/read", data=form)
    client.post(f"/studies/{FLAGGED}/read", data=form)  # it was so already
    client.post(f"/studies/{FLAGGED}/read", data=form | {"unread": "true"})
    client.post(f"/studies/{WAITING}/feedback", data=form | {"verdict": "unsure"})
    client.post(f"/studies/{WAITING}/feedback", data=form | {"verdict": "disagree", "reason": "other"})
    client.post("/account/tokens", data=form | {"name": "a viewer"})
    client.post(f"/account/tokens/{either.accounts.tokens('a reader')[0].id}/revoke", data=form)
    client.post("/log-out", data=form)
    log_in(client, "a reader", "wrong password")
    assert told(either) == [
        ("a reader", "log_in", None),
        ("a reader", "worklist_seen", None),
        ("a reader", "study_seen", FLAGGED),
        ("a reader", "read", FLAGGED),
        ("a reader", "unread", FLAGGED),
        ("a reader", "said_unsure", WAITING),
        ("a reader", "said_disagree", WAITING),
        ("a reader", "token_made", None),
        ("a reader", "token_revoked", None),
        ("a reader", "log_out", None),
        ("a reader", "log_in_refused", None),
    ]
    with either.database.read() as session:
        addresses = {row.address for row in session.query(AuditRow) if row.action not in ("invited", "link_used")}
    assert addresses == {"testclient"}


def test_whatever_a_program_sees_and_does_is_written_down(site):
    client = site.program(Role.READER)
    before = len(told(site))
    client.get("/api/v1/worklist")
    client.get(f"/api/v1/studies/{FLAGGED}")
    client.get("/api/v1/studies/1.3.99")
    client.put(f"/api/v1/studies/{FLAGGED}/read", json={"read": True})
    client.put(f"/api/v1/studies/{FLAGGED}/read", json={"read": False})
    client.post(f"/api/v1/studies/{FLAGGED}/feedback", json={"verdict": "agree"})
    assert told(site)[before:] == [
        ("a reader", "worklist_seen", None),
        ("a reader", "study_seen", FLAGGED),
        ("a reader", "read", FLAGGED),
        ("a reader", "unread", FLAGGED),
        ("a reader", "said_agree", FLAGGED),
    ]


def test_what_operators_and_administrators_do_is_written_down_and_shown(site):
    client = site.client(Role.ADMINISTRATOR)
    before = len(site.audit())
    form = {"csrf_token": client.csrf}
    done = client.post("/operations/retry", data=form | {"study": FAILED, "reason": "pixels_broken"})
    assert "1 images wait" in client.get(done.headers["Location"]).text
    client.post("/operations/retry", data=form | {"destination": "pacs"})
    client.get("/feedback.csv")
    client.post("/people/invite", data=form | {"name": "Una", "role": "reader"})
    client.post("/people/role", data=form | {"name": "Una", "role": "operator"})
    client.post("/people/active", data=form | {"name": "Una", "active": "false"})
    actions = [("retried", FAILED), ("retried", None), ("feedback_exported", None)]
    actions += [("invited", None), ("role_set", None), ("deactivated", None)]
    assert [row[1:] for row in site.audit()[before:]] == actions
    assert {row[0] for row in site.audit()[before:]} == {"a administrator"}
    page = client.get("/people").text
    for words in ("retried", "feedback exported", "Una is operator", "deactivated"):
        assert words in page
    assert NAME.split("^")[0] not in page


def csrf_of(client):
    return re.search(r'name="csrf_token" value="([^"]+)"', client.get("/account").text)[1]


# Logs


def test_no_line_of_the_log_holds_a_patient_or_what_lets_in(site, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    client = site.client()
    form = form_of(client)
    log_in(client, "a administrator", form=form)
    cookie, csrf = client.cookies["cxr"], csrf_of(client)
    made = client.post("/account/tokens", data={"name": "a viewer", "csrf_token": csrf}).text
    invited = client.post("/people/invite", data={"name": "Una", "role": "reader", "csrf_token": csrf}).text
    token, link = re.search(r"cxr_[\w-]+", made)[0], re.search(r"/welcome/([\w-]+)", invited)[1]
    program = site.client(token=token)
    log_in(client, "typed a secret here", "and another there", form=form)
    for who in (client, program):
        for path in (
            "/worklist",
            f"/worklist?text={PATIENT}",
            f"/studies/{FLAGGED}",
            f"/studies/{NAME}",
            "/operations",
        ):
            who.get(path)
            who.get(f"/api/v1{path}")
        who.post(f"/studies/{FLAGGED}/feedback", data={"verdict": NAME, "csrf_token": csrf})
        who.post(f"/api/v1/studies/{FLAGGED}/feedback", json={"verdict": NAME})
        who.get("/worklist", params={"read": PATIENT})
    site.client(token=token + "x").get("/api/v1/worklist")
    site.client().get(f"/welcome/{link}")

    def broken(*_, **__):
        raise RuntimeError(f"{NAME} {PATIENT} {token}")

    def dead(*_, **__):
        raise OperationalError(f"SELECT '{NAME}'", {"id": PATIENT}, Exception(token))

    for fault in (broken, dead):
        monkeypatch.setattr(listing, "page", fault)
        monkeypatch.setattr("dicom_node.worklist.study_pages.whole", fault)
        assert {client.get(path).status_code for path in ("/worklist", f"/studies/{FLAGGED}")} <= {500, 503}
    written = ours(caplog)
    assert "RuntimeError at" in written
    assert "OperationalError" in written
    secrets = (*NAME.split("^"), PATIENT, ACCESSION, cookie, csrf, token, link, form, PASSWORD)
    assert [one for one in (*secrets, "typed a secret", "and another there") if one in written] == []


# Metrics


def test_the_metrics_are_in_prometheus_text_format_and_hold_no_patient(either):
    either.night.run(20, name='a "run"\\ of\nmarch')
    client = either.client()
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.text.endswith("\n")
    described, typed, samples = set(), {}, {}
    for line in answer.text.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            name = line.split(" ")[2]
            assert name not in described
            described.add(name)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert (name in described, name in typed, kind) == (True, False, "gauge")
            typed[name] = kind
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            assert found[1] == list(typed)[-1]  # beside its description
            assert (found[1], found[2]) not in samples
            samples[found[1], found[2]] = float(found[3])
    assert described == set(typed)
    assert samples["cxr_node_instances", '{state="failed"}'] == 1
    assert samples["cxr_node_instances", '{state="received"}'] == 6
    assert samples["cxr_node_invariant_holds", None] == 1
    assert samples["cxr_node_archive_free_bytes", None] > 0
    assert samples["cxr_node_run_studies", r'{run="a \"run\"\\ of\nmarch",state="found"}'] == 1
    for secret in (*NAME.split("^"), PATIENT, ACCESSION, FLAGGED, "alert(1)", "a reader", "WARD"):
        assert secret not in answer.text


def test_programs_may_ask_whether_it_lives_and_whether_the_ledger_answers(either):
    client = either.client()
    assert (client.get("/healthz").text, client.get("/readyz").text) == ("ok\n", "ready\n")


# Faults


@pytest.mark.parametrize("path", ["/worklist", "/api/v1/worklist"])
def test_a_fault_is_told_without_what_it_says(site, monkeypatch, caplog, path):
    caplog.set_level(logging.DEBUG)

    def broken(*_, **__):
        raise RuntimeError(SECRET)

    monkeypatch.setattr(listing, "page", broken)
    answer = site.client(Role.READER, raise_server_exceptions=True).get(path)
    assert answer.status_code == 500
    assert "the node met an error of its own" in answer.text
    assert ("<html" in answer.text) == (path == "/worklist")
    assert "RuntimeError at test_worklist_records.py:" in ours(caplog)
    for told in (answer.text, ours(caplog)):
        assert "SECRET" not in told
        assert "Traceback" not in told


def test_a_ledger_that_does_not_answer_is_explained(site, monkeypatch, caplog):
    def broken(*_, **__):
        raise OperationalError(f"SELECT '{SECRET}'", {"name": SECRET}, Exception(SECRET))

    client = site.client(Role.READER, raise_server_exceptions=True)
    monkeypatch.setattr(listing, "page", broken)
    for path in ("/worklist", "/api/v1/worklist"):
        answer = client.get(path)
        assert answer.status_code == 503
        assert "the database of database_url cannot be used (OperationalError)" in answer.text
        assert "SECRET" not in answer.text + ours(caplog)


def test_a_ledger_without_its_tables_is_explained(either):
    client = either.client(Role.ADMINISTRATOR, raise_server_exceptions=True)
    with either.database.write() as session:
        session.execute(text("DROP TABLE feedback"))
    for path, status in ((f"/studies/{FLAGGED}", 503), ("/feedback.csv", None), ("/worklist", 200), ("/readyz", 200)):
        if status is not None:
            answer = client.get(path)
            assert answer.status_code == status, path
            assert status == 200 or "cannot be used" in answer.text
            assert "SELECT" not in answer.text
    with either.database.write() as session:
        session.execute(text("DROP TABLE sessions"))
    answer = client.get("/worklist")
    assert (answer.status_code, PASSWORD in answer.text, NAME in answer.text) == (503, False, False)
