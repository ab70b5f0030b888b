"""The SCU: what the node asks of its peers, and which of their failures may pass."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ImplicitVRLittleEndian,
)
from pynetdicom import _config, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from dicom_node.association import AssociationError, Fault, associated
from dicom_node.commitment import REQUEST_COMMITMENT, answering
from dicom_node.config import Peer
from dicom_node.domain import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pynetdicom.association import Association

    from dicom_node.commitment import CommitmentReport
    from dicom_node.config import Settings
    from dicom_node.results import Reference

log = logging.getLogger(__name__)

# Files are sent from the disk as they are; pynetdicom would otherwise decode and encode them again.
_config.STORE_SEND_CHUNKED_DATASET = True

# What a report can be, the best first: a peer gets the first that it accepts.
REPORT_CLASSES = (str(Comprehensive3DSRStorage), str(ComprehensiveSRStorage), str(EnhancedSRStorage))
COMMITMENT = str(StorageCommitmentPushModel)
QUERY = str(StudyRootQueryRetrieveInformationModelFind)

SUCCESS = 0x0000
PENDING = (0xFF00, 0xFF01)
# PS3.4 table B.2-1: 0xB000, 0xB006 and 0xB007 are warnings, the object was stored. PS3.7 annex C: of the failures only
# a lack of resources (0xA7xx) and a processing failure (0x0110) can pass.
_WARNINGS = range(0xB000, 0xC000)
_RETRYABLE = {*range(0xA700, 0xA800), 0x0110}
# PS3.7 annex C: the peer has this object; so answers a peer whose first answer was lost.
_DUPLICATE = 0x0111
_OWN_ANSWER_S = 5.0
_MOST_ANSWERS = 1000  # of one query
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - asked, not listened on


def is_stored(status: int) -> bool:
    """Whether a peer that answers C-STORE so has the object."""
    return status in (SUCCESS, _DUPLICATE) or status in _WARNINGS


def may_pass(status: int) -> bool:
    """Whether a peer that answers C-STORE so may take the same object later."""
    return status in _RETRYABLE


def proposed(sop_classes: Iterable[str], *, proofs: bool) -> list[str]:
    """What is proposed for objects of these SOP classes, and with `proofs` for what shows that they are there."""
    classes = set(sop_classes)
    if classes.intersection(REPORT_CLASSES):
        classes.update(REPORT_CLASSES)
    # No role selection: by default this node is the SCU, to whom an SCP may report on the same association
    # (PS3.7 D.3.3.4, PS3.4 J.3.3).
    return [*sorted(classes), *([COMMITMENT, QUERY] if proofs else [])]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer told of itself when it accepted an association.

    Attributes
    ----------
    accepted
        By SOP class, the transfer syntaxes.
    """

    accepted: Mapping[str, tuple[str, ...]]
    implementation_class_uid: str


