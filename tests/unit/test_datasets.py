import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.datasets import fold_of, load_squares, read_index
from training.papers.zhang2020 import RECIPE
from training.train import draw_epoch

COLUMNS = ("image_id", "path", "split", "source", "patient_id", "finding", "view", "licence")


def index(folder: Path, *rows: tuple[str, ...]) -> Path:
    with (folder / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return folder


def row(image: str, split: str, patient: str, finding: str = "normal", view: str = "PA", source: str = "nih"):
    return (image, f"{source}/{image}.png", split, source, patient, finding, view, "CC BY 4.0")


def test_only_frontal_chest_x_rays_are_used(tmp_path):
    index(
        tmp_path,
        row("a", "train", "p1", view="PA"),
        row("b", "train", "p2", view="LATERAL"),
        row("c", "train", "p3", finding="not_cxr", view="CT"),
        row("d", "external", "p4", finding="covid19", view=""),
    )
    assert [picture.image_id for picture in read_index(tmp_path)] == ["a", "d"]
    assert [picture.image_id for picture in read_index(tmp_path, "external")] == ["d"]


def test_a_patient_in_two_splits_is_refused(tmp_path):
    # Even where the second image would not be used: it shows that the split was not made by patient.
    index(tmp_path, row("a", "train", "p1"), row("b", "val", "p1", view="LATERAL"))
    with pytest.raises(ValueError, match="p1 stands in two splits"):
        read_index(tmp_path, "train")


def test_covid_19_is_positive_and_everything_else_negative(tmp_path):
    findings = ("covid19", "pneumonia", "normal", "other_disease")
    index(tmp_path, *(row(finding, "train", finding, finding) for finding in findings))
    assert [picture.positive for picture in read_index(tmp_path)] == [True, False, False, False]


def test_no_patient_stands_in_two_folds_and_every_stratum_in_all(tmp_path):
    rows = [
        row(f"{source}{i}", "train", f"{source}-{i // 3}", "covid19" if i % 2 else "normal", source=source)
        for source in ("cohen", "nih")
        for i in range(60)
    ]
    pictures = read_index(index(tmp_path, *rows))
    folds = fold_of(pictures, 3, seed=1)
    for patient in {picture.patient_id for picture in pictures}:
        assert len({folds[i] for i, picture in enumerate(pictures) if picture.patient_id == patient}) == 1
    for stratum in {picture.stratum for picture in pictures}:
        assert {int(folds[i]) for i, picture in enumerate(pictures) if picture.stratum == stratum} == {0, 1, 2}


def test_an_epoch_holds_each_stratum_by_its_share(tmp_path):
    sources = {"cohen/positive": 9, "cohen/negative": 3, "hannover/positive": 5, "nih/negative": 90}
    sources["kermany/negative"] = 2000
    rows = [
        row(f"{n}{i}", "train", f"{n}{i}", "covid19" if n.endswith("positive") else "normal", source=n.split("/")[0])
        for n, count in sources.items()
        for i in range(count)
    ]
    pictures = read_index(index(tmp_path, *rows))
    order = draw_epoch(pictures, RECIPE, np.random.default_rng(0))
    assert len(order) == RECIPE.images_per_epoch
    counts = np.bincount(order, minlength=len(pictures))
    for stratum, share in RECIPE.shares.items():
        chosen = counts[[i for i, picture in enumerate(pictures) if picture.stratum == stratum]]
        assert chosen.sum() == pytest.approx(share * len(order), abs=6)
        assert chosen.max() - chosen.min() <= 6  # the last few drawn are cut off


def test_pictures_are_loaded_as_squares(tmp_path):
    (tmp_path / "nih").mkdir()
    picture = np.random.default_rng(1).integers(0, 256, (24, 24), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "nih" / "a.png")
    Image.fromarray(picture.repeat(2, axis=1)).save(tmp_path / "nih" / "b.png")
    pictures = read_index(index(tmp_path, row("a", "train", "p1"), row("b", "train", "p2")))
    squares = load_squares(pictures, 24)
    assert squares.dtype == torch.uint8
    assert np.array_equal(squares[0].numpy(), picture)
    assert load_squares(pictures, 12).shape == (2, 12, 12)


def test_the_real_index_is_split_by_patient(data_dir):
    pictures = read_index(data_dir / "cxr")
    assert {picture.split for picture in pictures} == {"train", "val", "external"}
    assert not {picture.view for picture in pictures} & {"LATERAL", "CT"}
    assert all(picture.split == "external" for picture in pictures if picture.source == "figure1")


def test_each_stratum_of_the_real_train_has_a_share_of_the_epoch(data_dir):
    assert {picture.stratum for picture in read_index(data_dir / "cxr", "train")} == set(RECIPE.shares)
    assert sum(RECIPE.shares.values()) == pytest.approx(1)
