"""A bundle of networks on one device, and what it predicts of a batch of images."""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dicom_node import combination
from dicom_node.bundle import read_manifest
from dicom_node.domain import BundleError, NodeError, Prediction, Remark
from training.models.efficientnet_lite import stage_maps
from training.models.preprocess import square
from workers.door import Door, Position
from workers.golden import check_golden
from workers.loading import load_gate, load_members
from workers.saliency import member_maps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from dicom_node import bundle
    from dicom_node.domain import MemberMap
    from training.models.preprocess import Preprocess
    from workers.loading import LoadedMember, Shared

    Squares = Mapping[tuple[int, int], NDArray[np.float32]]  # an image drawn to squares, by side and resolution
    Scores = dict[str, dict[str, float]]  # of one image, by member and name

log = logging.getLogger(__name__)

LARGEST_BATCH = {"cpu": 1, "cuda": 128}  # on CPUs a batch gains nothing, and the images in it wait for one another


class OutputError(NodeError):
    """A network threw, or gave something that is not a number, where the scores of all are asked for."""

    reason = "network_output"


class DeviceError(NodeError):
    """The device that the networks run on is lost or out of order: no fault of the image."""

    permanent = False
    reason = "device"


class Ensemble:
    """The networks of one bundle on one device; stored as float16, computed in float32 or, where that does, bfloat16.

    Attributes
    ----------
    squares
        Sides and resolutions of the squares that `predict` needs of every image.
    """

    def __init__(
        self, manifest: bundle.Manifest, members: Sequence[LoadedMember], device: torch.device, door: Door | None = None
    ) -> None:
        self.manifest = manifest
        self.squares = tuple(sorted({member.transform.square for member in members}))
        self._members = tuple(members)
        self._device = device
        self._door = door
        self.batch_size = LARGEST_BATCH[device.type]

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Ensemble:
        """The bundle in `folder`, every weight verified, ready on `device` (``cpu``, ``cuda``, ``cuda:1``).

        Its golden images, where it has any, have given the scores that they must.

        Raises
        ------
        BundleError
            Naming the file and the first thing that is wrong with it, or the device that is not there or gives others.
        """
        manifest = read_manifest(folder)
        place = _device(device)
        members = load_members(folder, manifest, place)
        door = None
        if manifest.gate is not None:
            reader = next(member for member in members if member.name == manifest.gate.reads)
            door = Door(manifest.gate, load_gate(folder, manifest.gate, reader, place))
        ensemble = cls(manifest, members, place, door)
        check_golden(ensemble, folder)
        return ensemble

    @property
    def release(self) -> str:
        """The bundle's release."""
        return self.manifest.release

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self._device

    @property
    def groups(self) -> list[tuple[LoadedMember, ...]]:
        """The members that are computed in one precision, as they share their blocks."""
        found: dict[int, list[LoadedMember]] = {}
        for member in self._members:
            found.setdefault(id(member.shared or member), []).append(member)
        return [tuple(group) for group in found.values()]

    def predict_images(
        self, images: Sequence[NDArray[np.float32]], thresholds: Mapping[str, float] | None = None
    ) -> list[Prediction | NodeError]:
        """As `predict`, of whole images: float32, shape (H, W), in [0, 1], MONOCHROME2 sense (PS3.3 C.7.6.3.1.2)."""
        return self.predict([self.draw(image) for image in images], thresholds)

    def draw(self, image: NDArray[np.float32]) -> Squares:
        """The squares of an image."""
        return {key: square(image, *key)[0].numpy() for key in self.squares}

    def predict(
        self, images: Sequence[Squares], thresholds: Mapping[str, float] | None = None
    ) -> list[Prediction | NodeError]:
        """What the bundle says of each image, in order; or why it says nothing of that one.

        A batch that the device's memory does not hold is halved, and stays so.

        Parameters
        ----------
        thresholds
            A site's own, by target.

        Returns
        -------
        A `DeclinedByPixelsError` of what is no frontal chest X-ray, an `AnswerError` of what cannot be answered.

        Raises
        ------
        DeviceError
            Where the GPU fails.
        """
        found: list[Prediction | NodeError] = []
        with self._calm():
            while len(found) < len(images):
                batch = images[len(found) : len(found) + self.batch_size]
                try:
                    found += self._predict(batch, thresholds)
                except torch.OutOfMemoryError as error:
                    if len(batch) == 1:
                        raise DeviceError(f"{self._device} has no memory for one image") from error
                    self.batch_size = len(batch) // 2
                    log.warning("%s is out of memory: batches of %d from now on", self._device, self.batch_size)
                    torch.cuda.empty_cache()
        return found

    def scores(self, images: Sequence[Squares]) -> list[Scores]:
        """Every member's scores of each image, whatever kind of image it is.

        Raises
        ------
        OutputError
            Where a member gives none.
        """
        with self._calm():
            batch = _Batch(images, self._device)
            each = [self._ask(member, batch)[0] for member in self._members]
            found: list[Scores] = []
            for index in range(len(images)):
                scores = {member.name: rows[index] for member, rows in zip(self._members, each, strict=True)}
                if any(row is None for row in scores.values()):
                    raise OutputError(f"{self.manifest.name} {self.release}: not all members gave finite scores")
                found.append({name: row for name, row in scores.items() if row is not None})
        return found

    @contextmanager
    def _calm(self) -> Iterator[None]:
        """No gradients; no TensorFloat-32, which would cost the agreement of scores between devices and batches."""
        try:
            # `flags` turns cuDNN off unless it is told not to.
            with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self._device.type == "cpu":
                raise
            try:
                self._expect_device()
            except RuntimeError as lost:
                raise DeviceError(f"{self._device} failed: {type(error).__name__}") from lost
            raise  # the device is in order: the fault is the image's, or ours

    def _predict(
        self, images: Sequence[Squares], thresholds: Mapping[str, float] | None
    ) -> list[Prediction | NodeError]:
        batch = _Batch(images, self._device)
        found: list[Prediction | NodeError | None] = [None] * len(images)
        shown = [(index, Position()) for index in range(len(images))]
        if self._door is not None:
            reader = next(member for member in self._members if member.name == self._door.reads)
            # In float32, as it was fitted: its distance is finer than what bfloat16 leaves of the maps.
            verdicts, batch = self._door.sort(batch, lambda each: self._maps(reader, each, half=False))
            shown = []
            for index, verdict in enumerate(verdicts):
                if isinstance(verdict, NodeError):
                    found[index] = verdict
                else:
                    shown.append((index, verdict))
        if not shown:
            return [each for each in found if each is not None]
        asked = [self._ask(member, batch) for member in self._members]
        rows: list[Scores] = [
            {m.name: rows[at] for m, (rows, _) in zip(self._members, asked, strict=True) if rows[at] is not None}  # type: ignore[misc]
            for at in range(len(shown))
        ]
        answers = [self._answer(scores, thresholds) for scores in rows]
        maps = self._draw_maps([seen for _, seen in asked], rows, answers, [position.turns for _, position in shown])
        for at, (index, position) in enumerate(shown):
            answer = answers[at]
            if isinstance(answer, NodeError):
                found[index] = answer
                continue
            remarks = [*position.remarks]
            remarks += [f"{Remark.WITHOUT_MEMBER}:{m.name}" for m in self._members if m.name not in rows[at]]
            found[index] = Prediction(
                bundle=self.manifest.name,
                release=self.manifest.release,
                operating_point=answer[0].operating_point,
                targets=answer,
                members=rows[at],
                maps=tuple(maps[at]),
                remarks=tuple(remarks),
            )
        return [each for each in found if each is not None]

    def _answer(self, scores: Scores, thresholds: Mapping[str, float] | None) -> Any:
        try:
            return combination.results(self.manifest, scores, thresholds)
        except combination.AnswerError as error:
            return error

    def _maps(self, member: LoadedMember, batch: _Batch, *, half: bool) -> list[Tensor]:
        """The maps of the levels that the member reads of the blocks that it shares."""
        assert member.shared is not None and member.network.blocks is not None  # noqa: PT018, S101 - the caller looked
        maps = batch.maps(member.shared, member.transform, half=half)
        return [maps[level] for level in member.network.blocks.levels]

    def _ask(self, member: LoadedMember, batch: _Batch) -> tuple[list[dict[str, float] | None], dict[str, Tensor]]:
        """The member's scores of each image, None where it gave none, and its intermediates."""
        try:
            rows, intermediates = self._run(member, batch)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            if "alloc" in str(error) and self._device.type == "cpu":  # torch has no error of its own for it
                raise MemoryError from error
            self._expect_device()
            log.warning("member %s threw: %s", member.name, type(error).__name__)
            if len(batch) > 1:  # it may be one image's fault
                alone = [self._ask(member, batch.only([index])) for index in range(len(batch))]
                return [rows[0] for rows, _ in alone], {}
            return [None], {}
        finite = [row if all(map(math.isfinite, row.values())) else None for row in rows]
        if None in finite:
            log.warning("member %s gave scores that are not finite", member.name)
        return list(finite), intermediates

    def _run(self, member: LoadedMember, batch: _Batch) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
        network = member.network
        inputs = batch.inputs(member.transform)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=member.half):
            if member.shared is None:
                intermediates = network.embed(inputs)
            else:
                intermediates = network.embed_maps(inputs, self._maps(member, batch, half=member.half))
            outputs = network.judge(intermediates)
        named = network.scores(outputs)
        values = torch.stack([named[name] for name in network.score_names], dim=1).cpu().tolist()
        return [dict(zip(network.score_names, row, strict=True)) for row in values], intermediates

    def _expect_device(self) -> None:
        """A GPU that still adds up numbers is not what made a network throw."""
        if self._device.type != "cpu":
            torch.ones(2, device=self._device).sum().item()

    def _draw_maps(
        self, seen: Sequence[dict[str, Tensor]], rows: Sequence[Scores], answers: Sequence[Any], turns: Sequence[int]
    ) -> list[list[MemberMap]]:
        """Each image's maps; those that take long are drawn on a CPU of images that are flagged only."""
        found: list[list[MemberMap]] = [[] for _ in answers]
        for member, intermediates in zip(self._members, seen, strict=True):
            sparing = member.network.costly_maps and self._device.type == "cpu"
            wanted = [
                at
                for at, answer in enumerate(answers)
                if not isinstance(answer, NodeError)
                and (not sparing or any(one.flagged for one in answer))
                and member.name in rows[at]
            ]
            if not wanted or not intermediates:
                continue
            chosen = intermediates
            if len(wanted) < len(answers):
                chosen = {name: tensor[wanted] for name, tensor in intermediates.items()}
            with torch.autocast(self._device.type, torch.bfloat16, enabled=member.half):
                drawn = member_maps(member, chosen, [turns[at] for at in wanted])
            for at, maps in zip(wanted, drawn, strict=True):
                found[at] += maps
        return found


