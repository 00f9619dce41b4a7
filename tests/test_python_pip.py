# SPDX-License-Identifier: Apache-2.0
"""test_python_pip.py: `pip install ./python` into a fresh virtual environment; what it installed runs by itself.

Builds the library again and fetches NumPy and scikit-build-core: part of the tests with -DRQ_TEST_PIP=ON alone, and skipped
where there is no venv, no pip, or nothing to fetch them from."""
import os
import subprocess
import sys
import tempfile

from check_common import ROOT, SKIP

PROBE = """
import numpy as np, requite
x = np.random.default_rng(1).standard_normal((256, 64))
r = requite.quantize_linear(x[:8].astype(np.float32), requite.Gram(64).add(x).h, comp="gptq", group=32)
print(requite.version(), requite.library_path(), r.codes.max() == 7)
"""


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
        p = run(python, "-c", PROBE)
        assert p.returncode == 0, p.stderr
        version, path, full = p.stdout.split()
        assert full == "True" and os.path.realpath(path).startswith(os.path.realpath(top) + os.sep), p.stdout
        size = os.path.getsize(path)
        assert os.path.isfile(os.path.join(os.path.dirname(path), "LICENSE"))
        print(f"test_python_pip: requite {version} installs and runs; its library has {size / 2**20:.1f} MiB")


main()
