"""What the ledger tells of a UID, on both databases."""

import dataclasses
import json
import os
import subprocess
import sys
from datetime import datetime

import pytest
from sqlalchemy import event
from typer.testing import CliRunner

from dicom_node import cli, explain_cli
from dicom_node.archive import ArchivedFile
from dicom_node.claims import Claims
from dicom_node.commitment import CommitmentReport
from dicom_node.config import Settings
from dicom_node.database import Database
from dicom_node.domain import (
    Decision,
    DeliveryError,
    DeliveryState,
    ObjectKind,
    PixelError,
    Purpose,
    TargetResult,
)
from dicom_node.explain import UnknownUidError, explain
from dicom_node.explanation import Explanation, Kind, Origin, ReportSource
from dicom_node.ledger import Ledger
from dicom_node.outbox import Outbox
from dicom_node.proofs import Proofs
from dicom_node.releases import Releases
from dicom_node.reports import Reports
from dicom_node.rescreening import rescreen
from dicom_node.results import member_algorithm
from dicom_node.retractions import Retractions
from dicom_node.tables import Base
from tests.ledger_factories import LATERAL, drawn, prediction, product, received, reported, told
from tests.result_factories import manifest, spot

PATIENT = {
    "patient_id": "PID-4711",
    "patient_name": "Muster^Erika",
    "accession_number": "ACC1",
    "study_date": "20240102",
}
SAID_OF_THE_PATIENT = ("4711", "Muster", "ACC1", "20240102")


@pytest.fixture
def ledger(database):
    Ledger(database).activate_release(manifest())
    return database


@pytest.fixture
def outbox(ledger):
    return Outbox(ledger, retry_base_s=60, retry_max_s=60)


def screened(database, number, answer=None, maps_file=None, **changed):
    """Image ``1.2.9{number}`` was received and predicted; returns its claim."""
    Ledger(database).record(received(f"9{number}", **changed))
    claims = Claims(database)
    claim = claims.claim("worker", 20)
    claims.save_prediction(claim, answer or prediction(claim.manifest), maps_file)
    return claim


def retracted(database, study, note_uid):
    retractions = Retractions(database)
    note = product(ObjectKind.NOTE, note_uid, "1.2.840.10008.5.1.4.1.1.88.59")
    standing = retractions.standing(study)
    notes = dict.fromkeys(standing.given_away, note)
    retractions.retract(standing, notes, reason="quality", comment="the wrong\nside", asked_by="Dr. Roe")


def uids_of(objects):
    return [made.sop_instance_uid for made in objects]


def test_a_heatmap_leads_to_its_image_and_to_the_reports_that_tell_of_it(ledger):
    reported(ledger, **PATIENT)
    reported(ledger, number=7)
    found = explain(ledger, "2.25.1")
    assert found.kind is Kind.HEATMAP
    (image,) = found.images
    assert (image.sop_instance_uid, image.sop_class_uid) == ("1.2.9", "1.2.840.10008.5.1.4.1.1.1")
    assert (image.study_instance_uid, image.series_instance_uid) == ("1.3.9", "1.4.9")
    assert (image.transfer_syntax_uid, image.sha256, image.size_bytes) == ("1.2.840.10008.1.2.1", "a" * 64, 10)
    assert (image.calling_ae_title, image.view, image.body_part) == ("MODALITY", "PA", "chest")
    assert (image.evidence, image.notes) == (("ViewPosition", "BodyPartExamined"), ("StudyDate: illegal DA, emptied",))
    (screening,) = image.screenings
    assert (screening.purpose, screening.round, screening.state) == (Purpose.LIVE, 1, "reported")
    assert [step.to_state for step in screening.transitions] == ["waiting", "claimed", "predicted", "reported"]
    assert [step.attempt for step in screening.transitions] == [0, 1, 1, 1]
    assert image.received_at <= screening.transitions[0].at <= screening.transitions[-1].at
    assert uids_of(screening.objects) == ["2.25.1"]
    (report,) = found.reports
    assert (report.version, report.study_instance_uid, uids_of(report.objects)) == (1, "1.3.9", ["2.25.2"])
    assert report.sources == (ReportSource("1.2.9", 1),)


