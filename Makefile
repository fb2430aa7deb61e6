PY ?= python3
VENV ?= .venv
UV := $(VENV)/bin/uv
BACKEND ?=

.PHONY: setup lock

setup: $(VENV)/.stamp

$(VENV)/.stamp: requirements.lock pyproject.toml
	$(PY) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check uv==0.13.8
	$(UV) pip install -q --python $(VENV)/bin/python --compile-bytecode --require-hashes -r requirements.lock
	$(UV) pip install -q --python $(VENV)/bin/python --no-deps --no-build-isolation -e .
	touch $@

lock:
	$(UV) pip compile -q --universal --generate-hashes --no-header --all-extras --python-version 3.11 \
	  -c pins.txt pyproject.toml -o requirements.lock
