import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from training.data.manifest import Picture
from training.experiment import check_apart
from training.finishing import FINISHING
from training.fit import OPTIMISERS
from training.losses import LOSSES
from training.models.classifier import LAST_LAYER
from training.models.registry import build
from training.papers import PAPERS
from training.papers.assembly import PROFILES, REPRODUCING, held_out, pick
from training.papers.basu2020 import first_stage
from training.papers.paper import KINDS
from training.recipe import Augmentation
from training.records import plain, recipe_of
from training.schedules import SCHEDULES
from training.scoring import transform_of

RECIPES = [
    (name, variant, profile)
    for name, paper in PAPERS.items()
    for profile in PROFILES
    for variant in paper.variants_of(profile)
]
NUMBERS = [(name, table, number) for name, p in PAPERS.items() for table in p.tables for number in table.numbers]
FRACTIONS = ("auc", "sensitivity", "specificity", "accuracy", "precision", "recall", "f1")


@cache
def network(name: str, variant: str) -> torch.nn.Module:
    recipe = PAPERS[name].recipe(variant, "paper")
    with torch.device("meta"):
        return build(recipe.architecture, recipe.options)


def test_reading_the_papers_needs_no_torch():
    code = "import sys, training.papers; print([m for m in ('torch', 'sklearn', 'scipy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_the_papers_stand_under_their_names():
    assert list(PAPERS) == ["zhang", "basu", "jahan", "zhong", "minaee"]
    assert all(paper.name == name for name, paper in PAPERS.items())


# ---- recipes


@pytest.mark.parametrize(("name", "variant", "profile"), RECIPES)
def test_a_recipe_is_whole_and_survives_its_record(name, variant, profile):
    recipe = PAPERS[name].recipe(variant, profile)
    assert (recipe.paper, recipe.variant, recipe.profile) == (name, variant, profile)
    kept = json.loads(json.dumps({"recipe": plain(recipe)}))
    assert recipe_of(kept) == recipe
    stages = [recipe, recipe.pretraining] if recipe.pretraining else [recipe]
    for stage in stages:
        assert stage.profile == profile
        assert callable(LOSSES[stage.loss](**stage.loss_options))
        assert SCHEDULES[stage.schedule](stage.epochs, **stage.schedule_options)(0.5) > 0
        parameters = [torch.nn.Parameter(torch.zeros(1))]
        OPTIMISERS[stage.optimiser](parameters, lr=stage.learning_rate, **stage.optimiser_options)
        transform_of(stage)
    assert recipe.finish in ("", *FINISHING)
    assert (recipe.weights == "pretraining") <= (recipe.pretraining is not None)


@pytest.mark.parametrize(("name", "variant", "profile"), RECIPES)
def test_a_recipe_fits_its_network(name, variant, profile):
    recipe = PAPERS[name].recipe(variant, profile)
    with torch.device("meta"):
        built = build(recipe.architecture, recipe.options)
    for score in filter(None, (recipe.score, recipe.abnormal)):
        assert score.removeprefix("-") in built.score_names
    for prefix in recipe.trainable:
        assert any(key.startswith(prefix) for key, _ in built.named_parameters()), prefix
    if "classes" in recipe.options:
        assert tuple(recipe.options["classes"]) == recipe.classes
    if recipe.pretraining:
        with torch.device("meta"):
            stage = build(recipe.pretraining.architecture, recipe.pretraining.options)
        given = {key: t.shape for key, t in stage.backbone_state().items()}
        assert given == {key: t.shape for key, t in built.backbone_state().items()}


@pytest.mark.parametrize("name", PAPERS)
def test_what_is_not_known_is_named_with_what_is(name):
    paper = PAPERS[name]
    with pytest.raises(ValueError, match=rf"variant 'five-heads' is not known; known: {paper.variants[0]}"):
        paper.recipe("five-heads", "small")
    with pytest.raises(ValueError, match="profile 'large' is not known; known: paper, small"):
        paper.recipe(paper.variants[0], "large")


