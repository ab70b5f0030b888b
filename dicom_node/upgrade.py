"""What an administrator does to a ledger between two versions of the node, or of its networks."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING

from dicom_node.bundle import find_bundle, read_manifest
from dicom_node.database import Database
from dicom_node.ledger import Ledger

if TYPE_CHECKING:
    from dicom_node.config import Settings

log = logging.getLogger(__name__)


def upgrade(settings: Settings) -> None:
    """The ledger has this version's schema, and a release to screen by: the settings' bundle, where it had none.

    Raises
    ------
    SchemaError, UnreachableError
        Where the database cannot be used, or does not answer.
    BundleError
        Where the bundle is not there.
    """
    with closing(Database(settings.database_dsn)) as database:
        database.upgrade()
        ledger = Ledger(database)
        manifest = ledger.active_manifest()
        if manifest is None:
            manifest = read_manifest(find_bundle(settings.bundle))
            ledger.activate_release(manifest)
    log.info("the ledger is at this version's schema and screens by %s %s", manifest.name, manifest.release)


def use_bundle(settings: Settings) -> None:
    """What is received from now on, and what no worker has claimed yet, is screened by the settings' bundle.

    Raises
    ------
    SchemaError, UnreachableError, BundleError, ReleaseError
        Where the database or the bundle cannot be used, or the ledger knows another bundle by this name and release.
    """
    manifest = read_manifest(find_bundle(settings.bundle))
    with closing(Database(settings.database_dsn)) as database:
        database.check_schema()
        Ledger(database).activate_release(manifest)
    log.info("the ledger screens by %s %s", manifest.name, manifest.release)
