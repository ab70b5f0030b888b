"""A disagreement takes a study's results back from where they were sent, where the site says so."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dicom_node.domain import NodeError, RejectionReason
from dicom_node.retraction import retract
from dicom_node.retractions import RetractionError
from dicom_node.worklist.access import address
from dicom_node.worklist.feedback import Verdict

if TYPE_CHECKING:
    from fastapi import Request

    from dicom_node.worklist.accounts import Person
    from dicom_node.worklist.feedback import Reason

log = logging.getLogger(__name__)


def take_back(request: Request, person: Person, uid: str, verdict: Verdict, reason: Reason | None) -> None:
    """The results are taken back, or the audit says why they are not; what was said stands either way."""
    state = request.app.state
    if verdict is not Verdict.DISAGREE or not state.settings.worklist.disagreement_retracts:
        return
    comment = f"a reader disagrees: {str(reason).replace('_', ' ')}"
    try:
        retract(state.settings, uid, RejectionReason.QUALITY, comment=comment, asked_by=person.name)
    except RetractionError:  # there is nothing to take back, or it was before
        return
    except NodeError as error:
        log.warning("study %s: its results are not taken back: %s", uid, error)
        state.accounts.audit(person.name, "not_retracted", address(request), study=uid, detail=error.reason)
    else:
        state.accounts.audit(person.name, "retracted", address(request), study=uid)
