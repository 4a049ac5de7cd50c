# `make help` lists the targets. Everything happens in .venv; nothing else on the machine changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# made again for another Python, so that `make PYTHON=python3.12 test` tests with that one
READY := $(VENV)/.ready-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
.DEFAULT_GOAL := help
.PHONY: help env demo quick test faults lint types unit format clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

env: $(READY) ## Create the environment in .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "graphspec needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "creating $(VENV) (torch with torchvision is about 5 GB: some minutes the first time)"
	@[ -e $@ ] || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## Compile, search, retrain and export specs/digits.yaml, then report
	@echo "demo: from a search space for digits to a checked ONNX file, in a new run directory"
	$(BIN)/graphspec compile specs/digits.yaml
	$(BIN)/graphspec search
	$(BIN)/graphspec retrain
	$(BIN)/graphspec export
	$(BIN)/graphspec report

quick: lint types ## Run linters, type checks and the tests that are not slow (under 3 minutes on 2 cores)
	$(PYTEST) -m 'not slow'

test: lint types unit ## Run linters, type checks and all tests

faults: $(READY) ## Kill file calls, fail disks and damage runs in all ways, then run every command (hours)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults $(MOST)

lint: $(READY) ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## Check types (mypy strict)
	$(BIN)/mypy

unit: $(READY) ## Run the tests
	$(PYTEST)

format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the environment and caches (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