class _Batch:
    """Images on the device; what is made of them once for all members."""

    def __init__(self, images: Sequence[Squares], device: torch.device) -> None:
        self.images = images
        self._device = device
        self._inputs: dict[Preprocess, Tensor] = {}
        self._maps: dict[tuple[int, bool], dict[int, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.images)

    def inputs(self, transform: Preprocess) -> Tensor:
        """The inputs of every network with that transform."""
        if transform not in self._inputs:
            drawn = torch.from_numpy(np.stack([image[transform.square] for image in self.images]))[:, None]
            finished = transform.finish(drawn.to(self._device, non_blocking=True))
            self._inputs[transform] = finished.contiguous(memory_format=torch.channels_last)
        return self._inputs[transform]

    def maps(self, shared: Shared, transform: Preprocess, *, half: bool) -> dict[int, Tensor]:
        """The maps of all levels that any member reads of the blocks."""
        key = (id(shared), half)
        if key not in self._maps:
            with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
                inputs = self.inputs(transform).expand(-1, 3, -1, -1)
                found = stage_maps(shared.stages, shared.levels, inputs)
            self._maps[key] = dict(zip(shared.levels, found, strict=True))
        return self._maps[key]

    def only(self, kept: Sequence[int]) -> _Batch:
        """Some of the images, with what was made of them already."""
        part = _Batch([self.images[index] for index in kept], self._device)
        for transform, inputs in self._inputs.items():
            part._inputs[transform] = inputs[list(kept)]
        for key, maps in self._maps.items():
            part._maps[key] = {level: one[list(kept)] for level, one in maps.items()}
        return part

    def mended(self, changed: Mapping[int, Callable[[NDArray[np.float32]], NDArray[np.float32]]]) -> _Batch:
        """The batch with some of its images changed; nothing that was made of them is kept."""
        images = [
            {key: changed[index](drawn) for key, drawn in image.items()} if index in changed else image
            for index, image in enumerate(self.images)
        ]
        return _Batch(images, self._device)


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
