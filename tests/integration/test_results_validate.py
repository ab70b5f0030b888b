"""What other people's validators and readers, and our own check, say of our results, for sources of every kind."""

from __future__ import annotations

import re
import subprocess
import warnings
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol

import highdicom as hd
import imagecodecs
import numpy as np
import pytest
from pydicom import Dataset, dcmread, uid
from pydicom.dataelem import RawDataElement

from dicom_node import bundle
from dicom_node.config import Settings
from dicom_node.decoding import Wanted, decode
from dicom_node.domain import Decision, DeclineReason, TargetResult
from dicom_node.heatmap import build_heatmap
from dicom_node.normalise import normalise
from dicom_node.pixels import TRANSFER_SYNTAXES
from dicom_node.report import SOP_CLASSES, build_report
from dicom_node.results import Reference, ResultError, encode
from dicom_node.validation import check_object
from tests.factories import chest_dataset, chest_pixels, with_codestream
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
from tests.source_factories import MISJUDGED, SOURCES, with_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.conftest import Validate

SUMMARY = "Dicom dataset contains invalid data values"  # dciodvfy's last word
SMALL = 64  # of heatmaps whose picture does not matter
WANTED = Wanted(squares=(), picture=SMALL, max_pixels=50_000_000)


@dataclass
class Told:
    """What was looked at, for the counts."""

    sources: int = 0
    objects: int = 0
    read_back: int = 0


class Examine(Protocol):
    """Builds the results of a source and gives what validators, readers and our own check have against them."""

    def __call__(self, source: Dataset, picture: NDArray[np.uint8] | None = None) -> list[str]: ...


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest) -> Iterator[Told]:
    """Counts, which are printed when the last test of this module has ended."""
    counts = Told()
    yield counts
    plugin: Any = request.config.pluginmanager.get_plugin
    with plugin("capturemanager").global_and_fixture_disabled():
        plugin("terminalreporter").write_line(
            f"\n{counts.objects} objects from {counts.sources} sources: dciodvfy 0 errors, dsrdump 0 failures, "
            f"{counts.read_back} read back"
        )


@pytest.fixture(scope="module")
def examine(told: Told, validators: Validate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Examine]:
    folder = tmp_path_factory.mktemp("results")

    def examine(source: Dataset, picture: NDArray[np.uint8] | None = None) -> list[str]:
        header, _ = normalise(source)
        faults, waiting, objects = [], [], 0
        for result in results_of(source, header, picture):
            file = folder / f"{objects}.dcm"
            file.write_bytes(encode(result))
            waiting.append(pool.submit(validators, file))  # while the next one is built
            faults += [f"{result.SOPClassUID.name}: {fault}" for fault in faults_when_read(file, header)]
            objects += 1
        faults += [str(error) for future in waiting if (error := future.exception()) is not None]
        if not faults:
            told.sources, told.objects, told.read_back = (
                told.sources + 1,
                told.objects + objects,
                told.read_back + objects,
            )
        return faults

    with ThreadPoolExecutor(2) as pool:
        yield examine


def results_of(source: Dataset, header: Dataset, picture: NDArray[np.uint8] | None) -> Iterator[Dataset]:
    """Heatmap, also of a real picture, and a report in each class."""
    heatmap = None
    for sop_class in SOP_CLASSES:
        heatmap, report = results(source, size=SMALL, sop_class=sop_class)
        yield report
    assert heatmap is not None
    yield heatmap
    if picture is not None:
        pixels = picture.astype(np.float32) / np.float32(255)
        yield build_heatmap(header, pixels, prediction(), manifest(), when=WHEN, size=2 * SMALL)


