"""Claimed screenings, each from where its state says it stands to `reported`."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.claims import Product, StoredMap
from dicom_node.database import UnreachableError
from dicom_node.domain import (
    BundleError,
    DeclinedByPixelsError,
    LostLeaseError,
    MemberMap,
    NodeError,
    ObjectKind,
    Prediction,
    State,
    place_of,
)
from dicom_node.heatmap import build_heatmap
from dicom_node.leases import holder_name, kept_alive
from dicom_node.normalise import normalise
from dicom_node.pixels import read_instance, render
from dicom_node.report import build_report
from dicom_node.results import encode
from workers.ensemble import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from pydicom import Dataset

    from dicom_node.archive import Archive
    from dicom_node.claims import Claim, Claims, StoredPrediction
    from dicom_node.config import Settings
    from workers.ensemble import Ensemble

log = logging.getLogger(__name__)

_Made = TypeVar("_Made")
_GPU_BATCH = 16
_PAUSE_AFTER_FAULT_S = 1.0


class MissingFileError(NodeError):
    """The archive does not hold what the ledger says it holds."""

    reason = "archive_missing"


@dataclass(slots=True)
class _Job:
    """A claim whose file was read."""

    claim: Claim
    source: Dataset
    pixels: NDArray[np.float32]


class Screener:
    """One worker: its networks, and what it needs to claim screenings and to see them through.

    `step` is called before each piece of work whose length can be foreseen, for a watchdog.
    """

    def __init__(
        self,
        claims: Claims,
        archive: Archive,
        ensemble: Ensemble,
        settings: Settings,
        step: Callable[[], None] = lambda: None,
    ) -> None:
        self._claims = claims
        self._archive = archive
        self._ensemble = ensemble
        self._settings = settings
        self._step = step
        self._name = holder_name()
        self._batch_size = settings.batch_size or (1 if settings.device == "cpu" else _GPU_BATCH)

    def screen_next(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """Screen what waits, live first, up to a batch; returns how many that were.

        Where the disk or the database fails, the log says so, and what was claimed is given back, uncounted.

        Raises
        ------
        DeviceError, BundleError, MemoryError
            This process cannot go on; a new one can. What it had claimed was given back.
        """
        batch: list[Claim] = []
        try:
            batch = self._claims.claim_batch(self._name, self._settings.lease_s, self._batch_size)
            if batch:
                self.screen(batch, stopping)
        except (SQLAlchemyError, OSError, UnreachableError) as error:
            named = f" at screening {batch[0].screening_id}" if batch else ""
            log.warning("the worker pauses%s: %s", named, self._told(error))
            time.sleep(_PAUSE_AFTER_FAULT_S)
        return len(batch)

    def screen(self, batch: Sequence[Claim], stopping: Callable[[], bool] = lambda: False) -> None:
        """Each screening is `reported`, `withheld`, `declined` or `failed`, or waits again.

        Raises
        ------
        OSError, sqlalchemy.exc.SQLAlchemyError
            The disk or the database fails: not the image's fault.
        DeviceError, BundleError, MemoryError
            This process cannot go on; a new one can.
        """
        held = {claim.screening_id: claim for claim in batch}
        detail, pause_s = "the worker was told to stop", 0.0
        try:
            with kept_alive(partial(self._renew, held), self._settings.lease_s):
                self._advance_all(held, stopping)
        except (OSError, SQLAlchemyError, UnreachableError) as error:
            detail, pause_s = type(error).__name__, self._settings.retry_base_s
            raise
        except (DeviceError, BundleError) as error:
            detail = str(error)
            raise
        except BaseException as error:
            detail = type(error).__name__
            raise
        finally:
            self._give_back(held, detail, pause_s)

    def _told(self, error: Exception) -> str:
        """An error without a text that may hold a row."""
        if isinstance(error, SQLAlchemyError):
            return str(self._claims.explain(error))
        return (isinstance(error, OSError) and error.strerror) or str(error)

    def _renew(self, held: Mapping[int, Claim]) -> None:
        for claim in list(held.values()):
            with contextlib.suppress(LostLeaseError):  # left to the claim's own next write
                self._claims.renew(claim, self._settings.lease_s)

    def _give_back(self, held: dict[int, Claim], detail: str, pause_s: float) -> None:
        """What is still held waits again, if the database takes it; otherwise its lease runs out."""
        for claim in held.values():
            with contextlib.suppress(SQLAlchemyError, UnreachableError, LostLeaseError):
                self._claims.give_back(claim, detail, pause_s=pause_s)

    def _advance_all(self, held: dict[int, Claim], stopping: Callable[[], bool]) -> None:
        jobs = [job for claim in list(held.values()) if (job := self._attempt(claim, held, self._open)) is not None]
        if stopping():
            return
        predictions = self._predict_together([job for job in jobs if job.claim.state is State.CLAIMED])
        while jobs and not stopping():
            job = jobs.pop(0)  # and with it its pixels
            self._attempt(job.claim, held, partial(self._advance, job, predictions.get(job.claim.screening_id)))
            held.pop(job.claim.screening_id, None)

    def _attempt(self, claim: Claim, held: dict[int, Claim], work: Callable[[Claim], _Made]) -> _Made | None:
        """What `work` makes of the claim; None where that failed, which the ledger then tells of this claim alone."""
        self._step()
        try:
            try:
                return work(claim)
            except (OSError, SQLAlchemyError, UnreachableError, LostLeaseError, DeviceError, BundleError):
                raise
            except DeclinedByPixelsError as error:
                self._claims.decline(claim, error.decline_reason, str(error))
                log.info("screening %d declined: %s", claim.screening_id, error.reason)
            except NodeError as error:
                log.warning("screening %d: %s", claim.screening_id, error)
                if error.permanent:
                    self._claims.fail(claim, error)
                else:
                    self._count(claim, str(error))
            except MemoryError as error:  # perhaps of this image: it counts
                self._count(claim, place_of(error))
                held.pop(claim.screening_id)
                raise
            except Exception as error:
                log.error("screening %d: %s", claim.screening_id, place_of(error))  # noqa: TRY400
                self._count(claim, place_of(error))
        except LostLeaseError as error:
            log.warning("%s; its result is dropped", error)
        held.pop(claim.screening_id)
        return None

    def _count(self, claim: Claim, detail: str) -> None:
        settings = self._settings
        self._claims.count_failure(claim, detail, max_failures=settings.max_attempts, pause_s=settings.retry_base_s)

    def _open(self, claim: Claim) -> _Job:
        source = read_instance(_bytes(self._archive, claim.path))
        return _Job(claim, source, render(source, max_pixels=self._settings.max_pixels))

    def _predict_together(self, jobs: Sequence[_Job]) -> dict[int, Prediction]:
        """By screening; empty where they cannot be predicted together, and each is then tried alone."""
        for job in jobs:
            self._check_release(job.claim)
        if len(jobs) < 2:
            return {}
        self._step()
        try:
            found = self._ensemble.predict([job.pixels for job in jobs])
        except DeviceError:
            raise
        except Exception as error:
            log.warning("a batch of %d is predicted one by one: %s", len(jobs), place_of(error))
            return {}
        return {job.claim.screening_id: prediction for job, prediction in zip(jobs, found, strict=True)}

    def _check_release(self, claim: Claim) -> None:
        have, wanted = self._ensemble.manifest, claim.manifest
        if have != wanted:
            raise BundleError(
                f"the worker has {have.name} {have.release}, the ledger asks for {wanted.name} {wanted.release}: "
                "the bundle was changed, start the node again"
            )

    def _advance(self, job: _Job, prediction: Prediction | None, claim: Claim) -> None:
        archive, settings = self._archive, self._settings
        if claim.state is State.CLAIMED:
            if prediction is None:
                (prediction,) = self._ensemble.predict([job.pixels])
            self._claims.save_prediction(claim, prediction, [_store_map(archive, found) for found in prediction.maps])
        stored = self._claims.load_prediction(claim)  # what is reported is what the ledger holds
        prediction = _with_maps(stored, archive)
        header, notes = normalise(job.source)
        heatmap = build_heatmap(
            header, job.pixels, prediction, claim.manifest, when=stored.predicted_at, size=settings.heatmap_size
        )
        report = build_report(
            header,
            heatmap,
            prediction,
            claim.manifest,
            when=stored.predicted_at,
            node_ae_title=settings.ae_title,
        )
        products = [
            Product(kind, str(ds.SOPClassUID), str(ds.SOPInstanceUID), archive.store(encode(ds)))
            for kind, ds in ((ObjectKind.HEATMAP, heatmap), (ObjectKind.REPORT, report))
        ]
        self._claims.save_results(claim, products, [peer.name for peer in settings.destinations], notes)
        log.info("screening %d reported", claim.screening_id)


def _bytes(archive: Archive, path: str) -> bytes:
    try:
        return archive.locate(path).read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} is not in the archive") from error


def _store_map(archive: Archive, found: MemberMap) -> StoredMap:
    encoded = cv2.imencode(".png", found.pixels)[1].tobytes()
    return StoredMap(found.member, found.name, found.box, archive.store(encoded, ".png"))


def _with_maps(stored: StoredPrediction, archive: Archive) -> Prediction:
    plain = stored.prediction
    maps = []
    for row, member, name in stored.maps:
        pixels = cv2.imdecode(np.frombuffer(_bytes(archive, row.path), np.uint8), cv2.IMREAD_GRAYSCALE)
        if pixels is None:
            raise MissingFileError(f"{row.path} is no map")
        top, left, height, width = row.box or (0.0, 0.0, 1.0, 1.0)
        maps.append(MemberMap(member, name, pixels.astype(np.uint8), (top, left, height, width)))
    return Prediction(
        bundle=plain.bundle,
        release=plain.release,
        operating_point=plain.operating_point,
        targets=plain.targets,
        members=plain.members,
        maps=tuple(maps),
    )
