# Everything a developer types. `make help` lists it.
VENV ?= .venv
PY   := $(VENV)/bin/python
BIN  := $(VENV)/bin
PROTOS := $(shell find proto -name '*.proto' | sort)
.DEFAULT_GOAL := help
.PHONY: help up install install-dev gen gen-check proto-lint lint types floors check test clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(VENV)/.made:
	python3 -m venv $(VENV)
	@touch $@

$(VENV)/.local: $(VENV)/.made pyproject.toml
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[local,otel]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.local

install: $(VENV)/.local  ## Make a venv with what `mesh up` needs
install-dev: $(VENV)/.dev  ## Make a venv with everything

up: $(VENV)/.local  ## Start the local stack; ARGS="--tls" and the like are passed on
	@$(BIN)/mesh up $(ARGS)

gen: $(VENV)/.dev  ## Write generated/ from proto/
	@.ci/gen $(BIN) generated

gen-check: $(VENV)/.dev  ## Fail if generated/ is not what proto/ gives
	@rm -rf .gen-check && .ci/gen $(BIN) .gen-check && diff -r -x __pycache__ generated .gen-check \
	  && rm -rf .gen-check || { rm -rf .gen-check; echo 'generated/ differs from proto/: run `make gen` and commit the result.' >&2; exit 1; }
