/* SPDX-License-Identifier: Apache-2.0 */
/* Rotary embedding and causal attention with grouped key/value heads:
 *
 *   out_i = sum over p <= pos(i) of softmax_p(q_i . k_p / sqrt(head_dim)) v_p
 *
 * One task is a block of queries of one head of one sequence: scores by one matrix product, softmax row by row, output by
 * another. Blocks are cut by the sequence's length alone, so neither threads nor neighbours in a batch change a bit. */
#include <math.h>
#include <stdatomic.h>

#include "backend.h"
#include "llama_block.h"

/* ---- rotary embedding ------------------------------------------------------------------------------------------------ */

rq_status rq_rope_table(float **table, const rq_model *m, int64_t pos0, int64_t n_pos) {
    int64_t half = m->cfg.head_dim / 2, count;
    *table = NULL;
    if (!rq_mul_size(n_pos, 2 * half, &count)) {
        return rq_fail(RQ_ERR_ARG, "%lld positions are too many", (long long)n_pos);
    }
    rq_status status = RQ_NEW(*table, count);
    if (status != RQ_OK) return status;
    for (int64_t p = 0; p < n_pos; ++p) {
        float *c = *table + p * 2 * half, *s = c + half;
        for (int64_t i = 0; i < half; ++i) {
            double angle = (double)(pos0 + p) * (double)m->rope_inv_freq[i];
            c[i] = (float)cos(angle);
            s[i] = (float)sin(angle);
        }
    }
    return RQ_OK;
}

typedef struct rope_job {
    float *x;
    const float *table;
    int64_t n_tok, n_pos, n_head, head_dim;
} rope_job;

enum { ROPE_TOKENS = 32 }; /* per task */

static void rope_item(void *arg, int64_t item) {
    const rope_job *job = arg;
    int64_t half = job->head_dim / 2, end = rq_min_i64((item + 1) * ROPE_TOKENS, job->n_tok);
    for (int64_t t = item * ROPE_TOKENS; t < end; ++t) {
        const float *c = job->table + t % job->n_pos * 2 * half, *s = c + half;
        for (int64_t head = 0; head < job->n_head; ++head) {
            float *a = job->x + (t * job->n_head + head) * job->head_dim, *b = a + half;
            for (int64_t i = 0; i < half; ++i) {
                float x = a[i], y = b[i];
                a[i] = x * c[i] - y * s[i];
                b[i] = y * c[i] + x * s[i];
            }
        }
    }
}

void rq_rope_apply(float *x, const float *table, int64_t n_tok, int64_t n_pos, int64_t n_head, int64_t head_dim) {
    rope_job job = {x, table, n_tok, n_pos, n_head, head_dim};
    rq_parallel_for(rq_ceil_div(n_tok, ROPE_TOKENS), rope_item, &job);
}

/* ---- attention ------------------------------------------------------------------------------------------------------- */

enum {
    MAX_QUERIES = 128,
    SCORE_FLOATS = 1 << 18, /* scores of a task, 1 MiB: with its keys and values it stays near the core */
    FEW_QUERIES = 4         /* below this a matrix product is not worth its packing */
};

typedef struct attend_job {
    const rq_attend *a;
    const rq_llama_math *math;
    int64_t n_head, n_kv_head, head_dim;
    int64_t block, n_block, n_task, score_floats;
    float scale;
    float *scratch; /* score_floats per slot */
    _Atomic int64_t next_task;
} attend_job;

/* Scores of up to FEW_QUERIES queries, one key at a time. */
static void attend_few(const attend_job *job, const float *q, const float *k, const float *v, float *out, float *score,
                       int64_t n_q, int64_t first_pos) {
    int64_t width = job->n_head * job->head_dim, kv_pos = job->a->kv_pos;
    for (int64_t i = 0; i < n_q; ++i) {
        float *o = out + i * width;
        int64_t n_key = first_pos + i + 1;
        for (int64_t p = 0; p < n_key; ++p) score[p] = job->math->dot(q + i * width, k + p * kv_pos, job->head_dim);
        float sum = job->math->softmax(score, n_key, job->scale);
        memset(o, 0, (size_t)job->head_dim * sizeof *o);
        for (int64_t p = 0; p < n_key; ++p) job->math->axpy(o, score[p], v + p * kv_pos, job->head_dim);
        job->math->scale(o, 1.0f / sum, job->head_dim);
    }
}