# What the papers print; batch is what an update sees.
PRINTED = {
    "zhang": {
        "resize": 512, "crop": 448, "epochs": 500, "learning_rate": 1e-4, "batch": 128, "optimiser": "sgd",
        "schedule": "linear", "weights": "imagenet", "loss": "zhang", "balance": "none",
    },
    "basu": {
        "learning_rate": 1e-4, "optimiser": "sgd", "optimiser_options": {"momentum": 0.9}, "schedule": "constant",
        "weights": "pretraining", "classes": ("normal", "pneumonia", "other_disease", "covid19"),
    },
    "jahan": {
        "resize": 128, "crop": 128, "epochs": 70, "learning_rate": 1e-3, "optimiser": "adam", "schedule": "constant",
        "loss": "reconstruction", "train_on": ("normal",), "finish": "kernel_density",
        "augmentation": Augmentation(),
    },
    "zhong": {
        "crop": 80, "epochs": 10, "learning_rate": 4e-4, "batch": 64, "optimiser": "adam", "standardise": "none",
        "loss_options": {"class_weights": [10, 3, 1], "smoothing": 0.12, "smoothing_form": "paper"},
        "classes": ("covid19", "normal", "pneumonia"),
    },
    "minaee": {
        "resize": 224, "crop": 224, "epochs": 100, "learning_rate": 1e-4, "batch": 20, "optimiser": "adam",
        "schedule": "constant", "weights": "imagenet", "copies": {"covid19": 5}, "keep": "last",
        "standardise": "imagenet",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PRINTED)
def test_the_paper_profile_is_the_papers(name):
    recipe = PAPERS[name].recipe(PAPERS[name].variants[0], "paper")
    values = plain(recipe) | {"batch": recipe.batch * recipe.accumulate, "augmentation": recipe.augmentation}
    assert {key: values[key] for key in PRINTED[name]} == PRINTED[name]
    assert recipe.images_per_epoch == 0


def test_basus_first_stage_is_the_papers():
    for variant in PAPERS["basu"].variants:
        stage = PAPERS["basu"].recipe(variant, "paper").pretraining
        assert (stage.optimiser, stage.learning_rate, stage.schedule, stage.epochs) == ("adam", 1e-3, "cosine", 100)
        assert stage.schedule_options == {}
        assert stage.keep == "best validation accuracy"
        assert stage.weights == "none"
        changes = stage.augmentation
        assert changes.flip
        assert changes.zoom != (1.0, 1.0)
        assert changes.rotation_deg
        assert stage.options["backbone"] == variant


def test_augmentation_is_the_papers():
    zhang, zhong = (PAPERS[name].recipe(PAPERS[name].variants[0], "paper") for name in ("zhang", "zhong"))
    assert zhang.augmentation == Augmentation(random_crop=True, flip=0.5, zoom=(0.9, 1.1))
    expected = Augmentation(random_crop=True, flip=0.5, brightness=0.1, contrast=(0.9, 1.1))
    assert (zhong.resize, zhong.augmentation) == (96, expected)
    basu, minaee = (PAPERS[name].recipe(PAPERS[name].variants[0], "paper") for name in ("basu", "minaee"))
    assert basu.augmentation == Augmentation(flip=0.5, zoom=(0.9, 1.1), rotation_deg=10.0)
    assert minaee.augmentation == Augmentation(flip=0.5, rotation_deg=10.0, shear_deg=5.0, zoom=(0.95, 1.05))
    slip = PAPERS["zhong"].recipe("paper-contrast", "paper").augmentation
    assert slip == replace(expected, contrast=(0.1, 0.2))


@pytest.mark.parametrize("profile", REPRODUCING)
def test_zhongs_learning_rate_takes_three_steps(profile):
    def rates(variant: str) -> list[float]:
        recipe = PAPERS["zhong"].recipe(variant, profile)
        factor = SCHEDULES[recipe.schedule](recipe.epochs, **recipe.schedule_options)
        return [recipe.learning_rate * factor(epoch) for epoch in range(recipe.epochs)]

    assert rates("adam") == pytest.approx([4e-4] * 3 + [2e-4] * 3 + [1e-4] * 4)
    assert rates("warmup") == pytest.approx([1e-4] * 2 + [4e-4] * 4 + [1e-4] * 4)
    assert PAPERS["zhong"].recipe("nadam", profile).optimiser == "nadam"
    assert PAPERS["zhong"].recipe("sgd", profile).optimiser == "sgd"


@pytest.mark.parametrize(
    ("variant", "trained"), [("resnet18", 1026), ("resnet50", 4098), ("squeezenet", 1026), ("densenet121", 2050)]
)
def test_minaee_trains_the_last_layer_alone(variant, trained):
    recipe = PAPERS["minaee"].recipe(variant, "paper")
    assert recipe.trainable == (f"backbone.{LAST_LAYER[recipe.options['backbone']]}".removesuffix(".1"),)
    parameters = network("minaee", variant).named_parameters()
    assert sum(p.numel() for key, p in parameters if key.startswith(recipe.trainable)) == trained


@pytest.mark.parametrize(("name", "variant", "profile"), [r for r in RECIPES if r[2] == "small"])
def test_the_small_profile_is_small(name, variant, profile):
    recipe = PAPERS[name].recipe(variant, profile)
    assert recipe.crop == {"zhong": 80, "jahan": 128}.get(name, 160)
    assert 0 < recipe.images_per_epoch <= 2500 or recipe.cache_features
    assert recipe.weights in ("none", "pretraining")
    if stage := recipe.pretraining:
        assert (stage.crop, stage.images_per_epoch, stage.balance) == (160, 2000, "class")
        assert stage.epochs <= 6
        assert stage.standardise == recipe.standardise


def test_small_networks_of_one_backbone_share_a_first_stage():
    zhang = PAPERS["zhang"].recipe("both", "small").pretraining
    assert zhang == PAPERS["minaee"].recipe("resnet18", "small").pretraining
    assert zhang == first_stage("Minaee2020", "resnet18", "small")


# ---- data sets

SIX = ("Atelectasis", "Cardiomegaly", "Infiltration", "Effusion", "Nodule", "Mass")
TWELVE = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
)  # fmt: skip


