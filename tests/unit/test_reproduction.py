import json
import re
from pathlib import Path

import pytest

from tests import evaluation_factories as made
from training.evaluation import comparison, reproduction, wording
from training.evaluation.comparison import write_comparison
from training.evaluation.reproduction import write_reproduction
from training.papers import PAPERS
from training.papers.paper import Measure, Paper, Published, Table

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs" / "reproduction.md"

TABLE = Table(
    "Table 2",
    "Accuracy | of *five* folds",
    (
        Published("VGG-16", "accuracy", 0.9013, Measure("accuracy"), 0.0014, "deviation of five folds"),
        Published("ResNet-50", "accuracy", 0.8598, Measure("accuracy", variant="resnet50")),
        Published("VGG-16", "COVID-19 images", 305, Measure("images"), remark="ours|are fewer"),
        Published("VGG-16", "AUC", 0.98, Measure("auc")),
        Published("VGG-16", "hours on a GPU", 7, None, remark="not a figure of the network"),
    ),
)


BASU = Paper(
    name="basu",
    title="Deep Learning for Screening <COVID-19>",
    citation="Basu S, Mitra S, Saha N. 2020",
    variants=("vgg16", "resnet50"),
    recipe=lambda variant, profile: made.recipe("basu", variant, profile),
    data_set=lambda pictures: None,
    splits=lambda data, seed: [],
    label=lambda picture: None,
    tables=(TABLE,),
    silent=("Input size.",),
    differences={},
)


@pytest.fixture
def one_paper(monkeypatch):
    for module in (comparison, reproduction):
        monkeypatch.setattr(module, "PAPERS", {"basu": BASU})


def compared(ours):
    """The table as an evaluation of vgg16 has it: `ours` by column, the rest missing with a reason."""
    rows = []
    for number in TABLE.numbers:
        mine = ours.get(number.column) if not (number.measure and number.measure.variant) else None
        why = "" if mine else "one class only"
        rows.append({"row": number.row, "column": number.column, "paper": number.value, "ours": mine, "why": why})
    return [{"name": TABLE.name, "caption": TABLE.caption, "numbers": rows}]


OURS = {
    "accuracy": made.figure(0.8123, 0.02, 640, of_runs={"values": [0.8, 0.82], "mean": 0.81, "deviation": 0.014}),
    "COVID-19 images": {"value": 91.0, "low": None, "high": None, "n": 91, "interval": "none"},
}


def own(profile="small", ours=OURS, variant="vgg16"):
    experiment = made.experiment("basu", variant, "paper", published=compared(ours))
    experiment["record"] = made.record("basu", variant, "paper", profile)
    return experiment


def written(tmp_path, *evaluations):
    files = []
    for number, evaluation in enumerate(evaluations):
        files.append(tmp_path / f"evaluation-{number}.json")
        files[-1].write_text(json.dumps(evaluation))
    write_reproduction(files, tmp_path / "reproduction.md")
    return (tmp_path / "reproduction.md").read_text()


