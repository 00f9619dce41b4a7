/* SPDX-License-Identifier: Apache-2.0 */
/* A packed checkpoint in another tool's layout, or in ours: the same codes, scales and codebooks in other tensors. */
#ifndef RQ_CONVERT_H
#define RQ_CONVERT_H

#include "comp.h"
#include "container.h"
#include "peer.h"

typedef struct rq_convert_job {
    const char *in_path, *out_path; /* out: a folder that is new or empty */
    const char *to;                 /* name of a peer, or "requite" */
    const char *fold; /* "f16" or "f32": a rotation goes into embedding and head, stored so; NULL: it is refused */
    bool (*progress)(void *user, double done_frac, const char *text); /* or NULL; true: stop */
    void *user;
} rq_convert_job;

typedef struct rq_convert_report {
    int64_t n_matrices, out_bytes;
    double seconds;
} rq_convert_report;

/* Matrices are converted one at a time into OUT.converting, which becomes OUT when it is complete and is removed when anything fails.
 * RQ_ERR_UNSUPPORTED with the matrix and the numbers for what the target cannot express. */
rq_status rq_convert(const rq_convert_job *job, rq_convert_report *report);
/* Whether `to` can be written; a sentence with the list when not. */
rq_status rq_convert_check_target(const char *to);
/* What the options alone show to have no place there: RQ_ERR_ARG. */
rq_status rq_convert_check_options(const char *to, const rq_quant_opt *o, const char *rotate, const char *fold);

#endif
