/* SPDX-License-Identifier: Apache-2.0 */
/* A step of a decoder, one to sixteen tokens: rows of the embedding, blocks, head, likeliest token (rq_cuda_decode_run). With one token, and
 * matrices stacked where they share an input, a block is eight launches: norm, q k v, attention, o, norm, gate and up, SiLU, down. Plan and run walk through the same list of
 * launches; a plan launches nothing, and counts. Targets: sm_80 sm_90a. */
#include "blas.h"
#include "decode.cuh"

/* Where a step's numbers are in its workspace: bytes from its start. */
struct areas {
    size_t pick, attention, stream, h, qkv, att, branch, gate_up, ff, q, scale, sum, head, blas, gemv;
};

struct walk {
    const rq_cuda_decode_desc *d;
    const rq_cuda_decode_args *a; /* NULL: nothing is launched */
    rq_cuda_stream stream;
    int64_t n_tok;
    areas at;
    rq_cuda_decode_attention_desc attention;
    rq_cuda_decode_attention_plan attention_plan;
    bool ours; /* the launch before was a kernel of ours, which the next one may overtake */
    int launches;
    double bytes;
    size_t gemv_bytes; /* of workspace, at most */
    bool blas;         /* cuBLAS has been asked for */
};

static void *place(const walk *w, size_t at) { return w->a ? static_cast<uint8_t *>(w->a->workspace) + at : NULL; }
/* Counts a launch, and says whether it is to be overtaken by its successor's start. */
static int next(walk *w, bool ours) {
    const int early = w->ours && w->d->early_launch;
    w->ours = ours;
    ++w->launches;
    return early;
}

/* ---- products */

static bool is_w4a8(const rq_cuda_decode_matrix *m) { return !m->dense && m->gemv.kind == RQ_TILE_W4A8; }

static rq_status dense(walk *w, const rq_cuda_decode_matrix *m, void *y, const void *x, int64_t n_tok, bool y_float) {
    const int64_t n_out = m->gemv.n_out, n_in = m->gemv.n_in;
    w->bytes += 2.0 * (double)n_out * (double)n_in;
    rq_status s = RQ_OK;
    if (!w->a && !w->blas) s = rq_blas_prepare(NULL);
    w->blas = true;
    if (s == RQ_OK && m->bias) {
        const int early = next(w, true);
        if (w->a) s = rq_cuda_decode_repeat(y, m->bias, n_tok, n_out, early, w->stream);
    }
    next(w, false);
    if (s != RQ_OK || !w->a) return s;
    rq_blas_product b = {};
    b.n_out = n_out, b.n_in = n_in, b.n_tok = n_tok, b.act = w->d->act;
    b.w = m->weights, b.x = x, b.ld_w = n_in, b.ld_x = n_in, b.y = y, b.y_float = y_float,
    b.beta = m->bias ? 1.0f : 0.0f;
    b.workspace = place(w, w->at.blas), b.workspace_bytes = w->d->blas_workspace;
    return rq_blas_run(NULL, &b, w->stream);
}

/* x of act, or, if `quantized`, the int8 rows of the workspace. */
static rq_status product(walk *w, const rq_cuda_decode_matrix *m, void *y, const void *x, bool quantized,
                         int64_t n_tok) {
    rq_status s = RQ_OK;
    if (m->dense) return dense(w, m, y, x, n_tok, false);
    rq_cuda_gemv_desc g = m->gemv;
    g.n_tok = n_tok, g.act = w->d->act, g.bias = m->bias != NULL, g.residual = 0;
    if (is_w4a8(m)) {
        g.x_s8 = 1, g.x_e4m3 = 0, g.x_pitch = 0;
        if (!quantized) {
            rq_cuda_quantize_args q = {};
            q.early_launch = next(w, true);
            q.q = static_cast<int8_t *>(place(w, w->at.q)), q.scale = static_cast<float *>(place(w, w->at.scale));
            q.sum = static_cast<int32_t *>(place(w, w->at.sum)), q.x = x, q.act = w->d->act;
            q.n_tok = n_tok, q.n_in = g.n_in, q.factor = m->factor, q.hadamard = m->hadamard;
            if (w->a) s = rq_cuda_quantize_rows(&q, w->stream);
            if (s != RQ_OK) return s;
        }
    }
    g.early_launch = next(w, true);
    rq_cuda_gemv_plan plan;
    s = rq_cuda_gemv_make_plan(&plan, &g);
    if (s != RQ_OK) return s;
    w->bytes += plan.bytes;
    if (plan.workspace_bytes > w->gemv_bytes) w->gemv_bytes = plan.workspace_bytes;
    if (!w->a) return RQ_OK;
    rq_cuda_gemv_args a = {};
    a.y = y, a.x = x, a.weights = m->weights, a.bias = m->bias, a.perm = m->perm, a.workspace = place(w, w->at.gemv);
    if (is_w4a8(m)) {
        a.x = place(w, w->at.q), a.x_scale = static_cast<float *>(place(w, w->at.scale));
        a.x_sum = static_cast<int32_t *>(place(w, w->at.sum));
    }
    return rq_cuda_gemv_run(&plan, &g, &a, w->stream);
}

