"""Whether studies can be found at a peer and fetched from it, in the ways that the settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicom_node.association import AssociationError
from dicom_node.doctor.finding import failure, ok, warning
from dicom_node.doctor.network import MOST_ANSWER_S, not_answering
from dicom_node.domain import DeliveryError
from dicom_node.pacs import QUERY, Pacs
from dicom_node.retrospective.query import QueryError
from dicom_node.retrospective.retrieval import GET, MOVE
from dicom_node.retrospective.web import WebClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dicom_node.config import Peer, Settings
    from dicom_node.doctor.finding import Finding

_MODELS = {"move": ("C-MOVE", MOVE), "get": ("C-GET", GET)}


def source(settings: Settings, which: Peer) -> Iterator[Finding]:
    """By negotiation and one query that matches at most one study; nothing is fetched."""
    check = f"source {which.name}"
    wanted = dict(_MODELS[way] for way in which.retrieve if way in _MODELS)
    if which.find == "dicom":
        wanted["C-FIND"] = QUERY
    if wanted:
        pacs = Pacs(which, ae_title=settings.ae_title, timeout_s=min(settings.network_timeout_s, MOST_ANSWER_S))
        try:
            accepted = pacs.echo(list(wanted.values())).accepted
        except AssociationError as error:
            yield not_answering(which, error, settings.ae_title)
            return
        except DeliveryError as error:
            yield failure(check, str(error), "see the peer's log")
            return
        for service, model in wanted.items():
            if model not in accepted:
                remedy = f"allow it there for AE title {settings.ae_title}, or take it out of this peer's settings"
                yield warning(check, f"{which.ae_title} does not accept {service}", remedy)
        told = [service for service, model in wanted.items() if model in accepted]
        if told:
            moved = f"; C-MOVE needs {settings.ae_title} there as a destination: this machine, port {settings.port}"
            yield ok(check, f"{which.ae_title} accepts {', '.join(told)}{moved if 'C-MOVE' in told else ''}")
    if which.find == "web" or "web" in which.retrieve:
        yield _web(settings, which, check)


def _web(settings: Settings, which: Peer, check: str) -> Finding:
    try:
        with WebClient(which, settings) as client:
            client.get("studies", accept="application/dicom+json", largest=1 << 20, parameters={"limit": "1"})
    except QueryError as error:
        return failure(check, str(error), "correct this peer's web_url, web_user and web_password")
    return ok(check, "its DICOMweb service answers")
