# Two commands are the whole set-up: `make up` runs Clickdam on this machine, `make test` proves it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help up test lint faults bench spike-k6 spike-locust lock

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

up: $(READY) ## install what is missing and run Clickdam on this machine (Ctrl-C stops it)
	@exec $(BIN)/clickdam up $(ARGS)

lint: $(READY) ## format, lint, types and the laws of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# two at once, a file each: most tests wait for something most of the time
test: lint ## lint, then the whole test suite against real servers
	$(BIN)/pytest -n 2 --dist loadfile -m "not long" $(ARGS)

faults: $(READY) ## the long fault runs, with their strict bounds
	$(BIN)/pytest -s -m long $(ARGS)

bench: $(READY) ## durable redirects beside what people build by hand, measured in turns (needs wrk)
	@exec $(BIN)/clickdam bench $(ARGS)

# sizes are variables, such as RESTING_PER_S=300 LOG=kafka FREEZE_BROKER_S=10: docs/load-tests.md
spike-k6: $(READY) ## a ten-fold spike and other bad days by k6; fails where it is slow or a click is lost
	@exec $(BIN)/python -m loadtests.spikes k6

spike-locust: $(READY) ## the same by locust
	@exec $(BIN)/python -m loadtests.spikes locust

lock: $(READY) ## pin the dependencies again (needs uv)
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --all-extras -o requirements.lock pyproject.toml
