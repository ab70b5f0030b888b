"""Claimed screenings, each from where its state says it stands to `reported`."""

from __future__ import annotations

import contextlib
import logging
import time
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from dicom_node.decoding import Wanted, decode
from dicom_node.domain import (
    BundleError,
    DeclinedByPixelsError,
    DecoderError,
    LostLeaseError,
    NodeError,
    ObjectKind,
    Purpose,
    State,
    place_of,
)
from dicom_node.leases import holder_name, kept_alive
from dicom_node.maps import SUFFIX, MissingFileError, UnreadableFileError, encode_maps, read_maps
from dicom_node.products import store_picture
from dicom_node.routing import destinations
from workers.ensemble import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from dicom_node.archive import Archive, Product
    from dicom_node.children import Children
    from dicom_node.claims import Claim, Claims
    from dicom_node.config import Settings
    from dicom_node.decoding import Decoded
    from dicom_node.domain import Prediction
    from workers.ensemble import Ensemble

log = logging.getLogger(__name__)

# Enough for the children to decode and to report while the networks run; few enough for a live image not to wait long.
_CPU_CLAIMS, _GPU_CLAIMS = 4, 128
_PAUSE_AFTER_FAULT_S = 1.0
_LOOK_S = 1.0
_MOST_CHILDREN = 2  # that one image may cost
_NO_IMAGES_FAULT = (OSError, SQLAlchemyError, DeviceError, BundleError)


class _Job(NamedTuple):
    """A claim whose image was decoded."""

    claim: Claim
    decoded: Decoded


class _Building(NamedTuple):
    """A claim whose heatmap a child builds; `flagged` where any question was."""

    claim: Claim
    future: Future[tuple[Product, tuple[str, ...]]]
    flagged: bool


