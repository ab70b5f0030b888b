"""Who asks: a person's log-in or a program's token, the role that a route needs, and forms that are this node's own."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import Request  # noqa: TC002 - FastAPI looks the annotations up
from starlette.concurrency import run_in_threadpool

from dicom_node.domain import NodeError
from dicom_node.worklist.accounts import Accounts, Person, Role

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi import Response

    from dicom_node.config import Web

_SAFE = ("GET", "HEAD")
_BEARER = "bearer "
CSRF_FIELD, CSRF_HEADER = "csrf_token", "X-CSRF-Token"


class NotSignedInError(NodeError):
    """Nobody is logged in, or no longer."""

    reason = "not_signed_in"


class ForbiddenError(NodeError):
    """The person's role does not allow it."""

    reason = "forbidden"


class ForgedFormError(NodeError):
    """The form, or the request of a script, is none of this log-in's."""

    reason = "forged_form"

    def __init__(self) -> None:
        super().__init__("the form was not made for this log-in, or is too old: go back, reload the page, try again")


def needs(role: Role) -> Callable[[Request], Awaitable[Person]]:
    """A dependency: the person who asks, at least of that role; what changes anything needs the log-in's own token."""

    async def person(request: Request) -> Person:
        accounts: Accounts = request.app.state.accounts
        scheme = request.headers.get("Authorization", "")
        if scheme:
            token = scheme[len(_BEARER) :].strip() if scheme.lower().startswith(_BEARER) else ""
            found = await run_in_threadpool(accounts.by_api_token, token)
        else:
            cookie = request.cookies.get(cookie_name(request.app.state.settings.web), "")
            found = await run_in_threadpool(accounts.session, cookie) if cookie else None
        if found is None:
            raise NotSignedInError(
                "log in first" if not scheme else "the token is unknown, revoked, or of nobody active"
            )
        if not scheme and request.method not in _SAFE and not Accounts.is_csrf(found, await _given(request)):
            raise ForgedFormError
        request.state.person = found
        if not found.role.allows(role):
            raise ForbiddenError(f"this needs the role {role}; {found.name} is {found.role}")
        return found

    person.role = role  # type: ignore[attr-defined]
    return person


async def _given(request: Request) -> str:
    header = request.headers.get(CSRF_HEADER)
    if header is not None:
        return header
    kind = request.headers.get("Content-Type", "").partition(";")[0]
    if kind not in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return ""
    given: Any = (await request.form()).get(CSRF_FIELD, "")
    return given if isinstance(given, str) else ""


def cookie_name(web: Web) -> str:
    """Of the log-in's cookie; over TLS browsers keep others from setting it (RFC 6265bis 4.1.3.2)."""
    return "__Host-cxr" if web.is_encrypted else "cxr"


def set_cookie(response: Response, web: Web, name: str, value: str, *, hours: float | None = None) -> None:
    """A cookie that no script reads and no other site's form sends."""
    response.set_cookie(
        name,
        value,
        max_age=None if hours is None else int(hours * 3600),
        path="/",
        secure=web.is_encrypted,
        httponly=True,
        samesite="lax",
    )


def log_in_cookie(web: Web) -> str:
    """Name of the cookie that ties a log-in form to the browser that asked for it."""
    return cookie_name(web) + "-form"


def form_secret() -> str:
    """A new value of that cookie."""
    return secrets.token_urlsafe(32)


def form_token(secret: str) -> str:
    """What the form carries for the cookie's value."""
    return hashlib.sha256(b"log-in form " + secret.encode()).hexdigest()


def expect_form(secret: str, token: str) -> None:
    """The form was asked for by the browser that sends it.

    Raises
    ------
    ForgedFormError
    """
    if not secret or not hmac.compare_digest(form_token(secret).encode(), token.encode()):
        raise ForgedFormError


def own_path(path: str) -> str:
    """The path, where it is one of this site's pages; else that of the worklist."""
    if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable():
        return quote(path, safe="/?&=%+-._~:,")
    return "/worklist"


def address(request: Request) -> str:
    """Of who asks."""
    return request.client.host[:64] if request.client else ""
