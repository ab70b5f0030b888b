"""A real browser, to see what a page is to its readers: without a window, and without a way out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_ITSELF = "not an origin"  # who began a request that the browser makes for itself
_ALONE = (
    "--headless=new",
    "--no-sandbox",  # containers and root have none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


@dataclass(frozen=True)
class Seen:
    """What came of a page: its document after the browser has made it, what it complained of, whom it asked."""

    document: str
    complaints: tuple[str, ...]
    requests: tuple[str, ...]


class Browser:
    """Chromium by its command line."""

    def __init__(self, program: str) -> None:
        self._program = program

    def look(self, page: Path) -> Seen:
        """The page was loaded and laid out."""
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "net.json"
            done = self._run(
                folder, "--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom", page.resolve().as_uri()
            )
            events = json.loads(log.read_text())
        start = events["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
        begun = [one.get("params", {}) for one in events["events"] if one["type"] == start]
        complaints = tuple(re.findall(r"CONSOLE[^\n]*", done.stderr))
        asked = tuple(one["url"] for one in begun if "url" in one and one["initiator"] != _ITSELF)
        return Seen(done.stdout, complaints, tuple(url for url in asked if not url.startswith(("file:", "data:"))))

    def picture(self, page: Path, file: Path, *, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """`file` is a PNG of the page's upper `height` pixels."""
        with tempfile.TemporaryDirectory() as folder:
            self._run(
                folder,
                *(("--blink-settings=preferredColorScheme=0",) if dark else ()),
                f"--window-size={width},{height}",
                f"--force-device-scale-factor={scale:g}",
                f"--screenshot={file.resolve()}",
                page.resolve().as_uri(),
            )

    def pdf(self, page: Path, file: Path) -> None:
        """`file` is the page as it is printed."""
        with tempfile.TemporaryDirectory() as folder:
            self._run(folder, "--no-pdf-header-footer", f"--print-to-pdf={file.resolve()}", page.resolve().as_uri())

    def _run(self, profile: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self._program, *_ALONE, f"--user-data-dir={profile}/profile", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def find_program() -> str | None:
    """The machine's Chromium; None where there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def find_browser() -> Browser | None:
    """The machine's Chromium by its command line; None where there is none."""
    found = find_program()
    return None if found is None else Browser(found)
