# `make` shows what there is. Every target makes .venv when it is missing or older than what it is made from.
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
OLD := import sys; sys.exit(sys.version_info < (3, 11))
# The first interpreter that is new enough; `make PYTHON=/path/to/python3.12 ...` chooses another.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	$$p -c '$(OLD)' >/dev/null 2>&1 && { echo $$p; break; }; done)

.DEFAULT_GOAL := help
.PHONY: demo test test-slow lint format clean help

demo: $(STAMP) ## distil a bundled teacher to 4 network calls, beside its best solvers
	@$(RUN) -m onefold demo

test: $(STAMP) ## run the tests (the default suite)
	@$(RUN) -m pytest -n logical --maxprocesses 4 --dist worksteal

test-slow: $(STAMP) ## run the tests that take minutes
	@$(RUN) -m pytest -m slow

lint: $(STAMP) ## check style and types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

format: $(STAMP) ## put the code in order
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

clean: ## remove the environment and everything made by these targets
	rm -rf $(VENV) build dist demo .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(OLD)' 2>/dev/null || { \
		echo "onefold needs Python 3.11 or newer, and none was found; install one or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(RUN) || { echo "Making $(VENV) with $(PYTHON)."; $(PYTHON) -m venv $(VENV); } || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing onefold and its tools; the first time this takes some minutes."
	@$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@
