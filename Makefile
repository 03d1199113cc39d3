# `make demo` and `make test` are all there is to remember: both make .venv first, once.
PYTHON ?= python3
VENV ?= .venv
ifeq ($(OS),Windows_NT)
VPYTHON := $(VENV)/Scripts/python.exe
else
VPYTHON := $(VENV)/bin/python
endif

.PHONY: demo test fuzz lint setup setup-dev clean

demo: setup
	$(VPYTHON) -m idcodeformer demo

test: setup-dev
	$(VPYTHON) -m pytest $(ARGS)

fuzz: setup-dev
	$(VPYTHON) -m tests.fuzz.harness $(ARGS)

lint: setup-dev
	$(VPYTHON) -m ruff check .

setup:
	@$(PYTHON) tools/environment.py --venv $(VENV)

setup-dev:
	@$(PYTHON) tools/environment.py --venv $(VENV) --dev

clean:
	rm -rf $(VENV) demo-output .pytest_cache .ruff_cache
