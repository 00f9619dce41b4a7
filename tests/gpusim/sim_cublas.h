/* SPDX-License-Identifier: Apache-2.0 */
/* The handle of the cuBLAS stand-in. */
#ifndef RQ_GPUSIM_SIM_CUBLAS_H
#define RQ_GPUSIM_SIM_CUBLAS_H
#include <cublas_v2.h>

#include "sim_gemm.h"

struct cublasContext {
    uint32_t magic;
    int device;
    cudaStream_t stream;
    cublasPointerMode_t pointer_mode;
    cublasMath_t math;
    cublasAtomicsMode_t atomics;
    int sm_count_target;
};

/* Is it a live handle? */
bool sim_cublas_ok(cublasHandle_t h);
/* alpha or beta as the handle's pointer mode has it. false: the pointer is NULL. */
bool sim_cublas_scalar(cublasHandle_t h, const void *p, cudaDataType type, sim_scalar *out);
bool sim_cublas_op(cublasOperation_t op, bool *transposed); /* false: no such operation */
cublasStatus_t sim_cublas_status(sim_status s);

#endif
