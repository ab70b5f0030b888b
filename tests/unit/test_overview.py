"""What `dicom-node status` says beside the counts, on both databases."""

import json

import pytest
from sqlalchemy import event
from typer.testing import CliRunner

from dicom_node import cli
from dicom_node.database import Database
from dicom_node.domain import DeliveryError, DeliveryState, ObjectKind
from dicom_node.ledger import Ledger
from dicom_node.outbox import Outbox
from dicom_node.overview import Overview, overview
from dicom_node.retractions import Retractions
from tests.ledger_factories import drawn, product, reported, told
from tests.result_factories import manifest


@pytest.fixture
def outbox(database):
    Ledger(database).activate_release(manifest())
    return Outbox(database, retry_base_s=60, retry_max_s=60)


def ended(outbox, *states):
    """What is due ends in these states, in its order."""
    for parcel, state in zip(outbox.claim("deliverer", 10, 60), states, strict=True):
        if state is DeliveryState.REJECTED:
            outbox.not_sent(parcel, DeliveryError("refused", permanent=True, status=0x0122))
        else:
            outbox.sent(parcel, 0)
            outbox.proven(parcel, state)


def retract(database, note):
    retractions = Retractions(database)
    standing = retractions.standing("1.3.9")
    notes = dict.fromkeys(standing.given_away, note)
    retractions.retract(standing, notes, reason="quality", comment="", asked_by="Dr. Roe")


def test_an_empty_ledger_has_nothing_for_anybody(database, outbox):
    found = overview(database)
    assert found == Overview({}, {}, 0, 0)
    assert list(found.lines()) == []


def test_what_was_rejected_and_what_is_unproven_are_counted_by_destination(database, outbox):
    reported(database, destinations=("pacs", "archive"))
    ended(outbox, DeliveryState.REJECTED, DeliveryState.UNPROVEN)
    ended(outbox, DeliveryState.READ_BACK, DeliveryState.UNPROVEN)
    found = overview(database)
    assert (found.rejected, found.unproven) == ({"pacs": 1}, {"archive": 1, "pacs": 1})
    lines = list(found.lines())
    assert lines[0].startswith("needs a person: pacs rejected 1 objects;")
    assert [line.partition(":")[0] for line in lines[1:]] == ["unproven", "unproven"]


def test_a_study_with_an_image_that_no_report_tells_of_is_due_once(database, outbox):
    drawn(database, 1, study_instance_uid="1.3.5")
    drawn(database, 2, study_instance_uid="1.3.5")
    drawn(database, 3)
    assert overview(database).reports_due == 2
    told(database, "2.25.8")
    assert overview(database).reports_due == 1
    told(database, "2.25.9")
    assert overview(database).reports_due == 0


def test_what_was_taken_back_is_counted_and_needs_nobody_but_its_note_may(database, outbox):
    reported(database)
    ended(outbox, DeliveryState.REJECTED, DeliveryState.UNPROVEN)
    retract(database, product(ObjectKind.NOTE, "2.25.77", "1.2.840.10008.5.1.4.1.1.88.59"))
    drawn(database, 5, destinations=(), study_instance_uid="1.3.9")
    assert overview(database) == Overview({}, {}, 1, 2)
    ended(outbox, DeliveryState.REJECTED)
    assert overview(database).rejected == {"pacs": 1}


def test_objects_are_reached_by_indices_alone(sqlite_template, tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    asked = []
    event.listen(database.engine, "before_cursor_execute", lambda _c, _u, sql, values, *_: asked.append((sql, values)))
    overview(database)
    with database.engine.connect() as connection:
        steps = [
            row[3]
            for sql, values in tuple(asked)
            if sql.startswith("SELECT")
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)
        ]
    database.close()
    scanned = {step.split()[1] for step in steps if step.startswith("SCAN")}
    assert not scanned & {"objects", "deliveries", "screenings", "instances", "reports"}


def test_status_says_it_in_both_forms(database, outbox, monkeypatch):
    reported(database)
    ended(outbox, DeliveryState.REJECTED, DeliveryState.UNPROVEN)
    monkeypatch.setenv("DICOM_NODE_DATABASE_URL", database.url)
    shown = CliRunner().invoke(cli.app, ["status"])
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[-3:-1] == list(overview(database).lines())
    document = json.loads(CliRunner().invoke(cli.app, ["status", "--json"]).stdout)
    assert document["needs_a_person"] == document["unproven"] == {"pacs": 1}
    assert (document["reports_due"], document["retracted_objects"]) == (0, 0)
