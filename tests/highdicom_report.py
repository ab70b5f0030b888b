"""The same report built with highdicom, whose constructors know the standard: what ours is held against."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from highdicom import sr
from highdicom.base_content import ContributingEquipment
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr.utils import collect_evidence
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage

from dicom_node import __version__, uids
from dicom_node.activation import strongest_region
from dicom_node.codes import OUTPUTS, PRIVATE_SCHEME, PRIVATE_SCHEME_NAME, output_code
from dicom_node.domain import MANUFACTURER, MODEL_NAME, Decision
from dicom_node.report import SERIES_DESCRIPTION, SERIES_NUMBER
from dicom_node.report_content import NOT_FOR_DIAGNOSIS, REGION, combination_rule
from dicom_node.results import (
    equipment,
    equipment_item,
    find_target,
    local_time,
    long_string,
    remark_texts,
    seal,
    series_and_maker,
    weights_sha256,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicom_node import bundle
    from dicom_node.bundle import Manifest, Member
    from dicom_node.domain import TargetResult
    from dicom_node.results import Reference, Screened

_CLASSES = {
    Comprehensive3DSRStorage: sr.Comprehensive3DSR,
    ComprehensiveSRStorage: sr.ComprehensiveSR,
    EnhancedSRStorage: sr.EnhancedSR,
}
_MODALITIES = {"CR": "Computed Radiography", "DX": "Digital Radiography", "RG": "Radiographic imaging"}
_UNIT = Code("1", "UCUM", "no units")
_UNDETERMINED = Code("373068000", "SCT", "Undetermined")
_NORMALITY_UNDETERMINED = Code("371934000", "SCT", "Normality Undetermined")
_ANSWERS = {
    Decision.FLAGGED: codes.SCT.Positive,
    Decision.NOT_FLAGGED: codes.SCT.Negative,
    Decision.INDETERMINATE: _UNDETERMINED,
}
_NORMALITIES = {
    Decision.FLAGGED: codes.SCT.Abnormal,
    Decision.NOT_FLAGGED: codes.SCT.Normal,
    Decision.INDETERMINATE: _NORMALITY_UNDETERMINED,
}


def build_with_highdicom(
    images: Sequence[Screened],
    manifest: Manifest,
    instance_uid: UID,
    *,
    node_ae_title: str,
    sop_class: UID = Comprehensive3DSRStorage,
    predecessors: Sequence[Reference] = (),
    site_codes: Mapping[str, bundle.Code] | None = None,
) -> Dataset:
    """What `dicom_node.report.build_report` makes of the same arguments; the UID is taken over."""
    images = sorted(images, key=lambda image: image.source.SOPInstanceUID)
    newest = max(images, key=lambda image: (image.predicted_at, image.source.SOPInstanceUID)).source
    when = max(image.predicted_at for image in images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # highdicom on names of one component: legal
        groups = [group for image in images for group in _groups(image, manifest, site_codes or {})]
        content = _content([image.source for image in images], groups, node_ae_title)
        evidence = [image.source for image in images]
        evidence += [_cited(image.heatmap) for image in images if image.heatmap and image.prediction.maps]
        report: Dataset = _CLASSES[sop_class](
            evidence=[newest, *evidence],
            content=content,
            series_number=SERIES_NUMBER,
            series_description=SERIES_DESCRIPTION,
            is_complete=True,
            is_final=False,
            is_verified=False,
            coding_schemes=[
                CodingSchemeIdentificationItem(
                    PRIVATE_SCHEME, name=PRIVATE_SCHEME_NAME, responsible_organization=MANUFACTURER
                )
            ],
            performed_procedure_codes=[Code("110003", "DCM", "Computer Aided Diagnosis")],
            previous_versions=[_cited(one) for one in sorted(predecessors, key=lambda one: one.sop_instance_uid)]
            or None,
            **series_and_maker(instance_uid, local_time(newest, when)),
        )
        report.CurrentRequestedProcedureEvidenceSequence, _ = collect_evidence(
            evidence, content[0], study_instance_uid=newest.StudyInstanceUID
        )
        report.StationName = long_string(node_ae_title)[:16]
        makers: list[ContributingEquipment] = []
        for image in images:
            if image.source.get("Manufacturer"):
                maker = ContributingEquipment.for_image_acquisition(image.source)
                makers += [maker] if maker not in makers else []
        node = equipment_item(MODEL_NAME, __version__, uids.node_uid(node_ae_title), "Screening node", when)
        outputs = {name: found for image in images for name, found in image.prediction.members.items()}
        algorithms = equipment(replace(images[0].prediction, members=outputs), manifest, when)
        seal(report, newest, when, [*makers, node, *algorithms])
    return report


def _cited(one: Reference) -> Dataset:
    ds = Dataset()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = one.study_instance_uid, one.series_instance_uid
    ds.SOPClassUID, ds.SOPInstanceUID = one.sop_class_uid, one.sop_instance_uid
    return ds


def _groups(image: Screened, manifest: Manifest, site_codes: Mapping[str, bundle.Code]) -> list[sr.ContentSequence]:
    found = [_question(result, image, manifest, site_codes) for result in image.prediction.targets]
    found += [_member(member, image) for member in manifest.members if member.name in image.prediction.members]
    source = image.source
    region = strongest_region(image.prediction.maps, manifest, source.Rows, source.Columns)
    if region is not None:
        top, left, height, width = region
        box = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * (width, height) + (left, top)
        group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=_tracking(image, "region", "AI region of the strongest activation"),
            referenced_region=sr.ImageRegion(
                graphic_type=sr.GraphicTypeValues.POLYLINE,
                graphic_data=box * (source.Columns, source.Rows),
                source_image=sr.SourceImageForRegion(source.SOPClassUID, source.SOPInstanceUID),
            ),
            geometric_purpose=Code("75958009", "SCT", "Bounded by"),
            finding_type=Code("111099", "DCM", "Selected region"),
            algorithm_id=_algorithm(manifest.name, manifest.release, weights_sha256(manifest), []),
        )
        group[0].ContentSequence.append(_comment(REGION.format(manifest.targets[0].title)))
        found.append(group)
    return found


def _tracking(image: Screened, subject: str, label: str) -> sr.TrackingIdentifier:
    uid = image.source.SOPInstanceUID
    prediction = image.prediction
    return sr.TrackingIdentifier(
        uid=uids.tracking_uid(uid, prediction.bundle, prediction.release, subject), identifier=f"{label}, image {uid}"
    )


def _content(
    sources: Sequence[Dataset], groups: Sequence[sr.ContentSequence], node_ae_title: str
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
        procedure_reported=Code("399208008", "SCT", "Plain X-ray of chest"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=[_library_entry(source) for source in sources],
    )
    for source in sources:
        _name_modality(content[0], source)
    return content


def _name_modality(item: Dataset, source: Dataset) -> None:
    """Put the source's modality into the Image Library: highdicom derives it from the SOP class alone."""
    for child in item.get("ContentSequence", []):
        if child.ConceptNameCodeSequence[0].CodeValue == codes.DCM.Modality.value:
            cited = item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            if cited == source.SOPInstanceUID and source.get("Modality") in _MODALITIES:
                child.ConceptCodeSequence = [sr.CodedConcept(source.Modality, "DCM", _MODALITIES[source.Modality])]
        _name_modality(child, source)


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


