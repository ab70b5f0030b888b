import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from dicom_node.bundle import find_bundle, read_manifest
from dicom_node.combination import sigmoid
from dicom_node.domain import BundleError, NodeError
from dicom_node.pixels import read_picture
from training.data.manifest import Picture
from training.data.manifest import read_manifest as read_pictures
from training.data.squares import MAX_PIXELS
from training.models.jahan import Jahan2022
from training.models.preprocess import Preprocess
from training.models.zhang import Zhang2020
from training.scoring import score_pictures
from training.shipped import LARGEST_SHARD_BYTES, load_shipped, write_shards
from workers.ensemble import Ensemble, OutputError

TRANSFORM = Preprocess(resize=72, crop=64)


def pictures(n: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(14)
    return [rng.random((150 + 10 * i, 130), dtype=np.float32) for i in range(n)]


def write_bundle(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    point = {"threshold": 0.5, "sensitivity": 0.8, "specificity": 0.7}
    manifest = {
        "name": "random",
        "release": "0.1",
        "title": "Random weights",
        "targets": [
            {
                "name": "covid19",
                "title": "COVID-19 suspected",
                "code": {"value": "840539006", "scheme": "SCT", "meaning": "COVID-19"},
                "weights": {"zhang": 1.0},
                "operating_point": "balanced",
                "operating_points": {"balanced": point},
            }
        ],
        "members": [
            {
                "name": "zhang",
                "title": "Zhang 2020",
                "version": "0.1",
                "architecture": "Zhang2020",
                "citation": "arXiv:2003.12338",
                "weights": write_shards(state, folder, "zhang"),
                "preprocessing": TRANSFORM.to_manifest(),
                "calibration": {"covid19": {"output": "p_avg", "slope": 2.0, "intercept": -1.0}},
            }
        ],
        "training": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(15)
    return Zhang2020().state_dict()


@pytest.fixture(scope="module")
def original(tmp_path_factory, state):
    return write_bundle(tmp_path_factory.mktemp("bundles") / "random", state)


@pytest.fixture(scope="module")
def ensemble(original):
    return Ensemble.load(original)


@pytest.fixture
def folder(original, tmp_path):
    """A copy to spoil; the weights are links, to be replaced, never written to."""
    return Path(shutil.copytree(original, tmp_path / "copy", copy_function=os.link))


@pytest.fixture(scope="module")
def starter():
    return Ensemble.load(find_bundle("starter"))


def change(folder: Path, edit) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest["members"][0])
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def rewrite(folder: Path, state: dict[str, torch.Tensor]) -> None:
    for path in shards(folder):
        path.unlink()
    change(folder, lambda member: member.update(weights=write_shards(state, folder, "zhang")))


def refused(folder: Path, *words: str, device: str = "cpu") -> None:
    with pytest.raises(BundleError) as caught:
        Ensemble.load(folder, device)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_it_answers_every_target_and_gives_the_members_raw_scores(ensemble):
    (prediction,) = ensemble.predict_images(pictures(1))
    raw = prediction.members["zhang"]
    (answer,) = prediction.targets
    assert set(raw) == {"p_cls", "p_ano", "p_avg"}
    assert raw["p_avg"] == pytest.approx((raw["p_cls"] + raw["p_ano"] / 5) / 2, abs=1e-12)
    assert (answer.target, answer.threshold) == ("covid19", 0.5)
    assert answer.probability == pytest.approx(sigmoid(2 * raw["p_avg"] - 1), abs=1e-12)
    assert answer.flagged == (answer.probability >= 0.5)
    assert (prediction.bundle, prediction.release, prediction.operating_point) == ("random", "0.1", "balanced")
    assert ensemble.release == "0.1"


def test_it_gives_a_map_of_each_head_at_the_networks_resolution(ensemble):
    (prediction,) = ensemble.predict_images(pictures(1))
    assert [(found.member, found.name) for found in prediction.maps] == [
        ("zhang", "classification"),
        ("zhang", "anomaly"),
    ]
    for found in prediction.maps:
        assert found.pixels.dtype == np.uint8
        assert found.pixels.shape == (64, 64)
        assert found.pixels.max() in (0, 255)
        assert found.box == TRANSFORM.box


def test_an_image_has_the_same_scores_alone_and_in_a_batch_and_again(ensemble):
    images = pictures()
    together, again = ensemble.predict_images(images), ensemble.predict_images(images)
    for image, one, other in zip(images, together, again, strict=True):
        (alone,) = ensemble.predict_images([image])
        assert one.members == other.members
        assert [found.pixels.tobytes() for found in one.maps] == [found.pixels.tobytes() for found in other.maps]
        for name, value in alone.members["zhang"].items():
            assert value == pytest.approx(one.members["zhang"][name], abs=1e-5)


def test_no_images_give_no_predictions(ensemble):
    assert ensemble.predict_images([]) == []


def test_an_image_of_one_grey_gives_finite_scores(ensemble):
    (prediction,) = ensemble.predict_images([np.full((64, 64), 0.5, dtype=np.float32)])
    assert 0 <= prediction.targets[0].probability <= 1


def test_an_output_that_is_no_number_is_an_error(ensemble):
    with pytest.raises(OutputError, match="p_cls of zhang is nan") as caught:
        ensemble.predict_images([np.full((64, 64), np.nan, dtype=np.float32)])
    assert isinstance(caught.value, NodeError)
    assert caught.value.permanent


def test_the_weights_are_float16_values_computed_in_float32(ensemble, state):
    shipped = ensemble._members[0].network.state_dict()
    weight = shipped["trunk.conv1.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["trunk.conv1.weight"].half().float())


def test_a_weights_file_with_one_bit_changed_is_refused(folder):
    path = shards(folder)[1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    refused(folder, path.name, "SHA-256")


def test_a_missing_weights_file_is_refused(folder):
    shards(folder)[0].unlink()
    refused(folder, shards(folder)[0].name.replace("2-of", "1-of"), "No such file")


def test_a_file_that_is_not_safetensors_is_refused(folder):
    path = shards(folder)[0]
    path.unlink()
    path.write_bytes(b"PK\x03\x04 a pickle, perhaps")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change(folder, lambda member: member["weights"][0].update(sha256=digest))
    refused(folder, path.name, "not safetensors")


def test_an_unknown_architecture_is_refused(folder):
    change(folder, lambda member: member.update(architecture="Zhang2021"))
    refused(folder, "zhang", "Zhang2021")


@pytest.mark.parametrize("options", [{"depth": 18}, {"heads": "three"}])
def test_an_unknown_option_is_refused(folder, options):
    change(folder, lambda member: member.update(options=options))
    refused(folder, "zhang", str(next(iter(options.values()))))


def test_an_option_that_is_no_plain_value_is_refused(folder):
    change(folder, lambda member: member.update(options={"heads": {"first": "both"}}))
    refused(folder, "options")


def test_a_network_is_built_with_its_options(folder, state):
    change(folder, lambda member: member.update(options={"heads": "anomaly"}))
    change(folder, lambda member: member["calibration"]["covid19"].update(output="p_ano"))
    rewrite(folder, {name: tensor for name, tensor in state.items() if "classification" not in name})
    (prediction,) = Ensemble.load(folder).predict_images(pictures(1))
    assert set(prediction.members["zhang"]) == {"p_ano"}
    assert [found.name for found in prediction.maps] == ["anomaly"]


def test_a_score_that_the_options_leave_out_cannot_be_calibrated(folder):
    change(folder, lambda member: member.update(options={"heads": "anomaly"}))
    refused(folder, "zhang", "unknown p_avg")


def test_an_unknown_preprocessing_is_refused(folder):
    change(folder, lambda member: member["preprocessing"].update(standardise="by data set"))
    refused(folder, "zhang", "by data set")


def test_a_calibration_of_an_unknown_output_is_refused(folder):
    change(folder, lambda member: member["calibration"]["covid19"].update(output="p_max"))
    refused(folder, "p_max")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["slope", "intercept"])
def test_a_calibration_that_is_no_number_is_refused(folder, name, value):
    change(folder, lambda member: member["calibration"]["covid19"].update({name: value}))
    refused(folder, name, "finite number")


@pytest.mark.parametrize("weights", [{}, {"zhang": 0.0}, {"zhang": -1.0}])
def test_weights_of_members_without_a_positive_sum_are_refused(folder, weights):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["targets"][0]["weights"] = weights
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused(folder, "targets" if weights.get("zhang") else "positive sum")


def test_a_member_that_cannot_take_its_own_input_is_refused(tmp_path):
    # The autoencoder takes 128 pixels and nothing else, and has no scores before its density is fitted.
    network = Jahan2022(references=4)
    folder = write_bundle(tmp_path / "bundle", network.state_dict())
    scaling = {"covid19": {"output": "reconstruction_error", "slope": 1.0, "intercept": 0.0}}
    change(folder, lambda m: m.update(architecture="Jahan2022", options={"references": 4}, calibration=scaling))
    for side, words in ((64, "64 pixels"), (128, "density was not fitted")):
        preprocessing = Preprocess(side, side, "none").to_manifest()
        change(folder, lambda member, given=preprocessing: member.update(preprocessing=given))
        refused(folder, "member zhang gives no scores", words)


def test_a_missing_tensor_is_refused(folder, state):
    rewrite(folder, {name: tensor for name, tensor in state.items() if name != "trunk.conv1.weight"})
    refused(folder, "trunk.conv1.weight", "missing")


def test_an_unexpected_tensor_is_refused(folder, state):
    rewrite(folder, state | {"trunk.fc.weight": torch.zeros(1, 512)})
    refused(folder, "trunk.fc.weight", "unexpected", ".safetensors")


def test_a_tensor_of_another_shape_is_refused(folder, state):
    rewrite(folder, state | {"trunk.conv1.weight": torch.zeros(64, 1, 7, 7)})
    refused(folder, "trunk.conv1.weight", "(64, 1, 7, 7)")


def test_weights_that_are_not_finite_are_refused(folder, state):
    broken = {name: tensor.half().float() for name, tensor in state.items()}
    part = {"trunk.bn1.bias": torch.full((64,), torch.nan)}
    rewrite(folder, {name: tensor for name, tensor in broken.items() if name not in part})
    data = safetensors.torch.save(part)
    (folder / "extra.safetensors").write_bytes(data)
    entry = {"file": "extra.safetensors", "sha256": hashlib.sha256(data).hexdigest()}
    change(folder, lambda member: member["weights"].append(entry))
    refused(folder, "extra.safetensors", "trunk.bn1.bias", "not finite")


def test_weights_too_large_for_half_precision_are_not_exported(tmp_path):
    with pytest.raises(ValueError, match="half precision"):
        write_shards({"a": torch.tensor([1e6])}, tmp_path, "zhang")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_refused(original):
    refused(original, "cuda", device="cuda")


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, and torch sees no CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_networks_and_batches_are_on_the_asked_device_and_answer_as_on_a_cpu(original, device):
    ensemble, seen = Ensemble.load(original, device), set()

    def look(_module, inputs):
        seen.update(tensor.device.type for tensor in inputs)

    for member in ensemble._members:
        tensors = [*member.network.parameters(), *member.network.buffers()]
        assert {tensor.device.type for tensor in tensors} == {device}
        for module in member.network.modules():
            module.register_forward_pre_hook(look)
    found = ensemble.predict_images(pictures())
    assert seen == {device}
    for ours, theirs in zip(found, Ensemble.load(original).predict_images(pictures()), strict=True):
        assert ours.targets[0].probability == pytest.approx(theirs.targets[0].probability, abs=1e-3)


@pytest.mark.parametrize("device", ["abacus", "meta", "cuda:99"])
def test_a_device_that_cannot_be_used_is_refused(original, device):
    refused(original, device, device=device)


def test_the_starter_bundle_is_whole_and_small_enough(starter):
    folder = find_bundle("starter")
    manifest = read_manifest(folder)
    assert (manifest.name, manifest.release) == ("starter", "1.0.0")
    assert [target.name for target in manifest.targets] == ["covid19"]
    assert set(manifest.targets[0].operating_points) == {"balanced", "high-sensitivity"}
    assert len(manifest.members[0].weights) == 2
    for part in manifest.members[0].weights:
        assert (folder / part.file).stat().st_size <= LARGEST_SHARD_BYTES
    assert starter.manifest == manifest


def test_the_starters_manifest_is_written_out_as_it_was_read():
    folder = find_bundle("starter")
    assert read_manifest(folder).model_dump(mode="json") == json.loads((folder / "manifest.json").read_text())


def test_the_card_names_the_figures_of_evaluation_json():
    folder = find_bundle("starter")
    card = (folder / "MODEL_CARD.md").read_text()
    result = json.loads((folder / "evaluation.json").read_text())
    for split in ("val", "external", "out_of_fold"):
        for found in result[split].values():
            if found["auc"]:
                assert f"{found['auc']['value']:.3f} ({found['auc']['low']:.3f} to {found['auc']['high']:.3f})" in card
    hits = result["external"]["figure1"]["at"]["balanced"]["sensitivity"]
    assert hits["n"] == 33
    assert f"{100 * hits['value']:.1f} %" in card
    for point in result["operating_points"].values():
        assert f"{point['threshold']:.4f}" in card


def test_the_figures_are_those_of_the_manifests_thresholds():
    folder = find_bundle("starter")
    result = json.loads((folder / "evaluation.json").read_text())
    for name, point in read_manifest(folder).targets[0].operating_points.items():
        assert result["operating_points"][name] == point.model_dump()
        adults = result["out_of_fold"]["adults"]["at"][name]
        assert adults["sensitivity"]["value"] == pytest.approx(point.sensitivity)
        assert adults["specificity"]["value"] == pytest.approx(point.specificity)


def test_training_and_service_score_an_image_to_the_same_bit(starter, tmp_path):

    folder = find_bundle("starter")
    path = tmp_path / "a.png"
    Image.fromarray((pictures(1)[0] * 255).astype(np.uint8)).save(path)
    network, transform = load_shipped(folder, json.loads((folder / "manifest.json").read_text())["members"][0])
    (trained,) = score_pictures(network, transform, [Picture("a", path, "val", "nih", "p", "normal")])
    (served,) = starter.predict_images([read_picture(path, max_pixels=MAX_PIXELS)])
    assert served.members["zhang"] == trained


@pytest.mark.timeout(900)  # 1,062 images: half a minute on two idle cores
def test_screening_val_by_the_command_reproduces_the_card(starter, data_dir):
    result = json.loads((find_bundle("starter") / "evaluation.json").read_text())["val"]
    val = [picture for picture in read_pictures(data_dir / "cxr") if picture.frontal and picture.split == "val"]
    command = [sys.executable, "-m", "dicom_node", "screen", "--json", *(str(picture.path) for picture in val)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["path"] for line in lines] == [str(picture.path) for picture in val]
    probability = np.array([line["probability"] for line in lines])
    positive = np.array([picture.finding == "covid19" for picture in val])
    source = np.array([picture.source for picture in val])
    chosen = {name: source == name for name in np.unique(source)}
    chosen |= {"adults": source != "kermany", "pooled": np.ones(len(val), dtype=bool)}
    assert set(chosen) == set(result)
    for name, mine in chosen.items():
        expected = result[name]
        assert int(mine.sum()) == expected["images"]
        if expected["auc"]:
            area = roc_auc_score(positive[mine], probability[mine])
            assert area == pytest.approx(expected["auc"]["value"], abs=1e-6)
        for point, figures in expected["at"].items():
            right = (probability >= starter.manifest.targets[0].operating_points[point].threshold) == positive
            for figure, of in (("sensitivity", mine & positive), ("specificity", mine & ~positive)):
                if of.any():
                    assert right[of].mean() == pytest.approx(figures[figure]["value"], abs=1e-6), (name, point, figure)
                else:
                    assert figures[figure] is None
