"""Bad input, the choices that DCMTK cannot confirm, and pictures; the golden values are in tests/integration."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset, uid

from dicom_node.decoders import Layout, decode
from dicom_node.domain import DeclinedByPixelsError, DeclineReason, PixelError
from dicom_node.pixels import TRANSFER_SYNTAXES, read_picture, render
from tests.factories import chest_dataset, chest_pixels, lut, with_codestream

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MAX_PIXELS = 1_000_000
WINDOW = {"WindowCenter": "1800", "WindowWidth": "2600"}

COMPRESSED = [syntax for syntax in TRANSFER_SYNTAXES if uid.UID(syntax).is_compressed]


def ours(ds: Dataset) -> NDArray[np.float32]:
    return render(ds, max_pixels=MAX_PIXELS)


def refusal(ds: Dataset) -> PixelError:
    with pytest.raises(PixelError) as caught:
        ours(ds)
    assert caught.value.permanent
    return caught.value


def decline(ds: Dataset) -> DeclineReason:
    with pytest.raises(DeclinedByPixelsError) as caught:
        ours(ds)
    return caught.value.decline_reason


def test_an_image_is_float32_of_its_rows_and_columns_between_0_and_1() -> None:
    image = ours(chest_dataset(**WINDOW))
    assert image.dtype == np.float32
    assert image.shape == (96, 80)
    assert image.min() >= 0
    assert image.max() <= 1


def test_deflated_and_big_endian_are_not_offered() -> None:
    assert not {uid.DeflatedExplicitVRLittleEndian, uid.ExplicitVRBigEndian} & set(TRANSFER_SYNTAXES)


def test_rendering_leaves_the_dataset_as_it_was() -> None:
    ds = chest_dataset(**WINDOW)
    before = ds.to_json()
    ours(ds)
    assert ds.to_json() == before


# What cannot be read names the data element at fault.


@pytest.mark.parametrize(
    ("elements", "reason", "named"),
    [
        ({"PixelData": None}, "pixels_missing", "(7FE0,0010) PixelData"),
        ({"PixelData": b""}, "pixels_missing", "(7FE0,0010) PixelData"),
        ({"PixelData": b"\0" * 100}, "pixels_undecodable", "(7FE0,0010) PixelData"),
        ({"Rows": 65535, "Columns": 65535}, "pixels_too_large", "(0028,0010) Rows"),
        ({"Rows": 1001, "Columns": 1000}, "pixels_too_large", "(0028,0011) Columns"),
        ({"Rows": 0}, "pixels_unsupported", "(0028,0010) Rows"),
        ({"Rows": None}, "pixels_unsupported", "(0028,0010) Rows"),
        ({"Columns": [80, 80]}, "pixels_unsupported", "(0028,0011) Columns"),
        ({"Rows": 97}, "pixels_undecodable", "(0028,0010) Rows"),
        ({"BitsAllocated": 32}, "pixels_unsupported", "(0028,0100) BitsAllocated"),
        ({"BitsAllocated": 1}, "pixels_unsupported", "(0028,0100) BitsAllocated"),
        ({"BitsStored": 17}, "pixels_unsupported", "(0028,0101) BitsStored"),
        ({"BitsStored": 0}, "pixels_unsupported", "(0028,0101) BitsStored"),
        ({"BitsStored": None}, "pixels_unsupported", "(0028,0101) BitsStored"),
        ({"HighBit": 16}, "pixels_unsupported", "(0028,0102) HighBit"),
        ({"HighBit": 7}, "pixels_unsupported", "(0028,0102) HighBit"),
        ({"PixelRepresentation": 2}, "pixels_unsupported", "(0028,0103) PixelRepresentation"),
        ({"PhotometricInterpretation": None}, "pixels_unsupported", "(0028,0004) PhotometricInterpretation"),
        ({"RescaleSlope": "0"}, "pixels_unsupported", "(0028,1053) RescaleSlope"),
        ({"ModalityLUTSequence": [Dataset()]}, "pixels_unsupported", "(0028,3000) ModalityLUTSequence"),
        ({"TransferSyntaxUID": uid.DeflatedExplicitVRLittleEndian}, "transfer_syntax", "(0002,0010) TransferSyntaxUID"),
        ({"TransferSyntaxUID": uid.MPEG2MPML}, "transfer_syntax", "(0002,0010) TransferSyntaxUID"),
        ({"TransferSyntaxUID": "1.2.3"}, "transfer_syntax", "(0002,0010) TransferSyntaxUID"),
        *[({"TransferSyntaxUID": syntax}, "pixels_undecodable", "(7FE0,0010) PixelData") for syntax in COMPRESSED],
    ],
)
def test_what_cannot_be_read_names_the_element(elements: dict[str, Any], reason: str, named: str) -> None:
    error = refusal(chest_dataset(**elements))
    assert error.reason == reason
    assert named in str(error)


def test_a_dataset_without_file_meta_names_the_transfer_syntax() -> None:
    ds = chest_dataset()
    del ds.file_meta
    error = refusal(ds)
    assert error.reason == "transfer_syntax"
    assert "(0002,0010) TransferSyntaxUID" in str(error)


ENCODED = {
    uid.JPEGBaseline8Bit: imagecodecs.jpeg8_encode(chest_pixels(bits=8).astype(np.uint8)),
    uid.JPEGLosslessSV1: imagecodecs.jpeg8_encode(chest_pixels(), lossless=True, predictor=1, bitspersample=12),
    uid.JPEGLSLossless: imagecodecs.jpegls_encode(chest_pixels()),
    uid.JPEG2000: imagecodecs.jpeg2k_encode(chest_pixels(), reversible=True),
    uid.HTJ2K: imagecodecs.htj2k_encode(chest_pixels(), reversible=True),
}


def dataset_of(syntax: str, codestream: bytes) -> Dataset:
    native = chest_dataset(chest_pixels(bits=8).astype(np.uint8)) if syntax == uid.JPEGBaseline8Bit else chest_dataset()
    return with_codestream(native, syntax, codestream)


@pytest.mark.parametrize("syntax", ENCODED)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99])
def test_a_codestream_that_is_cut_off_is_refused(syntax: str, share: float) -> None:
    """A decoder that fills the rest with grey would show half a chest."""
    whole = ENCODED[syntax]
    ours(dataset_of(syntax, whole))
    error = refusal(dataset_of(syntax, whole[: int(len(whole) * share)]))
    assert error.reason == "pixels_undecodable"
    assert "(7FE0,0010) PixelData" in str(error)


@pytest.mark.parametrize("syntax", ENCODED)
def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(syntax: str) -> None:
    ds = dataset_of(syntax, ENCODED[syntax])
    ds.Rows, ds.Columns = ds.Columns, ds.Rows
    error = refusal(ds)
    assert "96 x 80" in str(error)
    assert "(0028,0010) Rows" in str(error)


def test_a_small_file_cannot_ask_for_much_memory() -> None:
    """A few bytes of JPEG 2000 that say 4000 x 4000, or of RLE that say 10 MB, under a dataset that says 96 x 80."""
    bomb = imagecodecs.jpeg2k_encode(np.zeros((4000, 4000), np.uint16), reversible=True)
    assert len(bomb) < 4000
    assert "4000 x 4000" in str(refusal(with_codestream(chest_dataset(), uid.JPEG2000, bomb)))
    run = np.zeros(16, "<u4")
    run[:3] = 2, 64, 64 + 80_000
    assert "PixelData" in str(
        refusal(with_codestream(chest_dataset(), uid.RLELossless, run.tobytes() + b"\x81\0" * 80_000))
    )


def test_a_colour_codestream_under_one_sample_per_pixel_is_refused() -> None:
    colour = imagecodecs.jpeg8_encode(np.dstack([chest_pixels(bits=8).astype(np.uint8)] * 3))
    assert "(0028,0002) SamplesPerPixel" in str(refusal(dataset_of(uid.JPEGBaseline8Bit, colour)))


def test_more_bits_than_are_allocated_are_refused() -> None:
    ds = with_codestream(chest_dataset(chest_pixels(bits=8).astype(np.uint8)), uid.JPEG2000, ENCODED[uid.JPEG2000])
    assert "(0028,0100) BitsAllocated" in str(refusal(ds))


def test_random_bytes_are_refused_in_every_transfer_syntax() -> None:
    rng = np.random.default_rng(3)
    for syntax in COMPRESSED:
        for whole in ENCODED.values():
            damaged = bytearray(whole)
            for at in rng.integers(0, min(len(damaged), 400), 8):
                damaged[at] = rng.integers(0, 256)
            try:
                ours(dataset_of(syntax, bytes(damaged)))
            except (PixelError, DeclinedByPixelsError) as error:
                assert "(7FE0,0010) PixelData" in str(error)  # noqa: PT017


def test_a_jp2_box_of_length_0_does_not_stop_the_worker() -> None:
    """pydicom's own reader of JPEG 2000 parameters loops for ever on it."""
    box = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 8
    assert refusal(with_codestream(chest_dataset(), uid.JPEG2000, box)).reason == "pixels_undecodable"