static void attend_block(const attend_job *job, const float *q, const float *k, const float *v, float *out,
                         float *score, int64_t n_q, int64_t first_pos) {
    int64_t width = job->n_head * job->head_dim, n_key = first_pos + n_q, hd = job->head_dim;
    float sum[MAX_QUERIES];
    rq_sgemm_tile(RQ_N, RQ_T, n_q, n_key, hd, 1.0f, q, width, k, job->a->kv_pos, 0.0f, score, n_key);
    for (int64_t i = 0; i < n_q; ++i) {
        float *row = score + i * n_key;
        int64_t seen = first_pos + i + 1;
        sum[i] = job->math->softmax(row, seen, job->scale);
        memset(row + seen, 0, (size_t)(n_key - seen) * sizeof *row);
    }
    rq_sgemm_tile(RQ_N, RQ_N, n_q, hd, n_key, 1.0f, score, n_key, v, job->a->kv_pos, 0.0f, out, width);
    for (int64_t i = 0; i < n_q; ++i) job->math->scale(out + i * width, 1.0f / sum[i], hd);
}

static void attend_task(const attend_job *job, float *score, int64_t task) {
    const rq_attend *a = job->a;
    /* The last blocks see the most keys: they go first. */
    int64_t block = job->n_block - 1 - task / (a->n_seq * job->n_head), rest = task % (a->n_seq * job->n_head);
    int64_t seq = rest / job->n_head, head = rest % job->n_head, kv = head / (job->n_head / job->n_kv_head);
    int64_t i = block * job->block, n_q = rq_min_i64(job->block, a->n_q - i);
    int64_t q_at = (seq * a->n_q + i) * job->n_head * job->head_dim + head * job->head_dim;
    int64_t kv_at = seq * a->kv_seq + kv * a->kv_head;
    (n_q < FEW_QUERIES ? attend_few : attend_block)(job, a->q + q_at, a->k + kv_at, a->v + kv_at, a->out + q_at, score,
                                                    n_q, a->first_pos + i);
}

/* A slot owns scratch and takes tasks until none is left; which slot does which task does not matter. */
static void attend_slot(void *arg, int64_t slot) {
    attend_job *job = arg;
    float *score = job->scratch + slot * job->score_floats;
    for (;;) {
        int64_t task = atomic_fetch_add(&job->next_task, 1);
        if (task >= job->n_task) return;
        attend_task(job, score, task);
    }
}

rq_status rq_attend_run(const rq_model *m, const rq_attend *a) {
    rq_status status = RQ_OK;
    int64_t n_key = a->first_pos + a->n_q, n_slot, n_float;
    if (a->n_seq < 1 || a->n_q < 1) return RQ_OK;
    attend_job job = {.a = a,
                      .math = rq_llama_math_get(),
                      .n_head = m->cfg.n_head,
                      .n_kv_head = m->cfg.n_kv_head,
                      .head_dim = m->cfg.head_dim,
                      .scale = (float)(1.0 / sqrt((double)m->cfg.head_dim))};
    job.block = rq_max_i64(FEW_QUERIES, rq_min_i64(MAX_QUERIES, SCORE_FLOATS / n_key));
    job.n_block = rq_ceil_div(a->n_q, job.block);
    job.n_task = job.n_block * a->n_seq * job.n_head;
    job.score_floats = rq_ceil_div(rq_min_i64(job.block, a->n_q) * n_key, 16) * 16;
    n_slot = rq_min_i64(rq_get_threads(), job.n_task);
    if (!rq_mul_size(n_slot, job.score_floats, &n_float)) {
        return rq_fail(RQ_ERR_ARG, "a sequence of %lld tokens is too long", (long long)n_key);
    }
    RQ_TRY(rq_backend_init());
    RQ_TRY(RQ_NEW(job.scratch, n_float));
    rq_parallel_for(n_slot, attend_slot, &job);
done:
    free(job.scratch);
    return status;
}

rq_status rq_attention(const rq_model *m, float *out, float *q, float *k, const float *v, int64_t n_seq,
                       int64_t seq_len) {
    rq_status status = RQ_OK;
    int64_t n_kv = m->cfg.n_kv_head, hd = m->cfg.head_dim;
    float *table = NULL;
    RQ_TRY(rq_rope_table(&table, m, 0, seq_len));
    rq_rope_apply(q, table, n_seq * seq_len, seq_len, m->cfg.n_head, hd);
    rq_rope_apply(k, table, n_seq * seq_len, seq_len, n_kv, hd);
    rq_attend a = {.q = q,
                   .k = k,
                   .v = v,
                   .out = out,
                   .kv_seq = seq_len * n_kv * hd,
                   .kv_head = hd,
                   .kv_pos = n_kv * hd,
                   .n_seq = n_seq,
                   .n_q = seq_len};
    RQ_TRY(rq_attend_run(m, &a));
done:
    free(table);
    return status;
}
