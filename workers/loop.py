"""The worker's process: embedded, it asks the ledger for work; in the service, a bell tells it to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.archive import Archive
from dicom_node.bundles import find, find_release
from dicom_node.claims import Claims
from dicom_node.database import Database
from dicom_node.decoding import decoders
from dicom_node.releases import ReleaseError, Releases
from dicom_node.roles import announce_ready
from dicom_node.watch import Watch
from workers.ensemble import Ensemble
from workers.screening import Screener

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from dicom_node.config import Settings

WORKER = "worker"
_POLL_S = 0.05


def work(settings: Settings, stop: threading.Event) -> None:
    """Screen what waits until told to stop; the screening at hand is finished first."""
    database = Database(settings.database_dsn)
    ensemble = load_active(settings, database)
    watch = Watch(settings.health_dir, WORKER, settings.step_timeout_s)
    with decoders(settings) as children:
        claims, archive = Claims(database, settings.worklist), Archive(settings.archive_dir)
        screener = Screener(claims, archive, ensemble, children, settings, watch.step)
        announce_ready()
        while not stop.is_set():
            watch.step()
            if not screener.screen_next(stop.is_set):
                watch.rest()
                stop.wait(_POLL_S)
    watch.close()


def load_ensemble(settings: Settings) -> Ensemble:
    """The settings' bundle on the settings' device, in the process that uses it; on a CPU, one thread a core."""
    return _load(find(settings.bundle, settings), settings)


def load_active(settings: Settings, database: Database) -> Ensemble:
    """The release that the ledger screens by, whatever the settings' bundle is.

    Raises
    ------
    BundleError, ReleaseError
        Where it is not installed, cannot be used, or none is active.
    SchemaError, UnreachableError
        Where the ledger cannot be asked.
    """
    try:
        active = Releases(database).active()
    except SQLAlchemyError as error:
        raise database.explain(error) from error
    if active is None:
        raise ReleaseError("no bundle release is active in the ledger: start the node again")
    return _load(find_release(active, settings), settings)


def _load(folder: Path, settings: Settings) -> Ensemble:
    torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    return Ensemble.load(folder, settings.device)
