# bough: `make demo` first. Everything is installed into .venv of this checkout, except the packages
# that scripts/setup.sh names and asks about.
BIN := .venv/bin
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help setup demo test unit test-long test-kvm test-foreign fuzz lint format torture bench docs clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install missing packages, and bough with the packages of its tests into .venv
	@scripts/setup.sh dev

demo: ## install missing packages, then build, run, use and fork a machine
	@scripts/setup.sh
	@$(BIN)/python examples/demo.py

# Selected tests run in one process, so that -s, -x and --pdb work.
test: setup ## run all tests, on real machines; ARGS="-k name" selects tests
	@$(if $(ARGS),$(BIN)/python -m pytest $(ARGS),scripts/test.sh)

unit: setup ## run the tests that need no machine
	@$(BIN)/python -m pytest tests/unit $(ARGS)

test-long: setup ## run the long tests, one after the other, on an idle host; ARGS="-k name" selects tests
	@BOUGH_TEST_LONG=1 $(BIN)/python -m pytest -m long $(ARGS)

# Where KVM works the same tests run directly, and `make test` has them too.
test-kvm: setup ## run the tests of KVM; without KVM in an emulated machine, for an hour; ARGS="-k fork" selects tests
	@BOUGH_TEST_KVM=auto $(BIN)/python -m pytest -s tests/kvm $(ARGS)

test-foreign: ## build and run machines of other processors; ARCHES="arm64"; takes a quarter of an hour
	@scripts/setup.sh dev $(or $(ARCHES),arm64 riscv64 i386)
	@BOUGH_TEST_FOREIGN="$(or $(ARCHES),arm64 riscv64 i386)" $(BIN)/python -m pytest -s tests/acceptance/test_foreign.py $(ARGS)

fuzz: setup ## fuzz the inputs from guests; TARGETS="wire" SECONDS=600
	@$(BIN)/python -m pip install -qq atheris
	@$(BIN)/python -m tests.fuzz $(or $(TARGETS),wire values channel uplink terminal archive disk ova lists) \
		--seconds $(or $(SECONDS),60)

lint: setup ## check style, types and imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/unit/test_imports.py

format: setup ## format the code
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

torture: setup ## kill processes and cut the power at random for SECONDS=600, make 200 forks; report lost and doubled data
	@$(BIN)/python -m tests.torture --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))
	@BOUGH_TEST_LONG=1 BOUGH_POWERCUT_FILES=60 BOUGH_POWERCUT_CUTS=0 $(BIN)/python -m pytest -qs tests/machines/test_powercut.py
	@BOUGH_TEST_LONG=1 BOUGH_STATEFUL_EXAMPLES=40 BOUGH_STATEFUL_STEPS=50 $(BIN)/python -m pytest -q tests/acceptance/test_two_at_once.py
	@BOUGH_FORKS=200 $(BIN)/python -m pytest -qs tests/acceptance/test_snapshots.py -k nobody_meets --timeout 3600

bench: setup ## measure bough beside other programs; ONLY=exec selects a benchmark
	@$(BIN)/python -m bench $(ONLY)

docs: setup ## write the pages that are generated from the code
	@$(BIN)/python scripts/make_docs.py

clean: ## remove what make made here; machines and images stay
	rm -rf .venv build dist test-artifacts bench/results .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
