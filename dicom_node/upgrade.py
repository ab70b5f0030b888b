"""What an administrator does to a ledger between two versions of the node, or of its networks."""

from __future__ import annotations

import logging
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from dicom_node.bundle import read_manifest
from dicom_node.bundles import difference, find, find_release
from dicom_node.database import Database
from dicom_node.domain import BundleError
from dicom_node.releases import ReleaseError, Releases
from dicom_node.weights import faults

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dicom_node.bundle import Manifest
    from dicom_node.config import Settings
    from dicom_node.releases import SiteThreshold

log = logging.getLogger(__name__)


def settle(settings: Settings, database: Database) -> Manifest:
    """The ledger has this version's schema, and a release to screen by: the settings' bundle, where it had none.

    Raises
    ------
    SchemaError, UnreachableError
        Where the database cannot be used, or does not answer.
    BundleError
        Where the ledger has no release and the settings' bundle is not there; nothing was changed.
    """
    releases = Releases(database)
    first = None if releases.has_active() else read_manifest(find(settings.bundle, settings))
    database.upgrade()
    if (active := releases.active()) is not None:
        return active
    first = first or read_manifest(find(settings.bundle, settings))
    releases.activate(first)
    return first


def upgrade(settings: Settings) -> None:
    """The ledger is settled; the log says by what it screens, and where that is not what this machine has.

    Raises
    ------
    SchemaError, UnreachableError, BundleError
        Where `settle` refuses.
    """
    with closing(Database(settings.database_dsn)) as database:
        active = settle(settings, database)
    log.info("the ledger is at this version's schema and screens by %s %s", active.name, active.release)
    try:  # the processes of the version before run on: no reason to refuse the schema
        find_release(active, settings)
    except BundleError as error:
        log.warning("no worker can start here: %s", error)
    else:
        tell_difference(settings, active)


def tell_difference(settings: Settings, active: Manifest) -> None:
    """The log says in one line where the setting `bundle` names another release than the ledger screens by."""
    if told := difference(settings, active):
        log.warning("%s", told)


def use_bundle(settings: Settings, name: str | None = None) -> None:
    """What is received from now on, and what no worker has claimed yet, is screened by the bundle of that name.

    Without a name by the settings' bundle.

    Raises
    ------
    BundleError
        Where it is not installed, so that no worker would find it, or not whole.
    SchemaError, UnreachableError, ReleaseError
        Where the database cannot be used, or the ledger refuses the release.
    """
    folder = find(name or settings.bundle, settings)
    manifest = read_manifest(folder)
    _expect_installed(manifest, folder, settings)
    if (fault := next(faults(folder), None)) is not None:
        raise BundleError(f"{manifest.name} {manifest.release} cannot be used: {fault}")
    with _ledger(settings) as releases:
        releases.activate(manifest)
    log.info("the ledger screens by %s %s", manifest.name, manifest.release)


def set_threshold(
    settings: Settings, target: str, threshold: float, *, set_by: str, basis: str, name: str | None = None
) -> tuple[Manifest, SiteThreshold]:
    """What is claimed from now on is flagged from this threshold on; returns the release for which it is.

    That is the active one, or that of the installed bundle of that name, which the ledger then knows.

    Raises
    ------
    BundleError, SchemaError, UnreachableError, ReleaseError, ThresholdError
        Where bundle, database, release, target or threshold cannot be what they are given as.
    """
    manifest = None if name is None else read_manifest(find(name, settings))
    with _ledger(settings) as releases:
        manifest = manifest or releases.active()
        if manifest is None:
            raise ReleaseError("no bundle release is active in the ledger: name the bundle that the threshold is for")
        return manifest, releases.set_threshold(manifest, target, threshold, set_by=set_by, basis=basis)


@contextmanager
def _ledger(settings: Settings) -> Iterator[Releases]:
    with closing(Database(settings.database_dsn)) as database:
        database.check_schema()
        yield Releases(database)


def _expect_installed(manifest: Manifest, folder: Path, settings: Settings) -> None:
    try:
        find_release(manifest, settings)
    except BundleError as error:
        raise BundleError(
            f"{folder} is not where workers look for bundles: put it into {settings.bundles_dir} (bundles_dir), "
            "or let the setting `bundle` name it"
        ) from error