/* Matrices with one input: their outputs one after the other, [matrix][token][n_out]. */
static rq_status products(walk *w, const rq_cuda_decode_matrix *m, int n, size_t y, size_t x, bool quantized) {
    for (int i = 0; i < n; ++i) {
        const rq_status s = product(w, m + i, place(w, y), place(w, x), quantized, w->n_tok);
        if (s != RQ_OK) return s;
        y += (size_t)(w->n_tok * m[i].gemv.n_out) * 2;
    }
    return RQ_OK;
}

/* ---- rows */

/* What the product after a kernel reads first. Dense matrices are cuBLAS's, who reads them in an order of its own. */
static const void *ahead(const walk *w, const rq_cuda_decode_matrix *m, int64_t *bytes) {
    *bytes = m->dense ? 0 : m->weight_bytes;
    if (*bytes > w->d->ahead_bytes) *bytes = w->d->ahead_bytes;
    return *bytes ? m->weights : NULL;
}

static bool norm_quantizes(const rq_cuda_decode_matrix *m, int n) { return n == 1 && is_w4a8(m) && !m->hadamard; }

/* first: the stream begins as rows of the embedding; otherwise the branch is added. m: what the norm is for, NULL: the head. */
static rq_status norm(walk *w, const float *weight, bool first, const rq_cuda_decode_matrix *m, int n) {
    const rq_cuda_decode_desc *d = w->d;
    rq_cuda_decode_norm_args a = {};
    a.early_launch = next(w, true);
    if (first) w->bytes += 2.0 * (double)(w->n_tok * d->d_model);
    if (!w->a) return RQ_OK;
    if (m && norm_quantizes(m, n)) {
        a.q = static_cast<int8_t *>(place(w, w->at.q)), a.scale = static_cast<float *>(place(w, w->at.scale));
        a.sum = static_cast<int32_t *>(place(w, w->at.sum)), a.factor = m->factor;
    } else {
        a.h = place(w, w->at.h);
    }
    a.stream = static_cast<float *>(place(w, w->at.stream));
    if (first)
        a.table = d->embed, a.n_row = d->n_vocab;
    else
        a.add = place(w, w->at.branch);
    a.weight = weight, a.state = w->a->state, a.last_only = m == NULL;
    a.eps = d->eps, a.act = d->act, a.n_tok = w->n_tok, a.n = d->d_model;
    a.ahead = ahead(w, m ? m : &d->head, &a.ahead_bytes);
    return rq_cuda_decode_norm(&a, w->stream);
}

