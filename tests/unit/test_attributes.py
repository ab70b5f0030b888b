from __future__ import annotations

import pytest
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.uid import KeyObjectSelectionDocumentStorage, SecondaryCaptureImageStorage

from dicom_node.attributes import check_attributes, elements_of, iod_of, named
from dicom_node.report import SOP_CLASSES
from dicom_node.results import ResultError


def tag(keyword: str) -> int:
    found = tag_for_keyword(keyword)
    assert found is not None
    return found


def types(sop_class: str, *path: str) -> dict[str, str]:
    """Type by name of what must be there, at the top or in the items of nested sequences."""
    level = iod_of(sop_class).root
    for keyword in path:
        level = level.items[tag(keyword)]
    return {named(attribute.tag).partition(" ")[2]: attribute.type for attribute in level.required.values()}


def test_a_secondary_capture_needs_what_ps3_3_a_8_1_says() -> None:
    needed = types(SecondaryCaptureImageStorage)
    assert needed.items() >= {"Conversion Type": "1", "Modality": "1", "Patient's Name": "2", "Rows": "1"}.items()
    assert "Completion Flag" not in needed


@pytest.mark.parametrize("sop_class", SOP_CLASSES, ids=lambda uid: uid.name)
def test_a_report_needs_what_its_iod_says(sop_class: str) -> None:
    needed = types(sop_class)
    assert needed.items() >= {"Completion Flag": "1", "Series Number": "1", "Manufacturer": "2"}.items()
    # Of each kind of content item, one of the other things in the module is needed.
    assert not needed.keys() & {"Graphic Data", "Measured Value Sequence", "Conversion Type"}


def test_a_key_object_document_needs_its_evidence_down_to_the_instance() -> None:
    assert "Current Requested Procedure Evidence Sequence" in types(KeyObjectSelectionDocumentStorage)
    path = ("CurrentRequestedProcedureEvidenceSequence", "ReferencedSeriesSequence", "ReferencedSOPSequence")
    assert types(KeyObjectSelectionDocumentStorage, *path) == {
        "Referenced SOP Class UID": "1",
        "Referenced SOP Instance UID": "1",
    }


def test_an_optional_module_counts_where_one_of_its_own_attributes_is_there() -> None:
    optional = {module.module for _, required in iod_of(SecondaryCaptureImageStorage).optional for module in required}
    assert {"Clinical Trial Subject", "General Equipment"} <= optional
    for own, required in iod_of(SecondaryCaptureImageStorage).optional:
        assert own
        assert required
        assert tag("PixelSpacing") not in own  # of SC Image too


def test_a_message_names_the_way_to_the_attribute() -> None:
    assert named(tag("Rows")) == "(0028,0010) Rows"
    path = ((tag("SourceImageSequence"), 2), (tag("PurposeOfReferenceCodeSequence"), 1))
    assert named(tag("CodeMeaning"), path) == "(0008,2112)[2] > (0040,A170)[1] > (0008,0104) Code Meaning"


def test_an_empty_object_lacks_everything() -> None:
    with pytest.raises(ResultError, match=r"is missing \(type [12], Patient\)"):
        check_attributes(elements_of(Dataset()), SecondaryCaptureImageStorage, frozenset())
