"""The rejection note: a document by which the node withdraws results of its own (IHE IOCM; PS3.16 TID 2010).

An archive that knows IOCM hides what the note names. It names objects that this node made and no others: of a
modality's images the node knows nothing but what they show.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import TYPE_CHECKING

from highdicom import ko, sr
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import SecondaryCaptureImageStorage

from dicom_node import __version__, uids
from dicom_node.domain import MANUFACTURER, MODEL_NAME, RejectionReason
from dicom_node.results import ResultError, equipment_item, local_time, long_string, seal, series_and_maker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pydicom.dataset import Dataset

    from dicom_node.results import Reference

SERIES_NUMBER = 9003
SERIES_DESCRIPTION = "AI results withdrawn - RESEARCH, NOT FOR DIAGNOSTIC USE"

# PS3.16 CID 7010.
TITLES = {
    RejectionReason.QUALITY: Code("113001", "DCM", "Rejected for Quality Reasons"),
    RejectionReason.SAFETY: Code("113037", "DCM", "Rejected for Patient Safety Reasons"),
}
_SAID = {
    RejectionReason.QUALITY: "their quality",
    RejectionReason.SAFETY: "the safety of the patient",
}


def build_rejection_note(
    objects: Sequence[Reference],
    template: Dataset,
    *,
    reason: RejectionReason,
    when: datetime,
    node_ae_title: str,
) -> Dataset:
    """The Key Object Selection Document that withdraws these objects; the same arguments give the same bytes.

    Parameters
    ----------
    objects
        Results of this node, all of one study, in any order.
    template
        Header from `dicom_node.normalise` of an image that they are about; the note repeats its patient and study.
    when
        When they were withdrawn; aware. The UID does not depend on it: a withdrawal has one time.

    Raises
    ------
    ResultError
        Where there is no object, one stands there twice, or one is of another study than `template`.
    """
    objects = sorted(objects, key=lambda cited: cited.sop_instance_uid)
    named = [cited.sop_instance_uid for cited in objects]
    if not objects:
        raise ResultError("there is no object to withdraw")
    if len(set(named)) < len(named):
        raise ResultError("an object to withdraw is named twice")
    if any(cited.study_instance_uid != template.StudyInstanceUID for cited in objects):
        raise ResultError(f"an object to withdraw is not of the study {template.StudyInstanceUID}")
    instance_uid = uids.note_uid(template.StudyInstanceUID, named, reason, node_ae_title)
    cited = [_as_evidence(each, template) for each in objects]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # highdicom on names of one component, pydicom on leap seconds: both legal
        note: Dataset = ko.KeyObjectSelectionDocument(
            evidence=cited,
            content=ko.KeyObjectSelection(
                document_title=TITLES[reason],
                referenced_objects=cited,
                observer_device_context=_observer(node_ae_title),
                description=(
                    f"The software that made these results withdraws them for reasons of {_SAID[reason]}. "
                    "It made them for research, not for diagnostic use; do not rely on them."
                ),
            ),
            series_number=SERIES_NUMBER,
            series_description=SERIES_DESCRIPTION,
            **series_and_maker(instance_uid, local_time(template, when)),
        )
        note.StationName = long_string(node_ae_title)[:16]
        node = equipment_item(MODEL_NAME, __version__, uids.node_uid(node_ae_title), "Screening node", when)
        seal(note, template, when, [node])
    return note


def _as_evidence(cited: Reference, template: Dataset) -> Dataset:
    """The object as highdicom wants it: of the template's patient and study, and an image where it has rows."""
    found = deepcopy(template)
    found.SOPClassUID = cited.sop_class_uid
    found.SOPInstanceUID = cited.sop_instance_uid
    found.SeriesInstanceUID = cited.series_instance_uid
    for keyword in ("Rows", "Columns"):
        if cited.sop_class_uid == SecondaryCaptureImageStorage:
            setattr(found, keyword, 1)
        else:
            found.pop(keyword, None)
    return found


def _observer(node_ae_title: str) -> sr.ObserverContext:
    """The node as observing device (PS3.16 TID 1004), as in its reports."""
    return sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=uids.node_uid(node_ae_title),
            name=node_ae_title,
            manufacturer_name=MANUFACTURER,
            model_name=MODEL_NAME,
        ),
    )