class Pacs:
    """One peer as seen from this node."""

    def __init__(self, peer: Peer, *, ae_title: str, timeout_s: float) -> None:
        self._peer = peer
        self._ae_title = ae_title
        self._timeout_s = timeout_s

    @classmethod
    def of_this_node(cls, settings: Settings) -> Self:
        """The node's own listener, asked from this machine."""
        host = _EVERY_ADDRESS.get(settings.host, settings.host)
        itself = Peer(name="this node", ae_title=settings.ae_title, host=host, port=settings.port, destination=False)
        return cls(itself, ae_title=settings.ae_title, timeout_s=min(settings.network_timeout_s, _OWN_ANSWER_S))

    def echo(self, also: Sequence[str] = ()) -> Answer:
        """Which of Verification and the SOP classes `also` the peer accepts; with Verification, it answered C-ECHO.

        Raises
        ------
        AssociationError
            Where it accepts none of them, or does not answer C-ECHO with Success.
        """
        name = self._peer.name
        with self._association([str(Verification), *also]) as association:
            accepted = _accepted(association)
            if Verification in accepted:
                try:
                    status = association.send_c_echo()
                except (RuntimeError, OSError, AttributeError) as error:  # the association ended meanwhile
                    raise AssociationError(f"{name} ended the association", fault=Fault.SILENT) from error
                if not status or "Status" not in status or status.Status != SUCCESS:
                    raise AssociationError(f"{name} does not answer C-ECHO with Success", fault=Fault.SILENT)
            return Answer(accepted, str(association.acceptor.implementation_class_uid))

    @contextlib.contextmanager
    def store(
        self,
        sop_classes: Sequence[str],
        *,
        proofs: bool = True,
        on_commitment: Callable[[CommitmentReport], bool] | None = None,
    ) -> Iterator[Sender]:
        """One association for objects of these SOP classes.

        Where one is a report's, all that a report can be are proposed; with `proofs`, storage commitment and C-FIND
        too. `on_commitment` hears of the reports that come on this association, in another thread and perhaps before
        the request is answered; see `dicom_node.commitment.answering`.

        Raises
        ------
        DeliveryError
            Permanent where the peer rejects this node for good, else retryable.
        """
        handlers = [(evt.EVT_N_EVENT_REPORT, answering(on_commitment))] if on_commitment else []
        with self._association(proposed(sop_classes, proofs=proofs), handlers) as association:
            yield Sender(association, self._peer)

    def find(self, query: Dataset) -> list[Dataset]:
        """Answers of a Study Root C-FIND.

        Raises
        ------
        DeliveryError
            Where the query ended otherwise than by Success.
        """
        with self._association([QUERY]) as association:
            return _answers(association, query, self._peer)

    def _association(
        self, abstract_syntaxes: Sequence[str], handlers: Sequence[evt.EventHandlerType] = ()
    ) -> contextlib.AbstractContextManager[Association]:
        return associated(
            self._peer, abstract_syntaxes, ae_title=self._ae_title, timeout_s=self._timeout_s, handlers=handlers
        )


class Sender:
    """C-STORE over one open association, and what proves that the peer holds the objects."""

    def __init__(self, association: Association, peer: Peer) -> None:
        self._association = association
        self._peer = peer
        self._accepted = _accepted(association)

    @property
    def can_commit(self) -> bool:
        """Whether the peer accepts storage commitment requests."""
        return self.accepts(COMMITMENT)

    @property
    def can_query(self) -> bool:
        """Whether the peer accepts Study Root C-FIND."""
        return self.accepts(QUERY)

    def accepts(self, sop_class: str) -> bool:
        """Whether the peer accepts objects of the SOP class."""
        return sop_class in self._accepted

    def send(self, file: Path) -> int:
        """The peer has the object; its status is Success or a warning.

        Raises
        ------
        DeliveryError
            Where it has not.
        """
        name = self._peer.name
        try:
            content = self._as_accepted(file)
        except (FileNotFoundError, InvalidDicomError, AttributeError) as error:
            raise DeliveryError(f"{file.name} is not in the archive as it was stored", permanent=True) from error
        except OSError as error:
            raise DeliveryError(f"{file.name} cannot be read: {error.strerror}", permanent=False) from error
        try:
            answer = self._association.send_c_store(content)
        except ValueError as error:  # no accepted presentation context for the SOP class
            raise DeliveryError(f"{name} accepts no presentation context for the object", permanent=True) from error
        except (RuntimeError, OSError, AttributeError) as error:  # the association ended, before or in mid-request
            raise _ended(self._peer) from error
        if not answer or "Status" not in answer:
            raise _unanswered(self._association, self._peer, "C-STORE")
        status = int(answer.Status)
        if not is_stored(status):
            raise DeliveryError(
                f"{name} answered C-STORE with 0x{status:04X}", permanent=not may_pass(status), status=status
            )
        if status in _WARNINGS:
            log.warning("%s stored an object with warning 0x%04X", name, status)
        return status

    def request_commitment(self, transaction_uid: str, objects: Sequence[tuple[str, str]]) -> None:
        """The peer takes the request to commit to these objects, pairs of SOP Class and SOP Instance UID.

        It reports on this association or on one that it opens, perhaps before this returns. The Transaction UID of a
        request that failed must not be used again (PS3.4 J.3.2.1.2).

        Raises
        ------
        DeliveryError
            Never permanent: where the peer refuses, does not answer, or does not accept storage commitment.
        """
        name = self._peer.name
        request = Dataset()
        request.TransactionUID = transaction_uid
        request.ReferencedSOPSequence = [_cited(*pair) for pair in objects]
        try:
            answer, _ = self._association.send_n_action(
                request, REQUEST_COMMITMENT, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            )
        except ValueError as error:  # no accepted presentation context
            raise DeliveryError(f"{name} does not accept storage commitment", permanent=False) from error
        except (RuntimeError, OSError, AttributeError) as error:
            raise _ended(self._peer) from error
        if not answer or "Status" not in answer:
            raise _unanswered(self._association, self._peer, "a storage commitment request")
        status = int(answer.Status)
        if status != SUCCESS:
            raise DeliveryError(
                f"{name} answered a storage commitment request with 0x{status:04X}", permanent=False, status=status
            )

    def read_back(self, reference: Reference) -> bool:
        """Whether a C-FIND at IMAGE level finds exactly that instance.

        Raises
        ------
        DeliveryError
            Where the query ended otherwise than by Success; the association may have ended with it.
        """
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE"
        query.StudyInstanceUID = reference.study_instance_uid
        query.SeriesInstanceUID = reference.series_instance_uid
        query.SOPInstanceUID = reference.sop_instance_uid
        return any(_is(answer, reference) for answer in _answers(self._association, query, self._peer))

    def _as_accepted(self, file: Path) -> Path | Dataset:
        """The file, to be sent as it is; decoded where its SOP class was accepted in Implicit VR alone."""
        meta = read_file_meta_info(file)
        # All that pynetdicom will ask of it: an AttributeError here is the file's fault, later the association's.
        sop_class, _, _ = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID
        return dcmread(file) if self._accepted.get(str(sop_class)) == (ImplicitVRLittleEndian,) else file


