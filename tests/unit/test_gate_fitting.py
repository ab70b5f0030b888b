"""A gate fitted on drawn images: what is shown, what is written, what was counted, what is refused."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dicom_node.demo.phantom import WHITE, draw_phantom
from dicom_node.domain import Prediction
from tests.experiment_factories import write_experiment
from training import gate as fitting
from training.data.manifest import read_manifest
from training.data.squares import load_squares
from training.export import export
from training.gate import DESCRIPTION, WEIGHTS, fit_gate
from training.models.gate import FRONTAL, FRONTALS, KINDS, LATERAL, OTHER, PART, SLICE, Gate, pooled_values
from training.models.network import digest_of
from training.papers import PAPERS, robust
from training.scoring import load_network, transform_of
from training.strangers import FAMILIES
from workers.ensemble import Ensemble

SMALL = {
    "_SIDE": 64, "_OF_EACH": 9, "_UPRIGHT": 6, "_PARTS": 24, "_OF_FAMILY": 5, "_COMPONENTS": 8, "_LEAST": 8,
}  # fmt: skip
CLASSES = ["normal", "pneumonia", "covid19"]
OPTIONS = {"backbone": "efficientnet_lite0", "classes": CLASSES, "levels": [2, 5]}
RECIPE = PAPERS["minaee"].recipe("efficientnet_lite0", robust.PROFILE).but(
    resize=64, crop=64, resolution=0, classes=tuple(CLASSES), options=OPTIONS
)  # fmt: skip
# Of cohen more than twice _OF_EACH, of nih less.
FRONTAL_FILMS = (
    ("cohen", "covid19", "train", 24), ("cohen", "pneumonia", "train", 24), ("nih", "normal", "train", 12),
    ("cohen", "covid19", "val", 5), ("figure1", "covid19", "external", 4),
)  # fmt: skip
LATERALS, SLICES = 10, 12


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(fitting, name, value)
        yield


def lateral(rng: np.random.Generator) -> np.ndarray:
    """One lung, seen from the side: a dark oval between a bright spine on the right and a sternum on the left."""
    down, across = np.mgrid[-1:1:72j, -1:1:72j]
    film = 0.5 + 0.3 * np.exp(-(((across - 0.6) / 0.1) ** 2)) + 0.2 * np.exp(-(((across + 0.7) / 0.05) ** 2))
    film -= 0.4 * np.exp(-((down / rng.uniform(0.5, 0.7)) ** 4) - (across / 0.4) ** 4)
    return film + rng.normal(0, 0.02, film.shape)


def ct_slice(rng: np.random.Generator) -> np.ndarray:
    """A grey disc on black, with two dark lungs."""
    down, across = np.mgrid[-1:1:72j, -1:1:72j]
    body = 0.6 * (down**2 / 0.5 + across**2 / 0.8 < 1)
    lungs = (down / 0.45) ** 2 + ((np.abs(across) - 0.4) / rng.uniform(0.2, 0.3)) ** 2 < 1
    return np.where(lungs, 0.05, body) + rng.normal(0, 0.01, body.shape)


def write_films(folder: Path, *, laterals: int = LATERALS, slices: int = SLICES) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(8)
    rows = []

    def add(source, finding, split, view, pixels):
        name = f"{len(rows)}"
        Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)).save(folder / f"{name}.png")
        patient = f"p{len(rows) // 2}" if finding == "covid19" else f"p{name} alone"  # some patients have two films
        rows.append([name, f"{name}.png", split, source, patient, finding, view])

    for source, finding, split, images in FRONTAL_FILMS:
        for _ in range(images):
            film = draw_phantom(len(rows), rows=80, columns=72, opacities=3 * (finding != "normal"))
            add(source, finding, split, "PA", film / WHITE)
    for _ in range(laterals):
        add("cohen", "pneumonia", "val", "LATERAL", lateral(rng))
    for _ in range(slices):
        add("cohen", "not_cxr", "train", "", ct_slice(rng))
    with (folder / "manifest.csv").open("w", newline="") as text:
        csv.writer(text).writerows([["image_id", "path", "split", "source", "patient_id", "finding", "view"], *rows])
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_films(tmp_path_factory.mktemp("films") / "data")


@pytest.fixture(scope="module")
def experiment(data, tmp_path_factory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("work") / "minaee", data, RECIPE, 4)


@pytest.fixture(scope="module")
def written(experiment, data, tmp_path_factory, small) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("gate") / "new"
    return out, fit_gate(experiment, data, out)


@pytest.fixture(scope="module")
def read(experiment, data, written, small):
    """What was shown, and what the gate reads of it."""
    pictures = read_manifest(data)
    squares, readable = load_squares(pictures, SMALL["_SIDE"])
    shown = fitting._choose(pictures, readable)
    network = load_network(experiment, "final")
    return pictures, shown, fitting._values(network, transform_of(RECIPE), squares, shown)


@pytest.fixture(scope="module")
def gate(written, read) -> Gate:
    """As service would load it."""
    tensors = load_file(written[0] / WEIGHTS)
    gate = Gate(read[2].shape[1], len(tensors["axes.bias"]))
    gate.load_state_dict(tensors)
    return gate.eval()


def those(shown, **wanted) -> list[int]:
    return [i for i, one in enumerate(shown) if all(getattr(one, name) == value for name, value in wanted.items())]


# What is shown


def test_frontal_films_of_train_are_shown_in_all_eight_ways(read):
    pictures, shown, _ = read
    ways = {}
    for one in shown:
        if one.family == FRONTAL:
            assert one.kind == FRONTALS[one.way]
            ways.setdefault(one.picture, []).append(one.way)
    assert all(found == list(range(8)) for found in ways.values())
    assert {pictures[i].split for i in ways} == {"train"}
    by_source = [pictures[i].source for i in ways]
    assert (by_source.count("cohen"), by_source.count("nih")) == (SMALL["_OF_EACH"], 12), "a small collection is whole"


def test_others_are_shown_upright_once_and_strangers_in_sixteen_ways(read):
    pictures, shown, _ = read
    upright = [shown[i] for i in those(shown, family="upright")]
    assert {(one.kind, one.way) for one in upright} == {(FRONTAL, 0)}
    splits = [pictures[one.picture].split for one in upright]
    assert {split: splits.count(split) for split in splits} == {"train": SMALL["_UPRIGHT"], "val": 5, "external": 4}
    assert not {one.picture for one in upright} & {shown[i].picture for i in those(shown, family=FRONTAL)}
    for kind, images in ((LATERAL, LATERALS), (SLICE, SLICES)):
        assert len(those(shown, kind=kind)) == 16 * images
    assert len(those(shown, kind=PART)) == SMALL["_PARTS"]
    for family in FAMILIES:
        assert len(those(shown, kind=OTHER, family=family)) == SMALL["_OF_FAMILY"]
    learnt = {shown[i].picture for i in those(shown, family=FRONTAL)}
    assert {one.picture for one in shown if one.kind in (PART, OTHER)} <= learnt


# What is fitted


def test_a_gate_says_what_the_regression_and_the_components_say(read):
    pictures, shown, values = read
    fits = fitting._Fitting(pictures, shown, values)
    gate = fits._fit(fits.learnt)
    learnt, kinds = values[fits.learnt], fits.kind[fits.learnt]
    scaler = StandardScaler().fit(learnt)
    weights = np.array([1 / np.sqrt((kinds == kind).sum()) for kind in kinds])
    linear = LogisticRegression(C=fitting._STRENGTH, max_iter=60, tol=1e-3)
    linear.fit(scaler.transform(learnt), kinds, sample_weight=weights / weights.mean())
    own = StandardScaler().fit(learnt[kinds == FRONTAL])
    axes = PCA(SMALL["_COMPONENTS"], whiten=True, random_state=20).fit(own.transform(learnt[kinds == FRONTAL]))
    with torch.no_grad():
        told, far = gate.tell(torch.from_numpy(values))
    order = [linear.classes_.tolist().index(kind) for kind in KINDS]
    assert told.numpy() == pytest.approx(linear.predict_proba(scaler.transform(values))[:, order], abs=1e-4)
    distance = np.linalg.norm(axes.transform(own.transform(values)), axis=1)
    assert far.numpy() == pytest.approx(distance, rel=1e-3, abs=1e-3)


def test_a_kind_that_was_left_out_is_never_told(read):
    pictures, shown, values = read
    fits = fitting._Fitting(pictures, shown, values)
    gate = fits._fit(fits.learnt & (fits.kind != PART))
    with torch.no_grad():
        told, _ = gate.tell(torch.from_numpy(values))
    assert told[:, KINDS.index(PART)].max() == 0
    assert told.sum(dim=1).tolist() == pytest.approx([1] * len(values))


def test_films_of_a_patient_are_of_one_fold_and_external_ones_are_never_learnt(read):
    pictures, shown, values = read
    fits = fitting._Fitting(pictures, shown, values)
    folds = {}
    for one, fold in zip(shown, fits.fold, strict=True):
        folds.setdefault(pictures[one.picture].patient_id, set()).add(int(fold))
    assert all(len(found) == 1 for found in folds.values())
    assert len({next(iter(found)) for found in folds.values()}) == 5
    assert not fits.learnt[fits.split == "external"].any()
    assert not fits.learnt[fits.frontal & (fits.split == "val")].any()
    assert fits.learnt[fits.kind == LATERAL].all(), "laterals of val are no images that anything is measured on"


def test_every_figure_is_of_a_gate_that_had_not_seen_the_image(read, monkeypatch):
    pictures, shown, values = read
    fits = fitting._Fitting(pictures, shown, values)
    fit, apply, seen = fits._fit, fits._apply, []

    def remembered(which):
        seen.append(which)
        return fit(which)

    applied = np.zeros(len(shown), dtype=int)

    def checked(gate, which, *where):
        applied[which] += 1
        families = {shown[i].family for i in np.flatnonzero(seen[-1])}
        patients = {pictures[shown[i].picture].patient_id for i in np.flatnonzero(seen[-1])}
        for i in np.flatnonzero(which):
            if shown[i].kind in (PART, OTHER):
                assert shown[i].family not in families
            else:
                assert pictures[shown[i].picture].patient_id not in patients
        apply(gate, which, *where)

    monkeypatch.setattr(fits, "_fit", remembered)
    monkeypatch.setattr(fits, "_apply", checked)
    fits.described()
    assert (applied == 1).all()


# What is written


def test_both_files_are_written_and_name_each_other(written, experiment):
    out, found = written
    told = json.loads((out / DESCRIPTION).read_text())
    assert told == json.loads(json.dumps(found))
    assert told["weights"] == {"file": WEIGHTS, "sha256": hashlib.sha256((out / WEIGHTS).read_bytes()).hexdigest()}
    assert told["kinds"] == list(KINDS)
    assert told["blocks_sha256"] == digest_of(load_network(experiment, "final").blocks.stages)
    assert 0 < told["threshold"] < 1
    assert told["distance"] > 0


def test_the_written_gate_tells_kinds_as_the_fit_on_everything_does(gate, read):
    pictures, shown, values = read
    fits = fitting._Fitting(pictures, shown, values)
    with torch.no_grad():
        told, far = gate.tell(torch.from_numpy(values))
        expected = fits._fit(fits.learnt).tell(torch.from_numpy(values))
    assert told.numpy() == pytest.approx(expected[0].numpy(), abs=1e-5)
    assert far.numpy() == pytest.approx(expected[1].numpy(), rel=1e-4)
    right = np.array(KINDS)[told.argmax(dim=1).numpy()] == fits.kind
    for kind in (LATERAL, SLICE, FRONTAL):
        assert right[fits.kind == kind].mean() > 0.9, kind


def test_the_gate_reads_maps_as_it_reads_what_was_pooled_of_them(gate, experiment):
    network = load_network(experiment, "final")
    with torch.no_grad():
        maps = network.lung_maps(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
        told, far = gate(maps)
        again = gate.tell(pooled_values(maps))
    assert torch.equal(told, again[0])
    assert torch.equal(far, again[1])


def test_pooled_values_are_means_and_deviations_of_fine_maps_and_a_grid_of_coarse_ones():
    fine, coarse = torch.zeros(1, 1, 2, 2), torch.arange(36.0).view(1, 1, 6, 6)
    fine[0, 0, 0] = 2
    found = pooled_values([fine, coarse])[0]
    deviation = float(fine.std())
    # The mean of the four cells of each ninth.
    grid = [3.5, 5.5, 7.5, 15.5, 17.5, 19.5, 27.5, 29.5, 31.5]
    assert found.tolist() == pytest.approx([1, deviation, *grid])


def test_figures_count_every_image_once(written, read):
    measured, (pictures, shown, _) = written[1]["measured"], read
    images = {name: count for name, (count, _) in measured.items()}
    upright = {(one.picture, pictures[one.picture].source) for one in shown if one.kind == FRONTAL}
    of_train = [source for picture, source in upright if pictures[picture].split == "train"]
    assert images["frontal, cohen, out of fold"] == of_train.count("cohen") == SMALL["_OF_EACH"] + SMALL["_UPRIGHT"]
    assert images["frontal, nih, out of fold"] == of_train.count("nih") == 12
    assert images["frontal, cohen, val"] == 5
    assert images["frontal, figure1, external"] == 4
    assert images["lateral, as it is"] == LATERALS
    assert images["lateral, turned, mirrored, inverted"] == 15 * LATERALS
    assert images["slice, as it is"] == SLICES
    assert images[f"{PART} (drawn)"] == SMALL["_PARTS"]
    assert {name: images[f"other: {name}"] for name in FAMILIES} == dict.fromkeys(FAMILIES, SMALL["_OF_FAMILY"])
    turned = {one for one in shown if one.kind in FRONTALS[1:]}
    assert sum(images.values()) + len(turned) == len(shown)
    assert all(0 <= declined <= count for count, declined in measured.values())


def test_figures_are_those_of_the_threshold_and_the_bound(written, read):
    found, (pictures, shown, values) = written[1], read
    fits = fitting._Fitting(pictures, shown, values)
    probability, distance = np.zeros((len(values), len(KINDS))), np.zeros(len(values))
    for fold in range(5):
        here = (fits.fold == fold) & ~np.isin(fits.kind, [PART, OTHER])
        fits._apply(fits._fit(fits.learnt & (fits.fold != fold)), here, probability, distance)
    seems = probability[:, :8].sum(axis=1)
    declined = (seems < found["threshold"]) | (distance > found["distance"])
    train = (fits.kind == FRONTAL) & (fits.split == "train")
    assert found["threshold"] == pytest.approx(
        min(seems[train & (fits.source == name)].min() for name in ("cohen", "nih"))
    )
    assert found["distance"] == pytest.approx(1.1 * distance[train].max())
    assert found["measured"]["frontal, cohen, out of fold"][1] == 0
    for name, which in (
        ("lateral, as it is", (fits.kind == LATERAL) & (fits.way == 0)),
        ("slice, turned, mirrored, inverted", (fits.kind == SLICE) & (fits.way > 0)),
        ("frontal, cohen, val", (fits.kind == FRONTAL) & (fits.split == "val")),
    ):
        assert found["measured"][name] == (which.sum(), declined[which].sum())
    assert found["measured"]["slice, as it is"][1] > 0.8 * SLICES
    assert set(found["told"]) == set(FRONTALS)
    told = np.array(KINDS)[probability.argmax(axis=1)]
    for kind, figure in found["told"].items():
        which = (fits.kind == kind) & (fits.family == FRONTAL)
        assert (figure["hits"], figure["n"]) == ((told[which] == kind).sum(), which.sum())


def test_the_same_images_give_the_same_gate(written, experiment, data, tmp_path):
    fit_gate(experiment, data, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == (written[0] / WEIGHTS).read_bytes()
    assert (tmp_path / DESCRIPTION).read_text() == (written[0] / DESCRIPTION).read_text()


# What becomes of it in a bundle


def no_forests(pictures, positive, folds):
    return {}


@pytest.fixture(scope="module")
def bundle(experiment, data, written, tmp_path_factory) -> Path:
    """Beside a member with the same convolutions, fewer of whose levels are read."""
    out = tmp_path_factory.mktemp("out") / "gated"
    options = OPTIONS | {"levels": [5], "dense": 8}
    recipe = PAPERS["basu"].recipe("efficientnet_lite0", robust.PROFILE).but(
        resize=64, crop=64, resolution=0, classes=tuple(CLASSES), options=options
    )  # fmt: skip
    other = write_experiment(tmp_path_factory.mktemp("more") / "basu", data, recipe, 5)
    final, own = other / "final" / "weights.safetensors", load_file(experiment / "final" / "weights.safetensors")
    mixed = {name: own[name] if name.startswith("backbone.features") else t for name, t in load_file(final).items()}
    save_file(mixed, final)
    export([experiment, other], data, out, name="gated", release="1", gate=written[0], forests=no_forests, resamples=9)
    return out


def test_a_bundle_s_gate_reads_the_member_whose_levels_it_was_fitted_on(bundle, written):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["gate"]["reads"] == "minaee-efficientnet_lite0", "the other's blocks are the same, its levels not"
    assert manifest["gate"]["weights"]["file"] == "gate-1.safetensors"
    for name in ("kinds", "threshold", "distance"):
        assert manifest["gate"][name] == written[1][name]
    evaluation = json.loads((bundle / "evaluation.json").read_text())
    assert evaluation["gate"]["measured"] == {name: list(counts) for name, counts in written[1]["measured"].items()}
    card = (bundle / "MODEL_CARD.md").read_text().replace("\n", " ")
    assert f"lateral, as it is {written[1]['measured']['lateral, as it is'][1]} of {LATERALS}" in card


def test_service_lets_in_and_declines_by_the_written_gate(bundle, data):
    ensemble = Ensemble.load(bundle)
    rng = np.random.default_rng(9)
    slices = [ct_slice(rng).clip(0, 1).astype(np.float32) for _ in range(5)]
    films = [(draw_phantom(seed, rows=80, columns=72, opacities=3) / WHITE).astype(np.float32) for seed in range(5)]
    assert sum(isinstance(found, Prediction) for found in ensemble.predict_images(films)) >= 4
    assert sum(isinstance(found, Prediction) for found in ensemble.predict_images(slices)) <= 1


def test_a_gate_of_other_blocks_is_refused(data, written, tmp_path):
    other = write_experiment(tmp_path / "minaee", data, RECIPE, 6)
    with pytest.raises(ValueError, match="reads levels of blocks that none of the experiments has") as caught:
        export([other], data, tmp_path / "out", name="a", release="1", gate=written[0], forests=no_forests, resamples=9)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


# What is refused


def test_a_network_without_blocks_is_refused(data, tmp_path):
    recipe = PAPERS["jahan"].recipe("paper", "small").but(options={"references": 40})
    plain = write_experiment(tmp_path / "jahan", data, recipe, 1)
    with pytest.raises(ValueError, match="its network reads no levels of blocks") as caught:
        fit_gate(plain, data, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "without"), [("lateral", {"laterals": 0}), ("slice", {"slices": 0})])
def test_a_collection_without_laterals_or_slices_is_refused(kind, without, experiment, tmp_path):
    folder = write_films(tmp_path / "data", **without)
    with pytest.raises(ValueError, match=f"holds no images of the kind {kind}: no gate can be fitted") as caught:
        fit_gate(experiment, folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / DESCRIPTION).exists()
