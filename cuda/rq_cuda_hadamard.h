/* SPDX-License-Identifier: Apache-2.0 */
/* Rows times a Hadamard matrix or a rotation, alone (hadamard_rows.cu), and RMSNorm with one. All pointers are device pointers unless they are said to be the host's; y may be
 * x; calls only queue. The same bytes in every run. */
#ifndef RQ_CUDA_HADAMARD_H
#define RQ_CUDA_HADAMARD_H

#include "rq_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum rq_rows_type { RQ_ROWS_F16, RQ_ROWS_BF16, RQ_ROWS_F32, RQ_ROWS_F64 } rq_rows_type;

/* y: each hadamard->size columns of x times that matrix, then each column times its factor: sums in fp32, in the order of host/fmt_act.h, and one
 * rounding to type. The order divides n, and is what shared memory of the device holds as fp32. */
typedef struct rq_cuda_hadamard_args {
    void *y; /* [n_tok][n] of type */
    const void *x;
    rq_rows_type type; /* not F64 */
    int64_t n_tok, n;
    const rq_hadamard *hadamard; /* on the host, copied into the launch: one of the two of rq_hadamard_make */
    const float *factor;         /* [n] on the device, or NULL */
} rq_cuda_hadamard_args;
rq_status rq_cuda_hadamard_rows(const rq_cuda_hadamard_args *a, rq_cuda_stream stream);

/* y = x R for each `size` columns, R = diag(signs) H / sqrt(size), or x R^T: sums in fp64 and one rounding to type (fp16 and bf16 by way of fp32), the
 * numbers of host/rotate.c. Shared memory holds the order as fp64. */
typedef struct rq_cuda_rotate_args {
    void *y; /* [n_tok][n] of type */
    const void *x;
    rq_rows_type type;
    int64_t n_tok, n;
    const rq_hadamard *hadamard; /* on the host: both of rq_hadamard_make, H and its transpose */
    uint64_t seed;               /* sign i is that of bit 63 of random number i (host/random.h), 1 for plus */
    int plain;                   /* 1: all signs are plus */
    int inverse;
} rq_cuda_rotate_args;
rq_status rq_cuda_rotate_rows(const rq_cuda_rotate_args *a, rq_cuda_stream stream);

/* rq_cuda_rmsnorm_quantize with each h->size columns times that matrix between norm and factors; h is on the host, and copied into the launch. Up to
 * 32,768 columns, int8 alone (quantize_rows_hadamard.cu). */
rq_status rq_cuda_rmsnorm_hadamard_quantize(const rq_cuda_rmsnorm_args *a, const rq_hadamard *h, rq_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
