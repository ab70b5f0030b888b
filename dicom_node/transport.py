"""What both ends of an association do to its socket."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynetdicom.events import Event


def no_delay(event: Event) -> None:
    """Small writes leave at once: with Nagle's algorithm each C-STORE waits some 40 ms for an acknowledgement.

    For `pynetdicom.evt.EVT_CONN_OPEN`.
    """
    transport = event.assoc.dul.socket
    if transport is not None and transport.socket is not None:
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def bounded(timeout_s: float) -> Callable[[Event], None]:
    """`no_delay`, and a peer that stops reading ends the connection after `timeout_s` (tcp(7)).

    pynetdicom's own time limits do not reach a thread that is stuck in sending.
    """

    def opened(event: Event) -> None:
        no_delay(event)
        transport = event.assoc.dul.socket
        if transport is not None and transport.socket is not None:
            transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout_s * 1000))

    return opened
