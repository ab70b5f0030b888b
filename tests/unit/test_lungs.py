import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from training.data.manifest import Picture
from training.data.outlines import outlines
from training.evaluation import lungs as module
from training.evaluation.lungs import AS_IT_IS, BLANKED, BOXES_BLANKED, ONLY, lung_share, lungs, variants
from training.evaluation.randomisation import Randomisation, heatmaps, layers, randomised, similarity, steps
from training.evaluation.tasks import Scored
from training.models.network import Network
from training.models.preprocess import Preprocess
from training.models.zhang import Zhang2020
from training.recipe import Recipe

SIDE = 64
RECIPE = Recipe("x", "main", "small", "X", ("other", "covid19"), "", "p_covid19", 32, 32, 1, 1e-3, 4, "sgd",
                standardise="none")  # fmt: skip
LUNGS = np.zeros((SIDE, SIDE), dtype=bool)
LUNGS[16:48, 8:24] = LUNGS[16:48, 40:56] = True


class Looks(Network):
    """Its score is the brightness of a region, and its heatmap the image there."""

    score_names = ("p_covid19",)

    def __init__(self, region: np.ndarray) -> None:
        super().__init__()
        shown = torch.from_numpy(region.astype(np.float32))[None, None]
        self.register_buffer("region", nn.functional.adaptive_avg_pool2d(shown, 32))
        self.first, self.last = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(1, 1)

    def embed(self, x):
        return {"features": x * self.region}

    def judge(self, intermediates):
        return intermediates["features"].mean(dim=(1, 2, 3))

    def scores(self, outputs):
        return {"p_covid19": outputs.double()}

    def heatmaps(self, intermediates):
        return {"covid19": intermediates["features"].mean(dim=1)}


class Deep(Looks):
    """Its heatmap comes from its weights."""

    def embed(self, x):
        return {"features": x}

    def heatmaps(self, intermediates):
        found = intermediates["features"]
        for layer in self.convolutions:
            found = torch.relu(layer(found))
        return {"covid19": found.mean(dim=1)}

    def __init__(self) -> None:
        super().__init__(LUNGS)
        self.convolutions = nn.ModuleList(nn.Conv2d(c, 8, 3, padding=1) for c in (1, 8, 8))


def collection(folder: Path, n: int = 24, *, masks: int = 20, boxes: int = 2) -> tuple[Picture, ...]:
    """Images whose lungs are bright in COVID-19; the first have a mask, the next boxes."""
    (folder / "masks").mkdir()
    shown, outlined = [], {}
    for i in range(n):
        rng, ill = np.random.default_rng(i), i % 2 == 0
        image = rng.uniform(0.2, 0.4, (SIDE, SIDE)) + 0.4 * LUNGS * ill
        Image.fromarray((image * 255).astype(np.uint8)).save(folder / f"{i}.png")
        if i < masks:
            Image.fromarray(LUNGS).save(folder / "masks" / f"{i}.png")
        elif i < masks + boxes:
            boxes_of = [{"side": "Right Lung", "box": [8, 16, 16, 32]}, {"side": "Left Lung", "box": [40, 16, 16, 32]}]
            outlined[str(i)] = boxes_of
        finding = "covid19" if ill else "pneumonia"
        shown.append(Picture(str(i), folder / f"{i}.png", "train", "cohen", f"p{i}", finding))
    (folder / "lung_boxes.json").write_text(json.dumps(outlined))
    return tuple(shown)


def asked(shown: tuple[Picture, ...]) -> Scored:
    scores = np.zeros(len(shown))
    return Scored(shown, "p_covid19", scores, scores, np.array([f"fold{i % 2}" for i in range(len(shown))]))


def look(folder: Path, monkeypatch, network: Network, **options) -> dict:
    loaded = []
    monkeypatch.setattr(module, "load_network", lambda experiment, run: (loaded.append(run), network.eval())[1])
    found = lungs(folder, RECIPE, asked(collection(folder)), folder, resamples=50, **options)
    assert loaded == ["fold0", "fold1"], "each image by the network that never saw it"
    return found


def test_a_network_that_looks_at_the_lungs_is_blind_without_them(tmp_path, monkeypatch):
    found = look(tmp_path, monkeypatch, Looks(LUNGS))
    assert found["absent"] == ""
    assert found["images"] == {"covid19": 11, "pneumonia": 11}
    assert found["outlines"] == {"boxes": 2, "mask": 20}
    assert found["auc"][AS_IT_IS]["value"] == 1
    assert found["auc"][ONLY]["value"] == 1
    for name in (BLANKED, BOXES_BLANKED):
        assert found["auc"][name]["high"] < 1
        assert found["fall"][name]["value"] > 0.3
    assert found["mean_score"][AS_IT_IS]["value"] > found["mean_score"][BLANKED]["value"]
    energy = found["energy"]["covid19"]
    assert energy["inside"]["value"] > 0.9  # but for the edge, where cells are lung in part
    assert energy["area"]["value"] == pytest.approx(LUNGS.mean())
    assert energy["more_than_area"]["low"] > 0.7


