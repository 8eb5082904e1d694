# Two commands are the whole set-up: `make up` runs Clickdam on this machine, `make test` proves it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help up test lint faults bench lock

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

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

lock: $(READY) ## pin the dependencies again (needs uv)
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --all-extras -o requirements.lock pyproject.toml
