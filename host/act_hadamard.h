/* SPDX-License-Identifier: Apache-2.0 */
/* Hadamard matrices that inputs of a layer are multiplied with at run time, in fp32 and in the one order of roundings of fmt_act.h. */
#ifndef RQ_ACT_HADAMARD_H
#define RQ_ACT_HADAMARD_H

#include "common.h"
#include "fmt_act.h"

/* Whether there is one of this order here: K * 2^p with 2 or more rows, K = rq_hadamard_core(size) at most RQ_ACT_MAX_CORE. */
bool rq_hadamard_usable(int64_t size);

/* h[0] the matrix of that order, h[1] its transpose (the same one where the order is a power of two). RQ_ERR_ARG without one. */
RQ_API RQ_MUST_USE rq_status rq_hadamard_make(rq_hadamard h[2], int64_t size);

/* Each h->size of the n values, a multiple of it, times the matrix, in place. rq_quantize_act_* give the same bytes on their way. */
void rq_hadamard_apply(const rq_hadamard *h, float *x, int64_t n);

#endif
