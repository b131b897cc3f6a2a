# make install   a virtual environment in .venv with everything
# make demo      the whole loop on real data; leaves the servers running (DEMO_EXIT=1: stops them at its end)
# make test      the tests, under ten minutes on two cores (four at a time: many wait for servers);  make test-all  adds what is long
# make lint      ruff, formatting, strict types, the import rule
# The journeys are long and stand first (tests/agent … e2e): with the largest files first, one core would wait for them.
# Each does all its set-up from a fresh clone with Python 3.11 to 3.13.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(FITS)' 2>/dev/null && echo $$python && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

.PHONY: install demo demo-stop test test-all lint format constraints clean

install: $(VENV)/.installed

# torch first, alone: its CPU build, from wherever pip is told to look, else from PyTorch's own index.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'Python 3.11, 3.12 or 3.13 is needed: make install PYTHON=/path/to/python3.12' >&2; exit 1; }
	@echo "installing into $(VENV) with $(PYTHON); the first time takes some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import torch' 2>/dev/null \
		|| $(PIP) install -q -c constraints.txt 'torch==$(TORCH)+cpu' 2>/dev/null \
		|| $(PIP) install -q -c constraints.txt --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu 'torch==$(TORCH)+cpu' 2>/dev/null \
		|| $(PIP) install -q -c constraints.txt 'torch==$(TORCH)'
	@$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "installed; 'make demo' runs the whole loop, 'source $(BIN)/activate' is for your own"

demo: install
	@$(BIN)/python -m projects.demo

demo-stop: install
	@$(BIN)/python -m projects.demo stop

test: install
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m 'not long'

test-all: install
	$(PIP) install -q -c constraints.txt -e '.[spark]'
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The head of the file, which says what must not move, stays.
constraints: install
	@{ grep '^#' constraints.txt; $(PIP) freeze --exclude-editable | sed 's/+cpu$$//' | sort -f; } > constraints.new
	@mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info
