# make demo | make test | make test-fast | make lint | make types
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: install demo test test-fast lint types check clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# One thread: for a network this small a second one gains little on an idle machine (67 ms a pass against 88) and makes
# every step several times slower as soon as anything else runs, since the two wait for each other.
demo: install  ## train CBDA on the embedded Streets pair: no data, no weights, no GPU
	OMP_NUM_THREADS=1 $(BIN)/adaptseg fit --config configs/cbda_20pct.yaml

test: install
	$(BIN)/python -m pytest

test-fast: install
	$(BIN)/python -m pytest -m "not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types test

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
