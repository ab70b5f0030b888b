"""Generated experiments of all five methods, through `export`, to what service answers."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from dicom_node.bundle import read_manifest
from dicom_node.combination import sigmoid
from dicom_node.domain import BundleError
from training.card import model_card
from training.data.manifest import read_manifest as read_pictures
from training.data.squares import pixels_of
from training.evaluation.statistics import operating_points
from training.export import export
from training.models.calibration import Platt, fit_platt
from training.models.registry import build
from training.papers import PAPERS
from training.records import plain, read_scores, write_record, write_scores
from training.scoring import load_network, round_to_half, score_pictures, transform_of
from training.shipped import probabilities_of
from training.targets import distribution
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
    ("cohen", "covid19", "train", 22),
    ("cohen", "pneumonia", "train", 21),
    ("nih", "normal", "train", 12),
    ("kermany", "pneumonia", "train", 10),
    ("cohen", "covid19", "val", 3),
    ("cohen", "pneumonia", "val", 2),
    ("nih", "normal", "val", 2),
    ("figure1", "covid19", "external", 2),
)
FEW = 20  # bootstrap draws


def no_forests(pictures, positive, folds):
    return {}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(7)
    with (folder / "manifest.csv").open("w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["image_id", "path", "split", "source", "patient_id", "finding", "view"])
        for source, finding, split, images in COLLECTION:
            for number in range(images):
                name = f"{source}-{finding}-{split}-{number}"
                Image.fromarray(rng.integers(0, 255, (90, 80), dtype=np.uint8)).save(folder / f"{name}.png")
                writer.writerow([name, f"{name}.png", split, source, name, finding, "PA"])
    return folder


def recipe_of_cheap(paper: str):
    variant, changes = CHEAP[paper]
    return PAPERS[paper].recipe(variant, "small").but(**changes)


def write_experiment(folder: Path, data: Path, paper: str, seed: int) -> Path:
    """What training would leave: random weights, and scores out of fold that know a little."""
    recipe = recipe_of_cheap(paper)
    torch.manual_seed(seed)
    network = build(recipe.architecture, recipe.options)
    if paper == "jahan":
        network.set_density(torch.randn(40, 128), 0.5, torch.zeros(128), torch.ones(128), torch.randn(16, 128), 0.5)
    final = folder / "final"
    final.mkdir(parents=True)
    state = {name: t.half() if t.is_floating_point() else t for name, t in round_to_half(network).state_dict().items()}
    safetensors.torch.save_file({name: t.contiguous() for name, t in state.items()}, final / "weights.safetensors")
    rng = np.random.default_rng(seed)
    rows = []
    inside = [picture for picture in read_pictures(data) if picture.split != "external"]
    for index, picture in enumerate(inside):
        drawn = {name: rng.normal(float(picture.finding == "covid19")) for name in network.score_names}
        rows.append({"run": f"fold{index % 5}", "image_id": picture.image_id, "label": "", **drawn})
    write_scores(folder, rows)
    runs = [{"name": f"fold{k}", "train": 1, "test": len(inside[k::5]), "seconds": 60} for k in range(5)]
    record = {
        "paper": paper,
        "variant": recipe.variant,
        "profile": "small",
        "protocol": "folds",
        "task": "covid19",
        "recipe": plain(recipe),
        "differences": ["Random weights."],
        "data": {"manifest_sha256": hashlib.sha256((data / "manifest.csv").read_bytes()).hexdigest(), "skipped": 0},
        "runs": [*runs, {"name": "final", "train": 65, "test": 9, "seconds": 60}],
        "seed": seed,
        "code": {"version": "0.1.0", "sha256": "0" * 64},
        "hardware": "2 CPU cores",
        "started": "2024-01-02T03:04:05+00:00",
        "seconds": 360,
    }
    write_record(folder, record)
    return folder


@pytest.fixture(scope="module")
def experiments(data, tmp_path_factory) -> list[Path]:
    work = tmp_path_factory.mktemp("work")
    return [write_experiment(work / paper, data, paper, seed) for seed, paper in enumerate(CHEAP)]


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
    """Of two images: an occlusion map is slow."""
    return ensemble.predict([pixels_of(picture) for picture in val[:2]])


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
    assert sum(row["split"] == "val" for row in rows.values()) == 7
    assert sum(row["split"] == "external" for row in rows.values()) == 2
    for prediction, picture in zip(predictions, val[:2], strict=True):
        row = rows[picture.image_id]
        assert float(row["probability"]) == pytest.approx(prediction.targets[0].probability, abs=1e-6)
        for member, scores in prediction.members.items():
            for name, value in scores.items():
                assert float(row[f"{member}.{name}"]) == pytest.approx(value, abs=1e-4)


def test_members_combine_as_the_manifest_says(bundle, predictions):
    manifest = read_manifest(bundle)
    (target,) = manifest.targets
    assert target.weights == pytest.approx(dict.fromkeys([member.name for member in manifest.members], 0.2))
    for prediction in predictions:
        logits = []
        for member in manifest.members:
            scaling = member.calibration["covid19"]
            logits.append(
                Platt(scaling.slope, scaling.intercept).logit(prediction.members[member.name][scaling.output])
            )
        assert prediction.targets[0].probability == pytest.approx(sigmoid(sum(logits) / 5), abs=1e-12)


def test_a_softmax_network_is_calibrated_on_its_log_odds(bundle):
    outputs = {m.architecture: m.calibration["covid19"].output for m in read_manifest(bundle).members}
    assert outputs["Zhang2020"] == "p_avg"
    assert outputs["Basu2020"] == outputs["Zhong2020"] == outputs["Minaee2020"] == "logit_covid19"
    assert outputs["Jahan2022"] in {"reconstruction_error", "log_density", "log_density_pca"}


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
        assert answer["probability"] == pytest.approx(float(expected[name]["probability"]), abs=1e-4)
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
        "basu": ["pneumonia", "other_disease", "covid19"],
        "jahan": ["reconstruction"],
        "zhong": ["covid19", "pneumonia"],
        "minaee": ["covid19"],
    }


def test_calibration_is_fitted_on_no_image_of_children_or_val(bundle, experiments, data):
    manifest = read_manifest(bundle)
    fitted = manifest.training["calibration"]
    assert (fitted["images"], fitted["positives"], fitted["left_out"]) == (55, 22, ["kermany"])
    assert {name: found.images for name, found in manifest.targets[0].reference.items()} == {
        "positive": 22,
        "negative": 33,
    }


def test_operating_points_and_reference_are_of_the_probabilities_out_of_fold(bundle, experiments, data):
    manifest = read_manifest(bundle)
    train = [p for p in read_pictures(data) if p.split == "train" and p.source != "kermany"]
    logits = np.zeros(len(train))
    for member, experiment in zip(manifest.members, experiments, strict=True):
        merged = {image: row for by_image in read_scores(experiment).values() for image, row in by_image.items()}
        scaling = member.calibration["covid19"]
        outputs = [merged[picture.image_id][scaling.output] for picture in train]
        logits += np.array([Platt(scaling.slope, scaling.intercept).logit(output) for output in outputs]) / 5
    probability = np.array([sigmoid(value) for value in logits])
    positive = np.array([picture.finding == "covid19" for picture in train])
    (target,) = manifest.targets
    for name, point in operating_points(probability, positive, 0.95).items():
        assert target.operating_points[name].model_dump() == pytest.approx(point)
    assert target.reference["positive"].quantiles["50"] == pytest.approx(np.median(probability[positive]))
    assert sum(target.reference["negative"].histogram) == 33


def test_the_mean_of_the_members_is_calibrated_as_a_whole(bundle, experiments, data):
    manifest = json.loads((bundle / "manifest.json").read_text())
    train = [p for p in read_pictures(data) if p.split == "train" and p.source != "kermany"]
    found = [
        {image: row for by_image in read_scores(experiment).values() for image, row in by_image.items()}
        for experiment in experiments
    ]
    names = [member["name"] for member in manifest["members"]]
    scores = [{name: by_id[p.image_id] for name, by_id in zip(names, found, strict=True)} for p in train]
    probability = probabilities_of(manifest, scores)
    again = fit_platt(np.log(probability / (1 - probability)), np.array([p.finding == "covid19" for p in train]))
    assert (again.slope, again.intercept) == pytest.approx((1.0, 0.0), abs=1e-6)


def test_a_distribution_of_known_numbers():
    found = distribution(np.array([0.0, 0.26, 0.5, 1.0]))
    assert found["images"] == 4
    assert (found["quantiles"]["0"], found["quantiles"]["50"], found["quantiles"]["100"]) == (0.0, 0.38, 1.0)
    assert [index for index, count in enumerate(found["histogram"]) if count] == [0, 5, 10, 19]


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
    # The bundle's calibration was fitted on the scores out of fold: there it proves nothing.
    assert evaluation["combination"]["tasks"]["covid19 against the rest, pooled"]["calibration"] is None
    assert evaluation["unreadable"] == 0
    assert (bundle / "evaluation.html").stat().st_size > 10_000


def test_the_manifest_says_where_the_weights_come_from(bundle, data):
    record = read_manifest(bundle).training
    assert record["data"]["images"]["cohen/covid19"] == 22
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
    for point in evaluation["operating_points"].values():
        assert f"{point['threshold']:.4f}" in after
    assert max(len(line) for line in card.splitlines() if not line.startswith("|")) <= 120


def test_the_card_says_where_a_member_answers_the_wrong_way_round(bundle, data):
    manifest = json.loads((bundle / "manifest.json").read_text())
    evaluation = json.loads((bundle / "evaluation.json").read_text())
    train = [picture for picture in read_pictures(data) if picture.split == "train"]
    scaling = manifest["members"][0]["calibration"]["covid19"]
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
    manifest["targets"][0]["weights"] = {manifest["members"][0]["name"]: 1.0}
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="SHA-256"):
        Ensemble.load(copy)


def test_a_fold_without_its_scores_is_refused(experiment, data, tmp_path):
    lines = (experiment / "scores.csv").read_text().splitlines()
    (experiment / "scores.csv").unlink()
    (experiment / "scores.csv").write_text("\n".join(line for line in lines if not line.startswith("fold3")) + "\n")
    refused([experiment], data, tmp_path / "out", "0 of the 14 images of fold3")


def test_one_missing_score_is_refused(experiment, data, tmp_path):
    lines = (experiment / "scores.csv").read_text().splitlines()
    (experiment / "scores.csv").unlink()
    (experiment / "scores.csv").write_text("\n".join(lines[:-1]) + "\n")
    refused([experiment], data, tmp_path / "out", "scores of 14 of the 15 images of fold1")


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


def test_images_that_cannot_be_read_are_named_and_refused(experiment, data, tmp_path, caplog):
    folder = Path(shutil.copytree(data, tmp_path / "data", copy_function=os.link))
    broken = folder / "cohen-covid19-val-1.png"
    broken.unlink()
    broken.write_bytes(b"no picture")
    refused([experiment], folder, tmp_path / "out", "1 of 9 images cannot be read")
    assert "image cohen-covid19-val-1 is left out" in caplog.text


def test_a_network_is_not_taken_twice(experiment, data, tmp_path):
    refused([experiment, experiment], data, tmp_path / "out", "two of the experiments are jahan")


def test_a_name_that_is_no_file_name_is_refused(experiment, data, tmp_path):
    refused([experiment], data, tmp_path / "out", "'a/b' cannot name", name="a/b")


def test_a_bundle_is_not_written_over(experiment, data, bundle):
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="holds a bundle already"):
        export([experiment], data, bundle, name="five", release="0.2", forests=no_forests, resamples=FEW)
    assert (bundle / "manifest.json").read_bytes() == before
