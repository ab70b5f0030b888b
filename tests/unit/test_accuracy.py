"""`docs/accuracy.md` says what the evaluation of the bundle says, and what it does not say."""

import copy
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicom_node.bundle import find_bundle
from dicom_node.evaluation.wording import DISCLAIMER
from tests import evaluation_factories as made
from training.__main__ import app
from training.evaluation.accuracy import accuracy, write_accuracy
from training.evaluation.wording import HONEST

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs" / "accuracy.md"
TASKS = ("combination", "tasks")


@pytest.fixture
def evaluation():
    return made.bundle()


def text_of(evaluation):
    return accuracy(evaluation, "accuracy")[0]


def flat(evaluation):
    """The document without its line breaks."""
    return " ".join(text_of(evaluation).split())


def chapter(text, heading):
    """What stands under a heading, up to the next of its level or a higher one."""
    level = heading.index(" ")
    found = re.search(rf"^{re.escape(heading)}.*?\n(.*?)(?=^#{{1,{level}}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def rows(text, heading):
    """The cells of the first table under a heading, without its head."""
    lines = re.search(r"(?:^\|.*\n)+", chapter(text, heading), re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def write_bundle(folder, evaluation):
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def test_the_chapters_stand_in_their_order_and_the_figure_to_judge_by_stands_first(evaluation):
    text = text_of(evaluation)
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    for heading, begins in zip(
        headings,
        ("What it is worth", "Within one collection", "On `val`", "On `external`", "Calibration", "What is declined",
         "Indeterminate", "By view", "Deciding by it", "What was not measured"),
        strict=True,
    ):  # fmt: skip
        assert heading.startswith(begins)
    assert text.startswith("# How accurate starter 9.8.7 is\n")
    assert text.index(DISCLAIMER) < text.index("0.660 [0.610, 0.710]") < text.index("0.640 [0.590, 0.690]")
    assert "**not told apart from no lung**" in " ".join(chapter(text, "## What it is worth").split())


# Where a figure stands in the evaluation; each is shown, or something is that is computed from it.
SHOWN = [
    ("release",),
    ("manifest", "images"),
    ("manifest", "patients"),
    (*TASKS, HONEST, "figures", "auc", "low"),
    (*TASKS, HONEST, "figures", "patients"),
    (*TASKS, HONEST, "baselines", "frame", "auc", "high"),
    (*TASKS, HONEST, "baselines", "frame", "difference", "value"),
    (*TASKS, HONEST, "calibration", "ece"),
    (*TASKS, HONEST, "calibration", "brier"),
    (*TASKS, HONEST, "calibration", "slope"),
    (*TASKS, HONEST, "calibration", "intercept"),
    (*TASKS, HONEST, "subgroups", "view", "AP", "auc", "value"),
    (*TASKS, HONEST, "subgroups", "sex", "F", "at", "youden", "sensitivity", "hits"),
    (*TASKS, HONEST, "figures", "at", "youden", "predictive_values", 1, "ppv"),
    (*TASKS, HONEST, "figures", "at", "sensitivity 0.95", "specificity", "low"),
    (*TASKS, "pneumonia against normal, nih", "calibration", "ece"),
    (*TASKS, "val, cohen", "figures", "auc", "value"),
    (*TASKS, "val, cohen", "figures", "at", "youden", "sensitivity", "value"),
    (*TASKS, "val, nih", "figures", "at", "sensitivity 0.95", "specificity", "high"),
    (*TASKS, "val, nih", "figures", "images"),
    (*TASKS, "val, pneumonia against normal, nih", "figures", "at", "youden", "specificity", "n"),
    (*TASKS, "val, adults", "calibration", "decision", "y", 14),
    (*TASKS, "val, adults", "figures", "at", "youden", "predictive_values", 0, "npv"),
    (*TASKS, "external", "figures", "at", "youden", "sensitivity", "high"),
    (*TASKS, "external", "figures", "at", "youden", "specificity_when_chosen", "hits"),
    (*TASKS, "external", "figures", "images"),
    ("members", 0, "ensemble", "high"),
    ("members", 0, "unconditional", "value"),
    ("members", 0, "members", "zhang", "low"),
    ("members", 1, "more_than_best", "value"),
    ("members", 1, "without", "jahan", "auc", "value"),
    ("members", 2, "without", "zhang", "loss", "low"),
    ("members", 2, "positives"),
    ("gate", "measured", "frontal, cohen, out of fold", 1),
    ("gate", "measured", "body part (drawn)", 0),
    ("gate", "measured", "other: clouds", 1),
    ("gate", "told", "frontal turned 90", "low"),
    ("targets", 0, "condition", "threshold"),
    ("targets", 0, "operating_points", "balanced", "threshold"),
    ("targets", 1, "disagreement", "bound"),
    ("targets", 1, "disagreement", "share"),
    ("targets", 2, "disagreement", "error"),
    ("targets", 2, "disagreement", "error_beyond"),
    ("targets", 2, "reference", "negative", "images"),
]


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: "/".join(map(str, path)))
def test_another_figure_in_the_evaluation_makes_another_document(evaluation, path):
    before = text_of(evaluation)
    *to, last = path
    place = evaluation
    for key in to:
        place = place[key]
    old = place[last]
    place[last] = "1.2.3" if isinstance(old, str) else old - 3 if isinstance(old, int) else old * 0.7
    assert text_of(evaluation) != before


def test_every_question_within_a_collection_has_its_row_the_poorest_first(evaluation):
    found = rows(text_of(evaluation), "## Within one collection")
    assert [(row[0], row[1], row[2], row[4], row[5]) for row in found] == [
        ("COVID-19 against other pneumonia, cohen", "240 (100)", "0.716 [0.666, 0.766]", "−0.004 [−0.024, +0.016]",
         "no, not told apart"),
        ("COVID-19 against other pneumonia, cohen, PA", "240 (100)", "0.726 [0.676, 0.776]", "+0.006 [−0.014, +0.026]",
         "yes, not told apart"),
        ("Pneumonia against normal, by abnormality, nih", "240 (100)", "0.760 [0.710, 0.810]",
         "+0.040 [+0.020, +0.060]", "yes, better"),
    ]  # fmt: skip
    assert found[2][6:] == [
        "8-pixel frame of a 64 x 64 thumbnail: 0.550 [0.500, 0.600]",
        "+0.160 [+0.090, +0.230]: better than no lung",
    ]


def test_it_says_why_an_ensemble_ships_that_is_no_better_than_its_best_member(evaluation):
    text = flat(evaluation)
    assert "the ensemble is **not as good as basu** alone, −0.004 [−0.024, +0.016]. The interval holds 0: 240" in text
    assert "basu is the best member in every row." in text
    evaluation["members"][0]["more_than_best"] = made.figure(-0.04, 0.02)
    evaluation["members"][2] = made.members("abnormal", "nih", 0.04, ("basu", "zhang"))
    text = flat(evaluation)
    assert "The interval lies below 0: what is lost is more than chance among these 240 images." in text
    assert "no member is the best everywhere: basu in COVID-19 against other pneumonia, cohen and COVID-19" in text


def test_what_is_lost_without_a_member_is_told_with_its_sign(evaluation):
    loss = evaluation["members"][0]["without"]
    loss["zhang"]["loss"], loss["jahan"]["loss"] = made.figure(0.03, 0.01), made.figure(-0.02, 0.01)
    text = text_of(evaluation)
    found = rows(text, "### COVID-19 against other pneumonia, cohen: each member")
    assert [(row[0], row[1], row[3], row[4]) for row in found] == [
        ("jahan", "–", "−0.020 [−0.030, −0.010]", "harms"),
        ("basu", "0.720 [0.670, 0.770]", "+0.010 [−0.020, +0.040]", "not told apart"),
        ("zhang", "0.700 [0.650, 0.750]", "+0.030 [+0.020, +0.040]", "helps"),
    ]
    assert "The ensemble is better without: jahan." in " ".join(text.split())


def test_what_withdrawing_an_answer_costs_stands_beside_it(evaluation):
    found = rows(text_of(evaluation), "### What withdrawing covid19 costs")
    assert found[0] == ["cohen", "240 (100)", "0.716 [0.666, 0.766]", "0.729 [0.679, 0.779]", "−0.013"]
    for row in evaluation["members"]:
        del row["unconditional"]
    assert "What that costs was not measured." in flat(evaluation)


def test_val_stands_collection_by_collection_at_both_points(evaluation):
    text = text_of(evaluation)
    found = rows(text, "### COVID-19 against the rest\n".strip())
    assert [row[0] for row in found] == ["cohen", "nih", "adults"]
    assert found[0][4:] == [
        "60.0 % [58.0, 62.0], 60 of 100", "60.0 % [58.0, 62.0], 90 of 150",
        "95.0 % [93.0, 97.0], 95 of 100", "30.0 % [28.0, 32.0], 45 of 150",
    ]  # fmt: skip
    assert [row[0] for row in rows(text, "### Pneumonia against normal, by the answer")] == ["nih"]
    assert "chosen on scores that each fold's own fit gave; the bundle's, from one fit, are `balanced` 0.32" in flat(
        evaluation
    )


def test_a_question_without_thresholds_on_val_says_so(evaluation):
    task = evaluation["combination"]["tasks"]["val, pneumonia against normal, nih"]
    task["figures"]["at"], task["calibration"] = {}, None
    text = flat(evaluation)
    assert "**At the operating points this was not measured on `val`**" in text
    assert "Not measured: Pneumonia against normal within nih, val." in text


def test_external_is_sensitivity_with_its_n_and_no_area(evaluation):
    text = chapter(text_of(evaluation), "## On `external`")
    assert "95.0 % [93.0, 97.0], 95 of 100" in text
    assert "AUC would mean nothing" in " ".join(text.split())
    assert not re.search(r"AUC \d", text)


def test_kinds_are_never_pooled_and_those_that_miss_their_mark_come_first(evaluation):
    text = text_of(evaluation)
    frontal = rows(text, "### Frontal chest X-rays")
    assert [row[0] for row in frontal] == ["frontal, nih, val", "frontal, cohen, out of fold"]
    assert frontal[0][2:] == ["152", "9", "143", "5.9 % [2.7, 10.9], 9 of 152"]
    others = rows(text, "### Everything else")
    assert [(row[0], row[1]) for row in others] == [
        ("body part (drawn)", "cut from chest X-rays"),
        ("other: clouds", "drawn"),
        ("lateral, turned, mirrored, inverted", "real, then turned, mirrored, inverted"),
        ("lateral, as it is", "real"),
    ]
    assert others[0][2:] == ["900", "813", "87", "90.3 % [88.2, 92.2], 813 of 900"]
    assert "**2 of 6 kinds miss that**: - body part (drawn): 90.3 %" in " ".join(text.split())
    assert "**nothing is claimed about them**" in " ".join(text.split())
    told = rows(text, "### Turned and inverted X-rays")
    assert [row[0] for row in told] == ["frontal turned 90", "frontal"]
    total = sum(count for _, count in evaluation["gate"]["measured"].values())
    assert f"{total:,}" not in chapter(text, "## What is declined")


def test_indeterminate_answers_have_intervals_from_the_counts_that_the_shares_mean(evaluation):
    found = rows(text_of(evaluation), "## Indeterminate")
    assert [row[0] for row in found] == ["covid19", "pneumonia", "abnormal"]
    assert found[0][2] == "1,000"
    assert [cell.partition(", ")[2].partition("], ")[2] for cell in found[0][3:]] == [
        "50 of 1000",
        "95 of 950",
        "13 of 50",
    ]
    evaluation["targets"][0]["disagreement"]["error_beyond"] = 0.12
    assert "`covid19`: the intervals meet, so that **the bound is not shown to single out errors**." in flat(evaluation)
    del evaluation["targets"][0]["disagreement"]
    assert "`covid19` has no bound: it is never indeterminate." in flat(evaluation)


def test_subgroups_name_the_lowest_and_whether_anything_is_told_there(evaluation):
    view = evaluation["combination"]["tasks"][HONEST]["subgroups"]["view"]
    view["AP"]["auc"] = made.figure(0.54)
    text = flat(evaluation)
    assert "**the lowest is view AP**: AUC 0.540 [0.490, 0.590], 240 (100)".replace("240 (100)", "80 (30)") in text
    assert "the interval holds 0.5, at which nothing is told" in text
    view["AP"]["positives"] = 4
    assert "the lowest is view AP" not in chapter(
        text_of(evaluation), f"### {'COVID-19 against other pneumonia within'}"
    )


def test_where_the_bundle_is_no_better_than_everybody_the_thresholds_are_named(evaluation):
    found = evaluation["combination"]["tasks"]["val, adults"]["calibration"]
    at = [0.01, 0.02, 0.03, 0.1, 0.5]
    found["decision"] = {"x": at, "y": [0.40, 0.39, 0.38, 0.37, -0.01]}
    found["decision_all"] = {"x": at, "y": [0.41, 0.40, 0.37, 0.3, -1.0]}
    text = flat(evaluation)
    assert "**worse than the better of these two** at a threshold probability of 0.01 to 0.02, 0.5." in text
    assert "| 0.1 | 0.37 | 0.3 | 0 |" in text
    found["decision"]["y"] = [0.5] * 5
    assert "never worse than the better of these two" in flat(evaluation)


def test_predictive_values_stand_between_what_the_ends_of_both_intervals_give(evaluation):
    at = evaluation["combination"]["tasks"]["val, adults"]["figures"]["at"]["youden"]
    at["sensitivity"] = made.figure(0.9, 0.1, 100, hits=90)
    at["specificity"] = made.figure(0.8, 0.1, 150, hits=120)
    at["predictive_values"] = [{"prevalence": 0.1, "ppv": 1 / 3, "npv": 0.9863}]
    ((cell,),) = [
        row[4:]
        for row in rows(text_of(evaluation), "### Predictive values")
        if row[0] == "COVID-19 against the rest, adults, val" and row[1] == "balanced"
    ]
    assert cell == "33.3 % [22.9, 52.6]; 98.6 % [96.9, 100.0]"


WITHOUT = {
    "no gate": (lambda e: e.update(gate=None), "it answers whatever image it is shown"),
    "no val": (
        lambda e: e["combination"].update(tasks=made.tasks()),
        "Not measured: the evaluation has no images of `val`.",
    ),
    "no external": (lambda e: e["combination"]["tasks"].pop("external"), "A source that was never trained on: the"),
    "nothing within a collection": (lambda e: e.update(members=[]), "no collection holds enough images of both"),
    "one member": (
        lambda e: e.update(members=[made.members("covid19", "cohen", 0, ("zhang",))]),
        "The bundle has one member: no ensemble is there to be compared with it.",
    ),
    "no targets": (lambda e: e.update(targets=[]), "Not measured: no question has a bound of disagreement."),
    "no task": (lambda e: e["combination"].update(tasks={}), "**What it is worth is not known**"),
    "unreadable images": (lambda e: e.update(unreadable=7), "7 images of `val` and `external` that could not be read"),
}


@pytest.mark.parametrize(("spoil", "told"), WITHOUT.values(), ids=WITHOUT)
def test_what_is_missing_is_said(evaluation, spoil, told):
    assert told not in flat(evaluation)
    spoil(evaluation)
    assert told in flat(evaluation)


def test_every_table_is_whole(evaluation):
    for table in re.findall(r"(?:^\|.*\n)+", text_of(evaluation), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_every_plot_is_a_file_that_the_document_shows_and_the_same_twice(evaluation, tmp_path):
    few = (HONEST, "val, adults", "external")
    evaluation["combination"]["tasks"] = {
        name: task for name, task in evaluation["combination"]["tasks"].items() if name in few
    }
    bundle = write_bundle(tmp_path / "bundle", evaluation)
    (tmp_path / "one" / "accuracy").mkdir(parents=True)
    (tmp_path / "one" / "accuracy" / "old.svg").touch()
    (tmp_path / "other").mkdir()
    written = []
    for name in ("one", "other"):
        result = CliRunner().invoke(app, ["accuracy", str(bundle), "--out", str(tmp_path / name / "accuracy.md")])
        assert result.exit_code == 0, result.output
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        written.append({path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in files})
    assert written[0] == written[1]
    shown = re.findall(r"^!\[[^\]]+\]\((accuracy/[a-z0-9-]+\.svg)\)$", written[0]["accuracy.md"].decode(), re.MULTILINE)
    assert len(shown) == len(set(shown)) > 6
    assert {*shown, "accuracy.md"} == set(written[0])
    for name in shown:
        drawing = written[0][name].decode()
        root = ET.fromstring(drawing)  # noqa: S314
        assert root.get("aria-label")
        assert root.get("width")
        assert not re.search(r"var\(--|currentColor|<dc:date|<metadata", drawing)


def test_an_evaluation_without_curves_has_its_figures_still(evaluation):
    for task in evaluation["combination"]["tasks"].values():
        task["figures"]["histogram"] = None
        if task["calibration"]:
            task["calibration"] |= {"reliability": None, "decision": None, "decision_all": None}
    text, drawings = accuracy(evaluation, "accuracy")
    assert "no curve was kept" in text
    assert "No decision curve" in text
    assert not [name for name in drawings if name.startswith(("reliability", "decision"))]


def test_an_evaluation_of_no_bundle_is_refused(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", {"experiments": {}, "combination": None})
    with pytest.raises(ValueError, match="is no evaluation of a bundle"):
        write_accuracy(bundle, tmp_path / "accuracy.md")


def test_the_evaluation_is_only_read(evaluation):
    before = copy.deepcopy(evaluation)
    accuracy(evaluation, "accuracy")
    assert evaluation == before


def test_the_document_in_the_repository_is_what_the_shipped_bundle_gives(tmp_path):
    write_accuracy(find_bundle("starter"), tmp_path / "accuracy.md")
    assert COMMITTED.read_text() == (tmp_path / "accuracy.md").read_text(), (
        "run `python -m training accuracy workers/bundles/starter --out docs/accuracy.md`"
    )
    names, made_now = (
        sorted(path.name for path in folder.glob("*.svg"))
        for folder in (COMMITTED.with_suffix(""), tmp_path / "accuracy")
    )
    assert names == made_now
    for name in names:
        labels, labels_now = (
            re.findall(r"<text[^>]*>([^<]*)<", (folder / name).read_text())
            for folder in (COMMITTED.with_suffix(""), tmp_path / "accuracy")
        )
        assert labels == labels_now, name