/* SiLU and product into ff, or, where down is W4A8, its int8 rows. */
static rq_status silu(walk *w, const rq_cuda_decode_layer *l) {
    const int64_t n = w->d->d_ff;
    const void *gate = place(w, w->at.gate_up);
    const void *up = place(w, w->at.gate_up + (size_t)(l->n_gate_up == 1 ? n : w->n_tok * n) * 2);
    const int64_t pitch = l->n_gate_up == 1 ? 2 * n : n;
    const int early = next(w, true);
    if (!w->a) return RQ_OK;
    if (is_w4a8(&l->down)) {
        rq_cuda_silu_args a = {};
        a.q = static_cast<int8_t *>(place(w, w->at.q)), a.scale = static_cast<float *>(place(w, w->at.scale));
        a.sum = static_cast<int32_t *>(place(w, w->at.sum));
        a.gate = gate, a.up = up, a.pitch = pitch, a.act = w->d->act, a.n_tok = w->n_tok, a.n_in = n;
        a.early_launch = early, a.factor = l->down.factor, a.hadamard = l->down.hadamard;
        return rq_cuda_silu_quantize(&a, w->stream);
    }
    rq_cuda_decode_swiglu_args a = {};
    a.y = place(w, w->at.ff), a.gate = gate, a.up = up, a.pitch = pitch, a.act = w->d->act;
    a.n_tok = w->n_tok, a.n = n, a.early_launch = early;
    a.ahead = ahead(w, &l->down, &a.ahead_bytes);
    return rq_cuda_decode_swiglu(&a, w->stream);
}

static rq_status attend(walk *w, int64_t layer, const rq_cuda_decode_layer *l) {
    const rq_cuda_decode_desc *d = w->d;
    w->attention.early_launch = next(w, true);
    w->launches += w->attention_plan.launches - 1;
    if (!w->a) return RQ_OK;
    const int64_t nq = d->n_head * d->head_dim, nkv = d->n_kv_head * d->head_dim, of_cache = nkv * d->max_seq;
    uint16_t *y = static_cast<uint16_t *>(place(w, w->at.qkv));
    uint16_t *cache = static_cast<uint16_t *>(w->a->cache) + 2 * layer * of_cache;
    rq_cuda_decode_attention_args a = {};
    a.out = place(w, w->at.att), a.q = y;
    if (l->n_qkv == 1) {
        a.q_pitch = a.k_pitch = a.v_pitch = nq + 2 * nkv, a.k = y + nq, a.v = y + nq + nkv;
    } else {
        a.q_pitch = nq, a.k_pitch = a.v_pitch = nkv, a.k = y + w->n_tok * nq, a.v = y + w->n_tok * (nq + nkv);
    }
    a.k_cache = cache, a.v_cache = cache + of_cache, a.rope = d->rope, a.state = w->a->state;
    a.workspace = place(w, w->at.attention);
    a.ahead = ahead(w, &l->o, &a.ahead_bytes);
    return rq_cuda_decode_attention_run(&w->attention_plan, &w->attention, &a, w->stream);
}

/* ---- all of it */

static rq_status block(walk *w, int64_t layer) {
    const rq_cuda_decode_layer *l = w->d->layer + layer;
    rq_status s = norm(w, l->norm1, layer == 0, l->qkv, l->n_qkv);
    if (s == RQ_OK) s = products(w, l->qkv, l->n_qkv, w->at.qkv, w->at.h, norm_quantizes(l->qkv, l->n_qkv));
    if (s == RQ_OK) s = attend(w, layer, l);
    if (s == RQ_OK) s = products(w, &l->o, 1, w->at.branch, w->at.att, false);
    if (s == RQ_OK) s = norm(w, l->norm2, false, l->gate_up, l->n_gate_up);
    if (s == RQ_OK)
        s = products(w, l->gate_up, l->n_gate_up, w->at.gate_up, w->at.h, norm_quantizes(l->gate_up, l->n_gate_up));
    if (s == RQ_OK) s = silu(w, l);
    return s == RQ_OK ? products(w, &l->down, 1, w->at.branch, w->at.ff, is_w4a8(&l->down)) : s;
}

