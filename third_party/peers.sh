#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The tools whose checkpoints Requite reads and writes, for tests/test_peers_load.py; releases are those of docs/peers.md.
#
#   third_party/peers.sh PYTHON FOLDER
#
# PYTHON has PyTorch and transformers. FOLDER becomes a virtual environment (300 MB) that sees PYTHON's packages and has the tools that are
# imported whole; FOLDER/unpacked gets those of which single modules are taken, without what they depend on and without building CUDA code.
# A line for each that cannot be had (the tests skip it); the exit status is 1 only where there is no environment at all.
set -u

python=${1:?usage: third_party/peers.sh PYTHON FOLDER}
folder=${2:?usage: third_party/peers.sh PYTHON FOLDER}
own=$folder/bin/python

if ! "$own" -c 'import torch' >/dev/null 2>&1; then
    rm -rf "$folder"
    "$python" -m venv --without-pip "$folder" || exit 1
    "$python" -c 'import site; print(site.getsitepackages()[0])' >"$("$own" -c 'import site; print(site.getsitepackages()[0])')/beside.pth" || exit 1
fi

# get NAME ARGUMENTS...: one `pip install` with the pip of PYTHON, unless it was done. Builds use PYTHON's setuptools: an environment for each of
# them takes longer than all the rest. Without dependencies: PyTorch is never fetched again.
get() {
    name=$1
    shift
    [ "$(cat "$folder/$name.done" 2>/dev/null)" != "$*" ] || return 0
    if timeout 300 "$python" -m pip --python "$own" install -q --disable-pip-version-check --no-cache-dir --no-compile --no-deps \
        --no-build-isolation "$@" >"$folder/$name.log" 2>&1; then
        echo "$*" >"$folder/$name.done"
    else
        echo "third_party/peers.sh: $name could not be installed: $(tail -n 1 "$folder/$name.log")"
    fi
}

# transformers opens whole models with these.
get compressed-tensors compressed-tensors==0.20.0 loguru accelerate==1.15.0 psutil
get gguf gguf==0.19.0
get gptqmodel gptqmodel==7.7.0 optimum==2.3.0 device-smi==0.5.7 logbar==0.4.15 tokenicer==0.0.14 defuser==0.0.28 pypcre==0.6.4 \
    torchao==0.18.0 datasets==5.2.0 threadpoolctl protobuf pillow dill multiprocess xxhash pyarrow pandas python-dateutil six tzdata \
    requests urllib3 certifi charset-normalizer idna
# Their unpacking alone.
get autoawq --target "$folder/unpacked" autoawq==0.2.9
get vptq --target "$folder/unpacked" vptq==0.0.5.post1
get aqlm --target "$folder/unpacked" aqlm==1.1.7
