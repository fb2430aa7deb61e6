# faceprior. `make setup && make demo` is all it takes; `make help` lists the rest.
PY ?= python3
VENV ?= .venv
BACKEND ?= $(shell cat $(VENV)/.backend 2>/dev/null)
CONFIG ?=
TASK ?=
SHARDS ?=
RUN ?=
INIT ?=
CNN ?=
INPUT ?=
OUT ?=
ARGS ?=
NPROC ?= 1
NODES ?= 1
WORKERS ?= 2

BIN := $(VENV)/bin
UV := $(BIN)/uv
# One process runs plainly; several through torchrun, on GPUs where there are any. LAUNCHER replaces all of it.
LAUNCHER ?= $(if $(filter-out 1,$(NPROC)),$(BIN)/torchrun --standalone --nproc_per_node $(NPROC),$(BIN)/python)
FACEPRIOR := $(LAUNCHER) -m pipelines
SETTINGS = $(if $(SHARDS),data.shards=$(SHARDS)) $(if $(RUN),run=$(RUN)) $(if $(INIT),init=$(INIT)) $(if $(CNN),cnn=$(CNN)) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup lock demo test lint types slow shards doctor pretrain finetune evaluate predict submission report bench slurm reliability clean

help:  ## list what can be made
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(VENV)/.stamp  ## virtual environment from the hashed lock [BACKEND=cpu|cu126|site] [PY=python3.12]

ifneq ($(wildcard $(VENV)/.backend),)
ifneq ($(BACKEND),$(shell cat $(VENV)/.backend))
$(error $(VENV) was made with BACKEND=$(shell cat $(VENV)/.backend); remove it to make it with BACKEND=$(BACKEND))
endif
endif

$(VENV)/.stamp: requirements.lock pyproject.toml
ifeq ($(BACKEND),site)
	$(PY) -m venv --system-site-packages $(VENV)
else
	$(PY) -m venv $(VENV)
endif
	$(BIN)/python -m pip install -q --disable-pip-version-check uv==0.13.8
ifeq ($(BACKEND),)
	$(UV) pip install -q --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(UV) pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
else ifeq ($(BACKEND),site)
	$(BIN)/python -c "import torch, torchvision"
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
else
	$(UV) pip install -q --python $(BIN)/python --compile-bytecode --torch-backend=$(BACKEND) -e '.[dev]'
endif
	@$(BIN)/python -m pipelines.gpunote
	@echo '$(BACKEND)' > $(VENV)/.backend
	@touch $@

lock:  ## resolve requirements.lock, and bench/peers.lock beside it, anew
	$(UV) pip compile -q --universal --generate-hashes --no-header --extra dev --python-version 3.11 \
	  -c pins.txt pyproject.toml -o requirements.lock
	@sed -n 's/^\([A-Za-z0-9._-]*==.*[^ \\]\) *\\$$/\1/p' requirements.lock > $(VENV)/locked.txt
	$(UV) pip compile -q --universal --generate-hashes --no-header --no-annotate --python-version 3.11 -c $(VENV)/locked.txt \
	  $$(sed -n 's/==.*//; s/^/--no-emit-package /p' $(VENV)/locked.txt | sort -u) \
	  --override bench/overrides.txt bench/peers.txt -o bench/peers.lock

demo: setup  ## every stage on rendered faces, and one page of all, in minutes [NPROC=n] [ARGS=…]
	$(FACEPRIOR) demo $(ARGS)

lint: setup  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy, strict
	$(BIN)/mypy

test: lint types  ## lint, types and tests [WORKERS=2]
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu"

reliability: setup  ## kills, damage, hostile files, every layout: writes docs/reliability.md, in about 15 minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.reliability

slow: setup  ## the tests that take minutes
	$(BIN)/pytest -m slow

shards: setup  ## raw faces -> shards: SOURCE=folder|celeba|affwild2|rig|rendered|… SRC=… OUT=… [ARGS="align.size=112 …"]
	$(BIN)/python -m pipelines shards build $(SOURCE) $(or $(SRC),-) $(OUT) $(ARGS)

doctor: setup  ## verify every byte and sample of SHARDS=a[,b]
	$(BIN)/python -m pipelines doctor $(SHARDS) $(ARGS)

pretrain: setup  ## masked autoencoder [CONFIG=…] [SHARDS=…] [RUN=…] [INIT=…] [NPROC=n] [ARGS="optim.base_lr=1e-4 …"]
	$(FACEPRIOR) pretrain $(CONFIG) $(SETTINGS)

finetune: setup  ## TASK=mtl|lsd|dan|expr|au|va [CONFIG=…] [INIT=run] [CNN=run] [SHARDS=…] [RUN=…] [NPROC=n] [ARGS=…]
	$(FACEPRIOR) finetune $(or $(CONFIG),$(TASK)_demo) $(SETTINGS)

evaluate: setup  ## score a finished run: RUN=… [SHARDS=…] [ARGS="--split test --tune"]
	$(BIN)/python -m pipelines evaluate "$(RUN)" $(if $(SHARDS),--shards $(SHARDS)) $(ARGS)

predict: setup  ## faces of a picture, video or folder: RUN=… INPUT=… [OUT=faces.csv] [ARGS="--pictures folder …"]
	$(BIN)/python -m pipelines predict "$(RUN)" "$(INPUT)" $(if $(OUT),--out "$(OUT)") $(ARGS)

submission: setup  ## a challenge's file: RUN=… LIST=names.txt OUT=… [SPLIT=test] [ARGS="--challenge lsd"]
	$(BIN)/python -m pipelines submission "$(RUN)/predictions/$(or $(SPLIT),test).csv" "$(LIST)" "$(OUT)" $(ARGS)

report: setup  ## write report.html of RUN="a [b …]", or OUT
	$(BIN)/python -m pipelines report $(RUN) $(if $(OUT),--out "$(OUT)")

# Peers live beside the environment, not in it: one of them wants an older omegaconf, another brings a pytest plugin.
$(VENV)/peers/.stamp: bench/peers.lock $(VENV)/.stamp
	$(UV) pip install -q --python $(BIN)/python --target $(VENV)/peers --no-deps --require-hashes -r bench/peers.lock
	@touch $@

bench: $(VENV)/peers/.stamp  ## every measurement beside its peers, and docs/benchmarks.md [ARGS="mae_step reading …"]
	$(BIN)/python -m bench $(ARGS)

slurm: setup  ## write and submit a job that requeues itself: CONFIG=… [NODES=n] [ARGS=…]
	$(BIN)/python -m pipelines slurm --nodes $(NODES) $(CONFIG) $(SETTINGS)

clean:  ## remove caches, not runs and data
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
