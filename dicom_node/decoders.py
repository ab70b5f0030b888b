"""Pixel Data -> samples: one table of transfer syntaxes, and the checks that stand before and after each decoder.

A decoder sees only a codestream whose own header says the size that the dataset says, so that a small file cannot ask
for much memory; and its result counts only when it has exactly that size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import generate_frames

from dicom_node.domain import PixelError

if TYPE_CHECKING:
    from collections.abc import Callable

Cells = NDArray[np.uint8] | NDArray[np.uint16]

PIXEL_DATA = "(7FE0,0010) PixelData"


@dataclass(frozen=True, slots=True)
class Layout:
    """How the samples of one monochrome frame lie in Pixel Data (PS3.5 8.1.1), checked to be sane."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool

    @property
    def pixels(self) -> int:
        """Rows x Columns."""
        return self.rows * self.columns

    @property
    def bytes(self) -> int:
        """Length of the frame in a native encoding."""
        return self.pixels * self.bits_allocated // 8


class Samples(NamedTuple):
    """One decoded frame.

    Attributes
    ----------
    cells
        Unsigned, rows x columns; a signed sample is in two's complement.
    precision
        Number of low bits of a cell that carry the encoded sample; a native encoding carries the whole cell.
    """

    cells: Cells
    precision: int


class Header(NamedTuple):
    """What a codestream says of itself."""

    rows: int
    columns: int
    components: int
    precision: int
    start: int


def _jpeg_header(stream: bytes) -> Header:
    """Frame header of a JPEG (ISO 10918-1 B.2.2) or JPEG-LS (ISO 14495-1 C.2.2) codestream.

    `start` is 0. An interchange format without its end is refused: libjpeg would fill what is missing with grey.
    """
    if stream[:2] != b"\xff\xd8":
        raise ValueError("no JPEG codestream")
    header = None
    position = 2
    while position + 4 <= len(stream):
        if stream[position] != 0xFF:
            raise ValueError("JPEG marker expected")
        marker = stream[position + 1]
        if marker == 0xFF:  # fill byte, B.1.1.2
            position += 1
            continue
        if marker == 0xDA:
            break
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            if position + 10 > len(stream):
                break
            rows, columns = (int.from_bytes(stream[position + at : position + at + 2], "big") for at in (5, 7))
            header = Header(rows, columns, stream[position + 9], stream[position + 4], 0)
        position += 2 + max(2, int.from_bytes(stream[position + 2 : position + 4], "big"))
    if header is None:
        raise ValueError("JPEG codestream without a frame header")
    if stream.find(b"\xff\xd9", position) < 0:
        raise ValueError("JPEG codestream is cut off: no end of image marker")
    return header


def _jpeg2000_header(stream: bytes) -> Header:
    """SIZ segment (ISO 15444-1 A.5.1); `start` skips the JP2 boxes that do not belong into DICOM but occur."""
    start = stream.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(stream) < start + 45:
        raise ValueError("no JPEG 2000 codestream")
    words = np.frombuffer(stream, dtype=">u4", count=4, offset=start + 8)
    right, bottom, left, top = (int(word) for word in words)
    components = int.from_bytes(stream[start + 40 : start + 42], "big")
    return Header(bottom - top, right - left, components, (stream[start + 42] & 0x7F) + 1, start)


def _native(data: bytes, layout: Layout) -> Samples:
    if len(data) < layout.bytes:
        raise PixelError(
            "pixels_undecodable",
            f"{PIXEL_DATA} holds {len(data)} bytes; (0028,0010) Rows x (0028,0011) Columns need {layout.bytes}",
        )
    cells: Cells
    if layout.bits_allocated == 16:
        cells = np.frombuffer(data, dtype="<u2", count=layout.pixels)
    else:
        cells = np.frombuffer(data, dtype=np.uint8, count=layout.pixels)
    return Samples(cells.reshape(layout.rows, layout.columns), layout.bits_allocated)


def _rle(data: bytes, layout: Layout) -> Samples:
    # Into a buffer of the right size: a PackBits pair of 2 bytes can ask for 128.
    decoded = imagecodecs.dicomrle_decode(
        _frame(data), "<u2" if layout.bits_allocated == 16 else "u1", out=layout.bytes
    )
    return _native(bytes(decoded), layout)


