"""What report and heatmap have in common.

Both are held against the manifest, name their makers, carry the patient and study of their source, and are encoded
alike.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from typing import TYPE_CHECKING, Any

from highdicom.base_content import ContributingEquipment
from pydicom import dcmwrite
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node import __version__, uids
from dicom_node.domain import MANUFACTURER, MODEL_NAME, Decision, NodeError, Remark, decided
from dicom_node.normalise import CHARACTER_SET

if TYPE_CHECKING:
    from collections.abc import Collection

    from pydicom.dataset import Dataset
    from pydicom.uid import UID

    from dicom_node.bundle import Manifest, Member, Target
    from dicom_node.domain import Prediction


_REMARKS = {
    str(Remark.POLARITY_MENDED): "The networks were shown the image inverted, as its polarity seemed wrong.",
    str(Remark.TURNED): "The networks were shown the image turned by {} degrees clockwise.",
    str(Remark.POSITION_UNCERTAIN): "The image seems turned or inverted; the networks were shown it as it is.",
    str(Remark.WITHOUT_MEMBER): "Answered without {}, which gave no usable output.",
}


@dataclass(frozen=True, slots=True)
class Reference:
    """How another object cites a composite one of ours (PS3.3 10.8, C.17.2)."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


def cite(ds: Dataset) -> Reference:
    """How another object cites this one."""
    return Reference(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPClassUID, ds.SOPInstanceUID)


@dataclass(frozen=True, slots=True)
class Screened:
    """One image of a study, with what the ledger holds of its screening.

    Attributes
    ----------
    source
        Header of the image from `dicom_node.normalise`.
    prediction
        With its maps.
    predicted_at
        Aware.
    heatmap
        None where there is none to cite.
    """

    source: Dataset
    prediction: Prediction
    predicted_at: datetime
    heatmap: Reference | None


class ResultError(NodeError):
    """A prediction cannot be told as DICOM; the message names the number or the name at fault."""

    reason = "result"


def check(prediction: Prediction, manifest: Manifest) -> None:
    """Refuse a prediction that the bundle of `manifest` cannot have made, or that contradicts itself.

    Raises
    ------
    ResultError
    """
    made_by = f"{prediction.bundle} {prediction.release}"
    if (prediction.bundle, prediction.release) != (manifest.name, manifest.release):
        raise ResultError(f"prediction of {made_by} with the manifest of {manifest.name} {manifest.release}")
    if not prediction.targets:
        raise ResultError(f"prediction of {made_by} answers no question")
    unknown = sorted(set(prediction.members) - {member.name for member in manifest.members})
    if unknown:
        raise ResultError(f"members {', '.join(unknown)} are not in the manifest of {made_by}")
    for result in prediction.targets:
        find_target(manifest, result.target)
        probability = finite(result.probability, f"probability of {result.target}")
        plain = decided(probability, finite(result.threshold, f"threshold of {result.target}"))
        if result.decision not in (plain, Decision.INDETERMINATE):
            raise ResultError(f"{result.target}: {result.decision} contradicts probability and threshold")


def remark_texts(prediction: Prediction) -> list[str]:
    """What a reader of the answer must know of how it came about, as sentences."""
    found = []
    for remark in prediction.remarks:
        kind, _, what = remark.partition(":")
        text = _REMARKS.get(kind)
        found.append(remark if text is None else text.format(what))
    return found


def find_target(manifest: Manifest, name: str) -> Target:
    """The manifest's target of that name.

    Raises
    ------
    ResultError
    """
    for target in manifest.targets:
        if target.name == name:
            return target
    raise ResultError(f"target {name} is not in the manifest of {manifest.name} {manifest.release}")


def finite(value: Any, what: str) -> float:
    """`value` as Python's float; `what` names it where it is none.

    Raises
    ------
    ResultError
    """
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ResultError(f"{what} is not a number") from error
    if not math.isfinite(number):
        raise ResultError(f"{what} is {number!r}: not a finite number")
    return number


def thresholds(prediction: Prediction) -> dict[str, float]:
    """The thresholds that the prediction was held against, by target."""
    return {result.target: result.threshold for result in prediction.targets}


def weights_sha256(manifest: Manifest) -> str:
    """One digest over the weights of every member, in the manifest's order."""
    return hashlib.sha256("".join(member.weights_sha256 for member in manifest.members).encode()).hexdigest()


def long_string(text: str) -> str:
    """`text` as a legal LO (PS3.5 6.2): no backslash, no control characters, at most 64 characters."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\\]", " ", text).strip()[:64].strip()


def short_text(text: str) -> str:
    """`text` as a legal ST of one line: at most 1024 characters."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\\]", " ", text)[:1024].strip()


