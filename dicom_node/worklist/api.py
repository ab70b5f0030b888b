"""The JSON API, version 1: the worklist, a study, what people say of it, read state, runs and the node's standing.

A program sends ``Authorization: Bearer TOKEN`` with a token that a person made on the account's page.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from dicom_node.domain import State  # noqa: TC001 - FastAPI looks the annotations up
from dicom_node.retrospective.progress import all_runs, run_status
from dicom_node.worklist import feedback, listing
from dicom_node.worklist.access import address, needs
from dicom_node.worklist.accounts import Person, Role
from dicom_node.worklist.feedback import LONGEST_COMMENT, Reason, Verdict
from dicom_node.worklist.listing import MOST_LINES, Cursor, Filters
from dicom_node.worklist.pages import filters
from dicom_node.worklist.retracting import take_back
from dicom_node.worklist.standing import standing
from dicom_node.worklist.study import UnknownStudyError, whole

if TYPE_CHECKING:
    from dicom_node.domain import TargetResult
    from dicom_node.worklist.listing import Line

router = APIRouter(prefix="/api/v1", tags=["v1"])
Reader = Annotated[Person, Depends(needs(Role.READER))]
_OPERATORS = [Depends(needs(Role.OPERATOR))]
Uid = Annotated[str, Path(pattern=r"^[0-9.]{1,64}$", description="Study Instance UID")]


class Told(BaseModel):
    """What went wrong: a word for programs and a sentence for people."""

    error: str
    message: str


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Told, "description": meaning}
    for status, meaning in (
        (400, "The request cannot be met as it is."),
        (401, "No token, or none that lets in."),
        (403, "The role does not allow it."),
        (404, "There is no such thing."),
        (413, "The request is too long."),
        (422, "A value cannot be used."),
        (503, "The ledger does not answer."),
    )
}


class Result(BaseModel):
    """The ensemble's answer to one question; `members` by what each would answer alone."""

    target: str
    probability: float
    threshold: float
    decision: str
    members: dict[str, float] = Field(default_factory=dict)


class Study(BaseModel):
    """A study as the worklist shows it."""

    study_instance_uid: str
    accession_number: str | None
    patient_id: str | None
    patient_name: str | None
    modality: str
    location: str
    arrived_at: datetime
    acquired_at: datetime | None
    due_at: datetime = Field(description="Its place: studies are in the order of this time")
    moved_up: bool
    flagged: bool
    probability: float | None
    state: State | None
    images: int
    read_at: datetime | None
    read_by: str | None
    results: list[Result]


class Studies(BaseModel):
    """A page of studies; `next` is to be given as `after`, and null on the last one."""

    studies: list[Study]
    next: str | None


class Image(BaseModel):
    """One image of a study."""

    sop_instance_uid: str
    view: str
    state: State
    reason: str | None
    release: str
    results: list[Result]


class Detail(Study):
    """A study with its images."""

    films: list[Image]


class Opinion(BaseModel):
    """What a person says of a study; who disagrees gives a reason."""

    model_config = ConfigDict(extra="forbid")

    verdict: Verdict
    reason: Reason | None = None
    comment: str = Field("", max_length=LONGEST_COMMENT)


class Given(Opinion):
    """What a person said, when, and of which release's answer."""

    user_name: str
    release: str
    at: datetime


class ReadState(BaseModel):
    """Whether a study was read."""

    model_config = ConfigDict(extra="forbid")

    read: bool


def _results(answers: Any) -> list[Result]:
    return [_result(one) for one in answers]


def _result(one: TargetResult) -> Result:
    return Result(
        target=one.target,
        probability=one.probability,
        threshold=one.threshold,
        decision=one.decision,
        members=dict(one.members),
    )


def _study(line: Line) -> dict[str, Any]:
    row = line.study
    plain = {name: getattr(row, name) for name in Study.model_fields if hasattr(row, name)}
    return plain | {
        "moved_up": line.moved_up,
        "state": line.state,
        "images": line.images,
        "results": _results(line.results),
    }


