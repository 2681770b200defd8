# Every target sets up what it needs, in .venv, on a machine that has Python >= 3.10 and a C++17 compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SYSTEM_PATH := $(PATH)
# Python writes what it compiled, wherever it was told not to: every process would compile it anew.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Where nvcc is, the CUDA kernels are built too: here for the cards of this machine, by `pip install .` for all.
ifndef TORCH_CUDA_ARCH_LIST
TORCH_CUDA_ARCH_LIST := $(shell $(PYTHON) tools/gpu_architectures.py)
endif
export TORCH_CUDA_ARCH_LIST
# Our own checks stop at a warning; nobody else's build does.
check test test-all: export KAN_KERNELS_WERROR := 1

SOURCES := $(shell find csrc python -type f) CMakeLists.txt setup.py pyproject.toml
CXX_FILES := $(shell find csrc python tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
# A process a core, of one thread each; tests that need more threads set them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadgroup
# Triton's kernels on the CPU, in its interpreter, which a process has for all kernels or for none.
INTERPRET := TRITON_INTERPRET=1 KAN_TEST_BACKENDS=reference,triton $(PYTEST) -W ignore -k triton
INTERPRETED := $(addprefix tests/backends/triton/test_triton_,interpreted.py knots.py bases.py activation.py) \
  tests/backends/test_kernels.py::test_op

.PHONY: demo test test-all test-edits faults check bench gpu interpret build wheel wheel-here sanitize sanitize-one
.PHONY: cuda-host docs format clean help

help:
	@echo "make demo      train KANs beside MLPs of the same size, print the table, draw the picture"
	@echo "make test      checks, the CPU kernels under sanitizers, tests, the wheel"
	@echo "make test-all  what takes long: long tests, every instruction set, a fault of each kind, 200 edits a peer"
	@echo "make faults    every fault of tests/mutations, one at a time: an hour or more"
	@echo "make test-edits  500 random edits of each other codebase's layers"
	@echo "make bench     the benchmark harness (BENCH='--quick' for a short run)"
	@echo "make gpu       on a GPU: build, test, measure, one report (the system's Python, offline, 8 minutes)"
	@echo "make check     ruff, clang-format, mypy, tables of the pages up to date"
	@echo "make docs      the documentation site in build/site, warnings are errors"
	@echo "make wheel     one wheel in dist/"
	@echo "make interpret the Triton kernels in Triton's interpreter, without a GPU: all of their tests"
	@echo "make sanitize  the CPU kernels under ASan and UBSan, on every instruction set of this machine"

# Python compiles what it imports: pip would compile all of torch.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
$(VENV)/.tools: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.10 is needed, this is " + sys.version) if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import tomllib' 2>/dev/null || $(PIP) tomli
	$(PIP) wheel $$($(BIN)/python tools/requirements.py build)
	@touch $@

$(VENV)/.ready: $(VENV)/.tools
	$(PIP) $$($(BIN)/python tools/requirements.py)
	@touch $@

# The extension in place: the tree itself is what runs, on this machine. All instruction sets take three times as long.
HAS = $(shell grep -sm1 -ow $(1) /proc/cpuinfo)
ISA := $(or $(if $(call HAS,avx512vl),avx512),$(if $(call HAS,avx2),avx2),baseline)
HERE := -DKAN_CPU_ISAS=$(ISA)
$(VENV)/.built: $(VENV)/.ready $(SOURCES)
	CMAKE_ARGS="$(HERE) $(CMAKE_ARGS)" $(BIN)/python setup.py --quiet build_ext --inplace
	@echo $(KAN_KERNELS_WERROR) > $@

build: $(VENV)/.built

$(VENV)/.built-all: $(VENV)/.ready $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@echo $(KAN_KERNELS_WERROR) > $@
	@cp $@ $(VENV)/.built

# Without a card nobody waits for CUDA kernels: the demo is built without them, or takes what `build` made.
CARD = $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -E -m1 '^([89]|1[0-9])[.]')
$(VENV)/.built-demo: $(VENV)/.ready $(SOURCES)
	CMAKE_ARGS="$(HERE) $(CMAKE_ARGS)" KAN_KERNELS_CUDA=$(or $(KAN_KERNELS_CUDA),$(if $(CARD),auto,0)) $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

