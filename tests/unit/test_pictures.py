"""What the study pages show of an archived image, and what it costs to ask twice, or for a broken one."""

import struct
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from dicom_node.archive import Archive
from dicom_node.config import Settings
from dicom_node.decoding import decoders
from dicom_node.demo.instances import phantom_dataset
from dicom_node.domain import DeclinedByPixelsError, DecoderError, PixelError
from dicom_node.maps import MissingFileError, UnreadableFileError
from dicom_node.picture import _BLENDS, OPACITY
from dicom_node.pixels import render
from dicom_node.resize import shrunk
from dicom_node.worklist import pictures
from dicom_node.worklist.pictures import Pictures, overlay_png, render_for_screen, thumbnail
from tests.factories import chest_dataset

MAX_PIXELS = 64_000_000
PHANTOM = phantom_dataset(0, fresh_uids=True)
IMAGE = render(PHANTOM, max_pixels=MAX_PIXELS)


@pytest.fixture(scope="module")
def children():
    with decoders(Settings(), processes=1) as found:
        yield found


@pytest.fixture
def archive(tmp_path):
    return Archive(tmp_path / "archive")


def stored(archive, ds, tmp_path):
    ds.save_as(tmp_path / "stored.dcm", enforce_file_format=True)
    return archive.store((tmp_path / "stored.dcm").read_bytes()).path


def saved(tmp_path, ds=PHANTOM):
    ds.save_as(tmp_path / "saved.dcm", enforce_file_format=True)
    return tmp_path / "saved.dcm"


def unpacked(content):
    magic, version, rows, columns, reserved = struct.unpack("<4sHHH6s", content[:16])
    assert (magic, version, reserved) == (b"CXRG", 1, bytes(6))
    return np.frombuffer(content, "<u2", offset=16).reshape(rows, columns)


def rgba(content):
    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    return cv2.cvtColor(found, cv2.COLOR_BGRA2RGBA)


class Counted:
    """Stands for the children: each call is answered when the test says so, and counted."""

    def __init__(self, size=10):
        self.calls = []
        self.size = size
        self.may = threading.Event()
        self.may.set()

    def submit(self, function, path, longest, max_pixels):
        self.calls.append(path.name)
        future = Future()

        def answer():
            self.may.wait(10)
            future.set_result(bytes(self.size))

        threading.Thread(target=answer).start()
        return future


def test_the_grey_values_are_the_rendered_image(tmp_path):
    found = unpacked(render_for_screen(saved(tmp_path), 10_000, MAX_PIXELS))
    assert found.shape == IMAGE.shape
    np.testing.assert_array_equal(found, np.rint(IMAGE * 65535))


@pytest.mark.parametrize("longest", [64, 99, 300])
def test_the_grey_values_are_the_rendered_image_drawn_smaller(tmp_path, longest):
    found = unpacked(render_for_screen(saved(tmp_path), longest, MAX_PIXELS))
    assert max(found.shape) == longest
    np.testing.assert_array_equal(found, np.rint(np.clip(shrunk(IMAGE, longest), 0, 1) * 65535))


def test_inverse_polarity_and_padding_are_shown_as_a_display_does(tmp_path):
    ds = chest_dataset(PhotometricInterpretation="MONOCHROME1")
    plain = unpacked(render_for_screen(saved(tmp_path, chest_dataset()), 200, MAX_PIXELS)).astype(int)
    inverse = unpacked(render_for_screen(saved(tmp_path, ds), 200, MAX_PIXELS)).astype(int)
    assert np.abs(plain + inverse - 65535).max() <= 1


@pytest.mark.parametrize(("longest", "expected"), [(32, 32), (10_000, max(IMAGE.shape))])
def test_a_thumbnail_is_a_small_grey_png(tmp_path, longest, expected):
    found = thumbnail(saved(tmp_path), longest, MAX_PIXELS)
    assert found.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = cv2.imdecode(np.frombuffer(found, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 2
    assert max(pixels.shape) == expected


def test_an_overlay_covers_its_box_and_nothing_else():
    pixels = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))
    found = rgba(overlay_png(pixels, 200, 100, (0.25, 0.2, 0.5, 0.6)))
    assert found.shape == (200, 100, 4)
    alpha = found[..., 3].astype(int)
    inside = np.zeros((200, 100), bool)
    inside[50:150, 20:80] = True
    assert not alpha[~inside].any()
    across = alpha[100, 20:80]
    assert across[0] < 5
    assert across[-1] > 250
    assert (np.diff(across) >= 0).all()


def test_an_overlay_has_the_colours_of_the_heatmap():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = rgba(overlay_png(pixels, 16, 16)).astype(float)
    np.testing.assert_array_equal(found[..., 3], pixels)
    expected = _BLENDS.view(np.uint8).reshape(256, 256, 4)[pixels, 128, :3]
    opacity = OPACITY * found[..., 3:] / 255
    np.testing.assert_allclose(128 * (1 - opacity) + found[..., :3] * opacity, expected, atol=1)