def paragraph(text: str) -> str:
    """`text` without the control characters that a UT excludes (PS3.5 6.2)."""
    return re.sub(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]", " ", text).rstrip()


def utc(when: datetime) -> str:
    """`when` as a DT, in UTC."""
    return when.astimezone(UTC).strftime("%Y%m%d%H%M%S+0000")


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What made a result, as IHE AIR wants it named: alike in Contributing Equipment and in TID 4019."""

    name: str
    version: str
    weights_sha256: str
    description: str

    @property
    def device_uid(self) -> UID:
        """Another one for each training."""
        return uids.device_uid(self.name, self.version, self.weights_sha256)


def ensemble_algorithm(manifest: Manifest) -> Algorithm:
    """The ensemble as a whole."""
    return Algorithm(manifest.name, manifest.release, weights_sha256(manifest), f"Ensemble: {manifest.title}")


def member_algorithm(member: Member) -> Algorithm:
    """One member."""
    description = f"Member of the ensemble: {member.title}"
    return Algorithm(member.name, member.version, member.weights_sha256, description)


def algorithms(took_part: Collection[str], manifest: Manifest) -> list[Algorithm]:
    """The ensemble, and each member that took part, in the manifest's order."""
    members = (member_algorithm(member) for member in manifest.members if member.name in took_part)
    return [ensemble_algorithm(manifest), *members]


def equipment(prediction: Prediction, manifest: Manifest, when: datetime) -> list[ContributingEquipment]:
    """The ensemble and each member that took part, as processing equipment (IHE AIR 6.5.3.1)."""
    return [
        equipment_item(one.name, one.version, one.device_uid, one.description, when)
        for one in algorithms(prediction.members, manifest)
    ]


def equipment_item(name: str, version: str, device: str, description: str, when: datetime) -> ContributingEquipment:
    """One Item of Contributing Equipment Sequence with purpose (109102, DCM, "Processing Equipment")."""
    item = ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=long_string(name),
        software_versions=long_string(version),
        contribution_datetime=utc(when),
        contribution_description=short_text(description),
    )
    item.DeviceUID = device  # PS3.3 table C.12-1; highdicom has no argument for it
    return item


def local_time(source: Dataset, when: datetime) -> datetime:
    """`when` as dates and times of the source are meant: in its Timezone Offset From UTC, without one in UTC."""
    offset = source.get("TimezoneOffsetFromUTC") or "+0000"
    minutes = int(offset[1:3]) * 60 + int(offset[3:5])
    zone = timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))
    return when.astimezone(zone).replace(microsecond=0, tzinfo=None)


def series_and_maker(instance_uid: UID, local: datetime) -> dict[str, Any]:
    """Highdicom's arguments for the series that holds this result alone, its time and its maker."""
    return {
        "series_instance_uid": uids.series_uid(instance_uid),
        "series_date": local.date(),
        "series_time": local.time(),
        "sop_instance_uid": instance_uid,
        "instance_number": 1,
        "content_date": local.date(),
        "content_time": local.time(),
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MODEL_NAME,
        "software_versions": __version__,
        "content_qualification": "RESEARCH",
        "specific_character_set": CHARACTER_SET,
        "transfer_syntax_uid": ExplicitVRLittleEndian,
    }


def seal(result: Dataset, source: Dataset, when: datetime, contributors: list[ContributingEquipment]) -> None:
    """Give a result its patient and study, and put `when` and our own names where highdicom put now and its own.

    highdicom names itself as processing equipment too; AIR's readers would take it for an algorithm.
    """
    # A copy, for highdicom shares the elements: a change to one result would be one to the other and to the source.
    result.copy_patient_and_study_information(deepcopy(source))
    local = local_time(source, when)
    result.add_new("InstanceCreationDate", "DA", local.strftime("%Y%m%d"))
    result.add_new("InstanceCreationTime", "TM", local.strftime("%H%M%S"))
    if source.get("TimezoneOffsetFromUTC"):
        result.TimezoneOffsetFromUTC = source.TimezoneOffsetFromUTC
    result.ContributingEquipmentSequence = contributors
    result.file_meta.ImplementationClassUID = uids.IMPLEMENTATION_CLASS_UID
    result.file_meta.ImplementationVersionName = uids.IMPLEMENTATION_VERSION_NAME


def encode(result: Dataset) -> bytes:
    """The result as a PS3.10 file: explicit VR little endian, uncompressed."""
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a cited UID that was illegal in the source is written as it came
        dcmwrite(buffer, result, enforce_file_format=True)
    return buffer.getvalue()
