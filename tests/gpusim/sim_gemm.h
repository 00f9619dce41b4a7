/* SPDX-License-Identifier: Apache-2.0 */
/* Matrix products of any of the number formats, as cuBLAS and cuBLASLt do them. */
#ifndef RQ_GPUSIM_SIM_GEMM_H
#define RQ_GPUSIM_SIM_GEMM_H
#include "sim_lib.h"

/* alpha or beta: a value, read when the function was called, or a place on the device, read when it runs. */
typedef struct sim_scalar {
    double value;
    const void *device; /* NULL: the value */
    cudaDataType type;
} sim_scalar;
double sim_scalar_value(const sim_scalar *s);

typedef struct sim_matrix {
    const void *p;
    cudaDataType type;
    int64_t ld, stride; /* elements; stride: from one of a batch to the next */
    bool row_major;
} sim_matrix;

typedef struct sim_gemm {
    bool ta, tb;
    int64_t m, n, k;
    int batch;
    sim_scalar alpha, beta;
    sim_matrix a, b, c, d; /* d = alpha op(a) op(b) + beta c; d may be c */
    bool integer;          /* exact integer sums; floats otherwise, or doubles where a is of doubles */
    bool relu, gelu;       /* after the bias */
    sim_matrix bias;       /* one a row of d; p NULL: none */
    const void *scale[4];  /* device floats that multiply a, b, c and d; NULL: 1 */
    float *amax;           /* device: the largest |d| before its scale; NULL: nobody asks */
} sim_gemm;

/* The spans of what it works on: up to SIM_SPANS. */
size_t sim_gemm_spans(const sim_gemm *g, sim_span *span);
void sim_gemm_run(void *gemm);

#endif
