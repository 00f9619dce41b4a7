/* SPDX-License-Identifier: Apache-2.0 */
/* Importance of calibration tokens, as in RSQ (Sung et al., arXiv:2503.01820): "attention concentration", the attention that a token
 * receives in its layer, or the norm of its hidden state; scaled to [least, 1] in each sequence. Activations are multiplied by it
 * before Gram matrices are summed, so a token counts by its square. */
#include "calib_tokens.h"

#include <math.h>

#include "backend.h"
#include "llama_block.h"

enum { QUERIES = 64 }; /* whose scores are made at once */

static const char *const names[] = {"none", "attention", "norm"};

bool rq_token_weights_by_name(const char *name, rq_token_weights *t) {
    for (int i = 0; i < 3; ++i) {
        if (strcmp(name, names[i]) == 0) {
            *t = (rq_token_weights)i;
            return true;
        }
    }
    return false;
}

const char *rq_token_weights_name(rq_token_weights t) { return names[t]; }

typedef struct receive_job {
    const rq_llama_math *math;
    const float *q, *k;
    int64_t n_head, n_kv_head, head_dim, seq_len;
    float scale;
    float *score;    /* [n_seq * n_head][QUERIES][seq_len] */
    double *by_head; /* [n_seq * n_head][seq_len] */
} receive_job;

static void receive_task(void *arg, int64_t task) {
    receive_job *j = arg;
    int64_t seq = task / j->n_head, head = task % j->n_head, kv = head / (j->n_head / j->n_kv_head);
    int64_t q_row = j->n_head * j->head_dim, kv_row = j->n_kv_head * j->head_dim, t = j->seq_len;
    const float *q = j->q + seq * t * q_row + head * j->head_dim, *k = j->k + seq * t * kv_row + kv * j->head_dim;
    float *score = j->score + task * QUERIES * t;
    double *sum = j->by_head + task * t;
    memset(sum, 0, (size_t)t * sizeof *sum);
    for (int64_t first = 0; first < t; first += QUERIES) {
        int64_t n_q = rq_min_i64(QUERIES, t - first), n_key = first + n_q;
        rq_sgemm_tile(RQ_N, RQ_T, n_q, n_key, j->head_dim, 1.0f, q + first * q_row, q_row, k, kv_row, 0.0f, score,
                      n_key);
        for (int64_t i = 0; i < n_q; ++i) {
            float *row = score + i * n_key;
            int64_t seen = first + i + 1;
            double share = 1.0 / (double)j->math->softmax(row, seen, j->scale);
            for (int64_t p = 0; p < seen; ++p) sum[p] += share * (double)row[p];
        }
    }
}

rq_status rq_token_attention(float *received, const rq_model *m, float *q, float *k, int64_t n_seq, int64_t seq_len) {
    rq_status status = RQ_OK;
    const rq_config *c = &m->cfg;
    float *table = NULL;
    receive_job j = {.math = rq_llama_math_get(),
                     .q = q,
                     .k = k,
                     .n_head = c->n_head,
                     .n_kv_head = c->n_kv_head,
                     .head_dim = c->head_dim,
                     .seq_len = seq_len,
                     .scale = (float)(1.0 / sqrt((double)c->head_dim))};
    RQ_TRY(rq_backend_init());
    RQ_TRY(RQ_NEW(j.score, n_seq * c->n_head * QUERIES * seq_len));
    RQ_TRY(RQ_NEW(j.by_head, n_seq * c->n_head * seq_len));
    RQ_TRY(rq_rope_table(&table, m, 0, seq_len));
    rq_rope_apply(q, table, n_seq * seq_len, seq_len, c->n_head, c->head_dim);
    rq_rope_apply(k, table, n_seq * seq_len, seq_len, c->n_kv_head, c->head_dim);
    rq_parallel_for(n_seq * c->n_head, receive_task, &j);
    for (int64_t i = 0; i < n_seq * seq_len; ++i) {
        double sum = 0;
        for (int64_t h = 0; h < c->n_head; ++h) {
            sum += j.by_head[(i / seq_len * c->n_head + h) * seq_len + i % seq_len];
        }
        received[i] = (float)sum;
    }
done:
    free(table);
    free(j.score);
    free(j.by_head);
    return status;
}

void rq_token_norm(float *norm, const float *x, int64_t n_tok, int64_t width) {
    for (int64_t i = 0; i < n_tok; ++i) {
        double sum = 0;
        for (int64_t j = 0; j < width; ++j) sum += (double)x[i * width + j] * (double)x[i * width + j];
        norm[i] = (float)sqrt(sum);
    }
}

void rq_token_scale(float *importance, int64_t n_seq, int64_t seq_len, int64_t skip, double least) {
    skip = rq_min_i64(skip, seq_len);
    for (int64_t s = 0; s < n_seq; ++s) {
        float *v = importance + s * seq_len, low = INFINITY, high = -INFINITY;
        for (int64_t i = skip; i < seq_len; ++i) {
            low = v[i] < low ? v[i] : low;
            high = v[i] > high ? v[i] : high;
        }
        double range = (double)high - (double)low;
        for (int64_t i = 0; i < seq_len; ++i) {
            bool flat = i < skip || !(range > 0);
            v[i] = flat ? 1.0f : (float)(least + (1 - least) * (((double)v[i] - (double)low) / range));
        }
    }
}
