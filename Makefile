# Verbs of the project; plain `make` prints them. Everything is installed into .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo dev test check format clean

help:  ## print the verbs
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## create .venv and install everything

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[offline,dev]'
	@touch $@

demo: $(INSTALLED)  ## the whole loop on the reference world, then a report
	$(BIN)/iccm demo

dev: $(INSTALLED)  ## database, gateway, Dagster UI and daemon; Ctrl-C ends them
	$(BIN)/iccm dev

test: $(INSTALLED)  ## all tests
	$(BIN)/pytest $(PYTEST_ARGS)

check: $(INSTALLED)  ## lint, formatting, types, import contracts, names
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy iccm_assets scripts
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python scripts/check_names.py

format: $(INSTALLED)  ## rewrite files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and caches (never data)
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
