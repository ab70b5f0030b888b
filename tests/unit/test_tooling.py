"""A planted error fails the tools, as they are configured here."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def run(tool, *arguments):
    return subprocess.run([BIN / tool, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('"""Planted."""\n\nimport os\n', "F401"),
        ('"""Planted."""\n\nprint("x")\n', "T201"),
        ("def f(x):\n    return x\n", "D103"),
    ],
)
def test_ruff_finds_a_planted_error(tmp_path, text, code):
    planted = tmp_path / "planted.py"
    planted.write_text(text)
    done = run("ruff", "check", "--config", "pyproject.toml", "--no-cache", str(planted))
    assert done.returncode == 1
    assert code in done.stdout


def test_mypy_finds_a_planted_error(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text("def f(x):\n    return x\n\n\nvalue: int = 'text'\n")
    done = run("mypy", "--config-file", "pyproject.toml", "--cache-dir", str(tmp_path / "cache"), str(planted))
    assert done.returncode == 1
    assert "no-untyped-def" in done.stdout
    assert "assignment" in done.stdout


def test_pre_commit_knows_its_hooks():
    done = run("pre-commit", "validate-config", ".pre-commit-config.yaml")
    assert done.returncode == 0, done.stderr


def test_a_planted_error_fails_the_pre_commit_hook(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True, timeout=30)
    (tmp_path / ".venv").symlink_to(BIN.parent)
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "planted.py").write_text('"""Planted."""\n\nimport os\n')
    subprocess.run(["git", "-C", tmp_path, "add", "planted.py", ".pre-commit-config.yaml"], check=True, timeout=30)
    done = subprocess.run(
        [BIN / "pre-commit", "run", "ruff-check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "F401" in done.stdout
