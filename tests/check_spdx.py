# SPDX-License-Identifier: Apache-2.0
"""Every source file names its licence in its first lines; text files name no path of one machine and no package host, have no
space at a line's end, and nothing is larger than 1 MiB (test data: 4)."""
import os
import re

from check_common import ROOT, finish, is_text, read, tracked_files

SOURCE = re.compile(r"\.(c|h|cu|cuh|cpp|def|inc|py|sh|cmake|in)$|(^|/)(CMakeLists\.txt|Makefile)$|^\.ci/[^.]+$")
# A template whose output goes to users keeps no licence line: pkg-config prints what it does not know as an error.
NO_SPDX = {"host/requite.pc.in"}
# Built from halves, so that this file passes its own check.
MACHINE = re.compile(r"(^|[^A-Za-z0-9_.~-])/(" + "|".join(["wo" "rk", "ro" "ot", "fa" "rm", "ho" "me"]) + r")/")
HOST = re.compile("|".join([r"pypi\." "org", r"pythonhosted\." "org", r"deb\.debian\." "org", r"hugging" r"face\." "co",
                            r"index" "-url", r"proxy\.golang\." "org", r"registry\.npm" "js"]))


def main():
    findings, n = [], 0
    for path in tracked_files():
        size = os.path.getsize(os.path.join(ROOT, path))
        data = re.match(r"tests/(data|golden)/", path) is not None
        limit = 4 if data else 1  # MiB; golden matrices are what they are
        if size > limit << 20: findings.append(f"{path}: {size} bytes; the limit is {limit} MiB")
        if not is_text(path):
            if SOURCE.search(path): findings.append(f"{path}: not UTF-8 text")
            continue
        text = read(path)
        n += 1
        if SOURCE.search(path) and not data and path not in NO_SPDX:
            if not any("SPDX-License-Identifier: Apache-2.0" in line for line in text.split("\n")[:3]):
                findings.append(f"{path}:1: no SPDX-License-Identifier line")
        if data or path == "LICENSE": continue
        for i, line in enumerate(text.split("\n"), 1):
            if line != line.rstrip(" \t\r"): findings.append(f"{path}:{i}: space at the end of the line")
            if MACHINE.search(line): findings.append(f"{path}:{i}: a path of one machine: {line.strip()[:80]}")
            if HOST.search(line): findings.append(f"{path}:{i}: names a package host: {line.strip()[:80]}")
        if text and not text.endswith("\n") and not path.endswith(".json"): findings.append(f"{path}: no newline at the end")
    finish("check_spdx", findings, f"{n} text files")


main()
