"""A worker notices that its bells do not come through any more (`workers.tasks`)."""

import pytest

from workers.tasks import Ear


def test_bells_that_hang_twice_while_none_comes_through_ask_for_a_new_connection():
    ear = Ear(lambda: 3)
    ear.check()
    with pytest.raises(ConnectionResetError, match="do not come through"):
        ear.check()
    ear.check()  # it begins anew with the new connection


def test_a_busy_worker_is_not_deaf():
    ear = Ear(lambda: 100)
    for _ in range(5):
        ear.hear()
        ear.check()


def test_an_idle_worker_without_bells_is_not_deaf():
    ear = Ear(lambda: 0)
    for _ in range(5):
        ear.check()
