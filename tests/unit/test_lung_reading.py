"""Networks that tell the lungs themselves, and read them only."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.test_networks import quick
from training.data.manifest import Picture
from training.data.outlines import outlines
from training.data.squares import pixels_of
from training.evaluation.randomisation import layers
from training.frozen import kept_features
from training.localise import Localiser
from training.models.basu import Basu2020
from training.models.efficientnet_lite import side_by_side
from training.models.lungs import Lungs, cells_of, pooled, pooled_by_each, share_of_cells
from training.models.minaee import Minaee2020
from training.models.registry import build
from training.papers import PAPERS, robust
from training.scoring import transform_of
from training.train import train

LITE = PAPERS["minaee"].recipe("efficientnet_lite0", robust.PROFILE)
TOY = LITE.but(
    resize=64, crop=64, resolution=0, weights="none", options=LITE.options | {"levels": [2, 5], "lungs": True}
)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_linear_layer_tells_every_cell():
    lungs, maps = Lungs("efficientnet_lite0", (1, 2)), [drawn(1, 2, 16, 8, 8), drawn(2, 2, 24, 4, 4)]
    weight = drawn(8, 40) - 0.5
    lungs.take(weight, 0.25)
    assert torch.allclose(lungs(maps).flatten(), torch.sigmoid(cells_of(maps) @ weight + 0.25), atol=1e-6)


def test_what_is_read_is_weighed_by_the_lungs():
    one = drawn(3, 1, 2, 4, 4)
    lungs = torch.zeros(1, 1, 8, 8)
    lungs[:, :, :4] = 1  # the upper half
    found = pooled([one], lungs, deviation=True)
    upper = one[:, :, :2]
    expected = torch.cat([upper.mean((2, 3)), upper.std((2, 3), correction=0)], dim=1)
    assert torch.allclose(found, expected, atol=1e-3)
    assert torch.equal(share_of_cells(lungs, one)[0, 0, :, 0], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    everywhere = pooled([one], None, deviation=False)
    assert torch.allclose(everywhere, one.mean((2, 3)), atol=1e-6)


def test_where_there_are_no_lungs_nothing_is_read():
    assert pooled([drawn(4, 1, 2, 4, 4)], torch.zeros(1, 1, 4, 4), deviation=True).abs().max() == 0


def test_lungs_need_maps():
    with pytest.raises(ValueError, match="lungs are told of the maps of levels: give levels"):
        Minaee2020("efficientnet_lite0", lungs=True)
    with pytest.raises(ValueError, match="efficientnet_lite0 has 0 to 17, in order"):
        Basu2020("efficientnet_lite0", lungs=True)


def test_what_lies_outside_the_lungs_weighs_nothing():
    network = quick("Basu2020", backbone="efficientnet_lite0", levels=[2, 5], dense=8, lungs=True)
    x = drawn(6, 1, 1, 64, 64).expand(-1, 3, -1, -1)
    maps = network.lung_maps(x)
    seen = network.embed(x)["features"]
    assert torch.allclose(seen, side_by_side(maps) * share_of_cells(network.lungs(maps), maps[-1]), atol=1e-6)
    with torch.no_grad():
        network.lungs.cells[0].bias.fill_(-100)
    assert network.embed(x)["features"].abs().max() < 1e-6


def test_what_tells_the_lungs_is_far_from_the_output():
    network = quick("Minaee2020", backbone="efficientnet_lite0", levels=[2, 5], lungs=True)
    order = [module for (module,) in layers(network)]
    assert order[0] is network.lungs.cells[0]
    assert order[-1] is network.backbone.classifier[1]
    assert len(order) == len({id(module) for module in order})


def test_a_square_is_left_out_of_what_is_read():
    options = {"backbone": "efficientnet_lite0", "levels": [2, 5], "lungs": True}
    network = quick("Minaee2020", **options, occluder=1.0, stride=1.0)  # one square covers everything
    x = drawn(9, 2, 1, 64, 64)
    seen = network.embed(x)
    maps = network.lung_maps(x.expand(-1, 3, -1, -1))
    nothing = torch.zeros_like(seen["features"])
    for last in ("covid19", "other"):
        network.classes = (*({"covid19", "other"} - {last}), last)
        with_lungs, without = (
            network.scores(network.judge({"features": features}))[f"p_{last}"]
            for features in (seen["features"], nothing)
        )
        fall = (with_lungs - without).clamp_min(0).float()
        (found,) = network.heatmaps(seen).values()
        assert found.shape == (2, 16, 16), "the cells of the finest map"
        assert torch.allclose(found, fall[:, None, None] * network.lungs(maps)[:, 0], atol=1e-6)


@pytest.mark.parametrize("deviation", [True, False])
def test_maps_are_pooled_by_several_weights_as_by_each_alone(deviation):
    maps, weights = [drawn(11, 2, 5, 8, 8) + 2, drawn(12, 2, 3, 4, 4)], drawn(13, 2, 4, 8, 8).sigmoid()
    weights[0, 1] = 0
    weights[1, 2] *= 1e-4  # hardly any lung
    found = pooled_by_each(maps, weights, deviation=deviation)
    expected = [pooled(maps, weights[:, index : index + 1], deviation=deviation) for index in range(4)]
    assert torch.allclose(found, torch.stack(expected, dim=1), atol=1e-4)


def test_occlusion_over_the_lungs_is_that_of_each_square_alone():
    network = quick("Minaee2020", backbone="efficientnet_lite0", levels=[2, 5], lungs=True)
    x = drawn(14, 2, 1, 64, 64)
    seen = network.embed(x)
    (found,) = network.heatmaps(seen).values()
    maps, lungs = network.lung_maps(x.expand(-1, 3, -1, -1)), seen["lungs"]
    whole = network.scores(network.judge(seen))["p_covid19"]
    falls, count = torch.zeros(2, 16, 16), torch.zeros(16, 16)
    for top, left in product(range(0, 13, 2), repeat=2):  # squares of 4 cells, 2 apart
        covered = lungs.clone()
        covered[:, :, top : top + 4, left : left + 4] = 0
        features = pooled(maps, covered, deviation=True)[:, :, None, None]
        fall = (whole - network.scores(network.judge({"features": features}))["p_covid19"]).clamp_min(0).float()
        falls[:, top : top + 4, left : left + 4] += fall[:, None, None]
        count[top : top + 4, left : left + 4] += 1
    assert torch.allclose(found, falls / count * lungs[:, 0], atol=1e-5)
    assert found.max() > 1e-4


def test_what_is_left_out_matters_where_it_lies():
    network = quick("Minaee2020", backbone="efficientnet_lite0", levels=[2, 5], lungs=True)
    x = drawn(10, 1, 1, 64, 64)
    with torch.no_grad():
        network.lungs.cells[0].weight.zero_()
        network.lungs.cells[1].weight.zero_()
        network.lungs.cells[0].bias.fill_(-100)
    assert network.heatmaps(network.embed(x))["covid19"].max() < 1e-6, "where nothing is read nothing falls"


# How the lungs are learnt


@pytest.fixture(scope="module")
def outlined(tmp_path_factory) -> tuple[Path, list[Picture]]:
    """Bright "lungs" on a dark ground, twelve of fourteen with a mask; the last two are of `val`."""
    folder = tmp_path_factory.mktemp("outlined")
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    shown = []
    for index in range(14):
        pixels, inside = rng.integers(0, 60, (80, 80)), np.zeros((80, 80), dtype=bool)
        top = int(rng.integers(8, 30))
        inside[top : top + 36, 10:32] = inside[top : top + 36, 46:70] = True
        pixels[inside] += 150
        file = folder / f"i{index}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        if index < 12:
            Image.fromarray(inside).save(folder / "masks" / file.name)
        shown.append(
            Picture(f"i{index}", file, "train" if index < 12 else "val", "cohen", f"p{index}", "covid19", "PA")
        )
    return folder, shown


def test_the_lungs_are_learnt_from_masks_once(outlined, tmp_path):
    folder, shown = outlined
    torch.manual_seed(4)
    network = build("Minaee2020", TOY.options).eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    name = Localiser(shown, folder, tmp_path).teach(network, TOY)
    with torch.no_grad():
        for picture in shown[12:]:
            x = transform_of(TOY)(pixels_of(picture))[None]
            told = network.lungs(network.lung_maps(x.expand(-1, 3, -1, -1)))[0, 0]
            bright = torch.nn.functional.adaptive_avg_pool2d(x, told.shape)[0, 0] > 0  # centred grey levels
            assert ((told > 0.5) == bright).float().mean() > 0.85
    changed = {key for key, tensor in network.state_dict().items() if not torch.equal(tensor, state[key])}
    assert changed == {key for key in state if key.startswith("lungs.")}
    again = build("Minaee2020", TOY.options)
    assert Localiser(shown, folder, tmp_path).teach(again, TOY) == name, "fitted of the same images, it is taken again"
    assert all(torch.equal(again.lungs.state_dict()[key], tensor) for key, tensor in network.lungs.state_dict().items())
    assert Localiser(shown[1:], folder, tmp_path).teach(again, TOY) != name
    plain = build("Minaee2020", {"backbone": "efficientnet_lite0"})
    assert Localiser(shown, folder, tmp_path).teach(plain, TOY) == ""


def test_without_masks_the_lungs_cannot_be_learnt(outlined, tmp_path):
    folder, shown = outlined
    network = build("Minaee2020", TOY.options)
    for pictures in (shown[12:], [replace(one, view="LATERAL") for one in shown]):
        with pytest.raises(ValueError, match=r"no frontal image of split train has its lungs outlined; put masks/"):
            Localiser(pictures, folder, tmp_path).teach(network, TOY)


def test_kept_features_are_of_the_lungs(outlined, tmp_path):
    folder, shown = outlined
    localiser = Localiser(shown, folder, tmp_path)
    torch.manual_seed(5)
    kept = kept_features(TOY, shown[:3], tmp_path, localiser)
    torch.manual_seed(5)
    network = build("Minaee2020", TOY.options).eval()
    localiser.teach(network, TOY)
    x = torch.stack([transform_of(TOY)(pixels_of(one)) for one in shown[:3]])
    with torch.no_grad():
        for side, seen in enumerate((x, x.flip(-1))):
            # squares are kept as bytes
            assert network.embed(seen)["features"].flatten(1).numpy() == pytest.approx(
                kept[:, side], rel=0.05, abs=0.02
            )


def test_an_outlined_image_that_cannot_be_read_is_left_out(outlined, tmp_path):
    folder, shown = outlined
    broken = tmp_path / "i0.png"
    broken.write_bytes(b"no image")
    found = outlines(folder, [replace(shown[0], path=broken), *shown[1:]])
    assert set(found) == {one.image_id for one in shown[1:12]}


def test_without_masks_nothing_is_begun(outlined, tmp_path):
    folder, _ = outlined
    lines = ["image_id,path,split,source,patient_id,finding,view"]
    lines += [
        f"x{i},{folder / f'i{i % 14}.png'},{'val' if i < 4 else 'train'},cohen,p{i},{finding},PA"
        for i, finding in enumerate(["normal", "pneumonia", "other_disease", "covid19"] * 7)
    ]
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="has its lungs outlined"):
        train(LITE, tmp_path, tmp_path / "work", protocol="folds")
    assert not (tmp_path / "work" / "minaee").exists()
