from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.data.manifest import Picture
from training.data.splits import assign_splits, fold_of, groups_of, held_out_together

SEEDS = range(20)


def collection(seed: int, count: int = 200) -> list[Picture]:
    """Patients of one to a few images, and clusters that join some of them."""
    rng = np.random.default_rng(seed)
    patients, clusters = rng.integers(0, count // 2, count), rng.integers(0, count, count)
    return [
        Picture(
            image_id=f"i{i}",
            path=Path(f"{i}.png"),
            split="",
            source=str(rng.choice(["nih", "cohen"])),
            patient_id=f"p{patients[i]}",
            finding=str(rng.choice(["normal", "pneumonia"])),
            cluster=f"c{clusters[i]}" if rng.random() < 0.2 else "",
        )
        for i in range(count)
    ]


def joined(pictures: list[Picture]) -> list[frozenset[str]]:
    """The groups, by joining sets until nothing changes."""
    names = [{f"p {p.patient_id}", f"c {p.cluster}" if p.cluster else f"p {p.patient_id}"} for p in pictures]
    while True:
        wider = [set().union(*(other for other in names if other & one)) for one in names]
        if wider == names:
            return [frozenset(one) for one in names]
        names = wider


@pytest.mark.parametrize("seed", SEEDS)
def test_groups_are_joined_by_patient_and_by_cluster(seed):
    pictures = collection(seed, 60)
    groups, expected = groups_of(pictures), joined(pictures)
    assert len(set(groups)) == len(set(expected))
    assert len(set(zip(groups.tolist(), expected, strict=True))) == len(set(expected))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_group_stands_in_two_folds(seed):
    pictures = collection(seed)
    folds = fold_of(pictures, [f"{p.source}/{p.finding}" for p in pictures], 5, seed)
    assert set(folds) == set(range(5))
    pairs = set(zip(groups_of(pictures).tolist(), folds.tolist(), strict=True))
    assert len(pairs) == len(set(groups_of(pictures)))


def test_every_stratum_stands_in_every_fold():
    pictures = collection(1, 400)
    strata = [f"{p.source}/{p.finding}" for p in pictures]
    folds = fold_of(pictures, strata, 5, seed=1)
    for stratum in set(strata):
        assert {int(folds[i]) for i, name in enumerate(strata) if name == stratum} == set(range(5))


def test_a_stratum_smaller_than_the_folds_is_no_hindrance():
    pictures = collection(2)
    folds = fold_of(pictures, ["rare", *["common"] * (len(pictures) - 1)], 5, seed=1)
    assert set(folds) == set(range(5))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_group_stands_in_two_splits_and_the_shares_are_kept(seed):
    pictures = collection(seed, 400)
    assigned = assign_splits(pictures, {"train": 0.7, "val": 0.2, "external": 0.1}, seed)
    assert [p.image_id for p in assigned] == [p.image_id for p in pictures]
    groups = groups_of(pictures)
    assert len({(g, p.split) for g, p in zip(groups, assigned, strict=True)}) == len(set(groups))
    for stratum in {(p.source, p.finding) for p in pictures}:
        counts = Counter(p.split for p in assigned if (p.source, p.finding) == stratum)
        for split, share in {"train": 0.7, "val": 0.2, "external": 0.1}.items():
            assert counts[split] / counts.total() == pytest.approx(share, abs=0.05)


def test_the_same_seed_splits_alike_and_another_does_not():
    pictures, parts = collection(3), {"train": 0.8, "val": 0.2}
    assert assign_splits(pictures, parts, 1) == assign_splits(pictures, parts, 1)
    assert assign_splits(pictures, parts, 1) != assign_splits(pictures, parts, 2)


def one(image: str, patient: str, split: str = "", cluster: str = "") -> Picture:
    return Picture(image, Path(image), split, "nih", patient, "normal", cluster=cluster)


def test_a_split_that_stands_is_kept_and_draws_the_group_after_it():
    pictures = [one("a", "p1", "external"), one("b", "p1"), one("c", "p2", cluster="x"), one("d", "p1", cluster="x")]
    assert {p.split for p in assign_splits(pictures, {"train": 1.0}, 0)} == {"external"}
    assert assign_splits([one("a", "p1", "val"), one("b", "p2")], {"train": 1.0}, 0)[1].split == "train"


@pytest.mark.parametrize(
    "parts", [{}, {"train": 0.8, "val": 0.1}, {"train": 1.2, "val": -0.2}, {"train": 1.0, "val": 0}]
)
def test_shares_that_are_not_one_together_are_refused(parts):
    with pytest.raises(ValueError, match="have to be positive and 1 together, not"):
        assign_splits(collection(1), parts, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_straddling_group_moves_to_the_split_furthest_from_training(seed):
    rng = np.random.default_rng(seed)
    given = [
        replace(p, split=str(rng.choice(["train", "val", "external"], p=[0.8, 0.15, 0.05]))) for p in collection(seed)
    ]
    mended = held_out_together(given)
    for group in set(groups_of(given).tolist()):
        members = [i for i, g in enumerate(groups_of(given)) if g == group]
        before, after = {given[i].split for i in members}, {mended[i].split for i in members}
        assert after == {next(name for name in ("external", "val", "train") if name in before)}