class Screener:
    """One worker: its networks, and what it needs to claim screenings and to see them through.

    `step` is called before each piece of work whose length can be foreseen, for a watchdog.
    """

    def __init__(
        self,
        claims: Claims,
        archive: Archive,
        ensemble: Ensemble,
        children: Children,
        settings: Settings,
        step: Callable[[], None] = lambda: None,
    ) -> None:
        self._claims = claims
        self._archive = archive
        self._ensemble = ensemble
        self._children = children
        self._settings = settings
        self._step = step
        self._name = holder_name()
        self._left: list[Claim] = []
        self._claim_size = settings.batch_size or (_CPU_CLAIMS if settings.device == "cpu" else _GPU_CLAIMS)

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
            batch = self._claims.claim_batch(self._name, self._settings.lease_s, self._claim_size)
            if batch:
                self.screen(batch, stopping)
        except (SQLAlchemyError, OSError) as error:
            named = f" at screening {batch[0].screening_id}" if batch else ""
            log.warning("the worker pauses%s: %s", named, self._told(error))
            time.sleep(_PAUSE_AFTER_FAULT_S)
        return len(batch)

    def screen(self, batch: Sequence[Claim], stopping: Callable[[], bool] = lambda: False) -> None:
        """Each screening is `reported`, `withheld`, `declined` or `failed`, or waits again.

        A batch without a live one is given back when a live one comes, but for what the networks have at hand.

        Raises
        ------
        OSError, sqlalchemy.exc.SQLAlchemyError
            The disk or the database fails: not the image's fault.
        DeviceError, BundleError, MemoryError
            This process cannot go on; a new one can.
        """
        held = {claim.screening_id: claim for claim in batch}
        detail, pause_s = "the worker was told to stop, or a live image came", 0.0
        is_live = any(claim.purpose is Purpose.LIVE for claim in batch)
        try:
            with kept_alive(partial(self._renew, held), self._settings.lease_s):
                self._advance_all(held, stopping, lambda: not is_live and self._claims.live_waits())
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
            self._return(list(held.values()), detail, pause_s)

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
        self._return(left, "the database was lost", 0.0)

    def _return(self, claims: list[Claim], detail: str, pause_s: float) -> None:
        """The claims wait again; where the database does not take them, they are kept for the next time."""
        if not claims:
            return
        try:
            self._claims.give_back_all(claims, detail, pause_s=pause_s)
        except SQLAlchemyError:
            self._left += claims

    def _advance_all(self, held: dict[int, Claim], stopping: Callable[[], bool], gives_way: Callable[[], bool]) -> None:
        """Children decode and build results while the networks run on what is decoded: as many as there are by then.

        What is being built is waited for, also by who is told to stop, but not by who gives way.
        """
        settings = self._settings
        wanted = Wanted(self._ensemble.squares, settings.heatmap_size, settings.max_pixels)
        decoding = [
            (claim, self._children.submit(decode, self._archive.locate(claim.path), wanted)) for claim in held.values()
        ]
        building: list[_Building] = []
        try:
            while decoding and not stopping():
                jobs = self._take_decoded(decoding, held)
                if gives_way():
                    break
                building += self._predict(jobs, held)
                self._save_built(building, held)
        finally:
            for _, future in decoding:
                future.cancel()
        while building and not gives_way():
            self._await_first([one.future for one in building])
            self._save_built(building, held)

    def _await_first(self, futures: Sequence[Future[Any]]) -> None:
        """One of them is done; the watchdog is told meanwhile, as each child has a limit of its own."""
        while not wait(futures, _LOOK_S, FIRST_COMPLETED).done:
            self._step()

    def _save_built(self, building: list[_Building], held: dict[int, Claim]) -> None:
        """The heatmaps that are built by now are saved."""
        for one in [one for one in building if one.future.done()]:
            building.remove(one)
            self._save_heatmap(one, held)

    def _take_decoded(self, decoding: list[tuple[Claim, Future[Decoded]]], held: dict[int, Claim]) -> list[_Job]:
        """What is decoded by now, in line, and at least one: nobody waits behind an image whose child loops."""
        self._await_first([future for _, future in decoding])
        jobs: list[_Job] = []
        for claim, future in [one for one in decoding if one[1].done()][: self._ensemble.batch_size]:
            decoding.remove((claim, future))
            with self._guarded(claim, held):
                try:
                    jobs.append(_Job(claim, future.result()))
                except FileNotFoundError as error:
                    raise MissingFileError(f"{claim.path} is not in the archive") from error
                except OSError as error:
                    raise UnreadableFileError(
                        f"{claim.path} cannot be read from the archive: {error.strerror}"
                    ) from error
        return jobs

    def _predict(self, jobs: Sequence[_Job], held: dict[int, Claim]) -> list[_Building]:
        """The predictions stand in the ledger; what is built of them is under way."""
        found: dict[int, Prediction | NodeError] = {}
        # Those of one release, of one site's thresholds: all of them but in the moment when these change.
        asked = [job for job in jobs if job.claim.state is State.CLAIMED and job.claim.screening_id in held]
        for job in asked:
            with self._guarded(job.claim, held):
                self._check_release(job.claim)
        for thresholds in {tuple(sorted(job.claim.thresholds.items())) for job in asked}:
            those = [job for job in asked if tuple(sorted(job.claim.thresholds.items())) == thresholds]
            found |= self._answers(those, dict(thresholds), held)
        building = []
        for job in jobs:
            if job.claim.screening_id not in held:
                continue
            with self._guarded(job.claim, held):
                begun = self._draw(job, found.get(job.claim.screening_id))
                if begun is None:
                    held.pop(job.claim.screening_id)
                else:
                    building.append(begun)
        return building

    def _answers(
        self, jobs: Sequence[_Job], thresholds: Mapping[str, float], held: dict[int, Claim]
    ) -> dict[int, Prediction | NodeError]:
        """By screening; an error that nobody foresaw is held against the one image that it comes back with."""
        if len(jobs) > 1:
            try:
                answers = self._ensemble.predict([job.decoded.squares for job in jobs], thresholds)
                return {job.claim.screening_id: answer for job, answer in zip(jobs, answers, strict=True)}
            except _NO_IMAGES_FAULT:
                raise
            except Exception as error:
                log.error("a batch of %d goes one by one: %s", len(jobs), place_of(error))  # noqa: TRY400
        found: dict[int, Prediction | NodeError] = {}
        for job in jobs:
            with self._guarded(job.claim, held):
                (found[job.claim.screening_id],) = self._ensemble.predict([job.decoded.squares], thresholds)
        return found

    def _draw(self, job: _Job, answer: Prediction | NodeError | None) -> _Building | None:
        """What a child builds of the prediction; None where the screening ends with it.

        A heatmap that goes nowhere is made for the report of a run, which shows what was flagged.
        """
        claim, archive = job.claim, self._archive
        if isinstance(answer, NodeError):
            raise answer
        if answer is not None:
            maps_file = archive.store(encode_maps(answer.maps, claim.screening_id), SUFFIX) if answer.maps else None
            self._claims.save_prediction(claim, answer, maps_file)
        stored = self._claims.load_prediction(claim)  # what is told is what the ledger holds
        flagged = any(result.flagged for result in stored.prediction.targets)
        if not (claim.delivers or flagged):
            self._claims.withhold(claim)
            log.info("screening %d withheld", claim.screening_id)
            return None
        future = self._children.submit(
            partial(store_picture, heatmap_size=self._settings.heatmap_size),
            archive,
            job.decoded.header,
            job.decoded.picture,
            replace(stored.prediction, maps=read_maps(archive, stored.maps)),
            claim.manifest_json,
            stored.predicted_at,
        )
        return _Building(claim, future, flagged)

    def _save_heatmap(self, one: _Building, held: dict[int, Claim]) -> None:
        claim = one.claim
        with self._guarded(claim, held):
            heatmap, notes = one.future.result()
            wanted = destinations(
                self._settings, ObjectKind.HEATMAP, flagged=one.flagged, senders=[claim.calling_ae_title]
            )
            self._claims.save_heatmap(claim, heatmap, wanted, notes)
            log.info("screening %d reported", claim.screening_id)
            held.pop(claim.screening_id, None)

    @contextlib.contextmanager
    def _guarded(self, claim: Claim, held: dict[int, Claim]) -> Iterator[None]:
        """What fails in the block is told to the ledger of this claim alone, which then is held no more."""
        self._step()
        try:
            try:
                yield
            except (*_NO_IMAGES_FAULT, LostLeaseError):
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
                elif isinstance(error, DecoderError):  # once may be chance, twice is not
                    self._count(claim, str(error), most=_MOST_CHILDREN, reason=error.reason)
                else:
                    self._count(claim, str(error))
            except MemoryError as error:  # perhaps of this image: it counts
                self._count(claim, place_of(error))
                held.pop(claim.screening_id)
                raise
            except Exception as error:
                log.error("screening %d: %s", claim.screening_id, place_of(error))  # noqa: TRY400
                self._count(claim, place_of(error))
            else:
                return
        except LostLeaseError as error:
            log.warning("%s; its result is dropped", error)
        held.pop(claim.screening_id, None)

    def _count(self, claim: Claim, detail: str, *, most: int = 0, reason: str = "attempts_exhausted") -> None:
        settings = self._settings
        self._claims.count_failure(
            claim,
            detail,
            max_failures=min(most or settings.max_attempts, settings.max_attempts),
            pause_s=settings.retry_base_s,
            reason=reason,
        )

    def _check_release(self, claim: Claim) -> None:
        have, wanted = self._ensemble.manifest, claim.manifest
        if have != wanted:
            raise BundleError(
                f"the worker has {have.name} {have.release}, the ledger asks for {wanted.name} {wanted.release}: "
                "the bundle was changed, the worker starts again"
            )
