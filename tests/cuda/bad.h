/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels that are wrong on purpose, each with a corrected twin (template <bool BAD>). A program of this kind is run as
 *   PROGRAM --list          the names of its cases
 *   PROGRAM NAME bad|ok     one of them
 * and the line that the simulator must name carries the comment "finds NAME: KIND". test_bad.py does the rest. Only the
 * simulator runs the bad ones: on a GPU their behaviour is undefined. */
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <cuda_runtime.h>

struct bad_case {
    const char *name;
    void (*run)(bool bad);
};

static inline int bad_main(const bad_case *cases, int n, int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "--list")) {
        for (int k = 0; k < n; ++k) puts(cases[k].name);
        return 0;
    }
    if (argc == 3)
        for (int k = 0; k < n; ++k)
            if (!strcmp(cases[k].name, argv[1])) {
                cases[k].run(!strcmp(argv[2], "bad"));
                cudaError_t e = cudaDeviceSynchronize();
                printf("%s %s: %s\n", argv[1], argv[2], cudaGetErrorName(e));
                return 0; /* the simulator's findings make it another exit code */
            }
    fprintf(stderr, "usage: %s --list | NAME bad|ok\n", argv[0]);
    return 2;
}

/* Both twins of a kernel with the same launch. */
#define BAD_LAUNCH(kernel, grid, block, shared, ...)                                                                   \
    (bad ? kernel<true><<<grid, block, shared>>>(__VA_ARGS__) : kernel<false><<<grid, block, shared>>>(__VA_ARGS__))

template <typename T> struct device_array { /* freed at the end of its case */
    T *p = nullptr;
    explicit device_array(size_t n) {
        cudaMalloc(&p, n * sizeof(T));
        cudaMemset(p, 0, n * sizeof(T));
    }
    ~device_array() {
        cudaDeviceSynchronize();
        cudaFree(p);
    }
    operator T *() const { return p; }
};
