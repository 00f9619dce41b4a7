#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Install what is missing on a Debian or Ubuntu machine, and nothing else: each tool or library is looked for first, so that
# a machine which has all of it needs neither root nor a network. third_party/README.md says what each one is for.
#
#   third_party/install.sh build          to build and run
#   third_party/install.sh check          and to test, format and lint (where nvcc is, also its disassembler)
#   third_party/install.sh demo           and what `make demo` uses
set -eu

what=${1:-build}
case $what in
build | check | demo) ;;
*)
    echo "usage: third_party/install.sh [build|check|demo]" >&2
    exit 2
    ;;
esac

missing=""
need() { # need PACKAGE: add it once
    case " $missing " in
    *" $1 "*) ;;
    *) missing="$missing $1" ;;
    esac
}
tool() { command -v "$1" >/dev/null 2>&1 || need "$2"; }
# Development files, asked for through pkg-config; without pkg-config apt-get sorts out what is there already.
library() {
    if ! command -v pkg-config >/dev/null 2>&1 || ! pkg-config --exists "$1"; then need "$2"; fi
}
# A library that is loaded by name at run time: known to the linker's cache, or in a folder of LD_LIBRARY_PATH.
loadable() {
    if PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q "[[:space:]]$1 "; then return; fi
    old_ifs=$IFS
    IFS=:
    for dir in ${LD_LIBRARY_PATH:-}; do
        if [ -e "$dir/$1" ]; then
            IFS=$old_ifs
            return
        fi
    done
    IFS=$old_ifs
    need "$2"
}

tool cc build-essential
tool make build-essential
tool cmake cmake
tool ninja ninja-build
tool pkg-config pkg-config
library jansson libjansson-dev
library libpcre2-8 libpcre2-dev
library libutf8proc libutf8proc-dev
library libxxhash libxxhash-dev
library cmocka libcmocka-dev
loadable libopenblas.so.0 libopenblas0

if [ "$what" = check ]; then
    tool python3 python3
    python3 -c 'import numpy' >/dev/null 2>&1 || need python3-numpy
    tool git git
    tool mpirun openmpi-bin
    tool mpicc libopenmpi-dev
    tool clang clang
    tool clang-format clang-format
    tool clang-tidy clang-tidy
    tool cppcheck cppcheck
    # clang's sanitizer and libFuzzer run times are a package of their own.
    if command -v clang >/dev/null 2>&1; then
        runtime=$(clang -print-file-name=libclang_rt.fuzzer-x86_64.a 2>/dev/null || true)
        [ "$(uname -m)" != x86_64 ] || [ -e "$runtime" ] ||
            [ -e "$(clang -print-runtime-dir 2>/dev/null)/libclang_rt.fuzzer-x86_64.a" ] || need libclang-rt-dev
    else
        need libclang-rt-dev
    fi
fi
# Where nvcc is: the disassembler, which the table of what the CUDA kernels cost wants (tests/cuda/table.py) and few toolkits
# without a GPU bring. It goes into the build folder. Without it that part of the table is skipped, so failing is no error.
cuda_tools=$(dirname "$0")/../build/cuda-tools
have_nvdisasm() {
    command -v nvdisasm >/dev/null 2>&1 || [ -x /usr/local/cuda/bin/nvdisasm ] ||
        ls "$cuda_tools"/nvidia/*/bin/nvdisasm >/dev/null 2>&1
}
if [ "$what" = check ] && { command -v nvcc >/dev/null 2>&1 || [ -x /usr/local/cuda/bin/nvcc ]; } && ! have_nvdisasm; then
    if python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --target "$cuda_tools" \
        nvidia-cuda-nvdisasm==13.5.37 nvidia-cuda-cuobjdump==13.5.37 >/dev/null 2>&1; then
        echo "third_party/install.sh: nvdisasm and cuobjdump are in build/cuda-tools"
    else
        echo "third_party/install.sh: pip could not bring nvdisasm; the table of CUDA kernels is compared without main loops"
    fi
fi
if [ "$what" = demo ]; then
    tool python3 python3
    if [ -z "${RQ_SMOLLM2:-}" ]; then
        python3 -m pip --version >/dev/null 2>&1 || need python3-pip
    fi
    dpkg -s jargon-text >/dev/null 2>&1 || need jargon-text
fi

if [ -z "$missing" ]; then
    echo "third_party/install.sh: everything for '$what' is here"
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "third_party/install.sh: missing (Debian's names):$missing" >&2
    echo "third_party/install.sh: no apt-get here; install these with your system's package manager" >&2
    exit 1
fi
as_root=""
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null 2>&1 || ! sudo -v; then
        echo "third_party/install.sh: missing:$missing" >&2
        echo "third_party/install.sh: neither root nor sudo; ask for: apt-get install --no-install-recommends$missing" >&2
        exit 1
    fi
    as_root=sudo
fi
echo "third_party/install.sh: installing$missing"
$as_root apt-get update -q
# shellcheck disable=SC2086 # the list is split on purpose
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
