"""A study fetched in the ways of a peer's settings, one after the other, each in a process that can be killed."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.children import Children
from dicom_node.domain import DecoderError, NodeError, place_of
from dicom_node.retrospective.arrivals import MOVE
from dicom_node.retrospective.retrieval import RetrievalError, Wanted, retrieve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dicom_node.config import Peer, Settings

_LINGER_S, _LINGER_POLL_S = 5.0, 0.1  # for what was said to be complete and is still on its way
_MEMORY_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came of an attempt to fetch a study.

    Attributes
    ----------
    told
        What each way came to, for a person.
    fault
        What the peer failed in, where it did: a pause may help. None where it served, even if not all came.
    """

    told: str
    fault: str | None
    seconds: float


def retrieving_children(settings: Settings) -> Children:
    """Processes that fetch, one for each study that is fetched at a time."""
    return Children(
        settings.retrospective.retrievals,
        timeout_s=settings.retrospective.study_timeout_s,
        memory_bytes=_MEMORY_BYTES,
        preload=("dicom_node.retrospective.retrieval",),
    )


class Retriever:
    """Fetches what is missing of studies; safe to be called from several threads."""

    def __init__(self, settings: Settings, children: Children) -> None:
        self._settings = settings
        self._children = children

    def fetch(
        self,
        peer: Peer,
        run_study_id: int,
        study_instance_uid: str,
        missing: Sequence[tuple[str, str]],
        still_missing: Callable[[], Sequence[str]],
        on_way: Callable[[str], None],
    ) -> Fetched:
        """Each way of the peer was tried until nothing was missing.

        Parameters
        ----------
        missing
            Pairs of Series and SOP Instance UID.
        still_missing
            The SOP Instance UIDs that have not come, by the ledger.
        on_way
            Called with each way before it is tried.
        """
        began = time.monotonic()
        told: list[str] = []
        faults: list[str] = []
        for way in peer.retrieve:
            on_way(way)
            try:
                said = self._tried(peer, way, Wanted(run_study_id, study_instance_uid, tuple(missing)))
            except RetrievalError as error:
                said = str(error)
                faults.append(f"{way}: {error}")
            left = set(self._linger(still_missing) if way == MOVE else still_missing())
            came = sum(1 for _, instance in missing if instance not in left)
            told.append(f"{way}: {came} of {len(missing)} came ({said})")
            missing = [one for one in missing if one[1] in left]
            if not missing:
                break
        fault = "; ".join(faults) if faults and len(faults) == len(told) else None
        return Fetched("; ".join(told), fault, time.monotonic() - began)

    def _tried(self, peer: Peer, way: str, wanted: Wanted) -> str:
        """What the peer said.

        Raises
        ------
        RetrievalError
        """
        try:
            return self._children.submit(retrieve, self._settings, peer.name, way, wanted).result()
        except RetrievalError:
            raise
        except DecoderError as error:
            raise RetrievalError(self._killed(error)) from error
        except CancelledError as error:
            raise RetrievalError("the node was stopped") from error
        except NodeError as error:
            raise RetrievalError(str(error)) from error
        except Exception as error:
            raise RetrievalError(f"a fault of the node, {place_of(error)}") from error

    def _killed(self, error: DecoderError) -> str:
        """In words of a retrieval: the children know of decoding alone."""
        if error.reason == "decoder_timeout":
            return f"it took longer than study_timeout_s = {self._settings.retrospective.study_timeout_s:g}"
        if error.reason == "decoder_memory":
            return "it needed more memory than a process that fetches may have"
        return "the process that fetched it died"

    @staticmethod
    def _linger(still_missing: Callable[[], Sequence[str]]) -> Sequence[str]:
        """What is missing once nothing has come for a moment."""
        left, until = still_missing(), time.monotonic() + _LINGER_S
        while left and time.monotonic() < until:
            time.sleep(_LINGER_POLL_S)
            now = still_missing()
            if len(now) < len(left):
                until = time.monotonic() + _LINGER_S
            left = now
        return left
