# `make quickstart` and `make test` are all a fresh machine needs: each makes or refreshes .venv from the lock by itself.
.DEFAULT_GOAL := help
.PHONY: help install quickstart genrm chain agent vision check test test-long lint docs bench lock clean
.DELETE_ON_ERROR:

SEED ?= 0
CONTROLLERS ?= 2
ENGINE ?= vllm

VENV := .venv
BIN := $(VENV)/bin
TORCH_VERSION := 2.13.0
ifndef TORCH
TORCH := $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
endif
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

LOCK := $(if $(filter cuda,$(TORCH)),requirements-cuda.lock,requirements.lock)
STAMP := $(VENV)/.installed-$(TORCH)
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -qq --no-warn-script-location
# Linked to CUDA; beside a CPU torch they stop the engines: "operator torchvision::nms does not exist".
HARMFUL := torchvision torchaudio torchcodec

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## Make or refresh .venv from the lock (TORCH=cpu|cuda, PYTHON=python3.11)

# The stamp is written last, so an interrupted installation goes on where it stopped.
$(STAMP): $(LOCK) pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python >= 3.11 with venv found; install one (Debian: apt-get install python3-venv) or give PYTHON=/path/to/python3.11" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "make: no C compiler (cc) found, and pycosat is compiled; Debian: apt-get install gcc python3-dev" >&2; exit 1; }
	@ls $(VENV)/.installed-* 2>/dev/null | grep -qv -- '-$(TORCH)$$' && { echo "==> $(VENV) was made for another device: making it anew"; rm -rf $(VENV); } || true
	@test -x $(BIN)/python || { echo "==> Making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "==> Installing torch $(TORCH_VERSION) for $(TORCH)"
	@$(call install_torch_$(TORCH))
	@echo "==> Installing $$(grep -c == $(LOCK)) packages of $(LOCK) (a few minutes on a first run)"
	@$(INSTALL) --no-deps -r $(LOCK)
	@$(if $(filter cpu,$(TORCH)),$(PIP) uninstall -qq -y $(HARMFUL))
	@echo "==> Installing yatt itself"
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@
	@echo "==> Ready: $(BIN)/yatt"

# A CPU wheel where one is offered, the ordinary one (with the libraries it asks for) otherwise.
install_torch_cpu = $(PIP) show -qq torch 2>/dev/null && $(BIN)/python -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$(TORCH_VERSION)')" \
	|| $(INSTALL) --no-deps 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null \
	|| { echo "    no CPU wheel offered: the ordinary torch, with its CUDA libraries (several GB)"; $(INSTALL) 'torch===$(TORCH_VERSION)' -c $(LOCK); }
install_torch_cuda = $(INSTALL) 'torch===$(TORCH_VERSION)' -c $(LOCK)

quickstart: $(STAMP) ## Train a toy policy from nothing, in minutes, without a GPU (SEED=0 CONTROLLERS=2 ENGINE=vllm|sglang)
	@$(BIN)/python examples/quickstart/run.py --seed $(SEED) --controllers $(CONTROLLERS) --engine $(ENGINE)

genrm: $(STAMP) ## The quickstart's task, the reward given by a tiny judge that is trained first (SEED=0 CONTROLLERS=2 ENGINE=vllm|sglang)
	@$(BIN)/python examples/genrm/run.py --seed $(SEED) --controllers $(CONTROLLERS) --engine $(ENGINE)

chain: $(STAMP) ## The same sums through the whole chain: SFT, preferences, a reward model, PPO (SEED=0 CONTROLLERS=2)
	@$(BIN)/python examples/chain/run.py --seed $(SEED) --controllers $(CONTROLLERS)

vision: $(STAMP) ## A tiny policy that sees learns to name a colour in a picture (SEED=0 CONTROLLERS=2 ENGINE=vllm|sglang)
	@$(BIN)/python examples/vision/run.py --seed $(SEED) --controllers $(CONTROLLERS) --engine $(ENGINE)

agent: $(STAMP) ## Products that a tiny model learns to ask a calculator for (SEED=0 CONTROLLERS=2 ENGINE=vllm|sglang)
	@$(BIN)/python examples/agent/run.py --seed $(SEED) --controllers $(CONTROLLERS) --engine $(ENGINE)

lint: $(STAMP) ## Style, format, types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

docs: $(STAMP) ## Build the site of docs/ into build/site; a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q
	@echo "build/site/index.html"

# Two at a time: whole runs wait for processes to start most of the time. A file stays together, for its fixtures.
TESTS := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile

check: lint ## Lint, then the tests that take no time: what to run while writing
	@$(TESTS) -q -m "not slow and not long"

test: lint ## Lint, then every test of a change
	@$(TESTS) --durations=15

test-long: $(STAMP) ## What a change is not held up by: thousands of fault seeds, benchmarks as they are
	@$(TESTS) --durations=15 -m long

bench: $(STAMP) ## Run the benchmarks
	@$(BIN)/python -m benchmarks

lock: ## Resolve pyproject.toml anew and rewrite the locks
	@rm -rf build/lock && $(PYTHON) -m venv build/lock && build/lock/bin/python -m pip install -qq --upgrade pip
	@build/lock/bin/python .ci/lock.py requirements.lock cpu dev docs sglang
	@build/lock/bin/python .ci/lock.py requirements-cuda.lock cuda dev docs

clean: ## Remove .venv, caches and build output; runs/ is kept
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis examples/*/work
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
