"""What a report says, as a content tree (PS3.16 TID 1500).

For each image one measurement group (TID 1501) per question that the bundle answers, one per member with its outputs
as the ledger has them, and the box around the strongest activation as a planar region (TID 1410). A question is its
target's code, the answer Positive, Negative or Undetermined; the code never stands as a Finding, which would assert it
on negatives too. That an image is *normal* is said only where any abnormality was asked for: a bundle that finds no
COVID-19 has not looked for anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicom_node import codes as c
from dicom_node import uids
from dicom_node.activation import strongest_region
from dicom_node.content import (
    Code,
    CodeItem,
    Container,
    ImageItem,
    Item,
    Num,
    Polyline,
    Relationship,
    TextItem,
    UidItem,
)
from dicom_node.domain import MANUFACTURER, MODEL_NAME
from dicom_node.results import (
    Algorithm,
    ResultError,
    ensemble_algorithm,
    find_target,
    finite,
    long_string,
    member_algorithm,
    paragraph,
    remark_texts,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydicom.dataset import Dataset

    from dicom_node.bundle import Manifest, Member, Target
    from dicom_node.domain import TargetResult
    from dicom_node.results import Screened

CONTAINS = Relationship.CONTAINS
HAS_OBS_CONTEXT = Relationship.HAS_OBS_CONTEXT
HAS_ACQ_CONTEXT = Relationship.HAS_ACQ_CONTEXT
HAS_CONCEPT_MOD = Relationship.HAS_CONCEPT_MOD
SELECTED_FROM = Relationship.SELECTED_FROM

NOT_FOR_DIAGNOSIS = (
    "Research software, not for diagnostic use. An algorithm made this result and no person has checked it; "
    "it must not guide the care of a patient."
)
REGION = (
    "Where the networks looked, asked for: {}. At least half of the strongest activation; there is such a region on "
    "every image, with a finding or without. Not the extent of disease."
)


def report_items(
    images: Sequence[Screened], manifest: Manifest, codes: Mapping[str, Code], node_ae_title: str
) -> tuple[Item, ...]:
    """What stands below the root: language, observer, procedure, the sources, and the groups of each image.

    Parameters
    ----------
    images
        In the order in which they are to be told.
    codes
        The question's code by target.

    Raises
    ------
    ResultError
        Naming the image and the number at fault.
    """
    groups: list[Item] = []
    for image in images:
        try:
            groups += _groups(image, manifest, codes)
        except ResultError as error:
            raise ResultError(f"image {image.source.SOPInstanceUID}: {error}") from error
    return (
        CodeItem(HAS_CONCEPT_MOD, c.LANGUAGE, value=c.ENGLISH),
        CodeItem(HAS_OBS_CONTEXT, c.OBSERVER_TYPE, value=c.DEVICE),
        UidItem(HAS_OBS_CONTEXT, c.DEVICE_UID, value=uids.node_uid(node_ae_title)),
        TextItem(HAS_OBS_CONTEXT, c.DEVICE_NAME, value=node_ae_title),
        TextItem(HAS_OBS_CONTEXT, c.DEVICE_MANUFACTURER, value=MANUFACTURER),
        TextItem(HAS_OBS_CONTEXT, c.DEVICE_MODEL, value=MODEL_NAME),
        CodeItem(HAS_CONCEPT_MOD, c.PROCEDURE_REPORTED, value=c.PLAIN_CHEST_XRAY),
        _library([image.source for image in images]),
        Container(CONTAINS, c.IMAGING_MEASUREMENTS, tuple(groups)),
    )


def _library(sources: Sequence[Dataset]) -> Container:
    """The sources, in one group for each modality (TID 1600)."""
    by_modality: dict[Code, list[Item]] = {}
    for source in sources:
        modality = c.MODALITIES.get(source.get("Modality") or "") or c.MODALITIES_BY_SOP_CLASS.get(
            source.SOPClassUID, c.OTHER_MODALITY
        )
        described = [
            CodeItem(HAS_ACQ_CONTEXT, c.MODALITY, value=modality),
            Num(HAS_ACQ_CONTEXT, c.ROWS, value=source.Rows, unit=c.PIXELS),
            Num(HAS_ACQ_CONTEXT, c.COLUMNS, value=source.Columns, unit=c.PIXELS),
            *_geometry(source),
        ]
        by_modality.setdefault(modality, []).append(_cited(source, CONTAINS, tuple(described)))
    groups = (Container(CONTAINS, c.IMAGE_LIBRARY_GROUP, tuple(entries)) for entries in by_modality.values())
    return Container(CONTAINS, c.IMAGE_LIBRARY, tuple(groups))


def _geometry(source: Dataset) -> tuple[Item, ...]:
    """Orientation and spacing (TID 1603), where the source has both."""
    if "PatientOrientation" not in source or "ImagerPixelSpacing" not in source:
        return ()
    row, column = source.PatientOrientation
    vertical, horizontal = (float(spacing) for spacing in source.ImagerPixelSpacing)
    return (
        TextItem(HAS_ACQ_CONTEXT, c.ORIENTATION_ROW, value=row),
        TextItem(HAS_ACQ_CONTEXT, c.ORIENTATION_COLUMN, value=column),
        Num(HAS_ACQ_CONTEXT, c.HORIZONTAL_SPACING, value=horizontal, unit=c.MILLIMETRE),
        Num(HAS_ACQ_CONTEXT, c.VERTICAL_SPACING, value=vertical, unit=c.MILLIMETRE),
    )


def _groups(image: Screened, manifest: Manifest, codes: Mapping[str, Code]) -> Iterator[Item]:
    """One for each question, one for each member that took part, and the region where there is one."""
    rows, columns = float(image.source.Rows), float(image.source.Columns)
    corners = ((0.0, 0.0), (columns, 0.0), (columns, rows), (0.0, rows), (0.0, 0.0))
    whole = _outline(image.source, Relationship.INFERRED_FROM, c.SOURCE, corners)
    for result in image.prediction.targets:
        yield _question(result, image, manifest, codes[result.target], whole)
    for member in manifest.members:
        if member.name in image.prediction.members:
            yield _member(member, image, whole)
    region = strongest_region(image.prediction.maps, manifest, image.source.Rows, image.source.Columns)
    if region is not None:
        yield _region(region, image, manifest)


def _question(result: TargetResult, image: Screened, manifest: Manifest, code: Code, whole: Polyline) -> Container:
    """What the ensemble answers to one question (TID 1501)."""
    prediction, target = image.prediction, find_target(manifest, result.target)
    parameters = [
        f"rule={combination_rule(target)}",
        f"operating_point={result.operating_point or prediction.operating_point}",
        f"threshold={float(result.threshold)!r}",
        *(f"weight {name}={weight!r}" for name, weight in sorted(target.weights.items())),
    ]
    items: list[Item] = [
        *_tracking(image, f"target {result.target}", f"AI ensemble: {target.title}"),
        CodeItem(HAS_CONCEPT_MOD, c.FINDING_SITE, value=c.CHEST),
        *_algorithm(ensemble_algorithm(manifest), parameters),
        _number(c.PROBABILITY, result.probability, f"probability of {result.target}", whole),
        _number(c.THRESHOLD, result.threshold, f"threshold of {result.target}", whole),
        CodeItem(CONTAINS, code, value=c.ANSWERS[result.decision]),
    ]
    if (target.code.value, target.code.scheme) == (c.ABNORMAL.value, c.ABNORMAL.scheme):
        items.append(CodeItem(CONTAINS, c.NORMALITY, value=c.NORMALITIES[result.decision]))
    if explains(image) and result is prediction.targets[0]:  # it is drawn from the maps of the first question
        assert image.heatmap is not None  # noqa: S101 - `explains` says so
        items.append(
            ImageItem(
                CONTAINS,
                c.VISUAL_EXPLANATION,
                sop_class_uid=image.heatmap.sop_class_uid,
                sop_instance_uid=image.heatmap.sop_instance_uid,
            )
        )
    items += [_comment(told) for told in (NOT_FOR_DIAGNOSIS, *remark_texts(prediction))]
    return Container(CONTAINS, c.MEASUREMENT_GROUP, tuple(items), "1501")


def explains(image: Screened) -> bool:
    """Whether the image's heatmap explains an answer, and so is cited: one drawn without maps shows nothing of it."""
    return image.heatmap is not None and bool(image.prediction.maps)


