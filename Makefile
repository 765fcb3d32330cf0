# make demo | make test | make test-fast | make lint | make types
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# A process for each core and one thread in each: networks of tests are too small to share out among threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: install demo test test-fast lint types check clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install  ## train CBDA on the embedded Streets pair: no data, no weights, no GPU
	$(BIN)/adaptseg fit --config configs/cbda_20pct.yaml

test: install
	$(PYTEST)

test-fast: install
	$(PYTEST) -m "not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types test

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
