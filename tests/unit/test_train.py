import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from training.__main__ import app, main
from training.data.manifest import read_manifest
from training.papers import PAPERS
from training.records import read_labels, read_record, read_scores, recipe_of
from training.scoring import load_network, score_pictures, transform_of
from training.train import train

STRATA = ("cohen/covid19", "cohen/pneumonia", "nih/normal", "nih/pneumonia", "kermany/normal", "kermany/pneumonia")
# The autoencoder is the smallest of the five: what is tested here is the same for all.
RECIPE = PAPERS["jahan"].recipe("paper", "small").but(epochs=2, batch=8, images_per_epoch=16)


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """Noise in the place of images: 10 of each stratum for training, 5 for validation, 3 of figure1."""
    folder = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(16)
    counts = [(stratum, split, n) for stratum in STRATA for split, n in (("train", 10), ("val", 5))]
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "path", "split", "source", "patient_id", "finding", "view", "labels"])
        for stratum, split, count in [*counts, ("figure1/covid19", "external", 3)]:
            source, finding = stratum.split("/")
            for i in range(count):
                name = f"{source}-{finding}-{split}-{i}"
                Image.fromarray(rng.integers(0, 256, (90, 80), dtype=np.uint8)).save(folder / f"{name}.png")
                labels = "Pneumonia" if finding == "pneumonia" else ""
                writer.writerow([name, f"{name}.png", split, source, name, finding, "PA", labels])
    return folder


def run(collection: Path, workdir: Path, recipe=RECIPE, **options) -> Path:
    options = {"protocol": "folds", "device": "cpu", "progress": False} | options
    return train(recipe, collection, workdir, **options)


@pytest.fixture(scope="module")
def experiment(collection, tmp_path_factory) -> Path:
    return run(collection, tmp_path_factory.mktemp("work"))


def test_the_record_says_what_was_done(experiment):
    record = read_record(experiment)
    assert experiment.parts[-3:] == ("jahan", "paper", "folds-small")
    assert recipe_of(record) == RECIPE
    assert [figures["name"] for figures in record["runs"]] == ["fold0", "fold1", "fold2", "fold3", "fold4", "final"]
    assert record["data"]["images"]["nih/normal"] == 15
    *papers, changed = record["differences"]
    assert papers == list(PAPERS["jahan"].differences["small"])
    assert changed == (
        "Changed for this training: epochs 2, the profile's is 25; batch 8, the profile's is 32; "
        "images_per_epoch 16, the profile's is 2000."
    )
    assert record["data"]["skipped"] == 0
    assert all(set(figures["train_by_class"]) == {"normal"} for figures in record["runs"])
    assert len(record["code"]["sha256"]) == 64


def test_every_image_is_scored_by_a_network_that_never_saw_it(experiment, collection):
    scores, labels = read_scores(experiment), read_labels(experiment)
    split = {p.image_id: p.split for p in read_manifest(collection)}
    five = [name for fold in range(5) for name in scores[f"fold{fold}"]]
    assert len(five) == len(set(five))
    assert {split[name] for name in five} == {"train", "val"}
    assert {split[name] for name in scores["final"]} == {"val", "external"}
    assert set(labels["fold0"].values()) <= set(RECIPE.classes)


def test_the_scores_are_those_of_the_weights_as_they_are_kept(experiment, collection):
    kept = read_scores(experiment)["final"]
    pictures = [p for p in read_manifest(collection) if p.image_id in kept][:7]
    found = score_pictures(load_network(experiment, "final"), transform_of(RECIPE), pictures)
    for picture, scores in zip(pictures, found, strict=True):
        assert scores == pytest.approx(kept[picture.image_id], rel=1e-6)


def test_a_finished_experiment_is_not_trained_again_by_accident(experiment, collection):
    with pytest.raises(ValueError, match=r"already exists; go on with it by --resume, or give another --workdir"):
        run(collection, experiment.parents[2])


def test_a_resumed_finished_experiment_stays_as_it_is(experiment, collection):
    before = [(experiment / name).read_bytes() for name in ("scores.csv", "record.json")]
    assert run(collection, experiment.parents[2], resume=True) == experiment
    assert [(experiment / name).read_bytes() for name in ("scores.csv", "record.json")] == before


COMMAND = """
import sys
from pathlib import Path
from training.papers import PAPERS
from training.train import train
recipe = PAPERS["jahan"].recipe("paper", "small").but(epochs=2, batch=8, images_per_epoch=16)
train(recipe, Path(sys.argv[1]), Path(sys.argv[2]), protocol="folds", device="cpu", resume=True, progress=False)
"""


