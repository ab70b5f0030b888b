"""Generated experiments of all five methods, through `export`, to what service answers."""

import csv
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from sklearn.metrics import roc_auc_score

from dicom_node.bundle import read_manifest
from dicom_node.combination import answers, calibrated, log_odds, sigmoid
from dicom_node.domain import BundleError
from dicom_node.evaluation.statistics import operating_points
from tests.experiment_factories import write_collection, write_experiment
from training.card import model_card
from training.data.manifest import read_manifest as read_pictures
from training.data.squares import pixels_of
from training.evaluation.parts import nested
from training.export import export, out_of_fold, read_member, readings
from training.models.calibration import fit_platt
from training.papers import PAPERS
from training.records import write_record
from training.scoring import load_network, score_pictures, transform_of
from workers.ensemble import Ensemble

# The cheapest network of each method, at the smallest input that it takes.
CHEAP = {
    "zhang": ("both", {"resize": 72, "crop": 64}),
    "basu": ("resnet50", {"resize": 64, "crop": 64}),
    "jahan": ("paper", {"options": {"references": 40}}),
    "zhong": ("adam", {}),
    "minaee": ("squeezenet", {"resize": 64, "crop": 64}),
}
COLLECTION = (
    ("cohen", "covid19", "train", 30),
    ("cohen", "pneumonia", "train", 30),
    ("nih", "normal", "train", 30),
    ("nih", "pneumonia", "train", 30),
    ("kermany", "pneumonia", "train", 10),
    ("cohen", "covid19", "val", 3),
    ("cohen", "pneumonia", "val", 2),
    ("nih", "normal", "val", 20),
    ("nih", "pneumonia", "val", 20),
    ("figure1", "covid19", "external", 2),
)
FEW = 20  # bootstrap draws


def no_forests(pictures, positive, folds):
    return {}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_collection(tmp_path_factory.mktemp("data"), COLLECTION)


def recipe_of_cheap(paper: str):
    variant, changes = CHEAP[paper]
    return PAPERS[paper].recipe(variant, "small").but(**changes)


@pytest.fixture(scope="module")
def experiments(data, tmp_path_factory) -> list[Path]:
    work = tmp_path_factory.mktemp("work")
    return [write_experiment(work / paper, data, recipe_of_cheap(paper), seed) for seed, paper in enumerate(CHEAP)]


