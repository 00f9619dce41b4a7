# SPDX-License-Identifier: Apache-2.0
"""What the check_*.py scripts share: the files of the repository, and how findings are reported."""
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SKIP = 77  # ctest's SKIP_RETURN_CODE


def tracked_files():
    """Paths relative to the root of all files git knows or would take; without git, all but hidden folders and build/."""
    listing = None
    if os.path.exists(os.path.join(ROOT, ".git")):
        try:
            listing = subprocess.run(["git", "-C", ROOT, "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached",
                                      "--others", "--exclude-standard"], capture_output=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            listing = None
    if listing is not None:
        names = [n for n in listing.decode().split("\0") if n]
        return sorted(n for n in names if os.path.isfile(os.path.join(ROOT, n)))
    names = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [d for d in folders if d not in ("__pycache__", ".git", ".cache", ".venv") and
                      not d.startswith("build")]
        names += [os.path.relpath(os.path.join(folder, f), ROOT) for f in files]
    return sorted(names)


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


def is_text(path):
    with open(os.path.join(ROOT, path), "rb") as f:
        head = f.read(8192)
    if b"\0" in head:
        return False
    try:
        head.decode("utf-8")
        return True
    except UnicodeDecodeError as e:
        return e.start > len(head) - 4 and e.reason == "unexpected end of data"


def finish(name, findings, ok):
    """Print the findings and exit 1, or print one line of what was checked and exit 0."""
    for finding in findings:
        print(f"{name}: {finding}")
    if findings:
        print(f"{name}: {len(findings)} finding(s)")
        sys.exit(1)
    print(f"{name}: {ok}")
    sys.exit(0)
