/* SPDX-License-Identifier: Apache-2.0 */
/* Launches of the quantizer's kernels: grids by rows, and errors. */
#ifndef RQ_COMP_LAUNCH_CUH
#define RQ_COMP_LAUNCH_CUH
#include <cuda_runtime.h>
#include <stdio.h>

#include "gemv_variants.h"
#include "rq_cuda_comp.h"

enum { RQ_COMP_ACROSS = 256 };

/* A block for RQ_COMP_ACROSS columns of one row: blockIdx.x is the row, for a grid may have 2^31 - 1 of those. */
static inline dim3 rq_comp_rows(int64_t cols, int64_t rows) {
    return dim3((unsigned)rows, (unsigned)((cols + RQ_COMP_ACROSS - 1) / RQ_COMP_ACROSS));
}
static __device__ __forceinline__ int64_t rq_comp_col(void) {
    return (int64_t)blockIdx.y * RQ_COMP_ACROSS + threadIdx.x;
}

static inline rq_status rq_comp_launched(const char *kernel) {
    cudaError_t e = cudaGetLastError();
    return e == cudaSuccess ? RQ_OK : rq_gemv_fail_cuda(kernel, e);
}
#endif
