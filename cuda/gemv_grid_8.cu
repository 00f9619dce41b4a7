/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of 8-bit grid codes. Targets: sm_80 sm_90a. */
#include "gemv_grid.cuh"

const void *rq_gemv_grid_function_8(const rq_cuda_gemv_desc *d, int steps) {
    return rq_gemv_grid_function<8>(d, steps);
}
