# SPDX-License-Identifier: Apache-2.0
"""What the check_*.py scripts share: the files of the repository, how findings are reported, and examples of pages."""
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


def example(page, after=""):
    """The first block of Python on a page after the words `after`, and what the page says it prints."""
    parts = read(page).split(after, 1)[1].split("```") if after else read(page).split("```")
    (kind, code), (text, printed) = (part.split("\n", 1) for part in (parts[1], parts[3]))
    if (kind, text) != ("python", "text"): raise ValueError(f"{page}: ```python and ```text are wanted, not {kind} and {text}")
    return code, printed


def printed_as(got, said):
    """Whether two outputs are the same: their words, and numbers up to 2 % or one unit in the last place. Another CPU's BLAS
    rounds otherwise, which can move a code."""
    a, b = (text.replace(",", " ").split() for text in (got, said))

    def close(x, y):
        try:
            return abs(float(x) - float(y)) <= max(0.02 * abs(float(y)), 1.01 * 10.0 ** -len(y.partition(".")[2]) if y.replace(".", "").isdigit() else 0)
        except ValueError:
            return False

    return len(a) == len(b) and all(x == y or close(x, y) for x, y in zip(a, b))


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
