"""A plan stands in the ledger: day by day, each study once, gone on with where it was broken off."""

from contextlib import contextmanager
from datetime import date

import pytest
from sqlalchemy import select

from dicom_node.config import Peer, Settings
from dicom_node.domain import Origin
from dicom_node.retrospective.cohort import Asked, Criteria
from dicom_node.retrospective.planning import plan
from dicom_node.retrospective.query import FoundStudy, QueryError
from dicom_node.retrospective.runs import RunError
from dicom_node.retrospective.tables import RunDayRow, RunRow, RunStudyRow
from tests.cohort_factories import Night

PEER = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=104, retrieve=("move",))
MARCH = Criteria(date(2026, 3, 1), date(2026, 3, 4))


class Archive:
    """Says what it holds of a day, or fails on one."""

    def __init__(self, per_day=2, fails_on=None):
        self.per_day, self.fails_on, self.asked, self.skipped = per_day, fails_on, [], 0
        self.numbers, self.cut_off = {"A1": 1, "A2": 2, "P1": 1}, ()

    @contextmanager
    def __call__(self, peer, settings):
        yield self

    def studies_of_day(self, day, criteria):
        self.asked.append(day.day)
        if day.day == self.fails_on:
            raise QueryError("pacs ended the association")
        return [self.study(day, number) for number in range(self.per_day)]

    def studies_of(self, keyword, value, criteria):
        if value in self.cut_off:
            raise QueryError("pacs does not tell all", permanent=True, of_one=True)
        number = self.numbers.get(value)
        return [] if number is None else [self.study(date(2026, 3, 1), number)]

    @staticmethod
    def study(day, number):
        return FoundStudy(f"1.3.{day.day}{number}", f"{day:%Y%m%d}", f"A{number}", "P1", 3)


def planned(database, archive=None, criteria=MARCH, name="march", **options):
    settings = Settings(database_url=database.url, peers=(PEER,), **options.pop("settings", {}))
    return plan(
        settings, database, name=name, criteria=criteria, source=PEER, open_finder=archive or Archive(), **options
    )


@pytest.fixture
def night(database, tmp_path):
    return Night(tmp_path, database)


def rows(database, model):
    with database.read() as session:
        return session.scalars(select(model)).all()


def test_a_plan_holds_the_studies_of_each_day_and_fetches_nothing(night):
    steps = []
    found = planned(night.database, on_step=lambda *step: steps.append(step))
    assert found.per_day == {"20260301": 2, "20260302": 2, "20260303": 2, "20260304": 2}
    assert (found.studies, found.instances, found.already_screened) == (8, 24, 0)
    assert {row.state for row in rows(night.database, RunStudyRow)} == {"found"}
    assert rows(night.database, RunRow)[0].state == "planned"
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert night.claim() is None


def test_a_plan_that_was_broken_off_goes_on_after_the_last_whole_day(night):
    with pytest.raises(QueryError):
        planned(night.database, Archive(fails_on=3))
    assert rows(night.database, RunRow)[0].state == "planning"
    assert len(rows(night.database, RunDayRow)) == 2
    again = Archive()
    found = planned(night.database, again)
    assert again.asked == [3, 4]
    assert found.studies == 8


def test_the_same_plan_once_more_doubles_nothing(night):
    planned(night.database)
    assert planned(night.database).studies == 8
    assert len(rows(night.database, RunStudyRow)) == 8


def test_another_cohort_needs_another_name(night):
    planned(night.database)
    with pytest.raises(RunError, match="another cohort"):
        planned(night.database, criteria=Criteria(date(2026, 3, 1), date(2026, 3, 5)))


def test_a_run_that_has_begun_is_not_planned_again(night):
    night.run(1)
    with pytest.raises(RunError, match="march is running: its cohort stands"):
        planned(night.database)


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "../x", "a/b", ".hidden", " "])
def test_a_name_that_is_none_is_refused(night, name):
    with pytest.raises(RunError, match="begins with a letter or digit"):
        planned(night.database, name=name)


