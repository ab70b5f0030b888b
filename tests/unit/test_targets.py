"""What the questions of a bundle are read from, and how weights, straight lines and thresholds are fitted."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from dicom_node.bundle import Calibration
from dicom_node.combination import calibrated, log_odds, sigmoid
from tests.score_factories import (
    COLLECTIONS,
    FOUR,
    HEADS,
    ONE_CLASS,
    TWO,
    four_classes,
    one_class,
    pictures,
    said,
    together,
    truths,
    two_classes,
    two_heads,
)
from training.models.calibration import fit_platt
from training.models.registry import build
from training.papers import PAPERS
from training.targets import distribution, fit_targets, readings_of

SHOWN = pictures()
ADULTS = [picture for picture in SHOWN if picture.source != "kermany"]
RECIPES = [
    (paper, variant, profile)
    for profile in ("paper", "small", "robust")
    for paper in PAPERS
    for variant in PAPERS[paper].variants_of(profile)
]


def names_of(recipe) -> tuple[str, ...]:
    with torch.device("meta"):
        return build(recipe.architecture, recipe.options).score_names


def reading(paper, variant, profile):
    recipe = PAPERS[paper].recipe(variant, profile)
    return readings_of(recipe, names_of(recipe))


# What answers which question


def of_one_class(output):
    return {name: {"output": output} for name in ("pneumonia", "abnormal")}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (("minaee", "efficientnet_lite2", "robust"), FOUR),
        (("basu", "efficientnet_lite0", "robust"), FOUR),
        (("zhong", "adam", "robust"), FOUR),
        (("basu", "resnet50", "small"), FOUR),
        (("zhong", "adam", "paper"), FOUR),
        (("zhang", "both", "robust"), HEADS),
        (("zhang", "anomaly", "robust"), {name: HEADS[name] for name in ("pneumonia", "abnormal")}),
        (("zhang", "classification", "robust"), {"covid19": HEADS["covid19"]}),
        (("zhang", "both", "paper"), {"covid19": {"output": "p_avg"}}),
        (("minaee", "squeezenet", "small"), TWO),
        (("jahan", "paper", "robust"), of_one_class("log_density_pca")),
        (("jahan", "paper", "small"), of_one_class("reconstruction_error")),
    ],
)
def test_a_network_is_asked_what_it_was_taught(recipe, expected):
    assert reading(*recipe) == expected


@pytest.mark.parametrize(("paper", "variant", "profile"), RECIPES)
def test_no_recipe_is_asked_for_a_score_that_its_network_has_not(paper, variant, profile):
    recipe = PAPERS[paper].recipe(variant, profile)
    names = names_of(recipe)
    found = readings_of(recipe, names)
    assert found
    for one in found.values():
        assert set(Calibration(**one, slope=1, intercept=0).outputs) <= set(names)


# The questions and their condition


@pytest.fixture(scope="module")
def fitted():
    return fit_targets({"four": FOUR}, SHOWN, together(four=said(SHOWN, 1)))


def test_networks_that_were_taught_other_diseases_answer_three_questions(fitted):
    assert [target.name for target in fitted.targets] == ["covid19", "pneumonia", "abnormal"]
    assert set(fitted.calibrations["four"]) == {"covid19", "pneumonia", "abnormal"}


def test_networks_that_were_taught_covid19_only_answer_that_alone():
    (target,) = fit_targets({"two": TWO}, SHOWN, together(two=said(SHOWN, 1, two_classes))).targets
    assert target.name == "covid19"
    assert target.condition is None
    assert (target.reference["positive"].images, target.reference["negative"].images) == (60, 180), "adults"


def test_all_kinds_of_networks_answer_together():
    scores = together(
        four=said(SHOWN, 1), heads=said(SHOWN, 2, two_heads), one=said(SHOWN, 3, one_class),
        two=said(SHOWN, 4, two_classes),
    )  # fmt: skip
    found = fit_targets({"four": FOUR, "heads": HEADS, "one": ONE_CLASS, "two": TWO}, SHOWN, scores)
    assert {target.name: set(target.weights) for target in found.targets} == {
        "covid19": {"four", "heads", "two"},
        "pneumonia": {"four", "heads", "one"},
        "abnormal": {"four", "heads", "one"},
    }
    assert found.calibrations["one"]["abnormal"].slope > 0
    assert found.calibrations["four"]["abnormal"].slope < 0, "logit_normal says the contrary"


def test_covid19_is_withdrawn_where_the_image_seems_normal(fitted):
    target = fitted.targets[0]
    assert (target.condition.target, target.condition.threshold) == ("abnormal", 0.05)
    sick, well = fitted.answers([{"four": four_classes(abnormal, 3.0)} for abnormal in (3.0, -7.0)])
    assert sick["covid19"].unconditional == pytest.approx(well["covid19"].unconditional, abs=1e-6)
    assert sigmoid(sick["covid19"].logit) > 0.5
    assert sigmoid(well["abnormal"].logit) < 0.05
    assert sigmoid(well["covid19"].logit) < 0.05


def test_every_answer_is_calibrated_on_the_images_that_it_is_asked_of(fitted):
    found = fitted.answers(together(four=said(SHOWN, 1)))
    asked = [i for i, picture in enumerate(SHOWN) if picture.source != "kermany"]
    again = fit_platt(
        np.array([found[i]["covid19"].logit for i in asked]), np.array([truths(SHOWN[i])[1] > 0 for i in asked])
    )
    assert (again.slope, again.intercept) == pytest.approx((1, 0), abs=1e-6)


def test_within_collections_as_many_images_of_each(fitted):
    images = {
        target.name: target.reference["positive"].images + target.reference["negative"].images
        for target in fitted.targets
    }
    # nih holds 130 images of either answer and kermany 85; cohen has no normal image.
    assert images == {"covid19": 60 + 50 + 130, "pneumonia": 2 * 85, "abnormal": 2 * 85}


def test_children_do_not_move_the_threshold_of_covid19(fitted):
    scores = said(SHOWN, 1)
    changed = [
        four | {"p_covid19": 0.9, "p_pneumonia": 0.01} if picture.source == "kermany" else four
        for four, picture in zip(scores, SHOWN, strict=True)
    ]
    again = fit_targets({"four": FOUR}, SHOWN, together(four=changed))
    assert again.targets[0] == fitted.targets[0]
    assert again.targets[1] != fitted.targets[1], "they count where either answer is of children too"


def test_the_same_images_give_the_same_fit(fitted):
    assert fit_targets({"four": FOUR}, SHOWN, together(four=said(SHOWN, 1))) == fitted


def test_too_few_normal_images_leave_covid19_alone():
    shown = pictures((*COLLECTIONS[:2], ("nih", "normal", 19), ("nih", "pneumonia", 60)))
    (target,) = fit_targets({"four": FOUR}, shown, together(four=said(shown, 5))).targets
    assert (target.name, target.condition) == ("covid19", None)


# Weights


def test_a_member_weighs_more_the_more_it_tells_and_none_weighs_nothing():
    skills = {"nothing": 0.0, "little": 0.7, "more": 1.4, "much": 2.8}
    scores = together(**{name: said(SHOWN, i, skill=skill) for i, (name, skill) in enumerate(skills.items())})
    for target in fit_targets(dict.fromkeys(skills, FOUR), SHOWN, scores).targets:
        assert list(target.weights) == list(skills)
        assert list(target.weights.values()) == sorted(target.weights.values())
        assert target.weights["nothing"] > 0
        assert target.weights["much"] > 3 * target.weights["little"]


def test_a_member_that_says_the_same_of_every_image_keeps_a_little_weight():
    scores = together(four=said(SHOWN, 1), mute=[four_classes(0.0, 0.0)] * len(SHOWN))
    for target in fit_targets({"four": FOUR, "mute": FOUR}, SHOWN, scores).targets:
        assert target.weights["mute"] == 0.02


def test_a_member_that_answers_the_wrong_way_round_is_turned_and_weighs_as_much():
    scores = said(SHOWN, 1, two_classes)
    turned = [{"logit_covid19": -one["logit_covid19"]} for one in scores]
    found = fit_targets({"a": TWO, "b": TWO}, SHOWN, together(a=scores, b=turned))
    assert found.targets[0].weights["a"] == found.targets[0].weights["b"]
    assert found.calibrations["b"]["covid19"].slope == pytest.approx(-found.calibrations["a"]["covid19"].slope)


def test_a_weight_is_the_mean_probit_of_the_areas_within_collections():
    shown = pictures((("a", "covid19", 20), ("a", "normal", 30), ("b", "covid19", 25), ("b", "pneumonia", 20)))
    shown += pictures((("c", "covid19", 19), ("c", "normal", 30)))  # too few to count
    raw = said(shown, 6, two_classes)
    (target,) = fit_targets({"two": TWO}, shown, together(two=raw)).targets
    values = np.array([one["logit_covid19"] for one in raw])
    truth, source = np.array([p.finding == "covid19" for p in shown]), np.array([p.source for p in shown])
    areas = [roc_auc_score(truth[source == name], values[source == name]) for name in ("a", "b")]
    assert target.weights["two"] == pytest.approx(np.mean(norm.ppf(areas)), abs=1e-4)


# Thresholds, intervals, disagreement


def test_operating_points_and_intervals_of_six_images():
    raw = {"covid19": (1.0, 2.0, 3.0), "pneumonia": (-1.0, 0.0, 1.5)}
    shown = pictures((("cohen", "covid19", 3), ("cohen", "pneumonia", 3)))
    scores = [{"two": {"logit_covid19": value}} for finding in raw for value in raw[finding]]
    fitted = fit_targets({"two": TWO}, shown, scores)
    (target,) = fitted.targets
    own = fit_platt(np.array([*raw["covid19"], *raw["pneumonia"]]), np.array([True] * 3 + [False] * 3))
    # At 1 and above all three are flagged, and one of the others with them: the lower of two equally good thresholds.
    half_way = (sigmoid(own.logit(1.0)) + sigmoid(own.logit(0.0))) / 2
    for point in target.operating_points.values():
        assert point.threshold == pytest.approx(half_way, abs=1e-6)
        assert (point.sensitivity, point.specificity) == pytest.approx((1, 2 / 3))
        # Clopper and Pearson: 3 of 3, and 2 of 3.
        assert point.sensitivity_interval == pytest.approx((0.025 ** (1 / 3), 1.0))
        assert point.specificity_interval == pytest.approx((0.0943, 0.9916), abs=1e-4)
    assert target.threshold == target.operating_points["balanced"].threshold
    assert target.reference["positive"].quantiles["50"] == pytest.approx(sigmoid(own.logit(2.0)), abs=1e-6)
    assert target.disagreement is None, "one member agrees with itself"


def test_the_bound_of_disagreement_is_that_of_all_images_but_the_twentieth_part():
    shown = pictures((("cohen", "covid19", 20), ("cohen", "pneumonia", 20)))
    truth = np.array([picture.finding == "covid19" for picture in shown])
    scores = together(a=said(shown, 7, two_classes), b=said(shown, 8, two_classes, skill=1.0))
    (target,) = fit_targets({"a": TWO, "b": TWO}, shown, scores).targets
    raw = {name: np.array([each[name]["logit_covid19"] for each in scores]) for name in "ab"}
    weights = np.array([target.weights["a"], target.weights["b"]])[:, None]
    lines = {name: fit_platt(raw[name], truth) for name in "ab"}
    logits = np.stack([lines[name].slope * raw[name] + lines[name].intercept for name in "ab"])
    mean = (weights * logits).sum(axis=0) / weights.sum()
    last = fit_platt(mean, truth)
    spread = np.sqrt((weights * (last.slope * (logits - mean)) ** 2).sum(axis=0) / weights.sum())
    final = last.slope * mean + last.intercept
    ratio = spread / np.abs(final - log_odds(target.threshold))
    wrong = (final >= log_odds(target.threshold)) != truth
    beyond = ratio > np.quantile(ratio, 0.95)
    assert beyond.sum() == 2
    assert target.disagreement.model_dump() == pytest.approx(
        {
            "bound": np.quantile(ratio, 0.95),
            "share": 2 / 40,
            "error": wrong[~beyond].mean(),
            "error_beyond": wrong[beyond].mean(),
        },
        rel=1e-6,
    )


def test_a_calibration_is_likeliest_on_the_images_of_its_question():
    scores = together(four=said(ADULTS, 9))
    found = fit_targets({"four": FOUR}, ADULTS, scores)
    within = [i for i, picture in enumerate(ADULTS) if picture.source == "cohen"]
    plain = Calibration(**FOUR["covid19"], slope=1, intercept=0)
    raw = np.array([calibrated(plain, scores[i]["four"]) for i in within])
    own = fit_platt(raw, np.array([ADULTS[i].finding == "covid19" for i in within]))
    line = found.calibrations["four"]["covid19"]
    assert (line.slope, line.intercept) == pytest.approx((own.slope, own.intercept))


def test_a_distribution_of_known_numbers():
    found = distribution(np.array([0.0, 0.26, 0.5, 1.0]))
    assert found["images"] == 4
    assert (found["quantiles"]["0"], found["quantiles"]["50"], found["quantiles"]["100"]) == (0.0, 0.38, 1.0)
    assert [index for index, count in enumerate(found["histogram"]) if count] == [0, 5, 10, 19]


# What is refused


@pytest.mark.parametrize("missing", ["covid19", "everything else"])
def test_images_of_one_class_only_are_refused(missing):
    shown = [p for p in SHOWN if p.source == "cohen" and (p.finding == "covid19") == (missing != "covid19")]
    with pytest.raises(ValueError, match="needs images with and without covid19") as caught:
        fit_targets({"two": TWO}, shown, together(two=said(shown, 1, two_classes)))
    assert "\n" not in str(caught.value)


def test_a_bundle_that_no_network_answers_for_covid19_is_refused():
    with pytest.raises(ValueError, match="none of one answers covid19") as caught:
        fit_targets({"one": ONE_CLASS}, SHOWN, together(one=said(SHOWN, 1, one_class)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("abnormal", "covid19"), list(product((-40.0, 40.0), repeat=2)))
def test_scores_at_their_ends_still_have_finite_answers(fitted, abnormal, covid19):
    (found,) = fitted.answers([{"four": four_classes(abnormal, covid19)}])
    assert all(math.isfinite(answer.logit) for answer in found.values())
