import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from training.data.manifest import Picture, write_manifest
from training.evaluation import baselines, tested
from training.evaluation import evaluate as module
from training.evaluation.anomaly import anomaly
from training.evaluation.evaluate import evaluate
from training.evaluation.page import write_page
from training.evaluation.rows import Rows
from training.papers import PAPERS
from training.papers.paper import Measure, Paper, Published, Table
from training.recipe import Recipe
from training.records import plain, read_record, write_record, write_scores
from training.train import settings_changed

CLASSES = ("normal", "pneumonia", "covid19")
STRATA = (
    ("cohen", "covid19", "train", 40),
    ("cohen", "pneumonia", "train", 30),
    ("nih", "normal", "train", 30),
    ("nih", "pneumonia", "val", 30),
    ("cohen", "covid19", "val", 20),
    ("figure1", "covid19", "external", 6),
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(baselines, "_TREES", 5)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Picture]]:
    folder = tmp_path_factory.mktemp("images")
    shown = []
    for source, finding, split, count in STRATA:
        for i in range(count):
            name = f"{source}-{finding}-{split}-{i}"
            noise = np.random.default_rng(len(shown)).integers(0, 255, (20, 24), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{name}.png")
            shown.append(Picture(name, folder / f"{name}.png", split, source, name, finding, "PA"))
    write_manifest(shown, folder / "manifest.csv")
    return folder, shown


def recipe(paper: str, score: str = "p_covid19") -> Recipe:
    return Recipe(paper, "main", "small", "X", CLASSES, "cross_entropy", score, 32, 32, 1, 1e-3, 4, "sgd")


def experiment(folder: Path, shown: list[Picture], made: Recipe, protocol: str, seed: int = 0) -> Path:
    """A finished experiment whose network is right more often than not."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    runs = [f"fold{i}" for i in range(5)] if protocol == "folds" else ["split0", "split1"]
    rows = []
    for i, picture in enumerate(shown):
        where = [runs[i % len(runs)]] if picture.split != "external" else []
        if protocol == "folds" and picture.split != "train":
            where.append("final")
        for run in where:
            z = rng.normal(0, 1, 3) + 2 * (np.array(CLASSES) == picture.finding)
            p = np.exp(z) / np.exp(z).sum()
            scores = {f"p_{c}": x for c, x in zip(CLASSES, p, strict=True)}
            scores |= {f"logit_{c}": np.log(x / (1 - x)) for c, x in zip(CLASSES, p, strict=True)}
            rows.append({"run": run, "image_id": picture.image_id, "label": picture.finding, **scores})
    write_scores(folder, rows)
    run_figures = [
        {"name": run, "train": 9, "test": 9, "train_by_class": dict.fromkeys(CLASSES, 3), "epochs": 1, "seconds": 1,
         "loss": 0.1, "skipped": 0}
        for run in runs
    ]  # fmt: skip
    sha256 = hashlib.sha256((shown[0].path.parent / "manifest.csv").read_bytes()).hexdigest()
    data = {"manifest_sha256": sha256, "images": {"cohen/covid19": 60}, "skipped": 0}
    write_record(
        folder,
        {
            "paper": made.paper, "variant": made.variant, "profile": made.profile, "protocol": protocol,
            "task": "covid19", "recipe": plain(made), "differences": ["much smaller"], "data": data,
            "runs": run_figures, "seed": 1, "code": {"version": "0", "sha256": ""}, "hardware": "2 CPU cores",
            "versions": {}, "started": "2026-01-01T00:00:00+00:00", "seconds": 10,
        },
    )  # fmt: skip
    return folder


@pytest.fixture
def paper(monkeypatch) -> Paper:
    name = next(iter(PAPERS))
    tables = (
        Table("Table 1", "Figures", (
            Published("all", "AUC", 0.95, Measure("auc")),
            Published("all", "accuracy", 0.9, Measure("accuracy", positive=""), deviation=0.01, deviation_is="sd"),
            Published("other", "AUC", 0.9, Measure("auc", variant="other")),
            Published("all", "patients", 70, None),
            Published("other class", "AUC", 0.5, Measure("auc", positive="other_disease")),
            Published("all", "COVID-19 images", 100, Measure("images")),
        )),
    )  # fmt: skip
    made = replace(PAPERS[name], variants=("main", "other"), tables=tables)
    monkeypatch.setitem(PAPERS, name, made)
    return made


def test_an_evaluation_says_everything_in_plain_json(tmp_path, collection, paper, monkeypatch):
    folder, shown = collection
    called, drawn = [], []
    monkeypatch.setattr(module, "write_page", lambda result, out: drawn.append(result))  # many plots: one task below
    monkeypatch.setattr(module, "lungs", lambda *_, **options: (called.append(options), {"absent": "no masks"})[1])
    made = recipe(paper.name)
    work = tmp_path / "work"
    paths = [
        experiment(work / "one" / "main" / "paper-small", shown, made, "paper"),
        experiment(work / "one" / "main" / "folds-small", shown, made, "folds", 1),
        experiment(work / "two" / "main" / "folds-small", shown, made, "folds", 2),
    ]
    result = evaluate(paths, folder, tmp_path / "out", heatmap_images=3, resamples=20)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == result
    assert drawn == [result]
    assert list(result["experiments"]) == [
        "one/main/paper-small", "one/main/folds-small", "two/main/folds-small"
    ]  # fmt: skip
    by_paper, by_folds, _ = result["experiments"].values()
    assert [option["heatmap_images"] for option in called] == [3, 3, 3]
    (own,) = by_paper["tasks"].values()
    assert own["title"] == "COVID-19 against the rest, test images of the paper's own protocol"
    assert set(own["baselines"]) == {"frame", "form", "thumbnail"}
    assert own["calibration"]["images"] == own["figures"]["images"] == by_paper["test"]["figures"]["images"]
    assert set(own["subgroups"]) == {"view", "sex", "age"}
    assert by_paper["lungs"] == {"absent": "no masks"}
    assert by_folds["lungs"] == {"absent": "no masks"}
    assert list(by_folds["tasks"]) == [
        "covid19 against pneumonia, cohen",
        "covid19 against pneumonia, cohen, PA",
        "covid19 against the rest, cohen",
        "covid19 against the rest, nih",
        "covid19 against the rest, adults",
        "covid19 against the rest, pooled",
        "val, cohen",
        "val, nih",
        "val, adults",
        "val, pooled",
        "external",
        "pneumonia against normal, nih",
    ]
    assert by_folds["tasks"]["external"]["figures"]["images"] == 6
    assert set(by_folds["tasks"]["covid19 against pneumonia, cohen"]["baselines"]) == {"frame", "form", "thumbnail"}
    assert result["combination"]["members"] == ["one/main/folds-small", "two/main/folds-small"]
    assert result["combination"]["images"] == 150
    alone = by_folds["tasks"]["covid19 against the rest, pooled"]["figures"]["auc"]["value"]
    assert result["combination"]["tasks"]["covid19 against the rest, pooled"]["figures"]["auc"]["value"] > alone
    assert result["manifest"]["images"] == len(shown)
    for shape in (by_folds, result["combination"]):
        shape["tasks"] = {"external": shape["tasks"]["external"]}
    result["experiments"] = {"one/main/folds-small": by_folds}
    write_page(result, tmp_path / "out")


def test_the_paper_s_numbers_stand_beside_ours_or_beside_a_reason(tmp_path, collection, paper):
    folder, shown = collection
    path = experiment(tmp_path / "one" / "main" / "paper-small", shown, recipe(paper.name), "paper")
    result = evaluate([path], folder, tmp_path / "out", resamples=20)
    (table,) = result["experiments"]["one/main/paper-small"]["published"]
    area, accuracy, other, patients, other_class, images = table["numbers"]
    with (path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = roc_auc_score([row["label"] == "covid19" for row in rows], [float(row["p_covid19"]) for row in rows])
    assert area["ours"]["value"] == pytest.approx(expected)
    assert len(area["ours"]["of_runs"]["values"]) == 2
    assert accuracy["ours"]["n"] == len(rows) == 150
    assert (other["ours"], other["why"]) == (None, "of the variant other")
    assert patients["why"] == "not a number that scores give"
    assert other_class["why"] == "no image of class other_disease was tested"
    assert images["ours"]["value"] == sum(row["label"] == "covid19" for row in rows)
    assert result["combination"] is None
    assert len(list((tmp_path / "out").iterdir())) == 3, "the page and the comparison lie beside it"


def test_another_variant_gives_no_figure_of_the_papers_network_but_counts_its_images(tmp_path, collection, paper):
    folder, shown = collection
    path = experiment(tmp_path / "one" / "other" / "paper-small", shown, recipe(paper.name), "paper")
    write_record(path, read_record(path) | {"variant": "other"})
    (found,) = evaluate([path], folder, tmp_path / "out", resamples=20)["experiments"].values()
    area, _, of_other, *_, images = found["published"][0]["numbers"]
    assert (area["ours"], area["why"]) == (None, "of the variant main")
    assert of_other["ours"] is not None
    assert images["ours"] is not None


def test_a_training_that_changed_its_profile_says_so_in_its_title(tmp_path, collection, paper):
    folder, shown = collection
    path = experiment(tmp_path / "one" / "main" / "paper-small", shown, recipe(paper.name), "paper")
    *_, other = PAPERS.values()
    usual = other.recipe(other.variants[0], "small")
    record = read_record(path)
    write_record(path, record | {"differences": ["much smaller", *settings_changed(usual.but(epochs=99), "covid19")]})
    (found,) = evaluate([path], folder, tmp_path / "out", resamples=20)["experiments"].values()
    assert found["title"].endswith("small profile, changed")
    write_record(path, record)
    (found,) = evaluate([path], folder, tmp_path / "out", resamples=20)["experiments"].values()
    assert found["title"].endswith("small profile")


def test_two_experiments_of_one_name_are_refused(tmp_path, collection):
    folder, _ = collection
    with pytest.raises(ValueError, match="two experiments are called"):
        evaluate([tmp_path / "a", tmp_path / "a"], folder, tmp_path / "out")
    with pytest.raises(ValueError, match=r"record\.json is missing"):
        evaluate([tmp_path / "a"], folder, tmp_path / "out")


def test_an_experiment_of_another_manifest_is_refused(tmp_path, collection, paper):
    _, shown = collection
    path = experiment(tmp_path / "one" / "main" / "paper-small", shown, recipe(paper.name), "paper")
    write_manifest(shown[1:], tmp_path / "manifest.csv")
    with pytest.raises(ValueError, match="another manifest"):
        evaluate([path], tmp_path, tmp_path / "out")


def test_the_tested_images_are_shown_by_class_source_and_run():
    n = 200
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, n)
    p = rng.dirichlet((1, 1, 1), n)
    ids = np.array([str(i) for i in range(n)])
    rows = Rows(
        np.array([f"split{i % 2}" for i in range(n)]), ids, ids, ids, labels, CLASSES,
        {f"p_{name}": p[:, i] for i, name in enumerate(CLASSES)},
    )  # fmt: skip
    pictures = {i: Picture(i, Path(i), "train", "a" if int(i) < 50 else "b", i, CLASSES[labels[int(i)]]) for i in ids}
    record = {"task": "covid19", "recipe": {"score": "p_covid19"}}
    found = tested.figures(record, rows, pictures, resamples=20)
    assert found["positive"] == "covid19"
    assert found["figures"]["auc"]["value"] == roc_auc_score(labels == 2, p[:, 2])
    assert found["one_against_rest"]["normal"]["auc"]["value"] == roc_auc_score(labels == 0, p[:, 0])
    assert {name: group["images"] for name, group in found["sources"].items()} == {"a": 50, "b": 150}
    thresholds = {group["at"]["youden"]["thresholds"][0] for group in found["sources"].values()}
    assert thresholds == set(found["figures"]["at"]["youden"]["thresholds"])
    assert set(found["figures"]["histogram"]["counts"]) == set(CLASSES)
    assert len(found["of_runs"]["auc"]["values"]) == 2
    assert found["of_runs"]["accuracy"]["mean"] == pytest.approx(found["classes"]["accuracy"]["value"])
    assert tested.figures(record, rows.chosen(labels == 2), pictures) is None
    assert tested.asked_class(("normal", "anomalous"), "covid19") == "anomalous"


def test_the_scores_of_an_autoencoder_are_listed_by_finding():
    finding = np.array(["normal", "covid19", "pneumonia"] * 20)
    rng = np.random.default_rng(1)
    error = rng.random(60) + (finding == "covid19")
    ids = np.array([str(i) for i in range(60)])
    rows = Rows(ids, ids, ids, ids, np.zeros(60, dtype=int), ("normal",), {"error": error, "log_density": -error})
    pictures = {i: Picture(i, Path(i), "val", "nih", i, str(finding[int(i)])) for i in ids}
    found = anomaly(rows, pictures, resamples=20)
    expected = roc_auc_score(finding[finding != "pneumonia"] == "covid19", error[finding != "pneumonia"])
    for name in ("error", "log_density"):
        assert found["auc"][name]["covid19 against normal"]["value"] == expected
        assert set(found["scores"][name]) == {
            f"{where}/{what}" for where in ("nih", "all") for what in ("normal", "covid19", "pneumonia")
        }
    ill = found["scores"]["error"]["all/covid19"]
    assert ill["images"] == 20
    assert ill["quantiles"]["0.5"] == np.median(error[finding == "covid19"])
    assert ill["deviation"] == pytest.approx(np.std(error[finding == "covid19"], ddof=1))
