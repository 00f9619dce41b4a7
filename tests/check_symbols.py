# SPDX-License-Identifier: Apache-2.0
"""check_symbols.py SHARED STATIC: the shared library exports what rq.h and rq_packed.h declare RQ_API, no more and no less; the static one
pollutes no other name space; and the library neither prints nor exits.

The last is read off the undefined symbols: whatever calls printf, exit or abort, directly or through assert, refers to it."""
import re
import subprocess
import sys

from check_common import finish, read

FORBIDDEN = set("""printf vprintf puts putchar __printf_chk __vprintf_chk perror stdout stderr exit _exit _Exit quick_exit abort
__assert_fail __assert_perror_fail err errx warn warnx error""".split())


def nm(*args):
    out = subprocess.run(["nm", *args], capture_output=True, text=True, check=True).stdout
    return [line.split() for line in out.split("\n")]


def main():
    shared, static = sys.argv[1:3]
    findings = []
    text = re.sub(r"/\*.*?\*/", "", read("host/rq.h") + read("host/rq_packed.h"), flags=re.S)
    text = re.sub(r"^[ \t]*#.*$", "", text, flags=re.M)
    # A declaration runs from RQ_API to its semicolon; the name is what stands before the first parenthesis that is not an
    # attribute's.
    declared = set()
    for m in re.finditer(r"\bRQ_API\b([^;{]*);", text):
        name = re.search(r"\b(rq_\w+)\s*(\(|\[|$)", m.group(1).strip())
        if name: declared.add(name.group(1))
        else: findings.append(f"rq.h: cannot read the declaration: {' '.join(m.group(1).split())}")
    exported = {w[-1].split("@")[0] for w in nm("-D", "--defined-only", shared) if len(w) >= 3}
    for name in sorted(declared - exported): findings.append(f"{name}: RQ_API in rq.h, but not exported")
    for name in sorted(exported - declared): findings.append(f"{name}: exported, but not RQ_API in rq.h")

    member, n_global = "", 0
    for w in nm("-g", static):
        if len(w) == 1 and w[0].endswith(":"): member = w[0][:-1]
        elif len(w) == 3:
            n_global += 1
            if not w[2].startswith("rq_"): findings.append(f"{member}: global {w[2]} lacks the prefix rq_")
        elif len(w) == 2 and w[1].split("@")[0] in FORBIDDEN:
            findings.append(f"{member}: refers to {w[1]}; the library never prints or exits")
    if not declared or not n_global: findings.append("found no symbols: is this the right library?")
    finish("check_symbols", findings, f"{len(exported)} exported, {n_global} global in the static library")


main()
