"""`dicom-node demo` with both kinds of PACS, and with images of one's own."""

import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from dicom_node.config import Settings
from dicom_node.demo import pacs
from dicom_node.demo.instances import phantom_dataset
from dicom_node.demo.phantom import draw_phantom
from dicom_node.demo.run import DemoError, run


def demo(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "dicom_node", "demo", "--folder", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_the_demo_shows_every_result_in_orthanc(orthanc_program, tmp_path):
    done = demo(tmp_path, "--count", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PACS: Orthanc" in done.stdout
    assert done.stdout.count("delivered") == 2
    assert done.stdout.count("2 of 2") == 2
    assert "every result stands in the PACS" in done.stdout
    assert "not a medical device" in done.stdout


@pytest.fixture
def no_orthanc(monkeypatch, small_bundle):
    """A machine without Orthanc; `Settings()` names the small bundle."""
    monkeypatch.setenv("DICOM_NODE_BUNDLE", str(small_bundle))
    monkeypatch.setattr(pacs, "find_orthanc", lambda: None)


def test_the_demo_runs_without_orthanc_and_never_in_a_real_nodes_ledger(no_orthanc, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DICOM_NODE_DATABASE_URL", f"sqlite:///{tmp_path / 'real.sqlite'}")
    monkeypatch.setenv("DICOM_NODE_ARCHIVE_DIR", str(tmp_path / "real"))
    monkeypatch.setenv("DICOM_NODE_PORT", "1")
    assert run(Settings(), images=None, folder=tmp_path / "demo", count=2)
    assert "every result stands in the PACS" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_the_demo_takes_images_of_ones_own_and_shows_what_was_declined(no_orthanc, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    film = (draw_phantom(7, rows=512, columns=448, opacities=1) >> 4).astype("uint8")
    cv2.imwrite(str(images / "film.png"), film)
    cv2.imwrite(str(images / "film.jpg"), film[:400])
    lateral = phantom_dataset(1, fresh_uids=True)
    lateral.ViewPosition = "LL"
    lateral.save_as(images / "lateral.dcm", enforce_file_format=True)
    (images / "notes.txt").write_text("no image")
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    assert run(Settings(), images=images, folder=tmp_path / "demo", count=1)
    told = capsys.readouterr().out
    assert told.count("delivered") == 2
    assert "lateral" in told
    assert told.count("is left out") == 2
    assert "1 of 3 images were declined" in told


def test_the_demo_fails_where_a_result_is_missing(no_orthanc, tmp_path, capsys, monkeypatch):
    from dicom_node.demo import run as module

    monkeypatch.setattr(module, "_found", lambda *_: frozenset())
    assert not run(Settings(), images=None, folder=tmp_path, count=1)
    assert "results are missing in the PACS" in capsys.readouterr().out


def test_the_demo_fails_where_the_node_refused_an_image(no_orthanc, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for number in range(2):
        ds = phantom_dataset(number, fresh_uids=True)
        if number == 1:
            del ds.StudyInstanceUID
        ds.save_as(tmp_path / "images" / f"{number}.dcm", enforce_file_format=True)
    assert not run(Settings(), images=tmp_path / "images", folder=tmp_path / "demo", count=1)
    told = capsys.readouterr().out
    assert "was refused: the node answered C-STORE with 0xA900" in told
    assert told.count("delivered") == 1
    assert "results are missing in the PACS" in told


def test_a_demo_in_which_all_was_declined_shows_nothing_and_says_so(no_orthanc, tmp_path, capsys):
    lateral = phantom_dataset(1, fresh_uids=True)
    lateral.ViewPosition = "LL"
    (tmp_path / "images").mkdir()
    lateral.save_as(tmp_path / "images" / "lateral.dcm", enforce_file_format=True)
    lateral.SOPClassUID = lateral.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    lateral.save_as(tmp_path / "images" / "ct.dcm", enforce_file_format=True)
    assert not run(Settings(), images=tmp_path / "images", folder=tmp_path / "demo", count=1)
    told = capsys.readouterr().out
    assert "no image was screened" in told
    assert told.count("is left out") == 1


def test_an_empty_folder_is_named(no_orthanc, tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DemoError, match="holds no files"):
        run(Settings(), images=tmp_path / "images", folder=tmp_path / "demo", count=1)


def test_a_folder_that_cannot_be_made_is_named(no_orthanc):
    with pytest.raises(DemoError, match="set --folder"):
        run(Settings(), images=None, folder=Path("/proc/demo"), count=1)
