/* SPDX-License-Identifier: Apache-2.0 */
/* What unpack_launch.cu and the dequantize kernels of a format agree on. A format is a function, and a line in unpack_launch.cu. */
#ifndef RQ_UNPACK_VARIANTS_H
#define RQ_UNPACK_VARIANTS_H
#include "gemv_variants.h"

enum { RQ_UNPACK_THREADS = 256 };

typedef struct rq_unpack_job { /* the kernels' parameter */
    void *to;
    const uint8_t *from; /* the repacked matrix */
    int64_t ld;          /* elements from a row of `to` to the next */
    int wide;            /* rows begin at multiples of 16 bytes */
    rq_tile_layout t;
} rq_unpack_job;

/* The kernel of a description that is not refused. */
const void *rq_unpack_grid_function(const rq_cuda_gemv_desc *d);
const void *rq_unpack_ssvq_function(const rq_cuda_gemv_desc *d);
const void *rq_unpack_vq_function(const rq_cuda_gemv_desc *d);
/* The sentence of what the GEMV's tiles cannot be: more kinds of codebooks than the GEMV has kernels for can be made dense. */
const char *rq_unpack_vq_refuse(const rq_cuda_gemv_desc *d);

/* Of unpack_launch.cu: what cannot be made dense on any device; NULL when it can. n_tok does not count. */
const char *rq_unpack_refuse(const rq_cuda_gemv_desc *d);
#endif
