"""The documents say what the code does."""

import json
import re
from pathlib import Path

import pytest
import typer.main
from pydantic import SecretStr

from dicom_node.cli import app
from dicom_node.config import Settings
from dicom_node.domain import DeclineReason

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def shown(value):
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, tuple) or value == "":
        return ""
    return f"`{json.dumps(value) if isinstance(value, bool) else value}`"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_stands_in_the_readme_with_its_default(name):
    field = Settings.model_fields[name]
    assert f"| `{name}` | {shown(field.default)} | {field.description} |" in README


def test_the_readme_lists_no_setting_that_is_gone():
    table = README.partition("### Settings")[2].partition("\n\nOf a peer")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(Settings.model_fields)


@pytest.mark.parametrize("reason", DeclineReason)
def test_every_reason_to_decline_stands_in_the_readme(reason):
    assert f"`{reason}`" in README


def test_every_command_in_the_readme_exists():
    commands = typer.main.get_command(app).commands
    named = set(re.findall(r"^dicom-node (?:--config \S+ )?(\w+)", README, re.MULTILINE))
    assert named
    assert named <= set(commands)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", README, re.MULTILINE)) <= targets


@pytest.mark.parametrize("document", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=str)
def test_every_relative_link_leads_somewhere(document):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name}: {target}"
