"""The web application: its routes, what every answer carries, and what a person is told of an error."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode
from zoneinfo import ZoneInfo

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response

from dicom_node import __version__
from dicom_node.domain import NodeError, place_of
from dicom_node.retrospective.runs import RunError
from dicom_node.worklist import api, operations, pages, people, study_pages
from dicom_node.worklist.access import ForbiddenError, ForgedFormError, NotSignedInError
from dicom_node.worklist.accounts import Accounts, TooManyTriesError
from dicom_node.worklist.wording import FILTERS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dicom_node.config import Settings
    from dicom_node.database import Database
    from dicom_node.worklist.pictures import Pictures

log = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_HSTS = "max-age=31536000"
_LARGEST_FORM = 64 << 10
_LENGTH = re.compile(r"\d{1,9}", re.ASCII)
_LONGEST_AFTER = 2000
_GONE = 499  # of a browser that does not wait for the answer


def make_app(settings: Settings, database: Database, pictures: Pictures) -> FastAPI:
    """The application over the ledger; it opens nothing by itself."""
    app = FastAPI(
        title="CXR DICOM node",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        description="Worklist, studies and feedback of a screening node. Research and decision support only.",
    )
    app.state.settings, app.state.database, app.state.pictures = settings, database, pictures
    app.state.accounts = Accounts(database, session_hours=settings.web.session_hours)
    app.state.site = ZoneInfo(settings.retrospective.time_zone)
    app.state.templates = _templates()
    app.add_middleware(GZipMiddleware, minimum_size=2048, compresslevel=1)
    app.middleware("http")(_protected)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    for part in (pages, study_pages, operations, people, api):
        app.include_router(part.router)
    for kind in (NodeError, HTTPException, RequestValidationError, SQLAlchemyError, Exception):
        app.add_exception_handler(kind, _told)
    return app


def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("dicom_node.worklist"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= FILTERS
    made.globals["version"] = __version__
    return made


async def _protected(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """The answer, with the headers that every answer carries; a form that is too long is not read."""
    length = request.headers.get("Content-Length", "0")
    if not _LENGTH.fullmatch(length) or int(length) > _LARGEST_FORM or "Transfer-Encoding" in request.headers:
        response: Response = JSONResponse({"error": "too_large", "message": "the request is too long"}, 413)
    else:
        try:
            response = await call_next(request)
        except Exception as error:  # else the server would answer without the headers, and log what the error says
            response = Response(status_code=_GONE) if await request.is_disconnected() else _told(request, error)
    response.headers.update(_HEADERS)
    if not request.url.path.startswith("/static/"):
        response.headers.setdefault("Cache-Control", "no-store")
    if request.app.state.settings.web.is_encrypted:
        response.headers["Strict-Transport-Security"] = _HSTS
    return response


def _told(request: Request, error: Exception) -> Response:
    """What a person, or a program, is told; never what stands in a row."""
    if isinstance(error, NotSignedInError) and not _is_program(request):
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        if request.headers.get("HX-Request"):  # a part of a page: the whole page goes to the log-in form
            return HTMLResponse("", 401, {"HX-Redirect": "/"})
        comes_back = request.method == "GET" and asked != "/" and len(asked) <= _LONGEST_AFTER
        after = "?" + urlencode({"after": asked}, quote_via=quote) if comes_back else ""
        return RedirectResponse("/" + after, 303)
    status, reason, message = _meaning(request, error)
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, TooManyTriesError) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if _is_program(request):
        return JSONResponse({"error": reason, "message": message}, status, headers)
    template = request.app.state.templates.get_template("error.html.j2")
    page = template.render(person=getattr(request.state, "person", None), status=status, message=message)
    return HTMLResponse(page, status, headers)


def _meaning(request: Request, error: Exception) -> tuple[int, str, str]:
    if isinstance(error, NodeError):
        return _STATUS.get(type(error), getattr(error, "status", 400)), error.reason, str(error)
    if isinstance(error, HTTPException):
        return error.status_code, "http", str(error.detail)
    if isinstance(error, RequestValidationError):
        places = ", ".join(sorted({str(one["loc"][-1]) for one in error.errors()}))
        return 422, "invalid", f"this cannot be used as it is: {places}"
    if isinstance(error, DataError):  # PostgreSQL takes no NUL
        return 422, "invalid", "a value cannot be used as it is"
    if isinstance(error, SQLAlchemyError):
        told = request.app.state.database.explain(error)
        log.warning("%s", told)
        return 503, told.reason, str(told)
    log.error("%s", place_of(error))
    return 500, "fault", "the node met an error of its own; its log says where"


_STATUS: dict[type[Exception], int] = {
    NotSignedInError: 401,
    ForbiddenError: 403,
    ForgedFormError: 403,
    TooManyTriesError: 429,
    RunError: 404,
}


def _is_program(request: Request) -> bool:
    return request.url.path.startswith("/api/")
