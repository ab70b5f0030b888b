"""The role that fetches, with the time given as a value: nights, windows, budgets, a slow PACS, one that fails."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from dicom_node.config import Settings
from dicom_node.database import Database
from dicom_node.domain import Origin
from dicom_node.retrospective.fetching import Fetching
from dicom_node.retrospective.runs import Runs
from dicom_node.retrospective.tables import RunRow, RunStudyRow
from dicom_node.retrospective.ways import Fetched
from tests.archives_scp import Pacs, study
from tests.cohort_factories import Night

WAIT = threading.Event()


class Clock:
    """Vienna's winter time as a value."""

    def __init__(self, text):
        self.now = datetime.fromisoformat(text).replace(tzinfo=UTC) - timedelta(hours=1)

    def __call__(self):
        return self.now

    def to(self, text):
        self.now = datetime.fromisoformat(text).replace(tzinfo=UTC) - timedelta(hours=1)


class Courier:
    """Brings what is missing, or not; takes `seconds` for it."""

    def __init__(self, night):
        self._night = night
        self.seconds, self.fault, self.brings = 1.0, None, True

    def fetch(self, peer, run_study_id, study_instance_uid, missing, still_missing, on_way):
        on_way("get")
        if self.brings:
            for _, uid in missing:
                self._night.arrive(uid, origin=Origin.FETCHED, run_study_id=run_study_id)
        return Fetched("get: as told", self.fault, self.seconds)


class Desk:
    """A PACS with three studies of each of some days, and the node that fetches from it."""

    def __init__(self, folder, database, pacs, **changed):
        self.night = Night(folder, database)
        values = {"window": "22:00-06:00", "time_zone": "Europe/Vienna", "pause_s": 60, "pause_max_s": 300} | changed
        self.settings = Settings(
            peers=(pacs.peer(),), network_timeout_s=3, retry_base_s=60, retrospective=values, database_url=database.url
        )
        self.clock = Clock("2026-01-10 23:00")
        self.courier = Courier(self.night)
        self.runs = Runs(database)
        self.rung = []
        self.fetching = Fetching(self.settings, database, self.courier, self.clock, lambda: self.rung.append(True))
        self.database = database

    def step(self):
        """The sweep decides, the role plans and fetches one study at most, and a worker screens it."""
        self.runs.decide(self.settings, self.clock.now)
        done = self.fetching.plan_next(WAIT)
        self.runs.decide(self.settings, self.clock.now)
        done += self.fetching.fetch_next(WAIT)
        while self.night.screen() is not None:
            pass
        self.night.settle()
        return done

    def states(self):
        with self.database.read() as session:
            return [row.state for row in session.scalars(select(RunStudyRow).order_by(RunStudyRow.id))]

    def run(self):
        with self.database.read() as session:
            return session.scalars(select(RunRow).order_by(RunRow.id.desc())).first()


@pytest.fixture
def pacs():
    held = [
        study(number, StudyInstanceUID=f"1.3.{number}", StudyDate=f"202601{6 + number // 10:02d}")
        for day in range(7)
        for number in range(10 * day + 1, 10 * day + 4)
    ]
    with Pacs(held) as found:
        yield found


@pytest.fixture
def desk(tmp_path, pacs):
    database = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    database.upgrade()

    def make(**changed):
        return Desk(tmp_path, database, pacs, **changed)

    yield make
    database.close()


def test_a_night_takes_yesterday_s_studies_stops_at_its_end_and_the_next_one_goes_on(desk):
    node = desk(nightly=True)
    node.clock.to("2026-01-10 21:59")
    assert node.step() == 0
    node.clock.to("2026-01-10 22:00")
    while node.step():
        pass
    assert node.run().name == "nightly-20260109"
    assert node.states() == ["done"] * 3
    node.runs.decide(node.settings, node.clock.now)
    assert node.run().state == "ended"
    node.clock.to("2026-01-11 22:00")
    assert node.step() == 2  # planned, and the first study
    assert node.run().name == "nightly-20260110"
    node.clock.to("2026-01-12 06:00")
    assert node.step() == 0
    assert node.states() == ["done"] * 4 + ["found"] * 2
    node.clock.to("2026-01-12 22:00")
    while node.step():
        pass
    assert node.states() == ["done"] * 9  # the rest of that night, and the next day's


