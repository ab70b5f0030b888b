import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from training.__main__ import app, main
from training.data import cli
from training.data.manifest import Picture, read_manifest, write_manifest
from training.data.splits import groups_of

RNG = np.random.default_rng(9)


@dataclass
class Found:
    pictures: list[Picture]
    problems: list[str]


@pytest.fixture
def root(tmp_path) -> Path:
    """Twelve patients with two images each; the first image of the last is also the first patient's, half as large."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(24):
        fine = RNG.integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(fine).resize((160, 160), Image.Resampling.BICUBIC).save(folder / f"i{i:02}.png")
    Image.open(folder / "i00.png").resize((120, 120)).save(folder / "i22.png")
    return folder


@pytest.fixture(autouse=True)
def readers(monkeypatch):
    def plain(root: Path, source: str = "nih") -> Found:
        pictures = [
            Picture(
                f"{source}-{file.stem}", file, "train", source, f"{source}-{int(file.stem[1:]) // 2}", "normal", "PA"
            )
            for file in sorted(root.iterdir())
        ]
        return Found(pictures, [f"row {i} is lost" for i in range(12)])

    monkeypatch.setitem(cli.READERS, "plain", plain)
    monkeypatch.setitem(cli.READERS, "other", lambda root: plain(root, "cohen"))
    monkeypatch.setitem(cli.READERS, "broken", lambda root: Found([replace(plain(root).pictures[0], view="CT")], []))


def invoke(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_a_manifest_is_built_and_split_by_patient_and_near_duplicate(root, tmp_path):
    out = tmp_path / "manifest.csv"
    result = invoke("build", "plain", root, "--out", out, "--split", "train=0.75", "--split", "val=0.25", "--seed", 3)
    assert result.exit_code == 0, result.output
    assert "24 images of plain, 24 in all" in result.output
    assert "left out: row 9 is lost\nleft out: 2 more" in result.output
    pictures = read_manifest(out)
    assert {p.image_id: p.cluster for p in pictures if p.cluster} == dict.fromkeys(
        ["nih-i00", "nih-i22"], "near nih-i00"
    )
    assert len(set(groups_of(pictures))) == 11
    assert len({(g, p.split) for g, p in zip(groups_of(pictures), pictures, strict=True)}) == 11
    assert sum(p.split == "val" for p in pictures) == 6


def test_without_splits_the_owners_are_kept(root, tmp_path):
    assert invoke("build", "plain", root, "--out", tmp_path / "m.csv", "--no-clusters").exit_code == 0
    assert {(p.split, p.cluster) for p in read_manifest(tmp_path / "m.csv")} == {("train", "")}


def test_what_is_external_stays_so_when_the_rest_is_split_anew(root, tmp_path):
    first, out = tmp_path / "m.csv", tmp_path / "anew.csv"
    assert invoke("build", "plain", root, "--out", first, "--no-clusters").exit_code == 0
    pictures = read_manifest(first)
    write_manifest([replace(pictures[0], split="external"), *pictures[2:]], first)
    result = invoke("build", "index", first, "--out", out, "--split", "train=0.5", "--split", "val=0.5")
    assert result.exit_code == 0, result.output
    assert [p.image_id for p in read_manifest(out) if p.split == "external"] == ["nih-i00", "nih-i22", "nih-i23"]


def test_what_is_appended_leaves_what_stood_there(root, tmp_path):
    out = tmp_path / "m.csv"
    assert invoke("build", "plain", root, "--out", out, "--no-clusters").exit_code == 0
    before = read_manifest(out)
    result = invoke("build", "other", root, "--out", out, "--append", "--external", "--no-clusters")
    assert result.exit_code == 0, result.output
    assert read_manifest(out)[:24] == before
    assert {p.split for p in read_manifest(out)[24:]} == {"external"}


def test_near_duplicates_of_what_stood_there_are_refused_as_external(root, tmp_path):
    out = tmp_path / "m.csv"
    assert invoke("build", "plain", root, "--out", out, "--no-clusters").exit_code == 0
    result = invoke("build", "other", root, "--out", out, "--append", "--external")
    assert result.exit_code == 1
    assert (
        "refused: a cluster of near duplicates stands in two splits: near cohen-i00 (external, train)" in result.output
    )
    result = invoke("check", out)
    assert result.exit_code == 1
    assert "refused: a cluster of near duplicates" in result.output


def test_a_sound_manifest_is_said_to_be_so(root, tmp_path):
    assert invoke("build", "plain", root, "--out", tmp_path / "m.csv", "--no-clusters").exit_code == 0
    result = invoke("check", tmp_path / "m.csv", "--class", "normal")
    assert (result.exit_code, result.output.count("\n")) == (0, 1)
    assert "24 images, nothing stands against them" in result.output
    assert invoke("check", tmp_path / "m.csv", "--class", "covid19").exit_code == 1


def test_ct_slices_among_x_rays_are_refused(root, tmp_path):
    result = invoke("build", "broken", root, "--out", tmp_path / "m.csv", "--no-clusters")
    assert result.exit_code == 1
    assert "refused: CT slices" in result.output


def test_a_collection_is_described_as_tables_and_as_json(root, tmp_path):
    assert invoke("build", "plain", root, "--out", tmp_path / "m.csv", "--no-clusters").exit_code == 0
    assert "24 images, 12 patients, 0 clusters" in invoke("describe", tmp_path / "m.csv").output
    found = json.loads(invoke("describe", tmp_path / "m.csv", "--json").output)
    assert found["findings"] == {"nih": {"normal": {"train": 24}}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chexpart"], "reader 'chexpart' is not known; known: "),
        (["plain", "--split", "train"], "--split train: NAME=SHARE is needed"),
        (["plain", "--split", "test=1"], "--split test=1: the split is none of train, val, external"),
        (["plain", "--split", "train=0.5", "--no-clusters"], "positive and 1 together, not train=0.5"),
        (["plain", "--split", "train=1", "--external"], "exclude each other"),
        (["plain", "--append"], "m.csv does not exist"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(root, tmp_path, capsys, monkeypatch, arguments, message):
    name, *options = arguments
    command = ["training", "data", "build", name, str(root), "--out", str(tmp_path / "m.csv"), *options]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("left out")]
    assert stopped.value.code == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "m.csv").exists()


def test_a_manifest_is_not_written_over(root, tmp_path, capsys, monkeypatch):
    (tmp_path / "m.csv").touch()
    monkeypatch.setattr("sys.argv", ["training", "data", "build", "plain", str(root), "--out", str(tmp_path / "m.csv")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "already exists; add to it by --append" in capsys.readouterr().err
