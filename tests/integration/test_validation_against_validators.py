"""Whatever dciodvfy or DCMTK refuses of a result that lacks something, `check_object` refuses before it leaves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import Dataset, dcmread

from dicom_node.attributes import CONTENT_SEQUENCE, PIXEL_DATA
from dicom_node.normalise import normalise
from dicom_node.rejection import RejectionReason, build_rejection_note
from dicom_node.results import Reference, ResultError, encode
from dicom_node.validation import check_object
from tests.result_factories import WHEN, results
from tests.source_factories import rich

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Validate

    Way = tuple[int, ...]  # tags, and numbers of items


def ways(ds: Dataset, before: Way = ()) -> Iterator[Way]:
    """Where each element stands; of a sequence's items the first, of a content tree's all."""
    for tag in sorted(ds.keys()):
        yield (*before, tag)
        element = ds.get_item(tag)
        if tag == PIXEL_DATA or getattr(element, "is_raw", False):
            continue
        assert element is not None
        if element.VR == "SQ":
            items: Any = element.value
            for number in range(len(items) if tag == CONTENT_SEQUENCE else min(1, len(items))):
                yield from ways(items[number], (*before, tag, number))


def without(ds: Dataset, way: Way, *, emptied: bool) -> Dataset:
    """A copy in which that element is not, or has no value."""
    broken = deepcopy(ds)
    at: Any = broken
    for step in way[:-1]:
        at = at[step].value if isinstance(at, Dataset) else at[step]
    if not emptied:
        del at[way[-1]]
    elif at[way[-1]].VR == "SQ":
        at[way[-1]].value = []
    else:
        at[way[-1]].value = None
    return broken


@pytest.fixture(scope="module")
def objects() -> dict[str, Dataset]:
    heatmap, report = results(rich(), size=64)
    cited = [
        Reference(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPClassUID, ds.SOPInstanceUID)
        for ds in (heatmap, report)
    ]
    header, _ = normalise(rich())
    note = build_rejection_note(cited, header, reason=RejectionReason.QUALITY, when=WHEN, node_ae_title="CXRSCREEN")
    # Its tree as bytes: the note has one for the rest.
    report[CONTENT_SEQUENCE] = dcmread(BytesIO(encode(report))).get_item(CONTENT_SEQUENCE)
    return {"heatmap": heatmap, "report": report, "note": note}


@pytest.mark.parametrize("kind", ["heatmap", "report", "note"])
def test_what_passes_our_check_passes_theirs(
    kind: str, objects: dict[str, Dataset], validators: Validate, tmp_path: Path
) -> None:
    header, _ = normalise(rich())
    whole = objects[kind]
    refused = 0
    passed: list[Path] = []
    for way in ways(whole):
        for emptied in (False, True):
            broken = (
                without(whole, way, emptied=emptied) if way != (PIXEL_DATA,) else without(whole, way, emptied=False)
            )
            try:
                check_object(broken, [header])
            except ResultError:
                refused += 1
                continue
            passed.append(tmp_path / f"{len(passed)}.dcm")
            passed[-1].write_bytes(encode(broken))
    with ThreadPoolExecutor(2) as pool:
        faults = [str(error) for error in pool.map(lambda file: said_of(validators, file), passed) if error]
    assert faults == []
    assert refused > 50
    assert passed


def said_of(validators: Validate, file: Path) -> AssertionError | None:
    try:
        validators(file)
    except AssertionError as error:
        return error
    return None
