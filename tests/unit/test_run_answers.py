"""What the ledger answers for a run, study by study, and what is counted of it."""

import pytest
from sqlalchemy import select

from dicom_node.combination import sigmoid
from dicom_node.domain import State, StudyState
from dicom_node.retrospective.report import answers as module
from dicom_node.retrospective.report.answers import study_answers
from dicom_node.retrospective.report.gathering import Gathered
from dicom_node.retrospective.report.summary import agreement, spreads
from dicom_node.tables import ScreeningRow
from tests.report_factories import BROKEN, BUNDLE, LATERAL, SCANNERS, WAITING, Cohort, film
from tests.result_factories import manifest


@pytest.fixture
def cohort(database):
    return Cohort(database)


def told(database, cohort):
    return {study.study_instance_uid: study for study in study_answers(database, cohort.run_id)}


def gathered(database, cohort, **given):
    found = Gathered("covid", **given)
    for study in study_answers(database, cohort.run_id):
        found.add(study)
    return found


def numbers(found):
    return {step.key: step.number for step in found.flow()}


def test_a_study_s_score_is_that_of_its_strongest_image_and_who_took_it_stands_beside(database, cohort):
    uid = cohort.study(film(-1.0), film(2.0, view="AP"), LATERAL, scanner=SCANNERS[2], patient="PID-1", accession="A1")
    study = told(database, cohort)[uid]
    image, answer = study.strongest("covid")
    assert answer.probability == pytest.approx(sigmoid(2.0))
    assert (image.view, image.scanner, image.sex, image.age) == ("AP", "Weitblick DR-7", "F", 50)
    assert (study.patient_id, study.accession_number) == ("PID-1", "A1")
    assert study.flagged("covid")


def test_a_study_of_which_every_image_was_declined_or_failed_has_no_score(database, cohort):
    uid = cohort.study(LATERAL, BROKEN)
    study = told(database, cohort)[uid]
    assert study.strongest("covid") is None
    assert study.decision("covid") is None


def test_what_failed_after_its_prediction_has_no_answer(database, cohort):
    uid = cohort.study(film(3.0, state=State.FAILED, reason="heatmap"))
    assert told(database, cohort)[uid].strongest("covid") is None


def test_of_screenings_that_failed_the_one_that_took_their_place_answers_and_no_later_one(database, cohort):
    uid = cohort.study(film(-3.0, state=State.FAILED, reason="heatmap"))
    with database.write() as session:
        first = session.scalars(select(ScreeningRow)).one()
        second = cohort.screening(session, first.instance_id, film(-1.0), 2)
        third = cohort.screening(session, first.instance_id, film(2.5), 3)
        first.replaced_by, second.replaced_by = second.id, third.id
    study = told(database, cohort)[uid]
    assert study.strongest("covid")[1].probability == pytest.approx(sigmoid(-1.0))
    assert len(study.images) == 1


def test_members_that_lie_apart_around_the_threshold_leave_it_undecided(database, cohort):
    uid = cohort.study(film(0.2, apart=4.0))
    study = told(database, cohort)[uid]
    assert study.decision("covid") == "indeterminate"
    assert not study.flagged("covid")
    # spread 2 over a bound of 2: nothing within 1 of the threshold's logit is decided
    assert study.strongest("covid")[1].reach == pytest.approx(1.0)


def test_a_study_with_a_flagged_image_is_flagged_though_its_strongest_is_undecided(database, cohort):
    uid = cohort.study(film(0.9, apart=9.0), film(0.8))
    study = told(database, cohort)[uid]
    assert study.strongest("covid")[1].decision == "indeterminate"
    assert study.decision("covid") == "flagged"


def test_long_runs_are_read_in_parts_and_none_is_lost_or_doubled(database, cohort, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 3)
    monkeypatch.setattr(module, "_KEYS", 2)
    uids = [cohort.study(film(number / 10), film(-1.0)) for number in range(8)]
    found = list(study_answers(database, cohort.run_id))
    assert [study.study_instance_uid for study in found] == uids
    assert [study.strongest("covid")[1].probability for study in found] == pytest.approx(
        [sigmoid(number / 10) for number in range(8)]
    )