def some(source: str, finding: str, count: int, labels: str = "", *, each: int = 1, **more: str) -> list[Picture]:
    """`count` pictures, `each` of a patient; of every 50 the second is a near duplicate of the first."""
    name = "-".join([source, finding, labels, *more.values()])
    return [
        Picture(
            image_id=f"{name}-{i}",
            path=Path("x.png"),
            source=source,
            patient_id=f"{name}-{i // each}",
            finding=finding,
            labels=labels,
            **({"split": "train", "cluster": f"{name} {i // 50}" if i % 50 < 2 else ""} | more),
        )
        for i in range(count)
    ]


def collections() -> list[Picture]:
    """More than enough of what the papers use, but for COVIDx and COVID-Xray-5k."""
    return [
        *some("cohen", "covid19", 560, "COVID-19", each=2),
        *some("cohen", "covid19", 90, "COVID-19", view="LATERAL"),
        *some("cohen", "not_cxr", 50, "COVID-19", view="CT"),
        *some("cohen", "pneumonia", 160, "SARS"),
        *some("cohen", "normal", 20, "No Finding"),
        *some("hannover", "covid19", 119, "COVID-19", each=3),
        *some("nih", "normal", 16_000, "No Finding", each=2),
        *some("nih", "pneumonia", 322, "Pneumonia"),
        *some("nih", "pneumonia", 400, "Infiltration|Pneumonia"),
        *some("nih", "other_disease", 800, "Atelectasis|Pneumonia"),
        *(p for name in SIX for p in some("nih", "other_disease", 90, name)),
        *some("chexpert", "normal", 3000, "No Finding", each=2),
        *(p for name in TWELVE for p in some("chexpert", "other_disease", 250, name)),
        *some("chexpert", "other_disease", 900, "Edema|Fracture"),
        *some("kermany", "normal", 1341, "NORMAL"),
        *some("kermany", "pneumonia", 3875, "PNEUMONIA|bacteria", each=3),
        *some("kermany", "normal", 242, "NORMAL", split="val"),
        *some("kermany", "pneumonia", 398, "PNEUMONIA|virus", split="val"),
        *some("actualmed", "normal", 100, "No finding"),
        *some("actualmed", "covid19", 60, "COVID-19"),
        *some("figure1", "covid19", 33, "COVID-19", split="external"),
        *some("figure1", "normal", 3, "No finding", split="external"),
    ]


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return collections()


