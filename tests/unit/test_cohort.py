"""What is asked for on the command line becomes a cohort, or an error that says what is wrong and where."""

from datetime import date

import pytest

from dicom_node.retrospective.cohort import Asked, CohortError, Criteria, criteria, read_values

TODAY = date(2026, 6, 30)


def test_a_range_of_days_is_every_day_of_it():
    found = criteria("2026-02-27", "2026-03-02", today=TODAY)
    assert [day.isoformat() for day in found.days()] == ["2026-02-27", "2026-02-28", "2026-03-01", "2026-03-02"]
    assert found.modalities == ("CR", "DX")


def test_without_an_end_it_goes_on_to_today():
    assert criteria("2026-06-29", None, today=TODAY).last_day == TODAY


@pytest.mark.parametrize(
    ("first", "last", "told"),
    [
        ("2026-06-30", "2026-01-01", "the other way round"),
        ("2026-07-01", "2026-07-02", "--from 2026-07-01 is to come"),
        ("2026-06-01", "2026-07-01", "--to 2026-07-01 is to come"),
        ("1.3.2026", None, "no day, such as 2026-01-31"),
        ("2026-02-30", None, "no day"),
        (None, "2026-01-01", "say which studies"),
        (None, None, "say which studies"),
        ("1900-01-01", "2026-01-01", "more than a century"),
    ],
)
def test_days_that_are_none_are_told(first, last, told):
    with pytest.raises(CohortError, match=told):
        criteria(first, last, today=TODAY)


@pytest.mark.parametrize("modality", ["cr", "C*", "", "X" * 17])
def test_a_modality_that_is_none_is_told(modality):
    with pytest.raises(CohortError, match="no DICOM modality"):
        criteria("2026-01-01", None, today=TODAY, modalities=(modality,))


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ("A1\nA2\n", [(1, "A1"), (2, "A2")]),
        ("# from the RIS\n\nA1\n A1 \nA2", [(3, "A1"), (5, "A2")]),
        ("accession_number,name\nA1,x\nA2,y\n", [(2, "A1"), (3, "A2")]),
        ("id;Accession_Number\n1;A1\n2;\n3;A2\n", [(2, "A1"), (4, "A2")]),
        ("﻿A1\r\nA2\r\n", [(1, "A1"), (2, "A2")]),
        ("accession_number\nA1\n", [(2, "A1")]),
        ('name,accession_number\n"DOE, J","A1"\n', [(2, "A1")]),
    ],
)
def test_a_file_of_accession_numbers_is_read_and_each_counts_once(tmp_path, content, values):
    file = tmp_path / "list.csv"
    file.write_bytes(content.encode())
    read, repeated = read_values(file, "accession_number")
    assert read == tuple(Asked(*one) for one in values)
    assert repeated == content.count(" A1 ")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no accession_number"),
        (b"# nothing\n\n", "holds no accession_number"),
        (b"A1\nA*\n", "line 2: no accession_number has"),
        (b"A" * 17, "line 1: no accession_number has more than 16"),
        (b"A1\\A2\n", "line 1"),
        (b"A\xff\xfe", "not UTF-8 text, at byte 1"),
        (b"A\0B", "holds a NUL"),
        (b'A1\n"A2\nA3\n', "line 2 is no line of CSV"),
        (b"A1\n" + b"A" * 200_000, "line 2 is no line of CSV: field larger"),
        (b"name,age\nx,1\n", "none of them is called accession_number"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_the_line_and_without_the_value(tmp_path, content, told):
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    with pytest.raises(CohortError, match=told):
        read_values(file, "accession_number")


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(CohortError, match="No such file"):
        criteria(None, None, today=TODAY, accessions=tmp_path / "no.txt")


def test_two_lists_at_once_are_two_cohorts(tmp_path):
    with pytest.raises(CohortError, match="plan a run for each"):
        criteria(None, None, today=TODAY, accessions=tmp_path / "a", patients=tmp_path / "b")


def test_what_the_ledger_keeps_is_the_same_cohort():
    wanted = Criteria(date(2026, 1, 1), date(2026, 1, 2), ("CR",), "CHEST", (Asked(1, "A1"),), ())
    assert Criteria.from_json(wanted.as_json()) == wanted


def test_without_identities_the_ledger_keeps_no_list_and_says_so():
    told = Criteria(accessions=(Asked(1, "A1"), Asked(2, "A2"))).as_json(identity=False)
    assert told["accessions"]["count"] == 2
    assert "A1" not in str(told)
    other = Criteria(accessions=(Asked(1, "A1"), Asked(2, "A3"))).as_json(identity=False)
    assert other != told
    with pytest.raises(CohortError, match="given once more"):
        Criteria.from_json(told)


@pytest.mark.parametrize(("day", "held"), [("20251231", False), ("20260101", True), ("20260103", False), ("", True)])
def test_a_study_belongs_to_the_cohort_by_its_date(day, held):
    assert Criteria(date(2026, 1, 1), date(2026, 1, 2)).holds(day) is held
