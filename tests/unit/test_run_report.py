"""The report of a run that went through the ledger as a night does: page, tables, figures, a threshold that it sets."""

import csv
import json
import re

import pyarrow.parquet
import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from dicom_node.cli import app
from dicom_node.domain import Origin
from dicom_node.ledger import Ledger
from dicom_node.releases import Releases
from dicom_node.retrospective.tables import RunRow, RunStudyRow
from dicom_node.tables import InstanceRow
from tests.cohort_factories import Night
from tests.ledger_factories import LATERAL
from tests.result_factories import manifest

COUNT = 60


@pytest.fixture
def night(database, tmp_path):
    """A run of sixty studies, of which two in three of the first half are flagged, one is declined and one failed."""
    found = Night(tmp_path, database)
    found.run(*range(1, COUNT + 1), begun_at=None)
    found.settings = found.settings.model_copy(update={"studies_per_minute": 10_000})
    for number in range(1, COUNT + 1):
        claim, missing = found.begin()
        if number == COUNT:
            continue
        admission = {"admission": LATERAL} if number == COUNT - 1 else {}
        found.arrive(missing[0], origin=Origin.MOVED, **admission)
        found.studies.retrieved(claim, 1.0)
        if not admission:
            found.screen(flagged=number <= COUNT // 2 and number % 3 != 0)
    found.settle()
    with database.write() as session:
        session.execute(update(InstanceRow).values(patient_sex="F", patient_age=50, manufacturer="Maker"))
        session.execute(update(InstanceRow).values(accession_number="SECRET", patient_id="HIDDEN"))
    return found


def labelled(tmp_path, positive=COUNT // 2):
    file = tmp_path / "labels.csv"
    lines = [f"1.3.{number},{int(number <= positive)}" for number in range(1, COUNT + 1)]
    file.write_text("study_instance_uid,label\n" + "\n".join(lines) + "\n")
    return file


def report(night, tmp_path, *arguments):
    config = tmp_path / "node.toml"
    config.write_text(f'database_url = "{night.database.url}"\narchive_dir = "{tmp_path / "archive"}"\n')
    command = ["--config", str(config), "retrospective", "report", "march", "--out", str(tmp_path / "out"), *arguments]
    return CliRunner().invoke(app, command)


def test_the_page_names_no_patient_and_asks_nobody(night, tmp_path):
    done = report(night, tmp_path)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "march" / "report.html").read_text()
    assert "SECRET" not in page
    assert "HIDDEN" not in page
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "no clinical validity was measured" in page
    assert page.count("<li>") == 20  # flagged, each with a picture or a place for it


def test_both_forms_of_a_table_say_the_same_and_are_for_their_owner_alone(night, tmp_path):
    report(night, tmp_path)
    folder = tmp_path / "out" / "march"
    for name, count in (("studies", COUNT), ("images", COUNT - 1)):
        with (folder / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        table = pyarrow.parquet.read_table(folder / f"{name}.parquet").to_pylist()
        assert len(rows) == len(table) == count
        assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in table] == rows
        for form in ("csv", "parquet"):
            assert (folder / f"{name}.{form}").stat().st_mode & 0o777 == 0o600
    declined = next(row for row in table if row["reason"] == "lateral")
    assert declined["state"] == "declined"


def test_with_labels_the_figures_stand_in_page_and_file(night, tmp_path):
    done = report(night, tmp_path, "--labels", str(labelled(tmp_path)), "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)["validation"]
    assert told["studies"] == COUNT - 2
    assert told["current"]["sensitivity"]["hits"] == 20
    assert told["current"]["specificity"]["value"] == 1.0
    page = (tmp_path / "out" / "march" / "report.html").read_text()
    assert "Against the labels" in page
    assert "20 of 30" in page


def test_a_site_s_threshold_is_set_for_the_release_that_answered(night, tmp_path):
    arguments = ("--labels", str(labelled(tmp_path)), "--sensitivity", "0.6", "--set-threshold", "--by", "QA")
    done = report(night, tmp_path, *arguments)
    assert done.exit_code == 0, done.output
    (found,) = Releases(night.database).thresholds(manifest()).values()
    assert 0.1 < found.threshold < 0.9
    assert found.set_by == "QA"
    assert found.basis.startswith(f"run march: {COUNT - 2} studies, 30 positive; sensitivity 0.667")


@pytest.mark.parametrize(
    ("arguments", "positive", "told"),
    [
        (("--set-threshold",), 30, "needs --labels"),
        (("--set-threshold", "--by", "QA"), 30, "needs --labels"),
        (("--set-threshold", "--by", "QA", "LABELS"), 5, "5 labelled studies with an answer are positive"),
        (("--question", "flu"), 30, "no release asks 'flu'"),
    ],
)
def test_a_threshold_that_nothing_bears_is_not_set(night, tmp_path, arguments, positive, told):
    labels = ("--labels", str(labelled(tmp_path, positive)))
    given = [one for argument in arguments for one in (labels if argument == "LABELS" else (argument,))]
    done = report(night, tmp_path, *given)
    assert done.exit_code != 0
    assert told in str(done.exception)
    assert Releases(night.database).thresholds(manifest()) == {}


def test_two_releases_bear_no_threshold(night, tmp_path):
    Ledger(night.database).activate_release(manifest(release="2.0.0"))
    night.run(1, name="next")
    claim, missing = night.begin()
    night.arrive(missing[0], origin=Origin.MOVED)
    night.studies.retrieved(claim, 1.0)
    night.screen()
    with night.database.write() as session:
        session.execute(update(RunStudyRow).where(RunStudyRow.run_id == 2).values(run_id=1, study_instance_uid="1.9"))
    done = report(night, tmp_path, "--labels", str(labelled(tmp_path)), "--set-threshold", "--by", "QA")
    assert "several releases answered" in str(done.exception)


def test_a_run_that_is_not_there_is_told(night, tmp_path):
    with night.database.write() as session:
        session.execute(update(RunRow).values(name="x"))
    assert "there is no run march; the latest are x" in str(report(night, tmp_path).exception)
