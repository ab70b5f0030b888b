# make demo, make test: each does everything on a fresh Debian machine with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
TEST_PACKAGES := orthanc orthanc-dicomweb dcmtk dicom3tools redis-server postgresql faketime chromium

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
.venv/.ready: requirements/dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version); set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || .ci/install-packages python3-venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# One lock an audience: developers, and the two images. The images' versions are those that the tests ran with.
COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile pyproject.toml --universal --generate-hashes \
	--python-version 3.11 --quiet

lock:
	$(COMPILE) --all-extras --upgrade --output-file requirements/dev.lock
	$(COMPILE) --extra service --constraint requirements/dev.lock --output-file requirements/listener.lock
	$(COMPILE) --extra service --extra worker --extra report --constraint requirements/dev.lock --output-file requirements/worker.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
