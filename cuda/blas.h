/* SPDX-License-Identifier: Apache-2.0 */
/* The one product that is left to cuBLAS. It is loaded when it is first asked for: nothing here needs it to build or to start. */
#ifndef RQ_BLAS_H
#define RQ_BLAS_H
#include <cuda_runtime_api.h>

#include "rq_cuda.h"

/* y[t][i] (ld n_out) = sum_j w[i][j] x[t][j] + beta y[t][i], fp32 sums. w and x of act, y of act or float. */
typedef struct rq_blas_product {
    int64_t n_out, n_in, n_tok;
    rq_act act;
    const void *w, *x;
    int64_t ld_w, ld_x;
    void *y;
    int y_float;
    float beta;
    void *workspace; /* of the device; cuBLAS allocates nothing then, and a run can be captured */
    size_t workspace_bytes;
} rq_blas_product;

/* RQ_OK when a product can run on the current device: cuBLAS is there, and with handle NULL it has a handle of ours. Not while a stream is
 * captured. Otherwise rq_cuda_last_error() says what is missing. */
rq_status rq_blas_prepare(void *handle);
/* Only queues. handle: a cublasHandle_t of the caller's, whose stream and workspace are set; NULL: ours, of the current device. */
rq_status rq_blas_run(void *handle, const rq_blas_product *p, rq_cuda_stream stream);
/* Ends our handles. Products that run have ended. */
void rq_blas_release(void);
#endif
