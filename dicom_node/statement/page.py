"""The marked regions of the conformance statement.

A region begins with the line ``<!-- begin: NAME -->`` and ends with ``<!-- end: NAME -->``. What stands between is made
here, all else is written by hand.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dicom_node.domain import NodeError
from dicom_node.statement import configuration, groups, instances, network, received, terminology

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

REGIONS: Mapping[str, Callable[[], str]] = {
    "services": network.services,
    "implementation": network.implementation,
    "accepted contexts": network.accepted_contexts,
    "image transfer syntaxes": network.image_transfer_syntaxes,
    "delivery contexts": network.delivery_contexts,
    "examination contexts": network.examination_contexts,
    "answers to C-STORE": network.answers_to_store,
    "answers of C-STORE": network.answers_of_store,
    "answers to N-EVENT-REPORT": network.answers_to_event_report,
    "failure reasons": network.failure_reasons,
    "association faults": network.association_faults,
    "decline reasons": received.decline_reasons,
    "received attributes": received.attributes,
    "character sets": received.character_sets,
    "settings": configuration.settings,
    "peer settings": configuration.peer_settings,
    "limits": configuration.limits,
    "heatmap attributes": instances.heatmap_attributes,
    "report attributes": instances.report_attributes,
    "note attributes": instances.note_attributes,
    "file meta": instances.file_meta,
    "report tree": terminology.report_tree,
    "note tree": terminology.note_tree,
    "context groups": groups.context_groups,
    "templates": terminology.templates,
    "codes": terminology.codes,
    "private codes": terminology.private_codes,
    "question codes": terminology.question_codes,
}

_MARK = re.compile(r"^<!-- begin: (?P<name>.*?) -->\n(?P<text>.*?)^<!-- end: (?P=name) -->\n", re.MULTILINE | re.DOTALL)


class PageError(NodeError):
    """The page does not hold the regions that it should; the message names one."""

    reason = "statement"


def filled(page: str) -> str:
    """The page with what the program says now in each of its regions.

    Raises
    ------
    PageError
        Where a region is missing, stands there twice, or is not one of `REGIONS`.
    """
    names = [found["name"] for found in _MARK.finditer(page)]
    if wrong := sorted(set(names) ^ set(REGIONS)):
        raise PageError(f"the page and dicom_node/statement/page.py do not agree on the region {wrong[0]!r}")
    if len(names) > len(REGIONS):
        raise PageError("the page holds a region twice")
    return _MARK.sub(lambda found: _region(found["name"]), page)


def _region(name: str) -> str:
    return f"<!-- begin: {name} -->\n\n{REGIONS[name]().rstrip()}\n\n<!-- end: {name} -->\n"
