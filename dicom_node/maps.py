"""A prediction's maps as one archived file: a ZIP archive of PNG pictures, each named by member and map.

One file for all of them, as each file is synchronised to the disk on its own; ZIP and PNG, as anybody can open them.
"""

from __future__ import annotations

import zipfile
from io import BytesIO
from typing import TYPE_CHECKING

import cv2
import numpy as np

from dicom_node.domain import MemberMap, NodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicom_node.archive import Archive
    from dicom_node.predictions import MapPlace

SUFFIX = ".zip"
_PNG = ".png"


class MissingFileError(NodeError):
    """The archive does not hold what the ledger says it holds."""

    reason = "archive_missing"


class UnreadableFileError(NodeError):
    """The archive holds the file, and the disk or its rights keep it."""

    permanent = False
    reason = "archive_unreadable"


def encode_maps(maps: Sequence[MemberMap], owner: int) -> bytes:
    """The file: the same maps of the same screening `owner` give the same bytes.

    No two screenings share a file, for that of one may be purged.
    """
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for one in maps:
            entry = zipfile.ZipInfo(f"{one.member}/{one.name}{_PNG}")  # of 1980: no clock is asked
            file.writestr(entry, cv2.imencode(_PNG, one.pixels)[1].tobytes())
        file.comment = f"screening {owner}".encode()
    return buffer.getvalue()


def read_maps(archive: Archive, places: Sequence[MapPlace]) -> tuple[MemberMap, ...]:
    """The maps at these places, in their order; older ledgers have a PNG of its own for each.

    Raises
    ------
    MissingFileError
        Where a file is not there, or does not hold what is looked for in it.
    UnreadableFileError
        Where the disk keeps it.
    """
    contents = {path: read_archived(archive, path) for path in dict.fromkeys(place.path for place in places)}
    return tuple(_decoded(place, contents[place.path]) for place in places)


def read_archived(archive: Archive, path: str) -> bytes:
    """The bytes of a stored file.

    Raises
    ------
    MissingFileError, UnreadableFileError
    """
    try:
        return archive.locate(path).read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} is not in the archive") from error
    except OSError as error:
        raise UnreadableFileError(f"{path} cannot be read from the archive: {error.strerror}") from error


def _decoded(place: MapPlace, content: bytes) -> MemberMap:
    try:
        if place.path.endswith(SUFFIX):
            with zipfile.ZipFile(BytesIO(content)) as file:
                content = file.read(f"{place.member}/{place.name}{_PNG}")
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE) if content else None
    except (zipfile.BadZipFile, KeyError, EOFError):
        pixels = None
    if pixels is None:
        raise MissingFileError(f"{place.path} does not hold the map {place.member}/{place.name}")
    return MemberMap(place.member, place.name, pixels.astype(np.uint8), place.box)
