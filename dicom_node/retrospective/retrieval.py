"""One study, or what is missing of it, fetched from a peer in one way; runs in a process that can be killed.

What came is not decided here: a C-MOVE or C-GET that ends with Success may have lost images on the way, so the caller
compares what the peer says that the study holds with what the ledger has.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Self, cast

from pydicom import Dataset
from pydicom.filereader import read_dataset, read_preamble
from pynetdicom import evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made at import from tables
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.admission import SOP_CLASSES
from dicom_node.archive import Archive
from dicom_node.association import AssociationError, associated
from dicom_node.database import Database
from dicom_node.domain import NodeError, Origin, place_of
from dicom_node.intake import Arrival, Intake, RefusedError
from dicom_node.ledger import Ledger
from dicom_node.pacs import PENDING, SUCCESS
from dicom_node.retrospective.query import QueryError
from dicom_node.retrospective.tables import RunInstanceRow
from dicom_node.retrospective.web import WebClient, parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pynetdicom.association import Association
    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.events import Event

    from dicom_node.config import Peer, Settings

log = logging.getLogger(__name__)

MOVE = str(StudyRootQueryRetrieveInformationModelMove)
GET = str(StudyRootQueryRetrieveInformationModelGet)

# PS3.4 tables C.4-2 and C.4-3
OUT_OF_RESOURCES = 0xA700
DESTINATION_UNKNOWN = 0xA801
_WARNING = range(0xB000, 0xC000)
_PROCESSING_FAILURE = 0x0110
_LARGEST_FILE = 1 << 30
_DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_LOOK_S = 1.0
_META_GROUP = 0x0002  # File Meta Information, always Explicit VR Little Endian (PS3.10 7.1)


class RetrievalError(NodeError):
    """The peer did not serve this way; `permanent` where it never will, as things are set."""

    reason = "retrieval"

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is missing of a study of a run.

    Attributes
    ----------
    instances
        Pairs of Series and SOP Instance UID.
    """

    run_study_id: int
    study_instance_uid: str
    instances: tuple[tuple[str, str], ...]

    def by_series(self) -> Mapping[str, list[str]]:
        """SOP Instance UIDs by Series Instance UID."""
        found: dict[str, list[str]] = defaultdict(list)
        for series, instance in self.instances:
            found[series].append(instance)
        return found


def retrieve(settings: Settings, peer_name: str, way: str, wanted: Wanted) -> str:
    """What is missing was asked for in that way; returns what the peer said of it, in a few words.

    Raises
    ------
    RetrievalError
        Where it did not come to an end.
    """
    peer = next(peer for peer in settings.sources if peer.name == peer_name)
    with closing(Database(settings.database_dsn)) as database:
        landed = _Landed(database, wanted.run_study_id)
        if way == "move":
            return _move(settings, peer, wanted, landed)
        intake = Intake(settings, Archive(settings.archive_dir), Ledger(database, settings.worklist))
        if way == "get":
            return _get(settings, peer, wanted, intake)
        return _web(settings, peer, wanted, intake)


class _Landed:
    """How many of the study's instances the ledger has by now; asked for at most once a second."""

    def __init__(self, database: Database, run_study_id: int) -> None:
        self._database = database
        self._key = run_study_id
        self._count, self._asked_at = 0, 0.0

    def count(self) -> int:
        if time.monotonic() - self._asked_at > _LOOK_S:
            query = select(func.count()).select_from(RunInstanceRow).filter_by(study_id=self._key, landed=True)
            try:
                with self._database.read() as session:
                    self._count = session.scalar(query) or 0
            except SQLAlchemyError:  # it may come back; the time limits hold meanwhile
                pass
            self._asked_at = time.monotonic()
        return self._count


class _Watch:
    """Ends an association over which nothing comes any more, whatever the peer says meanwhile.

    Nor does it end one over which images come and nothing is said: so the time limit is not that of a single answer.
    """

    def __init__(self, association: Association, limit_s: float, count: Callable[[], int]) -> None:
        self._association = association
        self._limit_s = limit_s
        self._count = count
        self._done = threading.Event()
        self.completed = 0  # as the peer says
        self.stalled = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *given: object) -> None:
        self._done.set()

    def _run(self) -> None:
        last, since = (-1, -1), time.monotonic()
        while not self._done.wait(_LOOK_S):
            seen = (self._count(), self.completed)
            if seen != last:
                last, since = seen, time.monotonic()
            elif time.monotonic() - since > self._limit_s:
                self.stalled = True
                self._association.abort()
                self._association.dimse.msg_queue.put((None, None))  # who waits for an answer is not told otherwise
                return


