"""The bundles that are installed on this machine, several side by side: found by name, by release or by folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node.bundle import find_bundle, holds_manifest, read_manifest, shipped_folders
from dicom_node.domain import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dicom_node.bundle import Manifest
    from dicom_node.config import Settings


@dataclass(frozen=True, slots=True)
class Installed:
    """A folder that holds a bundle. `manifest` is None where it cannot be read, and `fault` says why."""

    folder: Path
    manifest: Manifest | None
    fault: str = ""


def installed(settings: Settings) -> tuple[Installed, ...]:
    """Each bundle once: the folder that the settings name, those in `bundles_dir`, those that travel with the workers.

    Raises
    ------
    BundleError
        Where `bundles_dir` is there and cannot be read.
    """
    found: dict[Path, Installed] = {}
    for folder in _folders(settings):
        if (real := folder.resolve()) in found:
            continue
        try:
            found[real] = Installed(folder, read_manifest(folder))
        except BundleError as error:
            found[real] = Installed(folder, None, str(error))
    return tuple(found.values())


def _folders(settings: Settings) -> Iterator[Path]:
    if holds_manifest(own := Path(settings.bundle)):
        yield own
    for root in (settings.bundles_dir, *shipped_folders()):
        try:
            yield from sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] not in "._")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BundleError(f"{root} cannot be read: {error.strerror}; see bundles_dir") from error


def find(bundle: str, settings: Settings) -> Path:
    """Folder of a bundle: a folder itself, the name of an installed bundle, or NAME@RELEASE.

    Raises
    ------
    BundleError
        Where it is not there, or where the name fits several.
    """
    if holds_manifest(Path(bundle)):
        return Path(bundle)
    name, _, release = bundle.partition("@")
    fitting: list[tuple[Manifest, Path]] = []
    for one in installed(settings):
        if one.manifest is None or one.manifest.name != name or release not in ("", one.manifest.release):
            continue
        if one.manifest not in (manifest for manifest, _ in fitting):  # a copy is no other bundle
            fitting.append((one.manifest, one.folder))
    if not fitting:
        return find_bundle(bundle, settings.bundles_dir)
    if len(fitting) > 1:
        told = ", ".join(f"{manifest.name}@{manifest.release} in {folder}" for manifest, folder in fitting)
        raise BundleError(f"bundle {bundle!r} may be {told}: name the release, as NAME@RELEASE, or the folder")
    return fitting[0][1]


def find_release(wanted: Manifest, settings: Settings) -> Path:
    """Folder of the installed bundle that has this very manifest.

    Raises
    ------
    BundleError
        Naming what is not there and what to do.
    """
    there = installed(settings)
    for one in there:
        if one.manifest == wanted:
            return one.folder
    ours = f"{wanted.name} {wanted.release}"
    for one in there:
        if one.manifest is not None and (one.manifest.name, one.manifest.release) == (wanted.name, wanted.release):
            raise BundleError(
                f"{ours} in {one.folder} has another manifest than the ledger's {ours}: install the ledger's, "
                "or give the changed one a new release and run `dicom-node bundle use`"
            )
    others = ", ".join(f"{one.manifest.name} {one.manifest.release}" for one in there if one.manifest is not None)
    raise BundleError(
        f"the ledger screens by {ours}, which is not among the installed bundles ({others or 'none'}): "
        f"put its folder into {settings.bundles_dir} (bundles_dir), or run `dicom-node bundle use`"
    )


def difference(settings: Settings, active: Manifest) -> str:
    """How the setting `bundle` differs from the release that the ledger screens by; empty where it does not."""
    screens_by = f"the ledger screens by {active.name} {active.release}"
    try:
        ours = read_manifest(find(settings.bundle, settings))
    except BundleError as error:
        return f"{screens_by}; the setting `bundle`, which `screen` takes, fits no bundle: {error}"
    if ours == active:
        return ""
    return (
        f"{screens_by}; the setting `bundle` names {ours.name} {ours.release}, which `screen` takes: "
        "`dicom-node bundle use` would change over to it"
    )
