"""The report: one TID 1500 Structured Report per screened image.

The tree (PS3.16 TID 1500) holds one measurement group (TID 1501) per question that the bundle answers and one per
member with its outputs as the ledger has them. A question is its target's code, the answer Positive or Negative
(CID 250); the code never stands as a Finding, which would assert it on negatives too. That an image is *normal* is
never said: a bundle that finds no COVID-19 has not looked for anything else.

The same tree is legal in Comprehensive 3D, Comprehensive and Enhanced SR.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING

import numpy as np
from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
)

from dicom_node import __version__, uids
from dicom_node.domain import MANUFACTURER, MODEL_NAME, Decision
from dicom_node.results import (
    ResultError,
    check,
    equipment,
    equipment_item,
    find_target,
    finite,
    local_time,
    long_string,
    remark_texts,
    seal,
    series_and_maker,
    thresholds,
    weights_sha256,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from dicom_node.bundle import Manifest, Member, Target
    from dicom_node.domain import Prediction, TargetResult

SOP_CLASSES = {
    Comprehensive3DSRStorage: sr.Comprehensive3DSR,
    ComprehensiveSRStorage: sr.ComprehensiveSR,
    EnhancedSRStorage: sr.EnhancedSR,
}

NOT_FOR_DIAGNOSIS = (
    "Research software, not for diagnostic use. An algorithm made this result and no person has checked it; "
    "it must not guide the care of a patient."
)
SERIES_NUMBER = 9002
SERIES_DESCRIPTION = "AI result - RESEARCH, NOT FOR DIAGNOSTIC USE"

_MODALITIES = {"CR": "Computed Radiography", "DX": "Digital Radiography", "RG": "Radiographic imaging"}
_UNIT = Code("1", "UCUM", "no units")
_PROBABILITY = Code("122157", "DCM", "Probability")
_ANSWERS = {
    Decision.FLAGGED: codes.SCT.Positive,
    Decision.NOT_FLAGGED: codes.SCT.Negative,
    Decision.INDETERMINATE: Code("373068000", "SCT", "Undetermined"),
}
_THRESHOLD = Code("122411", "DCM", "Threshold Value")
_VISUAL_EXPLANATION = Code("130401", "DCM", "Visual explanation")
_PLAIN_CHEST_XRAY = Code("399208008", "SCT", "Plain X-ray of chest")
_COMPUTER_AIDED_DIAGNOSIS = Code("110003", "DCM", "Computer Aided Diagnosis")

# Outputs of members, by the ledger's names. What is a probability has the standard's code; for a score that is none
# there is no code in DICOM, and a private scheme is honest where a borrowed code would mislead.
PRIVATE_SCHEME = "99CXRSCREEN"
OUTPUT_CODES = {
    "p_cls": _PROBABILITY,
    "p_ano": Code("p_ano", PRIVATE_SCHEME, "Anomaly score, not confined to 0..1"),
    "p_avg": Code("p_avg", PRIVATE_SCHEME, "Mean of probability and scaled anomaly score"),
}


def output_code(name: str) -> Code:
    """The concept name under which a member's output stands in the report."""
    if name in OUTPUT_CODES:
        return OUTPUT_CODES[name]
    value = long_string(name)
    if len(value) > 16 or value != name:  # SH; a longer one would be a Long Code Value, which old readers miss
        value = f"{value[:7].strip()}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Code(value, PRIVATE_SCHEME, long_string(f"Output {name}"))


# highdicom copies and searches what it is given several times: it is given one group, which refers to both images, and
# the others are put beside that one.
_SHOWN = 1


