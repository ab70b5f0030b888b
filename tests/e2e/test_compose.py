"""docker-compose.yml without a container engine: the commands, environments, health checks and configuration files that
it names, run as processes of this machine."""

import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import psycopg
import pytest

from dicom_node.config import PREFIX
from dicom_node.database import Database
from dicom_node.demo.instances import phantom_dataset
from dicom_node.demo.pacs import OrthancPacs, free_port
from dicom_node.process import dying_with_this_process
from dicom_node.roles import READY
from tests.compose import ROOT, ours, read, replicas, words
from tests.conftest import missing
from tests.e2e.harness import dcmsend, results, wait_until
from tests.servers import PostgresServer, find_postgres, find_redis

SERVICES = read()["services"]
RUNNING = {name: service for name, service in ours(SERVICES).items() if replicas(service) and name != "migrate"}


class Containers:
    """What the file's services would be, as processes: `local` is all that differs from the file.

    PostgreSQL and Orthanc are the given ones; Redis is started by the file's own command.
    """

    def __init__(self, folder, postgres, database, pacs):
        self.folder = folder
        self.redis_port, self.port, self.web_port = free_port(), free_port(), free_port()
        self._postgres, self._database, self._pacs = postgres, database, pacs
        self.processes = {}
        for name in ("secrets", "data", "archive"):
            (folder / name).mkdir()
        (folder / "secrets/postgres_password").write_text(postgres.password + "\n")
        (folder / "secrets/redis_password").write_text("as-made-by-make-secrets\n")
        site = (ROOT / "deploy/node.toml").read_text()
        (folder / "node.toml").write_text(
            site.replace('host = "orthanc"', 'host = "127.0.0.1"').replace("4242", str(pacs.port))
        )

    def local(self, text, service):
        """A value of the file with this machine's addresses and paths; each container has a /tmp of its own."""
        table = {
            "@postgres/cxr": f"@127.0.0.1:{self._postgres.port}/{self._database}",
            "redis://redis:6379": f"redis://127.0.0.1:{self.redis_port}",
            "redis-cli": f"redis-cli -p {self.redis_port}",
            "11112": str(self.port),
            '"0.0.0.0", "trusted_network": true': f'"0.0.0.0", "trusted_network": true, "port": {self.web_port}',
            # With `set-proc-title`, Redis would hide what its command line was.
            "dir /data": f"dir {self.folder}/data\nbind 127.0.0.1\nport {self.redis_port}\nset-proc-title no",
            "/run/secrets": f"{self.folder}/secrets",
            "/etc/cxr-node": f"{self.folder}",
            "/var/lib/cxr-node": f"{self.folder}",
            "/tmp": f"{self.folder}/{service}",  # noqa: S108
            "--host=127.0.0.1": f"--host=127.0.0.1 --port={self._postgres.port}",
        }
        return re.sub("|".join(map(re.escape, table)), lambda found: table[found[0]], text)

    def command(self, service):
        if service in ours(SERVICES):
            return [sys.executable, "-m", "dicom_node", *words(SERVICES[service]["command"])]
        return [self.local(word, service) for word in SERVICES[service]["command"]]

    def environment(self, service):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        wanted = SERVICES[service].get("environment", {})
        return kept | {name: self.local(value, service) for name, value in wanted.items()}

    def run(self, service, command=None):
        return subprocess.run(
            command or self.command(service),
            env=self.environment(service),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def health(self, service):
        kind, *check = SERVICES[service]["healthcheck"]["test"]
        if kind == "CMD-SHELL":
            return self.run(service, ["sh", "-c", self.local(check[0], service)])
        if check[0] == "dicom-node":
            return self.run(service, [sys.executable, "-m", "dicom_node", *check[1:]])
        programs = find_postgres()
        return self.run(service, [str(programs / check[0]), *words(self.local(" ".join(check[1:]), service))])

    def start(self, service):
        with (self.folder / f"{service}.log").open("w") as log:
            self.processes[service] = subprocess.Popen(
                dying_with_this_process(self.command(service)),
                env=self.environment(service),
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )

    def await_healthy(self, service):
        process, log = self.processes[service], self.folder / f"{service}.log"
        ready = "Ready to accept connections" if service == "redis" else READY

        def healthy():  # each check is a process: no use before this one says that it is ready
            return ready in log.read_text() and self.health(service).returncode == 0

        try:
            wait_until(lambda: process.poll() is not None or healthy(), timeout_s=120, poll_s=0.2)
        except AssertionError as error:
            error.add_note(f"{service}: {log.read_text()[-2000:]}")
            raise
        assert process.poll() is None, log.read_text()[-2000:]

    def kill(self):
        for process in self.processes.values():
            process.kill()
            process.wait()

    def stop(self, service):
        """The exit status, after the signal that the engine sends."""
        process = self.processes[service]
        process.terminate()
        return process.wait(float(SERVICES[service].get("stop_grace_period", "10s").removesuffix("s")))


@pytest.fixture(scope="module")
def containers(orthanc_program, dcmtk, postgres_server, tmp_path_factory):
    """The services that are up by default, each healthy, beside an Orthanc with the configuration of the file's."""
    if find_redis() is None:
        missing("Redis is not installed (Debian: apt-get install redis-server)")
    database = "cxr_compose"
    postgres_server.create_database(database)
    folder = tmp_path_factory.mktemp("compose")
    pacs = OrthancPacs(folder / "orthanc", ae_title="ORTHANC")
    found = Containers(folder, postgres_server, database, pacs)
    configuration = (ROOT / "deploy/orthanc.json").read_text()
    for there, here in (
        ('"listener", 11112', f'"127.0.0.1", {found.port}'),
        ("4242", str(pacs.port)),
        ("/etc/orthanc/", f"{ROOT}/deploy/"),
    ):
        assert there in configuration
        configuration = configuration.replace(there, here)
    with contextlib.ExitStack() as stack:
        stack.callback(postgres_server.drop_database, database)
        found.pacs = stack.enter_context(
            OrthancPacs(pacs.folder, port=pacs.port, http_port=pacs.http_port, extra=json.loads(configuration))
        )
        stack.callback(found.kill)
        found.start("redis")
        found.await_healthy("redis")
        assert found.health("postgres").returncode == 0
        migrated = found.run("migrate")
        assert migrated.returncode == 0, migrated.stderr
        for service in RUNNING:
            assert found.health(service).returncode == 1
            found.start(service)
        for service in RUNNING:
            found.await_healthy(service)
        yield found


def put(pacs, path):
    """A film, as the viewer's upload sends it."""
    request = urllib.request.Request(f"http://127.0.0.1:{pacs.http_port}/instances", path.read_bytes())
    urllib.request.urlopen(request, timeout=30).close()  # noqa: S310


def new_film(folder):
    ds = phantom_dataset(0, fresh_uids=True)
    path = folder / "film.dcm"
    ds.save_as(path, enforce_file_format=True)
    return ds, path


def test_a_film_that_is_put_into_the_example_pacs_gets_its_report_and_heatmap_there(containers, tmp_path):
    ds, path = new_film(tmp_path)
    put(containers.pacs, path)
    wait_until(lambda: results(containers.pacs, ds.StudyInstanceUID) == (1, 1), poll_s=0.5, what="SR and SC")


def test_a_film_that_is_sent_to_the_published_port_comes_back_too(containers, tmp_path):
    ds, path = new_film(tmp_path)
    assert dcmsend(containers.port, path)[0] == 0
    wait_until(lambda: results(containers.pacs, ds.StudyInstanceUID) == (1, 1), poll_s=0.5, what="SR and SC")


def test_redis_wants_the_password_and_tells_it_to_no_list_of_processes(containers):
    done = containers.run("redis", ["redis-cli", "-p", str(containers.redis_port), "ping"])
    assert "NOAUTH" in done.stdout
    secret = (containers.folder / "secrets/redis_password").read_text().strip()
    listed = {}
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # processes come and go
            listed[int(file.parent.name)] = file.read_text(errors="replace")
    assert listed[containers.processes["redis"].pid].split("\0") == ["redis-server", "-", ""]
    assert not [text for text in listed.values() if secret in text]


def test_the_first_start_of_the_database_makes_a_role_without_rights_and_leaves_no_other_password(tmp_path):
    if find_postgres() is None:
        missing("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    secret = tmp_path / "postgres_password"
    secret.write_text('quo\'ted\\ "as" made by hand\n')
    script = tmp_path / "cxr.sql"
    script.write_text(
        (ROOT / "deploy/postgres-init.sql").read_text().replace("/run/secrets/postgres_password", str(secret))
    )
    with PostgresServer(fsync=False) as server:
        with server.admin() as admin:  # a cluster as the container finds it
            admin.execute("DROP DATABASE cxr")
            admin.execute("DROP ROLE cxr")
        at = ["--host=127.0.0.1", f"--port={server.port}", "--username=postgres", "--dbname=postgres"]
        subprocess.run(
            [find_postgres() / "psql", "--set=ON_ERROR_STOP=1", "--no-psqlrc", *at, f"--file={script}"],
            env=os.environ | {"PGPASSWORD": server.password},
            check=True,
            timeout=60,
        )
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            server.admin()
        server.password = secret.read_text().strip()
        with psycopg.connect(server.dsn()) as connection:
            (rights,) = connection.execute("SELECT to_jsonb(r) FROM pg_roles r WHERE rolname = current_user").fetchone()
            assert {name for name, value in rights.items() if value is True} == {"rolinherit", "rolcanlogin"}
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("COPY (SELECT 1) TO PROGRAM 'true'")
        with contextlib.closing(Database(server.dsn())) as database:
            database.upgrade()
            database.check_schema()


def test_a_password_that_is_missing_ends_the_start_with_one_line(containers, tmp_path):
    environment = containers.environment("migrate")
    for name, content, told in (("absent", None, "cannot be read"), ("empty", "", "is empty")):
        file = tmp_path / name
        if content is not None:
            file.write_text(content)
        done = subprocess.run(
            containers.command("migrate"),
            env=environment | {"DICOM_NODE_DATABASE_PASSWORD_FILE": str(file)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "DICOM_NODE_DATABASE_PASSWORD_FILE" in done.stderr
        assert told in done.stderr
    (tmp_path / "redis_password").touch()
    script = [word.replace(f"{containers.folder}/secrets", str(tmp_path)) for word in containers.command("redis")]
    done = containers.run("redis", script)
    assert done.returncode == 2
    assert "deploy/secrets/redis_password.txt is empty" in done.stderr


def test_every_process_ends_in_order_within_its_grace_period(containers):
    assert {service: containers.stop(service) for service in RUNNING} == dict.fromkeys(RUNNING, 0)
    assert containers.stop("redis") == 0
