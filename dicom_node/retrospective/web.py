"""DICOMweb (PS3.18): QIDO-RS to ask, WADO-RS to fetch. Errors never name what was asked for: it may be a patient."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Self

import httpx
from pydicom.datadict import tag_for_keyword

from dicom_node.retrospective.query import Answer, Answers, QueryError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from dicom_node.config import Peer, Settings

_PAGE = 500
_SMALL_LIMIT = 50  # no server is known that gives fewer answers at a time
_MOST_PAGES = 400
_JSON = "application/dicom+json"
# A query that is too broad (PS3.18 8.3.4.4 leaves it to the server), and what may pass.
_TOO_MUCH = httpx.codes.REQUEST_ENTITY_TOO_LARGE
_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
_OF_ALL = frozenset({429, 502, 503, 504})  # said of the service, not of what was asked for
_BOUNDARY = re.compile(r'boundary=(?:"([^"]+)"|([^";,]+))', re.IGNORECASE)
_HEADERS_END = b"\r\n\r\n"


class WebClient:
    """Asks one peer's DICOMweb service; a context manager that closes the connections."""

    def __init__(self, peer: Peer, settings: Settings) -> None:
        self.name = peer.name
        password = peer.web_password.get_secret_value()
        self._client = httpx.Client(
            base_url=peer.web_url.rstrip("/") + "/",
            auth=(peer.web_user, password) if peer.web_user else None,
            timeout=settings.network_timeout_s,
            follow_redirects=False,  # credentials stay with the server that the settings name
        )

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closed."""
        self._client.close()

    def get(
        self, path: str, *, accept: str, largest: int, parameters: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """The whole answer, at most `largest` bytes, with a status of success.

        Raises
        ------
        QueryError
            Permanent where the same request cannot succeed.
        """
        request = self._client.build_request("GET", path, params=parameters, headers={"Accept": accept})
        try:
            response = self._client.send(request, stream=True)
            try:
                content = bytearray()
                for part in response.iter_bytes():
                    content += part
                    if len(content) > largest:
                        raise QueryError(
                            f"{self.name} answers more than {largest} bytes to one request",
                            permanent=True,
                            of_one=True,
                        )
            finally:
                response.close()
        except httpx.TimeoutException as error:
            raise QueryError(f"{self.name} (DICOMweb) does not answer in time") from error
        except httpx.RemoteProtocolError as error:
            raise QueryError(f"{self.name} (DICOMweb) broke off its answer", of_one=True) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise QueryError(
                f"{self.name} (DICOMweb) cannot be reached: {type(error).__name__}; see web_url"
            ) from error
        self._expect_success(response)
        return httpx.Response(response.status_code, headers=_kept(response.headers), content=bytes(content))

    def _expect_success(self, response: httpx.Response) -> None:
        status = response.status_code
        if response.is_success:
            return
        told = f"{self.name} (DICOMweb) answered with status {status}"
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise QueryError(f"{told}: see web_user and web_password", permanent=True)
        if response.is_redirect:
            raise QueryError(f"{told}, a redirection, which is not followed: see web_url", permanent=True)
        if status == httpx.codes.NOT_FOUND:
            raise QueryError(f"{told}: it is not there, or web_url is wrong", permanent=True, of_one=True)
        raise QueryError(told, permanent=status not in _MAY_PASS, of_one=status not in _OF_ALL)


def _kept(headers: httpx.Headers) -> dict[str, str]:
    """Those that are asked for later; the content was decoded already."""
    return {name: headers[name] for name in ("Content-Type", "Warning") if name in headers}


class Qido:
    """Asks by QIDO-RS (PS3.18 10.6), a page at a time."""

    def __init__(self, client: WebClient) -> None:
        self.name = client.name
        self._client = client

    def ask(self, level: str, keys: Mapping[str, str]) -> Answers:
        """See `dicom_node.retrospective.query.Transport`; a server that pages no further has cut off its answers.

        Raises
        ------
        QueryError
        """
        path, matched = _resource(level, dict(keys))
        parameters = {key: value for key, value in matched.items() if value}
        wanted = [key for key, value in matched.items() if not value]
        identity = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}[level]
        found: dict[tuple[str, ...], Answer] = {}
        told = 0
        for _ in range(_MOST_PAGES):
            page = self._page(path, parameters, wanted, told, [*keys, identity])
            if page is None:
                return Answers(list(found.values()), complete=False)
            answers, more = page
            before = len(found)
            for number, answer in enumerate(answers, start=told):
                found.setdefault(answer.get(identity) or ("", str(number)), answer)
            told += len(answers)
            if not answers or (len(answers) < _SMALL_LIMIT and not more):
                return Answers(list(found.values()), complete=True)
            if len(found) == before:  # it begins anew, whatever the offset: perhaps with all that it has
                return Answers(list(found.values()), complete=len(answers) < _PAGE and not more)
        raise QueryError(f"{self.name} does not end its answers to one query")

    def _page(
        self, path: str, parameters: Mapping[str, str], wanted: list[str], offset: int, keywords: list[str]
    ) -> tuple[list[Answer], bool] | None:
        """The answers from `offset` on, and whether there are more; None where the server says that it is too much."""
        asked = {**parameters, "limit": str(_PAGE), "offset": str(offset)}
        if wanted:
            asked["includefield"] = ",".join(wanted)
        try:
            response = self._client.get(path, accept=_JSON, largest=256 << 20, parameters=asked)
        except QueryError as error:
            if f"status {int(_TOO_MUCH)}" in str(error):
                return None
            raise
        if response.status_code == httpx.codes.NO_CONTENT or not response.content:
            return [], False
        try:
            told = response.json()
        except ValueError as error:
            raise QueryError(f"{self.name} (DICOMweb) answered a query with what is no JSON") from error
        if not isinstance(told, list):
            raise QueryError(f"{self.name} (DICOMweb) answered a query with JSON that is no list")
        # PS3.18 8.3.4.4: a server that gives fewer answers than it has says so.
        more = response.headers.get("Warning", "").startswith("299")
        return [_read(one, keywords) for one in told], more


def _resource(level: str, keys: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Path and further keys of a query (PS3.18 table 10.6.1-1)."""
    if level == "STUDY":
        return "studies", keys
    path = f"studies/{keys.pop('StudyInstanceUID')}/series"
    if level == "IMAGE":
        path += f"/{keys.pop('SeriesInstanceUID')}/instances"
    return path, keys


