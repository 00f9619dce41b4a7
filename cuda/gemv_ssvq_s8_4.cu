/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of SSVQ with vectors of 4 on int8 activations. Targets: sm_80 sm_90a. */
#include "gemv_ssvq_s8.cuh"

const void *rq_gemv_ssvq_s8_function_4(const rq_cuda_gemv_desc *d, int steps) {
    return rq_gemv_ssvq_s8_function<4>(d, steps);
}