def _codestream(
    decode: Callable[[bytes], NDArray[np.generic]], read_header: Callable[[bytes], Header]
) -> Callable[[bytes, Layout], Samples]:
    """Decoder of one encapsulated codestream whose header and result must agree with the dataset."""

    def decode_checked(data: bytes, layout: Layout) -> Samples:
        stream = _frame(data)
        header = read_header(stream)
        if (header.rows, header.columns) != (layout.rows, layout.columns):
            raise PixelError(
                "pixels_undecodable",
                f"{PIXEL_DATA}: its codestream has {header.rows} x {header.columns} pixels, "
                f"(0028,0010) Rows x (0028,0011) Columns say {layout.rows} x {layout.columns}",
            )
        if header.components != 1:
            raise PixelError(
                "pixels_undecodable",
                f"{PIXEL_DATA}: its codestream has {header.components} components, (0028,0002) SamplesPerPixel says 1",
            )
        if header.precision > layout.bits_allocated:
            raise PixelError(
                "pixels_undecodable",
                f"{PIXEL_DATA}: its codestream has {header.precision} bits per sample, "
                f"(0028,0100) BitsAllocated says {layout.bits_allocated}",
            )
        decoded = decode(stream[header.start :])
        if decoded.shape != (layout.rows, layout.columns) or decoded.dtype.itemsize > 2:
            raise ValueError(f"decoded to {decoded.dtype} of shape {decoded.shape}")
        cells: Cells = decoded.view(np.uint8) if decoded.dtype.itemsize == 1 else decoded.view(np.uint16)
        return Samples(cells, header.precision)

    return decode_checked


def _frame(data: bytes) -> bytes:
    """The one frame of an encapsulated Pixel Data (PS3.5 A.4), whatever the number of its fragments."""
    return next(generate_frames(data, number_of_frames=1))


# libjpeg-turbo 3 reads every process of ISO 10918-1 that DICOM knows: 8 and 12 bits, and lossless to 16.
_JPEG = _codestream(imagecodecs.jpeg8_decode, _jpeg_header)
_JPEG_LS = _codestream(imagecodecs.jpegls_decode, _jpeg_header)
# OpenJPEG reads high-throughput codestreams too, and unlike OpenJPH it refuses one that is cut off.
_JPEG_2000 = _codestream(imagecodecs.jpeg2k_decode, _jpeg2000_header)

# Not here on purpose: deflated (a megabyte inflates to gigabytes while the header is read) and big endian (retired).
_DECODERS: dict[str, Callable[[bytes, Layout], Samples]] = {
    # In the order in which the listener prefers them; implicit VR last, for it loses the VR of private elements.
    uid.ExplicitVRLittleEndian: _native,
    uid.RLELossless: _rle,
    uid.JPEGBaseline8Bit: _JPEG,
    uid.JPEGExtended12Bit: _JPEG,
    uid.JPEGLossless: _JPEG,
    uid.JPEGLosslessSV1: _JPEG,
    uid.JPEGLSLossless: _JPEG_LS,
    uid.JPEGLSNearLossless: _JPEG_LS,
    uid.JPEG2000Lossless: _JPEG_2000,
    uid.JPEG2000: _JPEG_2000,
    uid.HTJ2KLossless: _JPEG_2000,
    uid.HTJ2KLosslessRPCL: _JPEG_2000,
    uid.HTJ2K: _JPEG_2000,
    uid.ImplicitVRLittleEndian: _native,
}

TRANSFER_SYNTAXES: tuple[str, ...] = tuple(str(syntax) for syntax in _DECODERS)

# An irreversible codec overshoots; its samples are clipped to the stored range where a reversible one's are masked.
LOSSY: frozenset[str] = frozenset(
    (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K)
)


def decode(transfer_syntax: str, data: bytes, layout: Layout) -> Samples:
    """The samples of the one frame in `data`.

    Raises
    ------
    PixelError
        The transfer syntax is not one of `TRANSFER_SYNTAXES`, or codestream and dataset contradict each other.
    Exception
        Anything else that a decoder raises on a broken codestream.
    """
    decoder = _DECODERS.get(transfer_syntax)
    if decoder is None:
        name = uid.UID(transfer_syntax).name or "none"
        raise PixelError("transfer_syntax", f"(0002,0010) TransferSyntaxUID: {name} is not one that this node decodes")
    return decoder(data, layout)
