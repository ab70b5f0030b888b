"""`render` against DCMTK's rendering of the same file, and against DCMTK's encoders.

DCMTK writes 16-bit grey and truncates where we keep the fraction: one step of 65535 is agreement.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom import Dataset, uid

from dicom_node.decoders import TRANSFER_SYNTAXES
from dicom_node.pixels import render
from tests.factories import chest_dataset, chest_pixels, lut, with_codestream

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.usefixtures("dcmtk")

STEP = 1.001 / 65535
WINDOW = {"WindowCenter": "1800", "WindowWidth": "2600"}
SIGNED = (chest_pixels().astype(np.int32) - 2048).astype(np.int16)


def run(tool: str, *arguments: str | Path) -> str:
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{tool}: {done.stderr[-1000:]}"
    return done.stderr


def show(ds: Dataset, folder: Path, *options: str) -> NDArray[np.float64]:
    """DCMTK's rendering of a native dataset, in [0, 1]."""
    source, picture = folder / "source.dcm", folder / "picture.pgm"
    ds.save_as(source, enforce_file_format=True)
    run("dcm2pnm", "--no-overlays", *options, "--write-16-bit-pnm", source, picture)
    lines = picture.read_text().splitlines()
    words = " ".join(line for line in lines if not line.startswith("#")).split()
    assert words[0] == "P2"
    columns, rows, full_scale = map(int, words[1:4])
    return np.array(words[4:], dtype=np.float64).reshape(rows, columns) / full_scale


def ours(ds: Dataset) -> NDArray[np.float32]:
    return render(ds, max_pixels=10_000_000)


def native_copy(ds: Dataset, stored: NDArray[Any]) -> Dataset:
    """The same dataset with these stored values in explicit VR little endian."""
    copy = pydicom.Dataset(ds)
    copy.file_meta = pydicom.dataset.FileMetaDataset(ds.file_meta)
    copy.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    copy.add_new("PixelData", "OW", stored.tobytes() + b"\0" * (stored.nbytes % 2))
    return copy


@pytest.mark.parametrize(
    "elements",
    [
        pytest.param(WINDOW, id="linear"),
        pytest.param({"WindowCenter": "1800.5", "WindowWidth": "2601"}, id="linear, half a value off"),
        pytest.param({"WindowCenter": "1800", "WindowWidth": "2"}, id="linear, two values wide"),
        pytest.param({"WindowCenter": "1800", "WindowWidth": "1"}, id="linear, a step"),
        pytest.param({**WINDOW, "VOILUTFunction": "SIGMOID"}, id="sigmoid"),
        pytest.param({"WindowCenter": ["1800", "100"], "WindowWidth": ["2600", "300"]}, id="the first of two"),
        pytest.param(
            {"RescaleSlope": "-2", "RescaleIntercept": "500", "WindowCenter": "-3000", "WindowWidth": "5000"},
            id="rescale that inverts",
        ),
        pytest.param(
            {
                "ModalityLUTSequence": [lut(np.linspace(60000, 0, 4096), 0, 16, ModalityLUTType="US")],
                "WindowCenter": "30000",
                "WindowWidth": "50000",
            },
            id="modality table",
        ),
        pytest.param(
            {
                "ModalityLUTSequence": [lut(np.linspace(0, 255, 4096), 0, 8, ModalityLUTType="US")],
                "WindowCenter": "128",
                "WindowWidth": "256",
            },
            id="modality table of packed bytes",
        ),
    ],
)
def test_a_window_is_shown_as_dcmtk_shows_it(elements: dict[str, Any], tmp_path: Path) -> None:
    ds = chest_dataset(**elements)
    np.testing.assert_allclose(ours(ds), show(ds, tmp_path, "+Wi", "1"), atol=STEP)


def test_a_fractional_rescale_keeps_its_fractions(tmp_path: Path) -> None:
    """DCMTK rounds modality values to integers; PS3.3 C.11.1.1.2 does not: up to half a value of 1500 apart."""
    ds = chest_dataset(RescaleSlope="0.5", RescaleIntercept="-1024", WindowCenter="-100", WindowWidth="1500")
    np.testing.assert_allclose(ours(ds), show(ds, tmp_path, "+Wi", "1"), atol=0.5 / 1499 + STEP)
    stored = chest_pixels().astype(np.float64)
    expected = np.clip((stored * 0.5 - 1024 + 100.5) / 1499 + 0.5, 0, 1)
    np.testing.assert_allclose(ours(ds), expected, atol=1e-6)


