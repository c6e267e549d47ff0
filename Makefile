# `make` lists the targets. Everything runs in .venv, which each target makes first where it is missing.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup prepare pretrain warmstart gpu reproduce test test-slow test-nightly lint format wheel clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make .venv with everything in it (PYTHON=python3.12 picks the interpreter)

# Done once, and again when a dependency changes. Constraints keep it to one known set of versions.
$(INSTALLED): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than Python 3.10: write make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): a few minutes the first time"
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[samples,dev]'
	@touch $@

prepare: setup ## Corpus to pretraining examples on disk (ARGS="data=text data.files=[my.txt]")
	$(BIN)/nystromformer prepare $(ARGS)

pretrain: setup ## Pretrain; by default a small model, minutes on two CPU cores (ARGS="experiment=small_512")
	$(BIN)/nystromformer pretrain $(ARGS)

warmstart: setup ## A trained BERT becomes a Nyströmformer, beside exact attention; three runs of about 20 minutes
	$(BIN)/nystromformer reproduce table=warmstart scale=cpu $(ARGS)

gpu: setup ## The first day on a GPU, part after part: tests, speed, a pretraining (ARGS="parts=tests scale=smoke")
	$(BIN)/python scripts/gpu/first_day.py $(ARGS)

reproduce: setup ## Every published table and figure at a scale for two CPU cores: 20 minutes, one report page
	$(BIN)/nystromformer reproduce all scale=cpu $(ARGS)

test: setup ## Run the tests (ARGS="-k settings" picks some)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

test-slow: setup ## Run the tests that take longer than ten seconds
	$(BIN)/python -m pytest -m slow -n auto --maxprocesses 4 $(ARGS)

test-nightly: setup ## Run the tests that take minutes each
	$(BIN)/python -m pytest -m nightly -n auto --maxprocesses 4 $(ARGS)

lint: setup ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup ## Rewrite the sources to the style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: setup ## Build dist/*.whl
	rm -rf build # setuptools would ship what an earlier build left there
	$(BIN)/python -m build --wheel --no-isolation

clean: ## Remove what builds and checks leave behind; keeps .venv, runs/ and prepared/
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
