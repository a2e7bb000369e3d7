# install  set up .venv: PyTorch (its CPU build where there is no GPU), ddfast with its native operators where there is a
#          C++ compiler, what the demo and the tests need
# demo     install, then distil scikit-learn's real handwritten digits and evaluate the result
# test     the quick suite        test-full  everything, slow suites too        lint  ruff and mypy
# sanitize the native operators under GCC's sanitizers of addresses, undefined behaviour, leaks and threads
# bench    every operator on every workload against its baselines, into benchmarks/results   bench-quick  that they run
# kernels  compiles every Triton kernel for GPUs that need not be there: registers, spills, tensor-core instructions
# gpu      all that needs a GPU, with the packages PYTHON has, no network; PARTS="tests bench" OUT=folder COMMIT=name
#
# To choose otherwise:  make install PYTHON=python3.12 CONSTRAINTS=my.txt  (CONSTRAINTS=/dev/null: no constraint)

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= $(if $(shell command -v nvidia-smi),/dev/null,constraints/cpu.txt)
DEMO_RUN ?= runs/demo

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-full lint kernels sanitize bench bench-quick gpu clean

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

$(VENV)/.linted: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[lint]'
	@touch $@

lint: $(VENV)/.linted
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

kernels: $(STAMP)
	$(BIN)/python -m benchmarks.kernels
	@if command -v nvcc > /dev/null; then $(BIN)/python -m benchmarks.kernels --cuda; else echo 'no nvcc: csrc/cuda is not compiled'; fi

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
	@$(PYTHON) -c "import ddfast.kernels" 2> /dev/null || ln -sfn ../kernels ddfast/kernels
	$(PYTHON) -m benchmarks.gpu --parts $(PARTS) $(if $(OUT),--out $(OUT))

clean:
	rm -rf $(VENV) build *.egg-info ddfast/_C*.so
