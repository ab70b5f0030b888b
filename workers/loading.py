"""The networks of a bundle, loaded once every file has proved to be what the manifest says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from dicom_node.domain import BundleError
from training.models.fold import fold_batch_norm
from training.models.gate import Gate, pooled_values
from training.models.network import digest_of
from training.models.preprocess import Preprocess
from training.models.registry import build

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from dicom_node import bundle
    from training.models.network import Network


@dataclass(slots=True)
class Shared:
    """Blocks that several members read: run once for all of them, up to the last level that one of them wants."""

    stages: nn.Sequential
    levels: tuple[int, ...]


@dataclass(slots=True)
class LoadedMember:
    """A network on its device.

    Attributes
    ----------
    shared
        What stands for the network's own blocks; None where it has none.
    half
        Whether it is computed in bfloat16.
    """

    described: bundle.Member
    network: Network
    transform: Preprocess
    shared: Shared | None = None
    half: bool = False

    @property
    def name(self) -> str:
        """As in the manifest."""
        return self.described.name


def load_members(folder: Path, manifest: bundle.Manifest, device: torch.device) -> list[LoadedMember]:
    """Every member of the bundle in `folder`, its weights verified, its equal blocks shared, ready on `device`.

    Raises
    ------
    BundleError
        Naming the file and the first thing that is wrong with it.
    """
    members = [_load_member(folder, member) for member in manifest.members]
    _share(members)
    for member in members:
        fold_batch_norm(member.network)
        member.network.to(device).to(memory_format=torch.channels_last)
    return members


def load_gate(folder: Path, gate: bundle.Gate, reader: LoadedMember, device: torch.device) -> Gate:
    """The bundle's gate, which reads the blocks of `reader`.

    Raises
    ------
    BundleError
        As `load_members`; or where `reader` has no blocks to read.
    """
    blocks = reader.network.blocks
    if blocks is None:
        raise BundleError(f"{folder}: the gate cannot read {reader.name}: it has no blocks whose maps could be shared")
    tensors = read_weights(folder / gate.weights.file, gate.weights.sha256)
    side = reader.transform.crop
    with torch.no_grad():
        maps = reader.network.lung_maps(torch.zeros(1, 3, side, side, device=device))
        network = Gate(pooled_values(maps).shape[1], len(tensors.get("axes.bias", ())), len(gate.kinds))
    _take(network, tensors, f"{folder / gate.weights.file}")
    network.eval().requires_grad_(False).to(device)
    return network


def _load_member(folder: Path, member: bundle.Member) -> LoadedMember:
    try:
        network = build(member.architecture, member.options)
        transform = Preprocess.from_manifest(member.preprocessing)
    except (ValueError, RuntimeError, OverflowError, MemoryError) as error:
        told = str(error).partition("\n")[0] or type(error).__name__
        raise BundleError(f"{folder}: member {member.name}: {told}") from error
    for target, scaling in member.calibration.items():
        if unknown := [name for name in scaling.outputs if name not in network.score_names]:
            raise BundleError(f"{folder}: member {member.name}: {target} is calibrated on unknown {unknown[0]}")
    tensors: dict[str, Tensor] = {}
    for part in member.weights:
        for name, tensor in read_weights(folder / part.file, part.sha256).items():
            if name in tensors:
                raise BundleError(f"{folder / part.file}: unexpected tensor {name}")
            tensors[name] = tensor
    _take(network, tensors, ", ".join(str(folder / part.file) for part in member.weights))
    network.eval().requires_grad_(False)
    network.thorough = False
    try:
        with torch.no_grad():
            network.scores(network(torch.zeros(1, 1, transform.crop, transform.crop))[0])
    except (RuntimeError, ValueError) as error:
        raise BundleError(
            f"{folder}: member {member.name} gives no scores of {transform.crop} pixels: {str(error).splitlines()[0]}"
        ) from error
    return LoadedMember(member, network, transform)


def _take(network: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    expected = network.state_dict()
    for name, tensor in tensors.items():
        if name not in expected:
            raise BundleError(f"{where}: unexpected tensor {name}")
        if tensor.shape != expected[name].shape:
            raise BundleError(f"{where}: tensor {name} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}")
    if missing := sorted(expected.keys() - tensors.keys()):
        raise BundleError(f"{where}: tensor {missing[0]} is missing")
    network.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()})


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of one file; the bytes that are parsed are those that were hashed.

    Raises
    ------
    BundleError
        Another file than the manifest's, no safetensors, or values that are not finite.
    """
    try:
        tensors = safetensors.torch.load(read_verified(path, sha256))
    except SafetensorError as error:
        raise BundleError(f"{path} is not safetensors: {error}") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise BundleError(f"{path}: tensor {name} holds values that are not finite")
    return tensors


def read_verified(path: Path, sha256: str) -> bytes:
    """The bytes of a file of the bundle.

    Raises
    ------
    BundleError
        Where it cannot be read, or is not the one that the manifest names.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise BundleError(f"{path} is not the file that the manifest names: SHA-256 {found}, expected {sha256}")
    return data


def _share(members: Sequence[LoadedMember]) -> None:
    """Members with the same transform whose blocks have the same weights get the same ones, with the levels of all."""
    found: dict[Any, Shared] = {}
    for member in members:
        blocks = member.network.blocks
        if blocks is None:
            continue
        key = (member.transform, digest_of(blocks.stages))
        shared = found.setdefault(key, Shared(blocks.stages, ()))
        shared.levels = tuple(sorted({*shared.levels, *blocks.levels}))
        member.network.take_blocks(shared.stages)
        member.shared = shared
