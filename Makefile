# Two commands matter: `make demo` and `make test`. Every target sets up .venv by itself when it is missing.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first Python from 3.11 to 3.13 that is there; override with `make PYTHON=... demo`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& { echo $$p; break; }; done)
# Settings of this checkout, as .env.example lists them.
-include .env
export
export MLOPS_ASSETS_HOME ?= $(CURDIR)/.mlops_assets
export DAGSTER_HOME ?= $(MLOPS_ASSETS_HOME)/dagster

.PHONY: setup demo dev test lint format lock bench clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; name one with make PYTHON=/path/to/python"; exit 1; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version); this takes a few minutes the first time"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/mlops-assets demo

dev: $(STAMP)
	@mkdir -p $(DAGSTER_HOME)
	@test -f $(DAGSTER_HOME)/dagster.yaml || cp dagster.yaml $(DAGSTER_HOME)/dagster.yaml
	@# The UI links to model cards and drift reports, which a second server shows; both end together. Job control gives
	@# each its own group: what the shell starts in the background would not hear Ctrl+C, and end only when killed.
	@set -m; $(BIN)/mlops-assets reports & reports=$$!; \
	$(BIN)/dagster dev -w workspace.yaml $(ARGS) & dagster=$$!; \
	trap 'kill -INT $$dagster $$reports 2>/dev/null' INT TERM; \
	while kill -0 $$dagster 2>/dev/null; do wait $$dagster; done; \
	kill -INT $$reports 2>/dev/null; true

test: $(STAMP)
	@$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# The lock is universal (Python 3.11 to 3.13), hashed, and names no package index.
lock: $(STAMP)
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
		--no-strip-extras --no-header --extra dev $(ARGS) pyproject.toml --output-file requirements.lock

bench: $(STAMP)
	@$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) .mlops_assets .mypy_cache .pytest_cache .ruff_cache