def _read(told: Any, keywords: list[str]) -> Answer:
    """The values as text (PS3.18 F.2); what cannot be made out is left out."""
    answer: Answer = {}
    for keyword in keywords:
        tag = f"{tag_for_keyword(keyword):08X}"
        element = told.get(tag) if isinstance(told, dict) else None
        values = element.get("Value") if isinstance(element, dict) else None
        if isinstance(values, list):
            answer[keyword] = tuple(
                str(one).strip() for one in values if isinstance(one, str | int) and str(one).strip()
            )
    return answer


def parts(response: httpx.Response) -> list[bytes]:
    """The parts of a multipart/related answer (RFC 2387), or the one body that is none.

    Raises
    ------
    QueryError
        Where it is cut off.
    """
    content_type = response.headers.get("Content-Type", "")
    if not content_type.lower().startswith("multipart/"):
        return [response.content]
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise QueryError("an answer of several parts names no boundary", of_one=True)
    mark = b"--" + (found[1] or found[2]).strip().encode()
    pieces = (b"\r\n" + response.content).split(b"\r\n" + mark)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise QueryError("an answer of several parts is cut off", of_one=True)
    bodies = []
    for piece in pieces[1:-1]:
        _, end, body = piece.partition(_HEADERS_END)
        if end:
            bodies.append(body)
    return bodies