def rows(text, heading):
    """The cells of the table after a heading."""
    part = text.partition(f"### {heading}")[2]
    assert part, heading
    lines = re.search(r"(?:^\|.*\n)+", part, re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_row_of_the_papers_table_stands_beside_ours(tmp_path, one_paper):
    head, _, *body = rows(written(tmp_path, made.evaluation(own())), "Table 2")
    assert head == ["Row", "Column", "Paper", "Ours, 95 % interval", "n", "On which data", "What differs"]
    assert [(row[0], row[1]) for row in body] == [(number.row, number.column) for number in TABLE.numbers]
    accuracy = body[0]
    assert accuracy[2] == "90.13 ± 0.14 % (deviation of five folds)"
    assert accuracy[3] == "81.2 % [79.2, 83.2]; runs 81.0 ± 1.4"
    assert accuracy[4:] == ["640", "cohen 300, nih 400; small profile", "differences 1 to 2"]
    assert body[2][2:5] == ["305", "91", "91"]


def test_what_is_missing_is_a_dash_with_the_reason(tmp_path, one_paper):
    _, _, *body = rows(written(tmp_path, made.evaluation(own())), "Table 2")
    assert body[1][3:] == ["–", "–", "–", "variant resnet50 was not trained by the paper's protocol"]
    assert body[3][3:] == ["–", "–", "–", "one class only"]
    assert body[4][3:] == ["–", "–", "–", "not a figure of the network"]


def test_how_many_images_there_are_any_variant_can_say(tmp_path, one_paper):
    _, _, *body = rows(written(tmp_path, made.evaluation(own(variant="resnet50"))), "Table 2")
    assert body[2][2:5] == ["305", "91", "91"]
    assert body[0][3:] == ["–", "–", "–", "variant vgg16 was not trained by the paper's protocol"]


def test_a_row_that_the_evaluation_does_not_know_asks_for_a_new_one(tmp_path, one_paper):
    experiment = own()
    del experiment["published"][0]["numbers"][0]
    _, _, *body = rows(written(tmp_path, made.evaluation(experiment)), "Table 2")
    assert body[0][3] == "–"
    assert "evaluate again" in body[0][6]


def test_no_evaluation_at_all_leaves_every_row_with_a_dash(tmp_path, one_paper):
    _, _, *body = rows(written(tmp_path), "Table 2")
    assert [row[3] for row in body] == ["–"] * len(TABLE.numbers)


def test_of_two_profiles_the_papers_own_is_shown(tmp_path, one_paper):
    better = {"accuracy": made.figure(0.9)}
    text = written(tmp_path, made.evaluation(own()), made.evaluation(own()) | {
        "experiments": {"basu/vgg16/paper-paper": own("paper", better)},
    })  # fmt: skip
    _, _, *body = rows(text, "Table 2")
    assert body[0][3].startswith("90.0 %")
    assert "paper profile" in body[0][5]
    assert body[2][5].endswith("small profile")


def test_every_table_is_whole_whatever_its_cells_hold(tmp_path, one_paper):
    text = written(tmp_path, made.evaluation(own(), made.experiment()))
    assert "ours\\|are fewer" in text
    assert "Accuracy \\| of \\*five\\* folds" in text
    assert "\\<COVID-19\\>" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_honest_tasks_stand_first_beside_what_sees_no_lung_on_the_same_folds(tmp_path, one_paper):
    text = written(tmp_path, made.evaluation(made.experiment(), own()))
    head, _, row = rows(text, "COVID-19 against other pneumonia within cohen, out of fold")
    assert head[:5] == ["Network", "Images (positive)", "AUC", "No lung: frame", "Minus frame"]
    assert row[1:5] == ["240 (100)", "0.660 [0.610, 0.710]", "0.640 [0.590, 0.690]", "+0.020 [−0.050, +0.090]"]
    headings = re.findall(r"^##+ (.*)", text, re.MULTILINE)
    honest, external, pooled, table = (
        next(i for i, heading in enumerate(headings) if name in heading)
        for name in ("within cohen", "source never trained on", "pooled", "Table 2")
    )
    assert honest < external < pooled < table
    assert "no evidence of recognising disease" in " ".join(text.split())
    _, _, *frozen = rows(text, "Sensitivity to COVID-19 on a source never trained on")
    assert frozen[1][2:5] == ["sensitivity 0.95", "95.0 % [93.0, 97.0], 95 of 100", "40.0 % [38.0, 42.0], 40 of 100"]


def test_what_the_folds_gave_one_by_one_stands_beside_their_pooled_area(tmp_path, one_paper):
    experiment = made.experiment()
    experiment["tasks"][wording.HONEST]["figures"]["auc"]["of_runs"] = {"values": [], "mean": 0.7, "deviation": 0.03}
    _, _, row = rows(written(tmp_path, made.evaluation(experiment)), "COVID-19 against other pneumonia within cohen")
    assert row[2] == "0.660 [0.610, 0.710]; runs 0.700 ± 0.030"


def test_a_changed_profile_is_called_so(tmp_path, one_paper):
    changed = own()
    changed["record"]["differences"].append(f"{wording.CHANGED} epochs 1, the profile's is 4.")
    _, _, *body = rows(written(tmp_path, made.evaluation(changed)), "Table 2")
    assert body[0][5].endswith("small profile, changed")


def test_every_training_says_what_it_took(tmp_path, one_paper):
    text = written(tmp_path, made.evaluation(own()))
    row = next(line for line in text.splitlines() if line.startswith("| basu vgg16, paper, small profile |"))
    for told in ("160 px", "2,500 of 2,000", "67 min", "2 CPU cores"):
        assert told in row


def test_every_variant_says_how_long_it_takes_where_that_was_measured(tmp_path, one_paper):
    (tmp_path / "evaluation.json").write_text(json.dumps(made.evaluation(own())))
    (tmp_path / "timings.json").write_text(
        json.dumps({"hardware": "2 CPU cores", "seconds": {"basu": {"vgg16": {"small": 4000, "paper": 32_000}}}})
    )
    text = reproduction.reproduction([tmp_path / "evaluation.json"], tmp_path, tmp_path / "timings.json")
    took = text.partition("How long each variant takes")[2]
    assert "at hand and 2 CPU cores" in " ".join(took.split())
    assert "| basu | vgg16 | small | 67 min | 8.9 h |" in took
    assert "| basu | resnet50 | no | – | – |" in took


def test_the_same_files_give_the_same_text_in_any_order(tmp_path, one_paper):
    files = []
    for number, experiment in enumerate((own(), made.experiment())):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(made.evaluation(experiment)))
    texts = {reproduction.reproduction(order, tmp_path) for order in (files, files[::-1])}
    assert len(texts) == 1
    read = " ".join(texts.pop().partition("## Evaluations read")[2].split())
    assert re.fullmatch(
        r"\[0.json\]\(0.json\) (\(manifest .{1,8}, [\d,]+ images of [\d,]+ patients\)), \[1.json\]\(1.json\) \1", read
    )


