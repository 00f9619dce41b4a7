/* SPDX-License-Identifier: Apache-2.0 */
/* How much each calibration token counts in the Gram matrices (docs/methods.md, "Token weights"). */
#ifndef RQ_CALIB_TOKENS_H
#define RQ_CALIB_TOKENS_H

#include "llama.h"

typedef enum rq_token_weights { RQ_TOKENS_EVEN, RQ_TOKENS_ATTENTION, RQ_TOKENS_NORM } rq_token_weights;
/* "none", "attention" or "norm"; false for another word. */
bool rq_token_weights_by_name(const char *name, rq_token_weights *t);
const char *rq_token_weights_name(rq_token_weights t);

/* received[n_seq * seq_len]: the attention that a token gets, summed over heads and over the queries that see it. q and k as the
 * linears give them; RoPE is applied to both in place. Same bytes for any thread count. */
rq_status rq_token_attention(float *received, const rq_model *m, float *q, float *k, int64_t n_seq, int64_t seq_len);

/* norm[n_tok] = |x_t| of x[n_tok][width] */
void rq_token_norm(float *norm, const float *x, int64_t n_tok, int64_t width);

/* importance[n_seq][seq_len] of each sequence mapped linearly from its smallest and largest to [least, 1], leaving out the first
 * `skip` tokens (their values become 1); a sequence of equal ones becomes 1. */
void rq_token_scale(float *importance, int64_t n_seq, int64_t seq_len, int64_t skip, double least);

#endif
