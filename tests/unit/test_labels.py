"""The file of labels: what is read of it, and what is said of a wrong one."""

from types import SimpleNamespace

import pytest

from dicom_node.retrospective.report.labels import LabelError, read_labels

STUDY = SimpleNamespace(study_instance_uid="1.3.1", accession_number="A1", patient_id="of the ledger")


@pytest.fixture
def read(tmp_path):
    def function(text, *, identity=True, target="covid"):
        file = tmp_path / "labels.csv"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_labels(file, target, identity=identity)

    return function


@pytest.mark.parametrize(
    ("word", "positive"),
    [
        *((word, True) for word in ("1", "true", "Yes", "POSITIVE", " 1 ")),
        *((word, False) for word in ("0", "false", "No", "negative")),
    ],
)
def test_every_usual_word_is_a_label(read, word, positive):
    assert read(f"study_instance_uid,label\n1.3.1,{word}\n").truth == {"1.3.1": positive}


def test_studies_are_known_by_accession_number_too_and_their_patient_by_the_file_or_the_ledger(read):
    found = read("accession_number;label;patient_id\nA1;1;P1\nA2;0;\n")
    assert found.of(STUDY) is True
    assert found.patient_of(STUDY) == "P1"
    other = SimpleNamespace(study_instance_uid="1.3.2", accession_number="A2", patient_id="of the ledger")
    assert found.patient_of(other) == "of the ledger"
    nobody = SimpleNamespace(study_instance_uid="1.3.3", accession_number=None, patient_id=None)
    assert found.of(nobody) is None


def test_a_column_of_the_question_goes_before_the_one_of_all(read):
    text = "study_instance_uid,label,pneumonia,covid\n1.3.1,0,0,1\n"
    assert read(text).truth == {"1.3.1": True}
    assert read(text, target="abnormal").truth == {"1.3.1": False}


def test_a_file_out_of_a_spreadsheet_is_read(read):
    found = read(
        b'\xef\xbb\xbf"Study_Instance_UID","Label","remark"\r\n"1.3.1","1","two\nlines"\r\n\r\n"1.3.2","0",""\r\n'
    )
    assert found.truth == {"1.3.1": True, "1.3.2": False}


def test_duplicates_that_agree_are_one_and_empty_labels_are_counted(read):
    found = read("study_instance_uid,label\n1.3.1,1\n1.3.1,yes\n1.3.2,\n1.3.3,0\n")
    assert found.truth == {"1.3.1": True, "1.3.3": False}
    assert found.blank == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "study_instance_uid,label\n1.3.1,1\n1.3.2,0\n1.3.1,0\n",
            "line 4: the same study as in line 2, with the other",
        ),
        (
            "study_instance_uid,label,patient_id\n1.3.1,1,P1\n1.3.1,1,P2\n",
            "line 3: the same study as in line 2, with another patient_id",
        ),
        ('study_instance_uid,label,x\n1.3.1,1,"a\nb"\n1.3.2,maybe,\n', "line 4: label is neither 1 nor 0"),
        ("study_instance_uid,label\n1.3.1,1,2\n", "line 2: it has 3 columns, the first line has 2"),
        ("study_instance_uid,label\n,1\n", "line 2: study_instance_uid is empty"),
        ("study,label\n1.3.1,1\n", "no column study_instance_uid or accession_number in its first line"),
        ("study_instance_uid,truth\n1.3.1,1\n", "no column covid or label in its first line"),
        ("study_instance_uid,label,label\n1.3.1,1,1\n", "2 columns label; keep one"),
        ("study_instance_uid,label\n1.3.1,\n", "holds no label"),
        ("", "no column study_instance_uid or accession_number"),
        (b"study_instance_uid,label\n1.3.1,\xff\n", "is not UTF-8 text, at byte 31"),
        ("study_instance_uid,label\n" + "9" * 200_000 + ",1\n", "line 2: it is no CSV"),
    ],
)
def test_a_wrong_file_is_told_with_its_line(read, text, told):
    with pytest.raises(LabelError, match=r"labels\.csv") as raised:
        read(text)
    assert told in str(raised.value)


def test_no_message_holds_a_value_of_the_file(read):
    for text in ("accession_number,label\nACC77,maybe\n", "accession_number,label\nACC77,1\nACC77,0\n"):
        with pytest.raises(LabelError) as raised:
            read(text)
        assert "ACC77" not in str(raised.value)
        assert "maybe" not in str(raised.value)


def test_without_identities_accession_numbers_match_nothing_and_that_is_said(read):
    with pytest.raises(LabelError, match=r"store_patient_identity = false.*study_instance_uid"):
        read("accession_number,label\nA1,1\n", identity=False)
    assert read("study_instance_uid,accession_number,label\n1.3.1,A1,1\n", identity=False).truth == {"1.3.1": True}


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(LabelError, match="cannot be read: No such file"):
        read_labels(tmp_path / "none.csv", "covid", identity=True)
    with pytest.raises(LabelError, match="cannot be read: Is a directory"):
        read_labels(tmp_path, "covid", identity=True)
