"""Study Root C-FIND (PS3.4 C.4.1) over one association, opened anew where it was lost."""

from __future__ import annotations

import contextlib
import time
import warnings
from typing import TYPE_CHECKING, Self

from pydicom.dataset import Dataset

from dicom_node.association import AssociationError, associated
from dicom_node.pacs import PENDING, QUERY, SUCCESS
from dicom_node.retrospective.query import Answer, Answers, QueryError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from pynetdicom.association import Association

    from dicom_node.config import Peer, Settings

# PS3.4 table C.4-1: too many matches, or a warning.
_OUT_OF_RESOURCES = range(0xA700, 0xA800)
_WARNINGS = range(0xB000, 0xC000)
# Identifier does not match, unable to process: some say so of a key that they do not know.
_NOT_UNDERSTOOD = (0xA900, *range(0xC000, 0xD000), 0x0110)
_TRIES, _PAUSE_S = 3, 0.5
_LONGEST_QUERY_S = 600.0
_MOST_ANSWERS = 200_000
_OPTIONAL = (
    "ModalitiesInStudy",
    "NumberOfStudyRelatedInstances",
    "NumberOfSeriesRelatedInstances",
    "BodyPartExamined",
    "SOPClassUID",
)


class _LostError(Exception):
    """The association ended, or no answer came: it may come over another."""


class CFind:
    """Asks one peer by C-FIND; a context manager that closes the association."""

    def __init__(self, peer: Peer, settings: Settings) -> None:
        self.name = peer.name
        self._peer = peer
        self._ae_title = settings.ae_title
        self._timeout_s = settings.network_timeout_s
        self._held = contextlib.ExitStack()
        self._association: Association | None = None
        self._is_plain = False  # whether the peer stumbles over optional keys

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The association was released."""
        self._held.close()

    def ask(self, level: str, keys: Mapping[str, str]) -> Answers:
        """The answers; optional keys are left out where the peer refuses a query that holds them.

        Raises
        ------
        QueryError
            Permanent where the peer refuses this node, or what is asked.
        """
        told = "the association ended"
        for number in range(_TRIES):
            if number:
                time.sleep(_PAUSE_S * 2**number)
            try:
                answers, status = self._once(self._query(level, keys))
            except AssociationError as error:
                if error.permanent:
                    raise QueryError(str(error), permanent=True) from error
                told = str(error)
            except _LostError as error:
                told = str(error)
            else:
                if status == SUCCESS:
                    return Answers(answers, complete=True)
                if status in _OUT_OF_RESOURCES or status in _WARNINGS:
                    return Answers(answers, complete=False)
                if status not in _NOT_UNDERSTOOD or self._is_plain:
                    raise QueryError(f"{self.name} answered C-FIND at {level} level with 0x{status:04X}")
                self._is_plain = True
                return self.ask(level, keys)
        raise QueryError(told)

    def _query(self, level: str, keys: Mapping[str, str]) -> Dataset:
        query = Dataset()
        query.QueryRetrieveLevel = level
        for keyword, value in keys.items():
            if not (self._is_plain and keyword in _OPTIONAL):
                setattr(query, keyword, value)
        if not all(value.isascii() for value in keys.values()):
            query.SpecificCharacterSet = "ISO_IR 192"
        return query

    def _once(self, query: Dataset) -> tuple[list[Answer], int]:
        """What the peer tells, and its last status."""
        association = self._associated()
        asked = [element.keyword for element in query if element.keyword != "QueryRetrieveLevel"]
        answers: list[Answer] = []
        ends = time.monotonic() + _LONGEST_QUERY_S
        status = Dataset()
        try:
            for status, identifier in association.send_c_find(query, QUERY):
                if not status or status.Status not in PENDING:
                    break
                answers.append(_read(identifier, asked) if identifier is not None else {})
                if len(answers) > _MOST_ANSWERS or time.monotonic() > ends:
                    self._forget(association)
                    raise QueryError(f"{self.name} does not end C-FIND: {len(answers)} answers, and still pending")
        except ValueError as error:  # no accepted presentation context
            raise QueryError(f"{self.name} does not accept C-FIND", permanent=True) from error
        except (RuntimeError, OSError, AttributeError) as error:
            self._forget(association)
            raise _LostError(f"{self.name} ended the association") from error
        if not status or "Status" not in status:
            self._forget(association)
            raise _LostError(f"{self.name} gave no answer to C-FIND; does it know AE title {self._ae_title}?")
        return answers, int(status.Status)

    def _associated(self) -> Association:
        if self._association is None or not self._association.is_established:
            self._held.close()
            self._association = self._held.enter_context(
                associated(self._peer, [QUERY], ae_title=self._ae_title, timeout_s=self._timeout_s)
            )
        return self._association

    def _forget(self, association: Association) -> None:
        if association.is_established:
            association.abort()
        self._association = None


def _read(identifier: Dataset, keywords: list[str]) -> Answer:
    """The values as text; what cannot be made out is left out."""
    answer: Answer = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword in keywords:
            try:
                value = identifier.get(keyword)
            except Exception:  # noqa: S112 - pydicom decodes on access, and raises many kinds on broken input
                continue
            values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else value
            answer[keyword] = tuple(text for one in values if one is not None and (text := str(one).strip(" \0")))
    return answer