def test_another_run_s_studies_are_not_told(database, cohort):
    other = Cohort(database, name="april")
    other.study(film(1.0))
    assert told(database, cohort) == {}


def test_the_flow_accounts_for_every_study_and_image(database, cohort):
    cohort.study(film(2.0), LATERAL)
    cohort.study(film(-2.0))
    cohort.study(film(0.1, apart=4.0), reason="already_screened")
    cohort.study(LATERAL)
    cohort.study(BROKEN, state=StudyState.FAILED, reason="bad_pixels")
    cohort.study(state=StudyState.FAILED, reason="incomplete", missing=2)
    cohort.study(state=StudyState.FOUND)
    cohort.study(state=StudyState.RETRIEVING, missing=3, unanswered=1)
    cohort.study(WAITING, state=StudyState.RETRIEVED)
    cohort.line()
    found = gathered(database, cohort, not_in_pacs=1)
    assert numbers(found) == {
        "studies": 9,
        "studies_waiting": 2,
        "studies_fetched": 4,
        "studies_already_screened": 1,
        "studies_failed": 2,
        "not_in_pacs": 1,
        "images": 8,
        "images_screened": 3,
        "images_declined": 2,
        "images_failed": 1,
        "images_waiting": 2,
        "images_not_fetched": 3,
        "images_never_came": 2,
        "studies_answered": 3,
        "flagged": 1,
        "indeterminate": 1,
        "not_flagged": 1,
        "studies_without_answer": 3,
    }
    assert found.declined == {"lateral": 2}
    assert found.failed == {"bad_pixels": 1}
    assert found.study_failures == {"bad_pixels": 1, "incomplete": 1}
    assert found.releases == {"starter 2024.1": 3}


def test_each_release_that_answered_is_named(database, cohort):
    cohort.study(film(1.0))
    cohort.use(BUNDLE.model_copy(update={"release": "2024.2"}))
    cohort.study(film(1.0), film(0.5))
    assert gathered(database, cohort).releases == {"starter 2024.1": 1, "starter 2024.2": 2}


def test_without_a_bound_of_disagreement_nothing_reaches_anywhere(database):
    cohort = Cohort(database, bundle=manifest(release="2024.3"))
    uid = cohort.study(film(0.2, apart=4.0))
    assert told(database, cohort)[uid].strongest("covid")[1].reach == 0


def test_days_are_told_one_by_one_and_many_of_them_by_month(database, cohort):
    for day in ("20260301", "20260301", "20260302"):
        cohort.study(film(1.0), day=day)
    found = gathered(database, cohort)
    assert [(one.group, one.studies, one.flagged) for one in spreads(found, "day")] == [
        ("2026-03-01", 2, 2),
        ("2026-03-02", 1, 1),
    ]
    for number in range(63):
        cohort.study(film(-1.0), day=f"2025{1 + number // 28:02d}{1 + number % 28:02d}")
    cohort.study(film(-1.0), day="")
    by_month = spreads(gathered(database, cohort), "day")
    assert [(one.group, one.studies, one.flagged) for one in by_month] == [
        ("no date", 1, 0),
        ("2025-01", 28, 0),
        ("2025-02", 28, 0),
        ("2025-03", 7, 0),
        ("2026-03", 3, 3),
    ]


def test_members_are_compared_over_the_images_that_most_of_them_answered(database, cohort):
    # zhang: 2, 1, -1, -2; basu: 1, 2, 1, -1. They are on the same side three times of four.
    for zhang, basu in ((2, 1), (1, 2), (-1, 1), (-2, -1)):
        cohort.study(film((zhang + basu) / 2, apart=zhang - basu))
    found = agreement(gathered(database, cohort))
    assert (found.members, found.images) == (("basu", "zhang"), 4)
    assert found.same_half[0][1] == found.same_side[1][0] == 0.75
    # ranks 4 3 2 1 and 2.5 4 2.5 1 (Pearson's correlation of them, by hand)
    assert found.correlation[0][1] == pytest.approx(3 / (5**0.5 * 4.5**0.5))


def test_a_member_that_always_says_the_same_has_no_correlation(database, cohort):
    for zhang in (1, 2, 3):
        cohort.study(film((zhang + 1) / 2, apart=zhang - 1))
    found = agreement(gathered(database, cohort))
    assert found.correlation[0][1] is None
