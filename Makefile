# `make demo` and `make test` are all that a newcomer needs; each makes the environment first.

PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin

# One process for each core, which computes with one thread: most tests are too small to use more.
AT_ONCE := --numprocesses auto --maxprocesses 4

# torch goes first and by itself: a later range would otherwise pull a build with gigabytes of CUDA libraries.
define install
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(2) torch
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(2) --editable '.[test,check]'
	touch $(1)/installed
endef

.PHONY: demo test test-oldest check schema clean

demo: $(VENV)/installed
	$(BIN)/python -m pipelines.demo demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(AT_ONCE)

test-oldest: $(OLDEST)/installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest $(AT_ONCE)

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

schema: $(VENV)/installed
	$(BIN)/python -m pipelines.schema

clean:
	rm -rf $(VENV) $(OLDEST) demo

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(call install,$(VENV),constraints.txt)

$(OLDEST)/installed: setup.cfg pyproject.toml constraints-oldest.txt
	$(call install,$(OLDEST),constraints-oldest.txt)
