# SPDX-License-Identifier: Apache-2.0
"""test_torch_pip.py REQUITE BUILD: a fresh virtual environment with PyTorch and transformers, `pip install ./python` into it, then
test_torch.py and test_torch_example.py with what is installed there.

Fetches gigabytes and builds the library again: part of the tests with -DRQ_TEST_TORCH=ON alone, and skipped where there is no venv,
no pip, or nothing to fetch from."""
import os
import subprocess
import sys
import tempfile

from check_common import ROOT, SKIP


def main():
    requite, build = (os.path.abspath(a) for a in sys.argv[1:3])
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RQ_LIBRARY")}
    with tempfile.TemporaryDirectory(prefix="requite-torch-pip-") as top:
        def run(*args):
            return subprocess.run(args, capture_output=True, text=True, env=env, cwd=top, check=False)

        p = run(sys.executable, "-m", "venv", "env")
        if p.returncode != 0:
            print(f"test_torch_pip: skipped: no virtual environment: {(p.stdout + p.stderr).strip()[-300:]}")
            sys.exit(SKIP)
        python = os.path.join(top, "env", "bin", "python")
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-cache-dir"]
        p = run(*pip, "torch>=2.10", "transformers", "numpy")
        if p.returncode != 0:
            print(f"test_torch_pip: skipped: pip could not fetch PyTorch: {p.stderr.strip()[-300:]}")
            sys.exit(SKIP)
        p = run(*pip, os.path.join(ROOT, "python"))  # with pip's build isolation: that hides the PyTorch which is to be found
        assert p.returncode == 0, p.stdout + p.stderr
        tests = os.path.join(ROOT, "tests")
        for args in (("test_torch.py", "installed", requite, tests), ("test_torch_example.py", build)):
            p = run(python, os.path.join(tests, args[0]), *args[1:])
            print((p.stdout + p.stderr).strip())
            assert p.returncode == 0, f"{args[0]} exited with {p.returncode}"
    print("test_torch_pip: done")


main()
