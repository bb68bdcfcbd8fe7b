# Everything a developer types. `make help` lists it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TOOLS  := .tools/bin
GRPCURL := github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
MACHINES := tests/words tests/resilience tests/balancing tests/xds tests/contract/test_descriptors.py tests/contract/test_policies.py
.DEFAULT_GOAL := help
.PHONY: help up install install-dev gen gen-check proto-lint proto-baseline lint types floors check tools test coverage drills soak bench bench-quick clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{sub(/:.*/, "", $$1); printf "  %-15s %s\n", $$1, $$2}'

# xds-protos overwrites opentelemetry-proto's modules with an old copy (grpc/grpc#42926): put the right ones back.
MEND = $(PIP) --force-reinstall --no-deps \
  "opentelemetry-proto==$$($(BIN)/python -c 'from importlib.metadata import version; print(version("opentelemetry-proto"))')"

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'Python 3.11 or later is needed: name one, e.g. `make PYTHON=python3.11 $(MAKECMDGOALS)`.' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.local: $(VENV)/.made pyproject.toml
	@echo 'Installing into $(VENV) …' && $(PIP) -e '.[local,otel]' && $(MEND)
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	@echo 'Installing into $(VENV) …' && $(PIP) -e '.[dev]' && $(MEND)
	@touch $(VENV)/.local $@

install: $(VENV)/.local  ## Make a venv with what `mesh up` needs
install-dev: $(VENV)/.dev  ## Make a venv with everything

up: $(VENV)/.local  ## Start the local stack; ARGS="--tls" and the like are passed on
	@$(BIN)/mesh up $(ARGS)

gen: $(VENV)/.dev  ## Write generated/ from proto/
	@.ci/gen $(BIN) generated

gen-check: $(VENV)/.dev  ## Fail if generated/ is not what proto/ gives
	@trap 'rm -rf .gen-check' EXIT; .ci/gen $(BIN) .gen-check && diff -rq -x __pycache__ generated .gen-check \
	  || { echo 'generated/ differs from proto/: run `make gen` and commit the result.' >&2; exit 1; }

# Both read descriptor sets, so neither needs a network. What was released is proto/baseline.binpb.
proto-lint: gen-check  ## Check the contracts' style, and that they break nobody who has the released ones
	@$(BIN)/buf lint generated/descriptors.binpb --config buf.yaml
	@$(BIN)/buf breaking generated/descriptors.binpb --against proto/baseline.binpb --config buf.yaml

proto-baseline: gen-check  ## Make the present contracts the released ones (part of a release)
	@cp generated/descriptors.binpb proto/baseline.binpb

lint: $(VENV)/.dev  ## Check style and form
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet . \
	  || { echo 'Try `$(BIN)/ruff check --fix . && $(BIN)/ruff format .`' >&2; exit 1; }

types: $(VENV)/.dev  ## Check the types, ours and those that users see
	@$(BIN)/mypy -p mesh -p usersvc && $(BIN)/mypy tests/typing

floors: $(VENV)/.dev  ## Check that each floor imports only from those below it
	@$(BIN)/lint-imports

check: lint types floors gen-check proto-lint  ## All that can be checked without running it

tools: $(TOOLS)/grpcurl  ## Build grpcurl, if Go is here

$(TOOLS)/grpcurl:
	@if command -v go >/dev/null; then echo 'Building grpcurl …'; GOBIN='$(CURDIR)/$(TOOLS)' go install $(GRPCURL); \
	  else echo 'No Go here: the tests with grpcurl will be skipped.'; fi

# One worker drives the stack while the other runs the small tests; those that measure time have the machine to themselves.
test: $(VENV)/.dev tools  ## Run every test; ARGS="-k name" and the like are passed on
	@$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

# The seed is fixed, so that a branch is tried in every run or in none.
coverage: $(VENV)/.dev  ## Fail if a branch of the words and machines (floors 0 and 1) is tried by none of their tests
	@$(BIN)/python -m coverage run -m pytest -q --no-header -p no:cacheprovider --hypothesis-seed=0 $(MACHINES)
	@$(BIN)/python -m coverage report

# Figures are of this machine and whatever else it does: leave it alone meanwhile.
drills: $(VENV)/.dev  ## Try every fault under load and write docs/drills.md; FAULT=name tries one
	@PYTHONPATH=tests $(BIN)/python -m drills $(FAULT) $(ARGS)

soak: $(VENV)/.dev  ## An hour under load with a random fault a minute; SOAK="--minutes 10 --seed 7"
	@PYTHONPATH=tests $(BIN)/python -m drills --soak $(SOAK)

bench: $(VENV)/.dev  ## Measure beside rivals, half an hour, and write docs/benchmarks.md; ROW="client edge" for some
	@$(BIN)/python -m bench $(ROW) $(ARGS)

bench-quick: $(VENV)/.dev  ## Fail if a ratio is worse than the committed one, under two minutes
	@$(BIN)/python -m bench --quick $(ROW) $(ARGS)

clean:  ## Remove what the other targets made
	rm -rf $(VENV) .tools .mesh .gen-check dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
