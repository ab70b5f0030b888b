"""An ensemble of several members: shared blocks, batches, members that fail, golden images."""

import hashlib
import json

import numpy as np
import pytest
import torch

from dicom_node.domain import BundleError, NodeError, Prediction
from tests.ensemble_factories import images, networks, write_ensemble
from training.models.fold import fold_batch_norm
from training.scoring import score_images
from training.shipped import load_shipped
from workers.ensemble import DeviceError, Ensemble


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_ensemble(tmp_path_factory.mktemp("together") / "bundle", golden=True)


@pytest.fixture
def ensemble(folder):
    return Ensemble.load(folder)


def member(ensemble, name):
    return next(one for one in ensemble._members if one.name == name)


def test_service_scores_an_image_as_training_does(ensemble, folder):
    shown = images(2)
    found = ensemble.predict_images(shown)
    for described in json.loads((folder / "manifest.json").read_text())["members"]:
        network, transform = load_shipped(folder, described)
        for ours, theirs in zip(found, score_images(network, transform, shown), strict=True):
            assert ours.members[described["name"]] == pytest.approx(theirs, abs=1e-5)


def test_members_with_equal_blocks_run_them_once(ensemble):
    minaee, basu = member(ensemble, "minaee"), member(ensemble, "basu")
    assert minaee.shared is basu.shared
    assert minaee.network.backbone.features is basu.network.backbone.features
    calls = []
    minaee.shared.stages[0].register_forward_hook(lambda *_: calls.append(1))
    ensemble.predict_images(images(1))
    assert calls == [1]


