"""What a PACS holds, by C-FIND or QIDO-RS: the studies of a cohort, and the instances of a study.

No optional key is required in an answer (PS3.4 C.2.2.1.3), no patient's name is asked for, and an answer that cannot be
one is left out and counted. A PACS that cuts its answers off, whether it says so or not, is asked for less at a time.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dicom_node.admission import SOP_CLASSES
from dicom_node.domain import NodeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import date

    from dicom_node.config import Peer, Settings
    from dicom_node.retrospective.cohort import Criteria

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_LONGEST_UID = 64
_DATE = re.compile(r"\d{8}")
_MINUTES = 24 * 60
# A count of answers that a limit would give: silent ones are round.
_ROUND = 100

Answer = dict[str, tuple[str, ...]]  # by keyword, the values that the PACS gave


class QueryError(NodeError):
    """A PACS could not be asked, or did not answer to the end; `of_one` where another request may well succeed."""

    reason = "query"

    def __init__(self, message: str, *, permanent: bool = False, of_one: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.of_one = of_one


class Answers(NamedTuple):
    """Answers to one query, and whether the PACS says that these are all."""

    found: list[Answer]
    complete: bool


class Transport(Protocol):
    """One way to ask a PACS."""

    name: str

    def ask(self, level: str, keys: Mapping[str, str]) -> Answers:
        """The answers at ``STUDY``, ``SERIES`` or ``IMAGE`` level; an empty key is asked for, another is matched.

        Raises
        ------
        QueryError
            Where there are none to be had.
        """


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """A study that the PACS tells of; `instances` is None where it does not say how many it holds."""

    study_instance_uid: str
    study_date: str
    accession_number: str
    patient_id: str
    instances: int | None


@dataclass(frozen=True, slots=True)
class ExpectedInstance:
    """An instance that the PACS says that a study holds."""

    sop_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str | None


class Finder:
    """Asks one PACS.

    Attributes
    ----------
    skipped
        Answers that were none: without a legal UID, or of another day than was asked for.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._cap: int | None = None  # answers at which the PACS was seen to cut off
        self.skipped = 0

    def studies_of_day(self, day: date, criteria: Criteria) -> list[FoundStudy]:
        """The cohort's studies of one day, each once.

        Raises
        ------
        QueryError
            Also where the day cannot be had as a whole.
        """
        text = f"{day:%Y%m%d}"
        found: dict[str, Answer] = {}
        for modality in criteria.modalities:
            keys = {"StudyDate": text, "ModalitiesInStudy": modality}
            for answer in self._all(keys, 0, _MINUTES):
                if (uid := self._uid(answer, "StudyInstanceUID")) is not None:
                    found.setdefault(uid, answer)
        return self._wanted(found, criteria, text)

    def studies_of(self, keyword: str, value: str, criteria: Criteria) -> list[FoundStudy]:
        """The cohort's studies of one AccessionNumber or PatientID."""
        keys = {**_STUDY_KEYS, keyword: value}
        if criteria.first_day is not None and criteria.last_day is not None:
            keys["StudyDate"] = f"{criteria.first_day:%Y%m%d}-{criteria.last_day:%Y%m%d}"
        answers = self._transport.ask("STUDY", keys)
        if not answers.complete:
            raise QueryError(
                f"{self._transport.name} does not tell all studies of one {keyword}", permanent=True, of_one=True
            )
        found: dict[str, Answer] = {}
        for answer in answers.found:
            said = _first(answer, keyword)
            uid = self._uid(answer, "StudyInstanceUID")
            if uid is not None and said in ("", value) and criteria.holds(_first(answer, "StudyDate")):
                found.setdefault(uid, answer)
            elif uid is not None:
                self.skipped += 1
        return self._wanted(found, criteria, None)

    def expected(self, study_instance_uid: str, modalities: Sequence[str]) -> list[ExpectedInstance]:
        """The instances of these modalities that the study holds, by their series.

        Raises
        ------
        QueryError
        """
        found: dict[str, ExpectedInstance] = {}
        for series in self._series(study_instance_uid):
            modality = _first(series, "Modality")
            uid = self._uid(series, "SeriesInstanceUID")
            if uid is None or (modality and modality not in modalities):
                continue
            keys = {
                "StudyInstanceUID": study_instance_uid,
                "SeriesInstanceUID": uid,
                "SOPInstanceUID": "",
                "SOPClassUID": "",
            }
            answers = self._transport.ask("IMAGE", keys)
            if len(answers.found) < _number(_first(series, "NumberOfSeriesRelatedInstances")):
                answers = self._transport.ask("IMAGE", keys)  # one may just have been deleted, or lost on its way
            if not answers.complete:
                raise QueryError(f"{self._transport.name} does not tell all images of a series")
            for answer in answers.found:
                instance = self._uid(answer, "SOPInstanceUID")
                sop_class = _first(answer, "SOPClassUID") or None
                if instance is None or _first(answer, "SeriesInstanceUID") not in ("", uid):
                    continue
                if modality or sop_class is None or sop_class in SOP_CLASSES:
                    found.setdefault(instance, ExpectedInstance(instance, uid, sop_class))
        return list(found.values())

    def _all(self, keys: Mapping[str, str], first: int, last: int) -> Iterable[Answer]:
        """Every answer for the minutes of the day from `first` up to `last`; the whole day is asked without a time."""
        whole = (first, last) == (0, _MINUTES)
        timed = {**_STUDY_KEYS, **keys, "StudyTime": "" if whole else _times(first, last)}
        answers = self._transport.ask("STUDY", timed)
        count = len(answers.found)
        if answers.complete and not self._is_suspicious(count):
            return answers.found
        by_uid = {_first(answer, "StudyInstanceUID"): answer for answer in answers.found}
        if last - first <= 1:
            if answers.complete:
                return answers.found
            raise self._cut_off(keys)
        middle = (first + last) // 2
        if answers.complete:  # it looks like a limit: are there more in the two halves?
            halves = [
                self._transport.ask("STUDY", {**timed, "StudyTime": _times(*half)}).found
                for half in ((first, middle), (middle, last))
            ]
            more = {_first(answer, "StudyInstanceUID") for half in halves for answer in half}
            if more <= by_uid.keys():
                return answers.found
            self._cap = count
        for half in ((first, middle), (middle, last)):
            by_uid |= {_first(answer, "StudyInstanceUID"): answer for answer in self._all(keys, *half)}
        if not answers.complete and 0 < count == len(by_uid):  # parts hold nothing more: it does not know of the times
            raise self._cut_off(keys)
        return by_uid.values()

    def _cut_off(self, keys: Mapping[str, str]) -> QueryError:
        return QueryError(
            f"{self._transport.name} cuts off what it holds of {keys['StudyDate']}, even minute by minute: raise "
            "the number of answers that it allows"
        )

    def _is_suspicious(self, count: int) -> bool:
        return count > 0 and (count == self._cap or count % _ROUND == 0)

    def _wanted(self, found: Mapping[str, Answer], criteria: Criteria, day: str | None) -> list[FoundStudy]:
        """Those that are of the day and modalities; where the PACS does not say so, it is asked for their series."""
        wanted = []
        for uid, answer in found.items():
            study_date = _first(answer, "StudyDate")
            if day is not None and study_date not in ("", day):
                self.skipped += 1
                continue
            modalities = set(answer.get("ModalitiesInStudy", ()))
            if modalities and modalities.isdisjoint(criteria.modalities):
                continue
            if (not modalities or criteria.body_part) and not self._has_wanted_series(uid, criteria):
                continue
            count = _number(_first(answer, "NumberOfStudyRelatedInstances"))
            wanted.append(
                FoundStudy(
                    study_instance_uid=uid,
                    study_date=study_date if _DATE.fullmatch(study_date) else (day or ""),
                    accession_number=_first(answer, "AccessionNumber"),
                    patient_id=_first(answer, "PatientID"),
                    instances=count or None,
                )
            )
        return wanted

    def _has_wanted_series(self, study_instance_uid: str, criteria: Criteria) -> bool:
        for series in self._series(study_instance_uid):
            modality, part = _first(series, "Modality"), _first(series, "BodyPartExamined").upper()
            if (not modality or modality in criteria.modalities) and (
                criteria.body_part is None or part in ("", criteria.body_part)
            ):
                return True
        return False

    def _series(self, study_instance_uid: str) -> list[Answer]:
        keys = {
            "StudyInstanceUID": study_instance_uid,
            "SeriesInstanceUID": "",
            "Modality": "",
            "BodyPartExamined": "",
            "NumberOfSeriesRelatedInstances": "",
        }
        answers = self._transport.ask("SERIES", keys)
        if not answers.complete:
            raise QueryError(f"{self._transport.name} does not tell all series of a study")
        return [answer for answer in answers.found if _first(answer, "StudyInstanceUID") in ("", study_instance_uid)]

    def _uid(self, answer: Answer, keyword: str) -> str | None:
        """The answer's own UID; None, and counted, where it is none."""
        uid = _first(answer, keyword)
        if len(uid) <= _LONGEST_UID and _UID.fullmatch(uid):
            return uid
        self.skipped += 1
        return None


_STUDY_KEYS = {
    "StudyInstanceUID": "",
    "StudyDate": "",
    "StudyTime": "",
    "AccessionNumber": "",
    "PatientID": "",
    "ModalitiesInStudy": "",
    "NumberOfStudyRelatedInstances": "",
}


@contextmanager
def finder(peer: Peer, settings: Settings) -> Iterator[Finder]:
    """Who asks that peer, in the way of its settings; connected when it is first asked."""
    if peer.find == "web":
        from dicom_node.retrospective.web import Qido, WebClient

        with WebClient(peer, settings) as client:
            yield Finder(Qido(client))
        return
    from dicom_node.retrospective.dicom_query import CFind

    with CFind(peer, settings) as transport:
        yield Finder(transport)


def _first(answer: Answer, keyword: str) -> str:
    return next(iter(answer.get(keyword, ())), "")


def _number(text: str) -> int:
    """A count (IS); 0 where it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 7 else 0


def _times(first: int, last: int) -> str:
    """A range of StudyTime (TM) for the minutes from `first` up to `last`."""
    begin, end = (f"{minute // 60:02d}{minute % 60:02d}" for minute in (first, last - 1))
    return f"{begin}00-{end}59.999999"