def faults_when_read(file: Path, header: Dataset) -> list[str]:
    """What pydicom, highdicom and our own check have against an object in a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names of one component, and of leap seconds
        read = dcmread(file)
        try:
            check_object(read, [header])
        except ResultError as error:
            return [str(error)]
        if read.Modality == "OT":
            shape = hd.Image.from_dataset(read).get_frame(1).shape
            return [] if shape == (read.Rows, read.Columns, 3) else ["no picture"]
        tree = read.get_item(0x0040A730)
        assert isinstance(tree, RawDataElement)
        found = read_tree(str(read.SOPClassUID), tree.value, read)
    answers = {"840539006": {"flagged": True, "probability": 0.8125, "threshold": 0.5}}
    return [] if found == {"answers": answers, "outputs": prediction().members} else ["read back differently"]


_READ: dict[tuple[str, bytes | None], dict[str, Any]] = {}


def read_tree(sop_class: str, tree: bytes | None, report: Dataset) -> dict[str, Any]:
    """What highdicom makes of a content tree; the same bytes, which many sources have, are read once."""
    if (sop_class, tree) not in _READ:
        _READ[sop_class, tree] = read_result(hd.sr.srread(BytesIO(encode(report))))
    return _READ[sop_class, tree]


def encoded_sources() -> dict[str, Dataset]:
    """A chest in every transfer syntax that is accepted, and in every polarity."""
    found = {uid.UID(syntax).name: encoded(syntax) for syntax in TRANSFER_SYNTAXES}
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        for shape in (None, "IDENTITY", "INVERSE"):
            found[f"{photometric}, {shape}"] = chest_dataset(
                PhotometricInterpretation=photometric, PresentationLUTShape=shape
            )
    return found


def encoded(syntax: str) -> Dataset:
    pixels = chest_pixels()
    if syntax == uid.JPEGBaseline8Bit:
        pixels = chest_pixels(bits=8).astype(np.uint8)
    ds = chest_dataset(pixels)
    if syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian):
        ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
        return ds
    if syntax == uid.RLELossless:
        ds.compress(uid.RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        return ds
    return with_codestream(ds, syntax, bytes(CODESTREAMS[syntax](pixels)))


CODESTREAMS: dict[str, Any] = {
    uid.JPEGBaseline8Bit: imagecodecs.jpeg8_encode,
    uid.JPEGExtended12Bit: partial(imagecodecs.jpeg8_encode, bitspersample=12),
    uid.JPEGLossless: partial(imagecodecs.jpeg8_encode, bitspersample=12, lossless=True, predictor=4),
    uid.JPEGLosslessSV1: partial(imagecodecs.jpeg8_encode, bitspersample=12, lossless=True, predictor=1),
    uid.JPEGLSLossless: imagecodecs.jpegls_encode,
    uid.JPEGLSNearLossless: partial(imagecodecs.jpegls_encode, level=2),
    uid.JPEG2000Lossless: partial(imagecodecs.jpeg2k_encode, reversible=True),
    uid.JPEG2000: partial(imagecodecs.jpeg2k_encode, level=40),
    uid.HTJ2KLossless: partial(imagecodecs.htj2k_encode, reversible=True),
    uid.HTJ2KLosslessRPCL: partial(imagecodecs.htj2k_encode, reversible=True),
    uid.HTJ2K: partial(imagecodecs.htj2k_encode, reversible=True),
}


@pytest.mark.parametrize("name", SOURCES)
def test_results_of_every_source_are_valid_and_read_back(name: str, examine: Examine) -> None:
    assert examine(SOURCES[name]()) == []


@pytest.mark.parametrize("name", encoded_sources())
def test_results_of_every_transfer_syntax_and_polarity_are_valid(name: str, examine: Examine, tmp_path: Path) -> None:
    file = tmp_path / "source.dcm"
    encoded_sources()[name].save_as(file, enforce_file_format=True)
    decoded = decode(file, WANTED, Settings())
    assert decoded.header is not None
    assert examine(decoded.header, decoded.picture) == []


def test_real_images_give_valid_results(data_dir: Path, examine: Examine) -> None:
    admitted, declined = 0, set()
    for file in sorted((data_dir / "dicom").glob("*.dcm")):
        decoded = decode(file, WANTED, Settings())
        assert decoded.header is not None
        assert decoded.admission is not None
        if decoded.admission.admitted:
            admitted += 1
            assert examine(decoded.header, decoded.picture) == []
        else:  # the header of a hip makes as good a source
            declined.add(decoded.admission.reason)
            assert examine(decoded.header) == []
    assert admitted
    assert declined == {DeclineReason.NOT_CHEST}


@pytest.mark.parametrize("name", ["Latin-1", "stripped", "rich"])
@pytest.mark.parametrize("sop_class", SOP_CLASSES, ids=lambda uid: uid.name)
def test_reports_on_two_images_are_valid_and_read_back(
    name: str, sop_class: Any, validators: Validate, tmp_path: Path
) -> None:
    source = SOURCES[name]()
    other = image_of(2, SOPClassUID=uid.DigitalXRayImageStorageForPresentation, Modality="DX")
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
    check_object(report, [source, other])
    file = tmp_path / "report.dcm"
    file.write_bytes(encode(report))
    validators(file)
    content = hd.sr.srread(file).content
    assert len(content.get_image_measurement_groups()) == 8
    assert len(content.get_planar_roi_measurement_groups()) == 2


@pytest.mark.parametrize("name", ["Latin-1", "Japanese, IR 87", "Chinese, IR 58", "stripped", "rich"])
def test_results_are_filed_with_the_source(name: str) -> None:
    source = SOURCES[name]()
    header, _ = normalise(source)
    for result in results(source, size=SMALL):
        read = dcmread(BytesIO(encode(result)))
        assert read.SeriesInstanceUID != source.SeriesInstanceUID
        for keyword in ("StudyInstanceUID", "PatientName", "PatientID", "StudyDate", "AccessionNumber"):
            assert read[keyword].value == header[keyword].value


@pytest.mark.parametrize("name", MISJUDGED)
def test_a_legal_value_is_kept_though_dciodvfy_denies_it(name: str, examine: Examine) -> None:
    make, alarm = MISJUDGED[name]
    faults = examine(make())
    assert faults
    for fault in faults:  # an assertion of the validators, with dciodvfy's lines
        errors = [line for line in fault.splitlines() if line.startswith("Error - ") and SUMMARY not in line]
        assert errors
        assert [line for line in errors if not re.search(alarm, line)] == []


def test_an_illegal_uid_is_the_only_fault_of_what_cites_it(tmp_path: Path) -> None:
    """Without it the result would stand in another study; an archive that took the source takes the result."""
    source = with_bytes({"StudyInstanceUID": b"1.2.03", "SOPInstanceUID": b"1.2.03.4"})
    header, _ = normalise(source)
    file = tmp_path / "result.dcm"
    for result in results(source, size=SMALL):
        check_object(result, [header])
        file.write_bytes(encode(result))
        said = subprocess.run(["dciodvfy", file], capture_output=True, text=True, check=False, timeout=60)
        errors = [line for line in (said.stdout + said.stderr).splitlines() if "Error" in line and SUMMARY not in line]
        assert errors
        assert [line for line in errors if "UI" not in line] == []


def test_the_validators_find_faults_and_so_do_we(validators: Validate, tmp_path: Path) -> None:
    source = stored(chest_dataset())
    header, _ = normalise(source)
    heatmap, report = results(source, size=SMALL)
    file = tmp_path / "broken.dcm"
    for result, keyword in ((heatmap, "ConversionType"), (report, "CompletionFlag")):
        broken = deepcopy(result)
        delattr(broken, keyword)
        file.write_bytes(encode(broken))
        with pytest.raises(AssertionError, match=keyword):
            validators(file)
        with pytest.raises(ResultError, match="is missing"):
            check_object(broken, [header])
    report.ContentSequence[0].RelationshipType = "SELECTED FROM"  # dciodvfy does not mind
    file.write_bytes(encode(report))
    with pytest.raises(AssertionError, match=r"relationship|Cannot"):
        validators(file)
    with pytest.raises(ResultError, match="SELECTED FROM"):
        check_object(report, [header])


def test_results_of_every_kind_of_prediction_are_valid(validators: Validate, tmp_path: Path) -> None:
    source = stored(chest_dataset())
    header, _ = normalise(source)
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
            check_object(result, [header])
            file = tmp_path / f"{result.SOPInstanceUID}.dcm"
            file.write_bytes(encode(result))
            validators(file)
