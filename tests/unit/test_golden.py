"""The golden images of a bundle, and the scores that go with them."""

import base64
import hashlib
import json
from io import BytesIO

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from tests.ensemble_factories import networks, write_ensemble
from training.golden import HALF_TOLERANCE, TOLERANCE, golden_images, write_golden
from training.scoring import score_images
from training.shipped import load_shipped, write_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_ensemble(tmp_path_factory.mktemp("golden") / "bundle", golden=True)


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def pixels_of(entry):
    with Image.open(BytesIO(base64.b64decode(entry["png"]))) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_ten_images_are_drawn_and_are_the_same_each_time():
    drawn = golden_images()
    assert len(drawn) == 10
    assert {(image.shape, image.dtype.name) for image in drawn} == {((256, 256), "uint8")}
    assert len({image.tobytes() for image in drawn}) == 10
    assert all(np.array_equal(one, other) for one, other in zip(drawn, golden_images(), strict=True))
    assert min(np.ptp(image) for image in drawn) > 0, "a picture of one grey is declined"


def test_the_file_holds_these_images_and_the_scores_of_the_written_weights(folder):
    content = json.loads((folder / "golden.json").read_text())
    shown = [pixels_of(entry) for entry in content]
    assert all(np.array_equal(one, drawn) for one, drawn in zip(shown, golden_images(), strict=True))
    members = manifest_of(folder)["members"]
    assert {tuple(entry["scores"]) for entry in content} == {tuple(member["name"] for member in members)}
    for member in members:
        network, transform = load_shipped(folder, member)
        for entry, pixels in zip(content, shown, strict=True):
            (expected,) = score_images(network, transform, [pixels.astype(np.float32) / np.float32(255)])
            assert entry["scores"][member["name"]] == expected


def test_the_weights_before_they_were_rounded_give_other_scores(folder):
    content, exact = json.loads((folder / "golden.json").read_text()), networks()["minaee"]
    _, transform = load_shipped(folder, manifest_of(folder)["members"][0])
    (found,) = score_images(exact, transform, [pixels_of(content[0]).astype(np.float32) / np.float32(255)])
    assert found != content[0]["scores"]["minaee"]


def test_the_manifest_names_the_file_and_how_near_a_device_must_come(folder):
    golden = manifest_of(folder)["golden"]
    assert golden["sha256"] == hashlib.sha256((folder / "golden.json").read_bytes()).hexdigest()
    assert (golden["tolerance"], golden["half_tolerance"]) == (TOLERANCE, HALF_TOLERANCE)
    assert TOLERANCE < HALF_TOLERANCE


def test_the_same_weights_write_the_same_bytes_and_others_do_not(folder, tmp_path):
    manifest = manifest_of(folder)
    for part in (part for member in manifest["members"] for part in member["weights"]):
        (tmp_path / part["file"]).symlink_to(folder / part["file"])
    again = write_golden(tmp_path, manifest, "again.json")
    assert (tmp_path / "again.json").read_bytes() == (folder / "golden.json").read_bytes()
    assert again["sha256"] == manifest["golden"]["sha256"]
    member = manifest["members"][2]
    state = safetensors.torch.load_file(folder / member["weights"][0]["file"])
    last = next(name for name in reversed(state) if name.endswith("bias"))
    state[last][0] += 1
    for part in member["weights"]:
        (tmp_path / part["file"]).unlink()
    member["weights"] = write_shards(state, tmp_path, "other")
    assert write_golden(tmp_path, manifest, "other.json")["sha256"] != again["sha256"]
