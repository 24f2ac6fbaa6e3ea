# Each target sets itself up: a virtual environment in .venv, pinned dependencies, the built library.
#   make train   trains a small language model on real text        make test    proves the kernels (the part that CI runs)
#   make proof   the whole matrix of every rung                    make lint    formatting, style, types
#   make bench   speed beside torch, with this machine's ceilings  make build   only the set-up
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL ?= 2

DEPENDENCIES := torch triton numpy pybind11 scikit-build-core cmake ninja pytest pytest-xdist expecttest safetensors typer rich \
                matplotlib tensorboard datasketch tokenizers transformers ruff mypy clang-format typos
# The CUDA kernels that tests run on the CPU need CUDA's headers, no more.
EMULATION := $(if $(wildcard $(or $(CUDA_HOME),/usr/local/cuda)/include/cuda_runtime.h),ON,OFF)
SOURCES := pyproject.toml CMakeLists.txt hetkern/cli.py $(shell find csrc cmake -type f)

.PHONY: train test proof lint bench build clean
.DEFAULT_GOAL := build

train: build
	hetkern train $(ARGS)

test: build
	bash python_tests/run.sh

proof: build
	bash python_tests/proof.sh

bench: build
	bash benchmarks/run.sh $(ARGS)

lint: $(VENV)/.dependencies
	@echo "== lint: ruff, clang-format, mypy, typos"
	ruff check .
	ruff format --check --quiet . || { echo "run: ruff format ."; exit 1; }
	clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	mypy
	typos

build: $(VENV)/.built

$(VENV)/.dependencies: constraints.txt Makefile
	@echo "== set-up: virtual environment and pinned dependencies in $(VENV) (some minutes the first time: torch is large)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(DEPENDENCIES)
	@touch $@

$(VENV)/.built: $(VENV)/.dependencies $(SOURCES)
	@echo "== set-up: building the native library (some minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
	    --config-settings=build-dir=build/develop --config-settings=cmake.define.HETKERN_WARNINGS_AS_ERRORS=ON \
	    --config-settings=cmake.define.HETKERN_EMULATION=$(EMULATION) --config-settings=cmake.define.HETKERN_CUDA_ARCHS=90a -e .
	@touch $@

clean:
	rm -rf build dist $(VENV)/.built hetkern/*.so
