from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydicom.sr.codedict import codes as dictionary

from dicom_node import codes
from dicom_node.codes import KNOWN, output_code
from dicom_node.domain import Decision, TargetResult
from dicom_node.report import build_report
from tests.result_factories import image_of, manifest, prediction, screened, target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom.dataset import Dataset


def coded(ds: Dataset) -> Iterator[tuple[str, str, str]]:
    """Every code below `ds`, in the content tree and beside it."""
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                if "CodeValue" in item:
                    yield item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning
                yield from coded(item)


def test_a_report_writes_no_code_that_is_neither_in_the_table_nor_a_question_nor_an_output() -> None:
    abnormal = target("abnormal")
    made_by = manifest(targets=(target(), abnormal))
    images = []
    for number, decision in enumerate(Decision):
        numbers = (0.25, 0.5) if decision is Decision.NOT_FLAGGED else (0.75, 0.5)
        answers = tuple(TargetResult(name, *numbers, decision) for name in ("covid", "abnormal"))
        source = image_of(
            number + 1,
            Modality=("CR", "DX", "RG")[number],
            ImagerPixelSpacing=["0.1", "0.1"],
            PatientOrientation=["L", "F"],
        )
        images.append(screened(source, prediction(targets=answers)))
    written = set(coded(build_report(images, made_by, node_ae_title="A")))
    known = {(code.value, code.scheme, code.meaning) for code in KNOWN.values()}
    asked = {(one.code.value, one.code.scheme, one.code.meaning) for one in made_by.targets}
    outputs = {(code.value, code.scheme, code.meaning) for code in [output_code("logit_covid")]}
    assert written <= known | asked | outputs
    assert known - written == {(codes.OTHER_MODALITY.value, "DCM", "Other")}, "the table holds nothing that is not used"


def test_each_known_code_stands_once_and_says_where_it_is_used() -> None:
    assert len({(code.value, code.scheme) for code in KNOWN.values()}) == len(KNOWN) > 50
    assert all(code.used for code in KNOWN.values())


@pytest.mark.parametrize("scheme", ["DCM", "SCT"])
def test_the_codes_are_those_of_the_dictionary(scheme: str) -> None:
    concepts = [getattr(getattr(dictionary, scheme), name) for name in getattr(dictionary, scheme).dir()]
    meanings = {(code.value, code.meaning) for code in (*concepts, dictionary.cid32.Other)}
    ours = {(code.value, code.meaning) for code in KNOWN.values() if code.scheme == scheme}
    # SNOMED CT's own preferred terms differ from some of the dictionary's, and one is in none of its context groups.
    assert {value for value, _ in ours - meanings} <= {"399208008", "260753009", "816094009"}


@pytest.mark.parametrize("name", ["p_covid", "x" * 17, "log density", "a\\b", "ä" * 100])
def test_any_output_has_a_short_code_of_its_own(name: str) -> None:
    code = output_code(name)
    assert 0 < len(code.value) <= 16
    assert len(code.meaning) <= 64
    assert "\\" not in code.value + code.meaning
    assert code.scheme == "99CXRSCREEN"
    assert code.value not in {output_code(f"{name}{tail}").value for tail in ("1", "2", " ")}
