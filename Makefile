# Every target does its own set-up: a fresh clone needs nothing but make and a Debian-like system.
PYTHON := .venv/bin/python
STAMP := .venv/.installed
PYTEST_ARGS ?= -n 2
DEMO_ARGS ?=

# Every server with every transport and account; every Python that a board may have; every power cut.
WAYS := openssh,paramiko,root,3.8 openssh,paramiko,user,3.9 openssh,ssh,root,3.10 openssh,ssh,user,3.11 \
        dropbear,paramiko,root,3.12 dropbear,paramiko,user,3.13 dropbear,ssh,root,3.8 dropbear,ssh,user,3.13
BOARD_TESTS := $(addprefix tests/test_,releases.py hooks.py refusals.py validate.py jobs.py agent.py)

.PHONY: demo test boards lint bench system

demo: $(STAMP) $(if $(findstring ssh,$(DEMO_ARGS)),system)
	@$(PYTHON) examples/smartwatch-activity/demo.py $(DEMO_ARGS)

test: $(STAMP) system
	@$(PYTHON) -m pytest $(PYTEST_ARGS)

boards: $(STAMP) system
	@$(PYTHON) -m pytest $(PYTEST_ARGS) $(addprefix --board ,$(WAYS)) --every-cut $(BOARD_TESTS) tests/test_powercut.py

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
