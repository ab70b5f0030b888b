"""`dicom-node doctor`: looks at everything that a node needs, and says in one line each what to do.

Nothing is changed but for a probe file in the archive, which is removed again; no password and no patient's data is
read or shown. Each check has its time limit.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from dicom_node.config import CONFIG_VARIABLE, PREFIX
from dicom_node.doctor import machine, network, sources
from dicom_node.doctor.finding import Finding, Level, failure, ok, warning
from dicom_node.doctor.stores import Stores
from dicom_node.domain import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from dicom_node.config import Settings

_LIMIT_S = 10.0
_LIMITS_S = {
    "device": machine.DEVICE_ANSWER_S + 5.0,
    "networks": machine.NETWORKS_ANSWER_S + 5.0,
}  # torch alone may take most of a minute to load
_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "bold red"}
_WIDTH = 14


def report(settings: Settings, *, as_json: bool, config: Path | None = None) -> bool:
    """The findings are printed, each when it is there, or all as one JSON document; whether none is a failure."""
    findings = []
    console = Console()
    for finding in examine(settings, config):
        findings.append(finding)
        if not as_json:
            line = Text.assemble((f"{finding.level:<8} ", _STYLES[finding.level]), f"{finding.check:<{_WIDTH}} ")
            line.append(finding.what + (f" -> {finding.remedy}" if finding.remedy else ""))
            console.print(line, soft_wrap=True)
    count = {level: sum(finding.level is level for finding in findings) for level in Level}
    if as_json:
        document = {"ok": not count[Level.FAILURE], "findings": [asdict(finding) for finding in findings]}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        console.print(f"failures: {count[Level.FAILURE]}, warnings: {count[Level.WARNING]}", soft_wrap=True)
    return not count[Level.FAILURE]


def examine(settings: Settings, config: Path | None = None, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """What is found, in the order in which things depend on each other; never raises, and each check has its limit.

    A check that needs what an earlier one found to be broken is left out. `config` is the settings' file.
    """
    stores = Stores(settings)
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("settings", partial(_settings, settings, config)),
        ("database", stores.database),
        ("schema", stores.schema),
        ("release", stores.release),
        ("broker", stores.broker),
        ("archive", stores.archive),
        ("archive owner", stores.owner),
        ("bundle", lambda: machine.bundle(settings, stores.bundle_folder)),
        ("device", partial(machine.device, settings)),
        ("networks", lambda: machine.networks(settings, stores.bundle_folder)),
        ("clock", lambda: machine.clock(stores.clock_offsets_s(now), now())),
        ("listener", partial(network.listener, settings)),
        *((f"peer {peer.name}", partial(network.peer, settings, peer)) for peer in settings.peers),
        *((f"source {peer.name}", partial(sources.source, settings, peer)) for peer in settings.sources),
    ]
    try:
        for name, check in checks:
            yield from _bounded(name, check)
    finally:
        stores.close()


def _bounded(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The check's findings; one of ours where it breaks, or takes longer than it may, and is then left alone."""
    limit_s = _LIMITS_S.get(name, _LIMIT_S)
    found: list[Finding] = []

    def run() -> None:
        try:
            found.extend(check())
        except OSError as error:  # such as a folder that this user may not enter
            where = f"{error.filename}: " if error.filename else ""
            told = error.strerror or type(error).__name__
            found.append(
                failure(name, f"{where}{told}", "see the owner and the rights of each folder on the way to it")
            )
        except Exception as error:  # a fault of this program, or of a library: the other checks go on
            found.append(failure(name, f"the check itself failed ({place_of(error)})", "report it, with this line"))

    thread = threading.Thread(target=run, daemon=True, name=f"doctor: {name}")
    thread.start()
    thread.join(limit_s)
    late = thread.is_alive()
    yield from tuple(found)
    if late:
        yield failure(name, f"no answer within {limit_s:.0f} s", "something hangs: a name server, a mount, a driver?")


def _settings(settings: Settings, config: Path | None) -> Iterator[Finding]:
    """What was read; a wrong setting has ended the command before."""
    file = config or os.environ.get(CONFIG_VARIABLE)
    variables = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name != CONFIG_VARIABLE)
    read = [str(file)] if file else []
    read += variables
    yield ok("settings", f"read from {', '.join(read)}" if read else "all are defaults: no file, no variable")
    if not settings.destinations:
        yield warning(
            "settings", "results are sent to nobody: they stay in the archive", "set destination = true for a peer"
        )
