import signal
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicom_node.domain import PixelError
from tests.factories import chest_dataset
from training.data import squares
from training.data.manifest import Picture
from training.data.squares import load_squares, pixels_of

RNG = np.random.default_rng(4)


def picture(file: Path) -> Picture:
    return Picture(file.stem, file, "train", "nih", file.stem, "normal")


def noise(file: Path, rows: int = 24, columns: int = 24) -> Picture:
    Image.fromarray(RNG.integers(0, 256, (rows, columns), dtype=np.uint8)).save(file)
    return picture(file)


@pytest.fixture
def pictures(tmp_path):
    return [noise(tmp_path / f"image{i}.png", 24, 20 + i) for i in range(8)]


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that were decoded."""
    names = []

    def counted(one):
        names.append(one.image_id)
        return pixels_of(one)

    monkeypatch.setattr(squares, "pixels_of", counted)
    return names


def test_a_square_of_the_same_size_is_the_image_itself(tmp_path):
    grey = RNG.integers(0, 256, (24, 24), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "square.png")
    Image.fromarray(grey.repeat(2, axis=1)).save(tmp_path / "wide.png")
    found, readable = load_squares([picture(tmp_path / "square.png"), picture(tmp_path / "wide.png")], 24)
    assert found.dtype == np.uint8
    assert np.array_equal(found[0], grey)
    assert found.shape == (2, 24, 24)
    assert readable.tolist() == [True, True]


def test_no_pictures_are_no_squares(tmp_path):
    found, readable = load_squares([], 24, tmp_path / "cache")
    assert found.shape == (0, 24, 24)
    assert len(readable) == 0


def test_what_is_kept_is_what_was_decoded_and_is_not_decoded_again(pictures, tmp_path, decoded):
    fresh, _ = load_squares(pictures, 16)
    kept, _ = load_squares(pictures, 16, tmp_path / "cache")
    again, readable = load_squares(pictures, 16, tmp_path / "cache")
    assert isinstance(again, np.memmap)
    assert np.array_equal(fresh, kept)
    assert np.array_equal(fresh, again)
    assert readable.all()
    assert len(decoded) == 2 * len(pictures)


def test_a_changed_file_is_decoded_anew(pictures, tmp_path):
    load_squares(pictures, 16, tmp_path / "cache")
    noise(pictures[3].path, 30, 30)
    found, _ = load_squares(pictures, 16, tmp_path / "cache")
    assert np.array_equal(found, load_squares(pictures, 16)[0])


@pytest.mark.parametrize("change", ["side", "order", "transform", "sha256"])
def test_other_squares_are_not_mistaken_for_these(pictures, tmp_path, decoded, monkeypatch, change):
    load_squares(pictures, 16, tmp_path / "cache")
    side = 12 if change == "side" else 16
    if change == "order":
        pictures = pictures[::-1]
    if change == "transform":
        monkeypatch.setattr(squares, "_code", lambda: ["another"])
    if change == "sha256":
        pictures = [replace(pictures[0], sha256="0" * 64), *pictures[1:]]
    found, _ = load_squares(pictures, side, tmp_path / "cache")
    assert found.shape == (8, side, side)
    assert len(decoded) == 16


KILLED = """
import os, signal, sys
from pathlib import Path
from training.data import squares
from training.data.manifest import Picture

read = squares.pixels_of

def deadly(picture):
    if picture.image_id == "image5":
        os.kill(os.getpid(), signal.SIGKILL)
    return read(picture)

squares.pixels_of = deadly
folder = Path(sys.argv[1])
names = [f"image{i}" for i in range(8)]
pictures = [Picture(n, folder / f"{n}.png", "train", "nih", n, "normal") for n in names]
squares.load_squares(pictures, 16, folder / "cache")
"""


def test_killed_while_decoding_it_leaves_nothing_that_is_taken_for_whole(pictures, tmp_path, decoded):
    found = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, timeout=60, check=False)
    assert found.returncode == -signal.SIGKILL
    assert list((tmp_path / "cache").glob("*.part"))
    kept, _ = load_squares(pictures, 16, tmp_path / "cache")
    assert np.array_equal(kept, load_squares(pictures, 16)[0])
    assert len(decoded) == 16
    assert not list((tmp_path / "cache").glob("*.part"))


def test_two_at_once_decode_once(pictures, tmp_path, decoded):
    def load():
        load_squares(pictures, 16, tmp_path / "cache")

    both = [threading.Thread(target=load) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(decoded) == len(pictures)


def test_an_image_that_cannot_be_read_is_named_and_left_out(tmp_path, caplog):
    files = [noise(tmp_path / f"{i}.png") for i in range(100)]
    files[7].path.write_bytes(b"no image")
    for _ in range(2):
        found, readable = load_squares(files, 8, tmp_path / "cache")
        assert np.flatnonzero(~readable).tolist() == [7]
        assert not found[7].any()
        assert found[8].any()
    assert "image 7 is left out: 7.png" in caplog.text


def test_more_than_one_in_a_hundred_are_refused(tmp_path):
    files = [noise(tmp_path / f"{i}.png") for i in range(100)]
    files[7].path.write_bytes(b"no image")
    files[9].path.unlink()
    with pytest.raises(
        ValueError, match=r"^2 of 100 images cannot be read, more than 1%; the first: 7 \(.*; 9 \(9.png"
    ):
        load_squares(files, 8, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.np*")) + list((tmp_path / "cache").glob("*.part"))


def test_a_coloured_picture_cannot_be_read(tmp_path):
    Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"1 of 1 images cannot be read.*a coloured picture"):
        load_squares([picture(tmp_path / "a.png")], 8)


def test_dicom_is_read_as_in_service(tmp_path):
    from dicom_node.pixels import render

    ds = chest_dataset()
    ds.save_as(tmp_path / "chest.dcm", enforce_file_format=True)
    found = pixels_of(picture(tmp_path / "chest.dcm"))
    assert np.array_equal(found, render(ds, max_pixels=squares.MAX_PIXELS))


def test_a_missing_file_is_said_by_its_name(tmp_path):
    with pytest.raises(PixelError, match=r"gone\.png: No such file"):
        pixels_of(picture(tmp_path / "gone.png"))


def test_decoding_leaves_the_filters_of_warnings_as_they_were(pictures):
    before = list(warnings.filters)
    load_squares(pictures, 8)
    assert warnings.filters == before
