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

# One thread: the network is so small that a second one costs more in waiting than it computes (measured: 88 ms a pass
# with one, 139 ms with two), and it suffers badly from whatever else runs.
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
