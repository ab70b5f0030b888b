"""Whether the worklist's pages answer, for a container's health check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from dicom_node.watch import UnhealthyError

if TYPE_CHECKING:
    from dicom_node.config import Web

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what is asked, not what is bound
_TIMEOUT_S = 5.0


def check(web: Web) -> str:
    """One line: they answer, and so does the ledger behind them.

    Raises
    ------
    UnhealthyError
    """
    url = web.model_copy(update={"host": _ANY.get(web.host, web.host)}).url
    try:
        # Asked of this machine, by an address that the certificate need not name.
        answer = httpx.get(f"{url}/readyz", timeout=_TIMEOUT_S, verify=False)  # noqa: S501
    except httpx.HTTPError as error:
        raise UnhealthyError(f"no worklist answers at {url} ({type(error).__name__})") from error
    if not answer.is_success:
        raise UnhealthyError(f"the worklist at {url} answers with status {answer.status_code}")
    return f"web: answers at {url}"