def test_jpeg_2000_in_a_jp2_file_is_read() -> None:
    boxed = imagecodecs.jpeg2k_encode(chest_pixels(), reversible=True, codecformat="JP2")
    assert boxed[4:6] == b"jP"
    np.testing.assert_array_equal(
        ours(with_codestream(chest_dataset(**WINDOW), uid.JPEG2000, boxed)), ours(chest_dataset(**WINDOW))
    )


def test_a_frame_in_many_fragments_is_one_frame() -> None:
    ds = chest_dataset(**WINDOW)
    whole = ENCODED[uid.JPEG2000]
    parts = with_codestream(ds, uid.JPEG2000, whole)
    parts.PixelData = pydicom.encaps.encapsulate([whole], fragments_per_frame=7)
    np.testing.assert_array_equal(ours(parts), ours(ds))


def test_an_overshooting_lossy_sample_is_clipped_and_does_not_wrap_to_black() -> None:
    layout = Layout(96, 80, 16, 12, 11, signed=False)
    over = chest_pixels().copy()
    over[:4] = 4200
    for syntax, top in ((uid.JPEG2000, 1.0), (uid.JPEG2000Lossless, 104 / 4095)):
        ds = with_codestream(
            chest_dataset(WindowCenter="2048", WindowWidth="4096"),
            syntax,
            imagecodecs.jpeg2k_encode(over, reversible=True),
        )
        assert decode(syntax, ds.PixelData, layout).precision == 16
        assert ours(ds)[0, 0] == pytest.approx(top, abs=1e-3)


