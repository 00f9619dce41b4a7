# SPDX-License-Identifier: Apache-2.0
"""clang-format 14 over all C and CUDA sources: prints the difference; with --fix rewrites the files. With file names, only those.

The release is fixed because each one formats a little differently: 14 is Debian 12's."""
import difflib
import os
import re
import shutil
import subprocess
import sys

from check_common import ROOT, SKIP, finish, tracked_files

RELEASE = "14"


def clang_format():
    for name in (f"clang-format-{RELEASE}", "clang-format"):
        path = shutil.which(name)
        if path:
            version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
            if re.search(rf"version {RELEASE}\.", version): return path
    return None


def main():
    fix = "--fix" in sys.argv[1:]
    named = [a for a in sys.argv[1:] if a != "--fix"]
    tool = clang_format()
    if tool is None:
        print(f"check_format: skipped: no clang-format {RELEASE} here")
        sys.exit(1 if fix else SKIP)
    files = [f for f in named or tracked_files() if re.search(r"\.(c|h|cu|cuh|cpp)$", f)]
    findings = []
    for path in files:
        full = os.path.join(ROOT, path)
        with open(full, encoding="utf-8") as f: before = f.read()
        after = subprocess.run([tool, "--style=file", full], capture_output=True, text=True, check=True).stdout
        if before == after: continue
        if fix:
            with open(full, "w", encoding="utf-8") as f: f.write(after)
            print(f"formatted {path}")
        else:
            diff = difflib.unified_diff(before.split("\n"), after.split("\n"), path, path, lineterm="", n=0)
            findings.append("not formatted (make format):\n" + "\n".join(list(diff)[:30]))
    finish("check_format", findings, f"{len(files)} files")


main()