def test_the_answer_is_told_with_the_threshold_that_it_was_held_against(ledger):
    reported(ledger)
    (answer,) = explain(ledger, "2.25.1").images[0].screenings[0].answers
    assert (answer.target, answer.probability, answer.threshold) == ("covid", 0.123456789012345, 0.5)
    assert (answer.decision, answer.operating_point, answer.origin) == ("not_flagged", "balanced", Origin.BUNDLE)
    assert answer.site is None


def test_a_threshold_of_the_site_is_told_with_who_set_it_and_from_what_as_it_stood_then(ledger):
    releases = Releases(ledger)
    releases.set_threshold(manifest(), "covid", 0.9, set_by="Dr. First", basis="too few films")
    releases.set_threshold(manifest(), "covid", 0.1, set_by="Dr. Roe", basis="1,000 films")
    result = TargetResult("covid", 0.2, 0.1, Decision.FLAGGED, operating_point="site")
    answer = dataclasses.replace(prediction(manifest()), targets=(result,))
    claim = screened(ledger, 1, answer)
    Claims(ledger).save_heatmap(claim, product(ObjectKind.HEATMAP, "2.25.11"), ["pacs"], [])
    releases.set_threshold(manifest(), "covid", 0.1, set_by="Dr. Later", basis="the same films, read again")
    (found,) = explain(ledger, "2.25.11").images[0].screenings[0].answers
    assert found.origin is Origin.SITE
    assert (found.site.version, found.site.set_by, found.site.basis) == (2, "Dr. Roe", "1,000 films")


def test_member_outputs_remarks_and_maps_are_told(ledger):
    maps = (spot(), spot(member="basu", box=(0.1, 0.2, 0.5, 0.5)))
    answer = dataclasses.replace(prediction(manifest()), remarks=("turned:90",), maps=maps)
    screened(ledger, 1, answer, ArchivedFile(f"bb/{'b' * 64}.npz", "b" * 64, 100))
    (screening,) = explain(ledger, "1.2.91").images[0].screenings
    outputs = {(one.member, one.output): one.value for one in screening.outputs}
    assert outputs == {("zhang", "p_cls"): 0.1, ("zhang", "p_ano"): -0.75, ("zhang", "p_avg"): -0.025}
    assert screening.remarks == ("turned:90",)
    assert [(one.member, one.name, one.sha256) for one in screening.maps] == [
        ("zhang", "p_cls", "b" * 64),
        ("basu", "p_cls", "b" * 64),
    ]
    assert screening.maps[1].box == (0.1, 0.2, 0.5, 0.5)
    assert screening.objects == ()


def test_the_bundle_is_told_with_what_the_results_name_of_its_members(ledger):
    reported(ledger)
    (release,) = explain(ledger, "1.2.9").releases
    assert (release.bundle, release.release, release.active) == ("starter", "2024.1", True)
    zhang = release.members[0]
    assert (zhang.name, zhang.version, zhang.architecture) == ("zhang", "1.2.0", "Zhang2020")
    assert (zhang.weights[0].file, zhang.weights[0].sha256) == ("zhang.safetensors", "a" * 64)
    assert zhang.device_uid == member_algorithm(manifest().members[0]).device_uid
    (target,) = release.targets
    assert (target.operating_point, target.thresholds) == ("balanced", {"balanced": 0.5, "sensitive": 0.1})