# What we do not screen.


def test_colour_multi_frame_and_constant_images_are_declined() -> None:
    assert decline(chest_dataset(SamplesPerPixel=3, PhotometricInterpretation="RGB")) == DeclineReason.COLOUR
    assert decline(chest_dataset(PhotometricInterpretation="PALETTE COLOR")) == DeclineReason.COLOUR
    assert decline(chest_dataset(NumberOfFrames="2")) == DeclineReason.MULTI_FRAME
    assert decline(chest_dataset(np.full((96, 80), 700, np.uint16))) == DeclineReason.CONSTANT


def test_an_image_is_constant_where_only_its_padding_differs() -> None:
    pixels = np.full((96, 80), 700, np.uint16)
    pixels[:10] = 0
    assert decline(chest_dataset(pixels, PixelPaddingValue=0)) == DeclineReason.CONSTANT
    assert decline(chest_dataset(pixels, PixelPaddingValue=0, PixelPaddingRangeLimit=700)) == DeclineReason.CONSTANT


def test_an_image_is_constant_where_only_its_unused_bits_differ() -> None:
    pixels = np.full((96, 80), 700, np.uint16)
    pixels[:10] |= 0x8000
    assert decline(chest_dataset(pixels)) == DeclineReason.CONSTANT


def test_one_frame_may_be_said_to_be_one() -> None:
    np.testing.assert_array_equal(ours(chest_dataset(NumberOfFrames="1")), ours(chest_dataset()))


# Padding.


def test_a_range_of_padding_is_black_and_does_not_count_for_the_percentiles() -> None:
    pixels = chest_pixels() // 2 + 1000
    plain = ours(chest_dataset(pixels))
    framed = np.pad(pixels, 20, constant_values=4090)
    framed[:5] = 4080
    image = ours(chest_dataset(framed, PixelPaddingValue=4095, PixelPaddingRangeLimit=4080))
    assert (image[:20] == 0).all()
    np.testing.assert_array_equal(image[20:-20, 20:-20], plain)


@pytest.mark.parametrize("vr", ["US", "SS"])
def test_padding_of_signed_pixels_is_found_whichever_its_vr(vr: str) -> None:
    pixels = (chest_pixels().astype(np.int32) - 2048).astype(np.int16)
    pixels[:10] = -2000
    ds = chest_dataset(pixels)
    ds.add_new("PixelPaddingValue", vr, -2000 if vr == "SS" else 65536 - 2000)
    assert (ours(ds)[:10] == 0).all()


