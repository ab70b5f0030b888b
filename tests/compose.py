"""docker-compose.yml as the tests read it: variables have their defaults, and `$$` is a dollar."""

import re
import shlex
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yml"
OURS = "cxr-dicom-node/"
VARIABLE = re.compile(r"\$(?:\$|\{(\w+):-([^}]*)\})")


def read():
    """The file's content."""
    return _filled(yaml.safe_load(FILE.read_text()))


def ours(services):
    """The services that run this program, those of which none is started by default too."""
    return {name: service for name, service in services.items() if service["image"].startswith(OURS)}


def words(command):
    """A command's arguments."""
    return shlex.split(command) if isinstance(command, str) else list(command)


def replicas(service):
    """How many of a service are started where no profile is asked for."""
    return 0 if "profiles" in service else int(service.get("deploy", {}).get("replicas", 1))


def _filled(value):
    if isinstance(value, dict):
        return {key: _filled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item) for item in value]
    if isinstance(value, str):
        return VARIABLE.sub(lambda found: found[2] if found[1] else "$", value)
    return value