def test_linear_exact_differs_from_linear_as_the_standard_says(tmp_path: Path) -> None:
    """DCMTK 3.6.7 does not know LINEAR_EXACT and shows LINEAR: up to one value of 2600 apart."""
    ds = chest_dataset(**WINDOW, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(ours(ds), show(ds, tmp_path, "+Wi", "1"), atol=1 / 2599 + STEP)
    expected = np.clip((chest_pixels() - 1800.0) / 2600 + 0.5, 0, 1)  # PS3.3 C.11.2.1.3.2
    np.testing.assert_allclose(ours(ds), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("entries", "first", "bits", "pixels"),
    [
        (np.linspace(0, 1, 4096) ** 1.7 * 4095, 0, 12, None),
        (np.linspace(0, 1, 1000) ** 0.7 * 65535, 1000, 16, None),
        (np.linspace(0, 1, 1000) ** 0.7 * 255, 1000, 8, None),
        (np.linspace(0, 1, 4096) ** 1.7 * 4095, -2048, 12, SIGNED),
    ],
    ids=["12 bits", "16 bits, part of the range", "packed bytes", "signed"],
)
def test_a_voi_lut_is_shown_as_dcmtk_shows_it(
    entries: NDArray[Any], first: int, bits: int, pixels: NDArray[Any] | None, tmp_path: Path
) -> None:
    """DCMTK divides an entry by 2^bits; the full scale of PS3.3 C.11.2.1.1 is 2^bits - 1, so that white is white."""
    ds = chest_dataset(pixels, VOILUTSequence=[lut(entries, first, bits)], WindowCenter="1", WindowWidth="2")
    assert ours(ds).max() == 1
    np.testing.assert_allclose(ours(ds), show(ds, tmp_path, "+Wl", "1"), atol=1 / (1 << bits) + STEP)


@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
def test_any_number_of_stored_bits_is_shown_as_dcmtk_shows_it(bits: int, tmp_path: Path) -> None:
    pixels = chest_pixels(bits=bits).astype(np.uint8 if bits == 8 else np.uint16)
    window = {"WindowCenter": f"{2**bits * 0.45:.2f}", "WindowWidth": f"{2**bits * 0.8:.2f}"}
    ds = chest_dataset(pixels, BitsStored=bits, **window)
    np.testing.assert_allclose(ours(ds), show(ds, tmp_path, "+Wi", "1"), atol=STEP)


@pytest.mark.parametrize(
    ("pixels", "elements"),
    [
        (SIGNED, {}),
        ((SIGNED.astype(np.int32) & 0xFFF | 0xA000).astype(np.uint16), {"PixelRepresentation": 1}),
        (((SIGNED.astype(np.int32) & 0xFFF) << 4 | 5).astype(np.uint16), {"PixelRepresentation": 1, "HighBit": 15}),
    ],
    ids=["signed", "signed under rubbish", "signed at the high end"],
)
def test_signed_values_are_shown_as_dcmtk_shows_them(
    pixels: NDArray[Any], elements: dict[str, Any], tmp_path: Path
) -> None:
    ds = chest_dataset(pixels, WindowCenter="0", WindowWidth="3000", **elements)
    np.testing.assert_allclose(ours(ds), show(ds, tmp_path, "+Wi", "1"), atol=STEP)


@pytest.mark.parametrize(
    ("pixels", "high_bit"),
    [(chest_pixels() << 4 | 5, 15), (chest_pixels() << 2 | 0x8001, 13), (chest_pixels() | 0xB000, 11)],
)
def test_bits_beside_the_stored_ones_are_no_part_of_the_value(
    pixels: NDArray[np.uint16], high_bit: int, tmp_path: Path
) -> None:
    ds = chest_dataset(pixels, HighBit=high_bit, **WINDOW)
    np.testing.assert_array_equal(ours(ds), ours(chest_dataset(**WINDOW)))
    np.testing.assert_allclose(ours(ds), show(ds, tmp_path, "+Wi", "1"), atol=STEP)


@pytest.mark.parametrize(
    ("photometric", "shape"),
    [
        ("MONOCHROME1", None),
        ("MONOCHROME1", "INVERSE"),
        ("MONOCHROME2", None),
        ("MONOCHROME2", "IDENTITY"),
        ("MONOCHROME2", "INVERSE"),
    ],
)
def test_polarity_is_applied_once(photometric: str, shape: str | None, tmp_path: Path) -> None:
    elements = {} if shape is None else {"PresentationLUTShape": shape}
    ds = chest_dataset(PhotometricInterpretation=photometric, **elements, **WINDOW)
    np.testing.assert_allclose(ours(ds), show(ds, tmp_path, "+Wi", "1"), atol=STEP)


def test_monochrome1_stays_inverse_beside_a_contradicting_shape(tmp_path: Path) -> None:
    """MONOCHROME1 with IDENTITY is illegal (PS3.3 C.8.11.3.1.2). DCMTK lets the shape win, we the required element."""
    ds = chest_dataset(PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="IDENTITY", **WINDOW)
    np.testing.assert_allclose(ours(ds), 1 - show(ds, tmp_path, "+Wi", "1"), atol=STEP)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_the_rest_as_dcmtk_shows_it(photometric: str, tmp_path: Path) -> None:
    """DCMTK shows padding like any value."""
    pixels = chest_pixels()
    frame = np.ones(pixels.shape, dtype=bool)
    frame[8:-8, 8:-8] = False
    pixels[frame] = 2000
    ds = chest_dataset(pixels, PixelPaddingValue=2000, PhotometricInterpretation=photometric, **WINDOW)
    padded = pixels == 2000
    assert (ours(ds)[padded] == 0).all()
    np.testing.assert_allclose(ours(ds)[~padded], show(ds, tmp_path, "+Wi", "1")[~padded], atol=STEP)


def test_without_any_voi_the_bounds_are_near_those_of_dcmtks_histogram(tmp_path: Path) -> None:
    """`+Wh 1` leaves out one percent of the pixels; we leave out half a percent at each end."""
    ds = chest_dataset()
    np.testing.assert_allclose(ours(ds), show(ds, tmp_path, "+Wh", "1"), atol=0.005)


def test_eight_bits_without_any_voi_are_shown_as_they_are(tmp_path: Path) -> None:
    """As DCMTK does, which however divides by 256."""
    ds = chest_dataset(chest_pixels(bits=8).astype(np.uint8))
    np.testing.assert_allclose(ours(ds), show(ds, tmp_path), atol=1 / 256)


def encode_with_dcmtk(ds: Dataset, folder: Path, tool: str, *options: str) -> Dataset:
    native, encoded = folder / "native.dcm", folder / "encoded.dcm"
    ds.save_as(native, enforce_file_format=True)
    run(tool, *options, native, encoded)
    return pydicom.dcmread(encoded)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("shape", [(96, 80), (97, 81)], ids=str)
@pytest.mark.parametrize(
    ("tool", "options", "syntax"),
    [
        ("dcmconv", ["+ti"], uid.ImplicitVRLittleEndian),
        ("dcmconv", ["+te"], uid.ExplicitVRLittleEndian),
        ("dcmcrle", [], uid.RLELossless),
        ("dcmcjpeg", ["+e1"], uid.JPEGLosslessSV1),
        *[("dcmcjpeg", ["+el", "+sv", str(predictor)], uid.JPEGLossless) for predictor in range(1, 8)],
        ("dcmcjpls", ["+el"], uid.JPEGLSLossless),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_dcmtk_encodes_without_loss_is_the_native_image(
    tool: str, options: list[str], syntax: str, shape: tuple[int, int], bits: int, tmp_path: Path
) -> None:
    pixels = chest_pixels(*shape, bits=bits).astype(np.uint8 if bits == 8 else np.uint16)
    ds = chest_dataset(pixels, BitsStored=bits, WindowCenter=str(2**bits / 2), WindowWidth=str(2**bits))
    encoded = encode_with_dcmtk(ds, tmp_path, tool, *options)
    assert encoded.file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(ours(encoded), ours(ds))


@pytest.mark.parametrize(
    ("tool", "options"),
    [("dcmcrle", []), ("dcmcjpeg", ["+e1"]), ("dcmcjpls", ["+el"])],
    ids=["RLE", "JPEG lossless", "JPEG-LS"],
)
@pytest.mark.parametrize(
    ("pixels", "elements"),
    [
        (SIGNED, {"WindowCenter": "0", "WindowWidth": "3000"}),
        (chest_pixels() << 4, {"HighBit": 15, **WINDOW}),
    ],
    ids=["signed", "high bit 15"],
)
def test_encapsulation_changes_nothing_of_sign_and_high_bit(
    tool: str, options: list[str], pixels: NDArray[Any], elements: dict[str, Any], tmp_path: Path
) -> None:
    ds = chest_dataset(pixels, **elements)
    np.testing.assert_array_equal(ours(encode_with_dcmtk(ds, tmp_path, tool, *options)), ours(ds))


@pytest.mark.parametrize(
    ("tool", "options", "syntax", "bits", "atol"),
    [
        ("dcmcjpeg", ["+eb", "+q", "95"], uid.JPEGBaseline8Bit, 8, 0.05),
        ("dcmcjpeg", ["+ee", "+q", "95"], uid.JPEGExtended12Bit, 12, 0.05),
        ("dcmcjpls", ["+en", "+md", "3"], uid.JPEGLSNearLossless, 12, 3 / 4095 + STEP),
    ],
)
def test_what_dcmtk_encodes_with_loss_is_close_to_the_native_image(
    tool: str, options: list[str], syntax: str, bits: int, atol: float, tmp_path: Path
) -> None:
    pixels = chest_pixels(bits=bits).astype(np.uint8 if bits == 8 else np.uint16)
    ds = chest_dataset(pixels, BitsStored=bits, WindowCenter=str(2**bits / 2), WindowWidth=str(2**bits))
    encoded = encode_with_dcmtk(ds, tmp_path, tool, *options)
    assert encoded.file_meta.TransferSyntaxUID == syntax
    np.testing.assert_allclose(ours(encoded), ours(ds), atol=atol)


@pytest.mark.parametrize(
    "pixels", [chest_pixels(), SIGNED, chest_pixels(bits=8).astype(np.uint8)], ids=lambda p: p.dtype
)
@pytest.mark.parametrize(
    "syntax", [uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K]
)
def test_jpeg_2000_is_the_native_image_that_dcmtk_shows(syntax: str, pixels: NDArray[Any], tmp_path: Path) -> None:
    """Debian's DCMTK has no JPEG 2000: it shows the native copy. OpenJPH encodes the high-throughput ones."""
    encode = imagecodecs.htj2k_encode if "4.20" in syntax else imagecodecs.jpeg2k_encode
    full = 2 ** (8 if pixels.dtype == np.uint8 else 12)
    center = "0" if pixels.dtype == np.int16 else str(full / 2)
    ds = chest_dataset(pixels, WindowCenter=center, WindowWidth=str(full))
    encoded = with_codestream(ds, syntax, encode(pixels, reversible=True))
    np.testing.assert_array_equal(ours(encoded), ours(ds))
    np.testing.assert_allclose(ours(encoded), show(ds, tmp_path, "+Wi", "1"), atol=STEP)


@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
def test_openjpeg_reads_what_openjph_encodes_at_every_depth(bits: int) -> None:
    pixels = chest_pixels(97, 81, bits=bits).astype(np.uint8 if bits == 8 else np.uint16)
    codestream = imagecodecs.htj2k_encode(pixels, reversible=True)
    np.testing.assert_array_equal(imagecodecs.jpeg2k_decode(codestream), pixels)


def test_every_transfer_syntax_offered_is_tested_here() -> None:
    tested = {
        uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLossless, uid.JPEGLosslessSV1,
        uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.JPEG2000,
        uid.JPEG2000Lossless, uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL,
    }  # fmt: skip
    assert set(TRANSFER_SYNTAXES) == tested


@pytest.mark.parametrize("name", ["RG1_J2KI", "RG3_J2KI"])
def test_real_jpeg_2000_is_shown_as_dcmtk_shows_its_native_copy(name: str, data_dir: Path, tmp_path: Path) -> None:
    ds = pydicom.dcmread(data_dir / "dicom" / f"{name}.dcm")
    frame = next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))
    native = native_copy(ds, imagecodecs.jpeg2k_decode(frame))
    np.testing.assert_allclose(ours(ds), show(native, tmp_path, "+Wi", "1"), atol=STEP)


@pytest.mark.parametrize("name", ["RG2_JPLL", "RG2_JLSL", "RG2_JPLY", "rsna_sc_cr_chest"])
def test_a_real_image_is_shown_as_dcmtk_decodes_and_shows_it(name: str, data_dir: Path, tmp_path: Path) -> None:
    source, native = data_dir / "dicom" / f"{name}.dcm", tmp_path / "native.dcm"
    run("dcmdjpls" if name == "RG2_JLSL" else "dcmdjpeg", source, native)
    ds = pydicom.dcmread(source)
    windows = ["+Wi", "1"] if "WindowCenter" in ds else []
    expected = show(pydicom.dcmread(native), tmp_path, *windows)
    # Two inverse cosine transforms may round apart, and without a window DCMTK divides by 256.
    atol = {"RG2_JPLY": 1.01 / 1023, "rsna_sc_cr_chest": 2 / 256}.get(name, STEP)
    np.testing.assert_allclose(ours(ds), expected, atol=atol)


def test_the_lossless_forms_of_one_real_image_agree(data_dir: Path) -> None:
    forms = [ours(pydicom.dcmread(data_dir / "dicom" / f"RG2_{form}.dcm")) for form in ("JPLL", "JLSL")]
    np.testing.assert_array_equal(*forms)


def test_a_real_chest_has_dark_lungs_and_a_bright_spine(data_dir: Path) -> None:
    image = ours(pydicom.dcmread(data_dir / "dicom" / "RG1_J2KI.dcm"))  # MONOCHROME1
    rows, columns = image.shape
    band = image[rows // 4 : rows // 2]
    spine = band[:, int(columns * 0.47) : int(columns * 0.53)].mean()
    lungs = [band[:, int(columns * left) : int(columns * (left + 0.1))].mean() for left in (0.25, 0.7)]
    assert spine > max(lungs) + 0.1
