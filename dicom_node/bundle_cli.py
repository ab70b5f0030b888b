"""`dicom-node bundle`: the bundles that are installed, which of them screens, and from which probability it flags."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from dicom_node.bundle import read_manifest
from dicom_node.bundles import find, find_release, installed
from dicom_node.domain import NodeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dicom_node.bundle import Manifest
    from dicom_node.config import Settings
    from dicom_node.releases import Releases, SiteThreshold

app = typer.Typer(no_args_is_help=True, help="The bundles of networks that images are screened by.")

_Answer = TypeVar("_Answer")
_Name = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="A name, NAME@RELEASE or a folder.", show_default=False),
]
_Json = Annotated[bool, typer.Option("--json")]


@app.command("list")
def list_bundles(context: typer.Context, as_json: _Json = False) -> None:
    """List the installed bundles, and which of them the ledger screens by."""
    settings: Settings = context.obj.settings
    active = _ask(settings, lambda releases: releases.active())
    found = installed(settings)
    is_there = active in [one.manifest for one in found]
    if as_json:
        document = {
            "active": active and {"name": active.name, "release": active.release, "installed": is_there},
            "bundles": [
                {
                    "name": one.manifest.name if one.manifest else None,
                    "release": one.manifest.release if one.manifest else None,
                    "members": [member.name for member in one.manifest.members] if one.manifest else [],
                    "megabytes": _megabytes(one.folder),
                    "active": one.manifest is not None and one.manifest == active,
                    "fault": one.fault or None,
                    "folder": str(one.folder),
                }
                for one in found
            ],
        }
        typer.echo(json.dumps(document))
        return
    table = Table("bundle", "members", "MB", "screens", Column("folder", overflow="fold"))
    for one in found:
        if one.manifest is not None:
            members = ", ".join(member.name for member in one.manifest.members)
            screens = "yes" if one.manifest == active else ""
            name = f"{one.manifest.name}@{one.manifest.release}"
            table.add_row(name, members, str(_megabytes(one.folder)), screens, escape(str(one.folder)))
    console = Console()
    console.print(table)
    for one in found:
        if one.fault:
            console.print(f"cannot be read: {one.fault}", soft_wrap=True, markup=False)
    if active is not None and not is_there:
        console.print(f"the ledger screens by {active.name} {active.release}, which is not installed", soft_wrap=True)


@app.command("show")
def show_bundle(context: typer.Context, name: _Name = None, as_json: _Json = False) -> None:
    """Show the targets, operating points, members and site thresholds of a bundle; without NAME of the active one."""
    settings: Settings = context.obj.settings
    folder = _folder(settings, name)
    manifest = read_manifest(folder)
    document = _described(manifest, folder, _ask(settings, lambda releases: releases.thresholds(manifest)) or {})
    if as_json:
        typer.echo(json.dumps(document))
        return
    lines = [f"{manifest.name} {manifest.release}: {manifest.title}", f"folder {folder}"]
    for target in document["targets"]:
        lines.append(f"target {target['name']}: {target['title']}")
        lines.extend(
            f"  {point['name']}: threshold {point['threshold']:.4f}, sensitivity {point['sensitivity']:.3f}, "
            f"specificity {point['specificity']:.3f}" + (" (in force)" if point["in_force"] else "")
            for point in target["operating_points"]
        )
        if (site := target["site_threshold"]) is not None:
            lines.append(
                f"  site: threshold {site['threshold']:.4f} (in force), version {site['version']}, "
                f"set by {site['set_by']} at {site['set_at']}, from {site['basis']}"
            )
    for member in document["members"]:
        lines.append(f"member {member['name']} {member['version']}: {member['citation']}")
        lines.extend(f"  {part['file']} SHA-256 {part['sha256']}" for part in member["weights"])
    typer.echo("\n".join(lines))


@app.command("verify")
def verify_bundle(context: typer.Context, name: _Name = None) -> None:
    """Check that each file of a bundle is what its manifest says and none can run code: exit status 1 for a fault."""
    from dicom_node.weights import faults

    folder = _folder(context.obj.settings, name)
    found = list(faults(folder))
    for fault in found:
        typer.echo(str(fault))
    if found:
        raise typer.Exit(1)
    manifest = read_manifest(folder)
    typer.echo(f"{manifest.name} {manifest.release} in {folder} is whole")


@app.command("use")
def use_bundle(context: typer.Context, name: _Name = None) -> None:
    """Screen by this bundle from now on, without NAME by the settings'; a worker with another one starts anew."""
    from dicom_node import upgrade

    upgrade.use_bundle(context.obj.settings, name)


@app.command("threshold")
def set_threshold(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="A target of the bundle.")],
    value: Annotated[float, typer.Argument(help="The probability from which an image is flagged.")],
    by: Annotated[str, typer.Option(help="Who sets it.")],
    basis: Annotated[str, typer.Option(help="From which data it was chosen.")],
    name: _Name = None,
) -> None:
    """Set the site's own threshold for a target of the active release, or of the installed bundle NAME."""
    from dicom_node import upgrade

    manifest, made = upgrade.set_threshold(context.obj.settings, target, value, set_by=by, basis=basis, name=name)
    typer.echo(
        f"{manifest.name} {manifest.release} flags {target} from {made.threshold:g} on: version {made.version}, "
        f"set by {made.set_by}; it holds for what is claimed from now on"
    )


def _folder(settings: Settings, name: str | None) -> Path:
    """The folder of the bundle of that name; without one, of that by which the ledger screens, or the settings'."""
    if name is not None:
        return find(name, settings)
    active = _ask(settings, lambda releases: releases.active())
    return find(settings.bundle, settings) if active is None else find_release(active, settings)


def _ask(settings: Settings, question: Callable[[Releases], _Answer]) -> _Answer | None:
    """What the ledger answers; None where there is none yet, or where it cannot be asked, which is then said."""
    from dicom_node.database import Database, sqlite_file
    from dicom_node.releases import Releases

    with closing(Database(settings.database_dsn)) as database:
        if (file := sqlite_file(database.url)) is not None and not file.exists():
            return None
        try:
            database.check_schema()
            return question(Releases(database))
        except NodeError as error:
            typer.echo(f"dicom-node: the ledger is not asked: {error}", err=True)
            return None


def _described(manifest: Manifest, folder: Path, thresholds: dict[str, SiteThreshold]) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "release": manifest.release,
        "title": manifest.title,
        "folder": str(folder),
        "targets": [
            {
                "name": target.name,
                "title": target.title,
                "members": target.weights,
                "operating_points": [
                    point.model_dump(mode="json")
                    | {"name": name, "in_force": name == target.operating_point and target.name not in thresholds}
                    for name, point in target.operating_points.items()
                ],
                "site_threshold": _told(thresholds[target.name]) if target.name in thresholds else None,
            }
            for target in manifest.targets
        ],
        "members": [
            {
                "name": member.name,
                "title": member.title,
                "version": member.version,
                "citation": member.citation,
                "weights": [part.model_dump(mode="json") for part in member.weights],
            }
            for member in manifest.members
        ],
    }


def _told(site: SiteThreshold) -> dict[str, Any]:
    return {
        "threshold": site.threshold,
        "version": site.version,
        "set_by": site.set_by,
        "basis": site.basis,
        "set_at": site.set_at.isoformat(),
    }


def _megabytes(folder: Path) -> float:
    try:
        return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6, 1)
    except OSError:
        return 0.0
