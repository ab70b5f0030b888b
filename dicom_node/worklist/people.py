"""Pages on people: an administrator's on all of them, and everybody's on their own tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Form, Path, Request
from fastapi.responses import RedirectResponse, Response

from dicom_node.worklist.access import address, needs
from dicom_node.worklist.accounts import Person, Role
from dicom_node.worklist.audit import latest
from dicom_node.worklist.pages import Reader, rendered

if TYPE_CHECKING:
    from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)
Administrator = Annotated[Person, Depends(needs(Role.ADMINISTRATOR))]
TokenId = Annotated[int, Path(ge=1, le=2**31 - 1)]
Name = Annotated[str, Form(max_length=256)]


@router.get("/people")
def people(request: Request, person: Administrator) -> Response:
    """Who may do what, and what was done."""
    return _people(request, person)


def _people(request: Request, person: Person, link: str = "", of: str = "") -> HTMLResponse:
    state = request.app.state
    return rendered(
        request,
        "people.html.j2",
        users=state.accounts.users(),
        roles=list(Role),
        audit=latest(state.database),
        link=link,
        of=of,
        csrf_token=person.csrf_token,
    )


@router.post("/people/invite")
def invite(request: Request, person: Administrator, name: Name, role: Annotated[Role, Form()]) -> Response:
    """A link, shown once, by which a person sets a password."""
    token = request.app.state.accounts.invite(name, role, person.name, address=address(request))
    return _people(request, person, f"{str(request.base_url).rstrip('/')}/welcome/{token}", name)


@router.post("/people/role")
def set_role(request: Request, person: Administrator, name: Name, role: Annotated[Role, Form()]) -> Response:
    """The person has another role from now on."""
    request.app.state.accounts.set_role(name, role, person.name, address=address(request))
    return RedirectResponse("/people", 303)


@router.post("/people/active")
def set_active(request: Request, person: Administrator, name: Name, active: Annotated[bool, Form()]) -> Response:
    """The person is let in no more, or again."""
    request.app.state.accounts.set_active(name, active, person.name, address=address(request))
    return RedirectResponse("/people", 303)


@router.get("/account")
def account(request: Request, person: Reader) -> Response:
    """One's own tokens."""
    return _account(request, person)


def _account(request: Request, person: Person, token: str = "") -> HTMLResponse:
    tokens = request.app.state.accounts.tokens(person.name)
    return rendered(request, "account.html.j2", tokens=tokens, token=token, csrf_token=person.csrf_token)


@router.post("/account/tokens")
def make_token(request: Request, person: Reader, name: Name) -> Response:
    """A token for a program, shown once."""
    token = request.app.state.accounts.make_token(person.name, name, address=address(request))
    return _account(request, person, token)


@router.post("/account/tokens/{token_id}/revoke")
def revoke(request: Request, person: Reader, token_id: TokenId) -> Response:
    """One of one's own tokens lets nobody in any more."""
    request.app.state.accounts.revoke(token_id, person.name, of=person.name, address=address(request))
    return RedirectResponse("/account", 303)
