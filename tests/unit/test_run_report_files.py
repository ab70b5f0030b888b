"""A run's report as a whole: its files, its page, its command, and what it refuses."""

import json
import re
import stat
import subprocess
import sys
import tomllib
from contextlib import closing
from pathlib import Path

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from dicom_node import cli
from dicom_node.archive import Archive
from dicom_node.database import Database
from dicom_node.domain import NodeError, StudyState
from dicom_node.results import encode
from dicom_node.retrospective.report import making
from dicom_node.retrospective.report.cli import PACKAGES
from dicom_node.retrospective.report.labels import LabelError
from dicom_node.retrospective.report.making import ReportError, Wanted
from dicom_node.retrospective.report.validation import ValidationError
from dicom_node.retrospective.runs import RunError
from tests.factories import chest_dataset
from tests.report_factories import LATERAL, Cohort, filled, film, invented, rows_of, told_by, write_labels
from tests.result_factories import results


@pytest.fixture(scope="module")
def made(sqlite_template, tmp_path_factory):
    """The report of the invented run."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "ledger.sqlite").write_bytes(sqlite_template.read_bytes())
    with closing(Database(f"sqlite:///{folder / 'ledger.sqlite'}")) as database:
        yield invented(database, folder)


def test_labels_without_a_study_and_studies_without_a_label_are_counted(made):
    found = made.figures["labels"]
    rows = rows_of(made)
    assert found["unknown"] == 1
    assert found["with_answer"] == made.figures["validation"]["studies"] == 150
    assert found["unlabelled"] == len(rows) - 150
    assert "Labels that name no study of the run: 1" in (made.folder / "report.html").read_text()


def test_the_tables_hold_the_same_in_both_forms_and_are_for_their_owner_alone(made):
    for name in ("studies", "images"):
        rows = rows_of(made, name)
        binary = parquet.read_table(made.folder / f"{name}.parquet").to_pylist()
        assert len(rows) == len(binary) > 0
        for row, other in zip(rows, binary, strict=True):
            assert row == {key: "" if value is None else str(value) for key, value in other.items()}
        for suffix in ("csv", "parquet"):
            assert stat.S_IMODE((made.folder / f"{name}.{suffix}").stat().st_mode) == 0o600
    assert len(rows_of(made, "images")) == made.figures["counts"]["images"]


def test_identities_stand_in_the_tables_and_not_on_the_page_or_in_the_figures(made):
    text = (made.folder / "studies.csv").read_text()
    shown = (made.folder / "report.html").read_text() + (made.folder / "figures.json").read_text()
    assert "PID-1" in text
    assert "ACC00001" in text
    assert not re.search(r"PID-\d|ACC\d", shown)


def test_figures_are_json_without_what_is_no_number(made):
    assert json.loads((made.folder / "figures.json").read_text(), parse_constant=pytest.fail) == made.figures


def test_the_page_asks_nobody_for_anything_and_says_what_it_is_worth(made):
    page = (made.folder / "report.html").read_text()
    assert not re.search(r"""(?:src|href|url\()\s*=?\s*["']?(?:https?:)?//""", page)
    assert "default-src 'none'" in page
    assert "Research and decision support; no clinical validity was measured." in page
    assert "These figures are of this cohort, labelled as it is, and of no other" in page
    assert "draw patients (2,000 times" in page
    for section in ("From the archive", "Against the labels", "Subgroups", "Scores over time", "Agreement", "Flagged"):
        assert f"<h2>{section}" in page


def test_a_second_report_stands_in_place_of_the_first(database, tmp_path):
    made = invented(database, tmp_path)
    again = told_by(database, tmp_path, Wanted("march"))
    assert again.folder == made.folder
    assert {row["label"] for row in rows_of(again)} == {""}
    assert json.loads((again.folder / "figures.json").read_text())["validation"] is None
    assert "Against the labels" not in (again.folder / "report.html").read_text()


def test_without_any_answer_there_is_a_page_all_the_same(database, tmp_path):
    Cohort(database).study(state=StudyState.FOUND)
    made = told_by(database, tmp_path, Wanted("march"))
    assert made.figures["counts"]["studies_waiting"] == 1
    assert "No study was flagged." in (made.folder / "report.html").read_text()


def test_without_patients_studies_are_drawn_and_the_page_says_so(database, tmp_path):
    cohort = Cohort(database)
    truth = {cohort.study(film(1.0 - number / 5)): number < 6 for number in range(12)}
    labels = write_labels(tmp_path / "labels.csv", truth)
    made = told_by(database, tmp_path, Wanted("march", labels), identity=False)
    assert not made.validation.by_patient
    assert "draw studies, for not every study" in (made.folder / "report.html").read_text()
    # perfect, and so without width
    assert (made.validation.auc["low"], made.validation.auc["high"]) == (1.0, 1.0)


def test_flagged_studies_are_shown_the_highest_first_with_a_small_picture(database, tmp_path):
    heatmap, _ = results(chest_dataset())
    file = Archive(tmp_path / "archive").store(encode(heatmap))
    cohort = Cohort(database)
    cohort.study(film(1.0, heatmap=file.path))
    cohort.study(film(3.0, heatmap="aa/gone.dcm"), scanner=("<b>Bold</b>", "DR"))
    cohort.study(film(-3.0))
    page = (told_by(database, tmp_path, Wanted("march")).folder / "report.html").read_text()
    listed = page[page.index('<ol class="flagged">') :]
    assert re.findall(r"<small>(1\.3\.\d)</small>", listed) == ["1.3.2", "1.3.1"]
    first, second = listed.split("</li>")[:2]
    assert "no picture" in first
    assert "&lt;b&gt;Bold" in first
    assert 'src="data:image/jpeg;base64,' in second
    assert len(second) < 60_000


def test_of_many_flagged_studies_those_with_the_highest_scores_are_shown(database, tmp_path, monkeypatch):
    monkeypatch.setattr("dicom_node.retrospective.report.gathering.MOST_SHOWN", 3)
    monkeypatch.setattr("dicom_node.retrospective.report.page.MOST_SHOWN", 3)
    cohort = Cohort(database)
    for logit in (1.0, 5.0, 2.0, 4.0, 3.0):
        cohort.study(film(logit))
    made = told_by(database, tmp_path, Wanted("march"))
    assert [study.study_instance_uid for study in made.gathered.shown] == ["1.3.2", "1.3.4", "1.3.5"]
    assert "5 in all; the 3 with the highest probability are shown" in (made.folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("wanted", "error", "told"),
    [
        (Wanted("may"), RunError, "there is no run may; the latest are march"),
        (Wanted("march", question="gout"), ReportError, "no release asks 'gout'; the questions are covid"),
    ],
)
def test_what_cannot_be_told_is_said(database, tmp_path, wanted, error, told):
    Cohort(database)
    with pytest.raises(error, match=told):
        told_by(database, tmp_path, wanted)


def test_a_folder_that_cannot_be_written_to_is_said(database, tmp_path):
    Cohort(database)
    (tmp_path / "reports").write_text("a file")
    with pytest.raises(ReportError, match=r"reports/march cannot be written to"):
        told_by(database, tmp_path, Wanted("march"))


@pytest.mark.parametrize(
    ("truth", "told"),
    [
        ({"1.3.1": True, "1.3.2": True}, "all 2 labelled studies with an answer are positive: both are needed"),
        ({"1.3.2": False, "1.3.3": True}, "all 1 labelled studies with an answer are negative"),
        ({"9.9": True}, "no labelled study of the run has an answer"),
    ],
)
def test_labels_that_bear_no_validation_are_said_to(database, tmp_path, truth, told):
    cohort = Cohort(database)
    cohort.study(film(1.0))
    cohort.study(film(-1.0))
    cohort.study(LATERAL)
    with pytest.raises(ValidationError, match=told):
        told_by(database, tmp_path, Wanted("march", write_labels(tmp_path / "labels.csv", truth)))


def test_accession_numbers_of_a_ledger_without_identities_are_refused(database, tmp_path):
    Cohort(database)
    file = tmp_path / "labels.csv"
    file.write_text("accession_number,label\nA1,1\n")
    with pytest.raises(LabelError, match="store_patient_identity"):
        told_by(database, tmp_path, Wanted("march", file), identity=False)


def test_an_accession_number_of_two_studies_labels_both(database, tmp_path):
    cohort = Cohort(database)
    cohort.study(film(1.0), accession="A1")
    cohort.study(film(2.0), accession="A1")
    cohort.study(film(-1.0), accession="A2")
    file = tmp_path / "labels.csv"
    file.write_text("accession_number,label\nA1,1\nA2,0\nA3,0\n")
    made = told_by(database, tmp_path, Wanted("march", file))
    assert made.validation.studies == 3
    assert made.figures["labels"]["unknown"] == 1


@pytest.fixture
def command(sqlite_template, tmp_path, monkeypatch):
    """`dicom-node retrospective report march` beside a run of 120 studies; gives the result."""
    file = tmp_path / "ledger.sqlite"
    file.write_bytes(sqlite_template.read_bytes())
    with closing(Database(f"sqlite:///{file}")) as database:
        write_labels(tmp_path / "labels.csv", filled(Cohort(database), 120))
    monkeypatch.setenv("DICOM_NODE_DATABASE_URL", f"sqlite:///{file}")
    monkeypatch.setenv("DICOM_NODE_ARCHIVE_DIR", str(tmp_path / "archive"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(cli.app, ["retrospective", "report", "march", *arguments])

    return run


def test_the_command_prints_the_way_from_the_archive_to_an_answer(command):
    done = command("--labels", "labels.csv")
    assert done.exit_code == 0
    assert "Studies found: 120" in done.stdout
    assert re.search(r"area under the ROC curve 0\.\d{3} \[0\.\d{3}, [01]\.\d{3}\]", done.stdout)
    assert "cxr-node/reports/march/report.html" in done.stdout


def test_as_json_it_prints_the_figures_and_nothing_else(command, tmp_path):
    done = command("--json", "--out", "elsewhere")
    assert json.loads(done.stdout) == json.loads((tmp_path / "elsewhere" / "march" / "figures.json").read_text())


def test_a_threshold_is_set_only_with_labels_and_by_somebody(command):
    for arguments in (["--set-threshold"], ["--set-threshold", "--labels", "labels.csv"]):
        done = command(*arguments)
        assert isinstance(done.exception, ReportError)
        assert "--set-threshold needs --labels" in str(done.exception)
    done = command("--set-threshold", "--labels", "labels.csv", "--by", "Dr. Night", "--json")
    assert done.exit_code == 0
    assert "covid is flagged from 0." in done.stderr
    assert "run march: " in done.stderr


def test_where_the_extra_is_missing_the_command_says_what_to_install(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = command()
    assert isinstance(done.exception, NodeError)
    assert str(done.exception) == "the report needs the package 'pyarrow': pip install 'cxr-dicom-node[report]'"


def test_the_command_line_imports_none_of_the_report_s_packages():
    code = (
        "import sys, dicom_node.cli\n"
        "print([name for name in ('matplotlib', 'sklearn', 'scipy', 'jinja2', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_the_packages_that_it_asks_for_are_those_of_the_extra():
    text = (Path(making.__file__).parents[3] / "pyproject.toml").read_text()
    extra = {re.split(r"[><=]", one)[0] for one in tomllib.loads(text)["project"]["optional-dependencies"]["report"]}
    assert extra == {{"sklearn": "scikit-learn"}.get(name, name) for name in PACKAGES}
