import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler
from torch import nn

from training.models.jahan import COMPONENTS, LATENT, Jahan2022, Reconstructed, log_density
from training.models.registry import build


@pytest.fixture(scope="module")
def latents() -> np.ndarray:
    """Latents of 40 normal images and of 5 others, their coordinates correlated and of unlike sizes."""
    rng = np.random.default_rng(6)
    mixed = rng.normal(size=(45, LATENT)) @ rng.normal(size=(LATENT, LATENT)) / 8 + rng.normal(size=LATENT)
    return mixed.astype(np.float32)


@pytest.fixture(scope="module")
def fitted(latents):
    """A network with both densities, and what scikit-learn says of the five others."""
    normal, others = latents[:40].astype(np.float64), latents[40:].astype(np.float64)
    scaler = StandardScaler().fit(normal)
    pca = PCA(COMPONENTS, random_state=0).fit(scaler.transform(normal))
    network = Jahan2022(references=40)
    network.set_density(
        torch.from_numpy(normal),
        0.8,
        torch.from_numpy(scaler.mean_),
        torch.from_numpy(scaler.scale_),
        torch.from_numpy(pca.components_),
        0.6,
    )
    plain = KernelDensity(bandwidth=0.8).fit(normal).score_samples(others)
    reduced = KernelDensity(bandwidth=0.6).fit(pca.transform(scaler.transform(normal)))
    projected = reduced.score_samples(pca.transform(scaler.transform(others)))
    return network.eval(), {"log_density": plain, "log_density_pca": projected}


def outputs(latent: np.ndarray) -> Reconstructed:
    image = torch.zeros(len(latent), 3, 2, 2)
    return Reconstructed(image, torch.from_numpy(latent), image)


@pytest.mark.parametrize("name", ["log_density", "log_density_pca"])
def test_the_densities_are_scikit_learns(fitted, latents, name):
    network, expected = fitted
    assert network.scores(outputs(latents[40:]))[name].numpy() == pytest.approx(expected[name], rel=1e-4)


def test_the_density_of_one_kernel_is_the_normal_distributions():
    # In two dimensions, one deviation away: 1 / (2 pi h^2) exp(-1/2).
    found = log_density(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([5.0]))
    assert found.item() == pytest.approx(math.log(math.exp(-0.5) / (2 * math.pi * 25)), rel=1e-12)


def test_a_density_far_from_all_references_stays_finite():
    found = log_density(torch.full((1, LATENT), 1e3), torch.zeros(4, LATENT), torch.tensor([0.01]))
    assert found.isfinite().all()
    assert found.item() < -1e9


def test_the_reconstruction_error_is_the_mean_square_over_pixels_and_channels(fitted):
    image = torch.zeros(2, 3, 4, 4)
    reconstruction = image.clone()
    reconstruction[1, 0, 2, 3] = 6.0  # 36 of 48 values
    found = fitted[0].scores(Reconstructed(reconstruction, torch.zeros(2, LATENT), image))
    assert found["reconstruction_error"].tolist() == [0.0, 0.75]


def test_the_heatmap_is_the_squared_error_of_each_pixel_over_the_channels(fitted):
    network = fitted[0]
    with torch.no_grad():
        intermediates = network.embed(torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(7)))
        reconstruction = network.judge(intermediates).reconstruction
        found = network.heatmaps(intermediates)["reconstruction"]
    place = (0, slice(None), 5, 99)
    by_hand = ((reconstruction[place] - intermediates["input"][place]) ** 2).sum() / 3
    assert found[0, 5, 99].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_scores_need_a_fitted_density():
    with pytest.raises(ValueError, match="kernel density was not fitted"):
        Jahan2022(references=4).scores(outputs(np.zeros((1, LATENT), dtype=np.float32)))


@pytest.mark.parametrize(("bandwidth", "bandwidth_pca"), [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0)])
def test_a_bandwidth_that_is_none_is_refused(bandwidth, bandwidth_pca):
    network = Jahan2022(references=4)
    shapes = torch.zeros(4, LATENT), torch.zeros(LATENT), torch.ones(LATENT), torch.zeros(COMPONENTS, LATENT)
    with pytest.raises(ValueError, match="bandwidth must be above 0"):
        network.set_density(shapes[0], bandwidth, *shapes[1:], bandwidth_pca)


def test_the_density_travels_with_the_weights(fitted, latents):
    network, _ = fitted
    again = build("Jahan2022", {"references": 40})
    again.load_state_dict(network.state_dict())
    one, other = (n.scores(outputs(latents[40:])) for n in (network, again))
    assert all(torch.equal(one[name], other[name]) for name in network.score_names)
    with pytest.raises(RuntimeError, match="references"):
        build("Jahan2022", {"references": 41}).load_state_dict(network.state_dict())


def test_the_density_hardly_changes_by_rounding_to_float16(fitted, latents):
    network, expected = fitted
    rounded = build("Jahan2022", {"references": 40})
    rounded.load_state_dict({n: t.half() if t.is_floating_point() else t for n, t in network.state_dict().items()})
    found = rounded.scores(outputs(latents[40:]))
    for name, values in expected.items():
        assert found[name].numpy() == pytest.approx(values, rel=0.01)


def test_the_layers_are_those_of_figures_3_and_4():
    # Keras counts BatchNorm's two running statistics with its parameters.
    network = Jahan2022()
    counted = [
        sum(t.numel() for n, t in layer.state_dict().items() if n != "num_batches_tracked")
        for part in (network.encoder, network.decoder)
        for layer in part
    ]
    encoder = [224, 32, 1_168, 64, 4_640, 128, 1_048_704]
    decoder = [1_056_768, 9_248, 128, 4_624, 64, 1_160, 32, 219]
    assert [count for count in counted if count] == encoder + decoder
    assert sum(counted) == 2_127_203


def test_keras_defaults_hold():
    norms = [m for m in Jahan2022().modules() if isinstance(m, nn.BatchNorm2d)]
    leaks = [m for m in Jahan2022().modules() if isinstance(m, nn.LeakyReLU)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
    assert {m.negative_slope for m in leaks} == {0.3}
    assert (len(norms), len(leaks)) == (6, 7)