def _question(
    result: TargetResult, image: Screened, manifest: Manifest, site_codes: Mapping[str, bundle.Code]
) -> sr.MeasurementsAndQualitativeEvaluations:
    source, prediction = image.source, image.prediction
    target = find_target(manifest, result.target)
    code = site_codes.get(result.target, target.code)
    parameters = [
        f"rule={combination_rule(target)}",
        f"operating_point={result.operating_point or prediction.operating_point}",
        f"threshold={float(result.threshold)!r}",
        *(f"weight {name}={weight!r}" for name, weight in sorted(target.weights.items())),
    ]
    evaluations = [
        sr.QualitativeEvaluation(name=Code(code.value, code.scheme, code.meaning), value=_ANSWERS[result.decision])
    ]
    if target.code.value == codes.SCT.Abnormal.value:
        evaluations.append(sr.QualitativeEvaluation(name=codes.DCM.Normality, value=_NORMALITIES[result.decision]))
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(image, f"target {result.target}", f"AI ensemble: {target.title}"),
        finding_sites=[sr.FindingSite(codes.SCT.Chest)],
        algorithm_id=_algorithm(manifest.name, manifest.release, weights_sha256(manifest), parameters),
        measurements=[
            _measurement(codes.DCM.Probability, result.probability, source),
            _measurement(Code("122411", "DCM", "Threshold Value"), result.threshold, source),
        ],
        qualitative_evaluations=evaluations,
    )
    more = group[0].ContentSequence
    if image.heatmap and prediction.maps and result is prediction.targets[0]:
        more.append(
            sr.ImageContentItem(
                name=Code("130401", "DCM", "Visual explanation"),
                referenced_sop_class_uid=image.heatmap.sop_class_uid,
                referenced_sop_instance_uid=image.heatmap.sop_instance_uid,
                relationship_type=sr.RelationshipTypeValues.CONTAINS,
            )
        )
    more.append(_comment(NOT_FOR_DIAGNOSIS))
    more.extend(_comment(told) for told in remark_texts(prediction))
    return group


def _member(member: Member, image: Screened) -> sr.MeasurementsAndQualitativeEvaluations:
    outputs = image.prediction.members[member.name]
    told = [name for name in outputs if not name.startswith("logit_") or name.replace("logit", "p", 1) not in outputs]
    names = [name for name in OUTPUTS if name in told] + sorted(set(told) - set(OUTPUTS))
    named = [f"output {name}={output_code(name).meaning}" for name in names]
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(image, f"member {member.name}", f"AI member: {member.title}"),
        algorithm_id=_algorithm(
            member.name, member.version, member.weights_sha256, [f"architecture={member.architecture}", *named]
        ),
        measurements=[_measurement(_pydicom(output_code(name)), outputs[name], image.source) for name in names],
    )


def _pydicom(code: object) -> Code:
    return Code(code.value, code.scheme, code.meaning)  # type: ignore[attr-defined]


def _measurement(name: Code, value: float, source: Dataset) -> sr.Measurement:
    rows, columns = float(source.Rows), float(source.Columns)
    whole = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows], [0, 0]], dtype=np.float64)
    region = sr.CoordinatesForMeasurement(
        graphic_type=sr.GraphicTypeValues.POLYLINE,
        graphic_data=whole,
        source_image=sr.SourceImageForRegion(source.SOPClassUID, source.SOPInstanceUID),
    )
    return sr.Measurement(name=name, value=float(value), unit=_UNIT, referenced_coordinates=[region])


def _algorithm(name: str, version: str, weights: str, parameters: Sequence[str]) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(
        name=long_string(name),
        version=long_string(version),
        manufacturer=MANUFACTURER,
        parameters=[*parameters, f"weights_sha256={weights}", f"device_uid={uids.device_uid(name, version, weights)}"],
    )


def _comment(told: str) -> sr.TextContentItem:
    return sr.TextContentItem(name=codes.DCM.Comment, value=told, relationship_type=sr.RelationshipTypeValues.CONTAINS)
