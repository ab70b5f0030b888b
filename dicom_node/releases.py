"""The releases that the ledger knows: which of them screens, and the thresholds that the site set for each."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased

from dicom_node.bundle import Manifest
from dicom_node.database import sqlite_file
from dicom_node.domain import NodeError, State
from dicom_node.tables import ReleaseRow, ScreeningRow, ThresholdRow, db_now, storable

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.orm import Session

    from dicom_node.database import Database

_RELEASE = "release"  # what one process alone may change
_LONGEST_NAME = 64


class ReleaseError(NodeError):
    """No release is active, this one may not be, or another bundle of its name and release is known."""

    reason = "release"


class ThresholdError(NodeError):
    """A threshold that the site cannot set."""

    reason = "threshold"


@dataclass(frozen=True, slots=True)
class SiteThreshold:
    """The threshold that counts for a target of a release, in place of the bundle's own.

    Attributes
    ----------
    version
        Which one it is, from 1 on, within release and target.
    basis
        The data from which it was chosen, in words.
    """

    target: str
    version: int
    threshold: float
    set_by: str
    basis: str
    set_at: datetime


class Releases:
    """What a person decides of the networks: the release that screens, and from which probability it flags."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def active(self) -> Manifest | None:
        """The manifest of the release that new instances are screened by; None where there is none yet."""
        with self._database.read() as session:
            text = session.scalar(select(ReleaseRow.manifest).filter_by(active=True))
        return None if text is None else Manifest.model_validate_json(text)

    def has_active(self) -> bool:
        """Whether a release is active, in a ledger of whatever version; a ledger that is not there is not made."""
        if (file := sqlite_file(self._database.url)) is not None and not file.exists():
            return False
        try:
            with self._database.read() as session:
                return session.scalar(select(ReleaseRow.id).filter_by(active=True)) is not None
        except SQLAlchemyError:
            return False

    def activate(self, manifest: Manifest) -> None:
        """New instances are screened by this release, and so are those that no worker has claimed yet.

        Raises
        ------
        ReleaseError
            Where the ledger knows another manifest by this name and release, or where the site has set a threshold for
            a target of the active release and none for this one's.
        """
        with self._database.write(alone=_RELEASE) as session:
            release_id = _registered(session, manifest)
            left = session.scalar(select(ReleaseRow).filter_by(active=True))
            if left is not None:
                _expect_thresholds(session, left, release_id, manifest)
            session.execute(update(ReleaseRow).values(active=False))
            session.flush()
            session.execute(update(ReleaseRow).where(ReleaseRow.id == release_id).values(active=True))
            session.execute(
                update(ScreeningRow).where(ScreeningRow.state == State.WAITING).values(release_id=release_id)
            )

    def set_threshold(
        self, manifest: Manifest, target: str, threshold: float, *, set_by: str, basis: str
    ) -> SiteThreshold:
        """What workers claim of this release from now on is held against it; the ledger knows the release.

        Raises
        ------
        ThresholdError
            Where the release has no such target, or the threshold cannot be one, or nobody stands for it.
        ReleaseError
            Where the ledger knows another manifest by this name and release.
        """
        if target not in (known := [found.name for found in manifest.targets]):
            raise ThresholdError(
                f"{manifest.name} {manifest.release} has no target {target!r}; its targets: {', '.join(known)}"
            )
        if not (math.isfinite(threshold) and 0 <= threshold <= 1):
            raise ThresholdError(f"threshold {threshold:g} of {target}: it is a probability, between 0 and 1")
        set_by, basis = storable(set_by).strip(), storable(basis).strip()
        if not 0 < len(set_by) <= _LONGEST_NAME:
            raise ThresholdError(f"--by names who sets the threshold of {target}, in 1 to {_LONGEST_NAME} characters")
        if not basis:
            raise ThresholdError(f"--basis says from which data the threshold of {target} was chosen; it is empty")
        with self._database.write(alone=_RELEASE) as session:
            release_id = _registered(session, manifest)
            versions = select(func.max(ThresholdRow.version)).filter_by(release_id=release_id, target=target)
            made = ThresholdRow(
                release_id=release_id,
                target=target,
                version=(session.scalar(versions) or 0) + 1,
                threshold=threshold,
                set_by=set_by,
                basis=basis,
                set_at=db_now(),
            )
            session.add(made)
            session.flush()
            session.refresh(made)
            return _as_told(made)

    def thresholds(self, manifest: Manifest) -> dict[str, SiteThreshold]:
        """The site's thresholds that count for this release, by target; none for a bundle that the ledger has not."""
        with self._database.read() as session:
            row = session.scalar(select(ReleaseRow).filter_by(bundle=manifest.name, release=manifest.release))
            if row is None or Manifest.model_validate_json(row.manifest) != manifest:
                return {}
            return {found.target: _as_told(found) for found in _newest(session, row.id)}


def newest_thresholds(session: Session, release_id: int) -> dict[str, float]:
    """The site's thresholds that count for a release, by target, in the caller's transaction."""
    return {row.target: row.threshold for row in _newest(session, release_id)}


def _newest(session: Session, release_id: int) -> list[ThresholdRow]:
    later = aliased(ThresholdRow)
    newest = (
        select(func.max(later.version))
        .where(later.release_id == release_id, later.target == ThresholdRow.target)
        .scalar_subquery()
    )
    query = select(ThresholdRow).where(ThresholdRow.release_id == release_id, ThresholdRow.version == newest)
    return list(session.scalars(query.order_by(ThresholdRow.target)))


def _registered(session: Session, manifest: Manifest) -> int:
    """The id of the release, which the ledger knows from now on."""
    text = json.dumps(manifest.model_dump(mode="json"), sort_keys=True)
    known = session.scalar(select(ReleaseRow).filter_by(bundle=manifest.name, release=manifest.release))
    if known is None:
        known = ReleaseRow(
            bundle=manifest.name, release=manifest.release, manifest=text, active=False, registered_at=db_now()
        )
        session.add(known)
        session.flush()
    elif known.manifest != text:
        raise ReleaseError(
            f"the ledger knows bundle {manifest.name} {manifest.release} with another manifest: "
            "a changed bundle needs a new release"
        )
    return known.id


def _expect_thresholds(session: Session, left: ReleaseRow, release_id: int, manifest: Manifest) -> None:
    """A release that goes live has a threshold of the site's for every target for which the one that it follows has."""
    ours = f"{manifest.name} {manifest.release}"
    has = newest_thresholds(session, release_id)
    for target in newest_thresholds(session, left.id):
        if target in has:
            continue
        told = f"{left.bundle} {left.release} flags {target} from a threshold that the site has set"
        if target not in {found.name for found in manifest.targets}:
            raise ReleaseError(f"{told}, and {ours} has no target {target}: use a release that has it")
        raise ReleaseError(
            f"{told}, and {ours} has none for {target}: set it with "
            f"`dicom-node bundle threshold {target} VALUE --by WHO --basis TEXT {manifest.name}@{manifest.release}`"
        )


def _as_told(row: ThresholdRow) -> SiteThreshold:
    return SiteThreshold(row.target, row.version, row.threshold, row.set_by, row.basis, row.set_at)
