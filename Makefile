# `make demo` and `make test` are all there is to remember: both make .venv first, once.
PYTHON ?= python3
VENV ?= .venv
ifeq ($(OS),Windows_NT)
VPYTHON := $(VENV)/Scripts/python.exe
FLOOR := .venv-floor/Scripts/python.exe
else
VPYTHON := $(VENV)/bin/python
FLOOR := .venv-floor/bin/python
endif

.PHONY: demo test test-all test-floor test-comfy mutate fuzz audit lint setup setup-dev clean

demo: setup
	$(VPYTHON) -m idcodeformer demo

test: setup-dev
	$(VPYTHON) -m pytest $(ARGS)

# With the slow ones: archives through Ray, signals at random moments, networks of the published size.
test-all: setup-dev
	$(VPYTHON) -m pytest -m "slow or not slow" $(ARGS)

fuzz: setup-dev
	$(VPYTHON) -m tests.fuzz.harness $(ARGS)

# Licences of what is installed, and known holes in it; the second needs the network.
audit: setup-dev
	@$(VPYTHON) -m pip install -q --disable-pip-version-check pip-audit
	$(VPYTHON) tools/audit.py $(ARGS)

# The oldest releases that requirements.txt allows, in an environment of their own (Python 3.10 or 3.11).
test-floor:
	@$(PYTHON) tools/environment.py --venv .venv-floor --requirements tests/floor.txt
	$(FLOOR) -m pytest --ignore tests/test_evaluate.py $(ARGS)

# In a real ComfyUI: COMFYUI_DIR=/path/to/ComfyUI
test-comfy: setup-dev
	@$(VPYTHON) tools/comfy.py $(ARGS)

# Which slips the tests notice; about an hour. ARGS="--count 20 --only paste" for less.
mutate: setup-dev
	$(VPYTHON) tools/mutate.py $(ARGS)

lint: setup-dev
	$(VPYTHON) -m ruff check .

setup:
	@$(PYTHON) tools/environment.py --venv $(VENV)

setup-dev:
	@$(PYTHON) tools/environment.py --venv $(VENV) --dev

clean:
	rm -rf $(VENV) .venv-floor .venv-comfy demo-output .pytest_cache .ruff_cache
