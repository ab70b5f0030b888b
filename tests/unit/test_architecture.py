"""The import directions of the packages, held by reading every import statement."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"dicom_node", "workers", "training", "migrations"}
MAY_IMPORT = {
    "dicom_node": ("dicom_node",),
    "training": (
        "training",
        *(
            f"dicom_node.{name}"
            for name in ("pixels", "resize", "domain", "bundle", "combination", "demo.phantom", "evaluation")
        ),
    ),
    "workers": ("workers", "dicom_node", "training.models"),
    "migrations": tuple(f"dicom_node.{part}tables" for part in ("", "retrospective.", "worklist.")),
}
NEVER = {
    "dicom_node": {"torch", "torchvision", "safetensors"},
    "training": {"celery", "sqlalchemy", "pynetdicom"},
    "workers": set(),
    "migrations": {"torch", "pynetdicom"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", sorted(OURS))
def test_a_package_imports_only_what_it_may(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for module in imports(path):
            top = module.partition(".")[0]
            assert top not in NEVER[package], f"{path} imports {module}"
            if top in OURS:
                allowed = any(module == name or module.startswith(name + ".") for name in MAY_IMPORT[package])
                assert allowed, f"{path} imports {module}"


def test_the_check_sees_an_import_inside_a_function(tmp_path):
    path = tmp_path / "planted.py"
    path.write_text("def f():\n    from torch import nn\n")
    assert imports(path) == {"torch"}


def test_importing_all_of_dicom_node_loads_no_torch_and_no_worker():
    modules = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for path in sorted((ROOT / "dicom_node").rglob("*.py"))
        if path.name != "__main__.py"
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name.removesuffix('.__init__'))\n"
        "print([name for name in ('torch', 'workers', 'training') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
