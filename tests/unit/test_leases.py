"""A lease that is kept, lost, or kept through a database that fails for a while."""

import os
import threading
import time

import pytest
from sqlalchemy.exc import OperationalError

from dicom_node.domain import LostLeaseError
from dicom_node.leases import holder_name, kept_alive


def test_a_process_has_one_name_and_its_child_another(monkeypatch):
    assert holder_name() == holder_name()
    assert f":{os.getpid()}:" in holder_name()
    assert len(holder_name()) <= 64
    ours = holder_name()
    monkeypatch.setattr("dicom_node.leases.os.getpid", os.getppid)
    forked = holder_name()
    assert forked.rpartition(":")[2] != ours.rpartition(":")[2]


def test_processes_of_the_same_id_on_hosts_of_the_same_name_have_other_names(monkeypatch):
    """As two containers on the host's network have."""
    ours = holder_name()
    monkeypatch.setattr("dicom_node.leases._tokens", {})
    assert holder_name() != ours


def test_a_lease_is_renewed_while_the_block_runs_and_not_after():
    renewals = []
    with kept_alive(lambda: renewals.append(time.monotonic()), 0.08) as lost:
        time.sleep(0.3)
    count = len(renewals)
    assert count >= 5
    assert not lost.is_set()
    time.sleep(0.1)
    assert len(renewals) == count


def test_a_lost_lease_is_told_and_not_asked_for_again():
    asked = []

    def renew():
        asked.append(1)
        raise LostLeaseError("another has it")

    with kept_alive(renew, 0.04) as lost:
        assert lost.wait(5)
        time.sleep(0.1)
    assert asked == [1]


def test_a_database_that_fails_for_a_while_loses_no_lease():
    answers, renewed = [OperationalError("", {}, Exception())] * 3, threading.Event()

    def renew():
        if answers:
            raise answers.pop()
        renewed.set()

    with kept_alive(renew, 0.04) as lost:
        assert renewed.wait(5)
    assert not lost.is_set()


def test_the_blocks_own_error_comes_out():
    with pytest.raises(KeyError), kept_alive(lambda: None, 1):
        raise KeyError
