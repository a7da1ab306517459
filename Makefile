# The front door: `make help` lists what there is. Everything is built by CMake and ninja under build/.
BUILD := build
JOBS ?= $(shell nproc)
PREFIX ?= /usr/local
# Builds in several folders of one checkout share what is compiled.
export CCACHE_NOHASHDIR ?= 1
# Rust may live where PATH does not look; CMake asks tools/find_cargo itself.
NINJA := ninja -C $(BUILD) -j $(JOBS)

.DEFAULT_GOAL := help
.PHONY: help setup libraries configure build cuda cuda-test python wheel wheel-check python-asan python-tsan demo test bench format format-check check docs install deb nightly clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## install compilers and libraries (Debian, Ubuntu); nothing where all is there
	@tools/setup

$(BUILD)/build.ninja: | setup
	@cmake --preset release >$(BUILD).log 2>&1 || { cat $(BUILD).log >&2; rm -f $(BUILD).log; exit 1; }
	@rm -f $(BUILD).log

configure: setup $(BUILD)/build.ninja

build: configure  ## build build/bin/tokenmill and the example
	@$(NINJA) tokenmill_cli offline_batch >&2

# CUDA_ARCHITECTURES=90a-real builds for one kind of card only, in a fraction of the time.
cuda: setup  ## build build-cuda/bin/tokenmill with the CUDA backend; fetches the CUDA compiler where there is none
	@cmake --preset cuda $(if $(CUDA_ARCHITECTURES),"-DCMAKE_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)") >&2
	@ninja -C $(BUILD)-cuda -j $(JOBS) tokenmill_cli offline_batch >&2

cuda-test: cuda  ## build and run every test of the CUDA build; "not run" without a card
	@ninja -C $(BUILD)-cuda -j $(JOBS)
	@ctest --test-dir $(BUILD)-cuda --output-on-failure -R 'cuda|tiny_golden'

libraries: configure
	@$(NINJA) tokenmill_cli tokenmill_shared tokenmill_static tokenmill_share >&2

demo: build  ## fetch the demo model and run four prompts in four modes
	@model=$$(tools/fetch_demo_model.py) && $(BUILD)/bin/offline_batch "$$model"

# Python's tests run in an environment of their own, with pinned packages.
VENV := $(BUILD)/venv
$(VENV)/.ready: tests/python/requirements.txt | setup
	@python3 -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(BUILD)/.python: $(VENV)/.ready $(BUILD)/build.ninja
	@cmake $(BUILD) -DTOKENMILL_BUILD_PYTHON=ON -DPython_EXECUTABLE=$(abspath $(VENV))/bin/python >/dev/null
	@touch $@

python: configure $(BUILD)/.python  ## build the Python package in build/python, for PYTHONPATH
	@$(NINJA) python_package >&2

wheel: configure $(VENV)/.ready  ## build the Python wheel in dist/; TOKENMILL_CUDA=1: tokenmill-cuda
	@tools/build_wheel $(if $(TOKENMILL_CUDA),--cuda) $(VENV)/bin/python

test: configure $(BUILD)/.python  ## build and run every test
	@$(NINJA)
	@ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS)

bench: build  ## print the benchmark table for the demo model (MODELS="path ..." for others too)
	@bench/bench_offline.py --tokenmill $(BUILD)/bin/tokenmill $(MODELS)

format:  ## format all C++ sources
	@tools/format

check: ## format, include directions, hygiene, docs
	@tools/format --check
	@tools/check_includes.py
	@tools/check_hygiene.py
	@tools/check_docs.py

docs: libraries python  ## check the documents: links, tables of options, and that every snippet runs
	@tools/check_docs.py
	@tools/make_reference.py $(BUILD)/bin/tokenmill --check
	@tools/run_snippets.py $(BUILD)

wheel-check: wheel  ## build the wheel and run the notebook on it where there is no compiler
	@tools/check_wheel $$(ls -t dist/tokenmill-*.whl | head -n 1) $(VENV)/bin/python

# Not among the tests of every day: building everything again takes long.
define python_tests_under  # PRESET SANITIZER
	@cmake --preset $1 -DTOKENMILL_BUILD_PYTHON=ON -DPython_EXECUTABLE=$(abspath $(VENV))/bin/python >/dev/null
	@ninja -C $(BUILD)-$1 -j $(JOBS) python_package
	@tools/python_sanitizers $2 $(BUILD)-$1 $(VENV)/bin/python
endef

python-asan: configure $(VENV)/.ready  ## run the Python tests under ASan+UBSan
	$(call python_tests_under,asan,address)

python-tsan: configure $(VENV)/.ready  ## run the Python tests under TSan
	$(call python_tests_under,tsan,thread)

install: libraries  ## install library, headers and program under PREFIX (default /usr/local; DESTDIR is honoured)
	@cmake --install $(BUILD) --prefix $(PREFIX)

deb: libraries  ## make Debian packages in build/deb
	@cd $(BUILD) && cpack -B deb >deb.log 2>&1 || { cat deb.log >&2; exit 1; }
	@rm -rf $(BUILD)/deb/_CPack_Packages && ls $(BUILD)/deb/*.deb

nightly: configure  ## long fuzzing under ASan+UBSan, long simulation, Python under sanitizers, the wheel, the benchmark
	@$(NINJA)
	@cmake --preset asan >/dev/null
	@ninja -C $(BUILD)-asan -j $(JOBS) tests/fuzz/all
	@tools/nightly $(BUILD) $(BUILD)-asan
	@$(MAKE) --no-print-directory python-asan python-tsan wheel-check bench

clean:  ## remove what was built
	rm -rf $(BUILD) $(BUILD)-asan $(BUILD)-tsan $(BUILD)-debug $(BUILD)-cuda
