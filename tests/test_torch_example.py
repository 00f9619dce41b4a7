# SPDX-License-Identifier: Apache-2.0
"""test_torch_example.py BUILD: python/examples as its user builds it: against an installed Requite, through its CMake package, then run.
Skipped where this Python has no PyTorch of 2.10 or later, or there is no C++ compiler."""
import os
import shutil
import subprocess
import sys
import tempfile

from check_common import ROOT, SKIP


def main():
    try:
        import torch
    except ImportError:
        print("test_torch_example: skipped: this Python has no PyTorch")
        sys.exit(SKIP)
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 10):
        print(f"test_torch_example: skipped: PyTorch {torch.__version__} is older than 2.10")
        sys.exit(SKIP)
    if not shutil.which("c++"):
        print("test_torch_example: skipped: no C++ compiler")
        sys.exit(SKIP)
    source = os.path.join(ROOT, "python", "examples")
    with tempfile.TemporaryDirectory(prefix="requite-example-") as top:
        def run(*args):
            p = subprocess.run(args, capture_output=True, text=True, check=False)
            assert p.returncode == 0, f"{' '.join(args)}\n{p.stdout}{p.stderr}"
            return p.stdout

        prefix, build = os.path.join(top, "prefix"), os.path.join(top, "build")
        run("cmake", "--install", sys.argv[1], "--prefix", prefix)
        run("cmake", "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", f"-DPython3_EXECUTABLE={sys.executable}")
        run("cmake", "--build", build)
        said = run(sys.executable, os.path.join(source, "example.py"), build).splitlines()
        assert len(said) == 3 and "1 tokens" in said[0] and "40 tokens" in said[1] and said[2] == "refused: x: float32 rows on the CPU", said
    print(f"test_torch_example: {'; '.join(said)}")


main()
