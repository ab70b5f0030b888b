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
from sklearn.metrics import roc_auc_score

from dicom_node.bundle import find_bundle, read_manifest
from dicom_node.combination import sigmoid
from dicom_node.demo.instances import phantom_dataset
from dicom_node.domain import BundleError, DeclinedByPixelsError, NodeError, Prediction
from dicom_node.pixels import read_instance, render
from training.data.manifest import read_manifest as read_pictures
from training.data.squares import MAX_PIXELS
from training.evaluation.tasks import BY_PNEUMONIA
from training.models.jahan import Jahan2022
from training.models.preprocess import Preprocess
from training.models.zhang import Zhang2020
from training.shipped import LARGEST_SHARD_BYTES, write_shards
from workers.ensemble import Ensemble

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
    (found,) = ensemble.predict_images([np.full((64, 64), np.nan, dtype=np.float32)])
    assert isinstance(found, NodeError)
    assert found.permanent
    assert "zhang is required and gave no output" in str(found)


def test_the_weights_are_float16_values_computed_in_float32(ensemble, state):
    shipped = ensemble._members[0].network.state_dict()
    weight = shipped["heads.anomaly.0.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["heads.anomaly.0.weight"].half().float())


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


def test_the_starter_bundle_holds_all_five_methods_and_is_small_enough(starter):
    folder = find_bundle("starter")
    manifest = read_manifest(folder)
    assert (manifest.name, manifest.release) == ("starter", "2.0.0")
    assert [target.name for target in manifest.targets] == ["covid19", "pneumonia", "abnormal"]
    methods = {"Zhang2020", "Basu2020", "Jahan2022", "Zhong2020", "Minaee2020"}
    assert {member.architecture for member in manifest.members} == methods
    assert all(weight > 0 for target in manifest.targets for weight in target.weights.values())
    for target in manifest.targets:
        assert set(target.operating_points) == {"balanced", "high-sensitivity"}
        assert target.disagreement.error_beyond > target.disagreement.error, (
            "what is undecided is what is oftener wrong"
        )
    for path in folder.glob("*.safetensors"):
        assert path.stat().st_size <= LARGEST_SHARD_BYTES
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 80_000_000
    assert starter.manifest == manifest
    named = {part.file for member in manifest.members for part in member.weights} | {manifest.gate.weights.file}
    assert {path.name for path in folder.glob("*.safetensors")} == named


def test_the_starters_manifest_is_written_out_as_it_was_read():
    folder = find_bundle("starter")
    assert read_manifest(folder).model_dump(mode="json") == json.loads((folder / "manifest.json").read_text())


def test_the_card_names_the_figures_of_evaluation_json():
    folder = find_bundle("starter")
    card = (folder / "MODEL_CARD.md").read_text()
    result = json.loads((folder / "evaluation.json").read_text())
    told = 0
    for task in result["combination"]["tasks"].values():
        if found := task["figures"]["auc"]:
            told += f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" in card
    assert told >= 15
    for row in result["members"]:
        for found in (row["ensemble"], *row["members"].values()):
            assert f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" in card
    for target in result["targets"]:
        for point in target["operating_points"].values():
            assert f"{point['threshold']:.4f}" in card


def test_the_starter_is_worth_at_least_its_best_member_as_far_as_can_be_told():
    result = json.loads((find_bundle("starter") / "evaluation.json").read_text())
    for row in result["members"]:
        assert row["more_than_best"]["high"] >= 0, "never surely worse"


def test_the_starters_gate_was_measured_to_decline_what_it_must_and_little_else():
    measured = json.loads((find_bundle("starter") / "evaluation.json").read_text())["gate"]["measured"]
    for kind in ("lateral, as it is", "slice, as it is"):
        shown, declined = measured[kind]
        assert shown >= 36
        assert declined >= 0.95 * shown
    for name, (shown, declined) in measured.items():
        if name.startswith("other: "):
            assert declined >= 0.95 * shown, name
        if name.startswith("frontal") and shown >= 50:
            assert declined <= 0.02 * shown, name


def test_the_demos_phantoms_pass_the_starters_gate(starter):
    for index in range(6):
        (found,) = starter.predict_images([render(phantom_dataset(index), max_pixels=MAX_PIXELS)])
        assert isinstance(found, Prediction), str(found)
        assert found.remarks == ()
        assert len(found.targets) == 3


def test_the_starter_mends_a_phantom_that_stands_wrong(starter):
    image = render(phantom_dataset(1), max_pixels=MAX_PIXELS)
    right, turned, inverted = (starter.predict_images([one])[0] for one in (image, np.rot90(image).copy(), 1 - image))
    assert turned.remarks == ("turned:90",)
    assert inverted.remarks == ("polarity_mended",)
    for found in (turned, inverted):
        for one, other in zip(found.targets, right.targets, strict=True):
            assert one.probability == pytest.approx(other.probability, abs=2e-3)


@pytest.mark.parametrize("name", ["RG2_JPLL.dcm", "RG3_J2KI.dcm"])
def test_the_starter_declines_another_body_part(starter, data_dir, name):
    image = render(read_instance((data_dir / "dicom" / name).read_bytes()), max_pixels=MAX_PIXELS)
    (found,) = starter.predict_images([image])
    assert isinstance(found, DeclinedByPixelsError)


@pytest.mark.timeout(900)  # 1,079 images: some minutes on two idle cores
def test_screening_val_by_the_command_reproduces_the_evaluation(starter, data_dir):
    tasks = json.loads((find_bundle("starter") / "evaluation.json").read_text())["combination"]["tasks"]
    val = [picture for picture in read_pictures(data_dir / "cxr") if picture.frontal and picture.split == "val"]
    val = [picture for picture in val if picture.source == "nih"]
    command = [sys.executable, "-m", "dicom_node", "screen", "--json", *(str(picture.path) for picture in val)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["path"] for line in lines] == [str(picture.path) for picture in val]
    answered = [line["probability"] is not None for line in lines]
    assert np.mean(answered) > 0.98
    asked = [picture.finding in ("pneumonia", "normal") for picture in val]
    for target, name in (
        ("abnormal", "val, pneumonia against normal, nih"),
        ("pneumonia", f"val, {BY_PNEUMONIA}pneumonia against normal, nih"),
    ):
        figures = tasks[name]["figures"]
        shown = [
            (line["targets"][target], picture.finding == "pneumonia")
            for line, picture, here, inside in zip(lines, val, answered, asked, strict=True)
            if here and inside
        ]
        assert len(shown) == figures["images"], "the gate has declined none of them"
        area = roc_auc_score([positive for _, positive in shown], [found["probability"] for found, _ in shown])
        assert area == pytest.approx(figures["auc"]["value"], abs=2e-3)
        at = figures["at"]["youden"]
        right = [(found["probability"] >= found["threshold"]) for found, positive in shown if positive]
        assert np.mean(right) == pytest.approx(at["sensitivity"]["value"], abs=0.011), "one film at most"