def combination_rule(target: Target) -> str:
    """How the members' outputs became the probability."""
    told = {
        "mean": "weighted mean of the members' calibrated logits",
        "stacking": "weighted sum of the members' calibrated logits and an intercept",
        "voting": "weighted share of the members whose calibrated logit is at least 0",
    }[target.combination]
    if (condition := target.condition) is not None:
        told += f"; halved where {condition.target} is {condition.threshold:g}, less and less above"
    return told + ("; scaled by a straight line in log-odds" if target.scaling is not None else "")


def _member(member: Member, image: Screened, whole: Polyline) -> Container:
    """What one member put out, before calibration (TID 1501), but for log-odds of a probability that stands there."""
    outputs = image.prediction.members[member.name]
    told = [name for name in outputs if not name.startswith("logit_") or name.replace("logit", "p", 1) not in outputs]
    known = [name for name in c.OUTPUTS if name in told]
    coded = {name: c.output_code(name) for name in known + sorted(set(told) - set(known))}
    parameters = [
        f"architecture={member.architecture}",
        *(f"output {name}={code.meaning}" for name, code in coded.items()),
    ]
    items = (
        *_tracking(image, f"member {member.name}", f"AI member: {member.title}"),
        *_algorithm(member_algorithm(member), parameters),
        *(_number(code, outputs[name], f"{member.name} {name}", whole) for name, code in coded.items()),
    )
    return Container(CONTAINS, c.MEASUREMENT_GROUP, items, "1501")


