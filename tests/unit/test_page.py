import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from dicom_node.evaluation import plots
from dicom_node.evaluation.wording import DISCLAIMER
from tests import evaluation_factories as made
from training.evaluation import page as page_module
from training.evaluation.page import page, write_page
from training.evaluation.wording import HONEST, POOLED

HOSTILE = '<script>alert("x")</script>'
TEMPLATE = Path(page_module.__file__).with_name("page.html.j2").read_text() + plots.STYLE.read_text()


def few(experiment):
    """The experiment with three of its questions: a plot takes a tenth of a second."""
    kept = {name: task for name, task in experiment["tasks"].items() if name in (HONEST, POOLED, "external")}
    return experiment | {"tasks": kept}


@pytest.fixture(scope="module")
def html():
    experiments = few(made.experiment("jahan", "autoencoder")), made.experiment("basu", "vgg16", "paper")
    return page(made.evaluation(*experiments))


def test_it_says_first_that_no_clinical_validity_was_measured(html):
    body = html.partition("<body>")[2]
    assert body.index(DISCLAIMER) < body.index("<h2")
    assert "no clinical validity was measured" in DISCLAIMER


def test_the_first_figure_is_the_one_within_a_source_and_what_sees_no_lung_stands_in_it(html):
    first = html[html.index("<h2") : html.index("</figure>")]
    assert "Within one source: COVID-19 against other pneumonia" in first
    assert ">jahan autoencoder, folds, small profile</text>" in first
    assert ">no lung: 8-pixel frame of a 64 x 64 thumbnail</text>" in first


def test_no_figure_across_sources_stands_without_the_one_within_a_source(html):
    (row,) = re.findall(r"<tr><th[^>]*>jahan autoencoder, folds, small profile</th>.*?</tr>", html)
    cells = [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]
    assert cells[1:5] == [
        "0.660 [0.610, 0.710]",
        "0.640 [0.590, 0.690]",
        "+0.020 [−0.050, +0.090]: not told apart from no lung",
        "0.970 [0.920, 1.020]; 0.990 [0.940, 1.040] without a lung",
    ]
    assert cells[5].endswith(
        "95.0 % [93.0, 97.0], 95 of 100 (sensitivity 0.95; "
        "specificity where it was chosen 40.0 % [38.0, 42.0], 40 of 100)"
    )
    assert "helps less" in html
    assert html.index(row) < html.index("0.950")  # the AUC by the paper's own protocol
    (own,) = re.findall(r"<tr><th[^>]*>basu vgg16, paper, small profile</th>.*?</tr>", html)
    assert "not measured here" in own


def test_what_the_folds_gave_one_by_one_stands_beside_their_pooled_area():
    experiment = few(made.experiment())
    experiment["tasks"][HONEST]["figures"]["auc"]["of_runs"] = {"values": [], "mean": 0.7, "deviation": 0.03}
    told = "0.660 [0.610, 0.710]; runs 0.700 ± 0.030".replace(" 0.710", "\N{NO-BREAK SPACE}0.710")
    assert page(made.evaluation(experiment)).count(f">{told}<") == 2, "at the top, and among every question"


def test_the_same_network_within_one_source_stands_beside_its_headline():
    none = {"tasks": {}, "test": None, "lungs": None}
    folds = made.experiment("basu", "vgg16", **none) | {"tasks": {HONEST: made.task("Same source", 0.61)}}
    html = page(made.evaluation(folds, made.experiment("basu", "vgg16", "paper")))
    (row,) = re.findall(r"<tr><th[^>]*>basu vgg16, paper, small profile</th>.*?</tr>", html)
    assert "0.610" in row


def test_experiments_that_were_asked_nothing_within_a_source_are_called_no_evidence():
    html = page(made.evaluation(made.experiment("basu", "vgg16", "paper")))
    assert "Within one source: not measured" in html
    assert html.index("Nothing below shows that disease was recognised") < html.index("0.950")