def test_members_with_other_blocks_keep_their_own(tmp_path):
    folder = write_ensemble(tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["members"][1]["preprocessing"] |= {"resize": 72}  # the same blocks see another picture
    (folder / "manifest.json").write_text(json.dumps(manifest))
    ensemble = Ensemble.load(folder)
    assert member(ensemble, "minaee").shared is not member(ensemble, "basu").shared
    assert ensemble.squares == ((64, 0), (72, 0), (96, 0))


def test_an_image_has_the_same_scores_alone_in_batches_and_again(ensemble):
    shown = images(5)
    alone = [ensemble.predict_images([image])[0] for image in shown]
    for size in (1, 2, 5):
        ensemble.batch_size = size
        for one, other in zip(ensemble.predict_images(shown), alone, strict=True):
            for name, scores in one.members.items():
                assert scores == pytest.approx(other.members[name], abs=1e-5)
            assert one.targets[0].probability == pytest.approx(other.targets[0].probability, abs=1e-5)
            for ours, theirs in zip(one.maps, other.maps, strict=True):
                assert np.abs(ours.pixels.astype(int) - theirs.pixels.astype(int)).max() <= 1


def test_folding_changes_nothing_but_the_steps():
    network = networks()["minaee"]
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    x = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        before = network.scores(network(x)[0])["logit_covid19"]
        fold_batch_norm(network)
        after = network.scores(network(x)[0])["logit_covid19"]
    assert after.tolist() == pytest.approx(before.tolist(), abs=1e-5)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


def test_a_network_in_training_is_not_folded():
    with pytest.raises(ValueError, match="evaluation mode"):
        fold_batch_norm(networks()["minaee"].train())


def failing(ensemble, monkeypatch, name, fails):
    """The member's `judge` throws for images whose first score's features `fails` picks by their index in a batch."""
    network = member(ensemble, name).network
    judge, key = network.judge, "conv4" if name == "zhong" else "features"

    def spoilt(intermediates):
        if len(intermediates[key]) > 1 or fails(intermediates[key]):
            raise RuntimeError("a kernel threw")
        return judge(intermediates)

    monkeypatch.setattr(network, "judge", spoilt)


def test_the_rest_answers_without_a_member_that_is_not_required_and_says_so(ensemble, monkeypatch):
    failing(ensemble, monkeypatch, "zhong", lambda _: True)
    ensemble.batch_size = 4
    for found in ensemble.predict_images(images(2)):
        assert isinstance(found, Prediction)
        assert set(found.members) == {"minaee", "basu"}
        assert found.remarks == ("without_member:zhong",)
        assert {one.member for one in found.maps} == {"minaee", "basu"}


def test_there_is_no_answer_without_a_member_that_is_required(ensemble, monkeypatch):
    failing(ensemble, monkeypatch, "basu", lambda _: True)
    (found,) = ensemble.predict_images(images(1))
    assert isinstance(found, NodeError)
    assert found.permanent
    assert "basu is required" in str(found)


def test_only_the_image_that_a_member_throws_at_goes_without_it(ensemble, monkeypatch):
    shown = images(3)
    features = [
        member(ensemble, "zhong").network.embed(member(ensemble, "zhong").transform(one)[None]) for one in shown
    ]
    odd = float(features[1]["conv4"].sum())
    failing(ensemble, monkeypatch, "zhong", lambda conv4: float(conv4.sum()) == pytest.approx(odd, abs=1e-3))
    ensemble.batch_size = 4
    found = ensemble.predict_images(shown)
    assert [one.remarks for one in found] == [(), ("without_member:zhong",), ()]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_count_as_none(ensemble, monkeypatch, value):
    network = member(ensemble, "zhong").network
    scores = network.scores
    monkeypatch.setattr(network, "scores", lambda outputs: {name: one * value for name, one in scores(outputs).items()})
    (found,) = ensemble.predict_images(images(1))
    assert found.remarks == ("without_member:zhong",)
    (nothing,) = ensemble.predict_images([np.full((64, 64), np.nan, dtype=np.float32)])
    assert isinstance(nothing, NodeError)
    assert "required" in str(nothing)


def test_a_batch_that_is_too_large_is_halved_and_stays_so(ensemble, monkeypatch):
    sizes = []
    predict = ensemble._predict

    def small(batch, thresholds):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("no room")
        return predict(batch, thresholds)

    monkeypatch.setattr(ensemble, "_predict", small)
    ensemble.batch_size = 8
    assert len(ensemble.predict_images(images(5))) == 5
    assert sizes == [5, 2, 2, 1]
    assert ensemble.batch_size == 2


def test_a_device_without_memory_for_one_image_is_no_device(ensemble, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(ensemble, "_predict", full)
    with pytest.raises(DeviceError, match="no memory for one image"):
        ensemble.predict_images(images(1))


def spoil_golden(folder, change):
    content = json.loads((folder / "golden.json").read_text())
    change(content)
    text = json.dumps(content).encode()
    (folder / "golden.json").write_bytes(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["golden"]["sha256"] = hashlib.sha256(text).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_device_that_does_not_give_the_golden_scores_back_is_refused(tmp_path):
    folder = write_ensemble(tmp_path / "bundle", golden=True)
    Ensemble.load(folder)

    def change(content):
        content[3]["scores"]["basu"]["p_normal"] += 0.001

    spoil_golden(folder, change)
    with pytest.raises(BundleError, match=r"p_normal of basu, image 4 is off by 0\.001"):
        Ensemble.load(folder)


def test_golden_images_that_were_changed_are_refused(tmp_path):
    folder = write_ensemble(tmp_path / "bundle", golden=True)
    with (folder / "golden.json").open("a") as file:
        file.write(" ")
    with pytest.raises(BundleError, match=r"golden\.json is not the file that the manifest names"):
        Ensemble.load(folder)
    spoil_golden(folder, lambda content: content[0].update(png="bm90IGEgcGljdHVyZQ=="))
    with pytest.raises(BundleError, match=r"golden\.json holds no golden images"):
        Ensemble.load(folder)


def test_ten_golden_images_are_drawn_not_taken(folder):
    content = json.loads((folder / "golden.json").read_text())
    assert len(content) == 10
    assert len({each["png"] for each in content}) == 10


def test_maps_that_take_long_are_drawn_of_flagged_images_only(ensemble):
    network = member(ensemble, "minaee").network
    network.costly_maps = True
    (found,) = ensemble.predict_images(images(1))
    assert found.targets[0].flagged == ("minaee" in {one.member for one in found.maps})
    (flagged,) = ensemble.predict([ensemble.draw(images(1)[0])], {"covid19": 0.0})
    assert "minaee" in {one.member for one in flagged.maps}
    (not_flagged,) = ensemble.predict([ensemble.draw(images(1)[0])], {"covid19": 1.0})
    assert "minaee" not in {one.member for one in not_flagged.maps}


def test_only_the_maps_that_the_manifest_names_are_kept(tmp_path):
    folder = write_ensemble(tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["members"][1]["maps"] = ["covid19"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (found,) = Ensemble.load(folder).predict_images(images(1))
    assert [one.name for one in found.maps if one.member == "basu"] == ["covid19"]


def test_a_gate_needs_a_member_with_blocks(tmp_path):
    folder = write_ensemble(tmp_path / "bundle", gate=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["gate"]["reads"] = "zhong"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="the gate cannot read zhong"):
        Ensemble.load(folder)
    manifest["gate"]["reads"] = "nobody"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="nobody, which is no member"):
        Ensemble.load(folder)


def test_cudnn_is_in_use_while_networks_run_and_tensorfloat_is_not(ensemble, monkeypatch):
    seen = []
    predict = ensemble._predict

    def look(*arguments):
        cudnn = torch.backends.cudnn
        seen.append((cudnn.enabled, cudnn.deterministic, cudnn.allow_tf32))
        return predict(*arguments)

    monkeypatch.setattr(ensemble, "_predict", look)
    ensemble.predict_images(images(1))
    assert seen == [(True, True, False)]