demo: $(or $(wildcard $(VENV)/.built),$(VENV)/.built-demo)
	$(BIN)/python -m benchmarks.demo

bench: build
	$(BIN)/python -m benchmarks $(BENCH)

# No .venv and no pip: a machine with a GPU has its own torch. It builds what it can.
gpu:
	@PATH="$(SYSTEM_PATH)" $(PYTHON) -m benchmarks.gpu $(GPU)

check: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/python -m benchmarks readme --check
	$(BIN)/python -m benchmarks science --check
	$(BIN)/python -m benchmarks paths --check
	$(BIN)/python -m benchmarks.integrations --check
	$(BIN)/python -m benchmarks.heads --check
	$(BIN)/python -m benchmarks.equation_steps --check
	$(BIN)/python -m tools.support_table --check
	$(BIN)/python -m tools.static_cost step --page --check

# The site has an environment of its own: it reads the sources and runs none of them, so it needs no torch.
SITE := $(VENV)/site
$(SITE)/.ready: pyproject.toml
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -c 'import tomllib' 2>/dev/null || $(SITE)/bin/python -m pip install --quiet tomli
	$(SITE)/bin/python -m pip install --quiet --disable-pip-version-check $$($(SITE)/bin/python tools/requirements.py docs)
	@touch $@

docs: $(SITE)/.ready
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/python -m mkdocs build --strict --site-dir build/site

sanitize: $(VENV)/.tools
	$(BIN)/python tests/sanitize/run.py 100

# The fastest instruction set alone, on fewer cases.
sanitize-one: $(VENV)/.tools
	$(BIN)/python tests/sanitize/run.py --isa $(ISA) 40

# The CUDA kernels compiled for the host, where the tests look for them.
cuda-host: $(VENV)/.ready
	PYTHONPATH=.:tests:tests/support $(BIN)/python -c 'import cuda_host; cuda_host.why_not() or cuda_host.library()'

# Built in the folder that BUILT filled, with the same settings: nothing is compiled again.
BUILT := .built-all
wheel: $(VENV)/$(BUILT)
	rm -rf dist
	CMAKE_ARGS="$(if $(filter .built,$(BUILT)),$(HERE)) $(CMAKE_ARGS)" KAN_KERNELS_WERROR=$$(cat $(VENV)/$(BUILT)) $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist

wheel-here: build
	$(MAKE) wheel BUILT=.built

# What keeps one core busy runs two at a time, pip among it.
test:
	$(MAKE) -j 2 sanitize-one build
	$(MAKE) -j 2 check wheel-here cuda-host
	$(PYTEST) -m "not long and not faults"
	$(INTERPRET) $(INTERPRETED) -m "not long and not faults"

test-all: $(VENV)/.built-all sanitize docs
	$(PYTEST) -m long
	$(INTERPRET) $(INTERPRETED) -m long
	$(INTERPRET) tests/backends/test_golden.py
	$(MAKE) test-edits EDITS=200

# Every small fault in a kernel, one at a time, each of which a short test has to see: an hour or more.
faults: build
	$(PYTEST) -m faults

EDITS ?= 500
# Random edits of other codebases' layers: each is left alone, or computes what it did.
test-edits: build
	$(PYTEST) tests/integrations/test_code_edits.py --edits $(EDITS)

interpret: build
	$(INTERPRET) $(INTERPRETED) tests/backends/test_golden.py

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist *.egg-info kan_kernels/lib kan_kernels/_C*.so $(VENV)/.built*
