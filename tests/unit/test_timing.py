from pathlib import Path

import pytest

from training import timing
from training.data.manifest import Picture
from training.papers import PAPERS


def pictures():
    """Twenty frontal images of each finding in each collection, of as many patients."""
    kinds = [
        ("cohen", "covid19"),
        *(("nih", name) for name in ("normal", "pneumonia", "other_disease")),
        *(("kermany", name) for name in ("normal", "pneumonia")),
    ]
    return [
        Picture(f"{source}{finding}{n}", Path("none.png"), "train", source, f"{source}{finding}{n}", finding, "PA")
        for source, finding in kinds
        for n in range(20)
    ]


def test_all_images_of_all_epochs_and_runs_are_counted_and_a_frozen_part_once(monkeypatch):
    monkeypatch.setattr(
        timing, "seconds_an_image", lambda recipe, *_: (1.0, 1e6) if recipe.cache_features else (1.0, 0.0)
    )
    found = timing.timings(pictures(), "cpu")
    assert {name: set(variants) for name, variants in found["seconds"].items()} == {
        name: set(paper.variants) for name, paper in PAPERS.items()
    }
    # Two splits of 16 epochs of 1,500 images, after a first stage of 6 epochs of 2,000.
    assert found["seconds"]["zhang"]["both"]["small"] == 2 * 16 * 1500 + 6 * 2000
    # Five folds of 50 epochs of 64 images, after 100 epochs of nine tenths of the 40 that are not tested.
    assert found["seconds"]["basu"]["alexnet"]["paper"] == 5 * 50 * 64 + 100 * 36
    recipe = PAPERS["minaee"].recipe("squeezenet", "paper")
    data, (run,) = timing.plan(PAPERS["minaee"], recipe, pictures(), "paper", "covid19")
    epoch = sum(5 if data.labels[i] else 1 for i in run.train)
    assert found["seconds"]["minaee"]["squeezenet"]["paper"] == float(f"{100 * epoch + 1e6 * epoch:.3g}")


@pytest.mark.parametrize(
    ("paper", "variant", "frozen_once"), [("jahan", "paper", False), ("minaee", "squeezenet", True)]
)
def test_a_step_and_a_frozen_part_are_measured(paper, variant, frozen_once):
    recipe = PAPERS[paper].recipe(variant, "small").but(batch=2)
    recipe = recipe.but(resize=64, crop=64) if paper == "minaee" else recipe
    step, frozen = timing.seconds_an_image(recipe, "cpu", steps=1)
    assert step > 0
    assert (frozen > 0) == frozen_once
