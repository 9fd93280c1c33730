# make quickstart   a virtual environment, the package, the main job; prints the report's path last
# make test         the whole test suite
# make lint         formatting, lint, types, layers
# make mutants      known bugs, put into a copy one at a time: a test must fail for each; MUTANTS=losses/dpo for some
# make oldest       the test suite with every dependency at the lower end of its range

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help quickstart install test lint mutants oldest clean

VENV ?= .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
# Where a CPU build of the oldest torch is out of reach: make oldest OLDEST_FREE=torch
OLDEST_FREE ?=
PYTEST_ARGS ?= -n 2 --maxschedchunk=16
# The first interpreter that is new enough.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	command -v $$name > /dev/null 2>&1 && $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
	&& { echo $$name; break; }; done)

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

quickstart: $(BIN)/.installed
	@$(BIN)/align pipeline quickstart

install: $(BIN)/.installed

test: $(BIN)/.installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(BIN)/.installed
	$(BIN)/ruff format --check alignment tests benchmarks
	$(BIN)/ruff check alignment tests benchmarks
	$(BIN)/pyright
	$(BIN)/lint-imports

mutants: $(BIN)/.installed
	$(BIN)/python tests/mutants/run.py $(MUTANTS)

oldest: $(OLDEST)/bin/.installed
	$(OLDEST)/bin/python -m pytest $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) $(OLDEST)

# Installed anew only when the package's own declaration has changed.
$(BIN)/.installed: pyproject.toml
	@$(call make_venv,$(VENV))
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]"
	@touch $@

$(OLDEST)/bin/.installed: pyproject.toml .ci/lowest_versions.py
	@$(call make_venv,$(OLDEST))
	$(OLDEST)/bin/python .ci/lowest_versions.py $(OLDEST_FREE) > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check -c $(OLDEST)/constraints.txt -e ".[dev]"
	@touch $@

define make_venv
if [ ! -x $(1)/bin/python ]; then \
	if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	echo "making $(1) with $(PYTHON); installing takes a few minutes, once"; \
	$(PYTHON) -m venv $(1); \
fi
endef
