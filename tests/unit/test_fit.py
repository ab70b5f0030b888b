import numpy as np
import pytest
import torch
from torch import nn

from training import fit as loop
from training.fit import (
    Images,
    Training,
    draw_epoch,
    drawn_places,
    expanded,
    fit,
    freeze,
    identity,
    keep_frozen_statistics,
    place,
    precision,
)
from training.models.network import Network
from training.recipe import Augmentation, Recipe

RECIPE = Recipe(
    paper="none",
    variant="small",
    profile="test",
    architecture="none",
    classes=("normal", "covid19"),
    loss="cross_entropy",
    score="logit_covid19",
    resize=20,
    crop=16,
    epochs=3,
    learning_rate=0.05,
    batch=4,
    optimiser="sgd",
    optimiser_options={"momentum": 0.9},
    schedule="linear",
    augmentation=Augmentation(random_crop=True, flip=0.5),
)


class Little(Network):
    """A network with all that a loop can get wrong: BatchNorm, Dropout, a frozen part, a last layer."""

    score_names = ("logit_covid19",)

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 2))

    def embed(self, x):
        return {"features": self.trunk(x)}

    def judge(self, intermediates):
        return self.head(intermediates["features"])

    def scores(self, outputs):
        return {"logit_covid19": (outputs[:, 1] - outputs[:, 0]).double()}

    def heatmaps(self, intermediates):
        return {}


def images(count: int = 12) -> Images:
    rng = np.random.default_rng(4)
    squares = rng.integers(0, 128, (count, 20, 20), dtype=np.uint8)
    labels = np.arange(count) % 2
    squares[labels == 1] += 100  # bright ones are of class 1
    return Images(squares, labels, [f"{'ab'[i % 3 == 0]}/{label}" for i, label in enumerate(labels)])


def little(seed: int = 1) -> Little:
    torch.manual_seed(seed)
    return Little()


def trained(folder, recipe=RECIPE, **options) -> Little:
    network = little()
    fit(network, recipe, images(), folder, seed=3, device="cpu", progress=False, **options)
    return network


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path):
    one, again = trained(tmp_path / "one"), trained(tmp_path / "again")
    assert same(one, again)
    other = little()
    fit(other, RECIPE, images(), tmp_path / "other", seed=4, device="cpu", progress=False)
    assert not same(one, other)


def test_a_stopped_training_ends_where_an_unstopped_one_does(tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole")

    def power_cut(self, *args):
        if self.current_epoch == 1:
            raise KeyError("the power went")
        return original(self, *args)

    original = Training.training_step
    monkeypatch.setattr(loop.Training, "training_step", power_cut)
    with pytest.raises(KeyError):
        trained(tmp_path / "cut")
    monkeypatch.undo()
    assert torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)["epoch"] == 0
    assert same(whole, trained(tmp_path / "cut"))


def test_a_stopped_training_keeps_the_same_best_epoch(tmp_path, monkeypatch):
    recipe = RECIPE.but(keep="best validation accuracy", epochs=4)
    accuracy = [0.2, 0.9, 0.5, 0.4]

    def validation_step(self, batch, index):
        self.log("validation_accuracy", accuracy[self.current_epoch], batch_size=len(batch[1]))

    def power_cut(self, *args):
        if self.current_epoch == 2:
            raise KeyError("the power went")
        return original(self, *args)

    original = Training.training_step
    monkeypatch.setattr(loop.Training, "validation_step", validation_step)
    whole = trained(tmp_path / "whole", recipe, validation=images(4))
    monkeypatch.setattr(loop.Training, "training_step", power_cut)
    with pytest.raises(KeyError):
        trained(tmp_path / "cut", recipe, validation=images(4))
    monkeypatch.setattr(loop.Training, "training_step", original)
    assert same(whole, trained(tmp_path / "cut", recipe, validation=images(4)))


def test_figures_outlive_the_process(tmp_path):
    network = little()
    first = fit(network, RECIPE, images(), tmp_path, seed=3, device="cpu", progress=False)
    again = fit(little(), RECIPE, images(), tmp_path, seed=3, device="cpu", progress=False)
    assert again["loss"] == first["loss"]
    assert again["seconds"] >= first["seconds"] > 0


def test_a_checkpoint_of_other_images_is_refused(tmp_path):
    trained(tmp_path, data="these")
    with pytest.raises(ValueError, match="of other settings"):
        trained(tmp_path, data="those")


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    trained(tmp_path)
    with pytest.raises(ValueError, match=r"last\.ckpt is a checkpoint of none small, test profile, of other settings"):
        trained(tmp_path, RECIPE.but(learning_rate=0.1))


def test_the_loss_falls(tmp_path):
    plain = RECIPE.but(epochs=30, optimiser="adam", optimiser_options={}, standardise="none", crop=20)
    first = fit(little(), plain.but(epochs=1), images(), tmp_path / "1", device="cpu", progress=False)["loss"]
    last = fit(little(), plain, images(), tmp_path / "2", device="cpu", progress=False)["loss"]
    assert last < first / 2


