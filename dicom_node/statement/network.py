"""Services, presentation contexts and statuses, as the listener and the deliveries have them."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from pydicom.uid import UID, KeyObjectSelectionDocumentStorage, SecondaryCaptureImageStorage
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicom_node import association, commitment, intake, listener, pacs
from dicom_node.admission import COMPANION_SOP_CLASSES, SOP_CLASSES
from dicom_node.association import Fault
from dicom_node.commitment import FailureReason, Remedy, remedy_of
from dicom_node.config import Settings
from dicom_node.decoders import LOSSY
from dicom_node.doctor.network import RESULT_CLASSES
from dicom_node.pixels import TRANSFER_SYNTAXES
from dicom_node.probe import ASKED
from dicom_node.retrospective import retrieval
from dicom_node.statement.markdown import status, table, uid, yes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pynetdicom import AE
    from pynetdicom.presentation import PresentationContext

_SENT = {
    **dict.fromkeys(pacs.REPORT_CLASSES, "report"),
    str(SecondaryCaptureImageStorage): "heatmap",
    str(KeyObjectSelectionDocumentStorage): "rejection note",
}


def _listening() -> AE:
    return listener.application_entity(Settings.model_fields["ae_title"].default, hears_commitment=True)


def _asking(sop_classes: Iterable[str]) -> AE:
    fields = Settings.model_fields
    timeout_s = float(fields["network_timeout_s"].default)
    return association.application_entity(list(sop_classes), ae_title=fields["ae_title"].default, timeout_s=timeout_s)


def _accepted() -> dict[str, PresentationContext]:
    return {str(context.abstract_syntax): context for context in _listening().supported_contexts}


def services() -> str:
    """Each SOP Class, and whether the node is its SCU and SCP."""
    used = dict.fromkeys([str(Verification), *pacs.proposed(_SENT, proofs=True), retrieval.MOVE, retrieval.GET])
    provided = [sop_class for sop_class in _accepted() if sop_class != pacs.COMMITMENT]
    rows = [
        (UID(sop_class).name, f"`{sop_class}`", yes(sop_class in used), yes(sop_class in provided), _purpose(sop_class))
        for sop_class in dict.fromkeys([*used, *sorted(provided)])
    ]
    return table(("SOP Class", "UID", "SCU", "SCP", "for"), rows)


def _purpose(sop_class: str) -> str:
    told = []
    if sop_class == Verification:
        told.append("C-ECHO, asked and answered")
    if sop_class in SOP_CLASSES:
        told.append("received: images to be screened")
    if sop_class in COMPANION_SOP_CLASSES:
        told.append("received: taken and declined")
    if sop_class in _SENT:
        told.append(f"sent: {_SENT[sop_class]}")
    if sop_class in (pacs.COMMITMENT, pacs.QUERY):
        told.append("proof of delivery")
    if sop_class in (pacs.QUERY, retrieval.MOVE, retrieval.GET):
        told.append("retrospective runs")
    return "; ".join(told)


def implementation() -> str:
    """How each end of an association identifies itself, and its fixed limits."""
    ours, asking = _listening(), _asking([])
    rows = [
        ("Implementation Class UID", f"`{ours.implementation_class_uid}`", f"`{asking.implementation_class_uid}`"),
        ("Implementation Version Name", *(f"`{ae.implementation_version_name}`" for ae in (ours, asking))),
        ("Maximum PDU length received, bytes", *(f"{ae.maximum_pdu_size}" for ae in (ours, asking))),
        ("Simultaneous associations", f"{ours.maximum_associations}", "1 for each process that delivers"),
        ("Waits for an association message, s", *_seconds("acse_timeout", ours)),
        ("Waits for a DIMSE message, s", *_seconds("dimse_timeout", ours)),
        ("Ends an association without traffic after, s", *_seconds("network_timeout", ours)),
        ("Waits for a TCP connection, s", "", _setting(_asking([]).connection_timeout)),
    ]
    return table(("", "as acceptor", "as initiator"), rows)


def _seconds(name: str, accepting: AE) -> tuple[str, str]:
    return f"{getattr(accepting, name):g}", _setting(getattr(_asking([]), name))


def _setting(seconds: float | None) -> str:
    return f"`network_timeout_s`, {seconds:g}"


def accepted_contexts() -> str:
    """What the listener accepts; the transfer syntaxes of images stand in a table of their own."""
    return table(
        ("abstract syntax", "transfer syntaxes, the preferred first", "role of the node", "extended negotiation"),
        ((uid(sop_class), _syntaxes(context), _role(sop_class), "none") for sop_class, context in _accepted().items()),
    )


def _syntaxes(context: PresentationContext) -> str:
    named = [str(syntax) for syntax in context.transfer_syntax]
    if named == list(TRANSFER_SYNTAXES):
        return "those of images, below"
    return ", ".join(uid(syntax) for syntax in named)


def _role(sop_class: str) -> str:
    return "SCU; the peer is the SCP, by role selection" if sop_class == pacs.COMMITMENT else "SCP"


def image_transfer_syntaxes() -> str:
    """The transfer syntaxes of images, in the order in which they are preferred."""
    rows = (
        (UID(syntax).name, f"`{syntax}`", "lossy" if syntax in LOSSY else "lossless") for syntax in TRANSFER_SYNTAXES
    )
    return table(("transfer syntax", "UID", ""), rows)


def delivery_contexts() -> str:
    """What is proposed to a destination."""
    why = {
        **{sop_class: f"where a {what} is due" for sop_class, what in _SENT.items()},
        **dict.fromkeys(pacs.REPORT_CLASSES, "where a report is due, all three"),
        pacs.COMMITMENT: "always",
        pacs.QUERY: "always",
    }
    return _proposed(pacs.proposed(_SENT, proofs=True), why)


def examination_contexts() -> str:
    """What is proposed to a peer that is only asked what it accepts."""
    of_destination = {sop_class for sop_classes in RESULT_CLASSES.values() for sop_class in sop_classes}
    why = {
        sop_class: "`doctor`, of a destination, and `doctor --probe`"
        if sop_class in of_destination
        else "`doctor --probe`"
        for sop_class in ASKED
    }
    return _proposed([str(Verification), *ASKED], {str(Verification): "always", **why})


def _proposed(sop_classes: Iterable[str], why: dict[str, str]) -> str:
    contexts = _asking(sop_classes).requested_contexts
    return table(
        ("abstract syntax", "transfer syntaxes, a context for each", "role", "extended negotiation", "proposed"),
        (
            (
                uid(sop_class),
                ", ".join(uid(str(syntax)) for context in same for syntax in context.transfer_syntax),
                "SCU",
                "none",
                why[sop_class],
            )
            for sop_class, same in groupby(contexts, lambda context: str(context.abstract_syntax))
        ),
    )


def answers_to_store() -> str:
    """What the listener answers to C-STORE."""
    rows = (
        (listener.SUCCESS, "Success", "The object is recorded, or was before; see below what that means."),
        (
            listener.OUT_OF_RESOURCES,
            "Refused: Out of Resources",
            "Disk or database cannot take it now, or the node waits for its database. Not recorded: send it again.",
        ),
        (
            intake.DATASET_MISMATCH,
            "Error: Data Set Does Not Match SOP Class",
            (
                "SOP Class or Instance UID are not the request's; Study or Series Instance UID is missing; or one of "
                "instance, study and series UID holds other characters than digits and dots, or more than 64."
            ),
        ),
        (
            intake.CANNOT_UNDERSTAND,
            "Error: Cannot Understand",
            "The data set cannot be parsed, or begins with a group below 0008.",
        ),
        (listener.PROCESSING_FAILURE, "Processing Failure", "A fault of the node. It is not recorded."),
    )
    return table(("status", "meaning", "when"), ((status(code), meaning, when) for code, meaning, when in rows))


def answers_of_store() -> str:
    """What the node does on each status that a destination answers to C-STORE."""
    meanings = {
        (0x0000, 0x0000): "Success",
        (0x0110, 0x0110): "Processing Failure",
        (0x0111, 0x0111): "Duplicate SOP Instance: an earlier answer was lost",
        (0xA700, 0xA7FF): "Refused: Out of Resources",
        (0xB000, 0xBFFF): "Warning: Coercion of Data Elements (B000), Elements Discarded (B006), Data Set Does Not "
        "Match SOP Class (B007), others",
    }
    rows = [
        (
            status(first) if first == last else f"{status(first)} to {status(last)}",
            meanings[first, last],
            _reaction(first),
        )
        for first, last in _alike()
    ]
    rows.append(
        ("any other", "Failure", "`rejected`: not sent again until `dicom-node resend`; the screening is `failed`")
    )
    rows.append(
        (
            "none",
            "Time limit, abort or release",
            "the association ends; all that it still carried is sent again after a pause",
        )
    )
    return table(("status", "meaning", "what the node does"), rows)


def _reaction(code: int) -> str:
    if pacs.is_stored(code):
        warned = ", and a warning in the log" if code not in (pacs.SUCCESS, 0x0111) else ""
        return f"`sent`: proven next{warned}; nothing is corrected"
    return "sent again after a pause that doubles from `retry_base_s` to `retry_max_s`, without end"


def _alike() -> Iterator[tuple[int, int]]:
    """First and last of each run of statuses that are treated alike, but for those that no other try can help."""
    same = groupby(range(0x10000), lambda code: (pacs.is_stored(code), pacs.may_pass(code), code == pacs.SUCCESS))
    for (stored, passes, _), run in same:
        codes = list(run)
        if stored or passes:
            yield codes[0], codes[-1]


def answers_to_event_report() -> str:
    """What the node answers to N-EVENT-REPORT."""
    rows = (
        (commitment.SUCCESS, "Success", "The report is in the ledger."),
        (
            commitment.PROCESSING_FAILURE,
            "Processing Failure",
            "The report cannot be parsed, or not be kept now; send it again.",
        ),
        (commitment.NO_SUCH_EVENT_TYPE, "No Such Event Type", "Event Type ID is neither 1 nor 2."),
        (
            commitment.INVALID_ARGUMENT_VALUE,
            "Invalid Argument Value",
            "The Transaction UID is none of the node's, a UID or a sequence is malformed, or no object is named.",
        ),
    )
    return table(("status", "meaning", "when"), ((status(code), meaning, when) for code, meaning, when in rows))


def failure_reasons() -> str:
    """What the node does on each Failure Reason of an object that a peer does not commit to."""
    doing = {
        Remedy.ASK_AGAIN: "asked again, under a new Transaction UID",
        Remedy.SEND_AGAIN: "sent again",
        Remedy.NONE: "`rejected`",
    }
    rows = [
        (
            status(reason),
            reason.name.replace("_", " ").lower().replace("sop", "SOP").replace("uid", "UID"),
            doing[remedy_of(reason)],
        )
        for reason in FailureReason
    ]
    unknown = next(code for code in range(1, 0x10000) if code not in set(FailureReason))
    rows.append(("any other", "", doing[remedy_of(unknown)]))
    return table(("(0008,1197) Failure Reason", "meaning", "what the node does with the object"), rows)


def association_faults() -> str:
    """What the node does where it gets no association."""
    told = {
        Fault.UNRESOLVED: ("the host name has no address", "tried again after a pause"),
        Fault.UNREACHABLE: ("no TCP connection", "tried again after a pause"),
        Fault.SILENT: ("a connection without a DICOM answer, or A-ABORT", "tried again after a pause"),
        Fault.REJECTED: (
            "A-ASSOCIATE-RJ",
            "rejected-transient: tried again after a pause; rejected-permanent: the objects are `rejected`",
        ),
        Fault.NO_CONTEXT: ("no proposed presentation context is accepted", "the objects are `rejected`"),
    }
    return table(("what happens", "what the node does"), (told[fault] for fault in Fault))
