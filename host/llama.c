/* SPDX-License-Identifier: Apache-2.0 */
/* The decoder's forward pass: embedding, RMSNorm, one block, whole sequences, logits. Plain definitions of the Llama family
 * (Touvron et al., arXiv:2302.13971); attention is in llama_attention.c, the decoder with a cache in llama_decode.c. */
#include "llama.h"

#include "llama_block.h"

const char *const rq_linear_suffix[RQ_N_LINEARS] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                                    "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                                    "mlp.down_proj"};

/* ---- elementwise, in fixed pieces shared by the pool ------------------------------------------------------------------ */

enum {
    PIECE = 1 << 14,        /* floats a task works on */
    BATCH_TOKENS = 1 << 12, /* tokens that go through the blocks together */
};

typedef struct piece_job {
    float *out;
    const float *a, *b;
    int64_t n, width, rows;
    float eps;
    const rq_llama_math *math;
} piece_job;

static void rmsnorm_item(void *arg, int64_t item) {
    const piece_job *job = arg;
    int64_t end = rq_min_i64((item + 1) * job->rows, job->n);
    for (int64_t i = item * job->rows; i < end; ++i) {
        job->math->rmsnorm(job->out + i * job->width, job->a + i * job->width, job->b, job->width, job->eps);
    }
}

void rq_rmsnorm(float *out, const float *x, const float *gain, int64_t n_tok, int64_t width, float eps) {
    piece_job job = {.out = out, .a = x, .b = gain, .n = n_tok, .width = width, .eps = eps};
    job.rows = rq_max_i64(1, PIECE / rq_max_i64(width, 1));
    job.math = rq_llama_math_get();
    rq_parallel_for(rq_ceil_div(n_tok, job.rows), rmsnorm_item, &job);
}

static void swiglu_item(void *arg, int64_t item) {
    const piece_job *job = arg;
    int64_t i = item * PIECE;
    job->math->swiglu(job->out + i, job->a + i, job->b + i, rq_min_i64(PIECE, job->n - i));
}

void rq_swiglu(float *out, const float *gate, const float *up, int64_t n) {
    piece_job job = {.out = out, .a = gate, .b = up, .n = n, .math = rq_llama_math_get()};
    rq_parallel_for(rq_ceil_div(n, PIECE), swiglu_item, &job);
}

static void add_item(void *arg, int64_t item) {
    const piece_job *job = arg;
    int64_t i = item * PIECE;
    job->math->axpy(job->out + i, 1.0f, job->a + i, rq_min_i64(PIECE, job->n - i));
}

/* x += y */
static void add_to(float *x, const float *y, int64_t n) {
    piece_job job = {.out = x, .a = y, .n = n, .math = rq_llama_math_get()};
    rq_parallel_for(rq_ceil_div(n, PIECE), add_item, &job);
}

/* ---- embedding and head ----------------------------------------------------------------------------------------------- */

rq_status rq_embed(const rq_model *m, float *x, const int32_t *ids, int64_t n_tok) {
    int64_t d = m->cfg.d_model;
    for (int64_t t = 0; t < n_tok; ++t) {
        if (ids[t] < 0 || ids[t] >= m->cfg.n_vocab) {
            return rq_fail(RQ_ERR_INPUT, "token %lld is %d, but the vocabulary has %lld entries", (long long)t,
                           (int)ids[t], (long long)m->cfg.n_vocab);
        }
        rq_status status = rq_linear_rows(&m->embed, ids[t], 1, x + t * d);
        if (status != RQ_OK) return status;
    }
    return m->rotation ? rq_rotation_apply(m->rotation, x, n_tok, d, false) : RQ_OK;
}

rq_status rq_final_norm(const rq_model *m, float *out, const float *x, int64_t n_tok) {
    int64_t d = m->cfg.d_model;
    rq_rmsnorm(out, x, m->rotation ? NULL : m->norm_f, n_tok, d, m->cfg.rms_eps);
    if (!m->rotation) return RQ_OK;
    /* The gain belongs to the features that the head reads, so it comes after the rotation is undone. */
    rq_status status = rq_rotation_apply(m->rotation, out, n_tok, d, true);
    if (status != RQ_OK) return status;
    for (int64_t t = 0; t < n_tok; ++t) {
        for (int64_t i = 0; i < d; ++i) out[t * d + i] *= m->norm_f[i];
    }
    return RQ_OK;
}

rq_status rq_logits(const rq_model *m, float *logits, const float *x, int64_t n_tok) {
    rq_status status = RQ_OK;
    float *h = NULL;
    int64_t count;
    if (!rq_mul_size(n_tok, m->cfg.d_model, &count)) {
        return rq_fail(RQ_ERR_ARG, "%lld tokens are too many", (long long)n_tok);
    }
    RQ_TRY(RQ_NEW(h, count));
    RQ_TRY(rq_final_norm(m, h, x, n_tok));
    RQ_TRY(rq_linear_apply(&m->head, logits, h, n_tok));
done:
    free(h);
    return status;
}

