"""What the gate tells, and what becomes of it: declined, mended, or let in as it is."""

import numpy as np
import pytest
import torch

from dicom_node.domain import DeclinedByPixelsError, Prediction
from tests.ensemble_factories import images, write_ensemble
from training.models.gate import FRONTAL, FRONTALS, KINDS
from workers.ensemble import Ensemble


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    return Ensemble.load(write_ensemble(tmp_path_factory.mktemp("door") / "bundle", gate=True))


def telling(ensemble, monkeypatch, look, distance=1.0):
    """Let the door be told the kind that `look` gives of each image's square."""
    squares = []
    maps = ensemble._maps

    def seen(member, batch, *, half):
        squares.append([image[member.transform.square] for image in batch.images])
        return maps(member, batch, half=half)

    def tell(_maps):
        kinds = [look(square) for square in squares[-1]]
        probabilities = np.full((len(kinds), len(KINDS)), 0.001)
        for row, kind in zip(probabilities, kinds, strict=True):
            row[KINDS.index(kind)] = 1
        return probabilities / probabilities.sum(axis=1, keepdims=True), np.full(len(kinds), distance)

    monkeypatch.setattr(ensemble, "_maps", seen)
    monkeypatch.setattr(ensemble._door, "tell", tell)


def marked(corner=(0, 0)):
    """Dark, with a bright corner: upright where that is at the top left."""
    image = np.full((64, 64), 0.2, dtype=np.float32)
    down, across = corner
    image[down * 40 : down * 40 + 24, across * 40 : across * 40 + 24] = 0.9
    return image


def stands(square):
    """The kind of a `marked` image, turned or inverted."""
    inverted = square.mean() > 0.5
    shown = 1 - square if inverted else square
    half = len(shown) // 2
    corners = [shown[:half, :half], shown[:half, half:], shown[half:, half:], shown[half:, :half]]
    turn = 90 * int(np.argmax([part.mean() for part in corners]))  # clockwise
    return FRONTALS[4 * inverted + turn // 90]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("lateral", "lateral"), ("slice", "not_cxr"), ("body part", "not_chest"), ("other", "not_cxr")],
)
def test_what_is_no_frontal_chest_x_ray_is_declined_by_kind(ensemble, monkeypatch, kind, reason):
    telling(ensemble, monkeypatch, lambda _: kind)
    (found,) = ensemble.predict_images(images(1))
    assert isinstance(found, DeclinedByPixelsError)
    assert found.reason == reason
    assert kind in str(found)


def test_what_is_far_from_all_that_is_known_is_declined(ensemble, monkeypatch):
    telling(ensemble, monkeypatch, lambda _: FRONTAL, distance=10.5)
    (found,) = ensemble.predict_images(images(1))
    assert isinstance(found, DeclinedByPixelsError)
    assert found.reason == "not_cxr"
    assert "10.5" in str(found)


def test_the_others_of_a_batch_are_answered_and_in_order(ensemble, monkeypatch):
    ensemble.batch_size = 8
    telling(ensemble, monkeypatch, lambda square: "lateral" if square.mean() > 0.49 else FRONTAL)
    bright, dark = np.full((64, 64), 0.9, np.float32), marked()
    found = ensemble.predict_images([bright, dark, bright, marked((0, 0))])
    assert [isinstance(one, Prediction) for one in found] == [False, True, False, True]
    (alone,) = ensemble.predict_images([dark])
    assert alone.members["zhong"] == pytest.approx(found[1].members["zhong"], abs=1e-5)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("quarter", range(4))
def test_a_turned_or_inverted_image_is_mended_and_its_answer_is_that_of_the_right_one(
    ensemble, monkeypatch, quarter, inverted
):
    telling(ensemble, monkeypatch, stands)
    right = marked()
    wrong = np.ascontiguousarray(np.rot90(right, -quarter))  # clockwise
    wrong = 1 - wrong if inverted else wrong
    expected, found = (ensemble.predict_images([image])[0] for image in (right, wrong))
    assert isinstance(found, Prediction)
    assert found.members == {name: pytest.approx(scores, abs=1e-4) for name, scores in expected.members.items()}
    remarks = [*(["polarity_mended"] if inverted else []), *([f"turned:{360 - 90 * quarter}"] if quarter else [])]
    assert list(found.remarks) == remarks
    for one, other in zip(found.maps, expected.maps, strict=True):
        back = np.rot90(one.pixels, quarter).astype(int)
        assert np.abs(back - other.pixels).max() <= 1, "the map lies on the instance's own pixels"


def test_an_image_that_stands_no_better_when_turned_is_taken_as_it_is(ensemble, monkeypatch):
    telling(ensemble, monkeypatch, lambda _: FRONTALS[1])
    (found,) = ensemble.predict_images([marked()])
    assert isinstance(found, Prediction)
    assert found.remarks == ("position_uncertain",)


def test_a_gate_that_tells_no_numbers_lets_nothing_in(ensemble, monkeypatch):
    telling(ensemble, monkeypatch, lambda _: FRONTAL, distance=np.nan)
    assert isinstance(ensemble.predict_images(images(1))[0], DeclinedByPixelsError)
    nothing = np.full((1, len(KINDS)), np.nan), np.ones(1)
    monkeypatch.setattr(ensemble._door, "tell", lambda _: nothing)
    assert isinstance(ensemble.predict_images(images(1))[0], DeclinedByPixelsError)


def test_the_gate_reads_the_maps_that_the_members_read(tmp_path):
    ensemble = Ensemble.load(write_ensemble(tmp_path / "bundle", gate=True))
    calls = []
    stages = ensemble._members[0].shared.stages
    stages[0].register_forward_hook(lambda *_: calls.append(1))
    ensemble.batch_size = 4
    ensemble.predict_images(images(3))
    assert calls == [1], "one pass for two members and the gate"


def test_a_gate_is_softmax_and_distance():
    from training.models.gate import Gate

    gate = Gate(3, 2)
    probability, distance = gate.tell(torch.zeros(2, 3))
    assert probability.sum(dim=1).tolist() == pytest.approx([1, 1])
    assert distance.tolist() == pytest.approx([float(gate.axes.bias.detach().norm())] * 2)
