# Every target does its own set-up: a fresh clone needs nothing but make and a Debian-like system.
PYTHON := .venv/bin/python
STAMP := .venv/.installed
PYTEST_ARGS ?= -n 2
DEMO_ARGS ?=

.PHONY: demo test lint bench system

demo: $(STAMP) $(if $(findstring ssh,$(DEMO_ARGS)),system)
	@$(PYTHON) examples/smartwatch-activity/demo.py $(DEMO_ARGS)

test: $(STAMP) system
	@$(PYTHON) -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy

bench: $(STAMP)
	@$(PYTHON) tests/bench/run.py

system:
	@.ci/setup system

$(STAMP): pyproject.toml .ci/setup
	@.ci/setup python
	@touch $@
