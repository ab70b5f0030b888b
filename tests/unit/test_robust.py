"""Profile robust: what its networks read, learn and answer."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from tests.unit.test_networks import quick
from training.__main__ import app
from training.card import trained
from training.data.manifest import Picture, read_manifest
from training.data.squares import pixels_of
from training.evaluation import baselines
from training.evaluation.rows import answer
from training.experiment import plan
from training.export import provenance, read_member
from training.finishing import balanced, last_layer, regression
from training.fit import Images
from training.frozen import kept_features
from training.localise import Localiser
from training.losses import LOSSES
from training.models.minaee import Minaee2020
from training.models.registry import build
from training.models.zhang import Scores, classification_loss, deviation_loss
from training.papers import PAPERS, robust
from training.records import read_record, read_scores
from training.scoring import load_network, score_pictures, transform_of
from training.shipped import load_shipped
from training.train import check

LITE = PAPERS["minaee"].recipe("efficientnet_lite0", robust.PROFILE)
INPUTS = torch.zeros(4, 1, 4, 4)


def picture(number: int, source: str = "cohen", finding: str = "covid19", split: str = "train") -> Picture:
    return Picture(f"i{number}", Path("a.png"), split, source, f"p{number}", finding, "PA")


# What the last layer reads


def test_the_last_layer_reads_mean_and_deviation_of_each_channel_of_each_level():
    network = quick("Minaee2020", backbone="efficientnet_lite0", levels=[2, 5])
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features = network.embed(x)["features"]
    second = network.backbone.features[:3](x)
    fifth = network.backbone.features[3:](second)
    expected = [part for one in (second, fifth) for part in (one.mean((2, 3)), one.std((2, 3), correction=0))]
    assert features.shape == (2, 2 * (24 + 40), 1, 1)
    assert torch.allclose(features.flatten(1), torch.cat(expected, dim=1), atol=1e-6)
    assert len(network.backbone.features) == 6, "what comes after the last level is not kept"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "efficientnet_lite0", "levels": (18,)}, "efficientnet_lite0 has 0 to 17, in order"),
        ({"backbone": "efficientnet_lite0", "levels": (5, 2)}, "has 0 to 17, in order"),
        ({"backbone": "resnet18", "levels": (1,)}, "it is no EfficientNet-Lite"),
    ],
)
def test_levels_that_are_not_there_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Minaee2020(**options)


def test_kept_features_are_those_of_the_network(tmp_path):
    options = {"backbone": "efficientnet_lite0", "levels": [5, 8]}
    recipe = LITE.but(resize=72, crop=64, resolution=40, weights="none", options=options)
    shown = films(tmp_path, 3)
    localiser = Localiser(shown, tmp_path, tmp_path / "work")
    torch.manual_seed(3)
    kept = kept_features(recipe, shown, tmp_path / "work", localiser)
    torch.manual_seed(3)
    network = build("Minaee2020", recipe.options).eval()
    x = torch.stack([transform_of(recipe)(pixels_of(one)) for one in shown])
    with torch.no_grad():
        for side, seen in enumerate((x, x.flip(-1))):
            # squares are kept as bytes
            assert network.embed(seen)["features"].flatten(1).numpy() == pytest.approx(
                kept[:, side], rel=0.05, abs=0.01
            )
    assert np.array_equal(kept_features(recipe, shown, tmp_path / "work", localiser), kept)


def films(folder: Path, count: int) -> list[Picture]:

    rng = np.random.default_rng(0)
    shown = []
    for index in range(count):
        file = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (90, 80), dtype=np.uint8).repeat(2, axis=0)).save(file)
        shown.append(replace(picture(index), path=file))
    return shown


# How it is fitted


def some_images(features: np.ndarray, labels: np.ndarray, strata: list[str]) -> Images:
    found = Images(np.zeros((len(labels), 8, 8), dtype=np.uint8), labels, strata)
    found.features = features
    return found


def test_every_class_of_every_collection_weighs_the_same():
    images = some_images(np.zeros((4, 2, 1)), np.array([0, 0, 1, 1]), ["a/x", "a/x", "a/y", "b/y"])
    assert balanced(images, "source and class") == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 3])
    assert balanced(images, "class") == pytest.approx([0.25] * 4)
    assert balanced(images, "none") == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("classes", [("other", "covid19"), robust.CLASSES])
def test_the_fitted_layer_gives_the_logits_of_the_regression(classes):
    rng = np.random.default_rng(1)
    labels = np.arange(80) % len(classes)
    options = {"backbone": "efficientnet_lite0", "classes": list(classes), "levels": [2]}
    recipe = LITE.but(classes=classes, options=options)
    network = build("Minaee2020", options).eval()
    features = (rng.normal(size=(80, 2, 48)) * rng.uniform(0.01, 9, 48) + labels[:, None, None]).astype(np.float32)
    images = some_images(features, labels, [str(label) for label in labels])
    last_layer(network, recipe, images, 0, strength=30.0)
    scaler, fitted = regression(features, labels, balanced(images, recipe.balance), 30.0)
    expected = fitted.predict_proba(scaler.transform(features[:, 0]))
    logits = network.judge({"features": torch.from_numpy(features[:, 0])[:, :, None, None]})
    assert logits.softmax(1).detach().numpy() == pytest.approx(expected, abs=1e-4)
    assert roc_auc_score(labels == 0, expected[:, 0]) > 0.8


def test_a_class_without_an_image_is_refused():
    images = some_images(np.random.default_rng(0).random((6, 2, 48)), np.array([0, 0, 1, 1, 3, 3]), ["a"] * 6)
    network = build("Minaee2020", LITE.options | {"levels": [2]})
    with pytest.raises(ValueError, match="training images of 3 of 4 classes only"):
        last_layer(network, LITE, images, 0, strength=1.0)


# What it learns


def test_zhangs_heads_share_the_question():
    logit, anomaly = torch.tensor([5.0, -1.0, 0.5, 2.0]), torch.tensor([0.1, 4.0, 6.0, 2.0])
    labels = torch.tensor([0, 1, 2, 3])  # normal, pneumonia, other disease, COVID-19
    loss = LOSSES["zhang_hierarchy"]()
    among = classification_loss(logit[1:], torch.tensor([0.0, 0.0, 1.0]))
    abnormal = deviation_loss(anomaly, torch.tensor([0.0, 1.0, 1.0, 1.0]))
    assert loss(Scores(logit, anomaly), INPUTS, labels).item() == pytest.approx((among + abnormal).item())
    assert loss(Scores(logit, None), INPUTS, labels).item() == pytest.approx(among.item())
    nothing = loss(Scores(logit.requires_grad_(), None), INPUTS, torch.zeros(4, dtype=torch.long))
    assert nothing.item() == 0
    nothing.backward()


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (robust.CLASSES, ["normal", "pneumonia", "other_disease", "covid19"]),
        (("normal", "anomalous"), ["normal", "anomalous", "anomalous", "anomalous"]),
        (("other", "covid19"), ["other", "other", "other", "covid19"]),
        (("normal", "covid19"), ["normal", None, None, "covid19"]),
    ],
)
def test_the_class_of_a_finding(classes, expected):
    assert [robust.label(picture(0, finding=name), classes) for name in robust.CLASSES] == expected


def test_it_is_trained_by_folds_only():
    with pytest.raises(ValueError, match="profile robust is trained on all images at hand: give --protocol folds"):
        plan(PAPERS["zhang"], PAPERS["zhang"].recipe("both", robust.PROFILE), [picture(0)], "paper", "covid19")


# What it answers


def test_an_answer_between_two_classes():
    scores = {"logit_covid19": np.log(0.2 / 0.8), "logit_pneumonia": np.log(0.6 / 0.4), "p_normal": 0.2}
    assert answer(scores, robust.GIVEN) == pytest.approx(0.2 / 0.8)
    assert answer(scores, "-p_normal") == -0.2
    with pytest.raises(ValueError, match=r"no score 'logit_normal'; the scores are logit_covid19"):
        answer(scores, "p_covid19 / (p_covid19 + p_normal)")


@pytest.mark.parametrize("name", PAPERS)
def test_every_recipe_can_be_trained_to_its_end(name):
    for variant in PAPERS[name].variants_of(robust.PROFILE):
        check(PAPERS[name].recipe(variant, robust.PROFILE))


@pytest.mark.parametrize(("name", "variant"), [("basu", "efficientnet_lite0"), ("jahan", "paper"), ("zhang", "both")])
def test_the_main_variant_of_the_profile(name, variant):
    assert PAPERS[name].variants_of(robust.PROFILE)[0] == variant
    assert PAPERS[name].variants_of("paper") == PAPERS[name].variants


def test_lungs_are_told_of_frozen_maps_only():
    recipe = PAPERS["basu"].recipe("efficientnet_lite0", robust.PROFILE)
    with pytest.raises(ValueError, match="option lungs: what tells the lungs is fitted on frozen maps"):
        check(recipe.but(cache_features=False))


def test_a_variant_that_the_profile_has_not_is_refused():
    with pytest.raises(ValueError, match="variant 'vgg16' is not known; known: efficientnet_lite0"):
        PAPERS["basu"].recipe("vgg16", robust.PROFILE)


@pytest.mark.parametrize("weights", ["none", "pretraining"])
def test_features_that_all_runs_share_need_weights_that_they_share(weights):
    with pytest.raises(ValueError, match=f"weights '{weights}': features are kept of weights that all runs share"):
        check(LITE.but(weights=weights))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"depth": 3}, "finish_options do not fit finish 'last_layer'"), ({}, "missing a required argument: 'strength'")],
)
def test_options_of_the_last_step_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check(LITE.but(finish_options=options))


# From images to answers


@pytest.fixture
def small_forests(monkeypatch):
    """Of the baselines that see no lung, which would take most of the time."""
    monkeypatch.setattr(baselines, "_TREES", 5)


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """Two collections that hold two findings each; a bright square marks the disease."""
    folder = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(16)
    lines = ["image_id,path,split,source,patient_id,finding,view,labels"]
    for source, finding in (("cohen", "covid19"), ("cohen", "pneumonia"), ("nih", "normal"), ("nih", "pneumonia")):
        for index in range(25):
            name = f"{source}-{finding}-{index}"
            pixels = rng.integers(0, 120, (70, 70), dtype=np.uint8)
            place = {"covid19": slice(10, 30), "pneumonia": slice(35, 60)}.get(finding)
            if place:
                pixels[place, place] += 90
            Image.fromarray(pixels).save(folder / f"{name}.png")
            lines.append(f"{name},{name}.png,{'val' if index < 5 else 'train'},{source},{name},{finding},PA,")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


TOY = ("--set", "resize=64", "--set", "crop=64", "--set", "resolution=0")
THREE = ("normal", "pneumonia", "covid19")
_OPTIONS = json.dumps({"backbone": "efficientnet_lite0", "classes": THREE, "levels": [5, 8]})
TOY_CLASSES = (*TOY, "--set", f"classes={json.dumps(THREE)}")
TOY_LITE = (*TOY_CLASSES, "--set", f"options={_OPTIONS}")


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_probe_tells_what_a_linear_layer_sees(collection, small_forests, tmp_path):
    said = invoke("probe", "--data", str(collection), "--workdir", str(tmp_path), *TOY_LITE).splitlines()
    assert [line.partition(":")[0] for line in said] == [
        "covid19 against pneumonia, cohen", "covid19 against pneumonia, cohen, PA", "pneumonia against normal, nih",
    ]  # fmt: skip
    areas = [float(line.split("AUC ")[1][:5]) for line in said]
    assert min(areas) > 0.9, said
    assert all("no lung 0." in line or "no lung 1." in line for line in said)
    kept = list((tmp_path / "features").glob("*.npy"))
    again = invoke("probe", "--data", str(collection), "--workdir", str(tmp_path), *TOY_LITE).splitlines()
    assert again == said
    assert list((tmp_path / "features").glob("*.npy")) == kept, "features are made once"
    two_classes = invoke(
        "probe", "--data", str(collection), "--workdir", str(tmp_path), *TOY_LITE, "--share", "0.3", "--without", "nih",
        "--set", f"classes={json.dumps(['other', 'covid19'])}", "--set", "given=", "--set", "abnormal=",
    ).splitlines()  # fmt: skip
    assert [line.partition(":")[0] for line in two_classes] == [line.partition(":")[0] for line in said[:2]]


def test_a_last_layer_is_fitted_scored_kept_and_combined(collection, small_forests, tmp_path):
    common = ("--profile", "robust", "--protocol", "folds", "--data", str(collection), "--workdir", str(tmp_path))
    lite = Path(invoke("train", "minaee", "--variant", "efficientnet_lite0", *common, *TOY_LITE).strip())
    record = read_record(lite)
    assert record["runs"][0]["epochs"] == 0
    assert record["differences"][:-1] == list(robust.DIFFERENCES["minaee"])
    told = trained("lite", provenance(read_member(lite, record["data"]["manifest_sha256"])))
    assert "Its last layer, fitted on 80 images and their mirror images, seed 20" in told
    assert "what tells the lungs" not in told
    jahan = ("--set", "epochs=1", "--set", "batch=8", "--set", "images_per_epoch=16")
    auto = Path(invoke("train", "jahan", *common, *jahan).strip())
    evaluation = tmp_path / "evaluation"
    invoke("evaluate", str(lite), str(auto), "--data", str(collection), "--out", str(evaluation))
    found = json.loads((evaluation / "evaluation.json").read_text())
    (alone, _), together = found["experiments"].values(), found["combination"]["tasks"]
    assert alone["tasks"]["covid19 against pneumonia, cohen"]["score"] == robust.GIVEN
    assert alone["tasks"]["covid19 against pneumonia, cohen"]["figures"]["auc"]["value"] > 0.9
    assert together["covid19 against pneumonia, cohen"]["score"] == "weighted mean of standardised outputs"
    assert "pneumonia against normal, nih" in together
    shipped = tmp_path / "shipped"
    invoke("export", str(lite), str(auto), "--data", str(collection), "--out", str(shipped))
    manifest = json.loads((shipped / "manifest.json").read_text())
    assert [member["name"] for member in manifest["members"]] == ["minaee-efficientnet_lite0", "jahan"]
    assert manifest["members"][0]["calibration"]["covid19"]["over"] == "p_pneumonia"
    network, transform = load_shipped(shipped, manifest["members"][0])
    shown = [one for one in read_manifest(collection) if one.split == "val"][:3]
    scores = read_scores(lite)
    for one, given in zip(shown, score_pictures(network, transform, shown), strict=True):
        assert given == pytest.approx(scores["final"][one.image_id], rel=1e-5)


def test_dense_layers_learn_from_what_lies_on_the_lungs(collection, tmp_path):
    data = Path(shutil.copytree(collection, tmp_path / "data"))
    (data / "masks").mkdir()
    inside = np.zeros((70, 70), dtype=bool)
    inside[5:65, 5:65] = True
    for index in range(5, 9):
        Image.fromarray(inside).save(data / "masks" / f"nih-normal-{index}.png")
    options = {"backbone": "efficientnet_lite0", "classes": THREE, "dense": 16, "levels": [5, 8], "lungs": True}
    experiment = Path(
        invoke(
            "train", "basu", "--variant", "efficientnet_lite0", "--profile", "robust", "--protocol", "folds",
            "--data", str(data), "--workdir", str(tmp_path), *TOY_CLASSES, "--set", f"options={json.dumps(options)}",
            "--set", "epochs=3", "--set", "images_per_epoch=64", "--set", "batch=16",
        ).strip()
    )  # fmt: skip
    (kept,) = (tmp_path / "lungs").glob("*.safetensors")
    layer = load_file(kept)
    record = read_record(experiment)
    told = trained("basu", provenance(read_member(experiment, record["data"]["manifest_sha256"])))
    assert "3 epochs of 64 of 80 images, batch 16" in told
    assert "what tells the lungs was fitted once, on the outlined lungs of split train" in told
    for run in ("fold0", "final"):
        network = load_network(experiment, run)
        assert all(
            torch.allclose(t, layer[name], rtol=1e-3, atol=1e-4) for name, t in network.lungs.state_dict().items()
        )
        assert next(r for r in read_record(experiment)["runs"] if r["name"] == run)["lungs"] == kept.stem
        seen = network.embed(torch.full((1, 1, 64, 64), -1.0))
        assert set(network.heatmaps(seen)) == {"pneumonia", "covid19"}
    scores = read_scores(experiment)
    found = [(one["p_covid19"], name) for run in scores if run != "final" for name, one in scores[run].items()]
    assert roc_auc_score(["covid19" in name for _, name in found], [score for score, _ in found]) > 0.8
