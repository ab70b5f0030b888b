"""The phantoms of the demo: synthetic chest X-rays as complete instances."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.uid import ComputedRadiographyImageStorage, SecondaryCaptureImageStorage

from dicom_node.demo.instances import CASES, phantom_dataset, picture_dataset
from dicom_node.demo.phantom import WHITE, draw_phantom
from dicom_node.domain import PixelError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset


@pytest.fixture(scope="module")
def film() -> NDArray[np.uint16]:
    return draw_phantom(1, rows=512, columns=448, opacities=0)


def shown(ds: Dataset) -> NDArray[np.int32]:
    """Pixels in the MONOCHROME2 sense."""
    pixels = ds.pixel_array.astype(np.int32)
    return WHITE - pixels if ds.PhotometricInterpretation == "MONOCHROME1" else pixels


def validation_errors(path: Path) -> list[str]:
    """What dciodvfy calls an error; skips on a laptop without it, fails in CI."""
    if shutil.which("dciodvfy") is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("dciodvfy is not installed (Debian: apt install dicom3tools)")
    told = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    return [line for line in (told.stdout + told.stderr).splitlines() if line.startswith("Error")]


def test_the_same_arguments_draw_the_same_pixels(film: NDArray[np.uint16]) -> None:
    assert np.array_equal(film, draw_phantom(1, rows=512, columns=448, opacities=0))


def test_another_seed_draws_another_patient(film: NDArray[np.uint16]) -> None:
    other = draw_phantom(2, rows=512, columns=448, opacities=0)
    assert np.abs(film.astype(int) - other).mean() > 20


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (256, 900), (701, 333)])
def test_it_draws_any_shape(rows: int, columns: int) -> None:
    drawn = draw_phantom(0, rows=rows, columns=columns, opacities=2)
    assert drawn.shape == (rows, columns)
    assert drawn.dtype == np.uint16


def test_it_uses_most_of_twelve_bits(film: NDArray[np.uint16]) -> None:
    assert film.max() <= WHITE
    low, high = np.percentile(film, (1, 99))
    assert low < 0.1 * WHITE
    assert high > 0.75 * WHITE


def test_air_is_dark_lungs_are_grey_and_the_spine_is_bright(film: NDArray[np.uint16]) -> None:
    air = film[5:25, 5:25].mean()
    right_lung, left_lung = film[220:300, 80:150].mean(), film[220:300, 320:370].mean()
    spine = film[300:340, 215:235].mean()
    assert air < 0.5 * min(right_lung, left_lung)
    assert max(right_lung, left_lung) < 0.75 * spine


def test_the_heart_lies_to_the_right_of_the_image(film: NDArray[np.uint16]) -> None:
    left_of_image, right_of_image = film[300:350, 110:170].mean(), film[300:350, 278:338].mean()
    assert right_of_image > 1.2 * left_of_image


def test_opacities_brighten_the_outer_lungs_only(film: NDArray[np.uint16]) -> None:
    change = draw_phantom(1, rows=512, columns=448, opacities=4).astype(int) - film
    assert change.max() > 300
    assert change[:, 205:245].max() < 60  # the mediastinum, but for scatter
    assert change[:60].max() < 60


@pytest.mark.parametrize("index", range(len(CASES)))
def test_a_phantom_is_a_valid_computed_radiography_instance(index: int, tmp_path: Path) -> None:
    path = tmp_path / "phantom.dcm"
    phantom_dataset(index).save_as(path, enforce_file_format=True)
    ds = dcmread(path)
    assert ds.SOPClassUID == ComputedRadiographyImageStorage
    assert (ds.BodyPartExamined, ds.ViewPosition, list(ds.PatientOrientation)) == ("CHEST", "PA", ["L", "F"])
    assert (str(ds.PatientName), ds.PatientID) == (f"PHANTOM^{index + 1}", f"PHANTOM-{index + 1}")
    assert ds.pixel_array.shape == CASES[index][:2]
    assert validation_errors(path) == []


def test_the_phantoms_vary_in_polarity_and_size() -> None:
    phantoms = [phantom_dataset(index) for index in range(len(CASES))]
    polarity = {(ds.PhotometricInterpretation, ds.PresentationLUTShape) for ds in phantoms}
    assert polarity == {("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")}
    assert len({(ds.Rows, ds.Columns) for ds in phantoms}) == len(CASES)
    assert all(shown(ds)[:20, :20].mean() < 0.2 * WHITE for ds in phantoms)


def test_uids_are_derived_from_the_index_unless_fresh_ones_are_wanted() -> None:
    first, again, fresh = phantom_dataset(0), phantom_dataset(0), phantom_dataset(0, fresh_uids=True)
    assert first == again
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert first[keyword].value != fresh[keyword].value
    assert first.PixelData == fresh.PixelData
    assert first.SOPInstanceUID != phantom_dataset(len(CASES)).SOPInstanceUID


@pytest.mark.parametrize(("suffix", "lossy"), [("png", "00"), ("jpg", "01")])
def test_a_picture_becomes_a_valid_secondary_capture(suffix: str, lossy: str, tmp_path: Path) -> None:
    pixels = (draw_phantom(0, rows=301, columns=251, opacities=0) >> 4).astype(np.uint8)
    source = tmp_path / f"Surname, Given 1950.{suffix}"
    Image.fromarray(pixels).save(source)
    ds = picture_dataset(source)
    written = tmp_path / "picture.dcm"
    ds.save_as(written, enforce_file_format=True)
    assert (ds.SOPClassUID, ds.Modality, ds.ConversionType) == (SecondaryCaptureImageStorage, "CR", "WSD")
    assert ds.LossyImageCompression == lossy
    assert np.abs(dcmread(written).pixel_array.astype(int) - pixels).mean() < 3
    assert b"Surname" not in written.read_bytes()
    assert validation_errors(written) == []


def test_the_same_picture_under_another_name_is_the_same_instance(tmp_path: Path) -> None:
    Image.new("L", (40, 30), 90).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    Image.new("L", (40, 30), 91).save(tmp_path / "c.png")
    first, same, other = (picture_dataset(tmp_path / f"{name}.png") for name in "abc")
    assert first == same
    assert other.SOPInstanceUID != first.SOPInstanceUID
    assert other.PatientID != first.PatientID


@pytest.mark.parametrize(("brightest", "expected"), [(4095, 255), (65535, 255)])
def test_a_deep_picture_keeps_its_range(brightest: int, expected: int, tmp_path: Path) -> None:
    deep = np.linspace(0, brightest, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    pixels = picture_dataset(tmp_path / "deep.png").pixel_array
    assert (pixels.min(), pixels.max()) == (0, expected)


def test_a_colour_picture_becomes_grey(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 10), (255, 255, 255, 255)).save(tmp_path / "colour.png")
    ds = picture_dataset(tmp_path / "colour.png")
    assert ds.pixel_array.shape == (10, 20)
    assert ds.pixel_array.min() == 255


def _truncated_png() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((60, 60), 50).save(buffer, "PNG")
    return buffer.getvalue()[:900]


@pytest.mark.parametrize("content", [b"", b"not a picture", b"GIF89a\1\0\1\0\0\0\0;", _truncated_png()])
def test_what_is_no_picture_is_a_clear_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(PixelError, match=r"x\.png cannot be read as a PNG or JPEG"):
        picture_dataset(path)


def test_a_missing_picture_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PixelError, match=r"none\.png cannot be read"):
        picture_dataset(tmp_path / "none.png")
