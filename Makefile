# make test and make bench do all their own set-up: Python 3.10 or newer and a C++ compiler are enough.

PYTHON ?= python3#   what .venv is made from
TORCH ?=#            a torch version, e.g. 2.11.0; empty: the newest
VENV ?= .venv$(if $(TORCH),-$(TORCH))
ARGS ?=#             passed on by test and bench

# VENV= (empty) uses PYTHON's own environment as it is and installs nothing.
PY := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
# Built for this machine alone: its GPUs' architectures, or without CUDA where there is no GPU. An explicit setting wins.
export SRMSNORM_CUDA ?= native
# Bytecode is left to the first import, where Python may write it: 2 s for what is imported of torch, 17 for all of it.
export PIP_COMPILE ?= $(if $(PYTHONDONTWRITEBYTECODE),1,0)
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
CPP = $(wildcard benchmarks/*.cu benchmarks/*.cuh tests/*.cpp tests/*.cu examples/cpp/*.h examples/cpp/*.cpp csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)
clang_format = PATH="$$(dirname "$$(command -v $(PY))"):$$PATH" clang-format
with = $(if $(VENV),$(1:%=$(VENV)/.%))
CHECK = $(PY) -m pytest -x -q tests/test_forward.py tests/test_backward.py
upper = $(shell echo $(1) | tr a-z A-Z)
option = $(if $($(upper)),--$(1) $($(upper)))

.PHONY: help build test fuzz sanitize check bench lint format wheel release-check clean

help:
	@echo 'make build    build srmsnorm in place, for this machine: its GPUs, or the CPU alone where there is none'
	@echo 'make test     build, then the tests (ARGS goes to pytest)'
	@echo 'make fuzz     build, then calls drawn at random against float64 (N, SEED, INDEX, SECONDS, JOBS, ISA, DEVICE)'
	@echo 'make sanitize the same under ASan + UBSan and under TSan, in builds of their own (ARGS goes to tests/sanitize.py)'
	@echo 'make check    build, then the tests of forward and backward alone'
	@echo 'make bench    build, check, then the benchmark tables (ARGS goes to benchmarks/run.py)'
	@echo 'make lint     ruff, mypy, clang-format'
	@echo 'make format   let ruff and clang-format write'
	@echo 'make wheel    dist/*.whl for this platform: every torch, Python and GPU (ARGS="2.11 2.15" for these torch versions)'
	@echo 'make release-check  whether the wheel and the source distribution in dist/ are fit to be released'
	@echo 'make clean    remove what was built'
	@echo 'They install into .venv first; VENV= PYTHON=python3 uses an existing environment and installs nothing.'
	@echo 'TORCH=2.11.0 takes that torch (in .venv-2.11.0).'
	@echo 'Without a GPU, SRMSNORM_CUDA=auto builds the CUDA part too, for all GPUs; TORCH_CUDA_ARCH_LIST=9.0 for one.'

build: $(call with,build)
	$(PY) setup.py build_ext --inplace

# Threads that wait for each other sleep: where several tests share the cores, those that spin keep the others waiting
# (662 tests, two at a time on two cores: 43 s for 128).
test fuzz: export OMP_WAIT_POLICY ?= PASSIVE

test: $(call with,test) build
	$(PY) -m pytest $(ARGS)

fuzz: $(call with,test) build
	$(PY) tests/fuzz.py $(foreach name,n seed index seconds jobs isa device,$(call option,$(name)))

sanitize: $(call with,test)
	$(PY) tests/sanitize.py $(ARGS)

check: $(call with,check) build
	$(CHECK)

bench: $(call with,bench) build
	$(CHECK)
	$(PY) benchmarks/run.py $(ARGS)

lint: $(call with,lint)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(clang_format) --dry-run -Werror $(CPP)

format: $(call with,lint)
	$(PY) -m ruff check --fix-only
	$(PY) -m ruff format
	$(clang_format) -i $(CPP)

# In an environment of its own, whose packages are the build's alone.
wheel: .venv-wheel/.wheel
	PATH="$(CURDIR)/.venv-wheel/bin:$$PATH" .venv-wheel/bin/python tools/build_wheel.py $(ARGS)

release-check: .venv-wheel/.wheel
	.venv-wheel/bin/python tools/release_check.py $(ARGS)

.venv-wheel/.wheel:
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-wheel/bin/python -m pip install --quiet --group wheel
	touch $@

clean:
	rm -rf build dist *.egg-info srmsnorm/*.so srmsnorm/built_for.json
	find srmsnorm tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# Set-up, a stamp for each step. torch first: the nvcc wheels are chosen by what it is.
ifneq ($(VENV),)
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit("srmsnorm needs Python 3.10 or newer" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade 'pip>=25.1'
	$(PY) -m pip install 'torch$(if $(TORCH),==$(TORCH),>=2.11)' --group build
	touch $@

$(VENV)/.build: $(VENV)/.torch
	wheels=$$($(PY) setup.py --nvcc-wheels) && { test -z "$$wheels" || $(PY) -m pip install $$wheels; }
	touch $@

$(VENV)/.check $(VENV)/.test $(VENV)/.bench $(VENV)/.lint: $(VENV)/.%: $(VENV)/.torch
	$(PY) -m pip install --quiet --group $*
	touch $@
endif
