/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of VQ with vectors of 4 columns, one stage of up to 256 entries. Targets: sm_80 sm_90a. */
#include "gemv_vq.cuh"

void rq_gemv_vq_pick_4_8_0(rq_gemv_kernel *k, const rq_cuda_gemv_desc *d) {
    rq_gemv_vq_pick<4, rq_vq_stage<8, 7>, rq_vq_none>(k, d);
}