def test_the_role_stops_when_the_window_closes_though_the_sweep_has_not_looked(desk):
    node = desk()
    node.night.run(1, 2)
    node.runs.decide(node.settings, node.clock.now)
    assert node.fetching.fetch_next(WAIT) == 1
    node.clock.to("2026-01-11 06:00")
    assert node.run().rests_because is None
    assert node.fetching.fetch_next(WAIT) == 0


def test_a_pacs_that_fails_pauses_the_run_and_costs_no_study_an_attempt(desk, pacs):
    node = desk()
    node.night.run(1)
    pacs.fault = lambda *_: iter([(0xC001, None)])
    assert node.step() == 1
    assert node.states() == ["found"]
    assert node.night.study(1).attempts == 0
    assert "answered C-FIND at SERIES level with 0xC001" in node.run().rests_because
    assert node.step() == 0
    pacs.fault = None
    node.clock.now += timedelta(seconds=61)
    assert node.step() == 1
    assert node.states() == ["done"]
    assert node.run().faults == 0


def test_three_slow_studies_in_a_row_are_a_pause(desk):
    node = desk(slow_s=10)
    node.night.run(1, 2, 3, 11, 12)
    node.courier.seconds = 11.0
    assert [node.step() for _ in range(4)] == [1, 1, 1, 0]
    assert "3 studies in a row took longer than slow_s = 10" in node.run().rests_because
    node.clock.now += timedelta(seconds=61)
    assert node.step() == 1
    assert node.run().rests_because is None


def test_a_study_that_does_not_come_is_tried_again_and_then_failed_and_the_others_go_on(desk):
    node = desk(pause_s=1, pause_max_s=1)
    node.night.run(1, 2)
    node.courier.brings = False
    assert node.step() == 1
    assert node.states() == ["found", "found"]
    assert node.rung == []
    node.courier.brings = True
    assert node.step() == 1
    assert node.states() == ["found", "done"]
    assert len(node.rung) == 1  # a worker hears of it
    node.courier.brings = False
    for _ in range(2):
        node.clock.now += timedelta(minutes=10)
        assert node.step() == 1
    failed = node.night.study(1)
    assert (failed.state, failed.reason) == ("failed", "missing_images")
    assert failed.detail == "1 of 1 images did not come: get: as told"


def test_a_study_that_is_gone_from_the_pacs_is_failed_in_the_end(desk, pacs):
    node = desk()
    node.night.run(1)
    pacs.series["1.3.1"] = []
    for _ in range(3):
        node.clock.now += timedelta(minutes=10)
        node.step()
    assert node.night.study(1).reason == "no_images"


def test_a_fault_of_every_way_pauses_the_run(desk):
    node = desk()
    node.night.run(1, 2)
    node.courier.brings, node.courier.fault = False, "get: pacs does not answer"
    assert node.step() == 1
    assert node.step() == 0
    assert "get: pacs does not answer" in node.run().rests_because


def test_a_night_s_plan_that_fails_is_tried_again_after_a_pause(desk, pacs, monkeypatch):
    monkeypatch.setattr("dicom_node.retrospective.dicom_query._TRIES", 1)
    node = desk(nightly=True)
    pacs.fault = lambda *_: iter([(0xC001, None)])
    node.runs.decide(node.settings, node.clock.now)
    with pytest.raises(Exception, match="0xC001"):
        node.fetching.plan_next(WAIT)
    asked = len(pacs.queries)
    assert node.fetching.plan_next(WAIT) == 0
    assert len(pacs.queries) == asked
    pacs.fault = None
    node.clock.now += timedelta(seconds=61)
    assert node.fetching.plan_next(WAIT) == 1
    assert node.run().state == "running"


def test_a_study_at_hand_is_given_back_when_the_node_is_stopped(desk):
    node = desk()
    node.night.run(1)
    node.runs.decide(node.settings, node.clock.now)
    stopped = threading.Event()
    stopped.set()
    node.courier.brings = False
    assert node.fetching.fetch_next(stopped) == 1
    assert (node.night.study(1).state, node.night.study(1).attempts) == ("found", 0)


def test_nothing_is_fetched_while_a_live_image_waits_for_a_worker(desk):
    node = desk(nightly=True)
    node.clock.to("2026-01-10 22:00")
    node.runs.decide(node.settings, node.clock.now)
    node.fetching.plan_next(WAIT)
    node.runs.decide(node.settings, node.clock.now)
    node.night.arrive("1.2.99.1")
    assert node.fetching.fetch_next(WAIT) == 0
    node.night.screen()
    assert node.fetching.fetch_next(WAIT) == 1
