import math

import pytest
import torch
from safetensors import safe_open

from dicom_node.bundle import find_bundle, read_manifest
from training.models.explain import grad_cam, to_eight_bits
from training.models.registry import build
from training.models.zhang import (
    MARGIN,
    MU_R,
    SIGMA_R,
    Scores,
    Zhang2020,
    classification_loss,
    deviation_loss,
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return Zhang2020().eval()


def test_the_network_has_the_papers_parameters(network):
    assert sum(parameter.numel() for parameter in network.parameters()) == 15_998_930
    assert sum(parameter.numel() for parameter in network.trunk.parameters()) == 11_176_512


def test_both_heads_have_the_same_form(network):
    assert repr(network.heads["classification"]) == repr(network.heads["anomaly"])


def test_it_gives_two_scores_per_image_and_the_last_feature_map(network):
    scores, intermediates = network(torch.zeros(2, 1, 96, 64))
    assert scores.classification.shape == scores.anomaly.shape == (2,)
    assert intermediates["features"].shape == (2, 512, 3, 2)


@pytest.mark.parametrize(
    ("heads", "names"), [("classification", ("p_cls",)), ("anomaly", ("p_ano",)), ("both", ("p_cls", "p_ano", "p_avg"))]
)
def test_a_single_task_network_has_one_head_and_its_score_alone(heads, names):
    with torch.device("meta"):
        network = Zhang2020(heads)
    outputs = network.judge({"features": torch.zeros(2, 512, 3, 3, device="meta")})
    assert [name for name, value in outputs._asdict().items() if value is not None] == list(network.heads)
    assert tuple(network.scores(outputs)) == network.score_names == names
    assert len(network.heads) == (2 if heads == "both" else 1)


def test_the_classification_loss_has_its_minus():
    # p = 1/2 for y = 1 costs ln 2; p = 3/4 for y = 0 costs ln 4.
    loss = classification_loss(torch.tensor([0.0, math.log(3)]), torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)


def test_the_deviation_loss_is_that_of_eq_2():
    # Deviations: 2 of a negative costs 2, -2 costs 2 too; 1 of a positive costs 5 - 1, 6 of a positive nothing.
    anomaly = MU_R + SIGMA_R * torch.tensor([2.0, -2.0, 1.0, 6.0])
    loss = deviation_loss(anomaly, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert loss.item() == pytest.approx((2 + 2 + 4 + 0) / 4, rel=1e-6)


def test_the_reference_scores_are_drawn_once_from_a_standard_normal():
    assert pytest.approx(0, abs=4 / math.sqrt(5000)) == MU_R
    assert pytest.approx(1, abs=0.05) == SIGMA_R
    again = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(again.mean()) == MU_R


def test_p_avg_is_the_mean_of_p_cls_and_the_anomaly_score_by_the_margin():
    with torch.device("meta"):
        network = Zhang2020()
    scores = network.scores(Scores(torch.tensor([0.0]), torch.tensor([2 * MARGIN])))
    assert scores["p_cls"].item() == 0.5
    assert scores["p_ano"].item() == 10
    assert scores["p_avg"].item() == 1.25  # not confined to [0, 1]


def test_grad_cam_finds_the_place_that_raises_the_output():
    features = torch.rand(1, 4, 6, 6, generator=torch.Generator().manual_seed(3))
    features[0, 2, 1, 4] = 50.0
    heatmap = grad_cam(features, lambda x: x[:, 2].mean(dim=(1, 2)))
    assert divmod(int(heatmap[0].argmax()), 6) == (1, 4)
    (large,) = to_eight_bits(heatmap, 192)
    row, column = divmod(int(large.argmax()), 192)
    assert large.max() == 255
    assert (row // 32, column // 32) == (1, 4)


def test_grad_cam_is_black_where_nothing_speaks_for_the_output():
    heatmap = grad_cam(torch.ones(1, 4, 6, 6), lambda x: -x.mean(dim=(1, 2, 3)))
    assert not to_eight_bits(heatmap, 12).any()


def test_each_of_several_heatmaps_is_scaled_to_its_own_strongest_place():
    heatmaps = torch.zeros(3, 2, 2)
    heatmaps[0, 0, 0], heatmaps[1, 1, 1] = 1e-3, 5.0
    drawn = to_eight_bits(heatmaps, 8)
    assert drawn.shape == (3, 8, 8)
    assert drawn.dtype == torch.uint8
    assert drawn.amax(dim=(1, 2)).tolist() == [255, 255, 0]
    assert torch.equal(drawn[0], drawn[1].flip(0, 1))
    assert torch.equal(drawn[:1], to_eight_bits(heatmaps[:1], 8))


def test_grad_cam_needs_no_gradients_of_the_trunk(network):
    with torch.no_grad():
        intermediates = network.embed(torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(4)))
        maps = network.heatmaps(intermediates)
    assert list(maps) == ["classification", "anomaly"]
    assert torch.equal(maps["anomaly"], grad_cam(intermediates["features"], network.heads["anomaly"]))
    assert all(heatmap.shape == (1, 2, 2) and not heatmap.requires_grad for heatmap in maps.values())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_starter_bundles_tensors_are_the_networks():
    kept, folder = {}, find_bundle("starter")
    (member,) = (one for one in read_manifest(folder).members if one.architecture == "Zhang2020")
    with torch.device("meta"):
        network = build(member.architecture, member.options)
    for part in member.weights:
        with safe_open(folder / part.file, "pt") as weights:
            kept |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    assert kept == {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