/* ---- blocks ----------------------------------------------------------------------------------------------------------- */

rq_status rq_block_scratch_new(rq_block_scratch *s, const rq_config *c, int64_t n_tok) {
    int64_t q = c->n_head * c->head_dim, kv = c->n_kv_head * c->head_dim, count;
    memset(s, 0, sizeof *s);
    if (!rq_mul_size(n_tok, c->d_model + 2 * q + 2 * kv + 2 * c->d_ff, &count)) {
        return rq_fail(RQ_ERR_ARG, "%lld tokens at once are too many", (long long)n_tok);
    }
    rq_status status = RQ_NEW(s->memory, count);
    if (status != RQ_OK) return status;
    s->h = s->memory;
    s->q = s->h + n_tok * c->d_model;
    s->att = s->q + n_tok * q;
    s->k = s->att + n_tok * q;
    s->v = s->k + n_tok * kv;
    s->gate = s->v + n_tok * kv;
    s->up = s->gate + n_tok * c->d_ff;
    return RQ_OK;
}

void rq_block_scratch_free(rq_block_scratch *s) {
    free(s->memory);
    memset(s, 0, sizeof *s);
}

rq_status rq_block_run(const rq_model *m, int64_t layer, float *x, int64_t n_tok, rq_block_scratch *s,
                       rq_attend_fn attend, void *attend_arg) {
    rq_status status = RQ_OK;
    const rq_block *b = &m->block[layer];
    int64_t d = m->cfg.d_model;
    float eps = m->cfg.rms_eps;

    rq_rmsnorm(s->h, x, b->norm1, n_tok, d, eps);
    RQ_TRY(rq_linear_apply(&b->lin[RQ_Q], s->q, s->h, n_tok));
    RQ_TRY(rq_linear_apply(&b->lin[RQ_K], s->k, s->h, n_tok));
    RQ_TRY(rq_linear_apply(&b->lin[RQ_V], s->v, s->h, n_tok));
    RQ_TRY(attend(attend_arg, layer, s, n_tok));
    RQ_TRY(rq_linear_apply(&b->lin[RQ_O], s->h, s->att, n_tok));
    add_to(x, s->h, n_tok * d);

    rq_rmsnorm(s->h, x, b->norm2, n_tok, d, eps);
    RQ_TRY(rq_linear_apply(&b->lin[RQ_GATE], s->gate, s->h, n_tok));
    RQ_TRY(rq_linear_apply(&b->lin[RQ_UP], s->up, s->h, n_tok));
    rq_swiglu(s->gate, s->gate, s->up, n_tok * m->cfg.d_ff);
    RQ_TRY(rq_linear_apply(&b->lin[RQ_DOWN], s->h, s->gate, n_tok));
    add_to(x, s->h, n_tok * d);
done:
    if (status != RQ_OK) rq_fail_context(status, "block %lld", (long long)layer);
    return status;
}

typedef struct forward_arg {
    const rq_model *m;
    int64_t n_seq, seq_len;
} forward_arg;

static rq_status forward_attend(void *arg, int64_t layer, const rq_block_scratch *s, int64_t n_tok) {
    const forward_arg *f = arg;
    (void)layer;
    (void)n_tok;
    return rq_attention(f->m, s->att, s->q, s->k, s->v, f->n_seq, f->seq_len);
}

rq_status rq_forward(const rq_model *m, float *x, const int32_t *ids, int64_t n_seq, int64_t seq_len) {
    rq_status status = RQ_OK;
    rq_block_scratch s = {0};
    int64_t n_tok;
    if (n_seq < 1 || seq_len < 1 || !rq_mul_size(n_seq, seq_len, &n_tok)) {
        return rq_fail(RQ_ERR_ARG, "cannot run %lld sequences of %lld tokens", (long long)n_seq, (long long)seq_len);
    }
    int64_t batch = rq_min_i64(n_seq, rq_max_i64(1, BATCH_TOKENS / seq_len));
    RQ_TRY(rq_block_scratch_new(&s, &m->cfg, batch * seq_len));
    for (int64_t first = 0; first < n_seq; first += batch) {
        forward_arg f = {m, rq_min_i64(batch, n_seq - first), seq_len};
        float *xb = x + first * seq_len * m->cfg.d_model;
        RQ_TRY(rq_embed(m, xb, ids + first * seq_len, f.n_seq * seq_len));
        for (int64_t layer = 0; layer < m->cfg.n_layer; ++layer) {
            RQ_TRY(rq_block_run(m, layer, xb, f.n_seq * seq_len, &s, forward_attend, &f));
        }
    }
done:
    rq_block_scratch_free(&s);
    return status;
}