@pytest.fixture(scope="module")
def covidx() -> list[Picture]:
    """COVIDx by its lists, and Kermany: images keep the sources that COVIDx took them from."""
    return [
        *some("rsna", "normal", 15_000, "normal"),
        *some("rsna", "normal", 200, "normal", split="val"),
        *some("ricord", "covid19", 3000, "COVID-19", each=4),
        *some("cohen", "covid19", 200, "COVID-19", split="val"),
        *some("kermany", "normal", 1341, "NORMAL"),
        *some("nih", "normal", 900, "No Finding"),
        *some("hannover", "covid19", 119, "COVID-19"),
    ]


@pytest.fixture(scope="module")
def covid_xray_5k() -> list[Picture]:
    """As its owners ship it, beside all of Cohen and CheXpert."""
    return [
        *some("cohen", "covid19", 84, "covid"),
        *some("cohen", "covid19", 100, "covid", split="val"),
        *some("chexpert", "other_disease", 2000, "non", each=2),
        *some("chexpert", "normal", 1700, "non|No Finding", split="val"),
        *some("chexpert", "other_disease", 1300, "non|Edema", split="val", each=2),
        *some("cohen", "covid19", 400, "COVID-19"),
        *some("chexpert", "normal", 3000, "No Finding"),
    ]


def by_class(data, index) -> dict[str, int]:
    return dict(sorted(Counter(data.classes[i] for i in data.labels[index]).items()))


@pytest.mark.parametrize("name", PAPERS)
def test_no_external_lateral_or_ct_image_and_none_twice(name, pictures):
    data = PAPERS[name].data_set(pictures)
    assert {(p.split == "external", p.frontal) for p in data.pictures} == {(False, True)}
    assert len({p.image_id for p in data.pictures}) == len(data.pictures) == len(data.labels)
    assert data.classes == PAPERS[name].recipe(PAPERS[name].variants[0], "paper").classes


@pytest.mark.parametrize("name", PAPERS)
def test_parts_share_no_patient_and_no_near_duplicate(name, pictures):
    data = PAPERS[name].data_set(pictures)
    for run in PAPERS[name].splits(data, 5):
        check_apart(data, run)
        assert len(run.train)
        assert len(run.test)
        assert not len(run.validation)


@pytest.mark.parametrize("name", PAPERS)
def test_the_data_set_does_not_hang_on_the_order_of_the_manifest(name, pictures):
    shuffled = random.Random(3).sample(pictures, len(pictures))
    one, other = PAPERS[name].data_set(pictures), PAPERS[name].data_set(shuffled)
    assert [p.image_id for p in one.pictures] == [p.image_id for p in other.pictures]


@pytest.mark.parametrize("name", PAPERS)
def test_splits_change_with_the_seed_and_with_nothing_else(name, pictures):
    paper = PAPERS[name]
    data = paper.data_set([p for p in pictures if p.split == "train"])

    def tested(seed: int) -> list[int]:
        return paper.splits(data, seed)[0].test.tolist()

    assert tested(1) == tested(1) != tested(2)


