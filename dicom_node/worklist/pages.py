"""Pages: the log-in, the one-time link, and the worklist."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from dicom_node.domain import State
from dicom_node.worklist import listing
from dicom_node.worklist.access import (
    address,
    cookie_name,
    expect_form,
    form_secret,
    form_token,
    log_in_cookie,
    needs,
    own_path,
    set_cookie,
)
from dicom_node.worklist.accounts import AccountError, Person, Role
from dicom_node.worklist.listing import Cursor, Filters
from dicom_node.worklist.study import UnknownStudyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dicom_node.config import Settings

router = APIRouter(include_in_schema=False)
READERS = [Depends(needs(Role.READER))]
Reader = Annotated[Person, READERS[0]]
_UID = re.compile(r"[0-9.]{1,64}")
_LINES = 50


def study_uid(uid: str) -> str:
    """The UID in a page's address."""
    if not _UID.fullmatch(uid):
        raise UnknownStudyError("no such study stands in the worklist")
    return uid


Uid = Annotated[str, Depends(study_uid)]


def rendered(request: Request, template: str, status_code: int = 200, **values: Any) -> HTMLResponse:
    """A page of that template."""
    page = request.app.state.templates.get_template(template)
    values.setdefault("person", getattr(request.state, "person", None))
    return HTMLResponse(page.render(site=request.app.state.site, **values), status_code)


@router.get("/")
def front(request: Request, after: Annotated[str, Query(max_length=2000)] = "") -> Response:
    """The log-in form; who is logged in goes on to the worklist."""
    cookie = request.cookies.get(cookie_name(request.app.state.settings.web), "")
    if cookie and request.app.state.accounts.session(cookie) is not None:
        return RedirectResponse(own_path(after), 303)
    return _log_in_form(request, after=after)


def _log_in_form(request: Request, *, after: str, told: str = "", status: int = 200) -> HTMLResponse:
    return _with_form_cookie(request, "log_in.html.j2", status, after=after, told=told)


def _with_form_cookie(request: Request, template: str, status: int, **values: Any) -> HTMLResponse:
    web = request.app.state.settings.web
    secret = request.cookies.get(log_in_cookie(web)) or form_secret()
    page = rendered(request, template, status, person=None, form_token=form_token(secret), **values)
    set_cookie(page, web, log_in_cookie(web), secret)
    return page


@router.post("/log-in")
def log_in(
    request: Request,
    name: Annotated[str, Form(max_length=256)] = "",
    password: Annotated[str, Form(max_length=4096)] = "",
    after: Annotated[str, Form(max_length=2000)] = "",
    form: Annotated[str, Form(max_length=128)] = "",
) -> Response:
    """A person is logged in, or told that name and password do not go together."""
    web = request.app.state.settings.web
    expect_form(request.cookies.get(log_in_cookie(web), ""), form)
    try:
        token, _ = request.app.state.accounts.sign_in(name, password, address(request))
    except AccountError as error:
        retry_after_s = getattr(error, "retry_after_s", None)
        page = _log_in_form(request, after=after, told=str(error), status=401 if retry_after_s is None else 429)
        if retry_after_s is not None:
            page.headers["Retry-After"] = str(retry_after_s)
        return page
    response = RedirectResponse(own_path(after), 303)
    set_cookie(response, web, cookie_name(web), token, hours=web.session_hours)
    return response


@router.post("/log-out", dependencies=READERS)
def log_out(request: Request) -> Response:
    """The log-in ends."""
    web = request.app.state.settings.web
    request.app.state.accounts.sign_out(request.cookies.get(cookie_name(web), ""), address=address(request))
    response = RedirectResponse("/", 303)
    response.delete_cookie(cookie_name(web), path="/", secure=web.is_encrypted, httponly=True, samesite="lax")
    return response


@router.get("/welcome/{token}")
def welcome(request: Request, token: str) -> Response:
    """The form of a one-time link."""
    return _welcome(request, token)


def _welcome(request: Request, token: str, told: str = "", status: int = 200) -> Response:
    link = request.app.state.accounts.link(token)
    if link is None:
        message = "This link was used, has expired, or never was: ask an administrator for another one."
        return rendered(request, "error.html.j2", 404, status=404, message=message)
    return _with_form_cookie(request, "welcome.html.j2", status, token=token, link=link, told=told)


@router.post("/welcome/{token}")
def redeem(
    request: Request,
    token: str,
    name: Annotated[str, Form(max_length=256)] = "",
    password: Annotated[str, Form(max_length=4096)] = "",
    again: Annotated[str, Form(max_length=4096)] = "",
    form: Annotated[str, Form(max_length=128)] = "",
) -> Response:
    """The link's person has a password from now on."""
    expect_form(request.cookies.get(log_in_cookie(request.app.state.settings.web), ""), form)
    if password != again:
        return _welcome(request, token, "the two passwords are not the same", 400)
    try:
        request.app.state.accounts.redeem(token, name, password, address=address(request))
    except AccountError as error:
        return _welcome(request, token, str(error), 400)
    return RedirectResponse("/", 303)


