# SPDX-License-Identifier: Apache-2.0
"""check_tidy.py BUILD [FILE...]: clang-tidy (.clang-tidy) over host/*.c as BUILD compiles them, a process per core."""
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys

from check_common import ROOT, SKIP, finish


def main():
    build, named = sys.argv[1], {os.path.abspath(f) for f in sys.argv[2:]}
    tool = shutil.which("clang-tidy-14") or shutil.which("clang-tidy")
    if tool is None:
        print("check_tidy: skipped: no clang-tidy here")
        sys.exit(SKIP)
    with open(os.path.join(build, "compile_commands.json"), encoding="utf-8") as f: commands = json.load(f)
    files = sorted({c["file"] for c in commands if os.path.dirname(c["file"]) == os.path.join(ROOT, "host")})
    files = [f for f in files if not named or f in named]
    findings = []

    def tidy(path):
        # gcc's own warning options mean nothing to clang; rq_fail as the analyzer sees it has a value that statements leave.
        r = subprocess.run([tool, "-p", build, "--quiet", "--extra-arg=-Wno-unknown-warning-option",
                            "--extra-arg=-Wno-unused-value", path], capture_output=True, text=True)
        found = [line for line in r.stdout.split("\n") if re.search(r": (warning|error): ", line)]
        if found: return r.stdout.strip()
        return r.stderr.strip() if r.returncode else None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for text in pool.map(tidy, files):
            if text and text not in findings: findings.append(text)
    finish("check_tidy", findings, f"{len(files)} files")


main()
