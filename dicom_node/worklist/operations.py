"""The operators' page and its buttons; health and metrics for programs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from sqlalchemy import text

from dicom_node.rescreening import RescreeningError, rescreen
from dicom_node.worklist.access import address, needs
from dicom_node.worklist.accounts import Person, Role
from dicom_node.worklist.pages import rendered
from dicom_node.worklist.standing import Standing, failed_studies, failures, outbox_of, standing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

router = APIRouter(include_in_schema=False)
Operator = Annotated[Person, Depends(needs(Role.OPERATOR))]
_PREFIX = "cxr_node_"
_DONE = re.compile(r"\d{1,9} (objects are sent again|images wait to be screened anew)", re.ASCII)


@router.get("/operations")
def operations(request: Request, person: Operator, done: Annotated[str, Query(max_length=100)] = "") -> Response:
    """How the node stands, what failed, and the buttons that try it again."""
    state = request.app.state
    found = failures(state.database)
    kinds = sorted({one.reason for one in found})
    return rendered(
        request,
        "operations.html.j2",
        standing=standing(state.settings, state.database),
        failures=found,
        kinds=kinds,
        destinations=list(state.settings.destinations),
        done=done if _DONE.fullmatch(done) else "",
        csrf_token=person.csrf_token,
    )


@router.post("/operations/retry")
def retry(
    request: Request,
    person: Operator,
    study: Annotated[str, Form(max_length=64)] = "",
    reason: Annotated[str, Form(max_length=64)] = "",
    destination: Annotated[str, Form(max_length=64)] = "",
) -> Response:
    """What failed is tried again: of one study, of one kind, or all that one destination rejected."""
    state = request.app.state
    outbox = outbox_of(state.settings, state.database)
    if destination or reason == "delivery_rejected":
        count = outbox.send_again(destination=destination or None, study_instance_uid=study or None, failed_only=True)
        told = f"{count} objects are sent again"
    else:
        studies = [study] if study else failed_studies(state.database, reason)
        count = 0
        for one in studies:
            try:
                count += rescreen(state.settings, one)
            except RescreeningError:  # its pixels are gone
                continue
        told = f"{count} images wait to be screened anew"
    detail = (study and "of one study") or destination or reason
    state.accounts.audit(person.name, "retried", address(request), study=study or None, detail=detail)
    return RedirectResponse(f"/operations?done={told.replace(' ', '+')}", 303)


@router.get("/healthz")
def healthz() -> Response:
    """The process answers."""
    return PlainTextResponse("ok\n")


@router.get("/readyz")
def readyz(request: Request) -> Response:
    """The ledger answers too."""
    with request.app.state.database.read() as session:
        session.execute(text("SELECT 1"))
    return PlainTextResponse("ready\n")


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Counts in Prometheus' text format; no patient data."""
    state = request.app.state
    found = standing(state.settings, state.database)
    body = "".join(f"{line}\n" for line in _metrics(found))
    return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")


def _metrics(found: Standing) -> Iterator[str]:
    def gauge(name: str, meaning: str, values: Mapping[str, float]) -> Iterator[str]:
        yield f"# HELP {_PREFIX}{name} {meaning}"
        yield f"# TYPE {_PREFIX}{name} gauge"
        for labels, value in values.items():
            yield f"{_PREFIX}{name}{labels} {value:g}"

    yield from gauge("instances", "Instances by state.", {_label(state=s): n for s, n in found.counts.items()})
    yield from gauge("invariant_holds", "Whether every instance received is accounted for.", {"": found.holds})
    yield from gauge(
        "waiting", "Screenings that a worker could take.", {_label(purpose=p): n for p, n in found.waiting.items()}
    )
    yield from gauge("predicted_last_hour", "Images that got an answer.", {"": found.predicted_last_hour})
    deliveries = {
        _label(destination=name, state=state): count
        for name, states in found.deliveries.items()
        for state, count in states.items()
    }
    yield from gauge("deliveries", "Objects by destination and state.", deliveries)
    yield from gauge("reports_due", "Studies of which no report tells yet.", {"": found.beside.reports_due})
    if found.disk_free_bytes is not None:
        yield from gauge("archive_free_bytes", "Free on the archive's disk.", {"": found.disk_free_bytes})
    runs = {_label(run=run.name, state=state): count for run in found.runs for state, count in run.studies.items()}
    yield from gauge("run_studies", "Studies of retrospective runs by state.", runs)


def _label(**values: object) -> str:
    told = ",".join(f'{name}="{_escaped(str(value))}"' for name, value in values.items())
    return f"{{{told}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
