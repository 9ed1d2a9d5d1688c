# SPDX-License-Identifier: Apache-2.0
# The front door: `make help` lists what there is. CMake does the work; each target first installs
# what it misses (Debian 12, Ubuntu 24.04), which takes no time once it is there.

JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 10
export CTEST_PARALLEL_LEVEL ?= $(JOBS)

install := scripts/install_dependencies.sh
# The same build twice costs seconds where there is ccache.
launchers := $(if $(shell command -v ccache),-DCMAKE_C_COMPILER_LAUNCHER=ccache \
  -DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
# Warnings are errors in CI, on its compiler; a newer compiler with new ones must not stop a user.
strictness := -DQUIRE_WERROR=$(if $(CI),ON,OFF)
configure = cmake --preset $(1) $(launchers) $(strictness) --log-level=WARNING
build = cmake --build --preset $(1) --parallel $(JOBS)

.DEFAULT_GOAL := tool
.NOTPARALLEL:  # each target uses all cores itself

.PHONY: tool
tool: ## Build the library and the tool, build/bin/quire (CPU)
	@$(install) build
	$(call configure,release) -DQUIRE_TESTS=OFF
	$(call build,release) --target quire_command

.PHONY: cuda
cuda: ## Build both with the CUDA backend, build/cuda/bin/quire (no GPU needed to build)
	@$(install) build test cuda
	$(call configure,cuda)
	$(call build,cuda) --target quire_command cuda_tests

.PHONY: demo
demo: tool ## Check kernels against the oracle, then serve requests for a minute (CPU)
	build/bin/quire check
	build/bin/quire replay --preset azure-conv --duration 60
	@printf '\nNext: build/bin/quire --help, README.md, docs/architecture.md, examples/\n'

.PHONY: test
test: lint test-cpu test-abi test-install test-python test-sanitize test-fuzz test-cuda-compile ## All of the tests below that need no GPU
	@echo "make test: everything passed"

.PHONY: test-cpu
test-cpu: all-cpu ## Unit, oracle, property and text tests (CPU)
	ctest --preset cpu

.PHONY: test-abi
test-abi: all-cpu ## Exported symbols, SONAME, ABI against its baseline (CPU)
	ctest --preset abi

.PHONY: test-install
test-install: all-cpu ## Foreign CMake and pkg-config projects in C++ and C against the package (CPU)
	ctest --preset install

.PHONY: test-python
test-python: all-cpu ## The Python package, and its wheel in a fresh environment (CPU)
	@$(install) python
	.venv/bin/mypy
	QUIRE_LIBRARY=$(CURDIR)/build/lib/libquire.so.0 .venv/bin/python3 -m pytest

.PHONY: test-sanitize
test-sanitize: all-sanitized ## The CPU tests under ASan and UBSan (CPU, Clang)
	ctest --preset sanitize

.PHONY: test-fuzz
test-fuzz: all-sanitized ## Each fuzzer for FUZZ_SECONDS=10 (CPU, Clang)
	ctest --preset fuzz

.PHONY: test-cuda-compile
test-cuda-compile: cuda ## The CUDA backend compiles, links, loads and spills no register (no GPU)
	ctest --preset cuda-compile

.PHONY: test-gpu
test-gpu: cuda ## The tests of the CUDA backend (needs a GPU; not part of `make test`)
	ctest --preset gpu

.PHONY: all-cpu
all-cpu:
	@$(install) build test
	$(call configure,release) -DQUIRE_TESTS=ON
	$(call build,release)

.PHONY: all-sanitized
all-sanitized:
	@$(install) build test
	$(call configure,dev) -DQUIRE_FUZZ_SECONDS=$(FUZZ_SECONDS)
	$(call build,dev)

.PHONY: lint
lint: ## Formatting, include rule, documented symbols, Python, shell scripts (nothing is compiled)
	@$(install) lint python
	scripts/lint.sh

.PHONY: tidy
tidy: all-cpu ## clang-tidy over the sources (slow)
	@$(install) lint
	run-clang-tidy-19 -quiet -p build '$(CURDIR)/(src|tools)/.*\.cpp$$'

.PHONY: docs
docs: ## API documentation, build/docs/html (Doxygen)
	@$(install) lint
	@mkdir -p build/docs
	doxygen docs/Doxyfile

.PHONY: format
format: ## Format all sources
	@$(install) lint python
	scripts/lint.sh --fix

.PHONY: install
install: all-cpu ## Install library, headers, package and tool; PREFIX=/usr/local
	cmake --install build $(if $(PREFIX),--prefix $(PREFIX)) --strip

.PHONY: clean
clean: ## Remove build/
	rm -rf build

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
