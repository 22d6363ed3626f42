# Everything a person or the CI does with a checkout. `make` alone lists the targets.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first Python 3.11 to 3.13 that is found; `make PYTHON=/path/to/python ...` chooses another.
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python)
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
ARGS ?=

# One computing thread per test process: every core already has a process, and sums depend on the number of threads.
# One process more than cores: tests that wait for a server or a browser leave theirs idle.
# A file's tests stay in one process: what they share (stores with trained models) is made once.
# Byte code is kept, whatever the environment says: the tests start some hundred processes.
TEST_ENV := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MLFLOW_DISABLE_TELEMETRY=true
TESTERS := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -n $(TESTERS) --maxprocesses 8 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup baseline study test test-all lint format types lock help-pages screenshots clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(STAMP)  ## make .venv with the locked versions and dftrack itself

$(STAMP): requirements.lock pyproject.toml
	@set -e; \
	python=; \
	for candidate in $(PYTHONS); do \
	    if "$$candidate" -c '$(FITS)' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "error: none of these is a Python 3.11, 3.12 or 3.13: $(PYTHONS)" >&2; \
	    echo "hint: install one, or name it: make PYTHON=/path/to/python3.12 setup" >&2; \
	    exit 1; \
	fi; \
	echo "dftrack: installing into $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv $(VENV) || { \
	    rm -rf $(VENV); echo "hint: on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

baseline: $(STAMP)  ## install what is missing, then train and judge the baseline on the sample
	$(BIN)/dftrack baseline $(ARGS)

study: $(STAMP)  ## install what is missing, then search the settings with 30 trials
	$(BIN)/dftrack study --trials 30 $(ARGS)

test: $(STAMP)  ## the test suite (ARGS="tests/test_files.py -x" for a part of it)
	$(PYTEST) $(ARGS)

test-all: $(STAMP)  ## the test suite with the slow tests, as before a release
	$(PYTEST) -m "" --timeout 1800 $(ARGS)

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## ruff mends what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy

# graphene 3.4.3 says that it fits python-dateutil 2 only, 3.4 does not say: unheld, a new lock would go back to 3.4.
HELD := graphene>=3.4.3

lock: $(STAMP)  ## write requirements.lock anew from pyproject.toml (ARGS=--upgrade for newer versions)
	echo '$(HELD)' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --custom-compile-command "make lock" --extra dev --constraint /dev/stdin \
	    --output-file requirements.lock $(ARGS) pyproject.toml

help-pages: $(STAMP)  ## write the pages that answer --help anew from the commands
	$(BIN)/python -c 'from tests.test_help import write_pages; write_pages()'

screenshots: $(STAMP)  ## a real browser takes pictures of the MLflow page of mlruns/ into screenshots/
	$(TEST_ENV) $(BIN)/python tests/screenshots.py mlruns screenshots

clean:  ## remove .venv and every cache; mlruns/ stays
	rm -rf $(VENV) build dist screenshots .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find dftrack tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
