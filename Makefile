# make install        a virtual environment in .venv with everything
# make install-light  instead, in a minute: .venv-light without torch, boosters and Java, for the tests of core, serve, promote, ui and cli
# make demo           the whole loop on real data; the servers keep running (DEMO_EXIT=1 stops them at the end)
# make test           the tests, about six minutes on two cores
# make test-serve     the tests of one part of the package: test-core, -serve, -wrap, -ship, -promote, -watch, -cli, -ui, -contrib
# make test-light     the tests of core, serve, promote, ui and cli in .venv-light
# make test-install   builds the wheel and runs README's commands with it outside of this checkout, with the newest dependencies
# make test-long      the long tests: more than a second of CPU, killed processes, full disks, containers, a cluster, the console in a browser; DRILLS=tests/serve/agent runs some of them
# make test-release   the drills before a release: no network, killed pods and controllers, a drained node, rollouts in containers, make test-airgap (RELEASING.md)
# make test-airgap    the commands of docs/airgap.md in a network that swallows every packet; needs Docker, and the internet to begin with
# make test-trees-asan opens 200,000 mutated models with the library of projects/trees, under sanitizers (needs g++); MODELS=5000 SEED=0
# make test-all       make test, make test-long and make test-install
# make stack-test     checks the statements of docker/stack/README.md with the services of docker/compose.yaml, without containers
# make images         the images onnxserve:cpu, onnxserve:gpu and onnxserve:controller (docker/README.md); IMAGES=cpu builds one
# make bench          reproduces the figures of README.md and benchmarks/RESULTS.md in ten minutes on two cores; ONLY='serve start' runs some of them
# make docs           the documentation site, into site/; fails on a broken link
# make helm           the program helm, from PyPI, for the tests of the chart
# make lint           ruff, formatting, strict types (also for macOS and Windows), the import rule, the figures of the structure, the workflows. On other branches than main, the structure only warns
# The long files run first (tests/serve/agent … journeys), because otherwise one core would run them at the end.
# Each target sets up its environment in a fresh clone, with Python 3.11 to 3.14. With PYTHON=/path/to/python3.13 it uses
# a separate environment for that version, .venv-3.13.

SHELL := /bin/bash
ASKED := $(PYTHON)
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c '$(FITS)' 2>/dev/null && echo $$python && break; done)
VERSION := $(shell $(PYTHON) -c '$(FITS)' 2>/dev/null && $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv$(if $(ASKED),-$(VERSION))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
comma := ,
# On macOS, every build is for CPUs.
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)$(if $(filter Linux,$(shell uname)),+cpu)
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

.PHONY: install install-light test-light demo demo-stop test test-install test-long test-release test-airgap test-trees-asan test-graphs-hostile test-all stack-test images helm bench docs lint format constraints clean

install: $(VENV)/.installed

# uv installs in seconds and pip in minutes. pip is used if uv is not available.
# torch is installed first and separately: pip takes its CPU build from its configured index, otherwise from PyTorch's own index. PyPI's
# build adds gigabytes of CUDA. Without a CPU build, torch is not installed, and the tests that need it are skipped.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@test -n '$(VERSION)' || { echo 'Python 3.11 to 3.14 is needed$(if $(ASKED),$(comma) but $(ASKED) is not one of these versions):' \
		'make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.12' >&2; exit 1; }
	@echo "installing into $(VENV) with $(PYTHON) ($(VERSION)); the first time takes some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@echo "  torch $(TORCH), its CPU build"
	@$(BIN)/python -c 'import torch' 2>/dev/null \
		|| $(PIP) install -qq -c constraints.txt 'torch==$(TORCH)' 2>/dev/null \
		|| $(PIP) install -qq -c constraints.txt --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu 'torch==$(TORCH)' 2>/dev/null \
		|| echo "  torch is not installed, because no CPU build for Python $(VERSION) was found. torch models cannot be wrapped, and their tests are skipped"
	@echo "  the package and its dependencies, in the versions of constraints.txt"
	@torch=$$($(BIN)/python -c 'import torch' 2>/dev/null && echo ,torch,transformers); \
		if $(PIP) install -qq -c constraints.txt uv 2>/dev/null; then \
			$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e ".[dev$$torch]"; \
		else $(PIP) install -qq -c constraints.txt -e ".[dev$$torch]"; fi
	@# MLflow would call this plugin for each server. Only the tests that need it add its folder to their path.
	@$(PIP) install -qq --no-deps --upgrade --target $(VENV)/sagemaker sagemaker-mlflow==0.5.0
	@# Another implementation of tlog-witness, for the tests. It declares Python 3.12, and works with 3.11.
	@$(PIP) install -qq --no-deps --ignore-requires-python --upgrade --target $(VENV)/tlog 'aics-tlog<0.3' 'aics-witness<0.2'
	@touch $@
	@echo "installed. 'make demo' runs the whole loop; 'source $(BIN)/activate' activates the environment"