def test_zhang_100_and_1431_images_in_two_halves(pictures):
    data = PAPERS["zhang"].data_set(pictures)
    assert Counter((p.source, p.finding == "covid19") for p in data.pictures) == {
        ("cohen", True): 100, ("nih", False): 1431,
    }  # fmt: skip
    assert all("Pneumonia" in p.labels for p in data.pictures if p.source == "nih")
    one, other = PAPERS["zhang"].splits(data, 20)
    assert sorted([*one.test, *other.test]) == list(range(1531))
    assert set(one.test) == set(other.train)
    for run in (one, other):
        found = by_class(data, run.test)
        assert found["covid19"] == pytest.approx(50, abs=2)
        assert found["other"] == pytest.approx(715, abs=5)


def test_basu_data_b_in_five_folds(pictures):
    data = PAPERS["basu"].data_set(pictures)
    assert by_class(data, slice(None)) == {"covid19": 305, "normal": 350, "other_disease": 300, "pneumonia": 322}
    assert {p.labels for p in data.pictures if p.finding == "pneumonia"} == {"Pneumonia"}
    diseases = Counter(p.labels.split("|")[0] for p in data.pictures if p.finding == "other_disease")
    assert diseases == dict.fromkeys(SIX, 50)
    assert {p.source for p in data.pictures} == {"nih", "cohen"}
    runs = PAPERS["basu"].splits(data, 20)
    assert sorted(i for run in runs for i in run.test) == list(range(1277))
    assert len(runs) == 5


def test_jahan_trains_on_normal_images_and_tests_200_and_200(covidx):
    data = PAPERS["jahan"].data_set(covidx)
    assert {p.source for p in data.pictures} == {"rsna", "kermany", "cohen"}
    (run,) = PAPERS["jahan"].splits(data, 20)
    check_apart(data, run)
    assert by_class(data, run.train) == {"normal": 11_041}
    assert by_class(data, run.test) == {"anomalous": 200, "normal": 200}
    assert {data.pictures[i].source for i in run.test} == {"rsna", "cohen"}


def test_jahan_is_stood_in_for_by_chestx_ray14(pictures):
    data = PAPERS["jahan"].data_set([p for p in pictures if not (p.source == "nih" and "1" in p.image_id)])
    assert {p.source for p in data.pictures} == {"nih", "kermany", "cohen", "actualmed"}
    (run,) = PAPERS["jahan"].splits(data, 20)
    assert by_class(data, run.test) == {"anomalous": 200, "normal": 200}
    assert "kermany" not in {data.pictures[i].source for i in run.test}


def test_zhong_tests_100_242_and_398_of_6354(pictures):
    data = PAPERS["zhong"].data_set(pictures)
    assert len(data.labels) == 6354
    assert Counter(p.source for p in data.pictures)["kermany"] == 1341 + 3875 + 242 + 398
    assert {p.source for p in data.pictures} == {"kermany", "cohen", "actualmed"}
    (run,) = PAPERS["zhong"].splits(data, 20)
    assert by_class(data, run.test) == {"covid19": 100, "normal": 242, "pneumonia": 398}
    assert len(run.train) == 6354 - 740
    of_children = [data.pictures[i] for i in run.test if data.pictures[i].source == "kermany"]
    assert {p.split for p in of_children} == {"val"}
    assert len(of_children) == 640


def test_zhong_takes_figure1_where_it_is_not_kept_external(pictures):
    given = [replace(p, split="train") if p.source == "figure1" else p for p in pictures if p.source != "actualmed"]
    data = PAPERS["zhong"].data_set([p for p in given if p.source != "kermany"])
    assert Counter(p.source for p in data.pictures)["figure1"] == 36


def test_minaee_trains_on_84_and_2000_and_tests_100_and_3000(pictures):
    data = PAPERS["minaee"].data_set(pictures)
    assert Counter(p.source for p in data.pictures) == {"chexpert": 5000, "cohen": 184}
    assert Counter(p.finding == "normal" for p in data.pictures) == {True: 2400, False: 2784}
    alone = Counter(p.labels for p in data.pictures if p.source == "chexpert" and p.finding != "normal")
    assert all(200 <= alone[name] <= 250 for name in TWELVE)
    (run,) = PAPERS["minaee"].splits(data, 20)
    assert by_class(data, run.train) == {"covid19": 84, "other": 2000}
    assert by_class(data, run.test) == {"covid19": 100, "other": 3000}
    assert Counter(data.pictures[i].finding for i in run.test)["normal"] == 1700


