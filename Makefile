# Every target sets up what it needs by itself: a virtual environment in .venv, torch, this package.
# Variables: PYTHON (which python makes .venv), PIP_FLAGS (your own index or wheels), WORKERS, ARGS.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
WORKERS ?= 2
PIP_FLAGS ?=
ARGS ?=

# The first python that is new enough; `make PYTHON=/path/to/python3.12 ...` overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$p"; exit; }; done; echo python3)
# One place states the range of torch: pyproject.toml.
TORCH := $(shell sed -n 's/^ *"\(torch[<>=][^"]*\)".*/\1/p' pyproject.toml)

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install $(PIP_FLAGS)
# One thread a worker: two pytest workers then share two cores instead of fighting for them.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help demo test test-all check clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## full cache beside RCE at 1/8 on the shipped model; writes kvmmu-demo/
	$(BIN)/kvmmu demo $(ARGS)

test: $(READY) ## the test suite (under 10 minutes on two cores)
	$(PYTEST) -n $(WORKERS) $(ARGS)

test-all: $(READY) ## the slow tests too, and the GPU's where there is one
	$(PYTEST) -n $(WORKERS) -m "not network" $(ARGS)

check: $(READY) ## format, lint, types, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -q tests/test_layers.py

clean: ## remove caches and what the commands wrote
	rm -rf build dist kvmmu-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests recipes benchmarks examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## remove .venv too
	rm -rf $(VENV)

# Done once, and again when pyproject.toml changes. torch goes first, so that nothing else picks its build.
$(READY): pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "kvmmu needs Python 3.11 or newer, got '$(PYTHON)' ($$("$(PYTHON)" --version 2>&1));" \
			"pass one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) lacks the venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@"$(BIN)/python" -m pip --version >/dev/null 2>&1 || { echo "creating $(VENV)"; "$(PYTHON)" -m venv --clear "$(VENV)"; }
	@"$(BIN)/python" -c 'import torch' 2>/dev/null || { \
		echo "Expect a download of about 305 MB, and torch besides: about 190 MB where the index has a CPU"; \
		echo "build (1.6 GB on disk in all), several GB for the CUDA build that Linux gets from PyPI."; \
		echo "Your own index or wheels: make $(MAKECMDGOALS) PIP_FLAGS='--index-url URL'"; }
	$(PIP) "$(TORCH)"
	$(PIP) -e '.[dev]'
	@touch $@