def test_every_try_is_told_with_its_status_in_words(ledger, outbox):
    reported(ledger, destinations=("pacs", "archive"))
    first, second = outbox.claim("deliverer", 10, 60)
    outbox.not_sent(first, DeliveryError("pacs answered C-STORE with 0xA700", permanent=False, status=0xA700))
    outbox.sent(second, 0xB000)
    outbox.proven(dataclasses.replace(second, state=DeliveryState.SENT), DeliveryState.READ_BACK)
    found = explain(ledger, "2.25.1")
    (heatmap,) = found.images[0].screenings[0].objects
    pacs, archive = heatmap.deliveries
    assert (pacs.destination, pacs.state, pacs.tries) == ("pacs", "pending", 1)
    assert pacs.due_at > pacs.log[0].at
    (attempt,) = pacs.log
    assert (attempt.status, attempt.meaning) == (0xA700, "Failure: Refused: Out of Resources")
    assert attempt.detail == "pacs answered C-STORE with 0xA700"
    assert (archive.destination, archive.state, archive.log) == ("archive", "pending", ())
    (report,) = found.reports[0].objects
    assert (report.deliveries[0].state, report.deliveries[0].due_at) == ("read_back", None)
    assert [one.meaning for one in report.deliveries[0].log] == ["Warning: Coercion of Data Elements"]


def test_a_transaction_leads_to_its_objects_and_they_to_it(ledger, outbox):
    reported(ledger, destinations=("pacs", "archive"))
    proofs = Proofs(ledger, retry_base_s=60)
    parcels = outbox.claim("deliverer", 10, 60)
    for parcel in parcels:
        outbox.sent(parcel, 0)
    unanswered = proofs.request(parcels, 0)
    answered = proofs.request(parcels[:1], 60)
    proofs.answered(CommitmentReport(answered, ("2.25.1",), {}))
    found = explain(ledger, answered)
    assert (found.kind, found.images, found.reports) == (Kind.TRANSACTION, (), ())
    assert found.transaction.request.destination == "pacs"
    assert found.transaction.request.requested_at <= found.transaction.request.answered_at
    (heatmap,) = found.transaction.objects
    assert (heatmap.sop_instance_uid, heatmap.study_instance_uid) == ("2.25.1", "1.3.9")
    assert [delivery.destination for delivery in heatmap.deliveries] == ["pacs"]
    assert heatmap.deliveries[0].state == "committed"
    assert [one.transaction_uid for one in heatmap.deliveries[0].commitments] == [unanswered, answered]
    other = explain(ledger, unanswered).transaction
    assert other.request.answered_at is None
    assert uids_of(other.objects) == ["2.25.1", "2.25.2"]


def test_a_report_leads_to_its_images_in_whatever_form_it_was_sent(ledger, outbox):
    study = {"study_instance_uid": "1.3.5"}
    drawn(ledger, 1, **study)
    drawn(ledger, 2, **study)
    report_id = told(ledger, "2.25.8")
    (parcel,) = [one for one in outbox.claim("deliverer", 10, 60) if one.kind is ObjectKind.REPORT]
    Reports(ledger).add_form(
        report_id, product(ObjectKind.REPORT, "2.25.9", "1.2.840.10008.5.1.4.1.1.88.33"), parcel.delivery_id
    )
    for uid in ("2.25.8", "2.25.9"):
        found = explain(ledger, uid)
        assert found.kind is Kind.REPORT
        assert [image.sop_instance_uid for image in found.images] == ["1.2.91", "1.2.92"]
        (report,) = found.reports
        assert uids_of(report.objects) == ["2.25.8", "2.25.9"]
        assert [len(made.deliveries) for made in report.objects] == [0, 1]


def test_a_superseded_report_names_what_replaced_it_and_that_one_what_it_replaces(ledger):
    study = {"study_instance_uid": "1.3.5"}
    drawn(ledger, 1, **study)
    told(ledger, "2.25.8")
    drawn(ledger, 2, **study)
    told(ledger, "2.25.9")
    (old,) = explain(ledger, "2.25.8").reports
    assert (old.version, old.replaces, old.replaced_by.version) == (1, (), 2)
    assert old.replaced_by.sop_instance_uids == ("2.25.9",)
    assert [source.sop_instance_uid for source in old.sources] == ["1.2.91"]
    found = explain(ledger, "2.25.9")
    (new,) = found.reports
    assert (new.version, new.replaced_by) == (2, None)
    assert [(name.version, name.sop_instance_uids) for name in new.replaces] == [(1, ("2.25.8",))]
    assert [image.sop_instance_uid for image in found.images] == ["1.2.91", "1.2.92"]
    assert [report.version for report in explain(ledger, "2.25.11").reports] == [1, 2]
    assert [report.version for report in explain(ledger, "2.25.21").reports] == [2]


