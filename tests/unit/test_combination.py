import math

import pytest

from dicom_node.bundle import Calibration, Code, Limits, Manifest, Member, OperatingPoint, Target, WeightFile
from dicom_node.combination import AnswerError, anomalies, answers, calibrated, disagreement, log_odds, results, sigmoid
from dicom_node.domain import Decision

POINT = OperatingPoint(threshold=0.5, sensitivity=0.8, specificity=0.7)


def member(name, *questions, required=True, **scaling):
    calibration = {
        question: Calibration(**({"output": "x", "slope": 1, "intercept": 0} | scaling)) for question in questions
    }
    return Member(
        name=name, title=name, version="1", architecture="", citation="", preprocessing={}, calibration=calibration,
        weights=(WeightFile(file="a.safetensors", sha256="0" * 64),), required=required,
    )  # fmt: skip


def target(name="covid19", **changed):
    plain = {
        "name": name, "title": name, "code": Code(value="1", scheme="SCT", meaning=name), "weights": {"a": 3, "b": 1},
        "operating_point": "balanced", "operating_points": {"balanced": POINT},
    }  # fmt: skip
    return Target(**plain | changed)


def manifest(*targets, members=None):
    names = [each.name for each in targets]
    members = members or (member("a", *names), member("b", *names))
    return Manifest(name="m", release="1", title="", targets=targets, members=members, training={})


def says(a, b):
    return {"a": {"x": a}, "b": {"x": b}}


def test_the_mean_is_of_logits_by_weight():
    found = answers(manifest(target()), says(2, -1))["covid19"]
    assert found.logit == pytest.approx((3 * 2 - 1) / 4)
    assert found.members == {"a": 2, "b": -1}
    assert found.spread == pytest.approx(math.sqrt(0.75 * 0.75**2 + 0.25 * 2.25**2))


def test_stacking_is_a_sum_with_weights_of_any_sign():
    stacked = target(combination="stacking", weights={"a": 3, "b": -1}, intercept=0.5)
    assert answers(manifest(stacked), says(2, 1))["covid19"].logit == pytest.approx(0.5 + 6 - 1)


def test_voting_counts_weights_on_either_side():
    voting = target(combination="voting")
    (found,) = results(manifest(voting), says(0.1, -5))
    assert found.probability == pytest.approx(0.75)
    assert results(manifest(voting), says(-0.1, 5))[0].probability == pytest.approx(0.25)


def test_a_scaling_comes_last():
    scaled = target(scaling={"slope": 2, "intercept": -1})
    assert answers(manifest(scaled), says(2, 2))["covid19"].logit == pytest.approx(3)


@pytest.mark.parametrize(("abnormal", "expected"), [(0.05, 0.5), (1 - 1e-9, 1), (1e-9, 0)])
def test_a_condition_halves_at_its_threshold_and_withdraws_below(abnormal, expected):
    asked = target(condition={"target": "abnormal", "threshold": 0.05}, weights={"a": 1})
    first = target("abnormal", weights={"b": 1})
    found = results(manifest(asked, first), says(1.5, log_odds(abnormal)))
    assert found[0].probability == pytest.approx(sigmoid(1.5) * expected, abs=1e-6)
    assert [one.target for one in found] == ["covid19", "abnormal"], "in the manifest's order"


def test_a_condition_must_be_another_target_without_one():
    with pytest.raises(ValueError, match="cannot depend on covid19"):
        manifest(target(condition={"target": "covid19", "threshold": 0.1}))


def test_a_calibration_reads_sums_and_ratios_of_outputs():
    outputs = {"p": 0.2, "q": 0.3, "r": 0.5}
    assert calibrated(Calibration(output="p", slope=2, intercept=1), outputs) == pytest.approx(1.4)
    ratio = Calibration(output="p + q", over="r", slope=1, intercept=0)
    assert calibrated(ratio, outputs) == pytest.approx(0)
    assert ratio.outputs == ("p", "q", "r")
    assert calibrated(Calibration(output="p", over="rest", slope=1, intercept=0), outputs) == pytest.approx(
        math.log(0.2 / 0.8)
    )
    assert math.isfinite(calibrated(Calibration(output="p", over="rest", slope=1, intercept=0), {"p": 1.0}))


def test_a_member_that_may_be_missing_leaves_its_weight_to_the_others():
    both = manifest(target(), members=(member("a", "covid19"), member("b", "covid19", required=False)))
    assert answers(both, {"a": {"x": 2}})["covid19"].logit == pytest.approx(2)
    with pytest.raises(AnswerError, match="a is required"):
        answers(both, {"b": {"x": 2}})


def test_a_question_without_any_member_has_no_answer():
    both = manifest(target(), members=(member("a", "covid19", required=False), member("b", "covid19", required=False)))
    with pytest.raises(AnswerError, match="no member is left"):
        answers(both, {})


def test_stacking_cannot_do_without_a_member():
    with pytest.raises(ValueError, match="stacking needs b"):
        manifest(
            target(combination="stacking"), members=(member("a", "covid19"), member("b", "covid19", required=False))
        )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_output_that_is_no_number_is_refused(value):
    with pytest.raises(AnswerError, match="covid19 of b is"):
        answers(manifest(target()), says(1, value))


def test_members_far_apart_about_the_threshold_leave_it_undecided():
    bound = {"bound": 2.0, "share": 0.05, "error": 0.1, "error_beyond": 0.5}
    asked = manifest(target(weights={"a": 1, "b": 1}, disagreement=bound))
    (apart,) = results(asked, says(4, -3))
    assert apart.decision is Decision.INDETERMINATE
    assert not apart.flagged
    assert apart.members == {"a": pytest.approx(sigmoid(4)), "b": pytest.approx(sigmoid(-3))}
    (agreed,) = results(asked, says(4, 3))
    assert agreed.decision is Decision.FLAGGED
    (low,) = results(asked, says(-4, -3))
    assert low.decision is Decision.NOT_FLAGGED


def test_members_that_agree_decide_however_close_to_the_threshold():
    bound = {"bound": 2.0, "share": 0.05, "error": 0.1, "error_beyond": 0.5}
    asked = manifest(target(weights={"a": 1, "b": 1}, disagreement=bound))
    assert results(asked, says(0.01, 0.01))[0].decision is Decision.FLAGGED
    assert results(asked, says(0.0, 0.0))[0].decision is Decision.FLAGGED, "at the threshold"
    assert disagreement(answers(asked, says(1, -1))["covid19"], 0.5) == math.inf


def test_a_sites_threshold_goes_before_the_operating_points():
    (found,) = results(manifest(target()), says(1, 1), {"covid19": 0.9})
    assert (found.threshold, found.decision) == (0.9, Decision.NOT_FLAGGED)


def test_a_member_that_knows_normal_images_alone_says_by_which_outputs_an_image_is_none():
    knows = member("a", "covid19").model_copy(
        update={"anomalous": {"error": Limits(above=0.1), "density": Limits(below=-5.0)}}
    )
    asked = manifest(target(weights={"a": 1}), members=(knows,))
    assert anomalies(asked, {"a": {"error": 0.2, "density": -4.0}}) == {"a": ["error"]}
    assert anomalies(asked, {"a": {"error": 0.1, "density": -6.0}}) == {"a": ["density"]}
    assert anomalies(asked, {}) == {}


@pytest.mark.parametrize("probability", [0.0, 1e-9, 0.3, 1.0])
def test_log_odds_and_sigmoid_are_each_others_inverse(probability):
    assert sigmoid(log_odds(probability)) == pytest.approx(probability, abs=1e-11)
