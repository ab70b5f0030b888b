"""What every published network here gives: its outputs, the intermediates of its heatmaps, its named scores."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from training.models.lungs import Lungs


class Blocks(NamedTuple):
    """Parts of a network that are run one after the other, and those, counted from 0, whose maps are read."""

    stages: nn.Sequential
    levels: tuple[int, ...]


def digest_of(module: nn.Module) -> str:
    """SHA-256 over what the module is and its weights: equal where two do the same."""
    digest = hashlib.sha256(str(module).encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


class Network(nn.Module, ABC):
    """A method's network, as training, evaluation and service use it.

    Attributes
    ----------
    score_names
        Names of the scores, in the paper's own terms, that `scores` gives.
    backbone_name
        torchvision's name of the backbone, or empty where the network has none.
    lungs
        What tells the lungs of `lung_maps`, in networks that read them only.
    costly_maps
        Whether a heatmap takes many passes through the network.
    thorough
        Whether such a heatmap is drawn in full; else more coarsely where nothing shows.
    """

    score_names: tuple[str, ...]
    backbone_name: str = ""
    costly_maps: bool = False
    thorough: bool = True

    def __init__(self) -> None:
        super().__init__()
        self.lungs: Lungs | None = None

    @abstractmethod
    def embed(self, x: Tensor) -> dict[str, Tensor]:
        """The named intermediates: all that `judge` and `heatmaps` need.

        Parameters
        ----------
        x
            Images as the method's `Preprocess` gives them, shape (N, 1, H, W) or (N, 3, H, W); a grey one is repeated
            on three channels.

        Returns
        -------
        By name, each with N as its first axis.
        """

    @abstractmethod
    def judge(self, intermediates: Mapping[str, Tensor]) -> Any:
        """The network's raw outputs (logits, a reconstruction), from what `embed` gave."""

    @abstractmethod
    def scores(self, outputs: Any) -> dict[str, Tensor]:
        """The scores named by `score_names`, each float64, shape (N,)."""

    @abstractmethod
    def heatmaps(self, intermediates: Mapping[str, Tensor], names: Collection[str] | None = None) -> dict[str, Tensor]:
        """What each map is called, and the map: shape (N, h, w), at least 0; its cells tile the input.

        Parameters
        ----------
        names
            The maps that are wanted; None: all that there are.
        """

    def forward(self, x: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """Raw outputs and named intermediates."""
        intermediates = self.embed(x)
        return self.judge(intermediates), intermediates

    @property
    def blocks(self) -> Blocks | None:
        """The blocks whose maps are all that the network sees of an image; None where there is no such part."""
        return None

    def take_blocks(self, stages: nn.Sequential) -> None:
        """Let another network's equal blocks stand for the own ones."""
        raise ValueError(f"{type(self).__name__} has no blocks to share")

    def embed_maps(self, x: Tensor, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """What `embed` gives of `x`, from the maps of `blocks`, which a network with the same blocks has made."""
        raise ValueError(f"{type(self).__name__} has no blocks to share")

    def lung_maps(self, x: Tensor) -> list[Tensor]:
        """The maps that `lungs` reads, each of shape (N, channels, h, w), of images of shape (N, 3, H, W)."""
        raise ValueError(f"{type(self).__name__} tells no lungs")

    def backbone_state(self) -> dict[str, Tensor]:
        """Weights of the backbone without its last layer, by torchvision's names; empty where there is none."""
        return {}

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a backbone, by torchvision's names; its last layer is left as it is.

        Raises
        ------
        ValueError
            Where a tensor is missing or has another shape.
        """
        raise ValueError(f"{type(self).__name__} has no backbone")
