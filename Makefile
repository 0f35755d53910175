# Two commands do everything: `make demo` and `make test`. Both create .venv on first use.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
INSTALLED := $(VENV)/installed
# Parameters of the demo's main job, such as ARGS="-P kl_betas=0.05,0.12,0.5"
ARGS ?=

# Nothing here reports to third parties.
export MLFLOW_DISABLE_TELEMETRY := true
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test lint ui clean

demo: $(INSTALLED)
	mlflow run . --env-manager local --experiment-name demo $(ARGS)

test: lint
	pytest

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy

ui: $(INSTALLED)
	mlflow ui

# The exact versions of conda.yaml, the tested ones, constrain the ranges of pyproject.toml.
$(INSTALLED): pyproject.toml conda.yaml
	$(PYTHON) -m venv $(VENV)
	sed -n 's/^ *- \([a-z-]*==.*\)/\1/p' conda.yaml > $(VENV)/constraints.txt
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
