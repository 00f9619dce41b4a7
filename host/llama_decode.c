/* SPDX-License-Identifier: Apache-2.0 */
/* Generation: the same blocks, with keys and values of earlier tokens kept per layer and head,
 * cache[layer][k or v][kv head][max_seq][head_dim], so that a step reads each head's keys in one run. */
#include "llama_block.h"

enum { CHUNK = 256 }; /* tokens of a prompt that go through the blocks together */

struct rq_decode_state {
    const rq_model *m;
    int64_t max_seq, pos;
    float *cache;
    float *x, *rope;
    rq_block_scratch s;
};

rq_status rq_decode_new(rq_decode_state **out, const rq_model *m, int64_t max_seq) {
    rq_status status = RQ_OK;
    const rq_config *c = &m->cfg;
    rq_decode_state *s = NULL;
    int64_t count;
    *out = NULL;
    if (max_seq < 1 || !rq_mul_size(max_seq, 2 * c->n_layer * c->n_kv_head * c->head_dim, &count)) {
        return rq_fail(RQ_ERR_ARG, "a cache for %lld tokens is impossible", (long long)max_seq);
    }
    RQ_TRY(RQ_NEW_ZERO(s, 1));
    s->m = m;
    s->max_seq = max_seq;
    int64_t n_chunk = rq_min_i64(CHUNK, max_seq);
    RQ_TRY(RQ_NEW(s->cache, count));
    RQ_TRY(RQ_NEW(s->x, n_chunk * c->d_model));
    RQ_TRY(rq_rope_table(&s->rope, m, 0, max_seq));
    RQ_TRY(rq_block_scratch_new(&s->s, c, n_chunk));
    *out = s;
    s = NULL;
done:
    rq_decode_free(s);
    return status;
}

void rq_decode_free(rq_decode_state *s) {
    if (!s) return;
    free(s->cache);
    free(s->x);
    free(s->rope);
    rq_block_scratch_free(&s->s);
    free(s);
}

int64_t rq_decode_pos(const rq_decode_state *s) { return s->pos; }
void rq_decode_reset(rq_decode_state *s) { s->pos = 0; }

/* src[n_tok][n_head][head_dim] to rows pos .. of dst[n_head][max_seq][head_dim]. */
static void cache_rows(const rq_decode_state *s, float *dst, const float *src, int64_t n_tok) {
    int64_t n_head = s->m->cfg.n_kv_head, hd = s->m->cfg.head_dim;
    for (int64_t head = 0; head < n_head; ++head) {
        for (int64_t t = 0; t < n_tok; ++t) {
            memcpy(dst + (head * s->max_seq + s->pos + t) * hd, src + (t * n_head + head) * hd,
                   (size_t)hd * sizeof *dst);
        }
    }
}

static rq_status decode_attend(void *arg, int64_t layer, const rq_block_scratch *b, int64_t n_tok) {
    rq_decode_state *s = arg;
    const rq_config *c = &s->m->cfg;
    const float *rope = s->rope + s->pos * c->head_dim;
    int64_t per_matrix = c->n_kv_head * s->max_seq * c->head_dim;
    float *k = s->cache + 2 * layer * per_matrix, *v = k + per_matrix;
    rq_rope_apply(b->q, rope, n_tok, n_tok, c->n_head, c->head_dim);
    rq_rope_apply(b->k, rope, n_tok, n_tok, c->n_kv_head, c->head_dim);
    cache_rows(s, k, b->k, n_tok);
    cache_rows(s, v, b->v, n_tok);
    rq_attend a = {.q = b->q,
                   .k = k,
                   .v = v,
                   .out = b->att,
                   .kv_head = s->max_seq * c->head_dim,
                   .kv_pos = c->head_dim,
                   .n_seq = 1,
                   .n_q = n_tok,
                   .first_pos = s->pos};
    return rq_attend_run(s->m, &a);
}

rq_status rq_decode(rq_decode_state *s, const int32_t *ids, int64_t n_tok, float *logits) {
    rq_status status = RQ_OK;
    const rq_model *m = s->m;
    int64_t start = s->pos, d = m->cfg.d_model;
    if (n_tok < 1) return rq_fail(RQ_ERR_ARG, "there are no tokens to feed");
    if (n_tok > s->max_seq - s->pos) {
        return rq_fail(RQ_ERR_ARG, "%lld tokens do not fit: the cache holds %lld of %lld", (long long)n_tok,
                       (long long)s->pos, (long long)s->max_seq);
    }
    for (int64_t done_tok = 0; done_tok < n_tok;) {
        int64_t n = rq_min_i64(CHUNK, n_tok - done_tok);
        RQ_TRY(rq_embed(m, s->x, ids + done_tok, n));
        for (int64_t layer = 0; layer < m->cfg.n_layer; ++layer) {
            RQ_TRY(rq_block_run(m, layer, s->x, n, &s->s, decode_attend, s));
        }
        s->pos += n;
        done_tok += n;
        if (done_tok == n_tok) RQ_TRY(rq_logits(m, logits, s->x + (n - 1) * d, 1));
    }
done:
    if (status != RQ_OK) s->pos = start; /* what was fed is forgotten, so the call can be repeated */
    return status;
}
