PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# The default Python's environment is .venv; one that is named has its own, .venv-3.13.
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(VERSION))
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(VERSION)
STORED ?= benchmarks/stored.json

.PHONY: install demo test slow lowest gpu speed site mutants lint format clean

$(READY): requirements.txt
	@[ -n "$(VERSION)" ] || { echo "error: $(PYTHON) does not run" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	@if [ -e $(VENV) ] && ! $(BIN)/python -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")'; then \
	  echo "$(VENV) belongs to another Python than $(VERSION): it is made anew"; rm -rf $(VENV); fi
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $(READY)

install: $(READY) ## the virtual environment: .venv, or .venv-3.13 with PYTHON=python3.13

demo: $(READY) ## train on digits of MNIST in two minutes of two CPU cores, draw them, score them
	$(BIN)/python train.py
	$(BIN)/python sample.py ckpt=last label=all guidance=2 steps=40 out=lightning_logs/demo/digits.gif
	$(BIN)/python docs/pictures/model.py beside last lightning_logs/demo/beside.png
	$(BIN)/python evaluate.py ckpt=last n=500
	@echo "digits come out of noise, a row each:     lightning_logs/demo/digits.gif"
	@echo "samples, left, and real digits, right:    lightning_logs/demo/beside.png"
	@echo "the training images nearest to samples:   $$(ls -td lightning_logs/mnist5k/version_* | head -1)/neighbours.png"
	@echo "curves and pictures of the training:      $(BIN)/tensorboard --logdir lightning_logs"
	@echo "next, clothes in ten minutes:             $(BIN)/python train.py experiment=fast_fashion"

test: $(READY) ## the whole default suite
	$(BIN)/python -m pytest

slow: $(READY) ## the long proofs
	$(BIN)/python -m pytest -m slow

# On the oldest Python, since old versions have no wheels for the newest.
lowest: ## the suite with the lowest versions that pyproject.toml allows, in .venv-lowest: make lowest PYTHON=python3.11
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q packaging
	.venv-lowest/bin/python tests/lowest.py > .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pip install -q -r .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pytest

# A bare machine's own Python is used as it is, since its torch fits its GPU; an environment made by install goes first.
gpu: ## every experiment on a GPU, equalities, throughput: one table in eight minutes; WHEELS=folder DATA_DIR=folder MINUTES=40
	$(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py $(if $(WHEELS),--wheels "$(WHEELS)") $(if $(DATA_DIR),--data-dir "$(DATA_DIR)") $(if $(MINUTES),--minutes "$(MINUTES)")

# Ratios, not times: they compare between machines of one kind. The first run is stored by the same command with --out.
speed: $(READY) ## did a network fall behind in speed? ratios against STORED, ten minutes of an idle machine
	$(BIN)/python benchmarks/throughput.py --against $(STORED)

site: $(READY) ## the documentation as a site, in site/; to look at it: .venv/bin/mkdocs serve
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])' | xargs $(BIN)/python -m pip install -q
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

mutants: $(READY) ## does a test fail when the code is wrong? about half an hour
	$(BIN)/python tests/mutants.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-*