@pytest.fixture(scope="module")
def bundle(experiments, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "five"
    export(experiments, data, out, name="five", release="0.1", forests=no_forests, resamples=FEW)
    return out


@pytest.fixture(scope="module")
def ensemble(bundle) -> Ensemble:
    return Ensemble.load(bundle)


@pytest.fixture(scope="module")
def val(data) -> list:
    return [picture for picture in read_pictures(data) if picture.split == "val"]


@pytest.fixture(scope="module")
def predictions(ensemble, val) -> list:
    """Of two images, flagged: an occlusion map is slow, and not drawn of others."""
    return ensemble.predict_images([pixels_of(picture) for picture in val[:2]], {"covid19": 0.0})


@pytest.fixture(scope="module")
def known(experiments, data) -> tuple[list, list]:
    """The images of `train`, and all members' scores of each out of fold."""
    train = [picture for picture in read_pictures(data) if picture.split == "train"]
    return train, scores_of(experiments, data, train)


def scores_of(experiments, data, pictures) -> list:
    sha256 = hashlib.sha256((data / "manifest.csv").read_bytes()).hexdigest()
    return out_of_fold([read_member(experiment, sha256) for experiment in experiments], pictures)


def answered(bundle, scores, question) -> np.ndarray:
    """The manifest's own probability of each image."""
    manifest = read_manifest(bundle)
    return np.array([sigmoid(answers(manifest, each)[question].logit) for each in scores])


@pytest.fixture
def experiment(experiments, tmp_path) -> Path:
    """The autoencoder's, to be spoilt; files are links, to be replaced, never written to."""
    return Path(shutil.copytree(experiments[2], tmp_path / "jahan", copy_function=os.link))


def spoil(experiment: Path, edit) -> None:
    record = json.loads((experiment / "record.json").read_text())
    edit(record)
    write_record(experiment, record)


def refused(experiments: list[Path], data: Path, out: Path, *words: str, name: str = "five") -> None:
    with pytest.raises(ValueError, match=words[0]) as caught:
        export(experiments, data, out, name=name, release="0.1", forests=no_forests, resamples=FEW)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert not (out / "manifest.json").exists()


def test_service_gives_the_scores_of_training(predictions, val, experiments):
    for paper, experiment in zip(CHEAP, experiments, strict=True):
        recipe = recipe_of_cheap(paper)
        trained = score_pictures(load_network(experiment, "final"), transform_of(recipe), val[:2])
        for prediction, expected in zip(predictions, trained, strict=True):
            (found,) = (scores for name, scores in prediction.members.items() if name.startswith(paper))
            assert found == pytest.approx(expected, abs=1e-4)


def test_the_bundle_holds_the_scores_that_service_gives(bundle, predictions, val):
    with (bundle / "scores.csv").open(newline="") as text:
        rows = {row["image_id"]: row for row in csv.DictReader(text)}
    assert sum(row["split"] == "val" for row in rows.values()) == 45
    assert sum(row["split"] == "external" for row in rows.values()) == 2
    for prediction, picture in zip(predictions, val[:2], strict=True):
        row = rows[picture.image_id]
        assert [found.target for found in prediction.targets] == ["covid19", "pneumonia", "abnormal"]
        for found in prediction.targets:
            assert float(row[found.target]) == pytest.approx(found.probability, abs=1e-6)
        for member, scores in prediction.members.items():
            for name, value in scores.items():
                assert float(row[f"{member}.{name}"]) == pytest.approx(value, abs=1e-4)


def test_members_combine_as_the_manifest_says(bundle, predictions):
    manifest = read_manifest(bundle)
    covid19, _, abnormal = manifest.targets
    assert set(covid19.weights) == {"zhang", "basu-resnet50", "zhong", "minaee-squeezenet"}
    assert set(abnormal.weights) == {"basu-resnet50", "zhong", "jahan"}

    def mean(target, outputs):
        each = {member.name: member.calibration for member in manifest.members}
        logits = {name: calibrated(each[name][target.name], outputs[name]) for name in target.weights}
        return sum(target.weights[name] * logits[name] for name in logits) / sum(target.weights.values())

    for prediction in predictions:
        found = {one.target: one.probability for one in prediction.targets}
        logit = abnormal.scaling.slope * mean(abnormal, prediction.members) + abnormal.scaling.intercept
        assert found["abnormal"] == pytest.approx(sigmoid(logit), abs=1e-12)
        both = sigmoid(mean(covid19, prediction.members)) * sigmoid(logit - log_odds(covid19.condition.threshold))
        assert found["covid19"] == pytest.approx(
            sigmoid(covid19.scaling.slope * log_odds(both) + covid19.scaling.intercept), abs=1e-9
        )


def test_every_member_is_read_by_what_it_was_taught(bundle):
    read = {
        member.architecture: {name: (one.output, one.over) for name, one in member.calibration.items()}
        for member in read_manifest(bundle).members
    }
    assert read["Zhang2020"] == {"covid19": ("p_avg", "")}
    assert read["Minaee2020"] == {"covid19": ("logit_covid19", "")}
    assert read["Basu2020"] == read["Zhong2020"]
    assert read["Basu2020"]["covid19"] == ("p_covid19", "p_pneumonia")
    assert read["Basu2020"]["abnormal"] == ("logit_normal", "")
    assert read["Jahan2022"] == dict.fromkeys(("pneumonia", "abnormal"), ("reconstruction_error", ""))


def test_only_a_network_that_tells_no_classes_may_be_missing(bundle):
    assert {m.architecture for m in read_manifest(bundle).members if not m.required} == {"Jahan2022"}


def test_the_command_line_gives_the_evaluations_scores(bundle, data):
    with (bundle / "scores.csv").open(newline="") as text:
        expected = {row["image_id"]: row for row in csv.DictReader(text)}
    asked = list(expected)[:2]
    done = subprocess.run(
        [sys.executable, "-m", "dicom_node", "screen", "--json", *(str(data / f"{name}.png") for name in asked)],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
        env=os.environ | {"DICOM_NODE_BUNDLE": str(bundle)},
    )
    answers = {Path(line["path"]).stem: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(answers) == asked
    for name, answer in answers.items():
        assert answer["probability"] == answer["targets"]["covid19"]["probability"]
        for question, found in answer["targets"].items():
            assert found["probability"] == pytest.approx(float(expected[name][question]), abs=1e-4)
        for member, scores in answer["members"].items():
            for score, value in scores.items():
                assert value == pytest.approx(float(expected[name][f"{member}.{score}"]), rel=1e-4, abs=1e-4)


def test_every_member_draws_its_maps(predictions):
    drawn: dict[str, list[str]] = {}
    for found in predictions[0].maps:
        drawn.setdefault(found.member.partition("-")[0], []).append(found.name)
        assert found.pixels.dtype == np.uint8
    assert drawn == {
        "zhang": ["classification", "anomaly"],
        "basu": ["covid19"],
        "jahan": ["reconstruction"],
        "zhong": ["covid19"],
        "minaee": ["covid19"],
    }


def test_calibration_is_fitted_on_no_image_of_children_or_val(bundle):
    manifest = read_manifest(bundle)
    fitted = manifest.training["calibration"]
    assert (fitted["images"], fitted["positives"], fitted["left_out"]) == (120, 30, ["kermany"])
    assert [{name: found.images for name, found in target.reference.items()} for target in manifest.targets] == [
        {"positive": 30, "negative": 90},
        {"positive": 30, "negative": 30},  # of the one collection that holds both
        {"positive": 30, "negative": 30},
    ]


def test_nothing_of_val_changes_what_is_fitted(bundle, experiments, data, tmp_path):
    """Other scores out of fold, and other findings, of images of `val`: the manifest keeps every number."""
    folder = Path(shutil.copytree(data, tmp_path / "data", copy_function=os.link))
    text = (data / "manifest.csv").read_text()
    (folder / "manifest.csv").unlink()
    turned = text.replace("val,nih,nih-normal", "val,nih,x-nih-normal")
    rows = [row.replace(",normal,", ",covid19,") if ",val," in row else row for row in turned.splitlines()]
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    sha256 = hashlib.sha256((folder / "manifest.csv").read_bytes()).hexdigest()
    copies = []
    for experiment in (experiments[2], experiments[4]):
        copy = Path(shutil.copytree(experiment, tmp_path / experiment.name, copy_function=os.link))
        lines = (copy / "scores.csv").read_text().splitlines()
        (copy / "scores.csv").unlink()
        lines = [",".join([*line.split(",")[:3], *reversed(line.split(",")[3:])]) if "-val-" in line else line
                 for line in lines]  # fmt: skip
        (copy / "scores.csv").write_text("\n".join(lines) + "\n")
        spoil(copy, lambda record: record["data"].update(manifest_sha256=sha256))
        copies.append(copy)
    fitted = []
    for runs, where, out in ((copies, folder, "one"), ((experiments[2], experiments[4]), data, "other")):
        export(runs, where, tmp_path / out, name="two", release="0.1", forests=no_forests, resamples=FEW)
        fitted.append(read_manifest(tmp_path / out))
    one, other = fitted
    assert one.targets == other.targets
    assert one.members == other.members
    evaluations = [json.loads((tmp_path / out / "evaluation.json").read_text()) for out in ("one", "other")]
    assert evaluations[0]["combination"] != evaluations[1]["combination"], "they do change what is measured"


@pytest.mark.parametrize("question", ["covid19", "pneumonia", "abnormal"])
def test_operating_points_and_reference_are_of_the_probabilities_out_of_fold(bundle, known, question):
    sources = {"covid19": ("cohen", "nih")}.get(question, ("nih",))
    those = [(p, each) for p, each in zip(*known, strict=True) if p.source in sources]
    probability = answered(bundle, [each for _, each in those], question)
    positive = np.array([p.finding == "covid19" or (p.finding != "normal" and question != "covid19") for p, _ in those])
    (target,) = (target for target in read_manifest(bundle).targets if target.name == question)
    for name, expected in operating_points(probability, positive, 0.95).items():
        found = target.operating_points[name]
        assert found.model_dump(include=set(expected)) == pytest.approx(expected)
        assert found.sensitivity_interval[0] < found.sensitivity <= found.sensitivity_interval[1]
    assert target.reference["positive"].quantiles["50"] == pytest.approx(np.median(probability[positive]))
    assert sum(target.reference["negative"].histogram) == (~positive).sum()
    again = fit_platt(np.log(probability / (1 - probability)), positive)
    assert (again.slope, again.intercept) == pytest.approx((1.0, 0.0), abs=1e-6), "calibrated as a whole"


def test_figures_out_of_fold_are_of_what_the_other_folds_fitted(bundle, experiments, data):
    evaluation = json.loads((bundle / "evaluation.json").read_text())
    tasks = evaluation["combination"]["tasks"]
    asked = [picture for picture in read_pictures(data) if picture.split in ("train", "val")]
    sha256 = hashlib.sha256((data / "manifest.csv").read_bytes()).hexdigest()
    members = [read_member(experiment, sha256) for experiment in experiments]
    runs = np.array([f"fold{index % 5}" for index in range(len(asked))])
    found = nested(readings(members), asked, out_of_fold(members, asked), runs)
    for name, question, source in (
        ("covid19 against pneumonia, cohen", "covid19", "cohen"),
        ("pneumonia against normal, nih", "abnormal", "nih"),
    ):
        here = [i for i, picture in enumerate(asked) if picture.source == source]
        truth = [asked[i].finding == name.partition(" ")[0] for i in here]
        area = roc_auc_score(truth, [found[i][question].logit for i in here])
        assert tasks[name]["figures"]["auc"]["value"] == pytest.approx(area)
        assert tasks[name]["calibration"]["images"] == len(here), "other folds fitted it, so that it is worth a look"
    thresholds = tasks["covid19 against pneumonia, cohen"]["figures"]["at"]["youden"]["thresholds"]
    assert 1 < len(thresholds) <= 5
    assert {row["question"] for row in evaluation["members"]} == {"covid19", "abnormal", "pneumonia"}


@pytest.mark.parametrize(("question", "prefix"), [("abnormal", ""), ("pneumonia", "by the answer to pneumonia: ")])
def test_what_is_shipped_is_asked_for_pneumonia_on_val_too(bundle, question, prefix):
    tasks = json.loads((bundle / "evaluation.json").read_text())["combination"]["tasks"]
    task = tasks[f"val, {prefix}pneumonia against normal, nih"]
    assert task["title"] == "Pneumonia against normal within nih, split val, network of split train"
    with (bundle / "scores.csv").open(newline="") as text:
        rows = [row for row in csv.DictReader(text) if (row["split"], row["source"]) == ("val", "nih")]
    area = roc_auc_score([row["finding"] == "pneumonia" for row in rows], [float(row[question]) for row in rows])
    assert task["figures"]["auc"]["value"] == pytest.approx(area)
    points = next(target for target in read_manifest(bundle).targets if target.name == question).operating_points
    assert [at["thresholds"] for at in task["figures"]["at"].values()] == [
        [pytest.approx(points["balanced"].threshold)],
        [pytest.approx(points["high-sensitivity"].threshold)],
    ]


def test_the_cards_table_of_covid19_on_val_holds_no_other_question(bundle):
    card = (bundle / "MODEL_CARD.md").read_text()
    table = card.partition("### COVID-19 against the rest, `val`\n")[2].partition("\n###")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][2:]
    assert [row for row in rows if row] == ["cohen", "nih", "adults", "pooled"]


def test_val_is_held_against_the_manifests_thresholds(bundle):
    evaluation = json.loads((bundle / "evaluation.json").read_text())
    points = read_manifest(bundle).targets[0].operating_points
    for name in ("val, cohen", "val, pooled", "external"):
        at = evaluation["combination"]["tasks"][name]["figures"]["at"]
        assert [found["thresholds"] for found in at.values()] == [
            [pytest.approx(points["balanced"].threshold)],
            [pytest.approx(points["high-sensitivity"].threshold)],
        ]
    assert evaluation["combination"]["tasks"]["val, pooled"]["calibration"]["images"] > 0
    # Out of fold, straight lines are those of other folds.
    assert evaluation["combination"]["tasks"]["covid19 against the rest, pooled"]["calibration"]["images"] == 175
    assert evaluation["unreadable"] == 0
    assert (bundle / "evaluation.html").stat().st_size > 10_000


def test_the_manifest_says_where_the_weights_come_from(bundle, data):
    record = read_manifest(bundle).training
    assert record["data"]["images"]["cohen/covid19"] == 30
    assert record["data"]["manifest_sha256"] == hashlib.sha256((data / "manifest.csv").read_bytes()).hexdigest()
    for member in record["members"].values():
        assert {"command", "recipe", "differences", "seed", "code", "hardware", "started", "seconds"} <= set(member)
    command = next(member["command"] for name, member in record["members"].items() if name.startswith("zhang"))
    assert command.endswith(
        "--protocol folds --task covid19 --seed 0 --data DIR --workdir DIR --set resize=72 --set crop=64"
    )
    for member in read_manifest(bundle).members:
        assert member.citation == next(p.citation for n, p in PAPERS.items() if member.name.startswith(n))


def test_the_card_has_its_sections_and_says_the_honest_figure_first(bundle):
    card = (bundle / "MODEL_CARD.md").read_text()
    sections = [line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")]
    assert sections == [
        "Model details",
        "Intended use",
        "Factors",
        "Metrics",
        "Evaluation data",
        "Training data",
        "Quantitative analyses",
        "Ethical considerations",
        "Caveats and recommendations",
    ]
    evaluation = json.loads((bundle / "evaluation.json").read_text())
    honest = evaluation["combination"]["tasks"]["covid19 against pneumonia, cohen"]["figures"]
    before, _, after = card.partition("## Model details")
    assert f"AUC {honest['auc']['value']:.3f}" in before
    assert "within cohen" in before
    assert "not a medical device" in after
    assert "differs from its paper: Random weights." in after
    for target in read_manifest(bundle).targets:
        for point in target.operating_points.values():
            assert f"{point.threshold:.4f}" in after
    assert "3 questions are answered" in after
    assert "if the image is abnormal" in after
    assert max(len(line) for line in card.splitlines() if not line.startswith("|")) <= 120


def test_the_card_says_where_a_member_answers_the_wrong_way_round(bundle, data):
    manifest = json.loads((bundle / "manifest.json").read_text())
    evaluation = json.loads((bundle / "evaluation.json").read_text())
    train = [picture for picture in read_pictures(data) if picture.split == "train"]
    scaling = manifest["members"][0]["calibration"]["covid19"]
    # Asked of abnormal images only, another sign than against all else is no contradiction.
    for sign in (1, -1):
        scaling["slope"] = math.copysign(scaling["slope"], sign)
        assert "the wrong way round" not in model_card(manifest, evaluation, train)
    del manifest["targets"][0]["condition"]
    scaling["slope"] = abs(scaling["slope"])
    assert "zhang answers the wrong way round" not in model_card(manifest, evaluation, train)
    scaling["slope"] *= -1
    assert "zhang answers the wrong way round" in model_card(manifest, evaluation, train)


def test_no_file_is_larger_than_it_has_to_be(bundle):
    for part in (part for member in read_manifest(bundle).members for part in member.weights):
        size = (bundle / part.file).stat().st_size
        assert size <= 20_000_000 or len(safetensors.torch.load_file(bundle / part.file)) == 1


def test_a_changed_byte_is_refused(bundle, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy", copy_function=os.link))
    path = copy / read_manifest(copy).members[2].weights[0].file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["members"] = [manifest["members"][2]]
    manifest["targets"] = [manifest["targets"][2] | {"weights": {manifest["members"][0]["name"]: 1.0}}]
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="SHA-256"):
        Ensemble.load(copy)


def test_a_fold_without_its_scores_is_refused(experiment, data, tmp_path):
    lines = (experiment / "scores.csv").read_text().splitlines()
    (experiment / "scores.csv").unlink()
    (experiment / "scores.csv").write_text("\n".join(line for line in lines if not line.startswith("fold3")) + "\n")
    refused([experiment], data, tmp_path / "out", "0 of the 35 images of fold3")


def test_one_missing_score_is_refused(experiment, data, tmp_path):
    lines = (experiment / "scores.csv").read_text().splitlines()
    (experiment / "scores.csv").unlink()
    (experiment / "scores.csv").write_text("\n".join(lines[:-1]) + "\n")
    refused([experiment], data, tmp_path / "out", "scores of 34 of the 35 images of fold4")


def test_an_experiment_without_folds_is_refused(experiment, data, tmp_path):
    spoil(experiment, lambda record: record.update(protocol="paper"))
    refused([experiment], data, tmp_path / "out", "--protocol folds")


def test_an_experiment_of_other_images_is_refused(experiment, data, tmp_path):
    spoil(experiment, lambda record: record["data"].update(manifest_sha256="0" * 64))
    refused([experiment], data, tmp_path / "out", "another manifest")


def test_an_experiment_without_a_final_network_is_refused(experiment, data, tmp_path):
    (experiment / "final" / "weights.safetensors").unlink()
    refused([experiment], data, tmp_path / "out", "weights.safetensors is missing")


def test_an_unfinished_training_is_refused(data, tmp_path):
    (tmp_path / "nothing").mkdir()
    refused([tmp_path / "nothing"], data, tmp_path / "out", "record.json is missing")


def test_images_that_cannot_be_read_are_named_and_refused(experiments, data, tmp_path, caplog):
    folder = Path(shutil.copytree(data, tmp_path / "data", copy_function=os.link))
    broken = folder / "cohen-covid19-val-1.png"
    broken.unlink()
    broken.write_bytes(b"no picture")
    refused([experiments[4]], folder, tmp_path / "out", "1 of 47 images cannot be read")
    assert "image cohen-covid19-val-1 is left out" in caplog.text


def test_members_that_do_not_answer_for_covid19_are_refused(experiment, data, tmp_path):
    refused([experiment], data, tmp_path / "out", "none of jahan answers covid19")


def test_a_network_is_not_taken_twice(experiment, data, tmp_path):
    refused([experiment, experiment], data, tmp_path / "out", "two of the experiments are jahan")


def test_a_name_that_is_no_file_name_is_refused(experiment, data, tmp_path):
    refused([experiment], data, tmp_path / "out", "'a/b' cannot name", name="a/b")


def test_a_bundle_is_not_written_over(experiment, data, bundle):
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="holds a bundle already"):
        export([experiment], data, bundle, name="five", release="0.2", forests=no_forests, resamples=FEW)
    assert (bundle / "manifest.json").read_bytes() == before
