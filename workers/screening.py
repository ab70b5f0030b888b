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


class UnreadableFileError(NodeError):
    """The archive holds the file, and the disk or its rights keep it."""

    permanent = False
    reason = "archive_unreadable"


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
        self._left: list[Claim] = []
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
        self.return_what_is_left()
        try:
            batch = self._claims.claim_batch(self._name, self._settings.lease_s, self._batch_size)
            if batch:
                self.screen(batch, stopping)
        except (SQLAlchemyError, OSError) as error:
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
        except (OSError, SQLAlchemyError) as error:
            detail, pause_s = type(error).__name__, self._settings.retry_base_s
            raise
        except (DeviceError, BundleError) as error:
            detail = str(error)
            raise
        except BaseException as error:
            detail = type(error).__name__
            raise
        finally:
            for claim in held.values():
                self._return(claim, detail, pause_s)

    def _told(self, error: Exception) -> str:
        """An error without a text that may hold a row."""
        if isinstance(error, SQLAlchemyError):
            return str(self._claims.explain(error))
        return (isinstance(error, OSError) and error.strerror) or str(error)

    def _renew(self, held: Mapping[int, Claim]) -> None:
        for claim in list(held.values()):
            with contextlib.suppress(LostLeaseError):  # left to the claim's own next write
                self._claims.renew(claim, self._settings.lease_s)

    def return_what_is_left(self) -> None:
        """What a lost database would not take back is given back now, before its lease runs out and is counted."""
        left, self._left = self._left, []
        for claim in left:
            self._return(claim, "the database was lost", 0.0)

    def _return(self, claim: Claim, detail: str, pause_s: float) -> None:
        """The claim waits again; where the database does not take it, it is kept for the next time."""
        try:
            self._claims.give_back(claim, detail, pause_s=pause_s)
        except SQLAlchemyError:
            self._left.append(claim)
        except LostLeaseError:
            pass

    def _advance_all(self, held: dict[int, Claim], stopping: Callable[[], bool]) -> None:
        jobs = [job for claim in list(held.values()) if (job := self._attempt(claim, held, self._open)) is not None]
        while jobs and not stopping():
            job = jobs.pop(0)  # and with it its pixels
            self._attempt(job.claim, held, partial(self._advance, job))
            held.pop(job.claim.screening_id, None)

    def _attempt(self, claim: Claim, held: dict[int, Claim], work: Callable[[Claim], _Made]) -> _Made | None:
        """What `work` makes of the claim; None where that failed, which the ledger then tells of this claim alone."""
        self._step()
        try:
            try:
                return work(claim)
            except (OSError, SQLAlchemyError, LostLeaseError, DeviceError, BundleError):
                raise
            except UnreadableFileError as error:  # perhaps the disk's fault: it waits, uncounted, and others go on
                log.warning("screening %d: %s", claim.screening_id, error)
                self._claims.give_back(claim, str(error), pause_s=self._settings.retry_base_s)
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

    def _check_release(self, claim: Claim) -> None:
        have, wanted = self._ensemble.manifest, claim.manifest
        if have != wanted:
            raise BundleError(
                f"the worker has {have.name} {have.release}, the ledger asks for {wanted.name} {wanted.release}: "
                "the bundle was changed, start the node again"
            )

    def _advance(self, job: _Job, claim: Claim) -> None:
        archive, settings = self._archive, self._settings
        if claim.state is State.CLAIMED:
            self._check_release(claim)
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
    except OSError as error:
        raise UnreadableFileError(f"{path} cannot be read from the archive: {error.strerror}") from error


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
        remarks=plain.remarks,
    )
