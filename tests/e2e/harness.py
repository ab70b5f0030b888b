"""A real node, started by the command line, and what a test asks of it and of a real Orthanc."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from pydicom import dcmread

from dicom_node.database import Database
from dicom_node.demo.pacs import OrthancPacs, free_port
from dicom_node.ledger import Ledger
from dicom_node.node import READY_LINE

COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def wait_until(condition, *, timeout_s=60.0, poll_s=0.02, what="the condition"):
    """The condition's first true value; fails the test after the timeout."""
    give_up_at = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at:
        if found := condition():
            return found
        time.sleep(poll_s)
    raise AssertionError(f"{what} did not come within {timeout_s} s")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Node:
    """`dicom-node up` in a folder of its own."""

    def __init__(self, folder, *peers, **settings):
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.log = folder / "node.log"
        self.archive = folder / "archive"
        values = {
            "port": self.port,
            "database_url": f"sqlite:///{folder / 'ledger.sqlite'}",
            "archive_dir": str(self.archive),
            **settings,
        }
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        for peer in peers:
            text += "\n[[peers]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in peer.items())
        self.config = folder / "node.toml"
        self.config.write_text(text)
        self.process = None
        self._database = None

    @property
    def database(self):
        if self._database is None:
            self._database = Database(f"sqlite:///{self.folder / 'ledger.sqlite'}")
        return self._database

    @property
    def ledger(self):
        return Ledger(self.database)

    def command(self, *arguments):
        return [sys.executable, "-m", "dicom_node", "--config", str(self.config), *arguments]

    def start(self, **options):
        """The node is up, every role ready."""
        before = self.log.read_text().count(READY_LINE) if self.log.exists() else 0
        with self.log.open("a") as output:
            self.process = subprocess.Popen(self.command("up"), stdout=output, stderr=subprocess.STDOUT, **options)
        wait_until(
            lambda: self.log.read_text().count(READY_LINE) > before or self.process.poll() is not None,
            timeout_s=120,
            what="the node",
        )
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        return self

    def children(self):
        """Process ids by role."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().decode().split("\0")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and "role" in words:
                    found[words[words.index("role") + 1]] = int(folder.name)
        return found

    def sigkill(self):
        """The parent was killed, and its children ended with it."""
        children = self.children()
        for pid in children.values():  # a stopped process dies of SIGKILL too, but only ours may be stopped here
            assert alive(pid)
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not any(map(alive, children.values())), timeout_s=5, what="the children's end")

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)
        if self._database is not None:
            self._database.close()

    def run(self, *arguments, check=False, **options):
        """A further command with the node's settings."""
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=120, check=check, **options
        )

    def status(self):
        return json.loads(self.run("status", "--json").stdout)

    def await_ended(self, uid, timeout_s=60):
        """The summary of an instance whose screening has ended."""

        def ended():
            summary = self.ledger.summary(uid)
            return summary if summary and summary.state in ("delivered", "withheld", "declined", "failed") else None

        return wait_until(ended, timeout_s=timeout_s, what=f"the end of {uid}")


def destination(pacs, **changed):
    return {
        "name": "pacs",
        "ae_title": pacs.ae_title,
        "host": pacs.host,
        "port": pacs.port,
        "destination": True,
    } | changed


def dcmsend(port, *paths, called="CXRSCREEN"):
    """DCMTK sends the files; returns its exit status and output."""
    done = subprocess.run(
        ["dcmsend", "-v", "-aec", called, "127.0.0.1", str(port), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"TCP_NODELAY": "1"},
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def instances(pacs: OrthancPacs, study_uid):
    """What a real Orthanc holds of a study: a list of (SOP Class UID, Modality, SOP Instance UID, Orthanc id)."""
    query = {"Level": "Instance", "Expand": True, "Query": {"StudyInstanceUID": study_uid}}
    request = urllib.request.Request(f"http://127.0.0.1:{pacs.http_port}/tools/find", json.dumps(query).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        found = json.load(answer)
    listed = []
    for entry in found:
        ds = download(pacs, entry["ID"])
        listed.append((str(ds.SOPClassUID), str(ds.get("Modality", "")), str(ds.SOPInstanceUID), entry["ID"]))
    return listed


def download(pacs: OrthancPacs, orthanc_id, path=None):
    url = f"http://127.0.0.1:{pacs.http_port}/instances/{orthanc_id}/file"
    with urllib.request.urlopen(url, timeout=10) as answer:
        content = answer.read()
    if path is not None:
        path.write_bytes(content)
        return dcmread(path)
    from io import BytesIO

    return dcmread(BytesIO(content))


def results(pacs, study_uid):
    """How many reports and how many heatmaps of ours a study has in the PACS."""
    held = [kind for kind, modality, _, _ in instances(pacs, study_uid) if modality in ("SR", "OT")]
    return held.count(COMPREHENSIVE_3D_SR), held.count(SECONDARY_CAPTURE)
