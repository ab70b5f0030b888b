import math

import numpy as np
import pytest

from dicom_node.combination import sigmoid
from training.models.calibration import Platt, fit_platt


def drawn(slope: float, intercept: float, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(6)
    outputs = rng.normal(0.4, 0.6, n)
    return outputs, rng.random(n) < 1 / (1 + np.exp(-(slope * outputs + intercept)))


def test_platt_finds_the_line_that_made_the_labels():
    found = fit_platt(*drawn(3.0, -1.2))
    assert found.slope == pytest.approx(3.0, abs=0.15)
    assert found.intercept == pytest.approx(-1.2, abs=0.1)


def test_platt_does_not_depend_on_the_outputs_scale():
    outputs, positive = drawn(3.0, -1.2, 500)
    one, other = fit_platt(outputs, positive), fit_platt(1000 * outputs + 7, positive)
    assert other.logit(1007) == pytest.approx(one.logit(1.0), abs=1e-6)


def test_classes_that_do_not_overlap_give_a_finite_line():
    found = fit_platt(np.array([0.0, 0.1, 0.9, 1.0]), np.array([False, False, True, True]))
    assert math.isfinite(found.slope)
    # Platt's targets for two of each class are 1/4 and 3/4.
    assert 0.2 < sigmoid(found.logit(0.05)) < 0.3
    assert 0.7 < sigmoid(found.logit(0.95)) < 0.8


def test_the_mean_probability_is_the_share_of_positives():
    outputs, positive = drawn(2.0, -2.0)
    found = fit_platt(outputs, positive)
    mean = np.mean([sigmoid(found.logit(x)) for x in outputs.tolist()])
    assert mean == pytest.approx(positive.mean(), abs=1e-3)


def test_one_class_alone_cannot_calibrate():
    with pytest.raises(ValueError, match="both classes"):
        fit_platt(np.array([0.1, 0.2]), np.array([True, True]))


@pytest.mark.parametrize("logit", [-800.0, -3.0, 0.0, 3.0, 800.0])
def test_the_sigmoid_never_overflows(logit):
    assert 0 <= sigmoid(logit) <= 1
    assert sigmoid(logit) + sigmoid(-logit) == pytest.approx(1)


def test_platt_is_a_straight_line():
    assert Platt(2.0, -1.0).logit(0.75) == 0.5