def test_an_image_that_was_screened_anew_shows_both_rounds(ledger):
    reported(ledger, destinations=())
    newer = manifest(release="2024.2")
    Ledger(ledger).activate_release(newer)
    rescreen(Settings(database_url=ledger.url), "1.3.9")
    found = explain(ledger, "1.2.9")
    first, second = found.images[0].screenings
    assert (first.round, first.release, first.state) == (1, "2024.1", "withheld")
    assert (first.replaced_by.round, first.replaced_by.release) == (2, "2024.2")
    assert (second.round, second.release, second.state, second.replaced_by) == (2, "2024.2", "waiting", None)
    assert [(release.release, release.active) for release in found.releases] == [("2024.1", False), ("2024.2", True)]


def test_a_declined_image_says_why_and_what_admission_read(ledger):
    Ledger(ledger).record(received(1, LATERAL))
    found = explain(ledger, "1.2.1")
    (image,) = found.images
    assert (found.kind, image.view, image.evidence, image.path) == (Kind.IMAGE, "lateral", ("ViewPosition",), None)
    (screening,) = image.screenings
    assert (screening.state, screening.reason, screening.answers, screening.attempt) == ("declined", "lateral", (), 0)
    assert found.reports == ()


def test_a_failed_image_says_why(ledger):
    Ledger(ledger).record(received(1))
    claims = Claims(ledger)
    claims.fail(claims.claim("worker", 20), PixelError("rows", "(0028,0010) Rows is missing"))
    (screening,) = explain(ledger, "1.2.1").images[0].screenings
    assert (screening.state, screening.reason, screening.detail) == ("failed", "rows", "(0028,0010) Rows is missing")
    assert [step.to_state for step in screening.transitions] == ["waiting", "claimed", "failed"]


def test_an_image_that_came_again_shows_each_time(ledger):
    Ledger(ledger).record(received(1))
    Ledger(ledger).record(received(1))
    Ledger(ledger).record(received(1, sha256="b" * 64, calling_ae_title="OTHER"))
    resends = explain(ledger, "1.2.1").images[0].resends
    assert [(one.kind, one.sha256, one.calling_ae_title) for one in resends] == [
        ("duplicate", "a" * 64, "MODALITY"),
        ("conflict", "b" * 64, "OTHER"),
    ]


def test_what_was_taken_back_names_who_did_and_why_and_the_note(ledger, outbox):
    reported(ledger)
    for parcel in outbox.claim("deliverer", 10, 60):
        outbox.sent(parcel, 0)
    retracted(ledger, "1.3.9", "2.25.77")
    drawn(ledger, 5, study_instance_uid="1.3.9")
    found = explain(ledger, "2.25.2")
    (retraction,) = found.retractions
    assert (retraction.reason, retraction.asked_by, retraction.comment) == ("quality", "Dr. Roe", "the wrong\nside")
    assert [(note.kind, note.sop_instance_uid) for note in retraction.notes] == [("note", "2.25.77")]
    assert [delivery.state for delivery in retraction.notes[0].deliveries] == ["pending"]
    assert found.reports[0].objects[0].retraction == retraction.number
    note = explain(ledger, "2.25.77")
    assert note.kind is Kind.NOTE
    assert [image.sop_instance_uid for image in note.images] == ["1.2.9"]  # not the one that came later
    assert uids_of(note.images[0].screenings[0].objects) == ["2.25.1"]
    assert uids_of(note.reports[0].objects) == ["2.25.2"]
    assert note.retractions == found.retractions
    study = explain(ledger, "1.3.9")
    assert [image.screenings[0].objects[0].retraction for image in study.images] == [retraction.number, None]


