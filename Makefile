# The front door. Every target first makes sure of .venv (locked in requirements.lock; a minute at most).
SHELL := /bin/sh
BIN := .venv/bin
# Of pytest: one has the long runs, which are mostly one thread each, the others share the rest.
WORKERS := $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -ge 2 ] || n=2; [ $$n -le 4 ] || n=4; echo $$n)

# Images of containers set it: every process would compile the 2,000 modules that it imports, 4 CPU-s of a run.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run dev serve up down test test-faults lint format lock bench bench-stream shell check clean env

env: ## create or update .venv
	@deploy/environment.sh

run: env ## materialise the whole graph (incremental) and print the summary
	@$(BIN)/headwater run

dev: env ## Dagster UI and daemon, prediction API, MLflow UI; ctrl-C stops all
	@$(BIN)/headwater dev

serve: env ## the prediction API alone
	@$(BIN)/headwater serve

up: env ## PostgreSQL, MariaDB, Kafka and Redis on loopback; prints the settings that use them
	@$(BIN)/headwater up

down: env ## stop them; their data is kept
	@$(BIN)/headwater down

check: env ## validate settings and catalog
	@$(BIN)/headwater check

lint: env ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint ## lint, types, unit, graph and integration tests
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-faults: env ## every fault that the change stream must survive; writes docs/reference/faults.md
	$(BIN)/pytest tests/faults --write-page docs/reference/faults.md

bench: env ## side-by-side benchmarks of graph and features, minutes; each prints its raw rows
	$(BIN)/python -m bench.load
	$(BIN)/python -m bench.graph
	$(BIN)/python -m bench.pit

bench-stream: env ## the change stream's, about 25 minutes: landing, and our connectors beside Debezium (needs Java)
	$(BIN)/python -m bench.landing
	$(BIN)/python -m bench.cdc

shell: env ## a shell with `headwater` on PATH
	@PATH="$(CURDIR)/$(BIN):$$PATH" $${SHELL:-/bin/sh} -i

lock: env ## compile requirements.lock from pyproject.toml
	uv=$$(command -v uv || echo .uv/bin/uv); $$uv pip compile pyproject.toml --extra dev \
	  --no-emit-index-url --no-header --no-annotate -q -o requirements.lock

clean: ## stop the servers below the embedded defaults' data directory and remove it
	@[ ! -d .headwater/stack ] || HEADWATER_HOME=.headwater $(BIN)/headwater down
	rm -rf .headwater

help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/'
