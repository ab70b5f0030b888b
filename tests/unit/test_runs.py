"""Runs are begun, paused, resumed and ended; the ledger decides whether one is due, with the time as a value."""

import json
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import select

from dicom_node.config import Peer, Retrospective, Settings
from dicom_node.domain import NodeError, Origin
from dicom_node.retrospective.progress import all_runs, run_status
from dicom_node.retrospective.runs import RunError, Runs
from dicom_node.retrospective.tables import RunRow
from tests.cohort_factories import NOW, Night

PEER = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=104, retrieve=("move",))


@pytest.fixture
def night(database, tmp_path):
    return Night(tmp_path, database)


@pytest.fixture
def runs(database):
    return Runs(database)


def settings(*peers, **changed):
    values = {"window": "22:00-06:00", "time_zone": "Europe/Vienna"} | changed
    return Settings(peers=peers or (PEER,), retrospective=Retrospective(**values))


def at(text):
    """A time in Vienna's winter as UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC) - timedelta(hours=1)


def row(night, name="march"):
    with night.database.read() as session:
        return session.scalars(select(RunRow).filter_by(name=name)).one()


def test_a_planned_run_is_begun(night, runs):
    night.run(1, state="planned")
    runs.begin("march", NOW, deliver=True)
    found = row(night)
    assert (found.state, found.begun_at, found.deliver) == ("running", NOW, True)


@pytest.mark.parametrize(
    ("state", "told"), [("planning", "the plan of run march is not done"), (None, "there is no run march; none was")]
)
def test_one_that_is_not_planned_is_not_begun(night, runs, state, told):
    if state:
        night.run(1, state=state)
    with pytest.raises(RunError, match=told):
        runs.begin("march", NOW)


def test_a_run_is_paused_and_nothing_more_is_claimed(night, runs):
    night.run(1)
    runs.pause("march")
    assert night.claim() is None
    with pytest.raises(RunError, match="march is paused: only a running one"):
        runs.pause("march")
    runs.begin("march", NOW)
    assert night.claim() is not None


@pytest.mark.parametrize(
    ("now", "why"),
    [("2026-01-10 21:59", "outside the window"), ("2026-01-10 22:00", None), ("2026-01-11 06:00", "outside")],
)
def test_a_run_is_due_while_the_window_is_open(night, runs, now, why):
    night.run(1)
    runs.decide(settings(), at(now))
    found = row(night).rests_because
    assert found is None if why is None else why in found


def test_a_source_that_left_the_settings_is_told(night, runs):
    night.run(1)
    other = PEER.model_copy(update={"name": "other"})
    runs.decide(settings(other), at("2026-01-10 23:00"))
    assert row(night).rests_because == "no peer pacs with a way to retrieve stands in the settings"


def test_after_a_fault_of_the_pacs_the_run_rests_twice_as_long_each_time_and_at_once(night, runs):
    key = night.run(1)
    now = at("2026-01-10 23:00")
    for pause_s in (60, 120, 240, 300, 300):
        runs.fault(key, "pacs does not answer", settings(pause_max_s=300).retrospective, now)
        assert "pacs does not answer" in row(night).rests_because  # before the sweep has looked
        assert night.claim(now=now) is None
        runs.decide(settings(), now + timedelta(seconds=pause_s - 1))
        assert row(night).rests_because is not None
        now += timedelta(seconds=pause_s)
        runs.decide(settings(), now)
        assert row(night).rests_because is None
    runs.served(key)
    runs.fault(key, "again", settings().retrospective, now)
    assert row(night).rests_until == now + timedelta(seconds=60)


def test_a_pause_for_the_pacs_outlasts_the_window_s_own_words(night, runs):
    key = night.run(1)
    runs.fault(key, "slow", settings(pause_s=3600, pause_max_s=3600).retrospective, at("2026-01-11 05:30"))
    runs.decide(settings(), at("2026-01-11 06:10"))
    assert "outside the window" in row(night).rests_because
    runs.decide(settings(window=""), at("2026-01-11 06:20"))
    assert "until 06:30:00: slow" in row(night).rests_because


def test_a_run_rests_while_the_archive_holds_enough_of_it(night, runs):
    night.run(1, 2)
    claim, missing = night.begin()
    night.arrive(missing[0], origin=Origin.MOVED)
    night.studies.retrieved(claim, 1.0)
    assert json.loads(json.dumps(run_status(night.database, "march", NOW).as_json()))["held_bytes"] == len("1.2.1.1")
    runs.decide(settings(held_gb=0.000000001), at("2026-01-10 23:00"))
    assert "held_gb" in row(night).rests_because
    night.screen()
    night.settle()
    runs.decide(settings(held_gb=0.000000001), at("2026-01-10 23:00"))
    assert row(night).rests_because is None


def test_a_run_rests_while_enough_images_wait_for_a_worker_and_live_ones_do_not_count(night, runs):
    night.run(1, 2)
    night.arrive("1.2.8.1")
    _, missing = night.begin()
    runs.decide(settings(waiting_images=1), at("2026-01-10 23:00"))
    assert row(night).rests_because is None
    night.arrive(missing[0], origin=Origin.MOVED)
    runs.decide(settings(waiting_images=1), at("2026-01-10 23:00"))
    assert "1 fetched images wait" in row(night).rests_because


def test_a_run_ends_when_nothing_of_it_is_left(night, runs):
    night.run(1)
    claim, missing = night.begin()
    night.arrive(missing[0], origin=Origin.MOVED)
    night.studies.retrieved(claim, 1.0)
    runs.decide(settings(), at("2026-01-10 23:00"))
    assert row(night).state == "running"
    night.screen()
    night.settle()
    runs.decide(settings(), at("2026-01-10 23:00"))
    assert row(night).state == "ended"
    assert row(night).ended_at == at("2026-01-10 23:00")


def failed_in_a_worker(night):
    night.run(1, 2)
    claim, missing = night.begin()
    night.arrive(missing[0], origin=Origin.MOVED)
    night.studies.retrieved(claim, 1.0)
    night.claims.fail(night.claims.claim("worker", 60), NodeError("(7FE0,0010) is cut off"))
    claim = night.claim()
    night.studies.not_retrieved(claim, "missing_images", "none came", now=NOW, pause_s=0, attempts=1)
    night.settle()
    assert [night.study(number).state for number in (1, 2)] == ["failed", "failed"]


def test_the_studies_that_failed_are_tried_once_more(night, runs):
    failed_in_a_worker(night)
    assert runs.retry("march") == 2
    runs.begin("march", NOW)
    claim, missing = night.begin()
    assert missing == ["1.2.1.1"]  # purged when it had failed
    night.arrive(missing[0], origin=Origin.MOVED)
    night.studies.retrieved(claim, 1.0)
    assert night.screen() is not None
    night.settle()
    assert night.study(1).state == "done"


def test_one_of_them_alone_is_tried_once_more(night, runs):
    failed_in_a_worker(night)
    assert runs.retry("march", "1.3.2") == 1
    assert [night.study(number).state for number in (1, 2)] == ["failed", "found"]
    with pytest.raises(RunError, match=r"no study 1\.3\.2 has failed"):
        runs.retry("march", "1.3.2")


NIGHTLY = {"nightly": True}


def nights(night):
    with night.database.read() as session:
        return session.scalars(select(RunRow.nightly_for).order_by(RunRow.id)).all()


def test_a_night_takes_the_day_before_once_and_not_before_the_window_opens(night, runs):
    runs.decide(settings(**NIGHTLY), at("2026-01-10 21:59"))
    assert nights(night) == []
    for now in ("2026-01-10 22:00", "2026-01-10 23:00", "2026-01-11 05:59"):
        runs.decide(settings(**NIGHTLY), at(now))
    assert nights(night) == ["20260109"]
    (found,) = runs.to_plan()
    assert (found.name, found.state, found.source, found.deliver) == ("nightly-20260109", "planning", "pacs", False)
    assert found.criteria["first_day"] == found.criteria["last_day"] == "2026-01-09"


def test_two_missed_nights_are_caught_up_and_each_day_has_its_own_run(night, runs):
    runs.decide(settings(**NIGHTLY), at("2026-01-10 22:00"))
    runs.decide(settings(**NIGHTLY), at("2026-01-13 22:00"))
    assert nights(night) == ["20260109", "20260110", "20260111", "20260112"]


@pytest.mark.parametrize("first", [date(2026, 3, 27), date(2026, 10, 23)])
def test_over_both_changes_of_the_clock_every_day_is_taken_once(night, runs, first):
    now = datetime(first.year, first.month, first.day, tzinfo=UTC)
    while now < datetime(first.year, first.month, first.day, tzinfo=UTC) + timedelta(days=4):
        runs.decide(settings(**NIGHTLY), now)
        now += timedelta(minutes=20)
    found = nights(night)
    days = [date.fromisoformat(day) for day in found]
    assert days == [days[0] + timedelta(days=number) for number in range(len(days))]
    assert days[-1] == first + timedelta(days=2)


def test_without_nightly_or_with_two_sources_no_night_is_taken(night, runs):
    runs.decide(settings(), at("2026-01-10 22:00"))
    other = PEER.model_copy(update={"name": "other"})
    runs.decide(settings(PEER, other, **NIGHTLY), at("2026-01-10 22:00"))
    assert nights(night) == []
    runs.decide(settings(PEER, other, nightly_source="other", **NIGHTLY), at("2026-01-10 22:00"))
    assert row(night, "nightly-20260109").source == "other"


def test_the_status_counts_studies_images_and_reasons(night, runs):
    failed_in_a_worker(night)
    found = run_status(night.database, "march", NOW + timedelta(minutes=1))
    assert (found.total, found.ended, found.images) == (2, 2, 1)
    assert found.failed == {"error": 1, "missing_images": 1}
    assert found.as_json()["studies"]["failed"] == 2
    assert json.loads(json.dumps(found.as_json()))["held_bytes"] == 0
    assert any("failed, missing_images: 1" in line for line in found.lines())


def test_the_rate_is_of_the_last_minutes_and_says_how_long_it_takes(night, runs):
    night.run(*range(1, 31), begun_at=NOW)
    night.settings = night.settings.model_copy(update={"retrievals": 99})
    for second in range(10):
        night.claim(now=NOW + timedelta(seconds=6 * second))
    found = run_status(night.database, "march", NOW + timedelta(seconds=60))
    assert found.studies_per_minute == pytest.approx(9, rel=0.2)
    assert found.eta_s == pytest.approx(60 * 30 / found.studies_per_minute)


def test_a_run_that_nobody_fetches_says_so(night, runs):
    night.run(1, begun_at=NOW)
    assert run_status(night.database, "march", NOW + timedelta(seconds=10)).rests_because is None
    assert "is the node up" in run_status(night.database, "march", NOW + timedelta(minutes=2)).rests_because


def test_all_runs_are_told_the_latest_first(night, runs):
    night.run(1, name="first")
    night.run(1, name="second")
    assert [one.name for one in all_runs(night.database, NOW)] == ["second", "first"]
