"""A PACS is asked for studies and their instances: one that answers well, and one that answers in every wrong way."""

import warnings
from datetime import date

import pytest
from pynetdicom.sop_class import ComputedRadiographyImageStorage

from dicom_node.config import Peer, Settings
from dicom_node.demo.pacs import free_port
from dicom_node.retrospective.cohort import Criteria
from dicom_node.retrospective.query import ExpectedInstance, QueryError, finder
from tests.archives_scp import OUT_OF_RESOURCES, PENDING, WARNING, Pacs, answer, hang, study

DAY = date(2026, 3, 1)
CRITERIA = Criteria(DAY, DAY)


def ask(pacs, call, **settings):
    peer = pacs.peer()
    with finder(peer, Settings(peers=(peer,), network_timeout_s=2, **settings)) as found:
        return call(found), found


def studies(pacs, criteria=CRITERIA, **settings):
    found, asked = ask(pacs, lambda one: one.studies_of_day(DAY, criteria), **settings)
    return sorted(one.study_instance_uid for one in found), asked


def test_a_day_s_studies_are_those_with_a_wanted_modality():
    known = [study(1), study(2, modality="DX"), study(3, modality="CT"), study(4, modality=["CT", "DX"])]
    with Pacs(known) as pacs:
        found, asked = studies(pacs)
    assert found == ["1.2.1", "1.2.2", "1.2.4"]
    assert asked.skipped == 0
    assert pacs.associations == 1


def test_what_is_told_of_a_study_is_kept_and_no_name_is_asked_for():
    with Pacs([study(1, NumberOfStudyRelatedInstances="7")]) as pacs:
        (found,), _ = ask(pacs, lambda one: one.studies_of_day(DAY, CRITERIA))
    assert (found.study_date, found.accession_number, found.patient_id, found.instances) == ("20260301", "A1", "P1", 7)
    assert not any("PatientName" in query for query in pacs.queries)


@pytest.mark.parametrize(
    "missing", ["ModalitiesInStudy", "NumberOfStudyRelatedInstances", "AccessionNumber", "StudyDate", "StudyTime"]
)
def test_no_optional_key_is_required_in_an_answer(missing):
    with Pacs([study(1, **{missing: None, "StudyTime": "120000"})]) as pacs:
        pacs.studies[0]["StudyDate"] = None if missing == "StudyDate" else "20260301"
        found, _ = studies(pacs)
    assert found == ["1.2.1"]


def test_where_the_study_level_does_not_say_the_series_are_asked():
    known = [study(1, ModalitiesInStudy=None), study(2, ModalitiesInStudy=None), study(3)]
    with Pacs(known, series={"1.2.2": [("CT", "CHEST", 1)]}) as pacs:
        found, _ = studies(pacs)
    assert found == ["1.2.1", "1.2.3"]
    asked = [query["StudyInstanceUID"] for query in pacs.queries if query["QueryRetrieveLevel"] == "SERIES"]
    assert sorted(asked) == ["1.2.1", "1.2.2"]


def test_a_pacs_that_does_not_take_optional_keys_is_asked_without():
    with Pacs([study(1), study(2, modality="CT")], refuses=("ModalitiesInStudy",)) as pacs:
        pacs.series["1.2.2"] = [("CT", "", 1)]
        for known in pacs.studies:
            known["ModalitiesInStudy"] = None
        found, _ = studies(pacs)
    assert found == ["1.2.1"]


def test_a_body_part_is_asked_for_at_series_level_and_one_that_is_not_named_counts():
    series = {"1.2.1": [("CR", "HAND", 1)], "1.2.2": [("CR", "chest", 1)], "1.2.3": [("CR", "", 1)]}
    with Pacs([study(1), study(2), study(3)], series=series) as pacs:
        found, _ = studies(pacs, Criteria(DAY, DAY, body_part="CHEST"))
    assert found == ["1.2.2", "1.2.3"]


@pytest.mark.parametrize("status", [OUT_OF_RESOURCES, 0xA702, WARNING])
def test_a_pacs_that_says_that_it_cuts_off_is_asked_for_parts_of_the_day(status):
    known = [study(number, time_of_day=f"{number // 60:02d}{number % 60:02d}") for number in range(37)]
    with Pacs(known, limit=5, limit_status=status) as pacs:
        found, _ = studies(pacs)
    assert len(found) == 37


def test_a_pacs_that_cuts_off_without_a_word_is_found_out_by_a_round_number():
    known = [study(number, time_of_day=f"{number % 24:02d}{number % 60:02d}") for number in range(250)]
    with Pacs(known, limit=100) as pacs:
        found, _ = studies(pacs)
    assert len(found) == 250


def test_a_round_number_that_is_the_truth_costs_a_few_queries_and_no_more():
    with Pacs([study(number, time_of_day=f"{number % 24:02d}00") for number in range(100)]) as pacs:
        found, _ = studies(pacs)
    assert len(found) == 100
    assert len(pacs.queries) == 4  # CR, its two halves, DX


def test_studies_without_a_time_are_not_lost_where_the_day_is_split():
    known = [study(number, StudyTime="" if number < 3 else "120000") for number in range(9)]
    with Pacs(known, limit=6, limit_status=OUT_OF_RESOURCES) as pacs:
        found, _ = studies(pacs)
    assert len(found) == 9


def test_a_day_of_studies_without_a_time_that_is_cut_off_is_an_error():
    known = [study(number, StudyTime="") for number in range(9)]
    with Pacs(known, limit=6, limit_status=OUT_OF_RESOURCES) as pacs, pytest.raises(QueryError, match="20260301"):
        studies(pacs)


