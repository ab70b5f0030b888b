"""The worker's process: embedded, it asks the ledger for work; in the service, a bell tells it to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from dicom_node.archive import Archive
from dicom_node.bundle import find_bundle
from dicom_node.claims import Claims
from dicom_node.database import Database
from dicom_node.roles import announce_ready
from dicom_node.watch import Watch
from workers.ensemble import Ensemble
from workers.screening import Screener

if TYPE_CHECKING:
    import threading

    from dicom_node.config import Settings

WORKER = "worker"
_POLL_S = 0.05


def work(settings: Settings, stop: threading.Event) -> None:
    """Screen what waits until told to stop; the screening at hand is finished first."""
    ensemble = load_ensemble(settings)
    watch = Watch(settings.health_dir, WORKER, settings.step_timeout_s)
    database = Database(settings.database_dsn)
    screener = Screener(Claims(database), Archive(settings.archive_dir), ensemble, settings, watch.step)
    announce_ready()
    while not stop.is_set():
        watch.step()
        if not screener.screen_next(stop.is_set):
            watch.rest()
            stop.wait(_POLL_S)
    watch.close()


def load_ensemble(settings: Settings) -> Ensemble:
    """The settings' bundle on the settings' device, in the process that uses it; on a CPU, one thread a core."""
    torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    return Ensemble.load(find_bundle(settings.bundle), settings.device)