def filters(
    read: Annotated[str, Query(pattern="^(unread|read|all)$")] = "unread",
    day: Annotated[str, Query(max_length=10)] = "",
    location: Annotated[str, Query(max_length=64)] = "",
    modality: Annotated[str, Query(max_length=16)] = "",
    flagged: Annotated[str, Query(pattern="^(|yes|no)$")] = "",
    state: Annotated[str, Query(max_length=32)] = "",
    text: Annotated[str, Query(max_length=200)] = "",
) -> Filters:
    """The filters of a URL; what means nothing filters nothing."""
    try:
        on = date.fromisoformat(day) if day else None
    except ValueError:
        on = None
    return Filters(
        read=read,  # type: ignore[arg-type]
        day=on if on is not None and 1900 <= on.year < 9999 else None,
        location=location.replace("\0", ""),
        modality=modality.replace("\0", ""),
        flagged={"yes": True, "no": False}.get(flagged),
        state=State(state) if state in list(State) else None,
        text=text.replace("\0", ""),
    )


def query_of(asked: Filters) -> dict[str, str]:
    """The filters as a URL has them, without what is as it is anyway."""
    told = {
        "read": "" if asked.read == "unread" else asked.read,
        "day": asked.day.isoformat() if asked.day else "",
        "location": asked.location,
        "modality": asked.modality,
        "flagged": {True: "yes", False: "no", None: ""}[asked.flagged],
        "state": asked.state or "",
        "text": asked.text,
    }
    return {name: value for name, value in told.items() if value}


Asked = Annotated[Filters, Depends(filters)]


@router.get("/worklist")
def worklist(
    request: Request, person: Reader, asked: Asked, after: Annotated[str, Query(max_length=64)] = ""
) -> Response:
    """Studies in the order in which they should be read."""
    database = request.app.state.database
    request.app.state.accounts.audit(person.name, "worklist_seen", address(request))
    return rendered(
        request,
        "worklist.html.j2",
        asked=asked,
        states=list(State),
        locations=[one for one in listing.locations(database) if one],
        most_counted=listing.MOST_COUNTED,
        **_rows(request, person, asked, after),
    )


@router.get("/worklist/rows")
def rows(
    request: Request,
    person: Reader,
    asked: Asked,
    after: Annotated[str, Query(max_length=64)] = "",
    mark: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """The lines alone, for a page that is open; nothing where they are as the page has them."""
    page = rendered(request, "rows.html.j2", most_counted=listing.MOST_COUNTED, **_rows(request, person, asked, after))
    if page.body and f'data-mark="{mark}"' in bytes(page.body).decode() and mark:
        return Response(status_code=204)
    return page


def _rows(request: Request, person: Person, asked: Filters, after: str) -> dict[str, Any]:
    state = request.app.state
    cursor = Cursor.from_text(after) if after else None
    found = listing.page(state.database, asked, state.site, after=cursor, limit=_LINES)
    query = query_of(asked)
    lines = [(line, viewer_link(state.settings, line.study)) for line in found.lines]
    told = repr(
        [(line.study.id, line.state, line.study.flagged, line.study.due_at, line.study.read_at) for line in found.lines]
    )
    is_whole = cursor is None and found.after is None
    minute = datetime.now(UTC).strftime("%H%M")
    return {
        "lines": lines,
        "count": len(found.lines) if is_whole else listing.count(state.database, asked, state.site),
        "query": urlencode(query),
        "after": after,
        "next": urlencode(query | {"after": found.after.as_text()}) if found.after else "",
        "mark": hashlib.sha256(f"{told} {minute}".encode()).hexdigest()[:16],
        "csrf_token": person.csrf_token,
    }


def viewer_link(settings: Settings, study: Any) -> str:
    """The study in the site's own viewer; empty where it has none, or the study lacks what its address wants."""
    template = settings.worklist.viewer_url
    values: Mapping[str, str | None] = {
        "study_instance_uid": study.study_instance_uid,
        "accession_number": study.accession_number,
        "patient_id": study.patient_id,
    }
    for name, value in values.items():
        if f"{{{name}}}" in template:
            if not value:
                return ""
            template = template.replace(f"{{{name}}}", quote(value, safe=""))
    return template


@router.post("/studies/{uid}/read")
def read(
    request: Request,
    person: Reader,
    uid: Uid,
    unread: Annotated[bool, Form()] = False,
    after: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    """The study is read and leaves the worklist, or comes back to it."""
    state = request.app.state
    if listing.mark_read(state.database, uid, person.name, datetime.now(UTC), read=not unread):
        state.accounts.audit(person.name, "unread" if unread else "read", address(request), study=uid)
    if request.headers.get("HX-Request"):
        return Response(status_code=204, headers={"HX-Trigger": "worklist"})
    return RedirectResponse(own_path(after), 303)


@router.get("/studies/{uid}/thumbnail", dependencies=READERS)
def thumbnail(request: Request, uid: Uid) -> Response:
    """A small picture of the study's first image, PNG."""
    path = listing.first_image(request.app.state.database, uid)
    if path is None:
        return PlainTextResponse("no image of it is kept", 404)
    picture = request.app.state.pictures.thumbnail(path)
    return Response(picture, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})
