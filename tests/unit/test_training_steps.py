import csv
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from training import __main__ as command_line
from training import evaluate as evaluation
from training import train as training
from training.augment import augment
from training.datasets import Picture
from training.metrics import auc
from training.models.zhang import Zhang2020
from training.papers.zhang2020 import RECIPE
from training.scoring import round_to_half
from training.train import FINAL, learning_rate, step, train_network
from workers.ensemble import Ensemble

SMALL = replace(RECIPE, resize=72, crop=64, epochs=2, batch=4, images_per_epoch=8, warmup_epochs=0.5)


def pictures() -> list[Picture]:
    return [
        Picture(
            f"{n}{i}", Path(f"{n}{i}.png"), "train", n.split("/")[0], f"{n}{i}",
            "covid19" if n.endswith("positive") else "normal", "PA", "",
        )
        for n in RECIPE.shares
        for i in range(2)
    ]  # fmt: skip


def squares(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randint(0, 256, (n, SMALL.resize, SMALL.resize), dtype=torch.uint8, generator=generator)


def test_two_steps_change_every_weight_and_leave_numbers():
    torch.manual_seed(9)
    network = Zhang2020()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    inputs = augment(squares(4), SMALL, torch.Generator().manual_seed(10))
    for _ in range(2):
        assert np.isfinite(step(network, optimiser, inputs, torch.tensor([0.0, 1.0, 0.0, 1.0])))
    for name, parameter in network.named_parameters():
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), name


def test_a_few_steps_on_the_same_images_lower_the_loss():
    torch.manual_seed(11)
    network = Zhang2020()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    inputs = augment(squares(4), SMALL, torch.Generator().manual_seed(12))
    losses = [step(network, optimiser, inputs, torch.tensor([0.0, 1.0, 0.0, 1.0])) for _ in range(12)]
    assert min(losses[-3:]) < losses[0] / 2


def test_a_stopped_training_ends_where_an_unstopped_one_does(tmp_path, monkeypatch):
    images = squares(10)
    whole = train_network(pictures(), images, SMALL, tmp_path / "whole.pt", seed=3)

    steps = iter([None, None])  # one epoch, then the power goes
    monkeypatch.setattr(training, "step", lambda *args: (next(steps), step(*args))[1])
    with pytest.raises(StopIteration):
        train_network(pictures(), images, SMALL, tmp_path / FINAL, seed=3)
    monkeypatch.undo()
    assert torch.load(tmp_path / FINAL, weights_only=True)["epochs"] == 1
    resumed = train_network(pictures(), images, SMALL, tmp_path / FINAL, seed=3)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-6), name


def test_augmented_images_differ_from_draw_to_draw_and_repeat_by_seed():
    images = squares(6)
    one, again, other = (augment(images, SMALL, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == (6, 1, 64, 64)
    assert one.isfinite().all()
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_an_image_of_one_grey_survives_augmentation():
    assert augment(torch.full((3, 72, 72), 9, dtype=torch.uint8), SMALL, torch.Generator()).isfinite().all()


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(epoch, RECIPE) for epoch in np.linspace(0, RECIPE.epochs, 200)]
    assert max(rates) == pytest.approx(RECIPE.learning_rate, rel=0.02)
    assert rates[0] < 0.02 * RECIPE.learning_rate
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_rounded_weights_are_float16_values():
    torch.manual_seed(13)
    for name, tensor in round_to_half(Zhang2020()).state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, tensor.half().float()), name


def collection(folder: Path) -> Path:
    """Noise in the place of images: 8 of each stratum for training, 4 for validation, 3 of figure1."""
    rng = np.random.default_rng(16)
    splits = [(stratum, "train", 8) for stratum in RECIPE.shares] + [(stratum, "val", 4) for stratum in RECIPE.shares]
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "path", "split", "source", "patient_id", "finding", "view", "licence"])
        for stratum, split, count in [*splits, ("figure1/positive", "external", 3)]:
            source, label = stratum.split("/")
            for i in range(count):
                name = f"{source}-{label}-{split}-{i}"
                Image.fromarray(rng.integers(0, 256, (90, 80), dtype=np.uint8)).save(folder / f"{name}.png")
                finding = "covid19" if label == "positive" else "normal"
                writer.writerow([name, f"{name}.png", split, source, name, finding, "PA", "CC BY 4.0"])
    return folder


def test_the_commands_make_a_bundle_that_the_node_accepts(tmp_path, monkeypatch):
    recipe = replace(SMALL, epochs=1, folds=2)
    monkeypatch.setitem(command_line.RECIPES, command_line.Method.ZHANG, recipe)
    monkeypatch.setattr(evaluation, "auc", partial(auc, resamples=20))
    (tmp_path / "images").mkdir()
    data = ["--data", str(collection(tmp_path / "images"))]
    work, bundle = ["--workdir", str(tmp_path / "work")], ["--bundle", str(tmp_path / "bundle")]
    for command in (
        ["train", "zhang", *data, *work],
        ["export", "zhang", *data, *work, *bundle, "--name", "noise", "--release", "0.1"],
        ["evaluate", *data, *work, *bundle],
    ):
        result = CliRunner().invoke(command_line.app, command)
        assert result.exit_code == 0, result.output
    ensemble = Ensemble.load(tmp_path / "bundle")
    assert ensemble.manifest.name == "noise"
    assert len(ensemble.predict([np.zeros((90, 80), dtype=np.float32)])) == 1
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert "not a medical device" in card
    assert max(len(line) for line in card.splitlines() if not line.startswith("|")) <= 120
    assert (tmp_path / "bundle" / "evaluation.json").is_file()
