PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test slow mutants lint format clean

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $(READY)

demo: $(READY) ## train on 8x8 digits in about two minutes, then draw them
	$(BIN)/python train.py
	$(BIN)/python sample.py ckpt=last
	$(BIN)/python sample.py ckpt=last n=64 sampler=ddim steps=50 out=lightning_logs/demo/digits.png
	@echo "watch the training:  $(BIN)/tensorboard --logdir lightning_logs"

test: $(READY) ## the whole default suite
	$(BIN)/python -m pytest

slow: $(READY) ## the long proofs
	$(BIN)/python -m pytest -m slow

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
	rm -rf $(VENV)