def test_padding_that_no_pixel_can_have_is_none() -> None:
    """A 12-bit cell under rubbish must not be taken for 0x8000."""
    np.testing.assert_array_equal(ours(chest_dataset(PixelPaddingValue=0x8000)), ours(chest_dataset()))


# The choice of the VOI transformation.


def test_the_voi_lut_goes_before_the_window() -> None:
    table = lut(np.arange(4096), 0, 12)
    both, alone = chest_dataset(VOILUTSequence=[table], **WINDOW), chest_dataset(VOILUTSequence=[table])
    np.testing.assert_array_equal(ours(both), ours(alone))
    np.testing.assert_allclose(ours(alone), chest_pixels() / 4095, atol=1e-6)


@pytest.mark.parametrize(
    "unusable",
    [
        {"WindowCenter": ["100", "1800"], "WindowWidth": ["0", "2600"]},
        {"WindowCenter": ["100", "1800"], "WindowWidth": ["-5", "2600"]},
        {"VOILUTSequence": [Dataset()], **WINDOW},
        {"VOILUTSequence": [lut(np.arange(10), 0, 12, LUTDescriptor=[4096, 0, 12])], **WINDOW},
        {"VOILUTFunction": "GUESSED", **WINDOW},
        {"WindowCenter": ["60000", "1800"], "WindowWidth": ["100", "2600"]},
    ],
    ids=["width 0", "width below 0", "empty table", "short table", "unknown function", "beside the image"],
)
def test_an_unusable_voi_gives_way_to_the_next(unusable: dict[str, Any]) -> None:
    np.testing.assert_array_equal(ours(chest_dataset(**unusable)), ours(chest_dataset(**WINDOW)))


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": "2000"},
        {"WindowCenter": "2000", "WindowWidth": "0"},
        {"WindowCenter": "60000", "WindowWidth": "10"},
        {"WindowCenter": "60000", "WindowWidth": "3000", "VOILUTFunction": "SIGMOID"},
    ],
)
def test_without_a_usable_voi_the_percentiles_of_the_image_are_the_bounds(elements: dict[str, Any]) -> None:
    pixels = chest_pixels()
    low, high = np.percentile(pixels, [0.5, 99.5])
    image = ours(chest_dataset(pixels, **elements))
    np.testing.assert_allclose(image, np.clip((pixels - low) / (high - low), 0, 1), atol=0.01)


def test_a_few_bright_pixels_do_not_darken_an_image_without_voi() -> None:
    marked = chest_pixels() // 4
    plain = ours(chest_dataset(marked))
    marked[0, :8] = 4095
    np.testing.assert_allclose(ours(chest_dataset(marked))[1:], plain[1:], atol=0.02)


def test_an_image_with_a_single_speck_still_shows_it() -> None:
    pixels = np.full((96, 80), 700, np.uint16)
    pixels[50, 40] = 900
    image = ours(chest_dataset(pixels))
    assert image[50, 40] == 1
    assert image.sum() == 1