install-light: .venv-light/.installed

.venv-light/.installed: setup.cfg pyproject.toml constraints.txt
	@test -n '$(VERSION)' || { echo 'Python 3.11 to 3.14 is needed' >&2; exit 1; }
	@test -x .venv-light/bin/python || $(PYTHON) -m venv .venv-light
	@.venv-light/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[light]'
	@touch $@

demo: install
	@$(BIN)/python -m projects.demo

demo-stop: install
	@$(BIN)/python -m projects.demo stop

test: install
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m 'not long and not install'

PARTS := core serve wrap ship promote watch cli ui contrib
.PHONY: $(PARTS:%=test-%)
$(PARTS:%=test-%): test-%: install
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m 'not long and not install' tests/$*

LIGHT := core serve promote ui cli
test-light: install-light
	.venv-light/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m 'not long and not install' $(LIGHT:%=tests/%)

test-install: install
	$(BIN)/python -m pytest -n 3 --dist worksteal tests/journeys/test_install.py

test-long: install
	$(PIP) install -q -c constraints.txt -e '.[spark]'
	$(BIN)/python -m pytest -n 2 --dist loadfile -m '(long or install) and not stack' --ignore tests/journeys/test_install.py $(DRILLS)

test-release: install
	$(BIN)/python -m pytest -m release

test-airgap: install
	$(BIN)/python -m pytest -m release tests/docker/test_airgap.py

# g++ has the libraries of the sanitizers. zig has not.
test-trees-asan: install
	$(BIN)/python projects/trees/fuzz.py --models $(or $(MODELS),200000) --seed $(or $(SEED),0)

# The long run of the harness for graphs that the package reads in Python: 20,000 mutated explanations and models.
test-graphs-hostile: install
	HOSTILE_MODELS=20000 $(BIN)/python -m pytest -m long tests/serve/models/test_hostile_graphs.py

test-all: test test-long test-install

# The tests need an S3 API, set by AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Otherwise they are skipped.
stack-test: install
	$(BIN)/python -m pytest -m stack tests/stack

IMAGES := cpu gpu controller
images:
	@for target in $(IMAGES); do \
		docker build -f docker/Dockerfile --target $$target -t onnxserve:$$target \
			--build-arg VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' mlflow_deploy_plugin/core/version.py) \
			--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null) . || exit 1; done
	@docker images --filter reference='onnxserve:*'

helm: install
	@command -v helm >/dev/null || test -x $(BIN)/helm || $(BIN)/python docker/helm/get_helm.py

bench: install
	@$(BIN)/python benchmarks/bench.py $(if $(ONLY),--only $(ONLY))

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

WORKFLOWS := $(wildcard .github/workflows/*.yaml projects/model_repository/.github/workflows/*.yaml)
ON_WINDOWS := $(addprefix mlflow_deploy_plugin/,core wrap promote serve/client)
# A pull request on GitHub, another branch, or main and a checkout without a branch.
BRANCH := $(or $(GITHUB_REF_NAME),$(shell git branch --show-current 2>/dev/null))
SCHEMA := check-jsonschema --builtin-schema

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin --no-warn-unreachable --cache-dir .mypy_cache/darwin mlflow_deploy_plugin
	$(BIN)/mypy --platform win32 --no-warn-unreachable --follow-imports silent --cache-dir .mypy_cache/win32 $(ON_WINDOWS)
	$(BIN)/lint-imports
	$(BIN)/python -m tests.structure $(if $(filter-out main,$(BRANCH)),--warn)
	$(BIN)/$(SCHEMA) vendor.github-workflows $(WORKFLOWS)
	$(BIN)/$(SCHEMA) vendor.dependabot .github/dependabot.yml
	$(BIN)/$(SCHEMA) vendor.github-issue-forms $(wildcard .github/ISSUE_TEMPLATE/*.yaml)
	$(BIN)/zizmor --offline --quiet --no-progress $(WORKFLOWS) .github/dependabot.yml

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The head of the file, which lists the fixed versions, is kept.
constraints: install
	@{ grep '^#' constraints.txt; $(PIP) freeze --exclude-editable | sed 's/+cpu$$//' | sort -f; } > constraints.new
	@mv constraints.new constraints.txt

clean:
	rm -rf .venv .venv-3.1? .venv-light .venv-logins build dist site *.egg-info
