# SPDX-License-Identifier: Apache-2.0
"""compare.py finds what differs, and only that."""
import math
import os
import struct
import subprocess
import sys
import tempfile

import compare

NUMBER = {t[0]: (k, t[2]) for k, t in compare.TYPES.items()}


def record(name, kind, numbers, bound):
    number, letter = NUMBER[kind]
    if kind == "bf16": raw = b"".join(struct.pack("<f", v)[2:] for v in numbers)
    else: raw = struct.pack(f"<{len(numbers)}{letter}", *numbers)
    return compare.HEAD.pack(b"RQR1", number, len(name), 0, len(numbers), bound) + name.encode() + raw


def run(folder, a, b):
    paths = []
    for name, content in (("a", a), ("b", b)):
        paths.append(os.path.join(folder, name))
        with open(paths[-1], "wb") as f: f.write(content)
    r = subprocess.run([sys.executable, compare.__file__, *paths], capture_output=True, text=True)
    return r.returncode, r.stdout


def main():
    nan, inf = math.nan, math.inf
    same = [("i32", [1, -2, 2**31 - 1], [1, -2, 2**31 - 1], 0), ("f32", [1.0, nan, inf], [1.0, nan, inf], 0),
            ("f32", [1.0, nan, -inf], [1.25, -nan, -inf], 0.25), ("f16", [0.5], [0.5009765625], 1e-3),
            ("bf16", [1.0, 2.0], [1.0078125, 2.0], 0.01), ("u64", [2**64 - 1], [2**64 - 1], 0), ("i8", [-128], [-128], 0)]
    differ = [("i32", [1, 2], [1, 3], 5), ("u8", [255], [0], 0), ("f32", [1.0], [1.0000001], 0), ("f32", [1.0], [1.26], 0.25),
              ("f32", [nan], [1.0], 9), ("f32", [inf], [1e30], 9), ("f32", [inf], [-inf], 9), ("f64", [1.0], [1.1], 0.05),
              ("f32", [0.0], [-0.0], 0), ("bf16", [1.0], [1.0078125], 0.001)]
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, a, b, bound in same:
            status, out = run(folder, record("r", kind, a, bound), record("r", kind, b, bound))
            if status != 0: wrong.append(f"{kind} {a} {b} bound {bound} must pass: {out}")
        for kind, a, b, bound in differ:
            status, out = run(folder, record("r", kind, a, bound), record("r", kind, b, bound))
            if status != 1 or "DIFFERENT" not in out: wrong.append(f"{kind} {a} {b} bound {bound} must fail: {out}")
        one = record("r", "i32", [7], 0)
        for what, a, b in (("nothing", b"", b""), ("one record missing", one + one, one), ("another name", one, record("s", "i32", [7], 0)),
                           ("another type", one, record("r", "u32", [7], 0)), ("another bound", one, record("r", "i32", [7], 1)),
                           ("cut off", one, one[:-1]), ("no record", one, b"x" * 64)):
            status, out = run(folder, a, b)
            if status != 1: wrong.append(f"{what} must fail: {out}")
    for line in wrong: print(line)
    print(f"test_compare: {len(same) + len(differ) + 7} comparisons, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


main()