def _move(settings: Settings, peer: Peer, wanted: Wanted, landed: _Landed) -> str:
    """C-MOVE of each series to this node's own AE title (PS3.4 C.4.2)."""
    with _associated(settings, peer, MOVE) as association:

        def asked(series: str) -> list[str]:
            responses = association.send_c_move(_query(wanted, series), settings.ae_title, MOVE)
            return [_said("C-MOVE", settings, peer, _last(settings, peer, association, responses, landed.count))]

        told = _each(association, [partial(asked, series) for series in wanted.by_series()])
    return "; ".join(dict.fromkeys(told))


def _get(settings: Settings, peer: Peer, wanted: Wanted, intake: Intake) -> str:
    """C-GET of each series (PS3.4 C.4.3).

    Never of a study: one object of a class that was not negotiated may end all of it. Where a series holds one, its
    images are asked for one by one.
    """
    took: list[int] = []

    def store(event: Event) -> int:
        request = cast("C_STORE", event.request)
        arrival = Arrival(
            sop_class_uid=str(request.AffectedSOPClassUID),
            sop_instance_uid=str(request.AffectedSOPInstanceUID),
            transfer_syntax_uid=str(event.context.transfer_syntax),
            encoded=cast("BytesIO", request.DataSet).getvalue(),
            calling_ae_title=peer.ae_title,
            origin=Origin.FETCHED,
            run_study_id=wanted.run_study_id,
        )
        took.append(_taken(intake, arrival))
        return took[-1]

    with _associated(settings, peer, GET, store) as association:

        def asked(series: str, instance: str | None = None) -> list[str]:
            responses = association.send_c_get(_query(wanted, series, instance), GET)
            return [_said("C-GET", settings, peer, _last(settings, peer, association, responses, lambda: len(took)))]

        def of_series(series: str, instances: list[str]) -> list[str]:
            try:
                return asked(series)
            except RetrievalError as error:
                if error.permanent or not association.is_established:
                    raise
                return _each(association, [partial(asked, series, instance) for instance in instances])

        told = _each(association, [partial(of_series, *one) for one in wanted.by_series().items()])
    return "; ".join(dict.fromkeys(told))


def _each(association: Association, requests: Iterable[Callable[[], list[str]]]) -> list[str]:
    """What the peer says of each request: one that fails does not keep the next from being made.

    Raises
    ------
    RetrievalError
        Where none succeeds, or after one that no other can follow.
    """
    told: list[str] = []
    errors: list[RetrievalError] = []
    for request in requests:
        try:
            told += request()
        except RetrievalError as error:
            if error.permanent or not association.is_established:
                raise
            errors.append(error)
    if errors and not told:
        raise errors[0]
    return told + [str(error) for error in errors]


def _web(settings: Settings, peer: Peer, wanted: Wanted, intake: Intake) -> str:
    """WADO-RS of each instance (PS3.18 10.4), as it is stored.

    An instance that the peer cannot serve does not keep the others from coming.
    """
    failed: list[str] = []
    errors: list[QueryError | RetrievalError] = []
    try:
        with WebClient(peer, settings) as client:
            for series, instance in wanted.instances:
                path = f"studies/{wanted.study_instance_uid}/series/{series}/instances/{instance}"
                try:
                    bodies = parts(client.get(path, accept=_DICOM, largest=_LARGEST_FILE))
                    arrivals = [_of_file(body, peer, wanted.run_study_id) for body in bodies]
                except (QueryError, RetrievalError) as error:
                    if isinstance(error, QueryError) and not error.of_one:
                        raise
                    errors.append(error)
                    continue
                statuses = [_taken(intake, arrival) for arrival in arrivals]
                failed += [f"an object was refused with 0x{status:04X}" for status in statuses if status != SUCCESS]
    except QueryError as error:
        raise RetrievalError(str(error), permanent=error.permanent) from error
    failed += [str(error) for error in errors]
    if len(errors) == len(wanted.instances):
        raise RetrievalError("; ".join(dict.fromkeys(failed)), permanent=all(error.permanent for error in errors))
    return "; ".join(dict.fromkeys(failed)) or "WADO-RS ended well"


