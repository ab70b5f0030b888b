"""What people say of results: kept as a history, with the release whose answer it is of, and exported."""

import csv
import io

import pytest

from dicom_node.worklist.feedback import LONGEST_COMMENT, FeedbackError, Reason, Verdict, as_csv, history, say
from tests.cohort_factories import Night


@pytest.fixture
def night(database, tmp_path):
    night = Night(tmp_path, database)
    night.arrive("1.2.10.1")
    night.arrive("1.2.11.1")
    night.screen(flagged=True)
    return night


def rows(night):
    return list(csv.reader(io.StringIO("".join(as_csv(night.database)))))


def test_what_was_said_stays_in_the_history_the_newest_first(night):
    say(night.database, "1.3.10", "reader", Verdict.UNSURE, None, "")
    say(night.database, "1.3.10", "reader", Verdict.DISAGREE, Reason.FALSE_POSITIVE, " an old rib fracture\n")
    say(night.database, "1.3.10", "another", Verdict.AGREE, None, "")
    found = history(night.database, "1.3.10")
    assert [(one.user_name, one.verdict, one.reason) for one in found] == [
        ("another", "agree", None),
        ("reader", "disagree", "false_positive"),
        ("reader", "unsure", None),
    ]
    assert found[1].comment == "an old rib fracture"
    assert history(night.database, "1.3.11") == []


def test_it_names_the_release_whose_answer_it_is_of(night):
    say(night.database, "1.3.10", "reader", Verdict.AGREE, None, "")
    say(night.database, "1.3.11", "reader", Verdict.UNSURE, None, "not screened yet")
    told = night.ledger.active_manifest()
    assert history(night.database, "1.3.10")[0].release == f"{told.name} {told.release}"
    assert history(night.database, "1.3.11")[0].release == ""


def test_who_disagrees_says_why_and_only_then_a_reason_counts(night):
    with pytest.raises(FeedbackError, match="choose a reason"):
        say(night.database, "1.3.10", "reader", Verdict.DISAGREE, None, "")
    say(night.database, "1.3.10", "reader", Verdict.AGREE, Reason.OTHER, "")
    assert history(night.database, "1.3.10")[0].reason is None


@pytest.mark.parametrize(
    ("study", "comment", "told"),
    [("1.3.99", "", "no such study"), ("1.3.10", "x" * (LONGEST_COMMENT + 1), "at most 1000 characters")],
)
def test_what_cannot_be_kept_is_told(night, study, comment, told):
    with pytest.raises(FeedbackError, match=told):
        say(night.database, study, "reader", Verdict.AGREE, None, comment)
    assert len(rows(night)) == 1


def test_the_table_holds_all_that_was_said_and_no_formula(night):
    for number in range(3):
        say(
            night.database,
            "1.3.10",
            f"reader {number}",
            Verdict.DISAGREE,
            Reason.OTHER,
            '=HYPERLINK("x","y"), "quoted"\n',
        )
    head, *said = rows(night)
    assert head == ["at", "study_instance_uid", "release", "user", "verdict", "reason", "comment"]
    assert [row[3] for row in said] == ["reader 0", "reader 1", "reader 2"]
    assert {row[-1] for row in said} == {'\'=HYPERLINK("x","y"), "quoted"'}
    assert all(len(row) == len(head) for row in said)


def test_the_table_is_whole_however_long_it_is(night, monkeypatch):
    monkeypatch.setattr("dicom_node.worklist.feedback._CHUNK", 2)
    for number in range(5):
        say(night.database, "1.3.10", f"reader {number}", Verdict.AGREE, None, "")
    assert len(rows(night)) == 6
