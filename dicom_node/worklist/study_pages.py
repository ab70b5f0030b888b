"""Pages of one study: its images, what the networks said of them, and what people say of that."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Form, Path, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from dicom_node.archive import Archive
from dicom_node.maps import MissingFileError, read_maps
from dicom_node.worklist import feedback
from dicom_node.worklist.access import address, needs
from dicom_node.worklist.accounts import Person, Role
from dicom_node.worklist.feedback import Reason, Verdict
from dicom_node.worklist.pages import READERS, Reader, Uid, rendered, viewer_link
from dicom_node.worklist.pictures import overlay_png
from dicom_node.worklist.retracting import take_back
from dicom_node.worklist.study import Film, UnknownStudyError, film, report, whole
from dicom_node.worklist.wording import inert

if TYPE_CHECKING:
    from dicom_node.worklist.study import Whole

router = APIRouter(include_in_schema=False)
ImageId = Annotated[int, Path(ge=1, le=2**31 - 1)]  # of the databases' integers


@router.get("/studies/{uid}")
def study(request: Request, person: Reader, uid: Uid, image: int = 0) -> Response:
    """The study's page."""
    state = request.app.state
    found = whole(state.database, uid)
    state.accounts.audit(person.name, "study_seen", address(request), study=found.line.study.study_instance_uid)
    shown = _film(found, image)
    return rendered(
        request,
        "study.html.j2",
        found=replace(found, provenance=tuple(inert(line) for line in found.provenance)),
        line=found.line,
        film=shown,
        report=report(state.database, Archive(state.settings.archive_dir), uid),
        said=feedback.history(state.database, uid),
        verdicts=list(Verdict),
        reasons=list(Reason),
        longest_comment=feedback.LONGEST_COMMENT,
        retracts=state.settings.worklist.disagreement_retracts,
        viewer=viewer_link(state.settings, found.line.study),
        csrf_token=person.csrf_token,
    )


def _film(found: Whole, instance_id: int) -> Film | None:
    """The image that is asked for, else the one with the strongest flag, else the first."""
    films = {film.instance_id: film for film in found.films}
    if instance_id in films:
        return films[instance_id]
    return max(
        found.films, key=lambda film: max((r.probability for r in film.results if r.flagged), default=0.0), default=None
    )


def _one(request: Request, uid: str, instance_id: int) -> Film:
    found = film(request.app.state.database, uid, instance_id)
    if found is None:
        raise UnknownStudyError("the study holds no such image")
    if found.path is None:
        raise MissingFileError("the image's pixels are not kept any more")
    return found


@router.get("/studies/{uid}/images/{instance_id}/grey", dependencies=READERS)
def grey(request: Request, uid: Uid, instance_id: ImageId) -> Response:
    """The X-ray's grey values, for the viewer."""
    one = _one(request, uid, instance_id)
    content = request.app.state.pictures.grey(one.path)
    return Response(content, media_type="application/octet-stream")


@router.get("/studies/{uid}/images/{instance_id}/maps/{number}", dependencies=READERS)
def overlay(request: Request, uid: Uid, instance_id: ImageId, number: int) -> Response:
    """One member's heatmap to lie over the X-ray, PNG."""
    state = request.app.state
    one = _one(request, uid, instance_id)
    if not 0 <= number < len(one.maps):
        raise UnknownStudyError("the image has no such heatmap")
    (found,) = read_maps(Archive(state.settings.archive_dir), one.maps[number : number + 1])
    rows, columns = state.pictures.shape(one.path)
    picture = overlay_png(found.pixels, rows, columns, found.box)
    return Response(picture, media_type="image/png")


@router.post("/studies/{uid}/feedback")
def say(
    request: Request,
    person: Reader,
    uid: Uid,
    verdict: Annotated[Verdict, Form()],
    reason: Annotated[str, Form(max_length=32)] = "",
    comment: Annotated[str, Form(max_length=4000)] = "",
) -> Response:
    """What the person says stands in the history; where the site says so, a disagreement takes the results back."""
    state = request.app.state
    why = Reason(reason) if reason in list(Reason) else None
    feedback.say(state.database, uid, person.name, verdict, why, comment)
    state.accounts.audit(person.name, f"said_{verdict}", address(request), study=uid)
    take_back(request, person, uid, verdict, why)
    return RedirectResponse(f"/studies/{uid}#feedback", 303)


@router.get("/feedback.csv")
def feedback_csv(request: Request, person: Annotated[Person, Depends(needs(Role.OPERATOR))]) -> Response:
    """All that was said, as CSV."""
    state = request.app.state
    state.accounts.audit(person.name, "feedback_exported", address(request))
    headers = {"Content-Disposition": 'attachment; filename="feedback.csv"'}
    return StreamingResponse(feedback.as_csv(state.database), media_type="text/csv; charset=utf-8", headers=headers)