def test_a_minute_that_cannot_be_had_as_a_whole_is_an_error_that_names_the_day():
    known = [study(number) for number in range(9)]
    with Pacs(known, limit=5, limit_status=OUT_OF_RESOURCES) as pacs, pytest.raises(QueryError) as raised:
        studies(pacs)
    assert "20260301" in str(raised.value)
    assert not raised.value.permanent


GARBAGE = [
    {"StudyInstanceUID": None},
    {"StudyInstanceUID": "../../etc"},
    {"StudyInstanceUID": "1." * 40},
    {"StudyDate": "20190101"},
]


@pytest.mark.parametrize("changed", GARBAGE)
def test_an_answer_that_is_none_is_left_out_and_counted(changed):
    def fault(pacs, event, query):
        if query.ModalitiesInStudy != "CR":
            return iter(())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return iter([(PENDING, answer(study(1), query)), (PENDING, answer(study(2) | changed, query))])

    with Pacs([], fault=fault) as pacs, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, asked = studies(pacs)
    assert found == ["1.2.1"]
    assert asked.skipped == 1


def test_a_study_that_is_told_twice_counts_once():
    with Pacs([study(1), study(1), study(1, modality=["CR", "DX"])]) as pacs:
        found, _ = studies(pacs)
    assert found == ["1.2.1"]


def test_an_association_that_is_dropped_half_way_is_opened_anew():
    dropped = []

    def fault(pacs, event, query):
        if dropped:
            return None
        dropped.append(True)
        event.assoc.abort()
        return iter(())

    with Pacs([study(1)], fault=fault) as pacs:
        found, _ = studies(pacs)
    assert found == ["1.2.1"]
    assert pacs.associations == 2


def test_one_that_is_dropped_every_time_is_an_error_that_may_pass():
    def fault(pacs, event, query):
        event.assoc.abort()
        return iter(())

    with Pacs([study(1)], fault=fault) as pacs, pytest.raises(QueryError) as raised:
        studies(pacs)
    assert not raised.value.permanent
    assert pacs.associations == 3


def test_a_pacs_that_never_comes_to_an_end_is_left(monkeypatch):
    monkeypatch.setattr("dicom_node.retrospective.dicom_query._LONGEST_QUERY_S", 0.5)

    def fault(pacs, event, query):
        def for_ever():
            while not event.is_cancelled and event.assoc.is_established:
                yield PENDING, answer(study(1), query)

        return for_ever()

    with Pacs([], fault=fault) as pacs, pytest.raises(QueryError, match="does not end C-FIND"):
        studies(pacs)


def test_a_pacs_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr("dicom_node.retrospective.dicom_query._TRIES", 1)
    with Pacs([], fault=hang(4)) as pacs, pytest.raises(QueryError, match="does it know AE title CXRSCREEN"):
        studies(pacs)


def test_a_pacs_that_is_not_there_is_an_error_that_may_pass(monkeypatch):
    monkeypatch.setattr("dicom_node.retrospective.dicom_query._TRIES", 1)
    peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=free_port(), retrieve=("move",))
    with (
        finder(peer, Settings(peers=(peer,), network_timeout_s=1)) as asked,
        pytest.raises(QueryError, match="does not answer") as raised,
    ):
        asked.studies_of_day(DAY, CRITERIA)
    assert not raised.value.permanent


def test_the_instances_that_are_expected_are_those_of_the_wanted_modalities():
    held = {"1.2.1": [("CR", "CHEST", 2), ("SR", "", 1), ("CT", "CHEST", 40), ("DX", "", 1)]}
    with Pacs([study(1)], series=held) as pacs:
        found, _ = ask(pacs, lambda one: one.expected("1.2.1", ("CR", "DX")))
    assert found == [
        ExpectedInstance(f"1.2.1.{series}.{image}", f"1.2.1.{series}", ComputedRadiographyImageStorage)
        for series, image in ((1, 1), (1, 2), (4, 1))
    ]


def test_a_series_of_which_fewer_images_are_told_than_counted_is_asked_once_more():
    forgot = []

    def fault(pacs, event, query):
        if query.QueryRetrieveLevel == "IMAGE" and not forgot:
            forgot.append(True)
            return iter(())
        return None

    with Pacs([study(1)], fault=fault) as pacs:
        found, _ = ask(pacs, lambda one: one.expected("1.2.1", ("CR",)))
    assert [one.sop_instance_uid for one in found] == ["1.2.1.1.1"]


def test_an_accession_number_is_asked_for_and_an_answer_of_another_one_is_none():
    with Pacs([study(1), study(2), study(3, modality="CT")]) as pacs:
        found, _ = ask(pacs, lambda one: one.studies_of("AccessionNumber", "A2", Criteria()))
        none, _ = ask(pacs, lambda one: one.studies_of("AccessionNumber", "A9", Criteria()))
        wrong, _ = ask(pacs, lambda one: one.studies_of("AccessionNumber", "A3", Criteria()))
    assert [one.study_instance_uid for one in found] == ["1.2.2"]
    assert none == []
    assert wrong == []


def test_a_patient_s_studies_are_those_of_the_days():
    known = [study(1, PatientID="P"), study(2, PatientID="P", StudyDate="20250101")]
    with Pacs(known) as pacs:
        found, _ = ask(pacs, lambda one: one.studies_of("PatientID", "P", CRITERIA))
    assert [one.study_instance_uid for one in found] == ["1.2.1"]
