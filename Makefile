# Verbs of the project; plain `make` prints them. Everything is installed into .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo dev test test-all test-repeat mutate bench bench-quick gpu-check check docs constraints format clean

help:  ## print the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## create .venv and install everything

# One line for each package, and what pip says on standard error.
$(INSTALLED): SHELL := /bin/bash
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing the packages of constraints.txt, 2.8 GB"
	@set -o pipefail; $(BIN)/python -u -m pip install --progress-bar off --constraint constraints.txt \
	    --editable '.[offline,kubernetes,s3,dev]' | while read -r verb name rest; do case $$verb in \
	    Collecting) echo "  $$((++n)) $${name%%[^-_.A-Za-z0-9]*}" ;; \
	    Installing) test "$$name" != collected || echo "  unpacking all of them, for some minutes" ;; esac; done
	@touch $@

demo: $(INSTALLED)  ## the whole loop on the reference world, then a report
	$(BIN)/iccm demo

dev: $(INSTALLED)  ## database, gateway, Dagster UI and daemon; Ctrl-C ends them
	$(BIN)/iccm dev

# Two workers; libraries that start threads of their own would only be in each other's way. Compiled files are
# kept even where the environment says otherwise: each worker and each process of a test would compile anew.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 2

test: $(INSTALLED)  ## what the product promises, in minutes
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: test  ## also whole demos, daemons, the browser, killed processes, long searches
	$(PYTEST) -m "slow or hypothesis" --hypothesis-profile=long $(PYTEST_ARGS)

# The longest tests are those that `make test PYTEST_ARGS=--durations=20` lists. The number of a repeat becomes part of
# the brackets behind a name: TESTS has names without them.
test-repeat: $(INSTALLED)  ## twenty times all property tests, or TESTS="file.py::test ..."
	$(PYTEST) --repeats=20 $(if $(TESTS),$(TESTS),-m hypothesis) $(PYTEST_ARGS)

mutate: $(INSTALLED)  ## plant small faults in what decides, count those the tests notice (half an hour)
	$(BIN)/python scripts/mutate.py $(MUTATE_ARGS)

# What the benchmarks compare with, in an environment of its own. What cannot be installed is left out and tried
# again the next time.
PEERS := build/bench/peers
$(PEERS)/.installed: benchmarks/peers.txt
	@rm -rf $(PEERS) && $(PYTHON) -m venv $(PEERS)
	@if $(PEERS)/bin/python -m pip install --quiet --requirement $<; then touch $@; \
	    else echo "The peers of $< cannot be installed: the table will say so."; fi

bench: $(INSTALLED) $(PEERS)/.installed  ## compare the hot paths with peers and with what the machine can do at best
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-quick: $(INSTALLED) $(PEERS)/.installed  ## smaller comparisons, five minutes on two quiet cores
	$(BIN)/python -m benchmarks --quick $(BENCH_ARGS)

# The script needs no other file of the repository: it can be carried to the machine that has the GPU.
gpu-check: $(INSTALLED)  ## measure training, generation and adapters on one GPU of 80 GB, in ten minutes
	$(BIN)/python scripts/gpu_check.py --json build/gpu-check.json $(GPU_CHECK_ARGS)

check: $(INSTALLED)  ## lint, formatting, types, import contracts, names, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy iccm_assets scripts
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python scripts/check_names.py
	$(BIN)/python -m scripts.generate_reference --check
	$(SITE) --strict

# The theme announces on every build that mkdocs 2 will be incompatible; pyproject.toml has the bound.
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs: $(INSTALLED)  ## write the reference pages from the code, build the site into build/site
	$(BIN)/python -m scripts.generate_reference
	$(SITE)

constraints: $(INSTALLED)  ## resolve the dependencies again, write constraints.txt
	$(BIN)/python scripts/refresh_constraints.py

format: $(INSTALLED)  ## rewrite files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and caches (never data)
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
