"""Leases: a row of the ledger belongs to one process for a while, and to nobody when that process is gone."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from dicom_node.domain import LostLeaseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_RENEWALS_IN_A_LEASE = 4
_tokens: dict[int, str] = {}


def holder_name() -> str:
    """The name of this process among all that share the ledger: ``host:pid:token``, at most 64 characters.

    Host and process id alone would not do: containers may share a host's name, and each counts its own processes.
    """
    pid = os.getpid()
    token = _tokens.setdefault(pid, secrets.token_hex(4))  # by process, for a forked child is another
    return f"{socket.gethostname()[:40]}:{pid}:{token}"


@contextmanager
def kept_alive(renew: Callable[[], None], lease_s: float) -> Iterator[threading.Event]:
    """The lease is renewed from a thread while the block runs; yields an event that is set when it was lost.

    `renew` raises LostLeaseError where the lease is another's by now. A database that does not answer is asked again:
    whether the lease outlived it, the block's own writes will tell.
    """
    done, lost = threading.Event(), threading.Event()

    def keep() -> None:
        while not done.wait(lease_s / _RENEWALS_IN_A_LEASE):
            try:
                renew()
            except LostLeaseError:
                lost.set()
                return
            except SQLAlchemyError:
                continue

    keeper = threading.Thread(target=keep, name="lease keeper", daemon=True)
    keeper.start()
    try:
        yield lost
    finally:
        done.set()
        keeper.join()
