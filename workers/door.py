"""Who is let in: frontal chest X-rays as they are, those that stand wrong once they are mended, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dicom_node.domain import DeclinedByPixelsError, DeclineReason, NodeError, Remark
from training.models.gate import FRONTAL, LATERAL, PART, TURNS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from dicom_node import bundle
    from training.models.gate import Gate

# How sure it must be of a wrong polarity or turn, among all frontal kinds: else the image is taken as it is.
_SURE = 0.9
_REASONS = {LATERAL: DeclineReason.LATERAL, PART: DeclineReason.NOT_CHEST}


@dataclass(frozen=True, slots=True)
class Position:
    """By how many quarter turns anticlockwise an image was turned, and whether it was inverted, to stand right.

    `uncertain`: it seems to stand wrong, and nothing that was tried made it right.
    """

    turns: int = 0
    inverted: bool = False
    uncertain: bool = False

    @property
    def remarks(self) -> list[str]:
        """What is said of it beside the answer."""
        found = [Remark.POLARITY_MENDED.value] if self.inverted else []
        found += [f"{Remark.TURNED}:{(4 - self.turns) % 4 * 90}"] if self.turns else []
        return found + ([Remark.POSITION_UNCERTAIN.value] if self.uncertain else [])


class Door:
    """A bundle's gate, and what follows from what it tells."""

    def __init__(self, described: bundle.Gate, gate: Gate) -> None:
        self._described = described
        self._gate = gate
        self._frontal = np.array([kind.startswith(FRONTAL) for kind in described.kinds])

    @property
    def reads(self) -> str:
        """The member whose blocks it reads."""
        return self._described.reads

    def sort(self, batch: Any, maps_of: Callable[[Any], Sequence[Tensor]]) -> tuple[list[Position | NodeError], Any]:
        """How each image stands, or why it is declined; and the batch of those let in, mended."""
        told = self.tell(maps_of(batch))
        wrong = {index: how for index, how in enumerate(map(self._stands_wrong, *told)) if how is not None}
        mended: dict[int, Position] = {}
        if wrong:
            tried = batch.only(list(wrong)).mended({at: _mend(*how) for at, how in enumerate(wrong.values())})
            again = self.tell(maps_of(tried))
            # Only where it then stands right: what is told wrongly of an odd image must not be made worse.
            for index, probabilities, distance in zip(wrong, *again, strict=True):
                upright = self._described.kinds[int(np.argmax(probabilities))] == FRONTAL
                if upright and self._why_not(probabilities, distance) is None:
                    mended[index] = Position(*wrong[index])
        verdicts: list[Position | NodeError] = []
        for index, (probabilities, distance) in enumerate(zip(*told, strict=True)):
            if index in mended:
                verdicts.append(mended[index])
            else:
                seems = self._described.kinds[int(np.argmax(probabilities))]
                verdicts.append(self._why_not(probabilities, distance) or Position(uncertain=seems != FRONTAL))
        let_in = [index for index, verdict in enumerate(verdicts) if not isinstance(verdict, NodeError)]
        if len(let_in) < len(verdicts):
            batch = batch.only(let_in)
        changed = {
            at: _mend(mended[index].turns, mended[index].inverted) for at, index in enumerate(let_in) if index in mended
        }
        return verdicts, batch.mended(changed) if changed else batch

    def tell(self, maps: Sequence[Tensor]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Probabilities of the kinds, shape (N, kinds), and distances, shape (N,)."""
        probabilities, distance = self._gate(maps)
        return probabilities.cpu().numpy(), distance.cpu().numpy()

    def _why_not(self, probabilities: NDArray[np.float64], distance: float) -> DeclinedByPixelsError | None:
        frontal = float(probabilities[self._frontal].sum())
        if not frontal >= self._described.threshold:
            kinds = [k for k, inside in zip(self._described.kinds, self._frontal, strict=True) if not inside]
            kind = kinds[int(np.argmax(probabilities[~self._frontal]))]
            return DeclinedByPixelsError(
                _REASONS.get(kind, DeclineReason.NOT_CXR),
                f"the pixels look like: {kind} (probability of a frontal chest X-ray {frontal:.3f})",
            )
        if not distance <= self._described.distance:
            return DeclinedByPixelsError(
                DeclineReason.NOT_CXR,
                f"the pixels are unlike all that the bundle knows (distance {distance:.1f}, at most "
                f"{self._described.distance:.1f})",
            )
        return None

    def _stands_wrong(self, probabilities: NDArray[np.float64], distance: float) -> tuple[int, bool] | None:
        """Quarter turns anticlockwise and inversion that would mend the image; None where it seems upright."""
        del distance  # an image that stands wrong lies far off by that alone
        kind = self._described.kinds[int(np.argmax(probabilities))]
        sure = probabilities.max() >= _SURE * probabilities[self._frontal].sum()
        if not kind.startswith(FRONTAL) or kind == FRONTAL or not sure:
            return None
        turned = next((turn for turn in TURNS if kind.endswith(f"turned {turn}")), 0)
        return turned // 90, "inverted" in kind


def _mend(turns: int, inverted: bool) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    def mend(drawn: NDArray[np.float32]) -> NDArray[np.float32]:
        upright = np.rot90(drawn, turns)
        return np.ascontiguousarray(1 - upright if inverted else upright)

    return mend