def test_a_network_that_looks_at_the_border_does_not_miss_the_lungs(tmp_path, monkeypatch):
    border = np.ones((SIDE, SIDE), dtype=bool)
    border[8:-8, 8:-8] = False
    found = look(tmp_path, monkeypatch, Looks(border))
    assert found["energy"]["covid19"]["inside"]["value"] == pytest.approx(0, abs=0.01)
    assert found["energy"]["covid19"]["more_than_area"]["high"] < 0
    as_it_is = found["mean_score"][AS_IT_IS]["value"]
    for name in (BLANKED, BOXES_BLANKED):
        assert found["mean_score"][name]["value"] == pytest.approx(as_it_is, rel=0.02)
    assert found["mean_score"][ONLY]["value"] != pytest.approx(as_it_is, rel=0.02)


def test_the_fall_is_the_difference_of_the_areas(tmp_path, monkeypatch):
    found = look(tmp_path, monkeypatch, Looks(~LUNGS))
    for name, fall in found["fall"].items():
        assert fall["value"] == pytest.approx(found["auc"][AS_IT_IS]["value"] - found["auc"][name]["value"])


def test_costly_heatmaps_are_drawn_of_some_images_only(tmp_path, monkeypatch):
    found = look(tmp_path, monkeypatch, Deep(), heatmap_images=5)
    assert found["heatmap_images"] == found["energy"]["covid19"]["inside"]["n"] == 5
    assert {step["images"] for step in found["randomisation"]["covid19"]} == {5}
    assert found["auc"][AS_IT_IS]["n"] == 22


def test_without_outlines_the_section_says_so(tmp_path):
    shown = collection(tmp_path, 4, masks=0, boxes=0)
    assert "no image has outlined lungs" in lungs(tmp_path, RECIPE, asked(shown), tmp_path)["absent"]


def test_outlines_lie_beside_the_manifest_or_beside_the_images(tmp_path):
    shown = collection(tmp_path, 4, masks=2, boxes=1)
    assert outlines(tmp_path / "elsewhere", shown).keys() == {"0", "1", "2"}
    (tmp_path / "cohen").mkdir()
    below = []
    for picture in shown:
        picture.path.rename(tmp_path / "cohen" / picture.path.name)
        below.append(replace(picture, path=tmp_path / "cohen" / picture.path.name))
    assert outlines(tmp_path / "elsewhere", below).keys() == {"0", "1", "2"}


def test_a_region_is_blanked_with_the_mean_of_what_is_kept():
    pixels = np.random.default_rng(0).random((SIDE, SIDE)).astype(np.float32)
    made = variants(pixels, LUNGS)
    assert (made[AS_IT_IS] == pixels).all()
    assert (made[BLANKED][LUNGS] == pixels[~LUNGS].mean()).all()
    assert (made[BLANKED][~LUNGS] == pixels[~LUNGS]).all()
    assert (made[ONLY][LUNGS] == pixels[LUNGS]).all()
    assert (made[ONLY][~LUNGS] == pixels[LUNGS].mean()).all()
    box = np.zeros_like(LUNGS)
    box[16:48, 8:56] = True
    assert (made[BOXES_BLANKED][box] == pixels[~box].mean()).all()
    assert (made[BOXES_BLANKED][~box] == pixels[~box]).all()


def test_nothing_of_a_region_is_left_in_its_blank():
    pixels = np.random.default_rng(0).random((SIDE, SIDE)).astype(np.float32)
    brighter = pixels + LUNGS.astype(np.float32)
    for name in (BLANKED, BOXES_BLANKED):
        assert (variants(pixels, LUNGS)[name] == variants(brighter, LUNGS)[name]).all()


def test_an_image_that_is_all_lung_is_blanked_whole():
    everywhere = np.ones((4, 4), dtype=bool)
    made = variants(np.full((4, 4), 0.7, dtype=np.float32), everywhere)
    assert (made[BLANKED] == 0).all()
    assert (made[ONLY] == np.float32(0.7)).all()


