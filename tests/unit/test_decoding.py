"""What a decoding process hands back, and what hostile files do to it."""

import os
import struct
import time
from io import BytesIO

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, uid

from dicom_node.children import Children
from dicom_node.config import Settings
from dicom_node.decoding import Decoded, Wanted, decode, decoders
from dicom_node.domain import DeclinedByPixelsError, DeclineReason, DecoderError, PixelError
from dicom_node.layout import layout
from dicom_node.normalise import normalise
from dicom_node.picture import draw_heatmap
from dicom_node.pixels import read_instance, read_picture, render
from dicom_node.resize import square
from tests.factories import chest_dataset, chest_pixels, code, with_codestream
from tests.result_factories import manifest, prediction

WANTED = Wanted(((32, 0), (48, 16)), 64, 1_000_000)
ANY_SIZE = Wanted(((32, 0),), 64, 64_000_000)


@pytest.fixture(scope="module")
def children():
    with Children(1, timeout_s=60, memory_bytes=128 << 20, preload=("dicom_node.decoding",)) as found:
        yield found


def saved(ds, folder, name="chest.dcm"):
    ds.save_as(folder / name, enforce_file_format=True)
    return folder / name


def png(folder, pixels, name="chest.png"):
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def test_an_instance_is_drawn_as_it_would_be_here(children, tmp_path):
    ds = chest_dataset()
    found = children.submit(decode, saved(ds, tmp_path), WANTED).result()
    image = render(ds, max_pixels=1_000_000)
    assert isinstance(found, Decoded)
    assert (found.rows, found.columns) == image.shape == (96, 80)
    assert set(found.squares) == {(32, 0), (48, 16)}
    np.testing.assert_array_equal(found.squares[32, 0], square(image, 32))
    np.testing.assert_array_equal(found.squares[48, 16], square(image, 48, 16))
    assert found.picture.shape == (64, 53)
    assert found.admission is None
    assert "PixelData" not in found.header