def _of_file(content: bytes, peer: Peer, run_study_id: int) -> Arrival:
    """The object of a Part 10 file, its data set byte for byte.

    Raises
    ------
    RetrievalError
        Where it is no such file.
    """
    try:
        file = BytesIO(content)
        read_preamble(file, force=False)
        # Not by (0002,0000), which some writers get wrong: the data set begins where group 0002 ends.
        meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != _META_GROUP)
        return Arrival(
            sop_class_uid=str(meta.MediaStorageSOPClassUID),
            sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
            transfer_syntax_uid=str(meta.TransferSyntaxUID),
            encoded=content[file.tell() :],
            calling_ae_title=peer.ae_title,
            origin=Origin.FETCHED,
            run_study_id=run_study_id,
        )
    except Exception as error:  # pydicom raises many kinds on broken input
        raise RetrievalError(f"{peer.name} (DICOMweb) sent what is no DICOM file ({type(error).__name__})") from error


def _taken(intake: Intake, arrival: Arrival) -> int:
    """The C-STORE status for an object that was fetched: Success when it is in the archive and the ledger."""
    try:
        intake.take(arrival)
    except RefusedError as error:
        return error.status
    except (OSError, SQLAlchemyError, NodeError) as error:
        log.warning("cannot keep what was fetched: %s", place_of(error))
        return OUT_OF_RESOURCES
    except Exception as error:
        log.error("fault in taking what was fetched: %s", place_of(error))  # noqa: TRY400
        return _PROCESSING_FAILURE
    return SUCCESS


@contextlib.contextmanager
def _associated(
    settings: Settings, peer: Peer, model: str, store: Callable[[Event], int] | None = None
) -> Iterator[Association]:
    """An association for the model, with `store` for its C-STORE too.

    Raises
    ------
    RetrievalError
        Where there is none.
    """
    opened = associated(
        peer,
        [model],
        ae_title=settings.ae_title,
        timeout_s=settings.network_timeout_s,
        handlers=[(evt.EVT_C_STORE, store)] if store else [],
        received=sorted(SOP_CLASSES) if store else (),
    )
    with contextlib.ExitStack() as held:
        try:
            association = held.enter_context(opened)
        except AssociationError as error:
            raise RetrievalError(str(error), permanent=error.permanent) from error
        # While it goes on, `_Watch` says whether it does.
        association.dimse_timeout = association.network_timeout = settings.retrospective.study_timeout_s
        yield association


def _query(wanted: Wanted, series: str, instance: str | None = None) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = "SERIES" if instance is None else "IMAGE"
    query.StudyInstanceUID, query.SeriesInstanceUID = wanted.study_instance_uid, series
    if instance is not None:
        query.SOPInstanceUID = instance
    return query


def _last(
    settings: Settings,
    peer: Peer,
    association: Association,
    responses: Iterable[tuple[Dataset, Dataset | None]],
    count: Callable[[], int],
) -> Dataset:
    """The last response.

    Raises
    ------
    RetrievalError
        Where there is none.
    """
    status = Dataset()
    limit_s = settings.retrospective.stall_timeout_s
    with _Watch(association, limit_s, count) as watch:
        try:
            for status, _ in responses:
                if not status or status.Status not in PENDING:
                    break
                watch.completed = int(status.get("NumberOfCompletedSuboperations") or 0)
        except ValueError as error:  # no accepted presentation context
            raise RetrievalError(f"{peer.name} does not accept it", permanent=True) from error
        except (RuntimeError, OSError, AttributeError) as error:
            if not watch.stalled:
                raise RetrievalError(f"{peer.name} ended the association") from error
    if watch.stalled:
        raise RetrievalError(f"{peer.name} went on, and nothing came for {limit_s:g} s")
    if not status or "Status" not in status or status.Status in PENDING:
        if association.is_established:
            association.abort()
        raise RetrievalError(f"{peer.name} gave no last answer; does it know AE title {settings.ae_title}?")
    return status


def _said(service: str, settings: Settings, peer: Peer, status: Dataset) -> str:
    """What the last response says.

    Raises
    ------
    RetrievalError
        Where it is a failure.
    """
    code = int(status.Status)
    counts = [int(status.get(f"NumberOf{kind}Suboperations") or 0) for kind in ("Completed", "Failed", "Warning")]
    told = f"{service} 0x{code:04X}: {counts[0]} completed, {counts[1]} failed, {counts[2]} with a warning"
    if code == SUCCESS or code in _WARNING:
        return told
    if code == DESTINATION_UNKNOWN:
        where = f"{settings.ae_title}, this machine, port {settings.port}"
        raise RetrievalError(f"{told}; {peer.name} has to know this node as a destination: {where}", permanent=True)
    raise RetrievalError(told)
