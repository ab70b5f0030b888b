from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from training.data.manifest import Picture
from training.experiment import (
    FINAL,
    check_apart,
    folds,
    for_task,
    labelled,
    plan,
    pneumonia_or_normal,
    pretraining_set,
    validation_part,
)
from training.papers import PAPERS
from training.papers.paper import DataSet, Run

FINDINGS = {
    "cohen": ("covid19", "pneumonia"),
    "nih": ("normal", "pneumonia", "other_disease"),
    "kermany": ("normal", "pneumonia"),
    "hannover": ("covid19",),
}


def collection(images: int = 40) -> list[Picture]:
    """Two images of each patient; every fifth image is of `val`; three of figure1 are `external`."""
    pictures = [
        Picture(
            image_id=f"{source}{i}",
            path=Path(f"{source}{i}.png"),
            split="val" if i // 2 % 5 == 0 else "train",
            source=source,
            patient_id=f"{source}-{i // 2}",
            finding=findings[i // 2 % len(findings)],
            view="PA" if i % 3 else "AP",
            labels="Pneumonia" if findings[i // 2 % len(findings)] == "pneumonia" else "",
        )
        for source, findings in FINDINGS.items()
        for i in range(images)
    ]
    outside = [
        Picture(f"figure{i}", Path(f"f{i}.png"), "external", "figure1", f"figure-{i}", "covid19") for i in range(3)
    ]
    lateral = Picture("lateral", Path("l.png"), "train", "cohen", "cohen-0", "covid19", "LATERAL")
    return [*pictures, *outside, lateral]


def data() -> DataSet:
    label = {"covid19": "covid19"}
    return labelled(collection(), lambda p: label.get(p.finding, "other"), ("other", "covid19"))


def test_only_frontal_images_with_a_class_are_taken():
    found = labelled(collection(), pneumonia_or_normal, ("normal", "pneumonia"))
    assert {p.source for p in found.pictures} == {"nih", "kermany"}
    assert all(found.classes[label] == p.finding for p, label in zip(found.pictures, found.labels, strict=True))
    assert "lateral" not in {p.image_id for p in data().pictures}


def test_every_image_of_train_and_val_is_tested_once_by_a_fold_and_external_never():
    given = data()
    *five, final = folds(given, seed=1)
    assert [run.name for run in five] == [f"fold{k}" for k in range(5)]
    tested = Counter(np.concatenate([run.test for run in five]).tolist())
    inside = {i for i, p in enumerate(given.pictures) if p.split != "external"}
    assert set(tested) == inside
    assert set(tested.values()) == {1}
    for run in five:
        check_apart(given, run)
        assert set(run.train) | set(run.test) == inside
    assert final.name == FINAL
    assert {given.pictures[i].split for i in final.train} == {"train"}
    assert {given.pictures[i].split for i in final.test} == {"val", "external"}


def test_every_fold_tests_every_source_and_class():
    given = data()
    for run in folds(given, seed=1)[:5]:
        assert {(given.pictures[i].source, given.labels[i]) for i in run.test} == {
            ("cohen", 0), ("cohen", 1), ("nih", 0), ("kermany", 0), ("hannover", 1),
        }  # fmt: skip


def test_a_patient_in_two_parts_of_a_run_is_refused():
    with pytest.raises(ValueError, match="run mine: patient cohen-0, or a near duplicate, stands in two parts"):
        check_apart(data(), Run("mine", np.array([0]), np.array([1])))


def test_pretraining_sees_no_patient_that_is_tested():
    pictures = collection()
    tested = [p for p in pictures if p.source == "nih"][:20]
    found = pretraining_set(pictures, tested)
    assert {p.patient_id for p in found.pictures}.isdisjoint(p.patient_id for p in tested)
    assert {p.source for p in found.pictures} == {"nih", "kermany"}
    assert {(p.finding, found.classes[label]) for p, label in zip(found.pictures, found.labels, strict=True)} == {
        ("normal", "normal"), ("pneumonia", "diseased"), ("other_disease", "diseased"),
    }  # fmt: skip


def test_a_near_duplicate_of_a_tested_image_is_no_pretraining_image():
    normal = Picture("a", Path("a.png"), "train", "nih", "p1", "normal", cluster="c1")
    twin = Picture("b", Path("b.png"), "train", "nih", "p2", "normal", cluster="c1")
    assert pretraining_set([normal, twin], [twin]).pictures == ()


def test_the_validation_part_is_a_tenth_and_apart():
    given = data()
    trained, held = validation_part(given, seed=3)
    check_apart(given, Run("pretraining", trained, held))
    assert 0.05 < len(held) / len(given.labels) < 0.2


def test_a_network_of_two_classes_can_be_asked_for_pneumonia():
    asked = for_task(PAPERS["minaee"].recipe("resnet18", "small"), "pneumonia")
    assert asked.classes == ("normal", "pneumonia")
    assert tuple(asked.options["classes"]) == ("normal", "pneumonia")
    assert asked.score == "logit_pneumonia"
    assert asked.copies == {}
    with pytest.raises(ValueError, match="basu has the classes"):
        for_task(PAPERS["basu"].recipe("vgg16", "small"), "pneumonia")


@pytest.mark.parametrize("name", ["zhang", "basu", "jahan", "zhong", "minaee"])
@pytest.mark.parametrize("protocol", ["paper", "folds"])
def test_every_paper_has_a_plan_whose_parts_are_apart(name, protocol):
    paper = PAPERS[name]
    recipe = paper.recipe(paper.variants[0], "small")
    given, runs = plan(paper, recipe, collection(200), protocol, "covid19")
    assert given.classes == recipe.classes
    for run in runs:
        check_apart(given, run)
        assert len(run.train)
        assert len(run.test)
        assert all(given.pictures[i].split != "external" for i in run.train)


def test_another_task_is_asked_of_folds():
    recipe = for_task(PAPERS["minaee"].recipe("resnet18", "small"), "pneumonia")
    with pytest.raises(ValueError, match="--protocol folds"):
        plan(PAPERS["minaee"], recipe, collection(), "paper", "pneumonia")
    given, _ = plan(PAPERS["minaee"], recipe, collection(), "folds", "pneumonia")
    assert given.classes == ("normal", "pneumonia")


def test_an_empty_class_is_refused():
    without = [p for p in collection() if p.finding != "covid19"]
    with pytest.raises(ValueError, match="no image of class covid19"):
        plan(PAPERS["zhang"], PAPERS["zhang"].recipe("both", "small"), without, "folds", "covid19")