static rq_status head(walk *w) {
    const rq_cuda_decode_desc *d = w->d;
    const rq_cuda_decode_matrix *m = &d->head;
    float *logits = w->a ? w->a->logits : NULL;
    rq_status s = norm(w, d->norm_f, false, NULL, 0);
    if (s != RQ_OK) return s;
    if (m->dense && d->blas_head) {
        s = dense(w, m, logits, place(w, w->at.h), 1, true);
    } else if (m->dense) {
        rq_cuda_decode_dense_args a = {logits,       m->weights, place(w, w->at.h), m->gemv.n_out,
                                       m->gemv.n_in, d->act,     next(w, true)};
        w->bytes += 2.0 * (double)a.n_out * (double)a.n_in;
        if (w->a) s = rq_cuda_decode_dense(&a, w->stream);
    } else {
        s = product(w, m, place(w, w->at.head), place(w, w->at.h), false, 1);
    }
    if (s != RQ_OK) return s;
    rq_cuda_decode_pick_args a = {};
    a.early_launch = next(w, true);
    if (!w->a) return RQ_OK;
    a.logits = logits, a.from = m->dense ? NULL : place(w, w->at.head), a.act = d->act, a.n = d->n_vocab;
    a.state = w->a->state, a.workspace = place(w, w->at.pick);
    return rq_cuda_decode_pick(&a, w->stream);
}

static rq_status steps(walk *w) {
    rq_status s = RQ_OK;
    for (int64_t i = 0; i < w->d->n_layer && s == RQ_OK; ++i) s = block(w, i);
    return s == RQ_OK ? head(w) : s;
}

/* ---- plan and run */

rq_cuda_decode_desc rq_cuda_decode_desc_default(void) {
    rq_cuda_decode_desc d = {};
    d.struct_size = sizeof d;
    d.act = RQ_ACT_F16;
    d.blas_workspace = (size_t)32 << 20;
    d.ahead_bytes = (int64_t)8 << 20;
    return d;
}

static bool has_shape(const rq_cuda_decode_matrix *m, int64_t n_out, int64_t n_in) {
    return m->gemv.n_out == n_out && m->gemv.n_in == n_in;
}
static const char *refuse(const rq_cuda_decode_desc *d, int64_t n_tok) {
    if (!d || d->struct_size != sizeof *d) return "a description begins with rq_cuda_decode_desc_default()";
    if (n_tok < 1 || n_tok > RQ_DECODE_MAX_TOK) return "a step has 1 to 16 tokens";
    if (d->n_layer < 1 || !d->layer || d->n_vocab < 1) return "a decoder has layers and a vocabulary";
    if (d->d_model % EIGHT || d->d_ff % EIGHT || d->d_model < EIGHT || d->d_ff < EIGHT ||
        d->d_model > RQ_DECODE_MAX_WIDTH)
        return "d_model and d_ff are multiples of 8, d_model up to 16,384";
    const int64_t nq = d->n_head * d->head_dim, nkv = d->n_kv_head * d->head_dim;
    for (int64_t i = 0; i < d->n_layer; ++i) {
        const rq_cuda_decode_layer *l = d->layer + i;
        if (!(l->n_qkv == 1 ? has_shape(l->qkv, nq + 2 * nkv, d->d_model)
                            : l->n_qkv == 3 && has_shape(l->qkv, nq, d->d_model) &&
                                  has_shape(l->qkv + 1, nkv, d->d_model) && has_shape(l->qkv + 2, nkv, d->d_model)))
            return "q, k and v have other sizes than the heads";
        if (!(l->n_gate_up == 1 ? has_shape(l->gate_up, 2 * d->d_ff, d->d_model)
                                : l->n_gate_up == 2 && has_shape(l->gate_up, d->d_ff, d->d_model) &&
                                      has_shape(l->gate_up + 1, d->d_ff, d->d_model)))
            return "gate and up have other sizes than d_ff and d_model";
        if (!has_shape(&l->o, d->d_model, nq) || !has_shape(&l->down, d->d_model, d->d_ff))
            return "o or down have other sizes than the model";
    }
    if (!has_shape(&d->head, d->n_vocab, d->d_model)) return "the head has another size than vocabulary and d_model";
    return d->head.dense && d->head.bias ? "a dense head has no bias" : NULL;
}

static size_t take(size_t *at, int64_t bytes) {
    const size_t here = *at;
    *at += (size_t)rq_tile_round(bytes);
    return here;
}

