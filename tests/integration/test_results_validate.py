"""What other people's validators and readers say of our results, for sources of every kind."""

from __future__ import annotations

from copy import deepcopy
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import highdicom as hd
import pytest
from pydicom import dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import DigitalXRayImageStorageForPresentation

from dicom_node import bundle
from dicom_node.domain import Decision, TargetResult
from dicom_node.normalise import TYPE_2
from dicom_node.report import SOP_CLASSES, build_report
from dicom_node.results import Reference, encode
from tests.factories import chest_dataset, chest_pixels, code
from tests.result_factories import (
    WHEN,
    image_of,
    manifest,
    prediction,
    read_result,
    results,
    screened,
    stored,
    target,
    two_results,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom.dataset import Dataset

    from tests.conftest import Validate


def stripped() -> Dataset:
    gone = [*TYPE_2, "Manufacturer", "PatientOrientation", "BodyPartExamined", "ViewPosition"]
    return stored(chest_dataset(**dict.fromkeys(gone)))


def illegal() -> Dataset:
    ds = stored(chest_dataset())
    values = {
        "StudyDate": b"2025-01-01",
        "StudyTime": b"10:15:30",
        "PatientBirthDate": b"19600231",
        "PatientSex": b"U",
        "AccessionNumber": b"A" * 40,
        "StudyID": b"17 characters long",
        "ReferringPhysicianName": b"N" * 70,
        "PatientAge": b"64",
        "PatientWeight": b"heavy",
        "TimezoneOffsetFromUTC": b"CET",
        "PatientOrientation": b"left",
    }
    for keyword, value in values.items():
        tag = Tag(tag_for_keyword(keyword) or 0)
        ds[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)
    return ds


def rich() -> Dataset:
    return stored(
        chest_dataset(
            AccessionNumber="ACC123",
            BurnedInAnnotation="NO",
            DeviceSerialNumber="4711",
            ImagerPixelSpacing=["0.143", "0.143"],
            InstitutionName="Hospital",
            IssuerOfPatientID="SITE",
            LossyImageCompression="01",
            LossyImageCompressionMethod="ISO_10918_1",
            LossyImageCompressionRatio="10",
            PatientAge="064Y",
            PatientBirthDate="19600101",
            PatientSex="F",
            PatientWeight="70.5",
            ProcedureCodeSequence=[code("XRCHEST", "L", "Chest X-ray")],
            ReferringPhysicianName="Bono",
            SOPClassUID=DigitalXRayImageStorageForPresentation,
            StudyDescription="XR CHEST PA",
            StudyID="S1",
            TimezoneOffsetFromUTC="-0330",
            Modality="DX",
        )
    )


SOURCES: dict[str, Any] = {
    "plain": lambda: stored(chest_dataset()),
    "rich": rich,
    "latin-1": lambda: stored(chest_dataset(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")),
    "japanese": lambda: stored(
        chest_dataset(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう")
    ),
    "chinese": lambda: stored(chest_dataset(SpecificCharacterSet="GB18030", PatientName="Wang^XiaoDong=王^小东")),
    "stripped": stripped,
    "illegal": illegal,
    "landscape": lambda: stored(chest_dataset(chest_pixels(80, 200))),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Dataset:
    made: Dataset = SOURCES[request.param]()
    return made


def write(result: Dataset, folder: Path) -> Path:
    file = folder / f"{result.SOPClassUID}.dcm"
    file.write_bytes(encode(result))
    return file


def test_heatmaps_are_valid(source: Dataset, validators: Validate, tmp_path: Path) -> None:
    validators(write(results(source)[0], tmp_path))


@pytest.mark.parametrize("sop_class", SOP_CLASSES, ids=lambda uid: uid.name)
def test_reports_are_valid_and_read_back(source: Dataset, sop_class: Any, validators: Validate, tmp_path: Path) -> None:
    _, report = results(source, sop_class=sop_class)
    file = write(report, tmp_path)
    validators(file)
    read = read_result(hd.sr.srread(file))
    answer = prediction()
    assert read["answers"] == {"840539006": {"flagged": True, "probability": 0.8125, "threshold": 0.5}}
    assert read["outputs"] == answer.members


@pytest.mark.parametrize("sop_class", SOP_CLASSES, ids=lambda uid: uid.name)
def test_reports_on_two_images_are_valid_and_read_back(
    source: Dataset, sop_class: Any, validators: Validate, tmp_path: Path
) -> None:
    other = image_of(2, SOPClassUID=DigitalXRayImageStorageForPresentation, Modality="DX")
    both = manifest(targets=(target(), target("abnormal")))
    undecided = (
        TargetResult("covid", 0.55, 0.5, Decision.INDETERMINATE),
        TargetResult("abnormal", 0.2, 0.5, Decision.NOT_FLAGGED),
    )
    answer = prediction(targets=undecided, remarks=("turned:90",))
    earlier = Reference("1.2.3", "1.2.3.4", sop_class, "1.2.3.5")
    report = build_report(
        [screened(source, answer), screened(other, answer, WHEN + timedelta(seconds=1))],
        both,
        node_ae_title="CXRSCREEN",
        sop_class=sop_class,
        predecessors=[earlier],
        codes={"covid": bundle.Code(value="COV", scheme="99SITE", meaning="Our code")},
    )
    file = write(report, tmp_path)
    validators(file)
    content = hd.sr.srread(file).content
    assert len(content.get_image_measurement_groups()) == 8
    assert len(content.get_planar_roi_measurement_groups()) == 2


def test_results_are_filed_with_the_source(source: Dataset, tmp_path: Path) -> None:
    for result in results(source):
        read = dcmread(write(result, tmp_path))
        assert read.StudyInstanceUID == source.StudyInstanceUID
        assert read.PatientID == source.get("PatientID", "")
        assert read.SeriesInstanceUID != source.SeriesInstanceUID
        assert read.PatientName == source.get("PatientName", "")


def test_the_validators_find_faults(validators: Validate, tmp_path: Path) -> None:
    heatmap, report = results(stored(chest_dataset()))
    for result, keyword in ((heatmap, "ConversionType"), (report, "CompletionFlag")):
        broken = deepcopy(result)
        delattr(broken, keyword)
        with pytest.raises(AssertionError, match=keyword):
            validators(write(broken, tmp_path))
    report.ContentSequence[0].RelationshipType = "SELECTED FROM"  # dciodvfy does not mind
    with pytest.raises(AssertionError, match=r"relationship|Cannot"):
        validators(write(report, tmp_path))


def test_results_of_every_kind_of_prediction_are_valid(validators: Validate, tmp_path: Path) -> None:
    source = stored(chest_dataset())
    two = manifest(targets=(target(), target("pneumonia", 0.3)))
    both = two_results()
    kinds = [
        (prediction(0.25), manifest()),
        (prediction(maps=()), manifest()),
        (prediction(members={}), manifest()),
        (prediction(members={"zhang": {"an output with a very long name" * 3: -1e-7}}), manifest()),
        (prediction(targets=both), two),
    ]
    for answer, made_by in kinds:
        for result in results(source, answer, made_by):
            validators(write(result, tmp_path))


def test_real_images_give_valid_results(data_dir: Path, validators: Validate, tmp_path: Path) -> None:
    files = sorted((data_dir / "dicom").glob("*.dcm"))
    assert files
    for file in files:
        for result in results(dcmread(file, stop_before_pixels=True)):
            validators(write(result, tmp_path))
