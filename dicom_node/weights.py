"""Whether a bundle's folder holds what its manifest says, and nothing that runs code when it is loaded; no torch."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from dicom_node.bundle import MANIFEST, read_manifest
from dicom_node.domain import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dicom_node.bundle import Manifest

_PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"}  # unpickling runs whatever code they hold
_WEIGHTS = ".safetensors"
_AGAIN = "install the bundle again"
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # bytes, as safetensors itself has it
_BITS = (
    {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
    | dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8)
    | dict.fromkeys(("U16", "I16", "F16", "BF16"), 16)
    | dict.fromkeys(("U32", "I32", "F32"), 32)
    | dict.fromkeys(("U64", "I64", "F64", "C64"), 64)
)


class Fault(NamedTuple):
    """What is wrong with which file, and what to do about it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def faults(folder: Path) -> Iterator[Fault]:
    """Every fault of the bundle in `folder`; none where it is whole."""
    named: dict[str, str] = {}
    try:
        named = _named_files(read_manifest(folder))
    except BundleError as error:
        yield Fault(" ".join(str(error).split()), _AGAIN)
    for name, sha256 in named.items():
        if (wrong := _wrong_with(folder, name, sha256)) is not None:
            yield Fault(wrong, _AGAIN)
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in _PICKLES:
            yield Fault(f"{file} may be a pickle, which runs any code when it is loaded", "remove it")


def _named_files(manifest: Manifest) -> dict[str, str]:
    """SHA-256 by name of every file that the manifest names, whatever for; its record of training is of no files."""
    found: dict[str, str] = {}

    def look(part: Any) -> None:
        if isinstance(part, dict):
            if isinstance(part.get("file"), str) and isinstance(part.get("sha256"), str):
                found[part["file"]] = part["sha256"]
            part = list(part.values())
        if isinstance(part, list):
            for inner in part:
                look(inner)

    look(manifest.model_dump(mode="json", exclude={"training"}))
    return found


def _wrong_with(folder: Path, name: str, sha256: str) -> str | None:
    file = folder / name
    if not file.absolute().is_relative_to(folder.absolute()) or ".." in file.parts[len(folder.parts) :]:
        return f"{folder / MANIFEST} names {name}, which is outside the bundle"
    try:
        if not file.is_file():  # nor a pipe, which would never be read to its end
            return f"{file} is not there"
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
            if found != sha256:
                return f"{file} is not the file that {MANIFEST} names: SHA-256 {found[:12]}..., not {sha256[:12]}..."
            if file.suffix == _WEIGHTS:
                opened.seek(0)
                size = file.stat().st_size
                length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
                _check_header(opened.read(min(length, _LONGEST_HEADER)), length, size)
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"
    except BundleError as error:
        return f"{file} is not safetensors: {error}"
    return None


def _check_header(header: bytes, length: int, size: int) -> None:
    """The header of a file of `size` bytes describes tensors that fill the rest of it without gap or overlap.

    Raises
    ------
    BundleError
        Saying what does not fit.
    """
    if size < _LENGTH_BYTES or length > _LONGEST_HEADER or length > size - _LENGTH_BYTES:
        raise BundleError(f"a header of {length} bytes in a file of {size}")
    try:
        described = json.loads(header, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise BundleError("its header is not JSON") from error
    if not header.startswith(b"{") or not isinstance(described, dict):
        raise BundleError("its header is no JSON object")
    metadata = described.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BundleError("its __metadata__ is not text by name")
    end = 0
    for begin, next_end in sorted(_extent(name, tensor) for name, tensor in described.items()):
        if begin != end:
            raise BundleError(f"its tensors leave a gap or overlap at byte {min(begin, end)}")
        end = next_end
    if end != size - _LENGTH_BYTES - length:
        raise BundleError(f"its tensors fill {end} bytes, and {size - _LENGTH_BYTES - length} are there")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _extent(name: str, tensor: Any) -> tuple[int, int]:
    """First byte of a tensor's data, and the one behind its last."""
    told = f"tensor {name[:80]!r}"
    if not isinstance(tensor, dict) or tensor.keys() != {"dtype", "shape", "data_offsets"}:
        raise BundleError(f"{told} is not dtype, shape and data_offsets")
    shape, offsets = tensor["shape"], tensor["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise BundleError(f"{told}: shape and data_offsets must be whole numbers")
    if not isinstance(tensor["dtype"], str) or tensor["dtype"] not in _BITS:
        raise BundleError(f"{told} is of an unknown dtype")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * _BITS[tensor["dtype"]]:
        raise BundleError(f"{told}: its data is not as long as its shape and dtype say")
    return begin, end


def _are_sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)
