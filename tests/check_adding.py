# SPDX-License-Identifier: Apache-2.0
"""check_adding.py BUILD CC: docs/adding.md works to the letter.

Takes each C block of the page to the file that the line above it names, in a copy of host/ and tests/; builds what that changes, against
the library of BUILD; and runs the tests. The format's own test must pass; the sweep of kernels must refuse a kernel that it cannot sweep,
run it once it is told how, and see it when it computes something else."""
import os
import re
import shutil
import subprocess
import sys
import tempfile

from check_common import ROOT, finish, read

BLOCK = re.compile(r"^`([^`\n]+)`, (a new file|one more line|(?:before|after) `([^`\n]+)`):\n\n```c\n(.*?)^```$", re.M | re.S)
PACKAGES = ["jansson", "libpcre2-8", "libutf8proc", "libxxhash", "cmocka"]
FLAGS = "-std=c11 -D_GNU_SOURCE -O1 -Wall -Wextra -Wconversion -Wno-sign-conversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror -ffp-contract=off".split()
# What an added row of a .def reaches; the rest of the library is taken as it was built, so rq_packed must keep its size.
TABLES = ["host/formats.c", "host/kernels.c"]
SIZE = '#include "formats.h"\nint main(void) { return printf("%zu", sizeof(rq_packed)) < 0; }\n'


class Failed(Exception):
    pass


def apply(folder, path, how, line, text):
    """One block of the page, in the copy of the tree."""
    full = os.path.join(folder, path)
    if how == "a new file":
        if os.path.exists(full): raise Failed(f"{path} is there already")
        with open(full, "w", encoding="utf-8") as f: f.write(text)
        return
    if not os.path.exists(full): raise Failed(f"{path} is not there")
    with open(full, encoding="utf-8") as f: lines = f.read().splitlines(keepends=True)
    if how == "one more line":
        lines.append(text)
    else:
        at = [i for i, l in enumerate(lines) if l.strip() == line]
        if len(at) != 1: raise Failed(f"{path} has {len(at)} lines `{line}`, not one")
        lines.insert(at[0] + how.startswith("after"), text)
    with open(full, "w", encoding="utf-8") as f: f.writelines(lines)


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


class Tree:
    """A copy of the sources that the page changes, and what is built of it."""

    def __init__(self, folder, build, cc):
        self.folder, self.build, self.cc = folder, build, cc
        for name in ("host", "tests"):
            os.mkdir(os.path.join(folder, name))
            for f in os.listdir(os.path.join(ROOT, name)):
                if f.endswith((".c", ".h", ".def")): shutil.copy(os.path.join(ROOT, name, f), os.path.join(folder, name, f))
        packages = run(["pkg-config", "--cflags", "--libs", *PACKAGES])
        if packages.returncode != 0: raise Failed(packages.stderr)
        words = packages.stdout.split()
        self.include = ["-I" + os.path.join(folder, "host")] + [w for w in words if w.startswith("-I")]
        self.libraries = [w for w in words if not w.startswith("-I")] + ["-lpthread", "-ldl", "-lm"]

    def compile(self, path):
        to = os.path.join(self.folder, path.replace("/", "_") + ".o")
        r = run([self.cc, *FLAGS, *self.include, "-c", path, "-o", to], cwd=self.folder)
        if r.returncode != 0: raise Failed(f"{path} does not compile:\n{r.stderr}")
        return to

    def program(self, objects):
        """Links them with the library, of which they replace a part, and runs the result."""
        to = os.path.join(self.folder, "program")
        r = run([self.cc, *objects, os.path.join(self.build, "librequite.a"), *self.libraries, "-o", to])
        if r.returncode != 0: raise Failed("does not link:\n" + r.stderr)
        return run([to], cwd=self.folder)

    def packed_size(self, host):
        path = os.path.join(self.folder, "size.c")
        with open(path, "w", encoding="utf-8") as f: f.write(SIZE)
        r = run([self.cc, "-std=c11", "-D_GNU_SOURCE", "-I" + host, *self.include[1:], path, "-o", path + ".out"])
        if r.returncode != 0: raise Failed(r.stderr)
        return run([path + ".out"]).stdout