@pytest.mark.parametrize(("name", "kind"), [("chest.png", "PNG"), ("chest.dcm", "JPEG")])
def test_a_picture_is_known_by_its_content_and_has_no_header(children, tmp_path, name, kind):
    Image.fromarray(chest_pixels(bits=8).astype(np.uint8)).save(tmp_path / name, format=kind)
    found = children.submit(decode, tmp_path / name, WANTED, Settings()).result()
    image = read_picture(tmp_path / name, max_pixels=1_000_000)
    assert found.header is None
    assert found.admission is None
    np.testing.assert_array_equal(found.squares[32, 0], square(image, 32))


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"ProcedureCodeSequence": [code("1", "99X")], "OtherPatientIDsSequence": [Dataset()]},
        {"TransferSyntaxUID": uid.ImplicitVRLittleEndian, "ProcedureCodeSequence": [code("1", "99X", "Durchleuchtü")]},
    ],
)
@pytest.mark.parametrize("character_set", [b"ISO_IR 100", b"ISO IR 100", b"ISO_IR 192", b"latin-9   "])
def test_results_are_built_from_its_header_as_from_the_instance_itself(children, tmp_path, elements, character_set):
    file = saved(chest_dataset(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jürgen", **elements), tmp_path)
    content = file.read_bytes().replace(b"ISO_IR 100", character_set)
    file.write_bytes(content)
    header = children.submit(decode, file, WANTED, Settings()).result().header
    assert normalise(header) == normalise(read_instance(content))
    assert header.SOPInstanceUID == chest_dataset().SOPInstanceUID
    assert header.file_meta.TransferSyntaxUID == elements.get("TransferSyntaxUID", uid.ExplicitVRLittleEndian)


def test_what_admission_declines_is_not_rendered(children, tmp_path):
    lateral = saved(chest_dataset(ViewPosition="LL", PixelData=b"\0\0"), tmp_path)
    found = children.submit(decode, lateral, WANTED, Settings()).result()
    assert found.admission.reason is DeclineReason.LATERAL
    assert found.squares == {}
    assert found.picture.size == 0
    assert found.header.ViewPosition == "LL"
    frontal = saved(chest_dataset(), tmp_path)
    assert children.submit(decode, frontal, WANTED, Settings()).result().admission.view == "PA"


def test_what_cannot_be_read_comes_back_with_its_reason(children, tmp_path):
    for ds, reason in [
        (chest_dataset(PixelData=None), "pixels_missing"),
        (chest_dataset(BitsAllocated=32), "pixels_unsupported"),
        (chest_dataset(Rows=9000, Columns=9000), "pixels_too_large"),
    ]:
        error = children.submit(decode, saved(ds, tmp_path), WANTED).exception()
        assert type(error) is PixelError
        assert error.reason == reason
    constant = saved(chest_dataset(np.full((96, 80), 700, np.uint16)), tmp_path)
    error = children.submit(decode, constant, WANTED).exception()
    assert isinstance(error, DeclinedByPixelsError)
    assert error.decline_reason is DeclineReason.CONSTANT


def test_a_file_that_cannot_be_opened_is_an_error_of_the_disk(children, tmp_path):
    error = children.submit(decode, tmp_path / "gone.dcm", WANTED).exception()
    assert type(error) is FileNotFoundError
    assert error.filename == str(tmp_path / "gone.dcm")
    assert type(children.submit(decode, tmp_path, WANTED).exception()) is IsADirectoryError


# The picture that a heatmap is drawn over.


@pytest.mark.parametrize(("rows", "columns"), [(700, 500), (333, 777), (512, 512), (96, 80), (257, 256), (1500, 7)])
@pytest.mark.parametrize("maps", [True, False])
def test_a_heatmap_over_the_picture_is_one_over_the_pixels(tmp_path, rows, columns, maps):
    image = render(chest_dataset(chest_pixels(rows, columns)), max_pixels=10_000_000)
    found = decode(saved(chest_dataset(chest_pixels(rows, columns)), tmp_path), Wanted((), 256, 10_000_000)).picture
    answer = prediction() if maps else prediction(maps=())
    small = found.astype(np.float32) / 255
    assert layout(*image.shape, answer, manifest(), size=256) == layout(*small.shape, answer, manifest(), size=256)
    over_pixels, over_picture = (
        draw_heatmap(pixels, answer, manifest(), size=256).astype(int) for pixels in (image, small)
    )
    assert np.abs(over_pixels - over_picture).max() <= 1


# Hostile files, each followed by a good one.


def refusal(children, file, wanted=ANY_SIZE):
    hostile, good = children.submit(decode, file, wanted), children.submit(decode, saved_good(file.parent), wanted)
    error = hostile.exception(timeout=60)
    assert good.result(timeout=60).rows == 96
    assert isinstance(error, PixelError)
    return error


def saved_good(folder):
    return saved(chest_dataset(), folder, "good.dcm")


def endless_jpeg(side=2048, scans=60_000):
    """Progressive, of a thousand blocks to a byte and with so many scans: under a megabyte, and minutes of work."""
    stream = BytesIO()
    grey = np.full((side, side), 90, np.uint8)
    grey[:8, :8] = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(grey).save(stream, format="JPEG", progressive=True)
    whole = stream.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * scans + b"\xff\xd9"


def test_a_codestream_that_takes_for_ever_is_given_up_and_the_next_image_is_on_time(tmp_path):
    side = 2048
    stream = endless_jpeg(side)
    ds = with_codestream(chest_dataset(np.zeros((side, side), np.uint8)), uid.JPEGBaseline8Bit, stream)
    with Children(1, timeout_s=1, memory_bytes=512 << 20, preload=("dicom_node.decoding",)) as children:
        children.submit(decode, saved_good(tmp_path), WANTED).result()
        error = refusal(children, saved(ds, tmp_path))
    assert isinstance(error, DecoderError)
    assert error.reason == "decoder_timeout"


def test_a_picture_that_inflates_to_more_than_the_memory_is_refused(children, tmp_path):
    bomb = png(tmp_path, np.zeros((7000, 7000), np.uint8))
    assert bomb.stat().st_size < 100_000
    error = refusal(children, bomb)
    assert error.reason == "decoder_memory"
    assert "decode_memory_mb = 128" in str(error)


@pytest.mark.parametrize("syntax", [uid.JPEG2000, uid.JPEGLSLossless, uid.RLELossless])
def test_a_codestream_that_inflates_to_more_than_the_memory_is_refused(children, tmp_path, syntax):
    zeros = np.zeros((7000, 7000), np.uint16)
    zeros[0, 0] = 1  # or it would be declined for being constant
    if syntax == uid.RLELossless:
        half = b"\x81\0" * (zeros.size // 128 + 1)
        stream = struct.pack("<16L", 2, 64, 64 + len(half), *[0] * 13) + half * 2
    elif syntax == uid.JPEG2000:
        stream = imagecodecs.jpeg2k_encode(zeros, reversible=True)
    else:
        stream = imagecodecs.jpegls_encode(zeros)
    ds = with_codestream(chest_dataset(), syntax, stream)
    ds.Rows, ds.Columns = zeros.shape
    assert len(stream) < 2_000_000
    assert refusal(children, saved(ds, tmp_path)).reason in ("decoder_memory", "decoder_died", "pixels_undecodable")


def nested(depth, *, explicit):
    """Part 10 bytes of a chest whose sequences nest so deep, their lengths given or not."""
    stream = BytesIO()
    chest_dataset().save_as(stream, enforce_file_format=True)
    head, pixels = stream.getvalue().split(struct.pack("<HH", 0x7FE0, 0x0010))
    inner = b""
    tag, item = struct.pack("<HH2sH", 0x0040, 0xA730, b"SQ", 0), struct.pack("<HH", 0xFFFE, 0xE000)
    if explicit:
        for _ in range(depth):
            inner = tag + struct.pack("<L", len(inner) + 8) + item + struct.pack("<L", len(inner)) + inner
    else:
        ends = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
        inner = (tag + b"\xff" * 4 + item + b"\xff" * 4) * depth + ends * depth
    return head + inner + struct.pack("<HH", 0x7FE0, 0x0010) + pixels


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("depth", [17, 60, 100, 300, 5000])
def test_sequences_that_nest_too_deep_are_refused(children, tmp_path, depth, explicit):
    (tmp_path / "nested.dcm").write_bytes(nested(depth, explicit=explicit))
    assert refusal(children, tmp_path / "nested.dcm").reason == "unreadable"


@pytest.mark.parametrize("explicit", [True, False])
def test_sequences_that_nest_as_a_report_does_are_read(children, tmp_path, explicit):
    (tmp_path / "nested.dcm").write_bytes(nested(12, explicit=explicit))
    assert children.submit(decode, tmp_path / "nested.dcm", WANTED).result().rows == 96


def test_a_file_that_is_cut_off_or_noise_is_refused(children, tmp_path):
    whole = saved_good(tmp_path).read_bytes()
    noise = np.random.default_rng(1).bytes(10_000)
    for content in (b"", whole[:100], whole[:200], whole[:900], whole[:-1000], noise, whole[:400] + noise):
        (tmp_path / "hostile.dcm").write_bytes(content)
        assert refusal(children, tmp_path / "hostile.dcm").permanent


# The node's own children.


def test_the_settings_limit_the_children(tmp_path):
    with decoders(Settings(decode_timeout_s=0.5, decode_memory_mb=128, decode_processes=1)) as children:
        assert children.submit(decode, saved_good(tmp_path), WANTED).result().rows == 96
        late, large = children.submit(time.sleep, 60), children.submit(bytearray, 256 << 20)
        assert "decode_timeout_s = 0.5" in str(late.exception())
        assert "decode_memory_mb = 128" in str(large.exception())


def test_a_child_uses_one_core(tmp_path, children):
    children.submit(decode, saved(chest_dataset(chest_pixels(500, 400)), tmp_path), WANTED).result()
    assert children.submit(os.listdir, "/proc/self/task").result().__len__() == 1
    assert children.submit(cv2.getNumThreads).result() == 1