def build_report(
    source: Dataset,
    heatmap: Dataset,
    prediction: Prediction,
    manifest: Manifest,
    *,
    when: datetime,
    node_ae_title: str,
    sop_class: UID = Comprehensive3DSRStorage,
) -> Dataset:
    """The Structured Report on one image; the same arguments give the same bytes.

    Parameters
    ----------
    source
        Header of the screened image from `dicom_node.normalise`.
    heatmap
        What `dicom_node.heatmap.build_heatmap` made of the same prediction; the report cites it.
    when
        When the prediction was made; aware.
    sop_class
        One of `SOP_CLASSES`; each gives an instance of its own.

    Raises
    ------
    ResultError
        Where prediction and manifest do not fit together or a number is not finite.
    """
    check(prediction, manifest)
    local = local_time(source, when)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # highdicom on names of one component, pydicom on leap seconds: both legal
        groups = _groups(source, heatmap, prediction, manifest)
        first, later = groups[:_SHOWN], groups[_SHOWN:]
        instance_uid = uids.report_uid(
            source.StudyInstanceUID,
            source.SOPInstanceUID,
            prediction.bundle,
            prediction.release,
            thresholds(prediction),
            sop_class,
            operating_point=prediction.operating_point,
            weights_sha256=weights_sha256(manifest),
            heatmap=heatmap.SOPInstanceUID,
            node_ae_title=node_ae_title,
        )
        report: Dataset = SOP_CLASSES[sop_class](
            evidence=[source, heatmap],
            content=_content(source, first, node_ae_title),
            series_number=SERIES_NUMBER,
            series_description=SERIES_DESCRIPTION,
            is_complete=True,
            is_final=False,
            is_verified=False,
            coding_schemes=[
                CodingSchemeIdentificationItem(
                    PRIVATE_SCHEME, name="Outputs of chest X-ray networks", responsible_organization=MANUFACTURER
                )
            ],
            performed_procedure_codes=[_COMPUTER_AIDED_DIAGNOSIS],
            **series_and_maker(instance_uid, local),
        )
        if later:
            (measured,) = (item for item in report.ContentSequence if _is_named(item, codes.DCM.ImagingMeasurements))
            measured.ContentSequence.extend(item for group in later for item in group)
        report.StationName = long_string(node_ae_title)[:16]
        acquisition = [
            item
            for item in report.ContributingEquipmentSequence
            if item.PurposeOfReferenceCodeSequence[0].CodeValue == codes.DCM.AcquisitionEquipment.value
        ]
        node = equipment_item(MODEL_NAME, __version__, uids.node_uid(node_ae_title), "Screening node", when)
        seal(report, source, when, [*acquisition, node, *equipment(prediction, manifest, when)])
    return report


def _is_named(item: Dataset, name: Code) -> bool:
    return bool(item.ConceptNameCodeSequence[0].CodeValue == name.value)


def _groups(
    source: Dataset, heatmap: Dataset, prediction: Prediction, manifest: Manifest
) -> list[sr.MeasurementsAndQualitativeEvaluations]:
    """One for each question, then one for each member that took part."""
    groups = [_target_group(result, source, heatmap, prediction, manifest) for result in prediction.targets]
    groups += [
        _member_group(member, prediction.members[member.name], source, prediction)
        for member in manifest.members
        if member.name in prediction.members
    ]
    return groups


def _content(
    source: Dataset, groups: Sequence[sr.MeasurementsAndQualitativeEvaluations], node_ae_title: str
) -> sr.MeasurementReport:
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=uids.node_uid(node_ae_title),
            name=node_ae_title,
            manufacturer_name=MANUFACTURER,
            model_name=MODEL_NAME,
        ),
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_PLAIN_CHEST_XRAY,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=[_library_entry(source)],
    )
    _name_modality(content[0], source)
    return content


def _name_modality(item: Dataset, source: Dataset) -> None:
    """Put the source's modality (CID 29) into the Image Library: highdicom derives it from the SOP class alone."""
    if source.get("Modality") not in _MODALITIES:
        return
    for child in item.get("ContentSequence", []):
        if child.ConceptNameCodeSequence[0].CodeValue == codes.DCM.Modality.value:
            child.ConceptCodeSequence = [sr.CodedConcept(source.Modality, "DCM", _MODALITIES[source.Modality])]
        _name_modality(child, source)


def _target_group(
    result: TargetResult, source: Dataset, heatmap: Dataset, prediction: Prediction, manifest: Manifest
) -> sr.MeasurementsAndQualitativeEvaluations:
    """What the ensemble answers to one question (TID 1501)."""
    target = find_target(manifest, result.target)
    question = Code(target.code.value, target.code.scheme, long_string(target.code.meaning))
    parameters = [
        f"rule={_rule(target)}",
        f"operating_point={result.operating_point or prediction.operating_point}",
        f"threshold={float(result.threshold)!r}",
        *(f"weight {name}={weight!r}" for name, weight in sorted(target.weights.items())),
    ]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=uids.tracking_uid(
                source.SOPInstanceUID, prediction.bundle, prediction.release, f"target {result.target}"
            ),
            identifier=f"AI ensemble: {target.title}",
        ),
        finding_sites=[sr.FindingSite(codes.SCT.Chest)],
        algorithm_id=_algorithm(manifest.name, manifest.release, weights_sha256(manifest), parameters),
        measurements=[
            _measurement(_PROBABILITY, result.probability, f"probability of {result.target}", source),
            _measurement(_THRESHOLD, result.threshold, f"threshold of {result.target}", source),
        ],
        qualitative_evaluations=[sr.QualitativeEvaluation(name=question, value=_ANSWERS[result.decision])],
    )
    more = group[0].ContentSequence
    # It is drawn from the maps of the first question. TID 1501 row 9d, for which highdicom has no argument.
    if prediction.maps and result is prediction.targets[0]:
        more.append(
            sr.ImageContentItem(
                name=_VISUAL_EXPLANATION,
                referenced_sop_class_uid=heatmap.SOPClassUID,
                referenced_sop_instance_uid=heatmap.SOPInstanceUID,
                relationship_type=sr.RelationshipTypeValues.CONTAINS,
            )
        )
    more.append(_comment(NOT_FOR_DIAGNOSIS))
    more.extend(_comment(told) for told in remark_texts(prediction))
    return group


