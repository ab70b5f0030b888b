"""A PACS that answers C-FIND, C-MOVE and C-GET in every wrong way that a test asks for."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    ComputedRadiographyImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from dicom_node.config import Peer
from dicom_node.demo.pacs import free_port

SUCCESS, PENDING, OUT_OF_RESOURCES, UNABLE, WARNING = 0x0000, 0xFF00, 0xA700, 0xC000, 0xB000


def study(number, *, time_of_day="1200", modality="CR", **changed):
    """What is known of one study; `changed` sets or, with None, leaves out elements of its answers."""
    return {
        "StudyInstanceUID": f"1.2.{number}",
        "StudyDate": "20260301",
        "StudyTime": f"{time_of_day}00",
        "AccessionNumber": f"A{number}",
        "PatientID": f"P{number}",
        "ModalitiesInStudy": modality,
        "NumberOfStudyRelatedInstances": "1",
    } | changed


@dataclass
class Pacs:
    """Holds `studies`; a fault is a function that gets the query and yields what is answered, or None for no fault."""

    studies: list[dict]
    limit: int | None = None  # answers to one query
    limit_status: int = SUCCESS
    fault: object = None
    refuses: tuple[str, ...] = ()  # keywords in a query that it does not take
    series: dict = field(default_factory=dict)  # by Study Instance UID, a list of (modality, body part, image count)
    queries: list = field(default_factory=list)
    associations: int = 0
    move: object = None
    get: object = None

    def __enter__(self):
        entity = AE("PACS")
        for model in (
            StudyRootQueryRetrieveInformationModelFind,
            StudyRootQueryRetrieveInformationModelMove,
            StudyRootQueryRetrieveInformationModelGet,
        ):
            entity.add_supported_context(model)
        entity.add_supported_context(ComputedRadiographyImageStorage, scu_role=True, scp_role=True)
        handlers = [(evt.EVT_C_FIND, self._find), (evt.EVT_ACCEPTED, self._accepted)]
        if self.move:
            handlers.append((evt.EVT_C_MOVE, self.move))
        if self.get:
            handlers.append((evt.EVT_C_GET, self.get))
        self.port = free_port()
        self._server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def __exit__(self, *given):
        self._server.shutdown()

    def peer(self, **changed):
        values = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": self.port, "retrieve": ("move",)}
        return Peer(**(values | changed))

    def _accepted(self, event):
        self.associations += 1

    def _find(self, event):
        query = event.identifier
        self.queries.append({element.keyword: element.value for element in query})
        if self.fault is not None and (answers := self.fault(self, event, query)) is not None:
            yield from answers
            return
        if any(keyword in query for keyword in self.refuses):
            yield UNABLE, None
            return
        found = [answer(one, query) for one in self._matching(query)]
        for one in found[: self.limit]:
            yield PENDING, one
        if self.limit is not None and len(found) > self.limit and self.limit_status != SUCCESS:
            yield self.limit_status, None

    def _matching(self, query):
        level = query.QueryRetrieveLevel
        if level == "STUDY":
            return [one for one in self.studies if _is_asked(one, query)]
        held = self.series.get(query.StudyInstanceUID, [("CR", "CHEST", 1)])
        if level == "SERIES":
            return [
                {
                    "StudyInstanceUID": query.StudyInstanceUID,
                    "SeriesInstanceUID": f"{query.StudyInstanceUID}.{number}",
                    "Modality": modality,
                    "BodyPartExamined": part,
                    "NumberOfSeriesRelatedInstances": str(count),
                }
                for number, (modality, part, count) in enumerate(held, start=1)
            ]
        number = int(str(query.SeriesInstanceUID).rpartition(".")[2])
        return [
            {"SOPInstanceUID": f"{query.SeriesInstanceUID}.{one}", "SOPClassUID": ComputedRadiographyImageStorage}
            for one in range(1, held[number - 1][2] + 1)
        ]


def answer(known, query):
    """The asked elements of what is known."""
    found = Dataset()
    found.QueryRetrieveLevel = query.QueryRetrieveLevel
    for keyword, value in known.items():
        if keyword in query and value is not None:
            setattr(found, keyword, value)
    return found


def _is_asked(known, query):
    for keyword in ("StudyDate", "AccessionNumber", "PatientID"):
        wanted = str(query.get(keyword) or "")
        if wanted and "-" in wanted:
            first, last = wanted.split("-")
            if not first <= str(known[keyword]) <= last:
                return False
        elif wanted and known[keyword] not in (wanted, None):
            return False
    wanted = str(query.get("ModalitiesInStudy") or "")
    modality = known["ModalitiesInStudy"]
    if wanted and modality is not None and wanted not in modality:
        return False
    wanted = str(query.get("StudyTime") or "")
    if wanted:
        first, last = wanted.split("-")
        return first <= known["StudyTime"] <= last
    return True


def hang(seconds):
    """A fault: nothing is answered for so long."""

    def answers(pacs, event, query):
        time.sleep(seconds)
        return iter(())

    return answers