/* What plan and run share: checks, and where everything is. gemv is the last, of any size. */
static rq_status begin(walk *w, const rq_cuda_decode_desc *d, int64_t n_tok) {
    const char *text = refuse(d, n_tok);
    if (text) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, text);
    w->d = d, w->n_tok = n_tok;
    w->attention = {d->n_head, d->n_kv_head, d->head_dim, d->max_seq, n_tok, d->act, 0};
    const rq_status s = rq_cuda_decode_attention_make_plan(&w->attention_plan, &w->attention);
    if (s != RQ_OK) return s;
    bool blas = d->blas_head && d->head.dense;
    for (int64_t i = 0; i < d->n_layer; ++i) {
        const rq_cuda_decode_layer *l = d->layer + i;
        for (int k = 0; k < l->n_qkv; ++k) blas = blas || l->qkv[k].dense;
        for (int k = 0; k < l->n_gate_up; ++k) blas = blas || l->gate_up[k].dense;
        blas = blas || l->o.dense || l->down.dense;
    }
    const int64_t nq = d->n_head * d->head_dim, nkv = d->n_kv_head * d->head_dim;
    int64_t widest = d->d_model > d->d_ff ? d->d_model : d->d_ff;
    if (nq > widest) widest = nq;
    size_t at = 0;
    w->at.pick = take(&at, RQ_DECODE_PICK_BYTES);
    w->at.attention = take(&at, (int64_t)w->attention_plan.workspace_bytes);
    w->at.stream = take(&at, n_tok * d->d_model * 4);
    w->at.h = take(&at, n_tok * d->d_model * 2);
    w->at.qkv = take(&at, n_tok * (nq + 2 * nkv) * 2);
    w->at.att = take(&at, n_tok * nq * 2);
    w->at.branch = take(&at, n_tok * d->d_model * 2);
    w->at.gate_up = take(&at, n_tok * 2 * d->d_ff * 2);
    w->at.ff = take(&at, n_tok * d->d_ff * 2);
    w->at.q = take(&at, n_tok * widest);
    w->at.scale = take(&at, n_tok * 4);
    w->at.sum = take(&at, n_tok * 4);
    w->at.head = take(&at, d->head.dense ? 0 : d->n_vocab * 2);
    w->at.blas = take(&at, blas ? (int64_t)d->blas_workspace : 0);
    w->at.gemv = at;
    return RQ_OK;
}

rq_status rq_cuda_decode_make_plan(rq_cuda_decode_plan *plan, const rq_cuda_decode_desc *d, int64_t n_tok) {
    if (!plan) return rq_gemv_fail(RQ_ERR_ARG, "there is no plan to fill");
    walk w = {};
    rq_status s = begin(&w, d, n_tok);
    if (s == RQ_OK) s = steps(&w);
    if (s != RQ_OK) return s;
    memset(plan, 0, sizeof *plan);
    plan->n_tok = n_tok;
    plan->workspace_bytes = w.at.gemv + (size_t)rq_tile_round((int64_t)w.gemv_bytes);
    plan->key_bytes = 2.0 * (double)(d->n_layer * d->n_kv_head * d->head_dim) * 2.0;
    plan->cache_bytes = (size_t)plan->key_bytes * (size_t)d->max_seq;
    plan->weight_bytes = w.bytes, plan->launches = w.launches;
    return RQ_OK;
}

rq_status rq_cuda_decode_run(const rq_cuda_decode_plan *plan, const rq_cuda_decode_desc *d,
                             const rq_cuda_decode_args *a, rq_cuda_stream stream) {
    if (!plan || !a || !a->state || !a->logits || !a->cache || !a->workspace)
        return rq_gemv_fail(RQ_ERR_ARG, "a step needs a plan, a state, logits, a cache and a workspace");
    if (reinterpret_cast<uintptr_t>(a->cache) % RQ_TILE_ALIGN ||
        reinterpret_cast<uintptr_t>(a->workspace) % RQ_TILE_ALIGN)
        return rq_gemv_fail(RQ_ERR_ARG, "cache and workspace begin at multiples of 256 bytes");
    walk w = {};
    w.a = a, w.stream = stream;
    const rq_status s = begin(&w, d, plan->n_tok);
    return s == RQ_OK ? steps(&w) : s;
}
