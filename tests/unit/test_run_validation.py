"""A run against labels: every figure equals one that is computed here by itself, and everything is counted once."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from dicom_node.domain import StudyState
from dicom_node.retrospective.report.answers import ImageAnswer, StudyAnswer, Told
from dicom_node.retrospective.report.gathering import Gathered
from dicom_node.retrospective.report.labels import read_labels
from dicom_node.retrospective.report.validation import Labelled, ValidationError, age_group, basis, validate

RNG = np.random.default_rng(5)


def cohort(count=240, share=0.3):
    positive = RNG.random(count) < share
    scores = np.clip(RNG.normal(np.where(positive, 0.62, 0.4), 0.17), 0.01, 0.99).round(3)
    return [
        Labelled(
            score=float(score),
            decision="flagged" if score >= 0.5 else "not_flagged",
            positive=bool(is_positive),
            patient=f"P{number // 3}",
            sex="MF"[number % 2],
            age=int(number % 90),
            view="PA" if number % 3 else "AP",
            scanner="rare" if number < 12 else "common",
            images=((float(score), 0.0),),
        )
        for number, (score, is_positive) in enumerate(zip(scores, positive, strict=True))
    ]


FOUND = cohort()
TRUTH = np.array([one.positive for one in FOUND])
SCORES = np.array([one.score for one in FOUND])
FIGURES = validate("covid19", FOUND, [0.5], 0.9, resamples=400)


def test_areas_are_scikit_learn_s():
    assert FIGURES.auc["value"] == pytest.approx(roc_auc_score(TRUTH, SCORES))
    assert FIGURES.average_precision["value"] == pytest.approx(average_precision_score(TRUTH, SCORES))
    assert FIGURES.calibration["brier"] == pytest.approx(brier_score_loss(TRUTH, SCORES))


def test_the_expected_calibration_error_is_that_of_ten_bins():
    gaps = []
    for low in np.arange(10) / 10:
        here = (low <= SCORES) & (low + 0.1 > SCORES)
        if here.any():
            gaps.append(here.mean() * abs(TRUTH[here].mean() - SCORES[here].mean()))
    assert FIGURES.calibration["ece"] == pytest.approx(sum(gaps), abs=1e-9)


def test_the_interval_of_the_area_draws_patients():
    """A plain loop over patients, with a generator of its own: the ends agree to the noise of 400 draws."""
    patients = np.array([one.patient for one in FOUND])
    names = np.unique(patients)
    rows = {name: np.flatnonzero(patients == name) for name in names}
    rng = np.random.default_rng(99)
    areas = []
    for _ in range(400):
        drawn = np.concatenate([rows[name] for name in rng.choice(names, len(names))])
        areas.append(roc_auc_score(TRUTH[drawn], SCORES[drawn]))
    low, high = np.percentile(areas, [2.5, 97.5])
    assert FIGURES.by_patient
    assert FIGURES.auc["low"] == pytest.approx(low, abs=0.015)
    assert FIGURES.auc["high"] == pytest.approx(high, abs=0.015)


def test_without_patients_the_study_is_drawn_and_it_is_said():
    found = validate("covid19", [one._replace(patient=None) for one in FOUND], [0.5], 0.9, resamples=50)
    assert not found.by_patient


@pytest.mark.parametrize("name", ["sensitivity", "specificity", "ppv", "npv"])
@pytest.mark.parametrize("point", ["current", "aimed"])
def test_shares_and_their_intervals_are_scipy_s(name, point):
    at = getattr(FIGURES, point)
    flagged = (0.5 if point == "current" else at.threshold) <= SCORES
    hits, of = {
        "sensitivity": (flagged & TRUTH, TRUTH),
        "specificity": (~flagged & ~TRUTH, ~TRUTH),
        "ppv": (flagged & TRUTH, flagged),
        "npv": (~flagged & ~TRUTH, ~flagged),
    }[name]
    figure = getattr(at, name)
    test = binomtest(int(hits.sum()), int(of.sum()))
    exact, wilson = test.proportion_ci(method="exact"), test.proportion_ci(method="wilson")
    assert (figure["hits"], figure["n"]) == (hits.sum(), of.sum())
    assert (figure["low"], figure["high"]) == pytest.approx((exact.low, exact.high))
    assert figure["wilson"] == pytest.approx([wilson.low, wilson.high])


@pytest.mark.parametrize("aimed", [0.5, 0.8, 0.95, 1.0])
def test_the_threshold_for_a_sensitivity_is_the_highest_that_reaches_it(aimed):
    found = validate("covid19", FOUND, [0.5], aimed, resamples=20)
    needed = math.ceil(aimed * TRUTH.sum() - 1e-9)
    reached = [threshold for threshold in np.unique(SCORES) if (SCORES[TRUTH] >= threshold).sum() >= needed]
    best = max(reached)
    assert found.aimed.sensitivity["value"] >= aimed
    assert np.array_equal(found.aimed.threshold <= SCORES, best <= SCORES)


def test_subgroups_are_measured_where_both_labels_have_ten():
    by_name = {(one.name, one.group): one for one in FIGURES.subgroups}
    here = np.array([one.sex == "F" for one in FOUND])
    women = by_name["sex", "F"]
    assert (women.studies, women.positive) == (here.sum(), TRUTH[here].sum())
    assert women.auc["value"] == pytest.approx(roc_auc_score(TRUTH[here], SCORES[here]))
    rare = by_name["scanner", "rare"]
    assert rare.studies == 12
    assert rare.auc is None
    assert sum(one.studies for one in FIGURES.subgroups if one.name == "age") == len(FOUND)


@pytest.mark.parametrize(
    ("age", "group"), [(0, "0-17"), (17, "0-17"), (18, "18-39"), (64, "40-64"), (65, "65+"), (None, "not stated")]
)
def test_ages_fall_into_groups(age, group):
    assert age_group(age) == group


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([], "no labelled study of the run has an answer"),
        ([one for one in FOUND if one.positive], "are positive: both are needed"),
        ([one for one in FOUND if not one.positive], "are negative: both are needed"),
    ],
)
def test_labels_that_bear_no_validation_are_told(found, told):
    with pytest.raises(ValidationError, match=told):
        validate("covid19", found, [0.5], 0.9)


def test_what_a_threshold_stands_on_is_told():
    told = basis("march", FIGURES)
    assert told.startswith(f"run march: 240 studies, {TRUTH.sum()} positive; sensitivity 0.9")
    assert "specificity 0." in told


def image(probability=None, decision="not_flagged", view="PA", **changed):
    targets = {} if probability is None else {"covid19": Told(probability, 0.5, decision)}
    values = {
        "sop_instance_uid": "1",
        "view": view,
        "sex": "F",
        "age": 50,
        "scanner": "S",
        "modality": "CR",
        "accession_number": None,
        "patient_id": "P",
        "state": "withheld" if targets else "declined",
        "reason": None if targets else "lateral",
        "release": "starter 2.0.0",
        "targets": targets,
    }
    return ImageAnswer(**(values | changed))


def study(number, *images, state=StudyState.DONE, reason=None):
    return StudyAnswer(f"1.{number}", "20260301", f"A{number}", "P", state, reason, images)


def gathered(*studies, truth=None):
    found = Gathered("covid19", truth)
    for one in studies:
        found.add(one)
    return found


def test_a_study_s_answer_is_its_strongest_image_s_and_it_is_flagged_where_any_is():
    one = study(1, image(0.3), image(0.8, "indeterminate"), image(0.6, "flagged"), image())
    assert one.strongest("covid19")[1].probability == 0.8
    assert one.decision("covid19") == "flagged"
    assert study(2, image(0.8, "indeterminate"), image(0.1)).decision("covid19") == "indeterminate"
    assert study(3, image()).decision("covid19") is None


def test_everything_is_counted_once():
    found = gathered(
        study(1, image(0.9, "flagged"), image()),
        study(2, image(0.1)),
        study(3, image(0.5, "indeterminate")),
        study(4, image()),
        study(5, state=StudyState.FAILED, reason="missing_images"),
        study(6, state=StudyState.FOUND),
    )
    flow = {step.key: step.number for step in found.flow()}
    assert (flow["studies"], flow["studies_waiting"], flow["studies_answered"]) == (6, 1, 3)
    assert (flow["flagged"], flow["indeterminate"], flow["not_flagged"]) == (1, 1, 1)
    assert (flow["images"], flow["images_screened"], flow["images_declined"]) == (5, 3, 2)
    assert dict(found.declined) == {"lateral": 2}
    assert found.study_failures["missing_images"] == 1


def test_the_flagged_studies_are_shown_the_highest_first_and_no_more_than_fit(monkeypatch):
    monkeypatch.setattr("dicom_node.retrospective.report.gathering.MOST_SHOWN", 3)
    found = gathered(*(study(number, image(number / 10, "flagged")) for number in range(1, 10)))
    assert [one.study_instance_uid for one in found.shown] == ["1.9", "1.8", "1.7"]


def test_labels_meet_their_studies(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("accession_number,label,patient_id\nA1,1,X\nA2,0,Y\nA4,1,Z\nA9,1,Z\n")
    truth = read_labels(file, "covid19", identity=True)
    found = gathered(
        study(1, image(0.9, "flagged")), study(2, image(0.1)), study(3, image(0.2)), study(4, image()), truth=truth
    )
    assert [(one.score, one.positive, one.patient) for one in found.labelled] == [(0.9, True, "X"), (0.1, False, "Y")]
    assert (found.without_answer, found.unlabelled, found.unknown_labels) == (1, 1, 1)
