#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/gpusim/simcc as others use it: compiles small programs, runs them, and looks at exit status and report.

usage: test_simcc.py BUILD_FOLDER [NVCC]    (the folder that has libgpusim.a)
"""
import os
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
SIMCC = os.path.join(HERE, "..", "gpusim", "simcc")
FINDINGS = 86

# Sums n numbers; what differs is said by macros.
PROGRAM = r"""
#include <cstdio>
#include <cublas_v2.h>
#ifdef TWICE
extern "C" int twice(int v);
#endif
__device__ int total;
__global__ void add(const int *in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifdef PAST_THE_END
    n += 1;
#endif
    if (i < n) atomicAdd(&total, in[i]); // the line of the finding
}
__global__ void which(int *out) {
#if defined __CUDA_ARCH_FEAT_SM90_ALL
    *out = __CUDA_ARCH__ + 1;
#elif defined __CUDA_ARCH__
    *out = __CUDA_ARCH__;
#endif
}
int main() {
    int host[1000], *in, *out, sum = 0, arch = 0, want = 0;
    cublasHandle_t blas;
    for (int i = 0; i < 1000; ++i) want += host[i] = i % 7;
    cudaMalloc(&in, sizeof host);
    cudaMalloc(&out, sizeof(int));
    cudaMemcpy(in, host, sizeof host, cudaMemcpyHostToDevice);
    add<<<8, 128>>>(in, 1000);
    which<<<1, 1>>>(out);
    cudaMemcpyFromSymbol(&sum, total, sizeof sum);
    cudaMemcpy(&arch, out, sizeof arch, cudaMemcpyDeviceToHost);
    if (cublasCreate(&blas) || cublasDestroy(blas)) return 1;
    cudaFree(out);
#ifndef LEAK
    cudaFree(in);
#endif
#ifdef TWICE
    sum = twice(sum);
    want *= 2;
#endif
    printf("sum %s, arch %d, %s\n", sum == want ? "right" : "wrong", arch, cudaGetErrorName(cudaGetLastError()));
    return sum != want;
}
"""
TWICE = "int twice(int v);\nint twice(int v) { return 2 * v; }\n"


class Simcc(unittest.TestCase):
    folder = library = nvcc = None

    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = cls.temporary.name
        for name, text in (("program.cu", PROGRAM), ("twice.c", TWICE)):
            with open(os.path.join(cls.folder, name), "w", encoding="utf-8") as f:
                f.write(text)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def call(self, *command):
        env = dict(os.environ, GPUSIM_LIB=self.library, NVCC=self.nvcc)
        for name in list(env):
            if name.startswith("GPUSIM_") and name != "GPUSIM_LIB":
                del env[name]
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=600, check=False)

    def simcc(self, *options):
        done = self.call(SIMCC, *options)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stderr

    def test_right(self):
        notes = self.simcc("-O2", "-std=c++17", "-arch=sm_80", "-DTWICE", "program.cu", "twice.c", "-o", "right", "-lcublas",
                           "-Xcompiler", "-Wall")
        self.assertIn("-arch=sm_80 is left out", notes)
        done = self.call("./right")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(done.stdout, "sum right, arch 901, cudaSuccess\n")

    def test_separate_objects(self):
        self.simcc("-c", "--default-stream", "per-thread", "-DTWICE", "program.cu", "-o", "program.o")
        self.simcc("-c", "twice.c", "-o", "twice.o")
        self.simcc("program.o", "twice.o", "-o", "separate")
        done = self.call("./separate")
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_leak(self):
        self.simcc("-DLEAK", "program.cu", "-o", "leak")
        done = self.call("./leak")
        self.assertEqual(done.returncode, FINDINGS)
        self.assertIn("leak", done.stderr)
        self.assertIn("4000 bytes", done.stderr)
        self.assertIn("sum right", done.stdout)  # it was printed before

    def test_finding_names_the_line(self):
        self.simcc("-DPAST_THE_END", "program.cu", "-o", "past")
        done = self.call("./past")
        self.assertEqual(done.returncode, FINDINGS)
        line = 1 + PROGRAM[: PROGRAM.index("// the line of the finding")].count("\n")
        self.assertIn("out of bounds", done.stderr)
        self.assertIn(f"program.cu:{line}", done.stderr)

    def test_several_targets(self):
        targets = ["-gencode", "arch=compute_80,code=compute_80", "-gencode", "arch=compute_90,code=compute_90",
                   "-gencode", "arch=compute_90a,code=[compute_90a,sm_90a]", "-gencode", "arch=compute_100,code=compute_100"]
        done = self.call(self.nvcc, *targets, "--no-compress", "-c", "program.cu", "-o", "several.o")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.simcc("several.o", "-o", "several")
        done = self.call("./several")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("arch 901", done.stdout)

    def test_code_that_cannot_run(self):
        cases = (("compressed", ["-gencode", "arch=compute_90a,code=compute_90a"], "is compressed"),
                 ("machine", ["--no-compress", "-gencode", "arch=compute_90a,code=sm_90a"], "but no PTX"),
                 ("newer", ["--no-compress", "-gencode", "arch=compute_100,code=compute_100"], "above sm_90"))
        for name, options, sentence in cases:
            with self.subTest(name):
                done = self.call(self.nvcc, *options, "-c", "program.cu", "-o", name + ".o")
                self.assertEqual(done.returncode, 0, done.stderr)
                self.simcc(name + ".o", "-o", name)
                done = self.call("./" + name)
                self.assertEqual(done.returncode, FINDINGS, done.stderr)
                self.assertIn(sentence, done.stderr)
                self.assertNotIn("sum right", done.stdout)

    def test_relocatable_device_code(self):
        for options in (["-rdc=true"], ["-rdc", "true"], ["-dc"]):
            done = self.call(SIMCC, *options, "program.cu", "-o", "relocatable")
            self.assertEqual(done.returncode, 2)
            self.assertIn("relocatable device code", done.stderr)
        done = self.call(self.nvcc, "-rdc=true", "-gencode", "arch=compute_90a,code=sm_90a", "-c", "program.cu", "-o", "r.o")
        self.assertEqual(done.returncode, 0, done.stderr)
        done = self.call(self.nvcc, "-gencode", "arch=compute_90a,code=sm_90a", "-dlink", "r.o", "-o", "link.o")
        if done.returncode == 0:  # needs a device linker
            self.simcc("r.o", "link.o", "-o", "relocatable")
            done = self.call("./relocatable")
            self.assertEqual(done.returncode, FINDINGS, done.stderr)
            self.assertIn("relocatable device code", done.stderr)

    def test_bad_use(self):
        self.assertEqual(self.call(SIMCC).returncode, 2)
        self.assertEqual(self.call(SIMCC, "-O2").returncode, 2)
        self.assertEqual(self.call(SIMCC, "--help").returncode, 0)
        done = self.call("env", "GPUSIM_LIB=/nowhere", SIMCC, "twice.c", "-o", "none")
        self.assertEqual(done.returncode, 2)
        self.assertIn("libgpusim.a", done.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    Simcc.library = os.path.abspath(sys.argv[1])
    Simcc.nvcc = sys.argv[2] if len(sys.argv) > 2 else "nvcc"
    unittest.main(argv=sys.argv[:1])