def test_every_note_of_what_was_taken_back_is_told(ledger):
    reported(ledger)
    retractions = Retractions(ledger)
    notes = {
        name: product(ObjectKind.NOTE, uid, "1.2.840.10008.5.1.4.1.1.88.59")
        for name, uid in (("pacs", "2.25.77"), ("viewer", "2.25.78"))
    }
    retractions.retract(retractions.standing("1.3.9"), notes, reason="safety", comment="", asked_by="somebody")
    found = explain(ledger, "2.25.1")
    assert uids_of(found.retractions[0].notes) == ["2.25.77", "2.25.78"]
    told = "\n".join(explain_cli.lines(found))
    assert "2.25.77" in told
    assert "2.25.78" in told


def test_what_was_taken_back_before_it_was_sent_has_no_note(ledger):
    reported(ledger)
    retractions = Retractions(ledger)
    retractions.retract(retractions.standing("1.3.9"), {}, reason="safety", comment="", asked_by="somebody")
    found = explain(ledger, "2.25.1")
    assert found.retractions[0].notes == ()
    assert found.images[0].screenings[0].objects[0].deliveries[0].state == "withdrawn"
    assert "none: nothing had been sent" in "\n".join(explain_cli.lines(found))


def test_a_study_leads_to_everything_in_it_and_to_nothing_else(ledger):
    study = {"study_instance_uid": "1.3.5"}
    drawn(ledger, 1, **study)
    told(ledger, "2.25.8")
    Ledger(ledger).record(received(2, LATERAL, **study))
    reported(ledger, number=7)
    found = explain(ledger, "1.3.5")
    assert found.kind is Kind.STUDY
    assert [(image.sop_instance_uid, image.screenings[0].state) for image in found.images] == [
        ("1.2.91", "reported"),
        ("1.2.2", "declined"),
    ]
    assert [uids_of(report.objects) for report in found.reports] == [["2.25.8"]]


def test_an_unknown_uid_is_named(ledger):
    with pytest.raises(UnknownUidError, match=r"no image, study, result or transaction '9\.9'"):
        explain(ledger, "9.9")


def as_json(found: Explanation):
    return json.loads(json.dumps(dataclasses.asdict(found), default=explain_cli._as_json))


@pytest.fixture
def everything(ledger, outbox):
    """A study with whatever can happen to one; its UID."""
    study = {"study_instance_uid": "1.3.5"}
    answer = dataclasses.replace(prediction(manifest()), remarks=("turned:90",), maps=(spot(),))
    claim = screened(ledger, 1, answer, ArchivedFile(f"bb/{'b' * 64}.npz", "b" * 64, 100), **study, **PATIENT)
    Claims(ledger).save_heatmap(claim, product(ObjectKind.HEATMAP, "2.25.11"), ["pacs"], ["StudyDate: illegal DA"])
    told(ledger, "2.25.8")
    Ledger(ledger).record(received(91, sha256="b" * 64, **study))
    drawn(ledger, 2, **study, **PATIENT)
    told(ledger, "2.25.9")
    Ledger(ledger).record(received(3, LATERAL, **study, **PATIENT))
    first, *others = outbox.claim("deliverer", 10, 60)
    outbox.not_sent(first, DeliveryError("pacs answered C-STORE with 0xA700", permanent=False, status=0xA700))
    for parcel in others:
        outbox.sent(parcel, 0)
    Proofs(ledger, retry_base_s=60).request(others, 60)
    retracted(ledger, "1.3.5", "2.25.77")
    return "1.3.5"


def test_nothing_tells_who_the_patient_is(ledger, everything):
    found = explain(ledger, everything)
    told_of = json.dumps(as_json(found)) + "\n".join(explain_cli.lines(found))
    assert not [word for word in SAID_OF_THE_PATIENT if word in told_of]
    assert "patient" not in told_of.lower()


