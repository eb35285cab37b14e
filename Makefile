# Everything that a developer or CI runs is a target here. All other targets imply `make setup`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Extra arguments for pip, e.g. an index with CPU-only builds of PyTorch.
PIP_ARGS ?=
STAMP := $(VENV)/.clipmill-setup
# What the wheel holds: its packages do not lie in the tree as they are imported.
UNPACKED := build/unpacked
# Every program that the tests start would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE
# Tests wait for servers, limits and processes about as long as they compute.
TEST_WORKERS ?= 4
# The newest Python of this machine that the libraries have wheels for; pyenv hides its own.
NEWEST ?= $(firstword $(foreach name,$(foreach version,3.14 3.13 3.12,\
  python$(version) $(wildcard $(HOME)/.pyenv/versions/$(version).*/bin/python)) $(PYTHON),\
  $(if $(shell $(name) -c 'print(1)' 2>/dev/null),$(name))))
NEWEST_VENV := .venv-newest
# Tests of what needs no models, on an installed wheel; with the files that they read, as text.
WHEEL_TESTS := tests/jobs tests/pipeline tests/schemas tests/test_api.py
TREE := tests docs jobs pipeline schemas stages constraints.txt pyproject.toml README.md

.PHONY: setup setup-newest demo demo-real test test-slow test-faults test-wheel check wheel format docs lock \
  models bench bench-gpu clean help

help:  ## lists the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## creates a virtual environment with the locked versions

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Clipmill needs Python 3.11 or newer; say make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup  ## runs the full pipeline on a small rendered world, offline, into demo-dataset/
	$(BIN)/clipmill demo

demo-real: setup  ## measures rendered films, or FILES=…, with real models, into demo-real-dataset/
	$(BIN)/clipmill demo --real $(FILES)

test: setup  ## runs all tests that take seconds
	$(BIN)/python -m pytest -m 'not slow and not faults' -n $(TEST_WORKERS) --dist worksteal

test-slow: setup  ## runs tests that take minutes: every real file, both engines, new random examples
	$(BIN)/python -m pytest -m 'slow and not faults' -n $(TEST_WORKERS) --dist worksteal
	$(BIN)/python -m pytest -m 'hypothesis and not slow' --hypothesis-profile=anew

test-faults: setup  ## runs kills, full disks and broken media, at random (half an hour)
	$(BIN)/python -m pytest -m faults

setup-newest: $(NEWEST_VENV)/.clipmill-setup  ## the same for test-wheel, on the newest Python here

$(NEWEST_VENV)/.clipmill-setup: pyproject.toml constraints.txt
	$(NEWEST) -m venv --clear $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt \
	  '.[run,test]'
	touch $@

test-wheel: wheel setup-newest  ## tests the wheel, without models, on the newest Python here
	$(NEWEST_VENV)/bin/python --version
	$(NEWEST_VENV)/bin/python -m pip install --quiet --no-deps --no-index --force-reinstall \
	  build/wheel/clipmill-*.whl
	rm -rf build/tests && mkdir -p build/tests
	cp -r $(TREE) build/tests/
	cd build/tests && $(CURDIR)/$(NEWEST_VENV)/bin/python -m pytest \
	  -m 'not slow and not faults' -n $(TEST_WORKERS) --dist worksteal $(WHEEL_TESTS)

wheel: setup
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BIN)/python -m zipfile -e build/wheel/clipmill-*.whl $(UNPACKED)

check: wheel  ## runs linters, and checks the types and import rules of what is installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	cd $(UNPACKED) && $(CURDIR)/$(BIN)/lint-imports --config $(CURDIR)/pyproject.toml
	cd $(UNPACKED) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
	  --cache-dir $(CURDIR)/.mypy_cache -p clipmill

format: setup  ## formats the code, sorts imports and fixes what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## regenerates docs/reference/
	$(BIN)/python -m clipmill.jobs.reference

models: setup  ## trains the demo's models again (about half an hour)
	$(BIN)/python -m clipmill.jobs.demo.train_models --output jobs/demo/models

bench: setup  ## runs every benchmark, printed as Markdown
	$(BIN)/python -m benchmarks.split
	$(BIN)/python -m benchmarks.isolation
	$(BIN)/python -m benchmarks.embed
	$(BIN)/python -m benchmarks.bare_loops
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.cut
	$(BIN)/python -m benchmarks.near
	$(BIN)/python -m benchmarks.catalog
	$(BIN)/python -m benchmarks.feed

bench-gpu: setup  ## measures the stages on this machine's GPU, in under ten minutes (VLLM=PYTHON)
	$(BIN)/python -m benchmarks.gpu $(if $(VLLM),--vllm $(VLLM))

lock:  ## pins the newest versions that work together, from a fresh environment
	rm -rf .lock-venv
	$(PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip install --quiet $(PIP_ARGS) --editable '.[dev]'
	{ sed -n '/^#/p' constraints.txt; .lock-venv/bin/python -m pip freeze --exclude-editable \
	  | sed -E 's/\+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt
	rm -rf .lock-venv

clean:  ## the environments and the demos' datasets
	rm -rf $(VENV) $(NEWEST_VENV) build demo-dataset demo-real-dataset demo-real-dataset-report.html