def _region(box: tuple[float, float, float, float], image: Screened, manifest: Manifest) -> Container:
    """The box around the strongest activation (TID 1410)."""
    rows, columns = image.source.Rows, image.source.Columns
    top, left, bottom, right = (
        *(box[0] * rows, box[1] * columns),
        *(min(box[0] + box[2], 1.0) * rows, min(box[1] + box[3], 1.0) * columns),
    )
    corners = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
    items = (
        *_tracking(image, "region", "AI region of the strongest activation"),
        CodeItem(CONTAINS, c.FINDING, value=c.SELECTED_REGION),
        *_algorithm(ensemble_algorithm(manifest), ()),
        CodeItem(CONTAINS, c.GEOMETRIC_PURPOSE, value=c.BOUNDED_BY),
        _outline(image.source, CONTAINS, c.IMAGE_REGION, corners),
        _comment(REGION.format(manifest.targets[0].title)),  # its weights made the region
    )
    return Container(CONTAINS, c.MEASUREMENT_GROUP, items, "1410")


def _tracking(image: Screened, subject: str, label: str) -> tuple[Item, ...]:
    """Both identifiers name the image, so that no two groups of a report have the same."""
    prediction, source = image.prediction, image.source.SOPInstanceUID
    uid = uids.tracking_uid(source, prediction.bundle, prediction.release, subject)
    return (
        TextItem(HAS_OBS_CONTEXT, c.TRACKING_IDENTIFIER, value=paragraph(f"{label}, image {source}")),
        UidItem(HAS_OBS_CONTEXT, c.TRACKING_UID, value=uid),
    )


def _algorithm(algorithm: Algorithm, parameters: Sequence[str]) -> Iterator[Item]:
    """TID 4019, in agreement with the item of Contributing Equipment (IHE AIR table 6.5.3.1-1).

    The family is left out: highdicom reads its own back as a qualitative evaluation.
    """
    yield TextItem(HAS_CONCEPT_MOD, c.ALGORITHM_NAME, value=long_string(algorithm.name))
    yield TextItem(HAS_CONCEPT_MOD, c.ALGORITHM_VERSION, value=long_string(algorithm.version))
    yield TextItem(HAS_CONCEPT_MOD, c.ALGORITHM_MANUFACTURER, value=MANUFACTURER)
    identity = (f"weights_sha256={algorithm.weights_sha256}", f"device_uid={algorithm.device_uid}")
    for told in (*parameters, *identity):
        yield TextItem(HAS_CONCEPT_MOD, c.ALGORITHM_PARAMETERS, value=paragraph(told))


def _number(name: Code, value: float, what: str, whole: Polyline) -> Num:
    """A number and, as its one child, the whole image: OHIF reads the first child of every NUM as coordinates."""
    number = finite(value, what)
    if name is c.PROBABILITY and not 0 <= number <= 1:
        raise ResultError(f"{what} is {number!r}: not a probability")
    return Num(CONTAINS, name, (whole,), value=number, unit=c.NO_UNITS)


def _outline(
    source: Dataset, relationship: Relationship, name: Code, corners: tuple[tuple[float, float], ...]
) -> Polyline:
    return Polyline(relationship, name, (_cited(source, SELECTED_FROM),), points=corners)


def _cited(source: Dataset, relationship: Relationship, children: tuple[Item, ...] = ()) -> ImageItem:
    return ImageItem(
        relationship,
        c.SOURCE,
        children,
        sop_class_uid=source.SOPClassUID,
        sop_instance_uid=source.SOPInstanceUID,
    )


def _comment(told: str) -> TextItem:
    return TextItem(CONTAINS, c.COMMENT, value=paragraph(told))