def test_minaee_keeps_the_split_of_covid_xray_5k(covid_xray_5k):
    data = PAPERS["minaee"].data_set(covid_xray_5k)
    (run,) = PAPERS["minaee"].splits(data, 20)
    assert by_class(data, run.train) == {"covid19": 84, "other": 2000}
    assert by_class(data, run.test) == {"covid19": 100, "other": 3000}
    assert {data.pictures[i].split for i in run.test} == {"val"}


def test_fewer_images_are_taken_in_the_papers_proportion(pictures):
    at_hand = [
        *some("cohen", "covid19", 92, "COVID-19"),
        *some("nih", "normal", 300, "No Finding"),
        *some("nih", "other_disease", 260, "Edema|Pneumonia"),
        *some("kermany", "normal", 500, "normal"),
        *some("kermany", "pneumonia", 900, "viral"),
    ]
    data = PAPERS["minaee"].data_set(at_hand)
    assert Counter((p.source, p.finding) for p in data.pictures if p.finding != "covid19") == {
        ("nih", "normal"): 240, ("nih", "other_disease"): 260,
    }  # fmt: skip
    (run,) = PAPERS["minaee"].splits(data, 20)
    assert by_class(data, run.test) == {"covid19": 50, "other": 300}
    data = PAPERS["zhong"].data_set(at_hand)
    (run,) = PAPERS["zhong"].splits(data, 20)
    part = len(data.labels) / 6354
    assert by_class(data, run.test) == {
        "covid19": round(100 * part), "normal": round(242 * part), "pneumonia": round(398 * part),
    }  # fmt: skip
    assert by_class(PAPERS["basu"].data_set(at_hand), slice(None)) == {
        "covid19": 92, "normal": 300, "other_disease": 260, "pneumonia": 322,
    }  # fmt: skip


def test_a_pick_takes_whole_patients_but_for_the_last():
    given = some("cohen", "covid19", 60, each=3, cluster="")
    chosen = pick(given, 20)
    assert len(chosen) == 20
    assert sorted(Counter(p.patient_id for p in chosen).values()) == [2, 3, 3, 3, 3, 3, 3]
    assert pick(given, 100) != given
    assert pick([], 5) == []


def test_held_out_takes_no_group_that_holds_another_stratum():
    given = some("a", "covid19", 12, each=3, cluster="")
    strata = ["x", "x", "y"] * 2 + ["x", "x", "x"] * 2
    assert held_out(given, strata, {"x": 12}, 1).tolist() == [False] * 6 + [True] * 6
    assert held_out(given, strata, {"x": 4, "y": 12}, 1).sum() <= 6


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("zhang", {"covid19": "covid19", "pneumonia": "other", "normal": "other", "other_disease": "other"}),
        ("basu", {finding: finding for finding in ("covid19", "pneumonia", "normal", "other_disease")}),
        ("jahan", {"covid19": "anomalous", "pneumonia": "anomalous", "normal": "normal", "other_disease": "anomalous"}),
        ("zhong", {"covid19": "covid19", "pneumonia": "pneumonia", "normal": "normal", "other_disease": None}),
        ("minaee", {"covid19": "covid19", "pneumonia": "other", "normal": "other", "other_disease": "other"}),
    ],
)
def test_every_frontal_image_has_the_class_that_the_network_can_give_it(name, expected):
    found = {finding: PAPERS[name].label(some("a", finding, 1)[0]) for finding in expected}
    assert found == expected
    assert {label for label in found.values() if label} == set(
        PAPERS[name].recipe(PAPERS[name].variants[0], "paper").classes
    )