def _rule(target: Target) -> str:
    """How the members' outputs became the probability."""
    told = {
        "mean": "weighted mean of the members' calibrated logits",
        "stacking": "weighted sum of the members' calibrated logits and an intercept",
        "voting": "weighted share of the members whose calibrated logit is at least 0",
    }[target.combination]
    if (condition := target.condition) is not None:
        told += f"; halved where {condition.target} is {condition.threshold:g}, less and less above"
    return told + ("; scaled by a straight line in log-odds" if target.scaling is not None else "")


def _member_group(
    member: Member, outputs: Mapping[str, float], source: Dataset, prediction: Prediction
) -> sr.MeasurementsAndQualitativeEvaluations:
    """What one member put out, before calibration (TID 1501), but for log-odds of a probability that stands there."""
    told = [name for name in outputs if not name.startswith("logit_") or name.replace("logit", "p", 1) not in outputs]
    known = [name for name in OUTPUT_CODES if name in told]
    names = known + sorted(set(told) - set(known))
    named = [f"output {name}={output_code(name).meaning}" for name in names]
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=uids.tracking_uid(
                source.SOPInstanceUID, prediction.bundle, prediction.release, f"member {member.name}"
            ),
            identifier=f"AI member: {member.title}",
        ),
        algorithm_id=_algorithm(
            member.name,
            member.version,
            member.weights_sha256,
            [f"architecture={member.architecture}", *named],
        ),
        measurements=[
            _measurement(output_code(name), outputs[name], f"{member.name} {name}", source) for name in names
        ],
    )


def _measurement(name: Code, value: float, what: str, source: Dataset) -> sr.Measurement:
    """A number and, as its one child, the whole image: OHIF reads the first child of every NUM as coordinates."""
    number = finite(value, what)
    if name == _PROBABILITY and not 0 <= number <= 1:
        raise ResultError(f"{what} is {number!r}: not a probability")
    rows, columns = float(source.Rows), float(source.Columns)
    whole = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows], [0, 0]], dtype=np.float64)
    region = sr.CoordinatesForMeasurement(
        graphic_type=sr.GraphicTypeValues.POLYLINE,
        graphic_data=whole,
        source_image=sr.SourceImageForRegion(source.SOPClassUID, source.SOPInstanceUID),
    )
    return sr.Measurement(name=name, value=number, unit=_UNIT, referenced_coordinates=[region])


def _algorithm(name: str, version: str, weights: str, parameters: Sequence[str]) -> sr.AlgorithmIdentification:
    """TID 4019, in agreement with the item of `equipment` (IHE AIR table 6.5.3.1-1).

    The family is left out: highdicom reads its own back as a qualitative evaluation.
    """
    return sr.AlgorithmIdentification(
        name=long_string(name),
        version=long_string(version),
        manufacturer=MANUFACTURER,
        parameters=[*parameters, f"weights_sha256={weights}", f"device_uid={uids.device_uid(name, version, weights)}"],
    )


def _comment(text: str) -> sr.TextContentItem:
    return sr.TextContentItem(name=codes.DCM.Comment, value=text, relationship_type=sr.RelationshipTypeValues.CONTAINS)


def _library_entry(source: Dataset) -> Dataset:
    """The source as highdicom's Image Library wants it: projection descriptors only where the source has them all."""
    entry = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "Rows", "Columns", "Modality"):
        setattr(entry, keyword, source[keyword].value)
    if "PatientOrientation" in source and "ImagerPixelSpacing" in source:
        entry.PatientOrientation = source.PatientOrientation
        entry.ImagerPixelSpacing = source.ImagerPixelSpacing
    else:
        entry.Modality = ""
    return entry
