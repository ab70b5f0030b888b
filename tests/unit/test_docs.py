"""The documents say what the code does."""

import ast
import json
import re
from pathlib import Path

import pytest
import typer.main
from pydantic import SecretStr

from dicom_node.cli import app
from dicom_node.config import Peer, Retrospective, Settings, Web, Worklist, load
from dicom_node.domain import DeclineReason, DeliveryState, State

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text()


def shown(value):
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, (tuple, dict, Retrospective, Web, Worklist)) or value == "":
        return ""
    return f"`{json.dumps(value) if isinstance(value, bool) else value}`"


def shown_key(field):
    if field.is_required() or isinstance(field.default, SecretStr):
        return ""
    return f"`{json.dumps(field.default)}`"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_stands_in_the_readme_with_its_default(name):
    field = Settings.model_fields[name]
    assert f"| `{name}` | {shown(field.default)} | {field.description} |" in README


def test_the_readme_lists_no_setting_that_is_gone():
    table = README.partition("### Settings")[2].partition("\n\nOf a peer")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(Settings.model_fields)


@pytest.mark.parametrize("name", Peer.model_fields)
def test_every_key_of_a_peer_stands_in_the_readme_with_its_default(name):
    field = Peer.model_fields[name]
    assert f"| `{name}` | {shown_key(field)} | {field.description} |" in README


@pytest.mark.parametrize(
    ("table", "name"), [(table, name) for table in (Retrospective, Worklist, Web) for name in table.model_fields]
)
def test_every_key_of_a_table_stands_in_the_readme_with_its_default(table, name):
    field = table.model_fields[name]
    assert f"| `{name}` | {shown_key(field)} | {field.description} |" in README


@pytest.mark.parametrize("state", [*State, *DeliveryState])
def test_every_state_stands_in_the_readme(state):
    (drawn,) = re.findall(r"^```\n(.*?)^```", README.partition("## Design notes")[2], re.MULTILINE | re.DOTALL)
    assert re.search(rf"\b{state}\b", drawn)


@pytest.mark.parametrize("state", DeliveryState)
def test_the_deployment_document_says_what_each_state_of_a_delivery_means(state):
    table = DEPLOYMENT.partition("### Proof of delivery")[2].partition("\n### ")[0]
    assert f"| `{state}` |" in table


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


def invocations(text):
    """The arguments of every `dicom-node ...` in a code block or between backticks, a loop's `$role` as each role."""
    known = "|".join(typer.main.get_command(app).commands)
    for line in re.findall(rf"dicom-node ((?:--config|{known})\b[^`\n|]*)", text):
        words = re.sub(r">>.*|%i.*", "", line).split()
        for role in ("listen", "worker", "deliver", "sweep") if "$role" in words else ("",):
            yield [role if word == "$role" else word for word in words]


def test_every_command_in_the_deployment_document_exists_with_its_options():
    found = list(invocations(DEPLOYMENT))
    assert ["db", "upgrade"] in [words[2:] for words in found]
    for words in found:
        command, rest = typer.main.get_command(app), list(words)
        while rest:
            word = rest.pop(0)
            if word.startswith("--"):
                options = {name: option for option in command.params for name in option.opts}
                assert word in options, words
                if not options[word].is_flag:
                    rest.pop(0)
            elif hasattr(command, "commands"):
                assert word in command.commands, words
                command = command.commands[word]
            else:
                assert any(parameter.param_type_name == "argument" for parameter in command.params), words


def test_what_the_deployment_document_quotes_of_the_doctor_is_what_it_says():
    """Each piece of text between the placeholders in italics is part of a string of the program."""
    table = DEPLOYMENT.partition("| check | what it says | what to do |\n| --- | --- | --- |\n")[2].partition("\n\n")[0]
    strings = [
        node.value
        for file in sorted([*ROOT.glob("dicom_node/**/*.py"), ROOT / "workers" / "golden.py"])
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    rows = [line.split(" | ") for line in table.splitlines()]
    assert len(rows) > 20
    for _, says, _ in rows:
        for quoted in re.split(r";|\*[^*]*\*", says):
            assert any(quoted.strip() in string for string in strings), quoted


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/conformance-statement.md",
        "docs/deployment.md",
        "docs/reading-a-report.md",
    ],
)
def test_no_line_of_prose_is_longer_than_one_of_code_may_be(document):
    prose = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")]


def test_the_settings_in_the_deployment_document_load(tmp_path, monkeypatch):
    (toml,) = re.findall(r"node\.toml <<'END'\n(.*?)^END$", DEPLOYMENT, re.MULTILINE | re.DOTALL)
    (tmp_path / "node.toml").write_text(toml)
    (variables,) = re.findall(r"environment <<'END'\n(.*?)^END$", DEPLOYMENT, re.MULTILINE | re.DOTALL)
    for line in variables.split():
        variable, _, value = line.partition("=")
        if variable.startswith("DICOM_NODE_"):
            file = tmp_path / Path(value).name
            file.write_text("secret\n")
            monkeypatch.setenv(variable, str(file))
    settings = load(tmp_path / "node.toml")
    assert settings.database_dsn == "postgresql://cxr:secret@127.0.0.1:5432/cxr"
    assert settings.broker_dsn == "redis://:secret@127.0.0.1:6379/0"
    assert [peer.name for peer in settings.destinations] == ["pacs"]


def test_what_the_deployment_document_tells_the_pacs_is_what_its_settings_say():
    (keys,) = re.findall(r"^```json\n(.*?)^```", DEPLOYMENT, re.MULTILINE | re.DOTALL)
    ((alias, (ae_title, host, port)),) = json.loads(keys)["DicomModalities"].items()
    rules = re.findall(r"^```lua\n(.*?)^```", DEPLOYMENT, re.MULTILINE | re.DOTALL)
    assert len(rules) == 2
    assert all(f"'/modalities/{alias}/store'" in rule for rule in rules)
    assert (ae_title, port) == (Settings().ae_title, Settings().port)
    assert f"echoscu -aec {ae_title} {host} {port}" in DEPLOYMENT


@pytest.mark.parametrize("document", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=str)
def test_every_relative_link_leads_somewhere(document):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name}: {target}"
