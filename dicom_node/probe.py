"""`dicom-node doctor --probe`: what a peer would get of this node, by negotiation alone; no object is sent."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydicom.uid import UID, KeyObjectSelectionDocumentStorage, SecondaryCaptureImageStorage
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from rich.console import Console

from dicom_node.association import AssociationError
from dicom_node.config import SettingsError
from dicom_node.doctor.network import MOST_ANSWER_S, not_answering
from dicom_node.pacs import COMMITMENT, QUERY, REPORT_CLASSES, Pacs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dicom_node.config import Peer, Settings

HEATMAP, REJECTION_NOTE = str(SecondaryCaptureImageStorage), str(KeyObjectSelectionDocumentStorage)
# All that this node ever asks of a peer, each in two presentation contexts: far below the 128 of an association
# (PS3.8 9.3.2.2).
ASKED = (*REPORT_CLASSES, HEATMAP, REJECTION_NOTE, COMMITMENT, QUERY)
_WIDTH = 18


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one peer accepts of this node.

    Attributes
    ----------
    accepted
        By SOP class, the transfer syntaxes; nothing where `fault` says why there was no association.
    remedy
        What to do about the fault.
    """

    peer: Peer
    accepted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fault: str = ""
    remedy: str = ""

    @property
    def report_class(self) -> str | None:
        """The SOP class of the reports that it gets; None where it gets none."""
        return next((sop_class for sop_class in REPORT_CLASSES if sop_class in self.accepted), None)

    def as_json(self) -> dict[str, Any]:
        """The capabilities as JSON knows them."""
        return {
            "peer": self.peer.name,
            "ae_title": self.peer.ae_title,
            "host": self.peer.host,
            "port": self.peer.port,
            "destination": self.peer.destination,
            "fault": self.fault,
            "remedy": self.remedy,
            "report": self.report_class,
            "heatmap": HEATMAP in self.accepted,
            "rejection_note": REJECTION_NOTE in self.accepted,
            "storage_commitment": COMMITMENT in self.accepted,
            "query": QUERY in self.accepted,
            "echo": Verification in self.accepted,
            "transfer_syntaxes": {sop_class: list(syntaxes) for sop_class, syntaxes in self.accepted.items()},
        }

    def lines(self) -> Iterator[str]:
        """The capabilities as a person reads them; a fault is one line."""
        peer = self.peer
        if self.fault:
            yield f"{peer.name}: {self.fault} -> {self.remedy}"
            return
        report = UID(self.report_class).name if self.report_class else f"none: it accepts none of {_or(REPORT_CLASSES)}"
        proofs = [told for uid, told in ((COMMITMENT, "storage commitment"), (QUERY, "C-FIND")) if uid in self.accepted]
        yield f"{peer.name}: {peer.ae_title} at {peer.host}:{peer.port}"
        yield _line("report", report)
        yield _line("heatmap", self._one(HEATMAP))
        yield _line("rejection note", self._one(REJECTION_NOTE))
        yield _line("proof of delivery", ", ".join(proofs) or "none: it accepts neither storage commitment nor C-FIND")
        yield _line("C-ECHO", "yes" if Verification in self.accepted else "no")
        for sop_class, syntaxes in self.accepted.items():
            yield _line("accepts", f"{UID(sop_class).name}: {', '.join(UID(syntax).name for syntax in syntaxes)}")

    def _one(self, sop_class: str) -> str:
        name = UID(sop_class).name
        return name if sop_class in self.accepted else f"none: it does not accept {name}"


def report(settings: Settings, name: str | None = None, *, as_json: bool) -> bool:
    """What each destination, or the peer of that name, would get is printed; whether each would get a report.

    Raises
    ------
    SettingsError
        Where there is no such peer.
    """
    found = []
    console = Console()
    for peer in _chosen(settings, name):
        capabilities = probe(peer, settings)
        found.append(capabilities)
        if not as_json:
            console.print("\n".join(capabilities.lines()), soft_wrap=True, markup=False, highlight=False)
    good = all(capabilities.report_class for capabilities in found)
    if as_json:
        document = {"ok": good, "peers": [capabilities.as_json() for capabilities in found]}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    return good


def probe(peer: Peer, settings: Settings) -> Capabilities:
    """What the peer accepts; it answered C-ECHO, where it accepts that."""
    pacs = Pacs(peer, ae_title=settings.ae_title, timeout_s=min(settings.network_timeout_s, MOST_ANSWER_S))
    try:
        return Capabilities(peer, pacs.echo(ASKED).accepted)
    except AssociationError as error:
        finding = not_answering(peer, error, settings.ae_title)
        return Capabilities(peer, fault=finding.what, remedy=finding.remedy)


def _chosen(settings: Settings, name: str | None) -> Sequence[Peer]:
    if name is None:
        if not settings.destinations:
            raise SettingsError("no peer is a destination: set destination = true for one, or name a peer to probe")
        return settings.destinations
    chosen = [peer for peer in settings.peers if peer.name == name]
    if not chosen:
        known = ", ".join(peer.name for peer in settings.peers) or "none"
        raise SettingsError(f"no peer is named {name!r}; the settings' peers: {known}")
    return chosen


def _line(label: str, text: str) -> str:
    return f"  {label:<{_WIDTH}} {text}"


def _or(sop_classes: Sequence[str]) -> str:
    *first, last = (UID(sop_class).name for sop_class in sop_classes)
    return f"{', '.join(first)} or {last}"
