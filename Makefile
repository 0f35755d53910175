# `make help` lists the commands. Each of them makes the environment .venv when it is first used.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
INSTALLED := $(VENV)/installed
# Which build of torch is installed: the one on PyPI, which brings CUDA, or with TORCH=cpu the smaller one for a CPU.
TORCH ?= pypi
TORCH_INDEX_cpu := https://download.pytorch.org/whl/cpu
$(if $(filter pypi cpu,$(TORCH)),,$(error TORCH=$(TORCH): give TORCH=pypi or TORCH=cpu))
# Parameters of the demo's main job, such as ARGS="-P kl_betas=0.05,0.12,0.5", or of the benchmark of a GPU
ARGS ?=

# Nothing here reports to third parties.
export MLFLOW_DISABLE_TELEMETRY := true
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-floors lint bench gpu campaign notebook ui clean

help: ## Prints this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

demo: export MLFLOW_LOGGING_LEVEL ?= WARNING
demo: $(INSTALLED) ## Runs the whole experiment on the embedded default; ARGS="-P name=value ..." sets its parameters.
	mlflow run . --env-manager local --experiment-name demo $(ARGS)

test: lint ## Runs lint, then all tests but the slow ones.
	pytest -m "not slow"

test-slow: $(INSTALLED) ## Runs the slow tests: killed trainings, servers that go away, several processes.
	pytest -m slow

# A dependency's own dependencies are the newest, as in an environment that grew over time.
test-floors: ## Runs the tests against the lowest versions that pyproject.toml allows, in the environment .venv-floors.
	$(PYTHON) -m venv .venv-floors
	.venv-floors/bin/python -m pip install --quiet uv
	.venv-floors/bin/uv pip install --quiet --python .venv-floors/bin/python --resolution lowest-direct --editable ".[dev]"
	PATH="$(CURDIR)/.venv-floors/bin:$$PATH" pytest -m "not slow"

lint: $(INSTALLED) ## Checks style, format, types, which package imports which, Dockerfile and workflows.
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-logo --no-cache
	hadolint Dockerfile
	check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml

bench: $(INSTALLED) ## Runs all benchmarks at a small size and prints their ratios; ARGS="--page docs/performance.md" stores the table.
	python -m benchmarks.ratios $(ARGS)

gpu: $(INSTALLED) ## Measures speed, memory and records on a GPU against their targets; ARGS="--parts records" takes a part.
	python -m benchmarks.gpu $(ARGS)

campaign: $(INSTALLED) ## Kills commands at random moments, and runs several at once; ARGS="--parts kills --kills 100 --seed 0".
	python -m benchmarks.campaign $(ARGS)

notebook: $(INSTALLED) ## Executes docs/quickstart.ipynb and stores it with its outputs.
	python docs/run_notebook.py

ui: $(INSTALLED) ## Opens the MLflow UI on the runs of this folder.
	mlflow ui

# The exact versions of conda.yaml, the tested ones, constrain the ranges of pyproject.toml.
$(INSTALLED): pyproject.toml setup.py conda.yaml
	$(PYTHON) -m venv $(VENV)
	sed -n 's/^ *- \([a-z0-9-]*==.*\)/\1/p' conda.yaml > $(VENV)/constraints.txt
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(if $(TORCH_INDEX_$(TORCH)),grep '^torch' $(VENV)/constraints.txt > $(VENV)/torch.txt)
	$(if $(TORCH_INDEX_$(TORCH)),$(VENV)/bin/python -m pip install --quiet --index-url $(TORCH_INDEX_$(TORCH)) --requirement $(VENV)/torch.txt)
	$(VENV)/bin/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable ".[dev]"
	touch $@

clean: ## Removes the environment, builds and the tools' caches; runs and results stay.
	rm -rf $(VENV) .venv-floors build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
