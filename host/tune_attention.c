/* SPDX-License-Identifier: Apache-2.0 */
/* Gradient of causal attention with grouped key/value heads. With P = softmax(c Q K^T) and O = P V, c =
 * head_dim^-1/2:
 *
 *   dV = P^T dO      dP = dO V^T      dS = P (dP - rowsum(dO O))      dQ = c dS K      dK = c dS^T Q
 *
 * One task is one query head of one sequence; it forms P again, a block of queries at a time. Query heads that share
 * a key/value head write apart, and are added in order afterwards: threads change nothing. */
#include <math.h>
#include <stdatomic.h>

#include "backend.h"
#include "llama_block.h"
#include "tune.h"

enum { QUERIES = 128 /* of a block */, ADD_TOKENS = 32 };

typedef struct attention_job {
    const rq_tuner *t;
    const rq_tune_tape *tape;
    const rq_llama_math *math;
    int64_t n_seq, n_task;
    float scale;
    float *scratch; /* [slots][2][QUERIES][seq_len] */
    _Atomic int64_t next;
} attention_job;

/* p: probabilities of n_q queries from position first on; dp becomes dS c. */
static void block_scores(const attention_job *j, float *p, float *dp, const float *q, const float *k, const float *v,
                         const float *out, const float *dout, int64_t n_q, int64_t first) {
    const rq_config *c = &j->t->m->cfg;
    int64_t n_key = first + n_q, hd = c->head_dim, width = c->n_head * hd, kv_width = c->n_kv_head * hd;
    rq_sgemm_tile(RQ_N, RQ_T, n_q, n_key, hd, 1.0f, q, width, k, kv_width, 0.0f, p, n_key);
    rq_sgemm_tile(RQ_N, RQ_T, n_q, n_key, hd, 1.0f, dout, width, v, kv_width, 0.0f, dp, n_key);
    for (int64_t i = 0; i < n_q; ++i) {
        float *row = p + i * n_key, *drow = dp + i * n_key;
        int64_t seen = first + i + 1;
        j->math->scale(row, 1.0f / j->math->softmax(row, seen, j->scale), seen);
        memset(row + seen, 0, (size_t)(n_key - seen) * sizeof *row);
        memset(drow + seen, 0, (size_t)(n_key - seen) * sizeof *drow);
        float mean = j->math->dot(out + i * width, dout + i * width, hd);
        for (int64_t x = 0; x < seen; ++x) drow[x] = row[x] * (drow[x] - mean) * j->scale;
    }
}

static void head_task(const attention_job *j, float *scratch, int64_t task) {
    const rq_tuner *t = j->t;
    const rq_config *c = &t->m->cfg;
    int64_t seq = task / c->n_head, head = task % c->n_head, kv = head / (c->n_head / c->n_kv_head), hd = c->head_dim;
    int64_t width = c->n_head * hd, kv_width = c->n_kv_head * hd, n = t->seq_len;
    int64_t at = seq * n * width + head * hd, kv_at = seq * n * kv_width + kv * hd;
    const float *k = j->tape->k + kv_at, *v = j->tape->v + kv_at;
    float *dk = t->dk_head + at, *dv = t->dv_head + at, *p = scratch, *dp = scratch + QUERIES * n;
    for (int64_t i = 0; i < n; ++i) {
        memset(dk + i * width, 0, (size_t)hd * sizeof *dk);
        memset(dv + i * width, 0, (size_t)hd * sizeof *dv);
    }
    for (int64_t i = 0; i < n; i += QUERIES) {
        int64_t n_q = rq_min_i64(QUERIES, n - i), n_key = i + n_q, row = at + i * width;
        const float *q = j->tape->q + row, *dout = t->datt + row;
        block_scores(j, p, dp, q, k, v, j->tape->att + row, dout, n_q, i);
        rq_sgemm_tile(RQ_T, RQ_N, n_key, hd, n_q, 1.0f, p, n_key, dout, width, 1.0f, dv, width);
        rq_sgemm_tile(RQ_T, RQ_N, n_key, hd, n_q, 1.0f, dp, n_key, q, width, 1.0f, dk, width);
        rq_sgemm_tile(RQ_N, RQ_N, n_q, hd, n_key, 1.0f, dp, n_key, k, kv_width, 0.0f, t->dq + row, width);
    }
}

static void head_slot(void *arg, int64_t slot) {
    attention_job *j = arg;
    float *scratch = j->scratch + slot * 2 * QUERIES * j->t->seq_len;
    for (;;) {
        int64_t task = atomic_fetch_add(&j->next, 1);
        if (task >= j->n_task) return;
        head_task(j, scratch, task);
    }
}

/* Sum over the query heads of each key/value head. */
static void add_heads(void *arg, int64_t item) {
    const attention_job *j = arg;
    const rq_tuner *t = j->t;
    const rq_config *c = &t->m->cfg;
    int64_t hd = c->head_dim, n_share = c->n_head / c->n_kv_head;
    int64_t end = rq_min_i64((item + 1) * ADD_TOKENS, j->n_seq * t->seq_len);
    for (int64_t i = item * ADD_TOKENS * c->n_kv_head; i < end * c->n_kv_head; ++i) {
        const float *from_k = t->dk_head + i * n_share * hd, *from_v = t->dv_head + i * n_share * hd;
        memcpy(t->dk + i * hd, from_k, (size_t)hd * sizeof *from_k);
        memcpy(t->dv + i * hd, from_v, (size_t)hd * sizeof *from_v);
        for (int64_t h = 1; h < n_share; ++h) {
            j->math->axpy(t->dk + i * hd, 1.0f, from_k + h * hd, hd);
            j->math->axpy(t->dv + i * hd, 1.0f, from_v + h * hd, hd);
        }
    }
}

rq_status rq_tune_attention_grad(rq_tuner *t, const rq_tune_tape *tape, int64_t n_seq) {
    rq_status status = RQ_OK;
    const rq_config *c = &t->m->cfg;
    int64_t n_tok = n_seq * t->seq_len, half = c->head_dim / 2;
    float *table = NULL;
    attention_job j = {.t = t, .tape = tape, .math = rq_llama_math_get(), .n_seq = n_seq};
    j.n_task = n_seq * c->n_head;
    j.scale = (float)(1.0 / sqrt((double)c->head_dim));
    int64_t n_slot = rq_min_i64(rq_get_threads(), j.n_task);
    RQ_TRY(RQ_NEW(j.scratch, n_slot * 2 * QUERIES * t->seq_len));
    rq_parallel_for(n_slot, head_slot, &j);
    rq_parallel_for(rq_ceil_div(n_tok, ADD_TOKENS), add_heads, &j);
    /* The transpose of a rotation by an angle is the rotation by its negative. */
    RQ_TRY(rq_rope_table(&table, t->m, 0, t->seq_len));
    for (int64_t p = 0; p < t->seq_len; ++p) {
        for (int64_t i = half; i < 2 * half; ++i) table[p * 2 * half + i] = -table[p * 2 * half + i];
    }
    rq_rope_apply(t->dq, table, n_tok, t->seq_len, c->n_head, c->head_dim);
    rq_rope_apply(t->dk, table, n_tok, t->seq_len, c->n_kv_head, c->head_dim);
done:
    free(j.scratch);
    free(table);
    return status;
}
