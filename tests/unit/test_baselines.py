from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from training.data.manifest import Picture
from training.evaluation import baselines
from training.evaluation.baselines import TITLES, NoLungForests, features, out_of_fold

N = 60
FOLDS = np.array([f"fold{i % 5}" for i in range(N)])
POSITIVE = np.arange(N) % 3 == 0


@pytest.fixture(autouse=True)
def _small_forests(monkeypatch):
    monkeypatch.setattr(baselines, "_TREES", 20)


def picture(i: int, source: str = "cohen", suffix: str = ".jpg") -> Picture:
    return Picture(str(i), Path(f"{i}{suffix}"), "train", source, str(i), "covid19" if POSITIVE[i] else "pneumonia")


def pixels(i: int, *, border: float = 0.0, middle: float = 0.0, height: int = 96) -> np.ndarray:
    """A noisy image whose border, or whose middle, or whose height tells the class."""
    rng = np.random.default_rng(i)
    image = rng.uniform(0.3, 0.5, (height, 96)).astype(np.float32)
    image[:6] += border * POSITIVE[i]
    image[32:64, 32:64] += middle * POSITIVE[i]
    return image


def areas(read) -> dict[str, float]:
    grown = NoLungForests(read)([picture(i) for i in range(N)], POSITIVE, FOLDS)
    return {name: roc_auc_score(POSITIVE, scores) for name, (_, scores) in grown.items()}


def test_the_forests_find_what_is_outside_the_lungs():
    found = areas(lambda p: pixels(int(p.image_id), border=0.4))
    assert found["frame"] == 1
    assert found["thumbnail"] > 0.9
    assert found["form"] == 0.5  # every image has one size: nothing to tell


def test_the_frame_does_not_see_the_middle():
    found = areas(lambda p: pixels(int(p.image_id), middle=0.4))
    assert found["frame"] < 0.8
    assert found["thumbnail"] == 1


def test_the_form_alone_can_tell_the_class():
    found = areas(lambda p: pixels(int(p.image_id), height=96 + 40 * POSITIVE[int(p.image_id)]))
    assert found["form"] == 1


def test_file_types_are_told_apart():
    one, other = (features(picture(0, suffix=suffix), lambda _: pixels(0))["form"] for suffix in (".jpg", ".png"))
    assert one[:3].tolist() == other[:3].tolist() == [96, 96, 1]
    assert one[3] != other[3]


def test_what_the_forests_see():
    found = features(picture(0), lambda _: pixels(0))
    assert {name: len(values) for name, values in found.items()} == {"frame": 64**2 - 48**2, "form": 4, "thumbnail": 64}
    assert set(found) == set(TITLES)


def test_an_image_is_judged_by_a_forest_that_never_saw_it():
    # Each image carries a number of its own that tells its class: known by heart, and worth nothing out of fold.
    table = np.random.default_rng(1).permutation(N)[:, None].astype(float)
    scores = out_of_fold(table, POSITIVE, FOLDS)
    assert 0.2 < roc_auc_score(POSITIVE, scores) < 0.8
    assert (out_of_fold(table, POSITIVE, FOLDS) == scores).all(), "the same seed, the same forest"


def test_where_the_other_folds_hold_one_class_nothing_is_known():
    positive = FOLDS == "fold0"
    assert (out_of_fold(np.zeros((N, 1)), positive, FOLDS)[positive] == 0.5).all()


def test_a_picture_is_read_once_and_a_forest_grown_once():
    reads = []

    def read(shown: Picture) -> np.ndarray:
        reads.append(shown.image_id)
        return pixels(int(shown.image_id))

    forests = NoLungForests(read)
    shown = [picture(i) for i in range(N)]
    first = forests(shown, POSITIVE, FOLDS)
    assert forests(shown, POSITIVE, FOLDS) is first
    assert forests(shown[:30], POSITIVE[:30], FOLDS[:30]) is not first
    assert len(reads) == N


def test_pictures_are_read_as_service_reads_them(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray((pixels(0) * 255).astype(np.uint8)).save(file)
    shown = Picture("a", file, "train", "cohen", "a", "covid19")
    assert features(shown)["thumbnail"] == pytest.approx(features(shown, lambda _: pixels(0))["thumbnail"], abs=0.01)
