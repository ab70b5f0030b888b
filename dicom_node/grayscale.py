"""The grayscale pipeline of PS3.3 C.11 and PS3.4 N.2 as one table: encoded cell -> what the display shows.

A cell has at most 16 bits, so modality, VOI and presentation are computed once per possible cell in float64, and an
image is rendered by one look-up per pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword

from dicom_node.domain import PixelError

if TYPE_CHECKING:
    from pydicom import Dataset

    from dicom_node.decoders import Layout

Table = NDArray[np.float64]

# Without a VOI transformation: the bounds of the display, as shares of the image's pixels outside the padding.
PERCENTILES = (0.005, 0.995)


def element(keyword: str) -> str:
    """Tag and keyword of a data element, as messages name it."""
    tag = tag_for_keyword(keyword) or 0
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {keyword}"


def integer(ds: Dataset, keyword: str, default: int | None = None) -> int:
    """Value of a single-valued integer element; `default` where it is absent or empty.

    Raises
    ------
    PixelError
        Absent without a default, or not one integer.
    """
    try:
        value = ds.get(keyword)
    except Exception as error:
        raise PixelError("pixels_unsupported", f"{element(keyword)} cannot be read") from error
    if value is None or value == "":
        if default is None:
            raise PixelError("pixels_unsupported", f"{element(keyword)} is missing")
        return default
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise PixelError("pixels_unsupported", f"{element(keyword)} is not an integer") from error


def stored_values(layout: Layout, precision: int, *, lossy: bool) -> NDArray[np.int64]:
    """The stored value (PS3.5 8.1.1) of every cell of 8 or 16 bits.

    Bits of a cell outside BitsStored are not part of the value: old devices keep overlays or rubbish there. HighBit
    counts only where the encoded sample reaches it; a codestream of BitsStored bits is right-aligned.
    """
    cells = np.arange(1 << (8 if max(precision, layout.bits_allocated) <= 8 else 16), dtype=np.int64)
    shift = layout.high_bit + 1 - layout.bits_stored if precision > layout.high_bit else 0
    values: NDArray[np.int64] = cells >> shift
    if lossy and not layout.signed:
        np.minimum(values, (1 << layout.bits_stored) - 1, out=values)
        return values
    values &= (1 << layout.bits_stored) - 1
    if layout.signed:
        values[values >= 1 << (layout.bits_stored - 1)] -= 1 << layout.bits_stored
    return values


def padding(ds: Dataset, stored: NDArray[np.int64], layout: Layout) -> NDArray[np.bool_]:
    """Which stored values are padding: Pixel Padding Value to Pixel Padding Range Limit (PS3.3 C.7.5.1.1.2)."""
    if "PixelPaddingValue" not in ds or ds["PixelPaddingValue"].is_empty:
        return np.zeros(stored.shape, dtype=np.bool_)
    value = _as_stored(integer(ds, "PixelPaddingValue"), layout)
    limit = _as_stored(integer(ds, "PixelPaddingRangeLimit", value), layout)
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def _as_stored(value: int, layout: Layout) -> int:
    """The value with the sign that PixelRepresentation asks for, should it have been written as the other of US, SS."""
    value &= 0xFFFF
    return value - 0x10000 if layout.signed and value >= 0x8000 else value


def modality_values(ds: Dataset, stored: NDArray[np.int64]) -> Table:
    """Modality LUT Sequence, else Rescale Slope and Intercept, else the stored values (PS3.3 C.11.1)."""
    sequence = ds.get("ModalityLUTSequence")
    if sequence:
        table = _look_up(sequence[0], stored.astype(np.float64))
        if table is None:
            raise PixelError("pixels_unsupported", f"{element('ModalityLUTSequence')} holds no usable table")
        return table[0]
    slope, intercept = _numbers(ds, "RescaleSlope"), _numbers(ds, "RescaleIntercept")
    if slope[:1] == [0.0]:  # illegal, and would make every image constant
        raise PixelError("pixels_unsupported", f"{element('RescaleSlope')} is 0")
    return stored.astype(np.float64) * (slope[0] if slope else 1.0) + (intercept[0] if intercept else 0.0)


def voi(ds: Dataset, values: Table) -> Iterator[Table]:
    """Every usable VOI transformation of `values` to [0, 1], the preferred one first (PS3.3 C.11.2).

    The standard leaves the choice among several to the user; a VOI LUT is the vendor's own curve, so it goes first.
    """
    for item in ds.get("VOILUTSequence") or ():
        table = _look_up(item, values)
        if table is not None:
            entries, full_scale = table
            yield entries / full_scale
    name = str(ds.get("VOILUTFunction") or "LINEAR").strip().upper()
    for center, width in zip(_numbers(ds, "WindowCenter"), _numbers(ds, "WindowWidth"), strict=False):
        table_or_none = _window(values, center, width, name)
        if table_or_none is not None:
            yield table_or_none


def _window(values: Table, center: float, width: float, function: str) -> Table | None:
    """One window of PS3.3 C.11.2.1.2 or C.11.2.1.3; None where its width is illegal. An unknown function is LINEAR."""
    if function == "SIGMOID":
        if width <= 0:
            return None
        with np.errstate(over="ignore"):  # exp of a value far below the window: 1 / inf is the right 0
            shown: Table = 1 / (1 + np.exp(-4 * (values - center) / width))
            return shown
    if function == "LINEAR_EXACT":
        if width <= 0:
            return None
        return np.clip((values - center) / width + 0.5, 0, 1)
    if width < 1:
        return None
    if width == 1:  # a step
        return np.where(values > center - 0.5, 1.0, 0.0)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def full_range(values: Table, counts: NDArray[np.int64]) -> Table:
    """`values` to [0, 1] between the two `PERCENTILES` of the pixels; `counts` is the number of pixels per cell."""
    order = np.argsort(values, kind="stable")
    share = np.cumsum(counts[order]) / counts.sum()
    low, high = (values[order[np.searchsorted(share, bound)]] for bound in PERCENTILES)
    if not high > low:  # nearly constant: a few pixels differ
        used = values[counts > 0]
        low, high = used.min(), used.max()
    shown: Table = np.clip((values - low) / (high - low), 0, 1)
    return shown


def _look_up(item: Dataset, values: Table) -> tuple[Table, float] | None:
    """LUT Data at `values`, and its full scale (PS3.3 C.11.1.1, C.11.2.1.1); None where the table is unusable."""
    try:
        length, first, bits = (int(part) for part in item.LUTDescriptor)
        data: Any = item.LUTData
    except (AttributeError, TypeError, ValueError):
        return None
    length = (length & 0xFFFF) or 0x10000
    first &= 0xFFFF
    if first >= 0x8000 and values.min() < 0:  # SS where the values to be looked up can be negative
        first -= 0x10000
    raw = data if isinstance(data, bytes) else np.atleast_1d(np.asarray(data)).astype("<u2").tobytes()
    # Entries of 8 bits are packed; some write them as words nevertheless.
    packed = len(raw) < 2 * length
    entries = np.frombuffer(raw, dtype="u1" if packed else "<u2")[:length].astype(np.float64)
    if len(entries) < length or not 0 < bits <= 16:
        return None
    at = np.clip(np.rint(values - first), 0, length - 1).astype(np.int64)
    return entries[at], max(float((1 << bits) - 1), float(entries.max()))


def _numbers(ds: Dataset, keyword: str) -> list[float]:
    """The values of a decimal element; none where it is absent, or where any of them is not a finite number."""
    try:
        value = ds.get(keyword)
        values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        numbers = [float(number) for number in values]
    except (TypeError, ValueError, OverflowError):
        return []
    return numbers if all(np.isfinite(numbers)) else []