def test_the_best_epoch_by_validation_accuracy_is_kept(tmp_path, monkeypatch):
    recipe = RECIPE.but(keep="best validation accuracy", epochs=4)
    accuracies = iter([0.5, 1.0, 0.75, 0.0])
    states = []

    def validation_step(self, batch, index):
        states.append({name: tensor.clone() for name, tensor in self.network.state_dict().items()})
        self.log("validation_accuracy", next(accuracies), batch_size=len(batch[1]))

    monkeypatch.setattr(loop.Training, "validation_step", validation_step)
    network = little()
    figures = fit(network, recipe, images(), tmp_path, validation=images(4), device="cpu", progress=False)
    assert figures["validation_accuracy"] == 1.0
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in network.state_dict().items())


def test_accumulated_batches_make_one_update(tmp_path):
    updates = []
    torch.optim.SGD.step, original = (lambda *a, **k: (updates.append(1), original(*a, **k))[1]), torch.optim.SGD.step
    try:
        trained(tmp_path, RECIPE.but(epochs=1, batch=2, accumulate=3))
    finally:
        torch.optim.SGD.step = original
    assert len(updates) == 2  # 12 images, 2 x 3 in an update


def test_the_learning_rate_follows_the_schedule(tmp_path, monkeypatch):
    rates = []

    def training_step(self, batch, index):
        rates.append(self.optimizers().param_groups[0]["lr"])
        return original(self, batch, index)

    original = Training.training_step
    monkeypatch.setattr(loop.Training, "training_step", training_step)
    trained(tmp_path)
    assert rates == pytest.approx([0.05 * (1 - step / 9) for step in range(9)])


def test_frozen_parts_keep_weights_and_statistics(tmp_path):
    before = little()
    after = trained(tmp_path, RECIPE.but(trainable=("head.2",)))
    assert same(before.trunk, after.trunk)
    assert not torch.equal(before.head[2].weight, after.head[2].weight)
    freeze(after, ("head.2",))
    keep_frozen_statistics(after)
    assert not after.trunk[1].training
    assert after.head[1].training


def test_a_prefix_that_names_nothing_is_refused():
    with pytest.raises(ValueError, match=r"backbone\.fc"):
        freeze(little(), ("backbone.fc",))


def test_features_of_a_frozen_part_are_computed_once(tmp_path, monkeypatch):
    calls = []
    original = Little.embed
    monkeypatch.setattr(Little, "embed", lambda self, x: (calls.append(len(x)), original(self, x))[1])
    recipe = RECIPE.but(trainable=("head",), cache_features=True, copies={"covid19": 5})
    before, after = little(), trained(tmp_path, recipe)
    assert sum(calls) == 6 + 5 * 6
    assert same(before.trunk, after.trunk)
    assert not torch.equal(before.head[2].weight, after.head[2].weight)


def test_copies_multiply_a_class():
    given = images(4)
    assert expanded(given, RECIPE.but(copies={"covid19": 3})).tolist() == [0, 1, 1, 1, 2, 3, 3, 3]


@pytest.mark.parametrize(("balance", "strata"), [("class", "labels"), ("source and class", "strata")])
def test_a_balanced_epoch_holds_each_stratum_equally(balance, strata):
    given = Images(np.zeros((100, 2, 2), np.uint8), (np.arange(100) < 7).astype(int), ["b/1"] * 7 + ["a/0"] * 93)
    order = draw_epoch(given, RECIPE.but(balance=balance, images_per_epoch=60), np.random.default_rng(0))
    assert len(order) == 60
    rare = np.bincount(order, minlength=100)[:7]
    assert rare.sum() == 30
    assert rare.max() - rare.min() <= 1
    assert len(set(getattr(given, strata)[order].tolist())) == 2


def test_an_epoch_without_balance_holds_every_image_once():
    assert sorted(draw_epoch(images(), RECIPE, np.random.default_rng(0))) == list(range(12))
    assert len(draw_epoch(images(), RECIPE.but(images_per_epoch=5), np.random.default_rng(0))) == 5


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="cuda:7 is not there: torch sees"):
        place("cuda:7")
    with pytest.raises(ValueError, match="'tpu' is not known"):
        place("tpu")


def test_an_identity_tells_recipes_and_seeds_apart():
    assert identity(RECIPE, 1) == identity(RECIPE.but(), 1)
    assert len({identity(RECIPE, 1), identity(RECIPE, 2), identity(RECIPE.but(batch=5), 1)}) == 3


def test_of_kept_features_the_mirror_image_is_a_second_copy():
    given = images()
    given.features = np.zeros((12, 2, 3), dtype=np.float32)
    assert expanded(given, RECIPE).tolist() == [index for index in range(12) for _ in range(2)]
    places = drawn_places(given, RECIPE.but(balance="class", images_per_epoch=40), np.random.default_rng(0))
    assert len(places) == 40
    assert set(places % 2) == {0, 1}
    each = np.bincount(given.labels[places // 2])
    assert each.tolist() == [40 // len(each)] * len(each)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("flags : sse avx2", "32-true"), ("flags : avx2 avx512_bf16", "bf16-mixed"), ("Features : fp bf16", "bf16-mixed")],
)
def test_a_processor_without_bfloat16_trains_in_float32(tmp_path, monkeypatch, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr("training.fit.Path", lambda _name: tmp_path / "cpuinfo")
    precision.cache_clear()
    try:
        assert precision(torch.device("cpu")) == expected
        assert precision(torch.device("cuda")) == "bf16-mixed"
    finally:
        precision.cache_clear()
