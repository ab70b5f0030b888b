"""The embedded worker: claims straight from the ledger, one screening at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from dicom_node.archive import Archive
from dicom_node.bundle import find_bundle
from dicom_node.claims import Claims
from dicom_node.database import Database
from dicom_node.domain import LostLeaseError
from dicom_node.roles import announce_ready, stop_on_signal
from workers.ensemble import Ensemble
from workers.screening import screen_claim

if TYPE_CHECKING:
    from dicom_node.claims import Claim
    from dicom_node.config import Settings

log = logging.getLogger(__name__)

_POLL_S = 0.05
_PAUSE_AFTER_FAULT_S = 1.0


def work(settings: Settings) -> None:
    """Screen what waits until told to stop; the screening at hand is finished first."""
    stop = stop_on_signal()
    ensemble = Ensemble.load(find_bundle(settings.bundle), settings.device)
    archive = Archive(settings.archive_dir)
    claims = Claims(Database(settings.database_dsn))
    name = f"{socket.gethostname()}:{os.getpid()}"
    announce_ready()
    while not stop.is_set():
        claim = None
        try:
            claim = claims.claim(name, settings.lease_s)
            if claim is None:
                stop.wait(_POLL_S)
                continue
            screen_claim(claim, claims=claims, archive=archive, ensemble=ensemble, settings=settings)
        except (SQLAlchemyError, OSError) as error:
            told = error.strerror if isinstance(error, OSError) else type(error).__name__
            log.warning("the worker pauses%s: %s", f" at screening {claim.screening_id}" if claim else "", told)
            stop.wait(_PAUSE_AFTER_FAULT_S)
            if claim is not None:
                _give_back(claim, claims, type(error).__name__, settings.retry_base_s)


def _give_back(claim: Claim, claims: Claims, detail: str, pause_s: float) -> None:
    """The claim is given back, if the database takes it; otherwise its lease runs out."""
    with contextlib.suppress(SQLAlchemyError, LostLeaseError):
        claims.give_back(claim, detail, pause_s=pause_s)