def test_a_mask_of_another_size_and_a_box_over_the_edge_fit_the_image(tmp_path):
    (tmp_path / "masks").mkdir()
    for name in "ab":
        noise = np.random.default_rng(0).integers(0, 255, (60, 80), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    half = np.zeros((30, 40), dtype=bool)
    half[:, :20] = True
    Image.fromarray(half).save(tmp_path / "masks" / "a.png")
    (tmp_path / "lung_boxes.json").write_text(json.dumps({"b": [{"side": "Left Lung", "box": [60.2, -3, 40, 33.4]}]}))
    shown = [Picture(name, tmp_path / f"{name}.png", "train", "cohen", name, "covid19") for name in "ab"]
    found = outlines(tmp_path, shown)
    assert found["a"].origin == "mask"
    assert (found["a"].inside == (np.arange(80) < 40)[None]).all()
    assert found["b"].origin == "boxes"
    assert found["b"].inside.sum() == 30 * 20


def test_the_lungs_are_seen_through_the_same_crop_as_the_image():
    inside = np.zeros((100, 200), dtype=bool)
    inside[:, :100] = True  # the left half
    share = lung_share(inside, Preprocess(80, 64), (4, 4))
    assert share[:, :2].min() == pytest.approx(1, abs=0.02)
    assert share[:, 2:].max() == pytest.approx(0, abs=0.02)
    edge = np.zeros((80, 80), dtype=bool)
    edge[:8] = True  # cut off by the crop
    assert lung_share(edge, Preprocess(80, 64), (4, 4)).max() == 0


# Randomisation


def image(i: int) -> torch.Tensor:
    return torch.rand((1, 32, 32), generator=torch.Generator().manual_seed(i))


def test_layers_are_randomised_from_the_last_one_down():
    network = Deep()
    kinds = [type(module).__name__ for (module,) in layers(network)]
    assert kinds == ["Conv2d", "Linear", "Conv2d", "Conv2d", "Conv2d"]
    assert steps(network) == [1, 2, 4, 5]
    other = randomised(network, 2, seed=3)
    for index, ((before,), (after,)) in enumerate(zip(layers(network), layers(other), strict=True)):
        assert torch.equal(before.weight, after.weight) == (index < 3)
    again = randomised(network, 2, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_layer_of_its_own_making_is_randomised_too():
    network = Deep()
    network.convolutions.own = nn.Module()
    network.convolutions.own.scale = nn.Parameter(torch.full((50,), 3.0))
    (own,) = layers(randomised(network, 1, seed=0))[-1]
    changed = own.scale
    assert changed.std() > 0.5


def test_maps_that_come_from_weights_change_with_them():
    torch.manual_seed(0)
    check = Randomisation()
    network = Deep().eval()
    check.add(network, {str(i): image(i) for i in range(6)}, {str(i): i for i in range(6)}, seed=1)
    found = check.figures(resamples=20)["covid19"]
    assert [(step["layers"], step["of"]) for step in found] == [(1, 5), (2, 5), (4, 5), (5, 5)]
    for step in found:
        assert abs(step["spearman"]["value"]) < 0.6
        assert step["spearman"]["low"] <= step["spearman"]["value"] <= step["spearman"]["high"]


def test_maps_that_only_repeat_the_image_are_found_out():
    check = Randomisation()
    check.add(Looks(LUNGS).eval(), {"a": image(0)}, {"a": 0}, seed=1)
    assert all(step["spearman"]["value"] == pytest.approx(1) for step in check.figures(resamples=20)["covid19"])


def test_similarity_is_of_ranks():
    one = torch.rand((8, 8))
    assert similarity(one, one.exp()) == (pytest.approx(1), pytest.approx(1))
    assert similarity(one, -one) == (pytest.approx(-1), pytest.approx(-1))
    assert similarity(one, torch.zeros((8, 8))) is None
    large = torch.rand((224, 224))
    assert similarity(large, large) == (pytest.approx(1), pytest.approx(1))


def test_a_map_that_is_gone_is_not_similar():
    class Gone(Deep):
        def heatmaps(self, intermediates):
            return {"covid19": intermediates["features"][0] * (self.last.weight == 0.5).all()}

    network = Gone().eval()
    nn.init.constant_(network.last.weight, 0.5)
    check = Randomisation()
    check.add(network, {"a": image(0)}, {"a": 0}, seed=1)
    found = check.figures(resamples=20)["covid19"][-1]
    assert (found["spearman"]["value"], found["empty"], found["left_out"]) == (0, 1, 0)


def test_a_map_that_was_never_there_is_left_out_and_counted():
    torch.manual_seed(0)
    check = Randomisation()
    check.add(Looks(LUNGS).eval(), {"a": image(0), "b": torch.zeros((1, 32, 32))}, {"a": 0, "b": 1}, seed=1)
    for step in check.figures(resamples=20)["covid19"]:
        assert (step["images"], step["empty"], step["left_out"]) == (1, 0, 1)
        assert step["spearman"]["value"] == pytest.approx(1)
    check = Randomisation()
    check.add(Looks(LUNGS).eval(), {"b": torch.zeros((1, 32, 32))}, {"b": 1}, seed=1)
    (step, *_) = check.figures(resamples=20)["covid19"]
    assert (step["images"], step["spearman"], step["left_out"]) == (0, None, 1)


def test_the_last_layers_of_both_heads_are_randomised_together():
    network = Zhang2020()
    other = randomised(network, 1, seed=0)
    changed = {
        name
        for (name, one), two in zip(network.named_parameters(), other.parameters(), strict=True)
        if not torch.equal(one, two)
    }
    assert changed == {f"heads.{name}.6.{part}" for name in network.heads for part in ("weight", "bias")}
    assert len(network.heads) == 2
    held = [module for layer in layers(network) for module in layer]
    assert len(held) == len(set(held)) == sum(any(True for _ in m.parameters(recurse=False)) for m in network.modules())


def test_heatmaps_are_drawn_without_gradients_of_the_weights():
    found = heatmaps(Deep().eval(), image(0))
    assert found["covid19"].shape == (32, 32)
    assert not found["covid19"].requires_grad
