"""What can be set, and what is fixed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from dicom_node import delivery, listener, pacs, proofs
from dicom_node.config import Peer, Settings
from dicom_node.statement.markdown import table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic.fields import FieldInfo

# Those that a peer can notice. The others are of processes, disks and databases, and stand in the README.
SETTINGS = (
    "ae_title",
    "host",
    "port",
    "peers",
    "codes",
    "accept_for_processing",
    "keep_declined",
    "store_patient_identity",
    "max_pixels",
    "decode_timeout_s",
    "decode_memory_mb",
    "max_attempts",
    "retry_base_s",
    "retry_max_s",
    "network_timeout_s",
    "commit_timeout_s",
    "study_quiet_s",
    "heatmap_size",
)
_UNITS = {"_s": "s", "_mb": "MiB", "_size": "pixels", "_pixels": "pixels", "_percent": "%"}


def settings() -> str:
    """The settings that a peer can notice."""
    return _fields((name, Settings.model_fields[name]) for name in SETTINGS)


def peer_settings() -> str:
    """The settings of each peer."""
    return _fields(Peer.model_fields.items())


def _fields(found: Iterable[tuple[str, FieldInfo]]) -> str:
    return table(
        ("parameter", "default", "unit", "meaning"),
        ((f"`{name}`", _shown(field.default), _unit(name), field.description or "") for name, field in found),
    )


def _shown(default: Any) -> str:
    if default is PydanticUndefined:
        return "none: must be set"
    if isinstance(default, SecretStr):
        return "empty"
    if isinstance(default, tuple | dict):
        return ", ".join(f"`{value}`" for value in default) or "empty"
    return f"`{json.dumps(default) if isinstance(default, bool) else default}`"


def _unit(name: str) -> str:
    return next((unit for end, unit in _UNITS.items() if name.endswith(end)), "")


def limits() -> str:
    """What is fixed in the program."""
    accepting = listener.application_entity("ANY", hears_commitment=True)
    rows = (
        ("Associations that the listener has at a time", str(accepting.maximum_associations), ""),
        ("Objects on one association to a destination", str(delivery._BATCH), ""),
        ("Wait for a report on the same association", f"{delivery._LINGER_S:g}", "s"),
        ("Requests for storage commitment before a query is tried", str(delivery._COMMITMENTS), ""),
        ("Requests and queries before an object stays `unproven`", str(delivery._MOST_PROOFS), ""),
        ("Sends of an object that a peer takes and then does not have", str(proofs.MOST_SENDS), ""),
        ("Answers to one query", str(pacs._MOST_ANSWERS), ""),
    )
    return table(("limit", "value", "unit"), rows)
