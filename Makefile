# Every target first makes .venv and installs what it needs; a fresh machine needs Python >= 3.11, make and git.
# Variables: RECIPE= (default demo)  DATA_ROOT= (where a real dataset lies)  ARGS= (passed on)  PYTHON= (default python3)
#            WORKDIR= (default artifacts) and RUN=1 of results

PYTHON    ?= python3
RECIPE    ?= demo
WORKDIR   ?= artifacts
BIN       := .venv/bin
INSTALLED := .venv/.installed
# One more than there are cores: many tests wait for processes that they start. These are hundreds, so compiled modules
# are kept even where the environment says otherwise.
PYTEST    := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist worksteal \
             --numprocesses $(shell $(PYTHON) -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')
RECIPE_ARGS = --recipe $(RECIPE) $(if $(DATA_ROOT),--data-root "$(DATA_ROOT)") $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help install demo pseudo-depth train table results docs export report test test-all test-crash check audit bench bench-gpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; found " + sys.version.split()[0] + " (choose another with PYTHON=python3.12)")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

install: $(INSTALLED)  ## make .venv and install

demo: $(INSTALLED)  ## everything offline on drawn scenes: label, train two schedules, compare, export, report
	$(BIN)/pipeline demo $(ARGS)

pseudo-depth: $(INSTALLED)  ## label the images of RECIPE with pseudo depth
	$(BIN)/pipeline pseudo-depth $(RECIPE_ARGS)

train: $(INSTALLED)  ## train the schedule of RECIPE
	$(BIN)/pipeline run $(RECIPE_ARGS)

table: $(INSTALLED)  ## train every schedule of the schedule table
	$(BIN)/pipeline table schedules $(RECIPE_ARGS)

export: $(INSTALLED)  ## strip the depth decoder off the newest run and write it out
	$(BIN)/pipeline export $(ARGS)

results: $(INSTALLED)  ## tables of docs/results.md, from the runs in WORKDIR; RUN=1 trains what is missing
	$(BIN)/python -m pipeline.results --workdir "$(WORKDIR)" $(if $(DATA_ROOT),--data-root "$(DATA_ROOT)") \
	    $(if $(RUN),--run) $(ARGS)

docs: $(INSTALLED)  ## tables of the docs that come from code: schedules, networks, speed, reliability, bad input
	$(BIN)/python -m tests.bad_input
	$(BIN)/python -m tests.test_readme $(ARGS)

report: $(INSTALLED)  ## one self-contained page about all runs
	$(BIN)/pipeline report $(ARGS)

test: $(INSTALLED)  ## the tests, in minutes (no GPU, no network)
	$(PYTEST) -m "not exhaustive" $(ARGS)

test-all: $(INSTALLED)  ## these, and further entries of long lists: all networks in all formats, clusters, kills
	$(PYTEST) $(ARGS)

test-crash: $(INSTALLED)  ## kill real commands some 340 times, and prove that repeating them ends the same
	$(BIN)/python -m tests.crash --kills 130 --json tests/crash/figures.json $(ARGS)

check: $(INSTALLED)  ## lint, types, fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow and not exhaustive" $(ARGS)

audit: $(INSTALLED)  ## look up the pinned versions in the database of known vulnerabilities (needs a network)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[audit]'
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

bench: $(INSTALLED)  ## measure speed and growth as ratios with goals, in a quarter of an hour
	$(BIN)/python -m tests.benchmarks --json tests/benchmarks/figures.json $(ARGS)

bench-gpu: $(INSTALLED)  ## what a GPU gives here: labelling, training, waiting for data, in minutes
	$(BIN)/python -m tests.benchmarks.gpu $(ARGS)

clean:  ## remove .venv and caches (never artifacts/)
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build dist *.egg-info
