# install  set up .venv: PyTorch (its CPU build where there is no GPU), ddfast with its native operators where there is a
#          C++ compiler, what the demo and the tests need
# demo     install, then distil scikit-learn's real handwritten digits and evaluate the result
# test     the quick suite        test-full  everything, slow suites too        lint  ruff and mypy
# sanitize the native operators under GCC's sanitizers of addresses, undefined behaviour, leaks and threads
# bench    every operator on every workload against its baselines, into benchmarks/results   bench-quick  that they run
# kernels  compiles every Triton kernel for GPUs that need not be there, with .venv's Triton and for an H100 with the oldest
#          supported one; CHIPS="A100 H100 B200"
# versions builds ddfast on Python 3.12 with the oldest versions and on 3.13 with the newest, and runs a sample of the tests
# gpu      minutes on a GPU, with the packages PYTHON has, no network (docs/gpu.md): RUN=first|second SECONDS=300 OUT=folder
# gpu-bundle    what is carried to a machine without network, by GPU_PYTHON, whose versions are that machine's
# gpu-rehearse  both commands on the CPU at toy sizes, and their archives read
#
# To choose otherwise:  make install PYTHON=python3.12 CONSTRAINTS=my.txt  (CONSTRAINTS=/dev/null: no constraint)

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= $(if $(shell command -v nvidia-smi),/dev/null,constraints/cpu.txt)
DEMO_RUN ?= runs/demo
CHIPS ?= A100 H100 B200
RUN ?= first
SECONDS ?= 300

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-full lint kernels versions sanitize bench bench-quick gpu gpu-bundle gpu-rehearse clean

install: $(STAMP)

$(STAMP): pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*/*) $(filter-out /dev/null,$(CONSTRAINTS))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) torch 'setuptools>=77' wheel
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[plot,digits,images,test]'
	@touch $@

demo: $(STAMP)
	rm -rf $(DEMO_RUN)
	$(BIN)/ddfast distill --out $(DEMO_RUN)
	@$(BIN)/ddfast report $(DEMO_RUN) --check > /dev/null

test: $(STAMP)
	$(BIN)/python -m pytest -m 'not full'
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m 'not full' -k 'triton or emulated'

test-full: $(STAMP)
	$(BIN)/python -m pytest
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -k 'triton or emulated'
	tests/versions suites

$(VENV)/.linted: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[lint]'
	@touch $@

lint: $(VENV)/.linted
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

kernels: $(STAMP)
	$(BIN)/python -m benchmarks.kernels --chips $(CHIPS) --check
	PYTHONPATH=$$(PYTHON=$(BIN)/python tests/versions triton) $(BIN)/python -m benchmarks.kernels --chips H100 --check
	@if command -v nvcc > /dev/null; then $(BIN)/python -m benchmarks.kernels --cuda --check; else echo 'no nvcc: csrc/cuda is not compiled'; fi

versions:
	tests/versions suites

sanitize: $(STAMP)
	PYTHON=$(BIN)/python csrc/sanitize/run thread
	PYTHON=$(BIN)/python csrc/sanitize/run address

bench: $(STAMP)
	out=$$($(BIN)/python -m benchmarks.environment) && \
	$(BIN)/python -m pytest benchmarks --benchmark-columns=median,iqr,rounds --benchmark-json=$$out/operators.json && \
	gzip -9nf $$out/operators.json
	$(BIN)/python -m benchmarks.report

bench-quick: $(STAMP)
	$(BIN)/python -m pytest benchmarks --scale quick --benchmark-quiet

gpu:
	$(PYTHON) -m benchmarks.gpu $(RUN) --seconds $(SECONDS) $(if $(OUT),--out $(OUT))

# What the GPU machine has: its Python and its packages, which everything that is carried must be made by.
GPU_VENV := .venv-gpu
GPU_PYTHON ?= $(GPU_VENV)/bin/python
GPU_BASE ?= python3.12
GPU_PACKAGES := torch==2.11.0 triton==3.6.0 'numpy>=2.5,<2.6' 'setuptools>=77' pillow pytest hypothesis safetensors typer rich

$(GPU_VENV)/bin/python:
	$(GPU_BASE) -m venv $(GPU_VENV)
	$@ -m pip install --quiet $(GPU_PACKAGES)

gpu-bundle: $(filter $(GPU_VENV)/%,$(GPU_PYTHON))
	@data=$${DDFAST_DATA:-none}/cifar10; \
	if [ ! -f "$$data/train.npz" ] && [ -f ../shared/data/unpack.py ]; then \
	    data=build/gpu/cifar10; [ -f $$data/train.npz ] || $(GPU_PYTHON) ../shared/data/unpack.py cifar10 $$data; fi; \
	[ -f "$$data/train.npz" ] || { echo 'no images: DDFAST_DATA must name a folder with cifar10/train.npz'; data=; }; \
	$(GPU_PYTHON) -m benchmarks.gpu bundle $${data:+--data $$data}
	$(GPU_PYTHON) -m benchmarks.gpu bundle --check

gpu-rehearse: $(STAMP)
	$(BIN)/python -m benchmarks.gpu --rehearse --out runs/gpu/rehearsed
	$(BIN)/python -m benchmarks.gpu read runs/gpu/rehearsed/first.tar.xz runs/gpu/rehearsed/second.tar.xz --into runs/gpu/read

clean:
	rm -rf $(VENV) build *.egg-info ddfast/_C*.so