def test_values_that_are_garbage_are_warned_of_by_nobody() -> None:
    """pydicom's warnings carry the values; under pytest's settings one would be an error."""
    raw = io.BytesIO()
    chest_dataset(**WINDOW).save_as(raw, enforce_file_format=True)
    garbage = raw.getvalue().replace(b"MONOCHROME2 ", b"monochrome2 ").replace(b"1800", b"18x0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(ours(pydicom.dcmread(io.BytesIO(garbage))), ours(chest_dataset()))


# Pictures.


def save(image: Image.Image, folder: Path, name: str = "picture.png", **options: Any) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


GREY = chest_pixels(bits=8).astype(np.uint8)


def test_eight_bits_are_divided_by_255_exactly(tmp_path: Path) -> None:
    expected = GREY.astype(np.float32) / np.float32(255)
    for mode in ("L", "RGB", "RGBA", "P"):
        path = save(Image.fromarray(GREY).convert(mode), tmp_path)
        picture = read_picture(path, max_pixels=MAX_PIXELS)
        assert picture.dtype == np.float32
        np.testing.assert_array_equal(picture, expected, err_msg=mode)


def test_a_jpeg_is_read_as_pillow_decodes_it(tmp_path: Path) -> None:
    path = save(Image.fromarray(GREY), tmp_path, "picture.jpg", quality=95)
    with Image.open(path) as opened:
        expected = np.asarray(opened).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(read_picture(path, max_pixels=MAX_PIXELS), expected)


def test_sixteen_bits_are_divided_by_65535(tmp_path: Path) -> None:
    pixels = chest_pixels(bits=16)
    path = save(Image.fromarray(pixels), tmp_path)
    np.testing.assert_array_equal(
        read_picture(path, max_pixels=MAX_PIXELS), pixels.astype(np.float32) / np.float32(65535)
    )


@pytest.mark.parametrize("name", ["picture.jpg", "picture.png"])
def test_exif_orientation_is_applied(name: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: row 0 is the right side
    path = save(Image.fromarray(GREY), tmp_path, name, exif=exif, quality=100)
    picture = read_picture(path, max_pixels=MAX_PIXELS)
    np.testing.assert_allclose(picture, np.rot90(GREY, -1) / 255, atol=0.02)


def test_transparent_parts_are_black(tmp_path: Path) -> None:
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:, :40] = 0
    picture = read_picture(save(Image.fromarray(np.dstack([GREY, alpha])), tmp_path), max_pixels=MAX_PIXELS)
    assert (picture[:, :40] == 0).all()
    np.testing.assert_array_equal(picture[:, 40:], GREY[:, 40:].astype(np.float32) / np.float32(255))


def test_a_coloured_picture_is_declined_and_a_tinted_or_marked_one_is_not(tmp_path: Path) -> None:
    coloured = np.dstack([GREY, GREY // 3, 255 - GREY])
    with pytest.raises(DeclinedByPixelsError) as caught:
        read_picture(save(Image.fromarray(coloured), tmp_path), max_pixels=MAX_PIXELS)
    assert caught.value.decline_reason == DeclineReason.COLOUR
    tinted = np.dstack([GREY - GREY // 8, GREY - GREY // 16, GREY])
    tinted[:10, :30] = 255, 0, 0
    assert read_picture(save(Image.fromarray(tinted), tmp_path), max_pixels=MAX_PIXELS).shape == GREY.shape


def test_a_constant_picture_is_declined(tmp_path: Path) -> None:
    with pytest.raises(DeclinedByPixelsError) as caught:
        read_picture(save(Image.new("L", (40, 40), 9), tmp_path), max_pixels=MAX_PIXELS)
    assert caught.value.decline_reason == DeclineReason.CONSTANT


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    for side in (1001, 20_000):  # beyond our bound, and beyond Pillow's own
        path = save(Image.new("1", (side, side)), tmp_path)
        with pytest.raises(PixelError) as caught:
            read_picture(path, max_pixels=MAX_PIXELS)
        assert caught.value.reason == "pixels_too_large"


def test_an_unreadable_picture_is_refused(tmp_path: Path) -> None:
    whole = save(Image.fromarray(GREY), tmp_path, "whole.jpg").read_bytes()
    for name, content in (("empty.png", b""), ("text.png", b"hello"), ("half.jpg", whole[: len(whole) // 2])):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(PixelError, match=name) as caught:
            read_picture(path, max_pixels=MAX_PIXELS)
        assert caught.value.reason == "pixels_undecodable"
    with pytest.raises(PixelError):
        read_picture(tmp_path / "absent.png", max_pixels=MAX_PIXELS)


def test_other_formats_are_not_opened(tmp_path: Path) -> None:
    with pytest.raises(PixelError):
        read_picture(save(Image.fromarray(GREY), tmp_path, "picture.tiff"), max_pixels=MAX_PIXELS)


def test_a_picture_and_the_secondary_capture_that_holds_it_are_the_same_image(tmp_path: Path) -> None:
    picture = read_picture(save(Image.fromarray(GREY), tmp_path), max_pixels=MAX_PIXELS)
    for rescale in ({}, {"RescaleSlope": "1", "RescaleIntercept": "0"}):
        capture = chest_dataset(GREY, SOPClassUID=uid.SecondaryCaptureImageStorage, **rescale)
        np.testing.assert_array_equal(ours(capture), picture)


def test_eight_bits_that_are_rescaled_are_no_picture() -> None:
    rescaled = chest_dataset(GREY, RescaleSlope="2", RescaleIntercept="0")
    assert ours(rescaled).min() == 0
    assert ours(rescaled).max() == 1
