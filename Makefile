# make demo   train four methods on a small search, evaluate them, look inside one, write the page
# make test   the test suite          make lint   ruff and mypy          make bench   timings, as ratios
# make fuzz   100,000 odd inputs for the readers, graders, the collator and the encoder
.PHONY: demo test lint fuzz bench clean

PYTHON ?= python3
BIN := .venv/bin
SEED ?= 0

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("cocot needs Python 3.11 or newer: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch numpy
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/ready
	$(BIN)/cocot compare demo --jobs 2 --out runs/demo --seed $(SEED)
	$(BIN)/cocot probe runs/demo/coconut --layers 3 --show 0
	$(BIN)/cocot report runs/demo

test: .venv/ready
	$(BIN)/python -m pytest -n 2

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: .venv/ready
	COCOT_FUZZ=20000 $(BIN)/python -m pytest -n 2 tests/test_fuzz.py

bench: .venv/ready
	$(BIN)/cocot bench

clean:
	rm -rf .venv runs
