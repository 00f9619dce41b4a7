/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of VQ with vectors of 4 columns, one stage of up to 4096 entries. Targets: sm_80 sm_90a. */
#include "gemv_vq.cuh"

void rq_gemv_vq_pick_4_12(rq_gemv_kernel *k, const rq_cuda_gemv_desc *d) { rq_gemv_vq_pick_12<4, false>(k, d); }
