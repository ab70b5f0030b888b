"""What must hold of docker-compose.yml, Dockerfile and deploy/, read without a container engine."""

import json
import os
import re
import shutil
import subprocess
from importlib.metadata import requires
from pathlib import PurePosixPath

import pytest
import typer.main

from dicom_node import __version__
from dicom_node.cli import app
from dicom_node.config import CONFIG_VARIABLE, PREFIX, Settings, load
from tests.compose import FILE, OURS, ROOT, VARIABLE, ours, read, replicas, words

COMPOSE = read()
SERVICES = COMPOSE["services"]
LONG_RUNNING = {name: service for name, service in SERVICES.items() if name != "migrate"}
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DEPLOY = ROOT / "deploy"


def each(services):
    return pytest.mark.parametrize("service", services.values(), ids=services)


def parsed(arguments):
    """The command of the command line that takes these arguments; fails where there is none."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    command.make_context(command.name, arguments)
    return command.name


@each(LONG_RUNNING)
def test_a_long_running_service_is_watched_and_comes_back_by_itself(service):
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"


@each(ours(SERVICES))
def test_a_command_is_one_of_the_command_line(service):
    assert parsed(words(service["command"]))


@each(ours(LONG_RUNNING))
def test_a_health_check_asks_after_its_own_service(service):
    kind, program, *arguments = service["healthcheck"]["test"]
    assert (kind, program, arguments) == ("CMD", "dicom-node", ["health", words(service["command"])[0]])
    assert parsed(arguments) == "health"


def test_the_migration_runs_once_and_every_process_of_ours_waits_for_it():
    assert SERVICES["migrate"]["restart"] == "no"
    assert words(SERVICES["migrate"]["command"]) == ["db", "upgrade"]
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for service in ours(LONG_RUNNING).values():
        assert service["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_every_role_of_the_service_is_started():
    running = {words(service["command"])[0] for service in ours(LONG_RUNNING).values() if replicas(service)}
    assert running == {"listen", "worker", "deliver", "sweep", "retrieve", "web"}


def test_the_gpu_worker_is_of_a_profile_and_a_doctor_in_it_examines_its_device():
    gpu = SERVICES["worker-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert words(gpu["command"]) == ["worker", "--device", gpu["environment"]["DICOM_NODE_DEVICE"]]
    others = {name: value for name, value in gpu["environment"].items() if name != "DICOM_NODE_DEVICE"}
    assert others == SERVICES["worker"]["environment"]


@each(ours(SERVICES))
def test_every_variable_is_a_setting(service):
    known = {f"{PREFIX}{name.upper()}{end}" for name in Settings.model_fields for end in ("", "_FILE")}
    assert set(service["environment"]) <= known | {CONFIG_VARIABLE}


@each(SERVICES)
def test_no_password_stands_in_the_file(service):
    for name, value in service.get("environment", {}).items():
        assert not re.search(r"://[^/]*:[^/]*@", value)
        if re.search("PASSWORD|SECRET|USERS", name):
            assert name.endswith("_FILE")
            assert PurePosixPath(value).parent == PurePosixPath("/run/secrets")
            assert PurePosixPath(value).name in service["secrets"]


def test_every_secret_is_a_file_that_git_ignores_and_the_images_never_get():
    for secret in COMPOSE["secrets"].values():
        file = ROOT / secret["file"]
        assert subprocess.run(["git", "check-ignore", "-q", file], cwd=ROOT, timeout=30, check=False).returncode == 0
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in allowed
    assert not [line for line in allowed if line.startswith("!deploy")]


def test_make_secrets_makes_every_secret_once_and_keeps_it(tmp_path):
    (tmp_path / "deploy/secrets").mkdir(parents=True)
    script = shutil.copy(DEPLOY / "make-secrets", tmp_path / "deploy")
    made = []
    for _ in range(2):
        subprocess.run([script], check=True, timeout=30)
        made.append({path.name: path.read_text() for path in (tmp_path / "deploy/secrets").iterdir()})
    assert made[0] == made[1]
    assert set(made[0]) == {PurePosixPath(secret["file"]).name for secret in COMPOSE["secrets"].values()}
    assert len(set(made[0].values())) == len(made[0])
    assert re.fullmatch(r"[0-9a-f]{48}\n", made[0]["postgres_password.txt"])
    assert len(json.loads(made[0]["orthanc_users.txt"])["admin"]) == 48
    assert (tmp_path / "deploy/secrets").stat().st_mode & 0o777 == 0o700


def test_only_the_dicom_port_is_published_and_on_the_loopback_the_viewer_and_the_worklist():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "listener": ["0.0.0.0:11112:11112"],
        "orthanc": ["127.0.0.1:8042:8042"],
        "web": ["127.0.0.1:8080:8080"],
    }


def test_database_broker_and_workers_have_no_way_out():
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name in ("postgres", "redis", "worker", "worker-gpu", "sweep", "migrate"):
        assert SERVICES[name]["networks"] == ["inside"]
    assert SERVICES["orthanc"]["networks"] == ["dicom"]


@each(SERVICES)
def test_a_service_has_no_rights_that_it_does_not_need(service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    if not service["image"].startswith(OURS):
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])


@each(SERVICES)
def test_an_image_is_of_one_version(service):
    image, _, tag = service["image"].rpartition(":")
    if image.startswith(OURS):
        assert tag == __version__
        assert service["pull_policy"] == "never"
        assert f"AS {image.removeprefix(OURS)}\n" in DOCKERFILE
    else:
        assert re.match(r"\d+\.\d+", tag)


def test_each_image_is_built_by_one_service_that_is_always_there():
    """Where two build the same one at once, the second finds it there already, and the build fails."""
    builders = {name: service for name, service in SERVICES.items() if "build" in service}
    assert sorted(OURS + service["build"]["target"] for service in builders.values()) == sorted(
        {service["image"].partition(":")[0] for service in ours(SERVICES).values()}
    )
    for service in builders.values():
        assert service["image"].partition(":")[0] == OURS + service["build"]["target"]
        assert "profiles" not in service


def test_no_image_runs_as_root():
    final = DOCKERFILE.partition(" AS runtime\n")[2]
    assert re.findall(r"^USER (.*)$", final, re.MULTILINE) == ["10001:10001"]
    assert re.findall(r"^FROM (\S+) AS (?:listener|worker)$", final, re.MULTILINE) == ["runtime", "runtime"]


def test_the_images_hold_packages_by_hash_and_the_listener_s_no_torch():
    for target in ("listener", "worker"):
        assert f"pip install --require-hashes --requirement {target}.lock" in DOCKERFILE
        assert f"COPY --from={target}-packages /opt/cxr-node" in DOCKERFILE
    locked = (ROOT / "requirements/listener.lock").read_text()
    assert not re.findall(r"^(torch|torchvision|nvidia-\S*|triton)==", locked, re.MULTILINE)


@pytest.mark.parametrize("text", [DOCKERFILE, (DEPLOY / "install").read_text()], ids=["Dockerfile", "install"])
def test_what_builds_our_wheel_is_named_completely(text):
    named = set(re.search(r"wanted = /\^\((.*)\)==/", text)[1].split("|"))
    needed, found = {"hatchling"}, set()
    while needed - found:
        name = (needed - found).pop()
        found.add(name)
        listed = [text for text in requires(name) or () if "extra ==" not in text and "python_version" not in text]
        needed |= {re.match(r"[\w-]+", text)[0].lower() for text in listed}
    assert named == needed


def test_every_file_that_is_mounted_is_here_and_every_volume_declared():
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            if isinstance(volume, dict):
                assert volume["read_only"]
                assert volume["bind"] == {"create_host_path": False}
                assert (ROOT / volume["source"]).exists()
            else:
                assert volume.partition(":")[0] in COMPOSE["volumes"]


def test_the_example_of_an_env_file_has_every_variable_with_its_default():
    lines = [line for line in (DEPLOY / "example.env").read_text().splitlines() if not line.startswith("#")]
    example = dict(line.split("=", 1) for line in lines if line)
    assert example == {found[1]: found[2] for found in VARIABLE.finditer(FILE.read_text()) if found[1]}


def test_the_password_of_redis_is_in_no_command_line():
    script = SERVICES["redis"]["command"][-1]
    program, _, configuration = script.partition(" <<CONFIG\n")
    assert program.splitlines()[-1] == "exec redis-server -"
    assert script.count("requirepass") == 1
    assert configuration.startswith('requirepass "${password:?')


def test_a_worker_may_finish_the_screening_at_hand():
    limit = Settings.model_fields["step_timeout_s"].default
    for name in ("worker", "worker-gpu"):
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= limit + 10


def test_the_node_and_the_example_pacs_know_each_other(monkeypatch):
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    settings = load(DEPLOY / "node.toml")
    orthanc = json.loads((DEPLOY / "orthanc.json").read_text())
    [destination] = settings.destinations
    assert (destination.ae_title, destination.host) == (orthanc["DicomAet"], "orthanc")
    assert destination.port == orthanc["DicomPort"]
    port = int(SERVICES["listener"]["environment"]["DICOM_NODE_PORT"])
    assert orthanc["DicomModalities"] == {"cxrscreen": [settings.ae_title, "listener", port]}
    [rule] = orthanc["LuaScripts"]
    assert rule in [volume["target"] for volume in SERVICES["orthanc"]["volumes"] if isinstance(volume, dict)]


def test_the_example_pacs_routes_by_the_rule_that_the_document_prints():
    document = (ROOT / "docs/deployment.md").read_text()
    rule = (DEPLOY / "cxrscreen.lua").read_text()
    assert rule == re.search(r"^```lua\n(.*?)^```", document, re.MULTILINE | re.DOTALL)[1]
