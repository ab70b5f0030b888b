"""A real node, started by the command line, and what a test asks of it and of a real Orthanc."""

import contextlib
import itertools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import redis
from pydicom import dcmread

from dicom_node.config import Peer, load
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

    bundle = "starter"  # of a node that is given none; in a test, a small one

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
            "health_dir": str(folder / "health"),
            "bundle": self.bundle,
            "study_quiet_s": 0.2,
            "commit_timeout_s": 1.0,  # Orthanc reports to the node that it was told of last
            "web": {"port": 0},
            **settings,
        }
        text = "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
        for peer in introduced(peers, self.port):
            text += "\n[[peers]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in peer.items())
        self.config = folder / "node.toml"
        self.config.write_text(text)
        self.process = None
        self._database = None

    @property
    def database(self):
        if self._database is None:
            self._database = Database(load(self.config).database_dsn)
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


_BROKERS = itertools.cycle(range(1, 15))


class Service(Node):
    """The same node as separate processes, two workers among them, on a real PostgreSQL and a real Redis."""

    ROLES = ("listen", "worker", "worker", "deliver", "sweep")

    def __init__(self, folder, postgres, server, *peers, **settings):
        self._postgres = postgres
        self._name = f"cxr_{secrets.token_hex(6)}"
        postgres.create_database(self._name)
        self._broker = f"{server.url.removesuffix('/0')}/{next(_BROKERS)}"  # a part of its own: others may run
        self._broker_password = server.password
        with self.broker() as client:
            client.flushdb()  # of the node before
        super().__init__(
            folder,
            *peers,
            **{
                "database_url": postgres.url(self._name),
                "database_password": postgres.password,
                "broker_url": self._broker,
                "broker_password": server.password,
                "threads": 1,
            }
            | settings,
        )
        self.run("db", "upgrade", check=True)
        self.processes = []
        self.log = SimpleNamespace(read_text=lambda: self.logs)

    def broker(self):
        """A client of this node's own part of Redis."""
        return redis.Redis.from_url(self._broker, password=self._broker_password)

    def start(self, roles=ROLES):
        """Every process says that it is ready; `process` is the last, which starts when the others are."""
        *others, last = roles
        for index in [self.start_one(role, wait=False) for role in others]:
            self.await_ready(index)
        self.start_one(last)
        return self

    def start_one(self, role, *, wait=True):
        """One more process of a role; its index in `processes`."""
        log = self.folder / f"{role}-{len(self.processes)}.log"
        with log.open("w") as output:
            self.process = subprocess.Popen(self.command(role), stdout=output, stderr=subprocess.STDOUT)
        self.processes.append((role, self.process, log))
        if wait:
            self.await_ready(len(self.processes) - 1)
        return len(self.processes) - 1

    def await_ready(self, index):
        role, process, log = self.processes[index]
        wait_until(
            lambda: "ready" in log.read_text().splitlines() or process.poll() is not None, timeout_s=120, what=role
        )
        assert process.poll() is None, log.read_text()[-2000:]

    def stop_one(self, role):
        process = self.living(role)[0]
        process.terminate()
        assert process.wait(60) == 0

    @property
    def logs(self):
        return "".join(log.read_text() for _, _, log in self.processes)

    def living(self, role):
        """The processes of a role that run."""
        return [process for name, process, _ in self.processes if name == role and process.poll() is None]

    def worker_children(self):
        """Process ids of the workers' own processes, which hold the weights."""
        parents = {process.pid for process in self.living("worker")}
        return [pid for parent, pid in _roles() if parent in parents]

    def children(self):
        """Process ids by role, as of the embedded node."""
        found = {role: self.living(role)[0].pid for role in ("listen", "deliver", "sweep") if self.living(role)}
        return found | {"work": self.worker_children()[0]}

    def stop(self):
        running = [process for _, process, _ in self.processes if process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            process.wait(60)
        super().stop()
        self._postgres.drop_database(self._name)


def _roles():
    """Parent and process id of every child of a node's process."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if "role" in (folder / "cmdline").read_bytes().decode().split("\0"):
                    yield int((folder / "stat").read_text().rpartition(")")[2].split()[1]), int(folder.name)


def _toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {json.dumps(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


def source(pacs, *ways, **changed):
    """Orthanc as a peer from which runs fetch in these ways, and by QIDO-RS where the first of them is by the web."""
    return destination(pacs) | {
        "retrieve": list(ways),
        "find": "web" if ways[0] == "web" else "dicom",
        "web_url": f"http://127.0.0.1:{pacs.http_port}/dicom-web",
        **changed,
    }


def destination(pacs, **changed):
    return {
        "name": "pacs",
        "ae_title": pacs.ae_title,
        "host": pacs.host,
        "port": pacs.port,
        "destination": True,
        "pacs": pacs,
    } | changed


def introduced(peers, port):
    """The peers as settings; each Orthanc among them reports to this node from now on, and to none before it."""
    for peer in peers:
        if isinstance(pacs := peer.get("pacs"), OrthancPacs):
            pacs.introduce(Peer(name="node", ae_title="CXRSCREEN", host="127.0.0.1", port=port))
    return [{key: value for key, value in peer.items() if key != "pacs"} for peer in peers]


def dcmsend(port, *paths, called="CXRSCREEN"):
    """DCMTK sends the files; returns 0 where every one was answered Success or a warning, and the output."""
    done = subprocess.run(
        ["dcmsend", "-v", "-aec", called, "127.0.0.1", str(port), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"TCP_NODELAY": "1"},
        check=False,
    )
    output = done.stdout + done.stderr
    refused = re.search(r"with status (?!SUCCESS|WARNING)", output) is not None  # its own exit status is 0 then
    return done.returncode or int(refused), output


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


def forget(pacs: OrthancPacs, orthanc_id):
    """The PACS has lost an instance."""
    url = f"http://127.0.0.1:{pacs.http_port}/instances/{orthanc_id}"
    urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=10).close()


def results(pacs, study_uid):
    """How many reports and how many heatmaps of ours a study has in the PACS."""
    held = [kind for kind, modality, _, _ in instances(pacs, study_uid) if modality in ("SR", "OT")]
    return held.count(COMPREHENSIVE_3D_SR), held.count(SECONDARY_CAPTURE)
