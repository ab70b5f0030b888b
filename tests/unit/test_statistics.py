import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from dicom_node.evaluation import bootstrap, statistics
from training.data.manifest import Picture
from training.evaluation.measures import measure
from training.evaluation.rows import Rows, rows_of
from training.papers.paper import KINDS, Measure

CLASSES = ("covid19", "normal", "pneumonia")


def drawn(n: int = 300, seed: int = 0, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and a truth that they tell something of."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.3
    return np.round(rng.normal(positive, 1.0), decimals), positive


def alone(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def test_98_of_100_means_93_to_99_8_percent():
    found = statistics.proportion(98, 100)
    assert found is not None
    assert (round(found["low"], 3), round(found["high"], 3)) == (0.930, 0.998)
    assert found["wilson"] == pytest.approx(list(binomtest(98, 100).proportion_ci(method="wilson")))
    assert [round(limit, 3) for limit in found["wilson"]] == [0.930, 0.994]
    assert statistics.proportion(0, 0) is None


def test_minaee_s_98_percent_of_100_images_is_good_to_2_7_percent():
    found = statistics.proportion(98, 100)
    assert found is not None
    assert round(100 * found["normal"], 1) == 2.7
    # and the specificities of Table 6, of 3,000 images
    for share, half_width in ((0.907, 1.1), (0.896, 1.1), (0.929, 0.9), (0.751, 1.5)):
        assert 100 * statistics.normal_half_width(share, 3000) == pytest.approx(half_width, abs=0.1)


def test_at_a_prevalence_of_one_percent_nine_of_a_hundred_flagged_are_ill():
    rare, *_, common = statistics.predictive_values(0.98, 0.90)
    assert rare["ppv"] == pytest.approx(0.09, abs=0.001)
    assert rare["npv"] == pytest.approx(0.9998, abs=1e-4)
    assert common["prevalence"] == 0.30
    assert common["ppv"] == pytest.approx(0.98 * 0.3 / (0.98 * 0.3 + 0.1 * 0.7))
    assert statistics.predictive_values(0.0, 1.0)[0]["ppv"] is None


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_the_weighted_figures_are_scikit_learn_s(decimals):
    scores, positive = drawn(decimals=decimals)
    weights = np.random.default_rng(1).integers(0, 4, (20, len(scores))).astype(float)
    areas = bootstrap.weighted_auc(scores, positive)(weights)
    precisions = bootstrap.weighted_average_precision(scores, positive)(weights)
    for weight, area, precision in zip(weights, areas, precisions, strict=True):
        assert area == pytest.approx(roc_auc_score(positive, scores, sample_weight=weight), abs=1e-12)
        assert precision == pytest.approx(average_precision_score(positive, scores, sample_weight=weight), abs=1e-12)


def test_weighted_confusions_give_scikit_learn_s_macro_figures():
    rng = np.random.default_rng(2)
    true, predicted = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    weights = rng.integers(0, 4, (10, 200)).astype(float)
    matrices = bootstrap.weighted_confusion(true, predicted, 3)(weights)
    by_class = statistics.by_class(matrices)
    for i, weight in enumerate(weights):
        assert (matrices[i] == confusion_matrix(true, predicted, sample_weight=weight)).all()
        for place, score in enumerate((precision_score, recall_score, f1_score)):
            assert by_class[place][i].mean() == pytest.approx(
                score(true, predicted, average="macro", sample_weight=weight)
            )


def test_two_thousand_draws_of_five_thousand_images_take_seconds():
    scores, positive = drawn(5000)
    started = time.perf_counter()
    found = statistics.auc(scores, positive, alone(5000))
    assert time.perf_counter() - started < 10
    assert found is not None
    # Hanley and McNeil 1982: the error of an area of 0.76 with 1,500 and 3,500 images is 0.0075.
    assert found["value"] == pytest.approx(0.76, abs=0.02)
    assert (found["high"] - found["low"]) / (2 * 1.96) == pytest.approx(0.0075, rel=0.2)


def test_copies_of_an_image_of_the_same_patient_do_not_narrow_the_interval():
    scores, positive = drawn(60)
    for figure in (statistics.auc, statistics.average_precision):
        single = figure(scores, positive, alone(60), resamples=500)
        copied = figure(np.repeat(scores, 4), np.repeat(positive, 4), [str(i // 4) for i in range(240)], resamples=500)
        assert single is not None
        assert copied is not None
        assert copied["value"] == pytest.approx(single["value"])
        assert copied["high"] - copied["low"] == pytest.approx(single["high"] - single["low"], rel=0.2)


def test_the_interval_of_a_mean_is_the_normal_one_where_there_are_many_images():
    values = np.random.default_rng(3).normal(2.0, 3.0, 2000)
    found = statistics.mean(values, alone(2000))
    assert found is not None
    assert found["value"] == values.mean()
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 3 / np.sqrt(2000), rel=0.1)
    assert statistics.mean(values[:0], []) is None


def test_a_paired_difference_is_surer_than_its_parts():
    scores, positive = drawn()
    worse = scores + np.random.default_rng(4).normal(0, 0.3, len(scores))
    one, both = (
        statistics.auc(scores, positive, alone(300)),
        statistics.auc_difference(scores, worse, positive, alone(300)),
    )
    assert one is not None
    assert both is not None
    assert both["value"] == pytest.approx(roc_auc_score(positive, scores) - roc_auc_score(positive, worse))
    assert both["high"] - both["low"] < one["high"] - one["low"]
    same = statistics.auc_difference(scores, scores, positive, alone(300))
    assert same is not None
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)


def test_one_class_alone_has_no_area():
    one_class = np.ones(3, dtype=bool)
    for positive in (one_class, ~one_class):
        scores = np.array([0.1, 0.2, 0.3])
        assert statistics.auc(scores, positive, alone(3)) is None
        assert statistics.average_precision(scores, positive, alone(3)) is None
        assert statistics.auc_difference(scores, scores, positive, alone(3)) is None
        assert statistics.roc(scores, positive) is None
        assert statistics.precision_recall(scores, positive) is None
        assert statistics.calibration(scores, positive) is None


def test_a_kept_curve_has_few_points_and_the_same_area():
    scores, positive = drawn(5000, decimals=8)
    curve = statistics.roc(scores, positive)
    assert curve is not None
    assert len(curve["x"]) <= statistics.POINTS
    assert (curve["x"][0], curve["y"][0], curve["x"][-1], curve["y"][-1]) == (0, 0, 1, 1)
    assert np.trapezoid(curve["y"], curve["x"]) == pytest.approx(roc_auc_score(positive, scores), abs=0.003)
    curve = statistics.precision_recall(scores, positive)
    assert curve is not None
    assert len(curve["x"]) <= statistics.POINTS
    assert curve["x"] == sorted(curve["x"])
    assert np.trapezoid(curve["y"], curve["x"]) == pytest.approx(average_precision_score(positive, scores), abs=0.01)


def test_a_histogram_counts_every_image_once():
    scores, positive = drawn()
    found = statistics.histogram(scores, np.where(positive, "positive", "negative").tolist())
    assert {name: sum(counts) for name, counts in found["counts"].items()} == {
        "negative": int((~positive).sum()),
        "positive": int(positive.sum()),
    }
    assert len(found["edges"]) == statistics.BINS + 1


@pytest.mark.parametrize("score", [0.0, 0.5, -3e6, 1e300])
def test_scores_that_hardly_differ_have_a_histogram(score):
    scores = np.array([score, np.nextafter(score, np.inf), score])
    found = statistics.histogram(scores, ["a", "a", "b"])
    assert {name: sum(counts) for name, counts in found["counts"].items()} == {"a": 2, "b": 1}
    assert (np.diff(found["edges"]) > 0).all()
    assert statistics.histogram(np.array([1e-12, 2e-12]), ["a", "b"])["edges"][0] == 1e-12  # these differ twofold


def test_operating_points_keep_what_they_promise():
    probability = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    positive = np.array([False, False, True, False, True, False, True, True])
    points = statistics.operating_points(probability, positive, 0.95)
    assert points["high-sensitivity"] == {"threshold": pytest.approx(0.25), "sensitivity": 1.0, "specificity": 0.5}
    assert points["balanced"]["sensitivity"] + points["balanced"]["specificity"] == 1.5


@pytest.mark.parametrize("least", [0.5, 0.9, 1.0])
def test_the_chosen_thresholds_are_the_best_of_all(least):
    scores, positive = drawn(decimals=1)
    points = statistics.operating_points(scores, positive, least)
    tried = [
        ((scores >= t)[positive].mean(), (scores < t)[~positive].mean()) for t in np.linspace(scores.min(), 5, 2000)
    ]
    assert points["balanced"]["sensitivity"] + points["balanced"]["specificity"] == pytest.approx(max(map(sum, tried)))
    assert points["high-sensitivity"]["specificity"] == pytest.approx(max(b for a, b in tried if a >= least))
    for point in points.values():
        found = statistics.at_thresholds(scores, positive, point["threshold"], "on these images")
        assert found["sensitivity"]["value"] == point["sensitivity"]
        assert found["specificity"]["value"] == pytest.approx(point["specificity"])
        assert np.abs(scores - point["threshold"]).min() > 0.01, "a threshold lies between scores"


def test_each_image_can_have_its_own_threshold():
    found = statistics.at_thresholds(
        np.array([0.4, 0.4, 0.6]), np.array([True, True, False]), np.array([0.3, 0.5, 0.5]), "by fold"
    )
    assert found["thresholds"] == [0.3, 0.5]
    assert found["sensitivity"]["value"] == 0.5
    assert found["specificity"]["value"] == 0.0
    none_negative = statistics.at_thresholds(np.array([0.4]), np.array([True]), 0.1, "")
    assert none_negative["specificity"] is None
    assert none_negative["predictive_values"] == []


def test_predicted_classes_are_scikit_learn_s():
    rng = np.random.default_rng(5)
    true = rng.integers(0, 3, 250)
    predicted = np.where(rng.random(250) < 0.6, true, rng.integers(0, 2, 250))
    found = statistics.predicted_classes(true, predicted, CLASSES, alone(250), resamples=200)
    assert found["confusion"] == confusion_matrix(true, predicted).tolist()
    assert found["accuracy"]["value"] == accuracy_score(true, predicted)
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert found["macro"][name]["value"] == pytest.approx(score(true, predicted, average="macro"))
        assert found["macro"][name]["low"] < found["macro"][name]["value"] < found["macro"][name]["high"]
        each = [found["per_class"][c][name]["value"] for c in CLASSES]
        assert each == pytest.approx(score(true, predicted, average=None).tolist())


def test_a_class_that_is_never_predicted_has_no_precision():
    found = statistics.predicted_classes(np.array([0, 1]), np.array([0, 0]), ("a", "b"), alone(2), resamples=10)
    assert found["per_class"]["b"]["precision"] is None
    assert found["per_class"]["b"]["recall"]["value"] == 0
    assert found["macro"]["precision"]["value"] == 0.25


def test_a_perfect_forecast_has_no_calibration_error():
    assert statistics.calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == {"brier": 0.0, "ece": 0.0}
    assert statistics.calibration_error(np.full(4, 0.5), np.array([True, True, True, False]))["ece"] == pytest.approx(
        0.25
    )


def test_a_probability_that_is_right_recalibrates_to_itself():
    rng = np.random.default_rng(6)
    probability = rng.uniform(0.02, 0.98, 20_000)
    positive = rng.random(20_000) < probability
    found = statistics.calibration(probability, positive)
    assert found is not None
    assert (found["slope"], found["intercept"]) == (pytest.approx(1, abs=0.05), pytest.approx(0, abs=0.05))
    assert found["ece"] < 0.02
    assert found["brier"] == pytest.approx(np.mean((probability - positive) ** 2))
    # twice as sure as it may be: the slope halves
    logits = 2 * np.log(probability / (1 - probability)) + 1
    slope, intercept = statistics.recalibration(1 / (1 + np.exp(-logits)), positive)
    assert (slope, intercept) == (pytest.approx(0.5, abs=0.03), pytest.approx(-0.5, abs=0.05))


def test_probabilities_that_part_the_classes_have_no_slope():
    found = statistics.calibration(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    assert found is not None
    assert found["slope"] is None
    assert found["intercept"] is None


def test_the_net_benefit_of_the_decision_curve_is_worked_out_by_hand():
    positive = np.array([True, True, False, False, False])
    at, model, everything = statistics.decision(np.array([0.9, 0.4, 0.6, 0.1, 0.1]), positive)
    half = int(np.argmin(np.abs(at - 0.5)))
    assert model[half] == pytest.approx(1 / 5 - 1 / 5)  # one true, one false positive at odds of 1
    assert everything[half] == pytest.approx(2 / 5 - 3 / 5)
    fifth = int(np.argmin(np.abs(at - 0.2)))
    assert model[fifth] == pytest.approx(2 / 5 - 1 / 5 / 4)


def test_the_mean_over_the_runs_has_the_sample_s_deviation():
    assert statistics.of_runs([0.8, None, 0.9, 1.0]) == {
        "values": [0.8, 0.9, 1.0],
        "mean": pytest.approx(0.9),
        "deviation": pytest.approx(0.1),
    }
    assert statistics.of_runs([0.5])["deviation"] is None
    assert statistics.of_runs([None]) is None


def test_plain_values_hold_no_nan():
    found = statistics.finite({"a": [np.float64("nan"), np.int64(3)], 2: (float("inf"), "x", None, True)})
    assert found == {"a": [None, 3], "2": [None, "x", None, True]}


# Measures


def rows(n: int = 400, runs: int = 2) -> Rows:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 3, n)
    z = rng.normal(0, 1, (n, 3)) + 1.5 * np.eye(3)[labels]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    ids = np.array(alone(n))
    return Rows(
        np.array([f"split{i % runs}" for i in range(n)]),
        ids,
        ids,
        ids,
        labels,
        CLASSES,
        {f"p_{name}": p[:, i] for i, name in enumerate(CLASSES)},
    )


RECORD = {
    "recipe": {"score": "p_covid19", "classes": list(CLASSES)},
    "runs": [{"train_by_class": {"covid19": 84, "normal": 10}}, {"train_by_class": {"covid19": 86, "normal": 10}}],
}


def ask(kind: str, found: Rows | None = None, **given: object) -> dict:
    figure = measure(RECORD, rows() if found is None else found, Measure(kind, **given), resamples=100)
    assert figure is not None
    return figure


def test_every_kind_of_measure_gives_a_figure():
    for kind in KINDS:
        figure = ask(kind, at=0.5, predicted="normal")
        assert figure["of_runs"] is not None, kind
        if "images" not in kind and kind != "patients":
            assert figure["low"] <= figure["value"] <= figure["high"], kind


def test_measures_equal_scikit_learn():
    test = rows()
    predicted, covid = test.probabilities.argmax(axis=1), test.labels == 0
    score = test.column("p_covid19")
    assert ask("auc")["value"] == roc_auc_score(covid, score)
    assert ask("auc", positive="normal", score="p_normal")["value"] == roc_auc_score(
        test.labels == 1, test.column("p_normal")
    )
    assert ask("sensitivity", at=0.4)["value"] == recall_score(covid, score >= 0.4)
    assert ask("specificity", at=0.4)["value"] == recall_score(~covid, score < 0.4)
    assert ask("accuracy")["value"] == accuracy_score(test.labels, predicted)
    for kind, figure in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert ask(kind, positive="")["value"] == pytest.approx(figure(test.labels, predicted, average="macro"))
        assert ask(kind)["value"] == pytest.approx(figure(covid, predicted == 0))
    assert ask("confusion", predicted="pneumonia")["value"] == confusion_matrix(test.labels, predicted)[0, 2]
    assert ask("mean score")["value"] == pytest.approx(score[covid].mean())
    assert ask("loss", positive="")["value"] == pytest.approx(log_loss(test.labels, test.probabilities))
    assert ask("images")["value"] == covid.sum()
    assert ask("images", positive="")["value"] == 400


def test_the_best_specificity_at_a_sensitivity():
    test = rows()
    covid, score = test.labels == 0, test.column("p_covid19")
    reached = ask("sensitivity at sensitivity", at=0.9)["value"]
    assert reached >= 0.9
    threshold = max(t for t in score if (score[covid] >= t).mean() >= 0.9)
    assert ask("specificity at sensitivity", at=0.9)["value"] == (score[~covid] < threshold).mean()


def test_keras_micro_precision_counts_every_probability_of_a_half_or_more():
    p = np.array([[0.5, 0.5, 0.0], [0.6, 0.2, 0.2], [0.4, 0.3, 0.3], [0.1, 0.8, 0.1]])
    ids = np.array(alone(4))
    scores = {f"p_{c}": p[:, i] for i, c in enumerate(CLASSES)}
    test = Rows(ids, ids, ids, ids, np.array([0, 0, 0, 2]), CLASSES, scores)
    found = ask("micro precision", test, at=0.5, positive="")
    assert (found["hits"], found["n"]) == (2, 4)
    found = ask("micro precision", test, at=0.5)
    assert (found["hits"], found["n"]) == (2, 3)
    found = ask("micro recall", test, at=0.5)
    assert (found["hits"], found["n"]) == (2, 3)


def test_training_images_are_the_mean_over_the_runs():
    found = ask("training images")
    assert found["value"] == 85
    assert found["of_runs"]["values"] == [84, 86]
    assert ask("training images", positive="")["value"] == 95


def test_a_patient_of_several_images_counts_once():
    test = replace(rows(), patients=np.array([str(i // 4) for i in range(400)]))
    expected = len(set(test.patients[test.labels == 0].tolist()))
    found = ask("patients", test)
    assert (found["value"], found["n"]) == (expected, (test.labels == 0).sum())
    assert expected < 100


def test_figures_of_runs_are_those_of_each_run():
    test = rows()
    found = ask("auc")["of_runs"]
    for run, value in zip(test.run_names, found["values"], strict=True):
        part = test.chosen(test.runs == run)
        assert value == roc_auc_score(part.labels == 0, part.column("p_covid19"))


def test_a_network_without_class_probabilities_has_no_accuracy():
    ids = np.array(alone(2))
    test = Rows(ids, ids, ids, ids, np.array([0, 1]), CLASSES, {"error": np.array([1.0, 2.0])})
    for kind in ("accuracy", "precision", "confusion", "micro recall", "loss"):
        assert measure(RECORD, test, Measure(kind, at=0.5, predicted="normal")) is None
    with pytest.raises(ValueError, match="no score 'p_avg'; the scores are error"):
        measure(RECORD, test, Measure("auc", score="p_avg"))
    with pytest.raises(ValueError, match="not known"):
        measure(RECORD, test, Measure("kappa"))
    assert test.column("-error").tolist() == [-1.0, -2.0]


def test_an_image_that_the_manifest_has_not_is_refused():
    picture = Picture("a", Path("a.png"), "train", "cohen", "p", "covid19")
    scores = {"one": {"a": {"p_covid19": 0.5}}}
    labels = {"one": {"a": "covid19"}}
    assert rows_of(RECORD, scores, labels, [picture]).labels.tolist() == [0]
    twins = [replace(picture, image_id=name, patient_id=name, cluster="near") for name in "ab"]
    scores, labels = ({"one": dict.fromkeys("ab", each["one"]["a"])} for each in (scores, labels))
    both = rows_of(RECORD, scores, labels, twins)
    assert len(set(both.patients)) == 2
    assert len(set(both.groups)) == 1
    with pytest.raises(ValueError, match="image a was scored but is not in the manifest"):
        rows_of(RECORD, scores, labels, [])
