# Everything a person or a machine does with this checkout. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV    := .venv
BIN     := $(VENV)/bin
PYTHON  ?= python3
STAMP   := $(VENV)/.installed
OUT     ?= out/demo
EPSILON ?= 3
DATA    ?= synthetic
BENCH_DATA ?= ../shared/data
WORKERS ?= 2
PROTOS  := $(sort $(wildcard protos/veil/wire/v1/*.proto))
CODE    := veil party coordinator dealer he_inference baseline cli tests examples

.PHONY: help setup demo test check bench bench-score bench-privacy bench-mpc bench-columns fuzz soak protos certs format clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-13s %s\n", $$1, $$2}'

setup: $(STAMP) ## Make the environment in .venv (Python 3.11+, a package index)

$(STAMP): pyproject.toml constraints.txt tools/setup.sh
	PYTHON="$(PYTHON)" bash tools/setup.sh "$(VENV)"
	touch $@

demo: setup ## Train jointly and score encrypted, whole way: DATA=synthetic|ml-1m:FOLDER EPSILON=3 OUT=out/demo
	$(BIN)/veil demo --data "$(DATA)" --parties 3 --epsilon "$(EPSILON)" --out "$(OUT)"

test: setup ## All tests, by WORKERS=2 processes; PYTEST_ARGS="-k name" for some
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: setup ## Lint, types, layering, generated code
	$(BIN)/buf lint protos
	bash tools/protos.sh --check
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Rewrite the code in its one format
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

protos: setup ## Regenerate veil/wire/v1 from protos/
	bash tools/protos.sh

bench: setup ## Timings as ratios measured side by side; tables and JSON in out/bench
	$(BIN)/veil bench all --out out/bench

bench-score: setup ## Encrypted scoring beside its peers and limits; tables and JSON in out/bench-score
	$(BIN)/veil bench score-all --out out/bench-score

bench-privacy: setup ## What a budget buys, on the real data sets in BENCH_DATA; tables and JSON in out/bench-privacy
	$(BIN)/veil bench privacy-all --data "$(BENCH_DATA)" --out out/bench-privacy
	$(BIN)/veil audit --data "ml-1m:$(BENCH_DATA)/ml-1m" --epsilon 3 --out out/bench-privacy/audit

bench-mpc: setup ## Secure computation beside SPU, CrypTen, Flower, NVFlare, each installed in out/peers; out/bench-mpc
	$(BIN)/veil bench mpc-all --out out/bench-mpc

bench-columns: setup ## Click models on split columns beside plaintext, on the samples in BENCH_DATA; out/bench-columns
	$(BIN)/veil bench columns-all --data "$(BENCH_DATA)" --out out/bench-columns

fuzz: setup ## 100,000 hostile inputs to a running scoring server, some minutes
	VEIL_FUZZ_INPUTS=100000 $(BIN)/python -m pytest -q --timeout=7200 tests/integration/test_scoring_fuzz.py

soak: setup ## 10 minutes of load on a scoring server whose compute process is killed at random
	VEIL_SOAK_S=600 $(BIN)/python -m pytest -q --timeout=1200 tests/integration/test_scoring_operation.py -k soak

certs: setup ## A consortium of three parties for a trial on one machine, in out/certs
	$(BIN)/veil certs init --dir out/certs --consortium trial --parties alpha,beta,gamma

clean: ## Remove the environment and everything that runs have made
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
