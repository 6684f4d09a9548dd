# nightgraph: `make help` lists what there is to do.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A worker for each core, one thread each: tensors of tests are small, and a second thread would only wait for the first.
# A file's tests run on one worker, so that what its fixtures build is built once. Files run in the order of their names,
# which begins with the long ones of end_to_end. A worker takes up to 1.5 GiB, hence eight at most.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup night serve test test-all check bench bench-models bench-graphs clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## the virtual environment with every package at its locked version

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV) (about 3 GB, a few minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

night: setup  ## one whole night on the simulated market, then the leaderboard and the next-day signals
	@$(BIN)/nightgraph night

serve: setup  ## a Prefect server with every deployment and a worker; trigger `nightly` at the address it prints
	@$(BIN)/nightgraph serve

test: setup  ## the default tests (OPTIONS=… for pytest)
	@$(PYTEST) $(OPTIONS)

test-all: setup  ## the default tests, then the slow ones (OPTIONS=… for pytest)
	@$(PYTEST) $(OPTIONS)
	@$(PYTEST) -m slow $(OPTIONS)

check: setup  ## format, lint, types and the arrows between the rooms
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: setup  ## measured comparisons with the peers (installs the bench extra)
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --editable '.[bench]'
	@$(BIN)/python -m pytest -m benchmark -s tests/benchmarks

bench-models: setup  ## layers and models as tables and charts in bench/ (13 minutes; OPTIONS=--quick: 3)
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --editable '.[bench]'
	@$(BIN)/python -m tests.benchmarks.models_table $(OPTIONS)

bench-graphs: setup  ## graphs, messages and event networks against their peers (OPTIONS=--quick)
	@$(BIN)/python -m pytest -m benchmark -s tests/benchmarks/bench_graphs.py tests/benchmarks/bench_message_passing.py tests/benchmarks/bench_tgn.py
	@$(BIN)/python -m tests.benchmarks.links_table $(OPTIONS)
	@$(BIN)/python -m tests.benchmarks.hybrids_table $(OPTIONS)

clean:  ## removes the virtual environment and caches; warehouses stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
