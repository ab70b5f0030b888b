"""The worklist's order: only upward, nothing starves, exempt locations keep theirs, what is read leaves."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from dicom_node.config import Worklist
from dicom_node.domain import Admission, DeclineReason, Origin, State
from dicom_node.worklist import listing
from dicom_node.worklist.arrivals import lead, words
from dicom_node.worklist.listing import Cursor, CursorError, Filters, count, mark_read, page
from dicom_node.worklist.tables import StudyRow, StudyWordRow
from tests.cohort_factories import Night
from tests.ledger_factories import received
from tests.result_factories import prediction

BEGIN = datetime(2026, 3, 1, 8, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SITE = ZoneInfo("UTC")


@pytest.fixture
def night(database, tmp_path):
    return Night(tmp_path, database)


def order(night, **filters):
    """The numbers of the studies as the worklist has them."""
    return [line.study.study_instance_uid.rpartition(".")[2] for line in lines(night, **filters)]


def lines(night, **filters):
    return page(night.database, Filters(**filters), SITE).lines


def come(night, *numbers, **changed):
    for number in numbers:
        night.arrive(f"1.2.{number}.1", **changed)


# A day in a department, with the time as a value.


def day_of_reading(results, policy, *, every_min, per_read_min):
    """When each of the studies that come one after the other is read, by the keys that the ledger keeps."""
    arrived = [BEGIN + number * every_min * MINUTE for number in range(len(results))]
    known = [at + delay * MINUTE for at, (_, delay) in zip(arrived, results, strict=True)]
    waiting, read, now, coming = [], {}, BEGIN, 0
    while len(read) < len(results):
        while coming < len(results) and arrived[coming] <= now:
            waiting.append(coming)
            coming += 1
        if waiting:
            due = {}
            for one in waiting:
                probability, _ = results[one]
                moved = probability is not None and known[one] <= now
                due[one] = arrived[one] - (lead(probability, policy) if moved else timedelta())
            first = min(waiting, key=lambda one: (due[one], one))
            waiting.remove(first)
            read[first] = now
        now += per_read_min * MINUTE
    return arrived, read


RESULTS = st.lists(st.tuples(st.one_of(st.none(), st.floats(0, 1)), st.integers(0, 5)), min_size=1, max_size=200)


@settings(max_examples=60)
@given(RESULTS, st.floats(0.25, 12), st.sampled_from([(2, 2), (2, 3), (3, 2), (5, 5)]))
def test_over_a_day_nothing_is_read_after_what_came_more_than_the_ageing_limit_later(results, hours, pace):
    policy = Worklist(ageing_hours=hours)
    arrived, read = day_of_reading(results, policy, every_min=pace[0], per_read_min=pace[1])
    limit = timedelta(hours=hours)
    for one, at in read.items():
        for other, other_at in read.items():
            if other_at < at:
                assert arrived[other] <= arrived[one] + limit


@settings(max_examples=60)
@given(RESULTS, st.floats(0.25, 12))
def test_over_a_day_in_which_readers_keep_up_nothing_waits_longer_than_the_ageing_limit(results, hours):
    arrived, read = day_of_reading(results, Worklist(ageing_hours=hours), every_min=4, per_read_min=3)
    assert max(read[one] - arrived[one] for one in read) <= timedelta(hours=hours)


@settings(max_examples=60)
@given(RESULTS)
def test_a_study_is_overtaken_by_none_but_those_that_were_moved_up(results):
    arrived, read = day_of_reading(results, Worklist(), every_min=2, per_read_min=3)
    for one, at in read.items():
        for other, other_at in read.items():
            if arrived[other] > arrived[one] and other_at < at:
                assert results[other][0] is not None


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_surer_of_two_flags_goes_before_and_neither_by_more_than_the_limit(one, other):
    policy = Worklist(ageing_hours=4)
    assert (lead(one, policy) >= lead(other, policy)) == (one >= other) or abs(one - other) < 1e-9
    assert timedelta(hours=3) <= lead(one, policy) <= timedelta(hours=4)


# The same in the ledger.


def test_a_flagged_study_that_arrives_last_stands_first(night):
    come(night, 10, 11, 12)
    for flagged in (False, False, True):
        night.screen(flagged=flagged)
    assert order(night) == ["12", "10", "11"]
    first = lines(night)[0]
    assert first.moved_up
    assert first.study.flagged
    assert first.study.probability == pytest.approx(0.9)
    assert first.results[0].flagged


def test_no_result_moves_a_study_down(night):
    come(night, 10, 11, 12)
    before = {line.study.study_instance_uid: line.study.due_at for line in lines(night)}
    night.screen()
    assert order(night) == ["10", "11", "12"]
    claim = night.claims.claim("worker", 60)
    night.claims.fail(claim, listing.CursorError("broken"))
    assert order(night) == ["10", "11", "12"]
    assert {line.study.study_instance_uid: line.study.due_at for line in lines(night)} == before
    assert [line.state for line in lines(night)] == [State.REPORTED, State.FAILED, State.WAITING]


def test_a_study_with_two_images_stands_where_the_stronger_of_them_moved_it_and_stays_there(night):
    come(night, 10, 11)
    night.arrive("1.2.11.2")
    night.screen()
    night.screen(flagged=True)
    assert order(night) == ["11", "10"]
    night.screen()  # its second image shows nothing
    assert order(night) == ["11", "10"]
    assert lines(night)[0].images == 2
    assert lines(night)[0].results[0].flagged


def test_locations_that_are_exempt_keep_their_order(night):
    policy = Worklist(fixed_locations=("ICU",))
    night.claims._policy = policy
    for number, location in ((10, "Ward"), (11, "ICU"), (12, "Ward")):
        night.ledger.record(
            received(
                sop_instance_uid=f"1.2.{number}.1",
                study_instance_uid=f"1.3.{number}",
                sha256=f"{number}" * 32,
                file=night.archive.store(str(number).encode()),
                location=location,
            )
        )
    for _ in range(3):
        night.screen(flagged=True)
    assert order(night) == ["10", "12", "11"]
    assert [line.moved_up for line in lines(night)] == [True, True, False]
    assert order(night, location="ICU") == ["11"]
    assert listing.locations(night.database) == ["ICU", "Ward"]


def test_questions_that_the_site_does_not_name_move_nothing_and_are_shown_all_the_same(night):
    night.claims._policy = Worklist(targets=("another",))
    come(night, 10, 11)
    night.screen()
    night.screen(flagged=True)
    assert order(night) == ["10", "11"]
    assert order(night, flagged=True) == ["11"]


def test_a_study_that_is_marked_read_leaves_and_comes_back_to_its_place_or_with_a_further_image_as_the_last(night):
    come(night, 10, 11, 12)
    now = datetime.now(UTC)
    assert mark_read(night.database, "1.3.11", "reader", now)
    assert not mark_read(night.database, "1.3.11", "another", now)
    assert not mark_read(night.database, "1.3.99", "reader", now)
    assert order(night) == ["10", "12"]
    assert [line.study.read_by for line in lines(night, read="read")] == ["reader"]
    mark_read(night.database, "1.3.11", "reader", now, read=False)
    assert order(night) == ["10", "11", "12"]
    mark_read(night.database, "1.3.11", "reader", now)
    night.arrive("1.2.11.1")  # the same once more is none
    assert order(night) == ["10", "12"]
    night.arrive("1.2.11.2")
    assert order(night) == ["10", "12", "11"]


def test_what_a_run_fetches_is_not_in_the_worklist_until_a_peer_sends_it(night):
    night.run(10)
    claim, _ = night.begin()
    night.arrive("1.2.10.1", origin=Origin.FETCHED, run_study_id=claim.study_id)
    night.studies.retrieved(claim, 1.0)
    night.screen(flagged=True)
    come(night, 11)
    night.screen()
    assert order(night) == ["11"]
    night.arrive("1.2.10.1")
    assert order(night) == ["10", "11"]  # the run's prediction stands, and moves the study up
    assert order(night, flagged=True) == ["10"]


def test_a_flag_counts_even_where_the_heatmap_cannot_be_made(night):
    come(night, 10, 11)
    night.screen()
    claim = night.claims.claim("worker", 60)
    night.claims.save_prediction(claim, prediction(0.9, 0.5, release=claim.manifest.release), None)
    night.claims.fail(claim, CursorError("no heatmap"))
    assert order(night) == ["11", "10"]


def test_a_declined_image_keeps_its_study_where_it_came(night):
    refused = Admission(reason=DeclineReason.LATERAL, view="lateral", body_part="chest", evidence=())
    come(night, 10)
    night.arrive("1.2.11.1", admission=refused)
    assert order(night) == ["10", "11"]
    assert lines(night)[1].reason == "lateral"
    assert lines(night)[1].results == ()


def test_a_study_that_an_older_listener_took_comes_with_its_result(night):
    come(night, 10, 11)
    with night.database.write() as session:
        for row in session.scalars(select(StudyWordRow)):
            session.delete(row)
        session.flush()
        session.delete(session.scalar(select(StudyRow).filter_by(study_instance_uid="1.3.10")))
    assert order(night) == ["11"]
    night.screen()
    assert order(night) == ["10", "11"]


# Pages and filters.


def test_pages_hold_every_study_once_in_the_order_of_the_whole(night):
    come(night, *range(10, 31))
    for number in range(21):
        night.screen(flagged=number % 3 == 0)
    whole = order(night)
    seen, after = [], None
    while True:
        part = page(night.database, Filters(), SITE, after=after, limit=4)
        seen += [line.study.study_instance_uid.rpartition(".")[2] for line in part.lines]
        if part.after is None:
            break
        after = Cursor.from_text(part.after.as_text())
        assert after == part.after
    assert seen == whole
    assert len(set(seen)) == 21
    assert count(night.database, Filters(), SITE) == 21


@pytest.mark.parametrize("mark", ["", "x", "1-", "-1", "9" * 40, "12345678901234567-1", "1٣0000000000000-1", "0-0"])
def test_a_mark_that_is_none_of_ours_is_refused(mark):
    with pytest.raises(CursorError, match="begin at the first page"):
        Cursor.from_text(mark)


def test_filters_leave_what_they_say(night):
    come(night, 10, 11, 12)
    night.screen(flagged=True)
    night.screen()
    assert order(night, flagged=True) == ["10"]
    assert order(night, flagged=False) == ["11", "12"]
    assert order(night, state=State.WAITING) == ["12"]
    assert order(night, modality="MR") == []
    today = datetime.now(UTC).date()
    assert len(order(night, day=today)) == 3
    assert order(night, day=today - timedelta(days=1)) == []
    assert order(night, day=date(1990, 1, 1)) == []


def test_a_study_is_found_by_the_beginnings_of_names_id_and_accession_number(night):
    for number, name, patient, accession in (
        (10, "MÜLLER^JÖRG", "P-77", "ACC1"),
        (11, "O'BRIEN^MARY ANN", "P-78", "ACC2"),
        (12, "Yamada^Tarou=山田^太郎", "X%_", "ACC3"),
    ):
        night.ledger.record(
            received(
                sop_instance_uid=f"1.2.{number}.1",
                study_instance_uid=f"1.3.{number}",
                sha256=f"{number}" * 32,
                file=night.archive.store(str(number).encode()),
                patient_name=name,
                patient_id=patient,
                accession_number=accession,
            )
        )
    wanted = {
        "mül": ["10"],
        "jörg müller": ["10"],
        "ann o'b": ["11"],
        "acc": ["10", "11", "12"],
        "p-7": ["10", "11"],
        "山田": ["12"],
        "x%": ["12"],
        "%": [],
        "örg": [],
    }
    assert {text: order(night, text=text) for text in wanted} == wanted


def test_words_are_those_that_people_type():
    assert words("DOE^JANE^^DR", None, "id 7") == ["7", "doe", "dr", "id", "jane"]
    assert words("x" * 100) == ["x" * 64]
