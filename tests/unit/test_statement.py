"""`docs/conformance-statement.md` says what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_node import __version__, commitment, delivery, intake, listener, pacs
from dicom_node.config import Retrospective, Settings
from dicom_node.domain import DeclineReason, DeliveryState, RejectionReason
from dicom_node.normalise import PATIENT_AND_STUDY, normalise
from dicom_node.pixels import TRANSFER_SYNTAXES
from dicom_node.statement import configuration, groups, instances, network, received, terminology
from dicom_node.statement.example import examples
from dicom_node.statement.markdown import table
from dicom_node.statement.page import REGIONS, PageError, filled

if TYPE_CHECKING:
    from types import ModuleType

PAGE = Path(__file__).parents[2] / "docs" / "conformance-statement.md"
COMMAND = "python -m dicom_node.statement docs/conformance-statement.md"


def rows(made: str) -> list[list[str]]:
    """The cells of a table, without its head."""
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in made.splitlines()[2:]]


@pytest.mark.parametrize("name", REGIONS)
def test_the_page_in_the_repository_says_what_the_program_does(name: str) -> None:
    page = PAGE.read_text()
    assert REGIONS[name]().strip() in page, f"run `{COMMAND}`"


def test_the_page_holds_nothing_else_in_its_regions() -> None:
    assert PAGE.read_text() == filled(PAGE.read_text()), f"run `{COMMAND}`"


def test_the_page_names_the_command_that_makes_its_tables() -> None:
    assert COMMAND in " ".join(PAGE.read_text().split())


def test_the_command_mends_a_page_that_has_drifted_and_leaves_the_prose(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text().replace("| `A700` |", "| `A701` |"))
    assert page.read_text() != PAGE.read_text()
    subprocess.run([sys.executable, "-W", "ignore", "-m", "dicom_node.statement", page], check=True, timeout=120)
    assert page.read_text() == PAGE.read_text()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<!-- begin: services -->", "<!-- begin: serfices -->"),
        ("<!-- end: limits -->", ""),
        ("<!-- begin: limits -->", "<!-- begin: limits -->\n<!-- end: limits -->\n<!-- begin: limits -->"),
    ],
)
def test_a_page_without_one_of_the_regions_or_with_one_twice_is_refused(old: str, new: str) -> None:
    with pytest.raises(PageError, match=r"services|limits|twice|serfices"):
        filled(PAGE.read_text().replace(old, new))


def test_a_pipe_in_a_cell_stays_in_its_cell() -> None:
    assert rows(table(("a", "b"), [("x|y", "z")])) == [["x\\|y", "z"]]


def statuses(module: ModuleType) -> set[int]:
    """The public constants of a module that can be answered; 1 and 2 are types of actions and events."""
    return {
        value
        for name, value in vars(module).items()
        if name.isupper() and not name.startswith("_") and type(value) is int and value not in (1, 2)
    }


def told(cells: list[list[str]]) -> set[int]:
    return {int(code, 16) for row in cells for code in re.findall(r"^`([0-9A-F]{4})`$", row[0])}


@pytest.mark.parametrize(
    ("modules", "made"),
    [((listener, intake), network.answers_to_store), ((commitment,), network.answers_to_event_report)],
    ids=["C-STORE", "N-EVENT-REPORT"],
)
def test_every_status_that_is_answered_stands_in_its_table_and_no_other(
    modules: tuple[ModuleType, ...], made: object
) -> None:
    assert callable(made)
    assert told(rows(made())) == set().union(*map(statuses, modules))


def test_every_status_of_c_store_is_treated_as_the_table_says() -> None:
    said = {}
    for row in rows(network.answers_of_store()):
        ends = [int(code, 16) for code in re.findall(r"`([0-9A-F]{4})`", row[0])]
        if ends:
            said |= dict.fromkeys(range(ends[0], ends[-1] + 1), row[2])
    for code in range(0x10000):
        doing = said.get(code, "`rejected`")
        assert doing.startswith("`sent`") == pacs.is_stored(code), f"{code:04X}"
        assert doing.startswith("sent again") == pacs.may_pass(code), f"{code:04X}"


def test_every_reason_that_a_peer_may_give_stands_with_what_is_done() -> None:
    assert told(rows(network.failure_reasons())) == set(commitment.FailureReason)


def test_every_sop_class_and_transfer_syntax_of_the_listener_stands_on_the_page() -> None:
    page = PAGE.read_text()
    contexts = listener.application_entity("A", hears_commitment=True).supported_contexts
    assert len(contexts) > 10
    for uid in [*(str(context.abstract_syntax) for context in contexts), *TRANSFER_SYNTAXES]:
        assert f"`{uid}`" in page
    order = [row[1].strip("`") for row in rows(network.image_transfer_syntaxes())]
    assert order == list(TRANSFER_SYNTAXES)


def test_what_is_received_and_what_is_sent_are_told_apart() -> None:
    found = {row[1].strip("`"): (row[2], row[3]) for row in rows(network.services())}
    assert found["1.2.840.10008.1.1"] == ("yes", "yes")
    assert found["1.2.840.10008.5.1.4.1.1.1"] == ("", "yes")
    assert found[pacs.COMMITMENT] == found[pacs.QUERY] == ("yes", "")
    assert all(found[sop_class] == ("yes", "yes") for sop_class in pacs.REPORT_CLASSES)


@pytest.mark.parametrize("reason", DeclineReason)
def test_every_reason_to_decline_is_explained(reason: DeclineReason) -> None:
    assert f"| `{reason}` |" in received.decline_reasons()


@pytest.mark.parametrize("state", DeliveryState)
def test_every_state_of_a_delivery_stands_in_the_prose(state: DeliveryState) -> None:
    assert f"`{state}`" in PAGE.read_text().partition("4.2.2.3.7 States")[2].partition("#### 4.2.3")[0]


def test_the_settings_on_the_page_are_settings_and_defaults_are_theirs() -> None:
    assert set(configuration.SETTINGS) <= set(Settings.model_fields)
    assert ["`commit_timeout_s`", "`30.0`", "s"] in [row[:3] for row in rows(configuration.settings())]


def test_the_limits_are_those_of_the_deliveries() -> None:
    values = [row[1] for row in rows(configuration.limits())]
    assert str(delivery._MOST_PROOFS) in values
    assert str(listener.application_entity("A", hears_commitment=False).maximum_associations) in values
    # in words in the prose
    assert delivery._COMMITMENTS == 2


def test_the_prose_names_no_setting_or_command_that_is_not_there() -> None:
    prose = re.sub(r"<!-- begin.*?<!-- end.*?-->", "", PAGE.read_text(), flags=re.DOTALL)
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", prose))
    states = {str(state) for state in DeliveryState}
    assert named - states - {"only_flagged"} <= {*Settings.model_fields, *Retrospective.model_fields}


def test_every_section_that_is_referred_to_exists() -> None:
    page = PAGE.read_text()
    headings = set(re.findall(r"^#+ ([\d.]+) ", page, re.MULTILINE))
    cited = re.findall(r"(?:[Ss]ection |\()(\d(?:\.\d)+)\b", re.sub(r"\(PS3[^)]*\)", "", page))
    assert len(cited) > 5
    assert set(cited) <= headings
    assert set(re.findall(r"see (4(?:\.\d)+)", page)) <= headings


def attributes(made: str) -> dict[str, list[str]]:
    return {row[1]: row for row in rows(made) if not row[0].startswith(">")}


def test_an_attribute_is_fixed_derived_or_the_sources() -> None:
    found = attributes(instances.heatmap_attributes())
    assert found["(0008,0008)"][3:] == ["ALWAYS", "`DERIVED\\SECONDARY`"]
    assert found["(0008,0201)"][3:] == ["ANAP", "source"]
    assert found["(0020,0020)"][3:] == ["VNAP", "source"]
    assert found["(0008,0018)"][4].startswith("derived")
    assert found["(0018,1020)"][4] == f"`{__version__}`"
    assert attributes(instances.report_attributes())["(0008,1111)"][3] == "EMPTY"


def test_every_attribute_of_a_result_stands_in_its_table_or_among_those_of_patient_and_study() -> None:
    elsewhere = {tag_for_keyword(keyword) for keyword in PATIENT_AND_STUDY}
    full, bare = examples()
    for made, of in (
        (instances.heatmap_attributes(), (full.heatmap, bare.heatmap)),
        (instances.report_attributes(), (full.report, bare.report)),
        (instances.note_attributes(), (full.note, bare.note)),
    ):
        tags = {element.tag for ds in of for element in ds} - elsewhere
        assert {f"({tag.group:04X},{tag.elem:04X})" for tag in tags} == set(attributes(made))


def test_a_value_whose_origin_the_page_does_not_know_is_refused() -> None:
    one, other = Dataset(), Dataset()
    one.AcquisitionNumber, other.AcquisitionNumber = 1, 2
    with pytest.raises(LookupError, match="AcquisitionNumber"):
        list(instances._rows([one], [other], None, 1))


def test_every_character_set_that_is_listed_is_read_and_spellings_of_the_library_are_not_listed() -> None:
    listed = re.findall(r"`([^`]+)`", received.character_sets())
    assert {"ISO_IR 192", "ISO 2022 IR 87", "GB18030"} <= set(listed)
    unknown = "SpecificCharacterSet: unknown term, read as ISO_IR 100"
    assert not [term for term in listed if unknown in normalise(in_set(term))[1]]
    assert unknown in normalise(in_set("UTF8"))[1]
    assert not {"", "ISO 2022 58"} & set(listed)


def in_set(term: str) -> Dataset:
    header = Dataset()
    header.SpecificCharacterSet = term
    header.set_original_encoding(False, True, ["ascii"])
    return header


def test_patient_and_study_are_repeated_alike_in_every_result() -> None:
    found = {row[1]: row for row in rows(received.attributes())}
    for keyword in PATIENT_AND_STUDY:
        tag = tag_for_keyword(keyword)
        assert tag is not None
        assert found[f"({tag >> 16:04X},{tag & 0xFFFF:04X})"][4].endswith(" in all"), keyword


def test_what_is_read_of_a_source_is_what_was_asked_of_one() -> None:
    assert received.admission_reads()[:2] == ("Manufacturer", "ManufacturerModelName")
    assert {"ViewPosition", "BodyPartExamined", "PatientOrientation"} <= set(received.admission_reads())
    assert {"PixelPaddingRangeLimit", "VOILUTSequence", "BitsStored"} <= set(received.rendering_reads())


def test_the_tree_shows_every_group_once_with_its_template() -> None:
    tree = rows(terminology.report_tree())
    assert [row[4] for row in tree if "Measurement Group" in row[2]] == [
        "template 1501 of DCMR", "template 1501 of DCMR", "template 1410 of DCMR",
    ]  # fmt: skip
    assert ["TID 1501 row 11: the question", '(10828004, SCT, "Positive")'] in [row[3:] for row in tree]
    assert ["TID 1410 row 2", ""] in [row[3:] for row in tree]


def test_the_examples_differ_in_all_that_may_differ() -> None:
    full, bare = examples()
    assert full.report.SOPClassUID != bare.report.SOPClassUID
    assert full.note.ConceptNameCodeSequence[0].CodeValue != bare.note.ConceptNameCodeSequence[0].CodeValue
    assert not bare.source.PatientID
    assert UID(bare.source.SOPClassUID).name.startswith("Secondary Capture")
    assert len(RejectionReason) == 2


def test_a_code_that_is_not_of_the_group_it_is_said_to_be_of_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    number, name, place, within, beyond = groups._CONTEXT_GROUPS[0]
    wrong = (number, name, place, (*within, *beyond), ())
    monkeypatch.setattr(groups, "_CONTEXT_GROUPS", (wrong,))
    with pytest.raises(groups.GroupError, match="CID 29"):
        groups.context_groups()