def test_killed_and_resumed_it_gives_the_same_numbers(experiment, collection, tmp_path):
    command = [sys.executable, "-c", COMMAND, str(collection), str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("jahan/paper/folds-small/fold1/last.ckpt")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    killed = tmp_path / "jahan" / "paper" / "folds-small"
    assert not (killed / "record.json").exists()
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert (killed / "scores.csv").read_bytes() == (experiment / "scores.csv").read_bytes()


def spoilt(collection: Path, folder: Path, *, copies: int) -> Path:
    """The collection with one broken image, and so many more images."""
    folder.mkdir()
    for file in collection.iterdir():
        (folder / file.name).symlink_to(file)
    broken = folder / "nih-normal-train-0.png"
    broken.unlink()
    broken.write_bytes(b"no image")
    rows = (collection / "manifest.csv").read_text().splitlines()
    more = [f"more{i},nih-normal-train-1.png,train,nih,more{i},normal,PA," for i in range(copies)]
    (folder / "manifest.csv").unlink()
    (folder / "manifest.csv").write_text("\n".join([*rows, *more]) + "\n")
    return folder


def test_an_image_that_cannot_be_read_is_named_left_out_and_counted(collection, tmp_path, caplog):
    data = spoilt(collection, tmp_path / "images", copies=20)
    recipe = RECIPE.but(epochs=1, images_per_epoch=8)
    where = run(data, tmp_path / "work", recipe)
    assert read_record(where)["data"]["skipped"] == 1
    assert "nih-normal-train-0" in caplog.text
    assert all("nih-normal-train-0" not in by_image for by_image in read_scores(where).values())


def test_more_than_one_in_a_hundred_that_cannot_be_read_are_refused(collection, tmp_path):
    data = spoilt(collection, tmp_path / "images", copies=0)
    with pytest.raises(ValueError, match=r"nih-normal-train-0"):
        run(data, tmp_path / "work", RECIPE.but(epochs=1, images_per_epoch=8))


def test_other_settings_or_images_are_not_gone_on_with(experiment, collection, tmp_path):
    workdir = experiment.parents[2]
    with pytest.raises(ValueError, match="was trained by other settings or on other images"):
        run(collection, workdir, RECIPE.but(epochs=3), resume=True)
    with pytest.raises(ValueError, match="was trained by other settings or on other images"):
        run(spoilt(collection, tmp_path / "images", copies=1), workdir, resume=True)


def test_a_refused_training_leaves_no_folder_behind(collection, tmp_path):
    with pytest.raises(ValueError, match="cuda:9"):
        run(collection, tmp_path, device="cuda:9")
    assert not list(tmp_path.iterdir())


def invoke(*arguments: str):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_trains_by_the_profile(collection, tmp_path):
    settings = ["--set", "epochs=1", "--set", "images_per_epoch=8", "--device", "cpu"]
    result = invoke(
        "train", "jahan", "--data", collection, "--workdir", tmp_path, "--profile", "small", "--seed", 7, *settings
    )
    assert result.exit_code == 0, result.output
    record = read_record(tmp_path / "jahan" / "paper" / "paper-small")
    assert (record["seed"], record["recipe"]["epochs"], record["protocol"]) == (7, 1, "paper")
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zhang", "--variant", "three-heads"], "three-heads"),
        (["jahan", "--device", "cuda:9"], "device cuda:9 is not there: torch sees"),
        (["jahan", "--set", "epoch=3"], "epoch"),
        (["jahan", "--set", "epochs"], "NAME=VALUE"),
        (["jahan", "--set", "epochs=many"], "epochs is a int, such as 25"),
        (["zhang", "--set", "augmentation={}"], "augmentation is a Augmentation"),
        (["zhong", "--profile", "robust"], "profile robust is trained on all images at hand: give --protocol folds"),
        (["basu", "--protocol", "folds", "--task", "pneumonia"], "basu has the classes"),
        (["jahan", "--set", "optimiser=adamax"], "optimiser 'adamax' is not known; known: adam, adamw, nadam, sgd"),
        (["jahan", "--set", "schedule=never"], "schedule 'never' is not known; known: constant"),
        (["zhang", "--set", "epochs=1"], "warmup_epochs 1: the training has 1 epochs in all"),
        (["jahan", "--set", "loss=none"], "loss 'none' is not known; known: zhang"),
        (["jahan", "--set", "finish=line"], "finish 'line' is not known; known: kernel_density"),
        (["jahan", "--set", 'optimiser_options={"speed": 1}'], "optimiser_options do not fit optimiser 'adam'"),
        (["zhang", "--set", "pretraining.optimiser=adamax"], "optimiser 'adamax' is not known"),
        (["jahan", "--set", "balance=sources"], "balance 'sources' is not known; known: none, class, source and class"),
        (["jahan", "--set", "keep=best"], "keep 'best' is not known; known: last, best validation accuracy"),
        (["jahan", "--set", "keep=best validation accuracy"], "run holdout has no validation images"),
        (["jahan", "--set", "batch=0"], "batch 0: at least 1 is needed"),
        (["jahan", "--device", "cuda:x"], "device 'cuda:x' is not known; use auto, cpu, cuda or cuda:N"),
        (["jahan", "--workdir", "/dev/null"], "Not a directory: '/dev/null/"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(collection, tmp_path, capsys, monkeypatch, arguments, message):
    given = ["train", "--data", str(collection), "--workdir", str(tmp_path), "--profile", "small", *arguments]
    monkeypatch.setattr(sys, "argv", ["training", *given])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert "Traceback" not in "".join(lines)


def test_a_manifest_without_a_column_is_refused(tmp_path):
    (tmp_path / "manifest.csv").write_text("image_id,path\n")
    with pytest.raises(ValueError, match=r"manifest\.csv: column split is missing"):
        run(tmp_path, tmp_path / "work")