def test_two_evaluations_of_one_experiment_are_refused(tmp_path, one_paper):
    with pytest.raises(ValueError, match=r"evaluation-1\.json evaluates basu/vgg16/paper-small again"):
        written(tmp_path, made.evaluation(own()), made.evaluation(own(ours={})))


def test_what_is_no_evaluation_is_refused(tmp_path, one_paper):
    with pytest.raises(ValueError, match=r"is no evaluation\.json"):
        written(tmp_path, {"bundle": "starter"})


def test_a_comparison_holds_the_papers_of_its_experiments_after_the_honest_tasks(tmp_path, one_paper):
    text = write_comparison(made.evaluation(own(), made.experiment()), tmp_path).read_text()
    assert text.index("within cohen") < text.index("### Table 2")
    assert len(rows(text, "Table 2")) == 2 + len(TABLE.numbers)
    assert "Screening" not in write_comparison(made.evaluation(), tmp_path).read_text()


def test_prose_is_no_wider_than_code(tmp_path, one_paper):
    text = written(tmp_path, made.evaluation(own(), made.experiment()))
    assert not [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]


@pytest.mark.parametrize(
    ("value", "half", "said"),
    [
        (-0.0001, 0.05, "0.000 [−0.050, +0.050]"),
        (0.0004, 0.05, "0.000 [−0.050, +0.050]"),
        (-0.102, 0.1, "−0.102 [−0.202, −0.002]"),
    ],
)
def test_a_difference_has_its_sign_unless_it_is_nothing(value, half, said):
    assert wording.difference(made.figure(value, half)) == said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", "a\\|b"),
        ("p_covid19 at 0.5", "p_covid19 at 0.5"),
        ("_all_ of it", "\\_all\\_ of it"),
        ("[text](address)", "[text]\\(address)"),
        ("0.9 [0.8, 1.0]", "0.9 [0.8, 1.0]"),
        ("two\nlines", "two lines"),
    ],
)
def test_a_cell_is_shown_as_it_is(text, shown):
    assert wording.cell(text) == shown


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(45, "45 s"), (700, "12 min"), (12_240, "3.4 h"), (90_000, "25 h"), (1_000_000, "12 days")],
)
def test_a_duration_is_said_in_its_own_unit(seconds, said):
    assert wording.duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (0.9518, "auc", "0.9518"),
        (0.72, "sensitivity", "72 %"),
        (98, "confusion", "98"),
        (6845.03, "mean score", "6845.03"),
        (0.0024, "mean score", "0.0024"),
        (-3.5, "", "−3.5"),
    ],
)
def test_a_papers_number_is_written_as_it_was_printed(value, kind, said):
    assert wording.published(value, kind) == said


@pytest.mark.parametrize("paper", PAPERS.values(), ids=PAPERS)
def test_every_row_of_every_paper_stands_in_the_document_without_any_evaluation(paper):
    text = reproduction.reproduction([], ROOT)
    for table in paper.tables:
        _, _, *body = rows(text, wording.cell(table.name) + "\n")
        assert body
        for number in table.numbers:
            kind = comparison.kind_of(number)
            printed = wording.published(number.value, kind, number.deviation, number.deviation_is)
            expected = [wording.cell(part) for part in (number.row, number.column, printed)]
            assert f"| {' | '.join(expected)} | –" in text


def test_copies_for_the_repository_make_the_same_document(tmp_path):
    original = tmp_path / "all" / "evaluation.json"
    original.parent.mkdir()
    original.write_text(json.dumps(made.evaluation(made.experiment("basu", "vgg16", "folds"))), encoding="utf-8")
    (copy,) = reproduction.keep([original], tmp_path / "kept")
    assert copy == tmp_path / "kept" / "all.json"
    assert '"edges"' in original.read_text(encoding="utf-8")
    assert not {'"edges"', '"x"'} & set(re.findall(r'"\w+"', copy.read_text(encoding="utf-8")))
    document = reproduction.reproduction([copy], tmp_path)
    assert document.replace("[all.json](kept/all.json)", "") == reproduction.reproduction([original], tmp_path).replace(
        "[evaluation.json](all/evaluation.json)", ""
    )


def test_the_committed_document_is_what_the_committed_evaluations_make():
    kept = COMMITTED.parent / "reproduction"
    files = sorted(kept.glob("*-*.json"))
    assert files
    assert COMMITTED.read_text(encoding="utf-8") == reproduction.reproduction(
        files, COMMITTED.parent, kept / "timings.json"
    )