def test_a_line_of_a_list_that_the_pacs_does_not_know_has_an_outcome(night):
    wanted = Criteria(accessions=(Asked(1, "A1"), Asked(2, "A7"), Asked(5, "A2")))
    found = planned(night.database, criteria=wanted)
    assert (found.studies, found.not_found) == (2, 1)
    planned(night.database, criteria=wanted)
    told = {row.asked_for: (row.state, row.reason) for row in rows(night.database, RunStudyRow)}
    assert told == {"line 1": ("found", None), "line 2": ("failed", "not_found"), "line 5": ("found", None)}


def test_a_line_that_is_found_later_has_one_outcome(night):
    wanted, archive = Criteria(accessions=(Asked(1, "A1"), Asked(2, "A7"))), Archive()
    planned(night.database, archive, criteria=wanted)
    archive.numbers["A7"] = 7
    found = planned(night.database, archive, criteria=wanted)
    assert (found.studies, found.not_found) == (2, 0)
    assert {row.asked_for: row.state for row in rows(night.database, RunStudyRow)} == {
        "line 1": "found",
        "line 2": "found",
    }


def test_lines_that_name_the_same_study_stand_at_it(night):
    archive = Archive()
    archive.numbers["P2"] = 1
    wanted = Criteria(patients=(Asked(1, "P1"), Asked(3, "P2")))
    for _ in range(2):
        assert planned(night.database, archive, criteria=wanted).studies == 1
        assert [row.asked_for for row in rows(night.database, RunStudyRow)] == ["line 1, line 3"]


def test_a_line_of_which_the_pacs_never_tells_all_fails_alone(night):
    archive = Archive()
    archive.cut_off = ("A1",)
    found = planned(night.database, archive, criteria=Criteria(accessions=(Asked(1, "A1"), Asked(2, "A2")), repeated=3))
    assert (found.studies, found.not_found, found.unanswered, found.repeated) == (1, 0, 1, 3)
    told = {row.asked_for: (row.state, row.reason) for row in rows(night.database, RunStudyRow)}
    assert told == {"line 1": ("failed", "query"), "line 2": ("found", None)}


def test_a_day_that_two_plans_ask_for_at_once_stands_once(night):
    archive = Archive(per_day=2)
    of_day = archive.studies_of_day

    def overtaken(day, criteria):
        archive.studies_of_day = of_day
        planned(night.database)
        return of_day(day, criteria)

    archive.studies_of_day = overtaken
    assert planned(night.database, archive).studies == 8
    assert len(rows(night.database, RunDayRow)) == 4


def test_with_identities_off_none_stands_in_the_ledger(night):
    wanted = Criteria(accessions=(Asked(1, "A1"),))
    planned(night.database, criteria=wanted, settings={"store_patient_identity": False})
    (study,) = rows(night.database, RunStudyRow)
    assert (study.accession_number, study.patient_id) == (None, None)
    assert "A1" not in str(rows(night.database, RunRow)[0].criteria)


def test_what_this_release_has_screened_is_told_and_not_counted_as_work(night):
    night.arrive("1.2.10.1")
    night.screen()
    night.arrive("1.2.11.1")
    first = planned(night.database)
    assert first.already_screened == 1
    night.arrive("1.2.10.2")  # of the same study, and without an answer
    assert planned(night.database).already_screened == 0
    night.screen()
    night.screen()
    assert planned(night.database).already_screened == 2
    assert planned(night.database, name="again", again=True).already_screened == 0


def test_estimates_say_from_what_they_are(night):
    first = planned(night.database)
    assert "assumed" in first.basis
    assert first.gigabytes == pytest.approx(8 * 1.3 * 0.01)
    night.run(77, name="earlier")
    claim, missing = night.begin(images=2)
    for uid in missing:
        night.arrive(uid, origin=Origin.MOVED)
    night.studies.retrieved(claim, 30.0)
    second = planned(night.database, name="later")
    assert "assumed" not in second.basis
    assert second.hours == pytest.approx(8 * 30 / 2 / 3600)
    assert second.gigabytes == pytest.approx(8 * 2 * len("1.2.77.1") / 1e9)
    assert second.nights == pytest.approx(second.hours / 8)