def follow(tree, findings):
    blocks = [m.groups() for m in BLOCK.finditer(read("docs/adding.md"))]
    fences = len(re.findall(r"^```c$", read("docs/adding.md"), re.M))
    if len(blocks) != fences: findings.append(f"{fences} C blocks, but {len(blocks)} say where they belong")
    sweeps = [b for b in blocks if b[0] == "tests/test_kernels.c"]
    for path, how, line, text in blocks:
        if path != "tests/test_kernels.c": apply(tree.folder, path, how, line, text)
    new = [b[0] for b in blocks if b[1] == "a new file" and b[0].endswith(".c")]
    if tree.packed_size(os.path.join(tree.folder, "host")) != tree.packed_size(os.path.join(ROOT, "host")):
        raise Failed("rq_packed has another size with the new format: take a smaller one for the page")
    objects = [tree.compile(path) for path in TABLES + [p for p in new if p.startswith("host/")]]

    for path in (p for p in new if p.startswith("tests/")):
        r = tree.program([tree.compile(path), *objects])
        if r.returncode != 0: findings.append(f"{path} fails:\n{r.stdout}{r.stderr}")
    rows = [re.findall(r"^RQ_KERNEL\((\w+), (\w+), (\w+), \w+\)$", text, re.M) for path, _, _, text in blocks if path == "host/kernels.def"]
    kernels = [row for some in rows for row in some]
    if not kernels: findings.append("the page adds no kernel")

    r = tree.program([tree.compile("tests/test_kernels.c"), *objects])
    if r.returncode == 0 or "no sweep knows" not in r.stdout + r.stderr:
        findings.append("test_kernels takes a kernel that it has no sweep for:\n" + r.stdout + r.stderr)
    for block in sweeps: apply(tree.folder, *block)
    sweep = tree.compile("tests/test_kernels.c")
    r = tree.program([sweep, *objects])
    if r.returncode != 0: findings.append(f"test_kernels fails:\n{r.stdout}{r.stderr}")
    for op, operand, impl in kernels:
        if f"run  {op} {operand} {impl}\n" not in r.stdout: findings.append(f"test_kernels did not run {op} {operand} {impl}")
        # The same with its last assignment to y half a percent off: the sweep must see it.
        path = next((p for p in new if f"RQ_OP_{op}(rq_{op}_{operand}_{impl}," in read_in(tree, p)), None)
        if not path:
            findings.append(f"no new file has rq_{op}_{operand}_{impl}")
            continue
        text, n = re.subn(r"(\by\[[^;]*\] = )([^;]*);", r"\1 1.005f * (\2);", read_in(tree, path))
        if not n: findings.append(f"{path}: no assignment to y to spoil")
        with open(os.path.join(tree.folder, path), "w", encoding="utf-8") as f: f.write(text)
        spoilt = [o for o in objects if not o.endswith(path.replace("/", "_") + ".o")] + [tree.compile(path)]
        r = tree.program([sweep, *spoilt])
        if r.returncode == 0: findings.append(f"test_kernels does not see that {op} {operand} {impl} is wrong")
    return len(blocks), len(kernels)


def read_in(tree, path):
    with open(os.path.join(tree.folder, path), encoding="utf-8") as f: return f.read()


def main():
    findings, n = [], (0, 0)
    with tempfile.TemporaryDirectory() as folder:
        try:
            n = follow(Tree(folder, sys.argv[1], sys.argv[2]), findings)
        except Failed as e:
            findings.append(str(e))
    finish("check_adding", findings, f"{n[0]} blocks of docs/adding.md, {n[1]} kernel, from nothing to swept")


main()
