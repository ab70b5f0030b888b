"""A bundle of weights, loaded once it has proved to be what its manifest says, and what it predicts."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError

from dicom_node.bundle import read_manifest
from dicom_node.domain import BundleError, NodeError, Prediction, TargetResult, decided
from training.models.calibration import Platt
from training.models.combine import combined_probability
from training.models.preprocess import Preprocess
from training.models.registry import build
from workers.saliency import member_maps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from dicom_node import bundle
    from dicom_node.domain import MemberMap
    from training.models.network import Network


class OutputError(NodeError):
    """A network gave something that is not a number; nothing of that prediction may be used."""

    reason = "network_output"


class DeviceError(NodeError):
    """The device that the networks run on is lost or out of order: no fault of the image."""

    permanent = False
    reason = "device"


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    network: Network
    transform: Preprocess
    calibration: Mapping[str, bundle.Calibration]

    def logit(self, target: str, scores: Mapping[str, float]) -> float:
        scaling = self.calibration[target]
        return Platt(scaling.slope, scaling.intercept).logit(scores[scaling.output])


class Ensemble:
    """The networks of one bundle on one device; stored as float16, computed in float32."""

    def __init__(self, manifest: bundle.Manifest, members: Sequence[_Member], device: torch.device) -> None:
        self.manifest = manifest
        self._members = tuple(members)
        self._device = device

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Ensemble:
        """The bundle in `folder`, every weight verified, ready on `device` (``cpu``, ``cuda``, ``cuda:1``).

        Raises
        ------
        BundleError
            Naming the file and the first thing that is wrong with it, or the device that is not there.
        """
        manifest = read_manifest(folder)
        place = _device(device)
        return cls(manifest, [_load_member(folder, member, place) for member in manifest.members], place)

    @property
    def release(self) -> str:
        """The bundle's release."""
        return self.manifest.release

    def predict(self, images: Sequence[NDArray[np.float32]]) -> list[Prediction]:
        """What the bundle says of each image, in order.

        One image at a time: the scores of an image do not depend on what else is in the batch.

        Parameters
        ----------
        images
            float32, shape (H, W), in [0, 1], MONOCHROME2 sense (PS3.3 C.7.6.3.1.2).

        Raises
        ------
        OutputError
            Where a score is not a finite number.
        DeviceError
            Where the GPU fails.
        """
        try:
            # TensorFloat-32 would cost the agreement of scores between devices and between batches.
            with torch.no_grad(), torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
                return [self._predict(image) for image in images]
        except RuntimeError as error:
            if self._device.type == "cpu":
                raise
            raise DeviceError(f"{self._device} failed: {type(error).__name__}") from error

    def _predict(self, image: NDArray[np.float32]) -> Prediction:
        scores: dict[str, dict[str, float]] = {}
        looked: list[tuple[_Member, dict[str, Tensor]]] = []
        for member in self._members:
            outputs, intermediates = member.network(member.transform(image)[None].to(self._device))
            raw = member.network.scores(outputs)
            scores[member.name] = {name: value.item() for name, value in raw.items()}
            for name, value in scores[member.name].items():
                if not math.isfinite(value):
                    raise OutputError(f"{self.manifest.name} {self.release}: {name} of {member.name} is {value}")
            looked.append((member, intermediates))
        maps: list[MemberMap] = []
        for member, intermediates in looked:  # not before all scores are known to be numbers: some maps take long
            maps += member_maps(member.name, member.network, intermediates, member.transform)
        return Prediction(
            bundle=self.manifest.name,
            release=self.manifest.release,
            operating_point=self.manifest.targets[0].operating_point,
            targets=tuple(self._answer(target, scores) for target in self.manifest.targets),
            members=scores,
            maps=tuple(maps),
        )

    def _answer(self, target: bundle.Target, scores: Mapping[str, Mapping[str, float]]) -> TargetResult:
        logits = {m.name: m.logit(target.name, scores[m.name]) for m in self._members if m.name in target.weights}
        probability = combined_probability(logits, target.weights)
        if not math.isfinite(probability):
            raise OutputError(f"{self.manifest.name} {self.release}: probability of {target.name} is {probability}")
        return TargetResult(target.name, probability, target.threshold, decided(probability, target.threshold))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BundleError(f"device {name!r} is not known; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise BundleError(f"device {name!r} is not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BundleError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return device


def _load_member(folder: Path, member: bundle.Member, device: torch.device) -> _Member:
    try:
        network = build(member.architecture, member.options)
        transform = Preprocess.from_manifest(member.preprocessing)
    except ValueError as error:
        raise BundleError(f"{folder}: member {member.name}: {error}") from error
    for target, scaling in member.calibration.items():
        if scaling.output not in network.score_names:
            raise BundleError(f"{folder}: member {member.name}: {target} is calibrated on unknown {scaling.output}")
    expected = network.state_dict()
    tensors: dict[str, Tensor] = {}
    for part in member.weights:
        tensors |= _read_weights(folder / part.file, part.sha256, expected, tensors)
    if missing := sorted(expected.keys() - tensors.keys()):
        files = ", ".join(part.file for part in member.weights)
        raise BundleError(f"{folder}: tensor {missing[0]} of {member.architecture} is missing from {files}")
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False).to(device)
    try:
        network.scores(network(torch.zeros(1, 1, transform.crop, transform.crop, device=device))[0])
    except (RuntimeError, ValueError) as error:
        raise BundleError(
            f"{folder}: member {member.name} gives no scores of {transform.crop} pixels: {str(error).splitlines()[0]}"
        ) from error
    return _Member(member.name, network, transform, member.calibration)


def _read_weights(
    path: Path, sha256: str, expected: Mapping[str, Tensor], have: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of one file, in float32; the bytes that are parsed are those that were hashed."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise BundleError(f"{path} is not the file that the manifest names: SHA-256 {found}, expected {sha256}")
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise BundleError(f"{path} is not safetensors: {error}") from error
    for name, tensor in tensors.items():
        if name not in expected or name in have:
            raise BundleError(f"{path}: unexpected tensor {name}")
        if tensor.shape != expected[name].shape:
            raise BundleError(f"{path}: tensor {name} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}")
        if not tensor.isfinite().all():
            raise BundleError(f"{path}: tensor {name} holds values that are not finite")
    return {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
