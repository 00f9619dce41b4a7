/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of SSVQ with vectors of 8 and codes of 9 to 12 bits. Targets: sm_80 sm_90a. */
#include "gemv_ssvq.cuh"

const void *rq_gemv_ssvq_wide_function_8(const rq_cuda_gemv_desc *d, int steps) {
    return d->code_bits <= 10 ? rq_gemv_ssvq_wide_function<8, 2>(d, steps) : rq_gemv_ssvq_wide_function<8, 4>(d, steps);
}
