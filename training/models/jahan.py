"""Jahan and Hasan 2022, autoencoder-based anomaly detection: the network (Figs. 3 and 4) and its two scores."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from training.models.network import Network

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

SIDE = 128
LATENT = 128
COMPONENTS = 16
_CELLS = (32, SIDE // 8, SIDE // 8)


class Reconstructed(NamedTuple):
    """The image again, shape (N, 3, 128, 128), what it was made from, shape (N, 128), and the image itself."""

    reconstruction: Tensor
    latent: Tensor
    image: Tensor


class Jahan2022(Network):
    """The convolutional autoencoder; 2,127,203 parameters as Keras counts (BatchNorm's statistics among them).

    Keras' defaults hold: BatchNorm with eps 1e-3 and momentum 0.99 (torch's 0.01), LeakyReLU with slope 0.3.

    Parameters
    ----------
    references
        How many latents of normal images the kernel density is made of.
    """

    references: Tensor
    bandwidth: Tensor
    mean: Tensor
    scale: Tensor
    components: Tensor
    references_pca: Tensor
    bandwidth_pca: Tensor

    def __init__(self, references: int = 2000) -> None:
        if not (isinstance(references, int) and references > 0):
            raise ValueError(f"references {references!r}: a count above 0 is needed")
        super().__init__()
        self.reference_count = references
        self.score_names = ("reconstruction_error", "log_density", "log_density_pca")
        self.encoder = nn.Sequential(
            *_encoding(3, 8), *_encoding(8, 16), *_encoding(16, 32), nn.Flatten(), nn.Linear(math.prod(_CELLS), LATENT)
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, math.prod(_CELLS)),
            nn.LeakyReLU(0.3),
            nn.Unflatten(1, _CELLS),
            *_decoding(32, 32),
            *_decoding(32, 16),
            *_decoding(16, 8),
            nn.Conv2d(8, 3, 3, padding=1),
        )
        # Zeros until the density is fitted: a bandwidth of 0 is no density.
        self.register_buffer("references", torch.zeros(references, LATENT))
        self.register_buffer("bandwidth", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(LATENT))
        self.register_buffer("scale", torch.ones(LATENT))
        self.register_buffer("components", torch.zeros(COMPONENTS, LATENT))
        self.register_buffer("references_pca", torch.zeros(references, COMPONENTS))
        self.register_buffer("bandwidth_pca", torch.zeros(1))

    def embed(self, x: Tensor) -> dict[str, Tensor]:
        """`input`, on three channels, and `latent`."""
        x = x.expand(-1, 3, -1, -1)
        return {"input": x, "latent": self.encoder(x)}

    def judge(self, intermediates: Mapping[str, Tensor]) -> Reconstructed:
        """What the decoder makes of the latent."""
        latent = intermediates["latent"]
        return Reconstructed(self.decoder(latent), latent, intermediates["input"])

    def set_density(
        self,
        references: Tensor,
        bandwidth: float,
        mean: Tensor,
        scale: Tensor,
        components: Tensor,
        bandwidth_pca: float,
    ) -> None:
        """Keep the latents of normal images and the two densities' parameters.

        Parameters
        ----------
        references
            Shape (references, 128).
        bandwidth, bandwidth_pca
            Of the Gaussian kernel on the latents, and on the standardised latents' principal components.
        mean, scale
            Shape (128,): what standardises a latent.
        components
            Shape (16, 128): the principal axes of standardised latents.
        """
        if not (bandwidth > 0 and bandwidth_pca > 0):
            raise ValueError("a kernel's bandwidth must be above 0")
        values = (references, torch.tensor([bandwidth]), mean, scale, components, torch.tensor([bandwidth_pca]))
        kept = (self.references, self.bandwidth, self.mean, self.scale, self.components, self.bandwidth_pca)
        for buffer, value in zip(kept, values, strict=True):
            buffer.copy_(value)
        self.references_pca.copy_(self._projected(self.references))

    def scores(self, outputs: Reconstructed) -> dict[str, Tensor]:
        """Mean squared error, and natural logarithms of the density of the latent and of its projection.

        Raises
        ------
        ValueError
            Where no density was fitted.
        """
        if not self.bandwidth.item() > 0:
            raise ValueError("the autoencoder's kernel density was not fitted")
        error = (outputs.reconstruction - outputs.image).double().square().mean(dim=(1, 2, 3))
        latent = outputs.latent
        return {
            "reconstruction_error": error,
            "log_density": log_density(latent, self.references, self.bandwidth),
            "log_density_pca": log_density(self._projected(latent), self.references_pca, self.bandwidth_pca),
        }

    def _projected(self, latent: Tensor) -> Tensor:
        return ((latent - self.mean) / self.scale) @ self.components.T

    def heatmaps(self, intermediates: Mapping[str, Tensor], names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The squared error of each pixel, mean over the channels."""
        if names is not None and "reconstruction" not in names:
            return {}
        outputs = self.judge(intermediates)
        return {"reconstruction": (outputs.reconstruction - outputs.image).square().mean(dim=1)}


def log_density(points: Tensor, references: Tensor, bandwidth: Tensor) -> Tensor:
    """Natural logarithm of the Gaussian kernel density estimate, float64, shape (N,).

    Parameters
    ----------
    points, references
        Shapes (N, d) and (R, d).
    bandwidth
        Deviation of the kernel, shape (1,).
    """
    width = bandwidth.double()
    distance = torch.cdist(points.double(), references.double(), compute_mode="donot_use_mm_for_euclid_dist")
    dimensions = points.shape[1]
    constant = math.log(len(references)) + dimensions * (0.5 * math.log(2 * math.pi) + torch.log(width))
    return torch.logsumexp(-0.5 * (distance / width).square(), dim=1) - constant


def _encoding(given: int, wanted: int) -> list[nn.Module]:
    convolution = nn.Conv2d(given, wanted, 3, padding=1)
    return [convolution, nn.BatchNorm2d(wanted, eps=1e-3, momentum=0.01), nn.LeakyReLU(0.3), nn.MaxPool2d(2)]


def _decoding(given: int, wanted: int) -> list[nn.Module]:
    convolution = nn.ConvTranspose2d(given, wanted, 3, padding=1)
    return [
        convolution,
        nn.BatchNorm2d(wanted, eps=1e-3, momentum=0.01),
        nn.LeakyReLU(0.3),
        nn.Upsample(scale_factor=2),
    ]
