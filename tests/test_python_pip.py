# SPDX-License-Identifier: Apache-2.0
"""test_python_pip.py: `pip install ./python` into a fresh virtual environment; what it installed runs by itself, and so does the
example of python/README.md, as printed there. What needs PyTorch, which this environment has not, says so.

Builds the library again and fetches NumPy and scikit-build-core: part of the tests with -DRQ_TEST_PIP=ON alone, and skipped
where there is no venv, no pip, or nothing to fetch them from."""
import os
import subprocess
import sys
import tempfile

from check_common import ROOT, SKIP, example, printed_as


def main():
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RQ_LIBRARY")}
    with tempfile.TemporaryDirectory(prefix="requite-pip-") as top:
        def run(*args):
            return subprocess.run(args, capture_output=True, text=True, env=env, cwd=top, check=False)

        p = run(sys.executable, "-m", "venv", "env")
        if p.returncode != 0:
            print(f"test_python_pip: skipped: no virtual environment: {(p.stdout + p.stderr).strip()[-300:]}")
            sys.exit(SKIP)
        python = os.path.join(top, "env", "bin", "python")
        p = run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "numpy", "scikit-build-core")
        if p.returncode != 0:
            print(f"test_python_pip: skipped: pip could not fetch what the build needs: {p.stderr.strip()[-300:]}")
            sys.exit(SKIP)
        p = run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-build-isolation",
                os.path.join(ROOT, "python"))
        assert p.returncode == 0, p.stdout + p.stderr
        code, printed = example("python/README.md")
        p = run(python, "-c", code)
        assert p.returncode == 0, p.stderr
        assert printed_as(p.stdout, printed), p.stdout
        p = run(python, "-c", "import requite; requite.nn")
        assert "need PyTorch 2.10 or later, which this Python does not have" in p.stderr, p.stderr
        p = run(python, "-c", "import requite; print(requite.version(), requite.library_path())")
        version, path = p.stdout.split()
        assert os.path.realpath(path).startswith(os.path.realpath(top) + os.sep), p.stdout
        size = os.path.getsize(path)
        assert os.path.isfile(os.path.join(os.path.dirname(path), "LICENSE"))
        print(f"test_python_pip: requite {version} installs and runs; its library has {size / 2**20:.1f} MiB")


main()
