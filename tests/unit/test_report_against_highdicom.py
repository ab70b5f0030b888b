"""The report is what highdicom makes of the same arguments, byte for byte."""

from __future__ import annotations

from datetime import timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from highdicom.sr import srread
from pydicom import dcmread
from pydicom.uid import DigitalXRayImageStorageForPresentation, DigitalXRayImageStorageForProcessing

from dicom_node import bundle
from dicom_node.domain import Decision, TargetResult
from dicom_node.report import SOP_CLASSES, build_report
from dicom_node.results import Reference, encode
from tests.factories import chest_pixels, code
from tests.highdicom_report import build_with_highdicom
from tests.result_factories import QUESTIONS, WHEN, image_of, manifest, prediction, screened, spot, target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom.uid import UID

    from dicom_node.domain import Prediction
    from dicom_node.results import Screened

MADE_BY = manifest(
    title="Nœuds, Ärzte und ein Umlaut",
    targets=tuple(target(name) for name in QUESTIONS),
)
FLAGGED = {Decision.FLAGGED: 0.75, Decision.NOT_FLAGGED: 0.25, Decision.INDETERMINATE: 1 / 3}


def answered(decision: Decision, **changes: Any) -> Prediction:
    """Every question answered alike, with numbers of every kind."""
    results = tuple(TargetResult(name, FLAGGED[decision], 0.5, decision) for name in QUESTIONS)
    outputs = {
        "zhang": {"p_cls": 0.0, "p_ano": -1.23456789e-5, "p_avg": 6.02214076e23, "logit_x": -7.1234567e-300},
        "basu": {"p_covid": 1.0, "logit_covid": 1234567.891, "an output with a long name": 2.0},
    }
    return prediction(**{"targets": results, "members": outputs} | changes)


def same(images: Sequence[Screened], sop_class: UID = SOP_CLASSES[0], **arguments: Any) -> bytes:
    """The report as a file, once highdicom's was found to be the same."""
    codes = arguments.pop("codes", None)
    report = build_report(images, MADE_BY, node_ae_title="CXR", sop_class=sop_class, codes=codes, **arguments)
    reference = build_with_highdicom(
        images,
        MADE_BY,
        report.SOPInstanceUID,
        node_ae_title="CXR",
        sop_class=sop_class,
        site_codes=codes,
        **arguments,
    )
    written, expected = encode(report), encode(reference)
    read, wanted = dcmread(BytesIO(written)), dcmread(BytesIO(expected))
    assert [element.keyword for element in read] == [element.keyword for element in wanted]
    for element in wanted:  # one by one: a difference shows where it is
        assert read[element.tag] == element, element.keyword
    assert written == expected
    return written


RICH: dict[str, Any] = {
    "AccessionNumber": "ACC123",
    "AcquisitionDateTime": "20200102030405.5+0200",
    "DeviceSerialNumber": "4711",
    "ImagerPixelSpacing": ["0.143", "0.2"],
    "InstitutionAddress": "Straße 1\r\nOrt",
    "InstitutionName": "Krankenhaus Süd",
    "IssuerOfPatientID": "SITE",
    "ManufacturerModelName": "Model",
    "OtherPatientNames": ["A^B", "C^D"],
    "PatientName": "Müller^Jörg",
    "PatientWeight": "70.5",
    "ProcedureCodeSequence": [code("XRCHEST", "L", "Chest X-ray")],
    "SoftwareVersions": ["1.0", "2.0"],
    "SpecificCharacterSet": "ISO_IR 192",
    "StationName": "R1",
    "StudyDescription": "XR CHEST",
    "TimezoneOffsetFromUTC": "-0330",
}


@pytest.mark.parametrize("maps", [(), (spot(), spot(member="basu", centre=(0.1, 0.9)))], ids=["plain", "maps"])
@pytest.mark.parametrize("decision", Decision)
def test_one_image(decision: Decision, maps: Any) -> None:
    same([screened(image_of(1), answered(decision, maps=maps))])


@pytest.mark.parametrize("sop_class", SOP_CLASSES, ids=lambda uid: uid.name)
@pytest.mark.parametrize("maps", [(), (spot(),)], ids=["plain", "maps"])
def test_two_images_of_two_modalities(sop_class: UID, maps: Any) -> None:
    later = WHEN + timedelta(hours=1)
    dx = image_of(
        2, pixels=chest_pixels(60, 90), SOPClassUID=DigitalXRayImageStorageForPresentation, Modality="DX", **RICH
    )
    remarks = ("polarity_mended", "turned:90", "something new")
    images = [
        screened(dx, answered(Decision.FLAGGED, maps=maps, remarks=remarks), later),
        screened(image_of(1), answered(Decision.INDETERMINATE, members={"zhang": {"p_cls": 0.5}}), cited=False),
    ]
    assert same(images, sop_class) == same(images[::-1], sop_class)


def test_a_rich_source_and_one_that_says_little() -> None:
    bare = dict.fromkeys(("Manufacturer", "PatientOrientation", "Modality"))
    same([screened(image_of(1, **RICH))])
    same([screened(image_of(1, SOPClassUID=DigitalXRayImageStorageForProcessing, **bare))])


def test_predecessors_and_the_sites_codes() -> None:
    earlier = [
        Reference("1.2.3", f"2.25.{number}", sop_class, f"2.25.{number}.1")
        for number, sop_class in ((9, SOP_CLASSES[1]), (7, SOP_CLASSES[0]))
    ]
    own = {"covid": bundle.Code(value="COV", scheme="99SITE", meaning="Our own word for it")}
    same([screened(image_of(1))], predecessors=earlier, codes=own)


def test_the_round_trip_by_highdicom(tmp_path: Any) -> None:
    images = [screened(image_of(number), answered(Decision.NOT_FLAGGED)) for number in (1, 2)]
    file = tmp_path / "report.dcm"
    file.write_bytes(same(images))
    content = srread(file).content
    for image in images:
        uid = image.source.SOPInstanceUID
        groups = [group for group in content.get_image_measurement_groups() if group.tracking_identifier.endswith(uid)]
        assert len(groups) == len(QUESTIONS) + 2
        told = {
            str(item.name.meaning): str(item.value.meaning)
            for group in groups
            for item in group.get_qualitative_evaluations()
        }
        assert told == {"COVID-19": "Negative", "Pneumonia": "Negative", "Abnormal": "Negative", "Normality": "Normal"}
        numbers = {
            measurement.name.value: measurement.value
            for group in groups[len(QUESTIONS) :]
            for measurement in group.get_measurements()
        }
        outputs = {name: value for found in image.prediction.members.values() for name, value in found.items()}
        assert numbers["122157"] == outputs["p_cls"]
        assert numbers["p_ano"] == outputs["p_ano"]
        (region,) = [
            group for group in content.get_planar_roi_measurement_groups() if group.tracking_identifier.endswith(uid)
        ]
        assert region.finding_type.meaning == "Selected region"
        assert region.roi.value.shape == (5, 2)
