# Everything starts here, with Python 3.11 or 3.12 and make: `make demo`, `make test`.
# The environment is made once, in .venv; stamps in it make the second call quick.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   ?= demo
JOBS   ?= 2
PYTEST_ARGS ?=

# One thread a process: two torch processes with a thread pool each slow one another down on two cores.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export NO_ALBUMENTATIONS_UPDATE := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint format wheel-check lower-bounds clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else "Python %d.%d will not do. Expected 3.11 or 3.12. Name one: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24.2"
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed ## train, benchmark and predict on data that comes with the installation; prints where the report is
	OMP_NUM_THREADS=$$(nproc) MKL_NUM_THREADS=$$(nproc) $(BIN)/zoo demo --out $(DEMO)

test: $(VENV)/.installed-dev ## all set-up, then the whole test suite
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel-check: $(VENV)/.installed-dev ## build a wheel, install it elsewhere, see that it finds its recipes and cards
	$(BIN)/python tools/wheel_check.py

lower-bounds: $(VENV)/.installed-dev ## install the oldest dependencies that pyproject.toml allows and run the smoke test with them
	$(BIN)/python tools/lower_bounds.py

clean: ## remove the environment and what was built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
