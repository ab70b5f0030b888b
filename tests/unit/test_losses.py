import math

import pytest
import torch
from torch.nn import functional

from training.losses import LOSSES, cross_entropy, smoothed
from training.models.zhang import Scores, classification_loss, deviation_loss

INPUTS = torch.zeros(2, 1, 4, 4)


def test_zhang_adds_the_losses_of_the_heads_that_are_there():
    p_cls, p_ano, labels = torch.tensor([0.3, -2.0]), torch.tensor([0.1, 4.0]), torch.tensor([0, 1])
    cls, ano = classification_loss(p_cls, labels.float()), deviation_loss(p_ano, labels.float())
    loss = LOSSES["zhang"]()
    assert loss(Scores(p_cls, p_ano), INPUTS, labels).item() == pytest.approx((cls + ano).item())
    assert loss(Scores(p_cls, None), INPUTS, labels).item() == pytest.approx(cls.item())
    assert loss(Scores(None, p_ano), INPUTS, labels).item() == pytest.approx(ano.item())


def test_smoothing_by_eq_2_of_zhong_and_by_the_libraries():
    # Three classes, epsilon 0.12: 0.88 and 0.06 each by the paper; 0.88 + 0.04 and 0.04 each by Keras and torch.
    labels = torch.tensor([0, 2])
    paper = torch.tensor([[0.88, 0.06, 0.06], [0.06, 0.06, 0.88]])
    library = torch.tensor([[0.92, 0.04, 0.04], [0.04, 0.04, 0.92]])
    assert torch.allclose(smoothed(labels, 3, 0.12, "paper"), paper)
    assert torch.allclose(smoothed(labels, 3, 0.12, "library"), library)


def test_the_two_forms_of_smoothing_cost_what_was_worked_out_by_hand():
    # One image with probabilities 0.8, 0.1, 0.1: -(0.88 ln 0.8 + 0.12 ln 0.1) and -(0.92 ln 0.8 + 0.08 ln 0.1).
    logits, labels = torch.log(torch.tensor([[0.8, 0.1, 0.1]])), torch.tensor([0])
    paper = cross_entropy(smoothing=0.12, smoothing_form="paper")(logits, INPUTS, labels)
    library = cross_entropy(smoothing=0.12)(logits, INPUTS, labels)
    assert paper.item() == pytest.approx(-(0.88 * math.log(0.8) + 0.12 * math.log(0.1)), rel=1e-6)
    assert paper.item() == pytest.approx(0.47, abs=0.005)
    assert library.item() == pytest.approx(-(0.92 * math.log(0.8) + 0.08 * math.log(0.1)), rel=1e-6)
    assert library.item() == pytest.approx(
        functional.cross_entropy(logits, labels, label_smoothing=0.12).item(), rel=1e-6
    )


def test_class_weights_are_factors_of_an_image_and_the_mean_is_over_images():
    # Keras' class_weight: (10 ln 2 + 1 ln 4) / 2; torch's own weighted mean would divide by 11.
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    loss = cross_entropy(class_weights=(10.0, 1.0))(logits, INPUTS, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((10 * math.log(2) + math.log(4)) / 2, rel=1e-6)


def test_an_unknown_form_of_smoothing_is_refused():
    with pytest.raises(ValueError, match="keras"):
        cross_entropy(smoothing_form="keras")


def test_reconstruction_is_the_mean_over_all_values():
    class Outputs:
        reconstruction = torch.full((2, 3, 4, 4), 0.5)

    loss = LOSSES["reconstruction"]()(Outputs, INPUTS, torch.zeros(2, dtype=torch.long))
    assert loss.item() == pytest.approx(0.25)
