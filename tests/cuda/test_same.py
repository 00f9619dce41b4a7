#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_same.py FOLDER_OF_PROGRAMS: every CUDA test of the simulator gives the same bytes however it is run: on one host thread
or several, with the plain opcodes or those for AVX-512, warps and blocks in one order or the other. Results (RQ_RECORD) are
compared in all of these; counts (GPUSIM_JSON) where the order is the same. Python's standard library only."""
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
RUNS = [  # name, environment, are the counts the same?
    ("three threads", {"GPUSIM_THREADS": "3"}, True),
    ("one thread", {"GPUSIM_THREADS": "1"}, True),
    # Two at once, for the time: which of them it is, one of the two variables tells. The tests of arithmetic run both builds where there are two.
    ("plain opcodes, the other order", {"GPUSIM_ISA": "base", "GPUSIM_REVERSE": "1"}, False),
]
SPINS = {"ptx_lang"}  # on a lock: how often depends on the order, so its counts are not compared
FLOAT_ATOMICS = {"mixed"}  # a sum of floats by atomics depends on the order of blocks


def run(program, env, folder):
    record, counts = folder / "record", folder / "counts"
    for f in (record, counts): f.unlink(missing_ok=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=1200,
                          env={**os.environ, "RQ_SMALL": "1", "RQ_RECORD": str(record), "GPUSIM_JSON": str(counts), **env})
    read = lambda f: f.read_bytes() if f.exists() else b""
    return done, read(record), read(counts)


def main():
    programs, failures, compared = pathlib.Path(sys.argv[1]), [], 0
    sources = [f for f in sorted(HERE.iterdir()) if f.suffix == ".cu" and not f.name.startswith(("bad_", "rt_"))]
    sources += sorted(HERE.glob("ptx_*.c"))
    with tempfile.TemporaryDirectory() as t:
        for source in sources:
            first = None
            for name, env, same_counts in RUNS:
                done, record, counts = run(programs / source.stem, env, pathlib.Path(t))
                if done.returncode == 77: break
                if done.returncode:
                    failures.append(f"{source.name}, {name}: exit status {done.returncode}\n{done.stderr}")
                    break
                if first is None: first = (record, counts)
                if record != first[0] and (same_counts or source.stem not in FLOAT_ATOMICS): failures.append(f"{source.name}, {name}: other results")
                if same_counts and source.stem not in SPINS and counts != first[1]:
                    failures.append(f"{source.name}, {name}: other counts")
                compared += 1
    print("\n".join(failures))
    print(f"{len(sources)} programs, {compared} runs, {len(failures)} differences")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
