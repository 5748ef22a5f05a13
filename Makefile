# `make demo` and `make test` set up all they need, given Python 3.10 or newer with pip.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test slow integrations oldest minimum coverage check lint format types bench peers docs dist hooks clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=$(PYTHON)  VENV=$(VENV)  TORCH=$(TORCH)  (another torch: give it a VENV of its own)"
	@echo "  ARGS goes to pytest, to the demo or to the peers: make test ARGS='-k sampler'"

demo: $(VENV)/.has-cdr ## learn which source behaviours matter, on generated data
	@$(BIN)/python examples/cdr/run_biao.py --data g1 --seeds 3 --jobs 2 $(ARGS)

test: $(VENV)/.has-test ## run the tests
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

slow: $(VENV)/.has-test ## run the tests that take more than a few seconds each
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "slow and not long" $(ARGS)

coverage: $(VENV)/.has-test ## run both kinds and list the lines of reweight/ that none of them reaches
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --cov -m "not long" $(ARGS)

# The lowest version of every dependency is read from pyproject.toml, where it is stated once.
oldest: ## run the tests with the oldest torch and the oldest dependencies, in .venv-oldest
	@mkdir -p build
	@grep -oE '"[A-Za-z0-9_-]+>=[0-9.]+"' pyproject.toml | tr -d '"' | sed 's/>=/==/' > build/oldest.txt
	@PIP_CONSTRAINT=build/oldest.txt $(MAKE) --no-print-directory test \
		VENV=.venv-oldest TORCH="$$(grep '^torch==' build/oldest.txt)"

# One or more files for each part and each dependency, in about a minute.
MINIMUM := tests/test_wrapping.py tests/test_checkpoint.py tests/test_losses.py tests/test_preconditioning.py \
	tests/solvers/test_solvers.py tests/problem/test_isolation.py tests/problem/test_first_order.py \
	tests/curvature/test_linearise.py tests/samplers/test_pair_loader.py tests/weighters/test_weighters.py \
	tests/tensors/test_forward_mode.py tests/diagnostics/test_recorder.py tests/faults/test_run_state.py \
	tests/cdr/data/test_amazon.py tests/cdr/test_cli.py
minimum: ## the same for a few tests of each part, in minutes
	@$(MAKE) --no-print-directory oldest ARGS="$(MINIMUM) $(ARGS)"

# What they bring has no place among the other tests' packages.
integrations: ## test reweight.integrations against the real packages, in .venv-integrations
	@$(MAKE) --no-print-directory VENV=.venv-integrations .venv-integrations/.has-integrations
	@.venv-integrations/bin/python -m pytest --numprocesses 2 --dist loadfile -m "not long" \
		tests/integrations reweight/integrations $(ARGS)

check: lint types docs coverage ## all that must hold before a change goes in

lint: $(VENV)/.has-test ## look for mistakes, unformatted code and invalid workflows
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml

format: $(VENV)/.has-test ## mend what `make lint` can mend by itself
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

types: $(VENV)/.has-test ## check the types of reweight/ and examples/
	@$(BIN)/mypy

bench: $(VENV)/.has-test ## how exact: solvers and operations against dense references
	@$(BIN)/python benchmarks/exactness.py
	@$(BIN)/python benchmarks/operations.py

# The peers want other versions of numpy, and what they bring has no place among the tests' packages.
peers: ## one hypergradient beside other libraries' and plain autograd's, in .venv-peers
	@$(MAKE) --no-print-directory VENV=.venv-peers .venv-peers/.has-bench
	@.venv-peers/bin/python benchmarks/peers.py $(ARGS)

docs: $(VENV)/.has-docs ## build docs/_build/html and run the pages' snippets
	@$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@$(BIN)/sphinx-build -W --keep-going -q -b doctest docs docs/_build/doctest
	@echo "docs/_build/html/index.html"

dist: $(VENV)/.has-dev ## build dist/, look inside, and run an example with its wheel in an environment of its own
	@rm -rf dist build/installed
	@$(BIN)/python -m build --quiet .
	@$(BIN)/python -m tests.distribution dist
	@$(BIN)/twine check --strict dist/*
	@$(PYTHON) -m venv build/installed
	@build/installed/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' dist/*.whl
	@build/installed/bin/python -m pip check
	@cd build && installed/bin/python ../examples/noisy_labels.py
	@ls dist/*

hooks: $(VENV)/.has-dev ## set up all tools, and have git run the quick checks before each commit
	@$(BIN)/pre-commit install

clean: ## remove the environments, builds and caches; runs/ stays
	rm -rf $(VENV) .venv-oldest .venv-peers .venv-integrations build dist docs/_build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes in first and alone: left to the package's dependencies, pip would take the newest one
# instead of the build that suits the machine. It is named again with each extra, since a package of
# an extra may prefer another one.
$(VENV)/.has-torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "$(PYTHON) is older than Python 3.10: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@echo "Making $(VENV) with $(TORCH) (once; a large download if it is not cached) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) '$(TORCH)'
	@touch $@

$(VENV)/.has-%: pyproject.toml | $(VENV)/.has-torch
	@echo "Installing torch-reweight[$*] ..."
	@$(PIP) '$(TORCH)' --editable '.[$*]'
	@touch $@
