/* SPDX-License-Identifier: Apache-2.0 */
/* Generation on CUDA: what backend_cuda_decode.c (steps) and backend_cuda_weights.c (the model on the device) share. */
#ifndef RQ_BACKEND_CUDA_DECODE_H
#define RQ_BACKEND_CUDA_DECODE_H

#include "backend_cuda.h"
#include "decoder.h"
#include "rq_cuda_decode.h"

/* A matrix of the device and what it is made from. */
typedef struct cuda_stack {
    const rq_linear *linear[3]; /* stacked to one, in this order */
    int n;
    rq_tile_layout tiles; /* of packed ones */
    const float *gain;    /* [n_in] or NULL: factors of the columns of a dense matrix */
    bool rotated;         /* a dense matrix is turned by the model's rotation */
    rq_cuda_decode_matrix *to;
} cuda_stack;

typedef struct cuda_weights {
    const rq_model *m;
    rq_cuda_decode_desc desc;
    rq_cuda_decode_layer *layer; /* [n_layer] */
    cuda_stack *stack;
    int64_t n_stack, bytes; /* of the device, all of them with vectors, embedding and head */
    cuda_stack embed;
    rq_cuda_decode_matrix embed_matrix;
    void **memory; /* of the device */
    int64_t n_memory, max_memory;
} cuda_weights;

/* What goes where, and how large it is: nothing is allocated on the device. RQ_ERR_UNSUPPORTED says which matrix has no place there, and why. */
rq_status cuda_weights_plan(cuda_weights *w, const rq_model *m, int64_t max_seq);
/* Brings it there. Device and stream are current. */
rq_status cuda_weights_upload(cuda_weights *w);
void cuda_weights_free(cuda_weights *w);
/* Memory of the device that cuda_weights_free frees, with these bytes (NULL: not yet any). */
rq_status cuda_weights_put(cuda_weights *w, void **to, const void *from, int64_t bytes, const char *what);

#endif