def test_the_lines_name_every_uid_digest_number_and_person_of_the_json_form(ledger, everything):
    found = explain(ledger, everything)
    lines = "\n".join(explain_cli.lines(found))

    def leaves(value):
        if isinstance(value, dict):
            for name, part in value.items():
                if name not in ("weights", "citation", "series_instance_uid", "sop_class_uid", "transfer_syntax_uid"):
                    yield from leaves(part)
        elif isinstance(value, list):
            for part in value:
                yield from leaves(part)
        elif isinstance(value, str) and not is_time(value):
            yield " ".join(value.split()).replace("not_flagged", "not flagged")

    missing = {leaf for leaf in leaves(as_json(found)) if leaf not in lines}
    assert missing <= {"Zhang 2020, anomaly detection", "Basu 2020, anomaly detection"}


def is_time(value):
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return "T" in value


def test_an_image_takes_no_more_than_a_screen(ledger):
    reported(ledger)
    lines = list(explain_cli.lines(explain(ledger, "2.25.1")))
    assert len(lines) < 40
    assert max(map(len, lines)) < 180


def test_no_table_that_grows_with_the_images_is_read_from_end_to_end(sqlite_template, tmp_path):
    """By SQLite's own plan of every statement, for each kind of UID."""
    (tmp_path / "ledger.sqlite").write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    Ledger(database).activate_release(manifest())
    outbox = Outbox(database, retry_base_s=60, retry_max_s=60)
    reported(database)
    parcels = outbox.claim("deliverer", 10, 60)
    for parcel in parcels:
        outbox.sent(parcel, 0)
    transaction_uid = Proofs(database, retry_base_s=60).request(parcels, 60)
    retracted(database, "1.3.9", "2.25.77")
    asked = []
    event.listen(database.engine, "before_cursor_execute", lambda _c, _u, sql, values, *_: asked.append((sql, values)))
    for uid in ("2.25.1", "2.25.2", "2.25.77", "1.2.9", "1.3.9", transaction_uid):
        explain(database, uid)
    with database.engine.connect() as connection:
        steps = [
            row[3]
            for sql, values in tuple(asked)
            if sql.startswith("SELECT")
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)
        ]
    database.close()
    scanned = {step.split()[1] for step in steps if step.startswith("SCAN")}
    assert len(asked) > 50
    # The one is short, and the other two numbers a row.
    assert scanned & set(Base.metadata.tables) <= {"releases", "commitment_items"}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run `dicom-node explain` on a ledger; gives the result."""

    def run(database, *arguments):
        monkeypatch.setenv("DICOM_NODE_DATABASE_URL", database.url)
        return CliRunner().invoke(cli.app, ["explain", *arguments])

    return run


def test_the_command_prints_lines_for_a_person_and_one_document_for_a_program(ledger, command):
    reported(ledger, **PATIENT)
    shown = command(ledger, "2.25.1")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines() == list(explain_cli.lines(explain(ledger, "2.25.1")))
    document = json.loads(command(ledger, " 2.25.1", "--json").stdout)
    assert document == as_json(explain(ledger, "2.25.1"))
    assert list(document) == ["uid", "kind", "images", "reports", "retractions", "releases", "transaction"]
    assert list(document["images"][0]["screenings"][0]["objects"][0]["deliveries"][0]) == [
        "destination",
        "state",
        "tries",
        "proofs",
        "due_at",
        "log",
        "commitments",
    ]


def test_what_came_over_the_network_moves_no_cursor(ledger, command):
    Ledger(ledger).record(received(1, modality="CR\x1b[2J", calling_ae_title="A\x07\x1b]0;B"))
    assert "CR [2J" in (shown := command(ledger, "1.2.1").stdout)
    assert not [letter for letter in shown if not letter.isprintable() and letter != "\n"]


def test_an_unknown_uid_is_one_line_and_exit_status_2(sqlite_template, tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(sqlite_template.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "dicom_node", "explain", "9.9"],
        env={**os.environ, "DICOM_NODE_DATABASE_URL": f"sqlite:///{tmp_path / 'ledger.sqlite'}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("dicom-node: the ledger knows no image, study, result or transaction '9.9': ")