@router.get("/worklist", responses=_ERRORS)
def worklist(
    request: Request,
    person: Reader,
    asked: Annotated[Filters, Depends(filters)],
    after: Annotated[str, Query(max_length=64)] = "",
    limit: Annotated[int, Query(ge=1, le=MOST_LINES)] = 50,
) -> Studies:
    """Studies in the order in which they should be read."""
    state = request.app.state
    cursor = Cursor.from_text(after) if after else None
    found = listing.page(state.database, asked, state.site, after=cursor, limit=limit)
    state.accounts.audit(person.name, "worklist_seen", address(request))
    return Studies(
        studies=[Study(**_study(line)) for line in found.lines], next=found.after.as_text() if found.after else None
    )


@router.get("/studies/{uid}", responses=_ERRORS)
def study(request: Request, person: Reader, uid: Uid) -> Detail:
    """A study with its images."""
    state = request.app.state
    found = whole(state.database, uid)
    state.accounts.audit(person.name, "study_seen", address(request), study=uid)
    films = [
        Image(
            sop_instance_uid=film.sop_instance_uid,
            view=film.view,
            state=film.state,
            reason=film.reason,
            release=film.release,
            results=_results(film.results),
        )
        for film in found.films
    ]
    return Detail(**_study(found.line), films=films)


@router.put("/studies/{uid}/read", responses=_ERRORS)
def set_read(request: Request, person: Reader, uid: Uid, wanted: ReadState) -> Study:
    """The study was read and leaves the worklist, or comes back to it."""
    state = request.app.state
    listing.mark_read(state.database, uid, person.name, datetime.now(UTC), read=wanted.read)
    line = listing.one(state.database, uid)
    if line is None:
        raise UnknownStudyError("no such study stands in the worklist")
    state.accounts.audit(person.name, "read" if wanted.read else "unread", address(request), study=uid)
    return Study(**_study(line))


@router.get("/studies/{uid}/feedback", responses=_ERRORS, dependencies=[Depends(needs(Role.READER))])
def said(request: Request, uid: Uid) -> list[Given]:
    """All that was said of the study, the newest first."""
    database = request.app.state.database
    if listing.one(database, uid) is None:
        raise UnknownStudyError("no such study stands in the worklist")
    found = feedback.history(database, uid)
    return [
        Given(
            verdict=one.verdict,
            reason=one.reason,
            comment=one.comment,
            user_name=one.user_name,
            release=one.release,
            at=one.at,
        )
        for one in found
    ]


@router.post("/studies/{uid}/feedback", status_code=201, responses=_ERRORS)
def say(request: Request, person: Reader, uid: Uid, opinion: Opinion) -> list[Given]:
    """The person says something of the study; what was said before stays in the history."""
    state = request.app.state
    if listing.one(state.database, uid) is None:
        raise UnknownStudyError("no such study stands in the worklist")
    feedback.say(state.database, uid, person.name, opinion.verdict, opinion.reason, opinion.comment)
    state.accounts.audit(person.name, f"said_{opinion.verdict}", address(request), study=uid)
    take_back(request, person, uid, opinion.verdict, opinion.reason)
    return said(request, uid)


@router.get("/retrospective", responses=_ERRORS, dependencies=_OPERATORS)
def runs(request: Request) -> list[dict[str, Any]]:
    """Retrospective runs with their progress, the latest first."""
    return [run.as_json() for run in all_runs(request.app.state.database, datetime.now(UTC))]


@router.get("/retrospective/{name}", responses=_ERRORS, dependencies=_OPERATORS)
def run(request: Request, name: Annotated[str, Path(max_length=64)]) -> dict[str, Any]:
    """One retrospective run."""
    return run_status(request.app.state.database, name, datetime.now(UTC)).as_json()


@router.get("/status", responses=_ERRORS, dependencies=_OPERATORS)
def status(request: Request) -> dict[str, Any]:
    """How the node stands: no patient data."""
    state = request.app.state
    return standing(state.settings, state.database).as_json()
