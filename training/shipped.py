"""Weights as a bundle ships them: written in half precision, read back, and put to images one by one as in service."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

import safetensors.torch
from rich.console import Console
from rich.progress import track

from dicom_node.domain import NodeError
from training.data.squares import LARGEST_UNREADABLE, pixels_of
from training.models.preprocess import Preprocess
from training.models.registry import build
from training.scoring import score_images

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from training.data.manifest import Picture
    from training.models.network import Network

    Scores = Mapping[str, Mapping[str, float]]  # of one image, by member and name

log = logging.getLogger(__name__)

LARGEST_SHARD_BYTES = 20_000_000
_HEADER_BYTES = 100_000  # room for a file's own header


def write_shards(state: Mapping[str, torch.Tensor], folder: Path, stem: str) -> list[dict[str, str]]:
    """The tensors in float16 as files of at most `LARGEST_SHARD_BYTES`; their names and SHA-256, in order.

    A tensor that is larger has a file to itself.
    """
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        half = tensor.half().contiguous() if tensor.is_floating_point() else tensor.contiguous()
        if not half.isfinite().all():
            raise ValueError(f"{name} does not fit into half precision")
        size += half.nbytes
        if shards[-1] and size > LARGEST_SHARD_BYTES - _HEADER_BYTES:
            shards.append({})
            size = half.nbytes
        shards[-1][name] = half
    written = []
    for index, shard in enumerate(shards, 1):
        data = safetensors.torch.save(shard)
        path = folder / f"{stem}-{index}-of-{len(shards)}.safetensors"
        path.write_bytes(data)
        written.append({"file": path.name, "sha256": hashlib.sha256(data).hexdigest()})
    return written


def load_shipped(folder: Path, member: Mapping[str, Any]) -> tuple[Network, Preprocess]:
    """A member's network and transform as its bundle's manifest has them, rounded weights and all."""
    network = build(member["architecture"], member.get("options", {}))
    tensors: dict[str, torch.Tensor] = {}
    for part in member["weights"]:
        tensors |= safetensors.torch.load_file(folder / part["file"])
    network.load_state_dict(tensors)
    return network.eval(), Preprocess.from_manifest(member["preprocessing"])


def score_shipped(
    folder: Path, manifest: Mapping[str, Any], pictures: Sequence[Picture]
) -> tuple[tuple[Picture, ...], list[Scores]]:
    """The pictures that can be read, and the scores of each by the written weights; those that cannot are logged.

    Raises
    ------
    ValueError
        Where more than `LARGEST_UNREADABLE` of the pictures cannot be read.
    """
    members = {member["name"]: load_shipped(folder, member) for member in manifest["members"]}
    readable: list[Picture] = []
    scores: list[Scores] = []
    console = Console(stderr=True)
    for picture in track(pictures, "Scoring", console=console, disable=not console.is_terminal):
        try:
            image = pixels_of(picture)
        except NodeError as error:
            log.warning("image %s is left out: %s", picture.image_id, error)
            continue
        readable.append(picture)
        # Alone, as in service: what else is in a batch does not touch an image's scores.
        scores.append({name: score_images(network, how, [image])[0] for name, (network, how) in members.items()})
    if len(pictures) - len(readable) > LARGEST_UNREADABLE * len(pictures):
        raise ValueError(
            f"{len(pictures) - len(readable)} of {len(pictures)} images cannot be read; the log names them"
        )
    return tuple(readable), scores