def _accepted(association: Association) -> dict[str, tuple[str, ...]]:
    """By SOP class, the transfer syntaxes that the peer accepts, those of this node's choice first."""
    found: dict[str, tuple[str, ...]] = {}
    for context in association.accepted_contexts:
        sop_class = str(context.abstract_syntax)
        found[sop_class] = (*found.get(sop_class, ()), str(context.transfer_syntax[0]))
    return found


def _answers(association: Association, query: Dataset, peer: Peer) -> list[Dataset]:
    """The answers of a Study Root C-FIND; a peer that does not come to an end is left.

    Raises
    ------
    DeliveryError
        Where the query ended otherwise than by Success.
    """
    answers: list[Dataset] = []
    limit_s = association.dimse_timeout or 0.0
    ends, pending, status = time.monotonic() + limit_s, 0, Dataset()
    try:
        for status, answer in association.send_c_find(query, QUERY):
            if not status or status.Status not in PENDING:
                break
            pending += 1
            if answer is not None:
                answers.append(answer)
            if pending > _MOST_ANSWERS or time.monotonic() > ends:
                association.abort()
                raise DeliveryError(
                    f"{peer.name} does not end C-FIND after {pending} answers in {limit_s:.0f} s", permanent=False
                )
    except ValueError as error:  # no accepted presentation context
        raise DeliveryError(f"{peer.name} does not accept C-FIND", permanent=False) from error
    except (RuntimeError, OSError, AttributeError) as error:
        raise _ended(peer) from error
    if not status:
        raise _unanswered(association, peer, "C-FIND")
    if status.Status != SUCCESS:
        raise DeliveryError(
            f"{peer.name} answered C-FIND with 0x{status.Status:04X}", permanent=False, status=int(status.Status)
        )
    return answers


def _cited(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    return item


def _is(answer: Dataset, reference: Reference) -> bool:
    """Whether a C-FIND answer is that instance; the keys above its level must agree where they are answered."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study, series, instance = (
                str(answer.get(keyword) or "").strip(" \0")
                for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
            )
    except Exception:  # pydicom decodes on access, and raises many kinds on broken input
        return False
    return (
        instance == reference.sop_instance_uid
        and study in ("", reference.study_instance_uid)
        and series in ("", reference.series_instance_uid)
    )


def _ended(peer: Peer) -> DeliveryError:
    return DeliveryError(f"{peer.name} ended the association", permanent=False)


def _unanswered(association: Association, peer: Peer, what: str) -> DeliveryError:
    """A time limit that was met, or an abort: Orthanc answers so a caller that it does not know."""
    if association.is_established:  # pynetdicom may take a moment to see an abort, and would wait for an answer again
        association.abort()
    ours = association.ae.ae_title
    return DeliveryError(f"{peer.name} gave no answer to {what}; does it know AE title {ours}?", permanent=False)
