/* SPDX-License-Identifier: Apache-2.0 */
/* What the batched forward pass and the decoder with a cache share: one block, and attention over keys and values laid out
 * either way. Internal to llama_*.c. */
#ifndef RQ_LLAMA_BLOCK_H
#define RQ_LLAMA_BLOCK_H

#include "llama.h"
#include "llama_math.h"

/* Buffers of one block for up to n_tok tokens. */
typedef struct rq_block_scratch {
    float *memory;
    float *h;         /* [n_tok][d_model]: normalized input, then what a branch adds */
    float *q, *k, *v; /* [n_tok][n_head or n_kv_head * head_dim] */
    float *att;       /* [n_tok][n_head * head_dim] */
    float *gate, *up; /* [n_tok][d_ff] */
} rq_block_scratch;

rq_status rq_block_scratch_new(rq_block_scratch *s, const rq_config *c, int64_t n_tok);
void rq_block_scratch_free(rq_block_scratch *s);

/* Attention of one layer from q, k, v of n_tok tokens, into s->att. */
typedef rq_status (*rq_attend_fn)(void *arg, int64_t layer, const rq_block_scratch *s, int64_t n_tok);

/* x += block(x) */
rq_status rq_block_run(const rq_model *m, int64_t layer, float *x, int64_t n_tok, rq_block_scratch *s,
                       rq_attend_fn attend, void *attend_arg);

/* cos and sin of position * inv_freq, computed in fp64: table[n_pos][2][head_dim / 2] for positions pos0 .. */
rq_status rq_rope_table(float **table, const rq_model *m, int64_t pos0, int64_t n_pos);
/* Half-split rotation of x[n_tok][n_head][head_dim] in place; token t takes row t % n_pos of the table. */
void rq_rope_apply(float *x, const float *table, int64_t n_tok, int64_t n_pos, int64_t n_head, int64_t head_dim);

/* Causal attention of n_seq sequences; query i of a sequence sees keys 0 .. first_pos + i. Queries and output are
 * [n_seq * n_q][n_head * head_dim]; key p of kv head h of sequence s starts at k + s * kv_seq + h * kv_head + p * kv_pos. */
typedef struct rq_attend {
    const float *q, *k, *v;
    float *out;
    int64_t kv_seq, kv_head, kv_pos;
    int64_t n_seq, n_q, first_pos;
} rq_attend;
rq_status rq_attend_run(const rq_model *m, const rq_attend *a);

#endif
