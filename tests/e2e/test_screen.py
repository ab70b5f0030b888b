"""`dicom-node screen`: files and folders offline, one line an input, whatever the input is."""

import json
import subprocess
import sys

import cv2
import pytest
import torch
from pydicom import dcmread
from pydicom.uid import RLELossless

from dicom_node.config import Settings
from dicom_node.demo.instances import phantom_dataset
from dicom_node.demo.phantom import draw_phantom
from workers import offline

KEYS = {
    "path",
    "sop_instance_uid",
    "admitted",
    "reason",
    "probability",
    "decision",
    "flagged",
    "threshold",
    "bundle",
    "targets",
    "members",
    "anomalous",
    "remarks",
}


def screen(*arguments):
    """Exit status, and the JSON lines by file name."""
    done = subprocess.run(
        [sys.executable, "-m", "dicom_node", "screen", "--json", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {line["path"].rpartition("/")[2]: line for line in lines}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A film, a lateral, pictures, and everything that can be wrong with a file."""
    found = tmp_path_factory.mktemp("films")
    film = phantom_dataset(0)
    film.save_as(found / "a-film.dcm", enforce_file_format=True)
    lateral = phantom_dataset(1)
    lateral.ViewPosition = "LL"
    lateral.save_as(found / "b-lateral.dcm", enforce_file_format=True)
    pixels = (draw_phantom(3, rows=300, columns=260, opacities=2) >> 4).astype("uint8")
    cv2.imwrite(str(found / "c-picture.png"), pixels)
    cv2.imwrite(str(found / "d-blank.png"), pixels * 0)
    (found / "e-broken.dcm").write_bytes((found / "a-film.dcm").read_bytes()[:3000])
    (found / "f-broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (found / "g-text.dcm").write_text("no DICOM")
    (found / "h-notes.txt").write_text("not an input")
    huge = phantom_dataset(2)
    huge.Rows = huge.Columns = 65535
    huge.save_as(found / "i-huge.dcm", enforce_file_format=True)
    last = phantom_dataset(3)
    last.save_as(found / "j-last", enforce_file_format=True)
    cut = phantom_dataset(4)
    cut.compress(RLELossless, generate_instance_uid=False)
    cut.save_as(found / "k-cut.dcm", enforce_file_format=True)
    (found / "k-cut.dcm").write_bytes((found / "k-cut.dcm").read_bytes()[:200_000])
    (found / "l-empty.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"garbage" * 100)
    (found / "m-picture.dcm").write_bytes((found / "c-picture.png").read_bytes())
    return found


@pytest.fixture(scope="module")
def answers(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return *screen(folder, folder / "nowhere.dcm", "--out", out), out


def test_every_input_has_a_line_with_the_documented_keys(answers):
    _, lines, _ = answers
    assert list(lines) == [
        "a-film.dcm",
        "b-lateral.dcm",
        "c-picture.png",
        "d-blank.png",
        "e-broken.dcm",
        "f-broken.jpg",
        "g-text.dcm",
        "i-huge.dcm",
        "j-last",
        "k-cut.dcm",
        "l-empty.dcm",
        "m-picture.dcm",
        "nowhere.dcm",
    ]
    for line in lines.values():
        assert line.keys() - {"error", "detail"} == KEYS


def test_unreadable_files_say_why_and_the_exit_status_is_1(answers):
    status, lines, _ = answers
    assert status == 1
    broken = {name for name, line in lines.items() if "error" in line}
    assert broken == {
        "e-broken.dcm",
        "f-broken.jpg",
        "g-text.dcm",
        "i-huge.dcm",
        "k-cut.dcm",
        "l-empty.dcm",
        "nowhere.dcm",
    }
    assert {lines[name]["admitted"] for name in broken - {"e-broken.dcm", "i-huge.dcm"}} == {None}
    assert "(0028,0010)" in lines["i-huge.dcm"]["error"]
    assert "(7FE0,0010)" in lines["k-cut.dcm"]["error"]
    assert "No such file" in lines["nowhere.dcm"]["error"]


def test_the_others_are_screened(answers):
    _, lines, _ = answers
    for name in ("a-film.dcm", "c-picture.png", "j-last", "m-picture.dcm"):
        line = lines[name]
        assert line["admitted"] is True
        assert line["reason"] is None
        first = next(iter(line["targets"].values()))
        assert (line["probability"], line["threshold"], line["flagged"]) == (
            first["probability"],
            first["threshold"],
            first["flagged"],
        )
        assert list(line["targets"]) == ["covid19", "pneumonia", "abnormal"]
        for target in line["targets"].values():
            plain = "flagged" if target["probability"] >= target["threshold"] else "not_flagged"
            assert target["decision"] in (plain, "indeterminate")
            assert target["flagged"] == (target["decision"] == "flagged")
            assert all(0 <= value <= 1 for value in target["members"].values())
        assert line["decision"] == line["targets"]["covid19"]["decision"]
        assert set(line["members"]["zhang"]) == {"p_cls", "p_ano", "p_avg"}
        assert {"jahan", "zhong"} < set(line["members"])
        assert line["remarks"] == []
        assert list(line["anomalous"]) == ["jahan"]


def test_what_is_declined_has_its_reason_and_no_figures(answers):
    _, lines, _ = answers
    for name, reason in (("b-lateral.dcm", "lateral"), ("d-blank.png", "constant")):
        line = lines[name]
        assert (line["admitted"], line["reason"], line["probability"], line["flagged"]) == (False, reason, None, None)


def test_results_are_written_where_asked(answers):
    _, _, out = answers
    names = sorted(path.name.partition("-")[0] + path.name[path.name.index(".") :] for path in out.iterdir())
    assert names == [
        "a.heatmap.dcm",
        "a.report.dcm",
        "c.heatmap.png",
        "j.heatmap.dcm",
        "j.report.dcm",
        "m.heatmap.png",
    ]
    assert dcmread(next(out.glob("a-*.report.dcm"))).Modality == "SR"


def test_the_exit_status_is_0_where_everything_could_be_read(folder):
    status, lines = screen(folder / "a-film.dcm", folder / "b-lateral.dcm")
    assert status == 0
    assert len(lines) == 2


def test_a_result_that_cannot_be_built_is_that_films_error_and_the_others_go_on(tmp_path):
    for number in range(3):
        ds = phantom_dataset(number)
        if number == 1:
            del ds.StudyInstanceUID
        ds.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    status, lines = screen(tmp_path, "--out", tmp_path / "out")
    assert status == 1
    assert [name for name, line in lines.items() if "error" in line] == ["1.dcm"]


def test_an_output_folder_that_is_a_file_is_named_before_anything_is_screened(folder, tmp_path):
    (tmp_path / "out").write_text("a file")
    status, lines = screen(folder, "--out", tmp_path / "out")
    assert (status, lines) == (2, {})


def test_it_keeps_to_the_setting_threads(tmp_path):
    """Another number of threads may change the last digits: `screen` has to do as the worker does."""
    before = torch.get_num_threads()
    try:
        for threads in (1, before + 1):
            offline.screen(Settings(threads=threads), [tmp_path], as_json=True, out=None)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
