from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.data.checks import check, require
from training.data.describe import describe, tables
from training.data.manifest import Picture, read_manifest


@pytest.fixture
def pictures(tmp_path) -> list[Picture]:
    """Nothing stands against these: a CT slice that says so is listed, and one image has no split."""
    (tmp_path / "image.png").touch()
    rows = [
        ("a", "train", "p1", "normal", "PA"),
        ("b", "train", "p1", "normal", "LATERAL"),
        ("c", "val", "p2", "covid19", ""),
        ("d", "external", "p3", "covid19", "AP"),
        ("e", "train", "p4", "not_cxr", "CT"),
        ("f", "", "p1", "normal", "PA"),
    ]
    return [Picture(i, tmp_path / "image.png", s, "nih", p, f, v, sha256=i, cluster=p) for i, s, p, f, v in rows]


def test_nothing_stands_against_a_sound_collection(pictures):
    assert check(pictures, ["normal", "covid19"]) == []


@pytest.mark.parametrize(
    ("row", "change", "sentence"),
    [
        (1, {"split": "val", "cluster": ""}, "a patient stands in two splits: p1 (train, val)"),
        (2, {"cluster": "p1"}, "a cluster of near duplicates stands in two splits: p1 (train, val)"),
        (3, {"sha256": "c"}, "one file (by its sha256) stands in two splits: c (external, val)"),
        (2, {"image_id": "a"}, "image_id is not unique: a"),
        (2, {"split": "test"}, "the split is none of train, val, external: test"),
        (
            2,
            {"view": "CT"},
            "CT slices, or other images that are no X-rays, stand among the X-rays (the view says so): c (CT)",
        ),
        (2, {"path": Path("/none/gone.png")}, "a file is missing: /none/gone.png"),
    ],
)
def test_each_fault_is_a_refusal_that_names_what_is_wrong(pictures, row, change, sentence):
    pictures[row] = replace(pictures[row], **change)
    assert check(pictures) == [sentence]


def test_a_class_without_a_frontal_image_is_refused(pictures):
    lateral = [replace(picture, view="LATERAL") for picture in pictures]
    assert check(lateral, ["covid19", "pneumonia"]) == ["a class has no frontal image: covid19, pneumonia"]


def test_an_empty_manifest_is_refused():
    assert check([]) == ["no image is listed: the manifest is empty"]


def test_a_refusal_names_the_first_few_and_counts_the_rest(pictures):
    many = [replace(pictures[0], image_id=f"i{i}", path=Path(f"/none/{i}")) for i in range(8)]
    assert check(many) == ["a file is missing: /none/0, /none/1, /none/2, /none/3, /none/4 and 3 more"]


def test_training_is_refused_in_one_line_with_every_refusal(pictures):
    frontal = [picture for picture in pictures if picture.frontal]
    labels = np.array([picture.finding == "covid19" for picture in frontal], dtype=np.int64)
    require(frontal, labels, ["normal", "covid19"])
    frontal[1] = replace(frontal[1], image_id="a")
    with pytest.raises(ValueError, match=r"^image_id is not unique: a; a class has no image: pneumonia$"):
        require(frontal, labels, ["normal", "covid19", "pneumonia"])


def test_ct_slices_are_not_trained_on_even_where_the_manifest_names_them(pictures):
    with pytest.raises(ValueError, match=r"^CT slices are to be used as X-rays: e$"):
        require(pictures, np.zeros(len(pictures), dtype=np.int64), ["normal"])


def test_a_collection_is_counted_by_source(pictures):
    ages = ["7", "64.5", "65", "old", "", "-1"]
    rows = [
        replace(p, age=age, sex="F" if i else "", cluster="x")
        for i, (p, age) in enumerate(zip(pictures, ages, strict=True))
    ]
    rows[0] = replace(rows[0], source="cohen", licence="CC BY 4.0")
    found = describe(rows)
    assert (found["images"], found["patients"], found["clusters"]) == (6, 4, 1)
    assert found["findings"]["nih"] == {
        "normal": {"train": 1, "not stated": 1},
        "covid19": {"val": 1, "external": 1},
        "not_cxr": {"train": 1},
    }
    assert found["views"]["nih"] == {"AP": 1, "CT": 1, "LATERAL": 1, "PA": 1, "not stated": 1}
    assert found["sex"] == {"cohen": {"not stated": 1}, "nih": {"F": 5}}
    assert found["age"] == {"cohen": {"0-17": 1}, "nih": {"40-64": 1, "65 and more": 1, "not stated": 3}}
    assert found["licences"] == {"cohen": {"CC BY 4.0": 1}, "nih": {"not stated": 5}}
    assert [table.row_count for table in tables(found)] == [6, 6, 2, 4, 2]


def test_the_real_index_is_sound_as_far_as_it_says(data_dir):
    pictures = read_manifest(data_dir / "cxr")
    assert check(pictures, ["covid19", "pneumonia", "normal", "other_disease"]) == []
    found = describe(pictures)
    assert found["images"] == len(pictures)
    assert set(found["findings"]["figure1"]["covid19"]) == {"external"}
    assert sum(n for counts in found["views"].values() for n in counts.values()) == len(pictures)
