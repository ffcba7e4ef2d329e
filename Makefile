# The commands of this repository; each sets up what it needs. README.md says what they do.
#   make demo    set up, build, search a pattern for the bundled model and show what it costs and gains
#   make test    set up, build, run the tests
#   make check   sanitizers, fuzz targets, formatting, include arrows, documents, the kernels for Arm, the CUDA build where nvcc is
JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 10
NVCC := $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
FORMATTED = $(shell git ls-files -co --exclude-standard '*.h' '*.cpp' '*.cu' '*.cuh')

.PHONY: setup setup-check build test demo check format clean
.PHONY: check-format check-rules check-arm check-asan check-fuzz check-cuda
# Each build uses all cores by itself.
.NOTPARALLEL:

build: build/cpu/build.ninja
	cmake --build --preset cpu -j $(JOBS) --target indexcache

test: build/cpu/build.ninja
	cmake --build --preset cpu -j $(JOBS)
	ctest --preset cpu --output-log build/cpu/ctest.log

demo: build
	tools/demo.sh build/cpu/indexcache

check: check-format check-rules check-arm check-fuzz check-asan check-cuda
	@echo "make check: all passed"

check-format: setup-check
	clang-format --dry-run --Werror $(FORMATTED)

check-rules: setup
	.venv/bin/python tools/check_arrows.py --self-test
	.venv/bin/python tools/check_arrows.py
	.venv/bin/python tools/check_docs.py --self-test
	.venv/bin/python tools/check_docs.py

# The kernels compile to NEON code. Nothing here runs it.
check-arm: setup-check
	tools/check_arm.sh $(JOBS)

# Tests under the address and undefined-behaviour sanitizers, compiled by clang, which takes three quarters of g++'s time.
check-asan: setup-check build/asan/build.ninja
	cmake --build --preset asan -j $(JOBS)
	ctest --preset asan --output-log build/asan/ctest.log

# Every fuzz target, FUZZ_SECONDS each, from its committed seeds.
check-fuzz: setup-check build/asan/build.ninja
	cmake --build --preset asan -j $(JOBS) --target fuzz_programs
	tools/fuzz.sh build/asan/fuzz $(FUZZ_SECONDS) $(JOBS)

# The CUDA build compiles and links, the programs for a GPU included, and its binary starts. Host code is the CPU preset's, out of ccache.
ifneq ($(NVCC),)
check-cuda: build/cuda/build.ninja
	cmake --build --preset cuda -j $(JOBS) --target indexcache device_programs
	build/cuda/indexcache --help >/dev/null
else
check-cuda:
	@echo "check-cuda: not run, no nvcc on this machine"
endif

setup:
	@./setup

setup-check:
	@./setup --check

build/%/build.ninja: CMakePresets.json | setup
	cmake --preset $*

format: setup-check
	clang-format -i $(FORMATTED)

clean:
	rm -rf build
