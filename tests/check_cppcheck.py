# SPDX-License-Identifier: Apache-2.0
"""cppcheck's warnings and portability findings over host/."""
import os
import shutil
import subprocess
import sys

from check_common import ROOT, SKIP, finish


def main():
    if shutil.which("cppcheck") is None:
        print("check_cppcheck: skipped: no cppcheck here")
        sys.exit(SKIP)
    # The intrinsics' headers are not read, so only code that needs no knowledge of them is judged.
    r = subprocess.run(["cppcheck", "--enable=warning,portability", "--std=c11", "--inline-suppr", "--quiet",
                        "-j", str(os.cpu_count() or 1), "--error-exitcode=1", "--suppress=missingIncludeSystem",
                        "--template={file}:{line}: {severity}: {message} [{id}]", "-I", "host", "host"],
                       capture_output=True, text=True, cwd=ROOT)
    findings = [line for line in r.stderr.split("\n") if line.strip()] if r.returncode else []
    if r.returncode and not findings: findings = [f"exit status {r.returncode}: {r.stdout}"]
    finish("check_cppcheck", findings, "no findings in host/")


main()
