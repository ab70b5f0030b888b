"""One claimed screening, from where its state says it stands to `reported`."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

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
from dicom_node.normalise import normalise
from dicom_node.pixels import read_instance, render
from dicom_node.report import build_report
from dicom_node.results import encode
from workers.ensemble import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dicom_node.archive import Archive
    from dicom_node.claims import Claim, Claims, StoredPrediction
    from dicom_node.config import Settings
    from workers.ensemble import Ensemble

log = logging.getLogger(__name__)


class MissingFileError(NodeError):
    """The archive does not hold what the ledger says it holds."""

    reason = "archive_missing"


def screen_claim(claim: Claim, *, claims: Claims, archive: Archive, ensemble: Ensemble, settings: Settings) -> None:
    """The screening is `reported`, `withheld`, `declined` or `failed`, or waits again.

    Raises
    ------
    OSError, sqlalchemy.exc.SQLAlchemyError
        The disk or the database fails: not the image's fault. The claim is still held.
    DeviceError, BundleError, MemoryError
        This process cannot go on; a new one can.
    """
    try:
        _try(claim, claims, archive, ensemble, settings)
    except LostLeaseError as error:
        log.warning("%s; its result is dropped", error)


def _try(claim: Claim, claims: Claims, archive: Archive, ensemble: Ensemble, settings: Settings) -> None:
    def count(detail: str) -> None:
        claims.count_failure(claim, detail, max_failures=settings.max_attempts, pause_s=settings.retry_base_s)

    try:
        with _kept_alive(claim, claims, settings.lease_s):
            _advance(claim, claims, archive, ensemble, settings)
    except (OSError, SQLAlchemyError, LostLeaseError):
        raise
    except DeclinedByPixelsError as error:
        claims.decline(claim, error.decline_reason, str(error))
        log.info("screening %d declined: %s", claim.screening_id, error.reason)
    except (DeviceError, BundleError) as error:
        claims.give_back(claim, str(error), pause_s=0)
        raise
    except NodeError as error:
        log.warning("screening %d: %s", claim.screening_id, error)
        if error.permanent:
            claims.fail(claim, error)
        else:
            count(str(error))
    except MemoryError as error:  # perhaps of this image: it counts
        count(place_of(error))
        raise
    except Exception as error:
        log.error("screening %d: %s", claim.screening_id, place_of(error))  # noqa: TRY400
        count(place_of(error))


def _advance(claim: Claim, claims: Claims, archive: Archive, ensemble: Ensemble, settings: Settings) -> None:
    source = read_instance(_bytes(archive, claim.path))
    pixels = render(source, max_pixels=settings.max_pixels)
    if claim.state is State.CLAIMED:
        if ensemble.manifest != claim.manifest:
            raise BundleError(
                f"the worker has {ensemble.manifest.name} {ensemble.manifest.release}, the ledger asks for "
                f"{claim.manifest.name} {claim.manifest.release}: the bundle was changed, start the node again"
            )
        (prediction,) = ensemble.predict([pixels])
        claims.save_prediction(claim, prediction, [_store_map(archive, found) for found in prediction.maps])
    stored = claims.load_prediction(claim)  # what is reported is what the ledger holds
    prediction = _with_maps(stored, archive)
    header, notes = normalise(source)
    heatmap = build_heatmap(
        header, pixels, prediction, claim.manifest, when=stored.predicted_at, size=settings.heatmap_size
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
    claims.save_results(claim, products, [peer.name for peer in settings.destinations], notes)
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


@contextmanager
def _kept_alive(claim: Claim, claims: Claims, lease_s: float) -> Iterator[None]:
    """The claim's lease is renewed from a thread while the block runs; a lost one is left to the block's writes."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(lease_s / 4):
            try:
                claims.renew(claim, lease_s)
            except LostLeaseError:
                return
            except SQLAlchemyError:
                continue

    keeper = threading.Thread(target=renew, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
