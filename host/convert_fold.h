/* SPDX-License-Identifier: Apache-2.0 */
/* A rotated residual stream without anything that turns it at run time. */
#ifndef RQ_CONVERT_FOLD_H
#define RQ_CONVERT_FOLD_H

#include "container.h"
#include "rotate.h"

/* One tensor to be written: rows of an embedding or a head, packed or not, rotated; or ones. */
typedef struct rq_fold_part {
    char name[40];
    const rq_rotation *rotation; /* NULL: all ones */
    const rq_tensor *dense;      /* one of the two */
    const rq_packed *packed;
    const float *gain; /* [n_in] that rows are multiplied with first, or NULL */
    rq_dtype dtype;    /* RQ_F16 or RQ_F32 */
} rq_fold_part;

typedef struct rq_fold {
    rq_rotation *rotation;
    rq_packed packed[2]; /* embedding, head: where they are packed */
    float *gain;         /* of the final norm */
    rq_fold_part part[3];
    rq_out_tensor
        tensor[3]; /* model.embed_tokens.weight, lm_head.weight, model.norm.weight: made when they are written */
} rq_fold;

/* From a store whose metadata has a rotation. dtype: of the new embedding and head. rq_fold_free it, also when this fails. */
rq_status rq_fold_new(rq_fold *f, const rq_store *s, const json_t *meta, rq_dtype dtype);
void rq_fold_free(rq_fold *f);
/* Whether a tensor of the store is replaced by one of these. */
bool rq_fold_replaces(const char *tensor);

#endif
