import pytest

from training.schedules import SCHEDULES, cosine, linear, steps


def test_linear_falls_to_zero_at_the_end():
    factor = linear(500)
    assert [factor(epoch) for epoch in (0, 125, 250, 500)] == [1.0, 0.75, 0.5, 0.0]


def test_cosine_is_half_in_the_middle():
    factor = cosine(100)
    assert [round(factor(epoch), 6) for epoch in (0, 50, 100)] == [1.0, 0.5, 0.0]
    assert factor(25) == pytest.approx(0.853553, abs=1e-6)  # (1 + cos 45 degrees) / 2


def test_cosine_warms_up_from_next_to_nothing():
    factor = cosine(12, warmup_epochs=2)
    assert factor(0) == pytest.approx(0.005)
    assert factor(1) == pytest.approx(0.505)
    assert factor(2) == 1.0
    assert factor(12) == 0.0


def test_steps_hold_from_their_epoch_on():
    # Zhong's code: 4e-4 in epochs 0 to 2, 2e-4 in 3 to 5, 1e-4 after.
    factor = steps(10, factors=[[0, 1.0], [3, 0.5], [6, 0.25]])
    assert [factor(epoch) * 4e-4 for epoch in (0, 2.99, 3, 5.99, 6, 9.9)] == [4e-4, 4e-4, 2e-4, 2e-4, 1e-4, 1e-4]


def test_steps_must_begin_at_the_beginning():
    with pytest.raises(ValueError, match="epoch 0"):
        steps(10, factors=[[1, 1.0]])


def test_every_schedule_begins_above_zero():
    options = {"steps": {"factors": [[0, 0.1], [3, 1.0]]}}
    for name, schedule in SCHEDULES.items():
        assert schedule(10, **options.get(name, {}))(0) > 0, name