def test_an_overlay_is_drawn_no_larger_than_it_is_worth():
    assert rgba(overlay_png(np.full((8, 8), 9, np.uint8), 3000, 1500)).shape == (768, 384, 4)


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0, 0, 0, 0), (0.2, 0.3, 0.5, 0.0)])
def test_a_map_without_activation_or_extent_is_transparent(box):
    value = 0 if box[2] == 1 else 255
    assert not rgba(overlay_png(np.full((8, 8), value, np.uint8), 50, 40, box))[..., 3].any()


def test_pictures_come_from_a_child_and_are_kept(children, archive, tmp_path):
    path = stored(archive, PHANTOM, tmp_path)
    found = Pictures(children, archive, Settings())
    grey, small = found.grey(path), found.thumbnail(path)
    np.testing.assert_array_equal(unpacked(grey), np.rint(np.clip(shrunk(IMAGE, 2048), 0, 1) * 65535))
    assert found.shape(path) == unpacked(grey).shape
    archive.locate(path).unlink()
    assert found.grey(path) is grey
    assert found.thumbnail(path) is small


def test_what_is_kept_is_bounded_and_the_least_recently_used_goes(archive, monkeypatch):
    monkeypatch.setattr(pictures, "GREY_BYTES", 30)
    counted = Counted(size=10)
    found = Pictures(counted, archive, Settings())
    for path in ("a", "b", "c", "a", "d", "a", "c", "d", "b"):
        found.grey(path)
    assert counted.calls == ["a", "b", "c", "d", "b"]
    assert found._grey._size == sum(map(len, found._grey._made.values())) == 30


def test_a_picture_that_is_larger_than_the_bound_is_given_and_not_kept(archive, monkeypatch):
    monkeypatch.setattr(pictures, "THUMBNAIL_BYTES", 9)
    counted = Counted(size=10)
    found = Pictures(counted, archive, Settings())
    assert [len(found.thumbnail("a")) for _ in range(2)] == [10, 10]
    assert counted.calls == ["a", "a"]
    assert found._thumbnails._size == 0


def test_what_is_asked_for_by_many_at_once_is_decoded_once(archive):
    counted = Counted()
    counted.may.clear()
    found = Pictures(counted, archive, Settings())
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(found.grey, "a") for _ in range(8)]
        other = pool.submit(found.grey, "b")
        counted.may.set()
        assert len({id(one.result(10)) for one in asked}) == 1
        other.result(10)
    assert sorted(counted.calls) == ["a", "b"]
    assert not found._grey._coming


def test_a_broken_file_is_told_each_time_and_costs_nothing_else(children, archive, tmp_path):
    found = Pictures(children, archive, Settings())
    broken = archive.store(b"\0" * 128 + b"DICM" + b"\xff" * 400).path
    cut = archive.store(saved(tmp_path).read_bytes()[:-5000]).path
    for _ in range(2):
        for path in (broken, cut):
            with pytest.raises(PixelError):
                found.grey(path)
            with pytest.raises(PixelError):
                found.thumbnail(path)
    assert found.grey(stored(archive, PHANTOM, tmp_path)).startswith(b"CXRG")


def test_an_image_that_is_not_shown_and_one_that_is_too_large_say_why(children, archive, tmp_path):
    flat = stored(archive, chest_dataset(np.full((64, 64), 7, np.uint16)), tmp_path)
    with pytest.raises(DeclinedByPixelsError):
        Pictures(children, archive, Settings()).grey(flat)
    large = stored(archive, PHANTOM, tmp_path)
    with pytest.raises(PixelError, match="max_pixels = 100") as caught:
        Pictures(children, archive, Settings(max_pixels=100)).grey(large)
    assert caught.value.reason == "pixels_too_large"


def test_a_missing_file_is_told_and_found_once_it_is_back(children, archive, tmp_path):
    path = stored(archive, PHANTOM, tmp_path)
    content = archive.locate(path).read_bytes()
    archive.locate(path).unlink()
    found = Pictures(children, archive, Settings())
    with pytest.raises(MissingFileError, match="not in the archive"):
        found.grey(path)
    archive.store(content)
    assert found.grey(path).startswith(b"CXRG")


def test_a_file_that_the_disk_keeps_is_told(children, archive):
    (archive.locate("aa") / "folder.dcm").mkdir()
    with pytest.raises(UnreadableFileError):
        Pictures(children, archive, Settings()).thumbnail("aa/folder.dcm")


def test_whoever_waits_when_the_node_ends_is_told(archive):
    class Ending:
        def submit(self, *arguments):
            future = Future()
            future.cancel()
            return future

    with pytest.raises(DecoderError) as caught:
        Pictures(Ending(), archive, Settings()).grey("a")
    assert not caught.value.permanent
