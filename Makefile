# make demo, make test: each does everything on a fresh Debian machine with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
TEST_PACKAGES := orthanc dcmtk dicom3tools

.PHONY: demo test lint lock clean

demo: .venv/.ready
	$(BIN)/dicom-node demo

test: .venv/.ready lint
	.ci/install-packages $(TEST_PACKAGES) || test "$$CI" != true
	$(BIN)/pytest

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The environment: everything from the lock, checked by hash, and this project as an editable install.
.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version); set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || .ci/install-packages python3-venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

lock:
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile pyproject.toml --all-extras --universal --generate-hashes --python-version 3.11 \
		--upgrade --quiet --output-file requirements.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
