# make demo   a complete small run, offline: adapter, videos and an executed notebook in demo-project/
# make test   everything that is checked before a change is accepted
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo notebooks lint test colab-bed clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
DEMO := demo-project
NOTEBOOK := notebooks/sana_video.ipynb

# Nothing in the demo or the tests may need the network.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

help:
	@echo "make setup   create $(VENV) with the versions of constraints.txt"
	@echo "make demo    train the demo, offline, and show where adapter and videos are"
	@echo "make notebooks   write the notebooks from their source"
	@echo "make lint    ruff and pyright"
	@echo "make test    lint, then the tests; those in a browser where there is a chromium, TUNERKIT_BROWSER=1 demands them"
	@echo "make colab-bed   the second environment of the tests, with the versions that Colab has"
	@echo "make clean   remove what these made, $(VENV) included"

setup: $(STAMP)

# torch first and pinned: an open range would fetch the newest build, on Linux with gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "Python 3.11, 3.12 or 3.13 is needed. Fix: make PYTHON=python3.11 setup" >&2; exit 2; }
	@echo "installing into $(VENV); this takes some minutes"
	@$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[workbench,demo,optimi,prodigy,schedulefree,tensorboard,dev]'
	@touch $@

# Always trains from the start: an earlier demo's output is removed, its clips, cache and settings stay.
demo: setup
	$(OFFLINE) OMP_NUM_THREADS=2 $(BIN)/python -m tunerkit demo $(DEMO) --family sanavideo
	rm -rf $(DEMO)/output
	$(OFFLINE) OMP_NUM_THREADS=2 $(BIN)/papermill --log-output --no-progress-bar $(NOTEBOOK) \
	  $(DEMO)/sana_video.out.ipynb -p project $(abspath $(DEMO))
	@ls $(DEMO)/sana_video.out.ipynb $(DEMO)/output/pytorch_lora_weights.safetensors \
	  $(DEMO)/output/metrics.jsonl $(DEMO)/output/validation/*/*.mp4
	@echo "The executed notebook, the adapter, the losses and the videos are listed above."

notebooks: setup
	$(BIN)/python notebooks/source/build.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# More processes than cores: those that drive a browser or another process wait most of the time.
test: lint
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist loadgroup --no-loadscope-reorder

# Without it, and without TUNERKIT_BROWSER=1, its tests are skipped.
colab-bed: setup
	$(BIN)/python tests/browser/colab_bed.py

clean:
	rm -rf $(VENV) .colab-bed $(DEMO) build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
