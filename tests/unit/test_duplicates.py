import csv
import io
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from training.data import duplicates as module
from training.data.duplicates import clustered, duplicates
from training.data.manifest import Picture, read_manifest

ROWS, COLUMNS = 288, 240


def film(seed: int) -> Image.Image:
    """A chest of nobody: every one has the same lungs, its own build, ribs and vessels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : ROWS * 1j, -1 : 1 : COLUMNS * 1j]
    lungs = np.exp(-((((np.abs(x) - 0.45) / 0.3) ** 2 + (y / 0.7) ** 2) ** 2))
    spacing, tilt, start = rng.uniform(16, 24), rng.uniform(0.5, 1.0), rng.uniform(0, 6)
    ribs = np.sin(spacing * (y - tilt * np.abs(x) ** 1.5) + start)
    vessels = cv2.GaussianBlur(rng.normal(size=(ROWS, COLUMNS)), (0, 0), 3) * 30
    grey = 170 - 90 * lungs + 14 * ribs + 10 * vessels * lungs + 40 * np.exp(-((x / 0.12) ** 2))
    return Image.fromarray(np.clip(grey, 1, 254).astype(np.uint8))


def compressed(image: Image.Image) -> Image.Image:
    held = io.BytesIO()
    image.save(held, "JPEG", quality=30)
    return Image.open(held).convert("L")


def lettered(image: Image.Image) -> Image.Image:
    copy = image.copy()
    ImageDraw.Draw(copy).text((90, 240), "day 1", fill=0, font_size=18)
    return copy


COPIES = {
    "half the size": lambda image: image.resize((COLUMNS // 2, ROWS // 2)),
    "drawn to a square": lambda image: image.resize((224, 224)),
    "compressed": compressed,
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "gamma": lambda image: image.point([round(255 * (v / 255) ** 1.5) for v in range(256)]),
    "central square": lambda image: image.crop((0, 24, 240, 264)),
    "square at the end": lambda image: image.crop((0, 48, 240, 288)),
    "trimmed": lambda image: image.crop((4, 5, 236, 283)),
    "turned": lambda image: image.rotate(1, resample=Image.Resampling.BILINEAR),
    "lettered": lettered,
}


def saved(image: Image.Image, file: Path, **given: str) -> Picture:
    image.save(file)
    return Picture(file.stem, file, "", "nih", file.stem, "normal", **given)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> list[Picture]:
    folder = tmp_path_factory.mktemp("films")
    return [saved(film(seed), folder / f"film{seed}.png") for seed in range(12)]


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_found(films, tmp_path, copy):
    changed = saved(COPIES[copy](film(3)), tmp_path / "copy.png")
    assert duplicates([*films, changed]).tolist() == [[3, 12]]


def test_different_films_are_no_duplicates_though_alike_in_the_coarse(films):
    assert duplicates(films).shape == (0, 2)
    one, other = (np.asarray(film(seed).resize((12, 12)), dtype=float).ravel() for seed in (1, 2))
    assert np.corrcoef(one, other)[0, 1] > 0.9


def test_no_pictures_have_no_duplicates():
    assert duplicates([]).shape == (0, 2)
    assert clustered([]) == ()


def test_a_picture_that_cannot_be_read_is_like_no_other(films, tmp_path):
    broken = [saved(film(1), tmp_path / f"broken{i}.png") for i in range(2)]
    for picture in broken:
        picture.path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2 of 14 images cannot be read.*broken0.*broken1"):
        duplicates([*films, *broken])
    assert duplicates([*films * 9, broken[0]])[:, 1].max() < 9 * len(films)


def test_copies_of_copies_are_one_cluster_by_the_name_of_its_first_image(films, tmp_path):
    copies = [saved(COPIES[name](film(5)), tmp_path / f"a {name}.png") for name in ("compressed", "darker")]
    found = clustered([*films, *copies])
    named = {picture.image_id: picture.cluster for picture in found if picture.cluster}
    assert named == dict.fromkeys(["film5", "a compressed", "a darker"], "near a compressed")
    assert [picture.image_id for picture in found] == [picture.image_id for picture in (*films, *copies)]


def test_what_was_a_cluster_before_and_files_of_one_hash_stay_together(films, tmp_path):
    given = [
        saved(film(20), tmp_path / "a.png", cluster="by their owner"),
        saved(film(21), tmp_path / "b.png", cluster="by their owner", sha256="1"),
        saved(film(22), tmp_path / "c.png", sha256="1"),
        saved(film(23), tmp_path / "d.png", sha256="2", cluster="alone"),
    ]
    assert [picture.cluster for picture in clustered(given)] == ["near a", "near a", "near a", ""]


@pytest.mark.parametrize("block", [7, 64, 2048])
def test_candidates_are_all_pairs_of_near_hashes(monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**63, (12, 2), dtype=np.uint64)[rng.integers(0, 12, 100)]
    hashes ^= np.uint64(1) << rng.integers(0, 64, (100, 2), dtype=np.uint64)
    owner = np.arange(100) // 2
    expected = {
        (i, j)
        for i in range(60)
        for j in range(i + 1, 100)
        if owner[i] != owner[j]
        and sum((int(a) ^ int(b)).bit_count() for a, b in zip(hashes[i], hashes[j], strict=True)) <= 14
    }
    found = [tuple(pair) for pair in module._candidates(hashes, owner, firsts=60).tolist()]
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_what_two_real_collections_share_by_its_file_name_is_found(data_dir):
    pictures = {picture.image_id: picture for picture in read_manifest(data_dir / "cxr")}
    named = defaultdict(list)
    with (data_dir / "cxr" / "index.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            named[Path(row["original"]).stem].append(pictures[row["image_id"]])
    shared = [
        (one, other) for one, other in (two for two in named.values() if len(two) == 2) if one.source != other.source
    ]
    assert len(shared) == 36
    found = duplicates([picture for pair in shared for picture in pair])
    assert len(found) >= 35
    assert all(one // 2 == other // 2 for one, other in found.tolist())
