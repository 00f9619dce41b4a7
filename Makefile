# SPDX-License-Identifier: Apache-2.0
# A thin front: the build is CMake's (CMakePresets.json), the work of `make check` is in .ci/check, of `make demo` in bench/demo.py.
PREFIX ?= /usr/local

all:
	cmake --preset cpu
	cmake --build --preset cpu

check:
	.ci/check

demo:
	third_party/install.sh demo
	@$(MAKE) --no-print-directory all
	python3 bench/demo.py

bench: all
	@ls build/cpu/bin/bench_* >/dev/null 2>&1 || { echo "make bench: no benchmark programs in bench/" >&2; exit 1; }
	@for b in build/cpu/bin/bench_*; do echo "$$b"; $$b || exit 1; done

# DESTDIR as usual; run `make` first when installing as root.
install:
	@test -x build/cpu/bin/requite || { echo "make install: run make first" >&2; exit 1; }
	cmake --install build/cpu --prefix $(PREFIX)

format:
	python3 tests/check_format.py --fix

tidy:
	cmake --preset cpu
	python3 tests/check_tidy.py build/cpu
	python3 tests/check_cppcheck.py

# The readers' fuzz targets, FUZZ_SECONDS each, starting from the committed corpus.
FUZZ_SECONDS ?= 60
fuzz:
	cmake --preset fuzz
	cmake --build --preset fuzz
	@for d in tests/data/fuzz/*/; do n=$$(basename $$d); mkdir -p build/fuzz/found/$$n; \
	  echo "fuzz_$$n"; build/fuzz/bin/fuzz_$$n -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=build/fuzz/found/ \
	    build/fuzz/found/$$n $$d || exit 1; done

clean:
	rm -rf build

.PHONY: all check demo bench install format tidy fuzz clean