# ---- published numbers


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("zhang", {"Sections 3.1 and 3.2": 12, "Table 1": 18, "Section 4": 2}),
        ("basu", {"Section III.A": 4, "Table I": 8, "Section IV, accuracy": 3, "Section IV, classes": 2}),
        ("jahan", {"Table I": 8, "Table II": 4, "Table III": 4, "Table IV": 11}),
        ("zhong", {"Section 3.1": 1, "Table 3": 12, "Table 4": 9, "Table 5": 16}),
        (
            "minaee",
            {"Section 2": 4, "Table 1": 5, "Table 2": 10, "Table 3": 10, "Table 4": 10, "Table 5": 8, "Table 6": 8,
             "Fig. 12": 5, "Fig. 13": 5},
        ),
    ],
)  # fmt: skip
def test_every_table_is_there_whole(name, counts):
    assert {table.name: len(table.numbers) for table in PAPERS[name].tables} == counts


@pytest.mark.parametrize(("name", "table", "number"), NUMBERS)
def test_a_number_says_how_ours_is_computed_or_why_it_is_not(name, table, number):
    same = [n for n in table.numbers if (n.row, n.column, n.value) == (number.row, number.column, number.value)]
    assert same == [number]
    measure = number.measure
    if measure is None:
        assert number.remark
        return
    paper = PAPERS[name]
    variant = measure.variant or paper.variants[0]
    recipe = paper.recipe(variant, "paper")
    assert measure.kind in KINDS
    assert measure.positive in ("", *recipe.classes)
    assert measure.predicted in ("", *recipe.classes)
    assert (measure.score or recipe.score).removeprefix("-") in network(name, variant).score_names
    if measure.kind.startswith(FRACTIONS):
        assert 0 <= number.value <= 1
    if measure.kind in ("sensitivity", "specificity") or " at " in measure.kind or measure.kind.startswith("micro"):
        assert measure.at is not None


def value(name: str, table: str, row: str, column: str) -> float:
    (found,) = (
        n.value for t in PAPERS[name].tables if t.name == table for n in t.numbers if (n.row, n.column) == (row, column)
    )
    return found


def test_the_numbers_agree_among_themselves():
    classes = ("COVID-19", "Normal", "Pneumonia")
    confusion = [[value("zhong", "Table 5", row, column) for column in classes] for row in classes]
    assert [sum(row) for row in confusion] == [100, 242, 398]
    assert [value("zhong", "Table 5", "Sum", column) for column in classes] == [112, 239, 389]
    assert sum(confusion[i][i] for i in range(3)) / 740 == pytest.approx(
        value("zhong", "Table 3", "Test", "Accuracy"), abs=5e-4
    )
    assert pytest.approx(value("zhong", "Table 3", "Test", "Precision"), abs=5e-5) == 625 / 697
    assert pytest.approx(value("zhong", "Table 3", "Test", "Recall"), abs=5e-5) == 625 / 740
    for figure, right in (("Fig. 12", 2679), ("Fig. 13", 2763)):
        assert value("minaee", figure, "Non-COVID", "as Non-COVID") == right
        assert right / 3000 == pytest.approx(value("minaee", figure, "Non-COVID", "Specificity"), abs=5e-4)
    assert value("zhang", "Table 1", "T = 0.15", "Sensitivity") == 0.96
    assert value("zhang", "Table 1", "T = 0.15", "Specificity") == 0.7065
    assert value("jahan", "Table IV", "Nakao et al.", "AUC") == 0.63
    assert value("basu", "Section IV, accuracy", "VGGNet", "Accuracy") == 0.9013


@pytest.mark.parametrize("name", PAPERS)
def test_what_differs_and_what_is_silent_is_said_in_sentences(name):
    paper = PAPERS[name]
    assert set(paper.differences) == set(PROFILES)
    texts = [*paper.silent, *(text for texts in paper.differences.values() for text in texts)]
    assert texts
    for text in texts:
        assert text.endswith(".")
        assert "  " not in text
    assert "20" in paper.citation
    assert f"python -m training train {name}" in sys.modules[paper.recipe.__module__].__doc__
