#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the deliberately wrong kernels (bad_*.cu) in the simulator: each must be found, with its kind and the source line that
carries the comment "finds NAME: KIND"; each corrected twin must be silent. Usage: test_bad.py FOLDER_OF_PROGRAMS"""
import os
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
FINDINGS_EXIT = 86


def marks(source):
    """{case: (kind, line, on the host)} of one source."""
    found = {}
    for number, line in enumerate(source.read_text().splitlines(), 1):
        for m in re.finditer(r"finds (\w+): ([^*]+?)( \(host\))?\s*(\*/)?$", line):
            found[m[1]] = (m[2], number, bool(m[3]))
    return found


def run(program, *args, **env):
    done = subprocess.run([program, *args], capture_output=True, text=True, timeout=600, env={**os.environ, **env})
    return done.returncode, done.stdout, done.stderr


def check(program, source, name, kind, line, host, env):
    code, _, err = run(program, name, "bad", **env)
    where = "" if host else f"{source.name}:{line}"
    kinds = tuple(f"gpusim: {k}: " for k in kind.split("|"))  # which of them may depend on the order of warps
    lines = [t for t in err.splitlines() if t.startswith(kinds)]
    problems = []
    if code != FINDINGS_EXIT:
        problems.append(f"exit status {code}, expected {FINDINGS_EXIT}")
    if not lines:
        problems.append(f"no finding of kind '{kind}'")
    elif not any(where in t.split("; the other access")[0] for t in lines):
        problems.append(f"no finding names {where}")
    if problems:
        return [f"{source.name} {name} (bad): {'; '.join(problems)}\n{err}"]
    code, _, err = run(program, name, "ok", **env)
    if code or err:
        return [f"{source.name} {name} (ok): exit status {code}\n{err}"]
    return []


def main():
    folder = pathlib.Path(sys.argv[1])
    failures, count = [], 0
    for source in sorted(HERE.glob("bad_*.cu")):
        program = folder / source.stem
        expected = marks(source)
        listed = run(program, "--list")[1].split()
        if sorted(listed) != sorted(expected):
            failures.append(f"{source.name}: cases {sorted(listed)}, marks {sorted(expected)}")
        for name, (kind, line, host) in expected.items():
            for env in ({}, {"GPUSIM_REVERSE": "1"}):
                failures += check(program, source, name, kind, line, host, env)
                count += 1
    print("\n".join(failures))
    print(f"{count} wrong kernels and as many corrected twins: {len(failures)} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