def test_it_asks_nobody_for_anything(html):
    assert "default-src 'none'" in html
    assert not re.search(r"<(script|link|img|iframe|object)\b|@import|url\((?!#)", html)
    assert not re.search(r"(?:https?:)?//\w", html)


def test_a_hostile_label_is_shown_as_text():
    experiment = made.experiment("zhang", HOSTILE, "paper")
    experiment["title"] = HOSTILE
    experiment["record"]["differences"] = [HOSTILE]
    tested = experiment["test"]
    tested["sources"] = {HOSTILE: made.group(0.6, HOSTILE, "$\\frac{1}", "_hidden")}
    tested["figures"]["histogram"] = made.histogram(HOSTILE, "$\\frac{1}", "_hidden")
    tested["classes"]["names"] = [HOSTILE, "$x$", "_y"]
    html = page(made.evaluation(experiment))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 5
    assert ">$\\frac{1} (" in html
    assert ">hidden (" in html


def test_every_drawing_is_well_formed_says_what_it_shows_and_follows_the_pages_colours(html):
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) > 15
    for drawing in drawings:
        root = ET.fromstring(drawing.replace("<svg", '<svg xmlns:xlink="x"', 1))  # noqa: S314
        assert root.get("aria-label")
        assert root.get("viewBox")
        assert not re.search(r'(?:fill|stroke): #|font-family| id="(?![mp])', drawing)
    names = {name for drawing in drawings for name in re.findall(r"var\(--(\w+)\)", drawing)}
    assert names <= set(plots.COLOURS)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_what_is_behind_them(mode):
    """WCAG 2.1: 4.5 to 1 for text (1.4.3), 3 to 1 for what is drawn (1.4.11)."""
    colours = dict(re.findall(r"--([a-z-]+): (#\w{6})", re.findall(r":root \{(.*?)\}", TEMPLATE, re.DOTALL)[mode]))
    assert set(plots.COLOURS) <= set(colours)

    def contrast(one, other):
        low, high = sorted((luminance(colours[one]), luminance(colours[other])))
        return (high + 0.05) / (low + 0.05)

    for behind in ("page", "raised"):
        assert min(contrast(name, behind) for name in ("ink", "quiet")) >= 4.5
        assert min(contrast(name, behind) for name in plots.COLOURS) >= 3
    assert contrast("ink", "warn") >= 4.5
    assert contrast("blue", "page") >= 4.5  # links


def test_what_was_not_measured_is_a_dash():
    experiment = few(made.experiment())
    experiment["lungs"] = {"absent": "No lung masks are at hand."}
    experiment["tasks"][HONEST]["baselines"] = {}
    experiment["tasks"][POOLED]["figures"]["auc"] = None
    experiment["test"]["classes"] = None
    html = page(made.evaluation(experiment))
    assert "No lung masks are at hand." in html
    assert "–: not compared" in html


def test_the_combination_stands_beside_its_networks():
    experiment = few(made.experiment("zhang", "both", test=None, lungs=None))
    combination = {"members": ["zhang/both"], "images": 6000, "tasks": {HONEST: made.task("Same source", 0.68)}}
    html = page(made.evaluation(experiment, combination=combination))
    assert re.search(r"<tr><th[^>]*>all together</th>.*?0\.680", html)
    assert ">All together<" in html


def test_the_page_of_a_bundle_names_it():
    result = made.evaluation(combination={"members": ["zhang"], "images": 60, "tasks": {}})
    assert "<h1>Evaluation of starter 0.2.0</h1>" in page(result | {"bundle": "starter", "release": "0.2.0"})


def test_the_same_result_makes_the_same_page(tmp_path):
    result = made.evaluation(made.experiment("basu", "vgg16", "paper"))
    file = write_page(result, tmp_path)
    assert file == tmp_path / "evaluation.html"
    assert file.read_text() == page(result)
