# Two commands for a fresh machine: `make demo` and `make test`. Only pip, Python 3.11+ and make are needed.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHECK_STAMP := $(VENV)/.check-installed
STAMP := $(VENV)/.installed
ENGINES_STAMP := $(VENV)/.engines-installed
DEMO_DIR ?= demo
PYTEST_WORKERS ?= 2

.PHONY: help install demo check test test-all web web-check peers test-bare torture docs format clean

help: ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## Create .venv and install everything for training and development.

# A stamp is newer than pyproject.toml exactly when what it names is installed: a second run installs nothing.
$(CHECK_STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: expected Python 3.11 or newer; got $$($(PYTHON) --version 2>&1); call make with PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $(CHECK_STAMP)

$(STAMP): $(CHECK_STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[train,export,report,search,edge,camera]" ./weights
	@touch $(STAMP)

# Heavy, and not to be had for every system: what needs it is skipped where it is missing, and says so.
$(ENGINES_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[litert]" || \
	  echo "warning: litert-torch cannot be installed here; the tests of LiteRT files are skipped"
	$(BIN)/python -m pip install --quiet --editable ".[openvino]" || \
	  echo "warning: OpenVINO cannot be installed here; its tests are skipped"
	@touch $(ENGINES_STAMP)

demo: $(STAMP) ## Run the main job on drawn leaves.
	$(BIN)/agridistill demo --out $(DEMO_DIR)

check: $(CHECK_STAMP) ## Lint, architecture, and types where torch is installed already.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@if [ -e $(STAMP) ]; then echo $(BIN)/mypy && $(BIN)/mypy; else echo "types: not checked before 'make install'"; fi

test: $(STAMP) check ## Run the checks, then all tests but the slow ones: minutes.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) --dist loadgroup -m "not slow"

# npm writes this file last.
web/node_modules/.package-lock.json: web/package-lock.json
	npm ci --prefix web --no-audit --no-fund

web: web/node_modules/.package-lock.json ## Build the phone page for `agridistill app`; needs Node 20 and npm.
	npm run build --prefix web

web-check: web ## Check the types of the phone page, and test its modules.
	npm run check --prefix web
	npm test --prefix web

test-all: $(ENGINES_STAMP) check peers ## Run the checks, then all tests also against real engines and brokers.
	@if command -v npm >/dev/null; then $(MAKE) web-check; else \
	  echo "warning: Node and npm are not installed: the tests of the phone page are skipped"; fi
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) --dist loadgroup -m "not slow" --cov --cov-fail-under=85
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) --dist loadgroup -m slow

# RabbitMQ comes from the system: apt-get install rabbitmq-server.
peers: ## Install amqtt and moto (pip) and aedes (npm) into .peers, for test-all.
	@test -e .peers/bin/amqtt || { $(PYTHON) -m venv .peers && .peers/bin/pip install --quiet "amqtt==0.12.1"; } || \
	  echo "warning: amqtt cannot be installed here; its tests are skipped"
	@test -e .peers/moto/bin/moto_server || { $(PYTHON) -m venv .peers/moto && \
	  .peers/moto/bin/pip install --quiet "moto[server,s3]==5.2.5"; } || \
	  echo "warning: moto cannot be installed here; its tests are skipped"
	@test -e .peers/node_modules/aedes || npm install --silent --prefix .peers aedes@1.2.0 || \
	  echo "warning: aedes cannot be installed here; its tests are skipped"

test-bare: $(ENGINES_STAMP) ## Run all tests as on a machine with Python, pip and make alone.
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	  env -u AGRIDISTILL_DATA PATH="$$($(BIN)/python -m tests.needs "$$folder")" OMP_NUM_THREADS=1 \
	  $(abspath $(BIN))/python -m pytest --numprocesses $(PYTEST_WORKERS) --dist loadgroup $(TESTS)

docs: $(STAMP) ## Build the documentation with the API reference into site/.
	$(BIN)/python -m pip install --quiet --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

torture: $(STAMP) ## Kill the field agent 1,400 times; needs Mosquitto and rclone, about 20 minutes.
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.edge.torture
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.edge.outage
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.edge.keep.killed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.edge.keep.killed --no-upload --limit-mb 0.2

format: $(STAMP) ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove everything that was installed or generated.
	rm -rf $(VENV) $(DEMO_DIR) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage
