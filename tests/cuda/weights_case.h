/* SPDX-License-Identifier: Apache-2.0 */
/* A matrix of a format, repacked for the CUDA kernels, with the fp32 numbers of the format's definition: for tests that do not care which
 * format it is. */
#ifndef RQ_WEIGHTS_CASE_H
#define RQ_WEIGHTS_CASE_H
#include "cudatest.h"
#include "rq_cuda.h"
#include "rq_repack.h"

typedef struct weights_case {
    const char *what;
    rq_tile_kind kind;
    int n_out, n_in, bits, group; /* bits of SSVQ: 2 (vectors of 8) or 3 (of 4) */
    bool zeros, u8, bf16;
    int book_cols, n_outlier;
    int code_bits = 8; /* of SSVQ */
    /* Of VQ, with zeros for scales and biases of columns, and u8 for vectors down the rows. log_codes_2 0: one stage. */
    int vec_len = 0, log_codes = 0, log_codes_2 = 0;
} weights_case;

typedef struct weights {
    rq_cuda_gemv_desc d;
    rq_tile_layout layout;
    float *w; /* [n_out][n_in], stored order */
    uint8_t *packed;
} weights;

static inline void weights_check(rq_status s, const char *what, const char *why) {
    if (s != RQ_OK) RQ_DIE("%s: %s", what, why);
}

static inline void weights_make_grid(weights *m, const weights_case *c, rq_rng *rng) {
    rq_grid g = {};
    g.n_out = c->n_out, g.n_in = c->n_in, g.bits = c->bits, g.group = c->group;
    g.n_group = (c->n_in + c->group - 1) / c->group, g.row_words = rq_grid_row_words(c->n_in, c->bits);
    const size_t n_words = (size_t)(g.n_out * g.row_words), n_scale = (size_t)(g.n_out * g.n_group);
    uint32_t *words = (uint32_t *)rq_host_alloc((n_words + 1) * 4);
    rq_f16 *scale = (rq_f16 *)rq_host_alloc(n_scale * 2);
    uint8_t *zero = (uint8_t *)rq_host_alloc(n_scale);
    rq_rand_bytes(rng, words, n_words * 4);
    for (size_t i = 0; i < n_scale; ++i) {
        scale[i].bits = rq_half_bits((rq_rand_float(rng) + 2.0f) / (i % 7 ? 64 : 1 << 22)); /* subnormal weights too */
        zero[i] = (uint8_t)(rq_rand_u32(rng) % (1u << c->bits));
    }
    g.words = words, g.scale_f16 = scale, g.zero = c->zeros ? zero : NULL;
    for (int64_t i = 0; i < g.n_out; ++i)
        for (int64_t j = 0; j < g.n_in; ++j)
            m->w[i * g.n_in + j] = rq_grid_scale(&g, i, j / g.group) *
                                   (float)((int)rq_grid_code(&g, i, j) - rq_grid_zero(&g, i, j / g.group));
    const char *why = "";
    weights_check(rq_repack_grid_plan(&m->layout, &g, 1, &why), c->what, why);
    m->packed = (uint8_t *)rq_host_alloc((size_t)m->layout.bytes);
    weights_check(rq_repack_grid(m->packed, &m->layout, &g, 1, &why), c->what, why);
    m->d.bits = c->bits, m->d.group = c->group, m->d.zeros = c->zeros;
    free(words), free(scale), free(zero);
}

static inline void weights_make_ssvq(weights *m, const weights_case *c, rq_rng *rng) {
    rq_ssvq s = {};
    s.n_out = c->n_out, s.n_in = c->n_in, s.vec_len = c->bits == 2 ? 8 : 4, s.code_bits = c->code_bits;
    s.n_codes = 1 << s.code_bits;
    s.book_cols = c->book_cols, s.n_book = (c->n_in + c->book_cols - 1) / c->book_cols;
    s.group = c->group, s.n_group = (c->n_in + c->group - 1) / c->group;
    s.code_words = rq_ssvq_code_words(c->n_in, s.vec_len, s.code_bits),
    s.sign_words = rq_ssvq_sign_words(c->n_in, s.vec_len);
    const size_t entries = (size_t)(s.n_book * s.n_codes) * s.vec_len, n_scale = (size_t)(c->n_out * s.n_group);
    uint32_t *codes = (uint32_t *)rq_host_alloc((size_t)(c->n_out * s.code_words + 1) * 4);
    uint32_t *signs = (uint32_t *)rq_host_alloc((size_t)(c->n_out * s.sign_words) * 4);
    uint8_t *book_u8 = (uint8_t *)rq_host_alloc(entries);
    rq_f16 *book_f16 = (rq_f16 *)rq_host_alloc(entries * 2), *scale = (rq_f16 *)rq_host_alloc(n_scale * 2);
    float *book_scale = (float *)rq_host_alloc((size_t)s.n_book * 4), outlier_scale[16];
    int32_t column[16];
    int8_t *outlier = (int8_t *)rq_host_alloc((size_t)(c->n_out * c->n_outlier) + 1);
    rq_rand_bytes(rng, codes, (size_t)(c->n_out * s.code_words) * 4);
    rq_rand_bytes(rng, signs, (size_t)(c->n_out * s.sign_words) * 4);
    rq_rand_bytes(rng, book_u8, entries);
    rq_rand_bytes(rng, outlier, (size_t)(c->n_out * c->n_outlier));
    for (size_t i = 0; i < entries; ++i) book_f16[i].bits = rq_half_bits(fabsf(rq_rand_float(rng)));
    for (size_t i = 0; i < n_scale; ++i) scale[i].bits = rq_half_bits((rq_rand_float(rng) + 2.0f) / 64);
    for (int64_t b = 0; b < s.n_book; ++b) book_scale[b] = c->u8 ? (rq_rand_float(rng) + 2.0f) / 255 : 1.0f;
    for (int o = 0; o < c->n_outlier; ++o) { /* the last column too */
        column[o] = (int32_t)((int64_t)(o + 1) * c->n_in / c->n_outlier) - 1;
        outlier_scale[o] = (rq_rand_float(rng) + 2.0f) / 256;
    }
    s.codes = codes, s.signs = signs, s.scale = scale, s.book_scale = book_scale;
    s.book_u8 = c->u8 ? book_u8 : NULL, s.book_f16 = c->u8 ? NULL : book_f16;
    s.n_outlier = c->n_outlier, s.outlier_col = column, s.outlier = outlier, s.outlier_scale = outlier_scale;
    for (int64_t i = 0; i < s.n_out; ++i) {
        for (int64_t j = 0; j < s.n_in; ++j) {
            const uint32_t code = rq_ssvq_code(&s, i, j / s.vec_len);
            const float size = rq_ssvq_magnitude(&s, j / s.book_cols, code, j % s.vec_len);
            m->w[i * s.n_in + j] =
                (rq_ssvq_negative(&s, i, j) ? -size : size) * rq_half_value(scale[i * s.n_group + j / s.group].bits);
        }
        for (int o = 0; o < s.n_outlier; ++o)
            m->w[i * s.n_in + column[o]] = outlier_scale[o] * (float)outlier[i * s.n_outlier + o];
    }
    const char *why = "";
    weights_check(rq_repack_ssvq_plan(&m->layout, &s, 1, &why), c->what, why);
    m->packed = (uint8_t *)rq_host_alloc((size_t)m->layout.bytes);
    rq_repack_ssvq(m->packed, &m->layout, &s, 1);
    m->d.vec_len = s.vec_len, m->d.code_bits = s.code_bits, m->d.group = m->layout.group,
    m->d.n_book = m->layout.n_book;
    m->d.book_cols = m->layout.book_cols, m->d.book_u8 = c->u8, m->d.n_outlier = c->n_outlier;
    free(codes), free(signs), free(book_u8), free(book_f16), free(scale), free(book_scale), free(outlier);
}

static inline rq_f16 *weights_halves(rq_rng *rng, size_t n, float offset, float by) {
    rq_f16 *v = (rq_f16 *)rq_host_alloc(n * 2);
    for (size_t i = 0; i < n; ++i) v[i].bits = rq_half_bits((rq_rand_float(rng) + offset) * by);
    return v;
}
static inline void weights_make_vq(weights *m, const weights_case *c, rq_rng *rng) {
    rq_vq q = {};
    q.n_out = c->n_out, q.n_in = c->n_in, q.vec_len = c->vec_len, q.vec_out = c->u8, q.n_stage = c->log_codes_2 ? 2 : 1;
    q.n_line = c->u8 ? (c->n_out + c->vec_len - 1) / c->vec_len : c->n_out;
    q.n_code = c->u8 ? c->n_in : (c->n_in + c->vec_len - 1) / c->vec_len;
    q.book_cols = c->book_cols, q.n_book = (c->n_in + c->book_cols - 1) / c->book_cols;
    q.group = c->group, q.n_group = (c->n_in + c->group - 1) / c->group;
    uint32_t *codes[2] = {};
    rq_f16 *book[2] = {};
    for (int s = 0; s < q.n_stage; ++s) {
        q.code_bits[s] = s ? c->log_codes_2 : c->log_codes, q.n_codes[s] = (int64_t)1 << q.code_bits[s];
        q.code_words[s] = (q.n_code * q.code_bits[s] + 31) / 32;
        const size_t words = (size_t)(q.n_line * q.code_words[s]);
        codes[s] = (uint32_t *)rq_host_alloc((words + 1) * 4);
        rq_rand_bytes(rng, codes[s], words * 4);
        book[s] = weights_halves(rng, (size_t)(q.n_book * q.n_codes[s] * q.vec_len), 0.0f, s ? 0.25f : 1.0f);
        q.codes[s] = codes[s], q.book[s] = book[s];
    }
    rq_f16 *scale = weights_halves(rng, (size_t)(q.n_out * q.n_group), 2.0f, 0.0625f);
    rq_f16 *col_scale = weights_halves(rng, (size_t)q.n_in, 2.0f, 0.5f),
           *bias = weights_halves(rng, (size_t)q.n_in, 0.0f, 0.1f);
    if (!c->zeros) q.scale = scale;
    if (c->zeros) q.col_scale = col_scale, q.col_bias = bias;
    int32_t column[16];
    float outlier_scale[16];
    int8_t *outlier = (int8_t *)rq_host_alloc((size_t)(c->n_out * c->n_outlier) + 1);
    rq_rand_bytes(rng, outlier, (size_t)(c->n_out * c->n_outlier));
    for (int o = 0; o < c->n_outlier; ++o) {
        column[o] = (int32_t)((int64_t)(o + 1) * c->n_in / c->n_outlier) - 1;
        outlier_scale[o] = (rq_rand_float(rng) + 2.0f) / 256;
    }
    q.n_outlier = c->n_outlier, q.outlier_col = column, q.outlier = outlier, q.outlier_scale = outlier_scale;
    for (int64_t i = 0; i < q.n_out; ++i) {
        for (int64_t j = 0; j < q.n_in; ++j) m->w[i * q.n_in + j] = rq_vq_weight(&q, i, j);
        for (int o = 0; o < q.n_outlier; ++o)
            m->w[i * q.n_in + column[o]] = outlier_scale[o] * (float)outlier[i * q.n_outlier + o];
    }
    const char *why = "";
    weights_check(rq_repack_vq_plan(&m->layout, &q, 1, &why), c->what, why);
    m->packed = (uint8_t *)rq_host_alloc((size_t)m->layout.bytes);
    rq_repack_vq(m->packed, &m->layout, &q, 1);
    const rq_tile_layout *t = &m->layout;
    m->d.vec_len = t->vec_len, m->d.vec_out = t->vec_out, m->d.n_stage = t->n_stage, m->d.group = t->group;
    m->d.n_codes[0] = t->n_codes[0], m->d.n_codes[1] = t->n_codes[1], m->d.no_scales = t->no_scales;
    m->d.columns = t->columns, m->d.n_book = t->n_book, m->d.book_cols = t->book_cols, m->d.n_outlier = t->n_outlier;
    for (int s = 0; s < q.n_stage; ++s) free(codes[s]), free(book[s]);
    free(scale), free(col_scale), free(bias), free(outlier);
}

static inline weights weights_make(const weights_case *c) {
    rq_rng rng = {(uint64_t)c->n_out * 1000003u + (uint64_t)c->n_in * 1009u + (uint64_t)c->bits * 7u + c->kind};
    weights m = {};
    m.d = rq_cuda_gemv_desc_default();
    m.d.kind = c->kind, m.d.n_out = c->n_out, m.d.n_in = c->n_in, m.d.act = c->bf16 ? RQ_ACT_BF16 : RQ_ACT_F16;
    m.w = (float *)rq_host_alloc((size_t)c->n_out * c->n_in * 4);
    if (c->kind == RQ_TILE_GRID)
        weights_make_grid(&m, c, &rng);
    else if (c->kind == RQ_TILE_VQ)
        weights_make_vq(&m, c, &rng);
    else
        weights_make_ssvq(&m, c, &rng);
    return m;
}
static inline void weights_free(weights *m) { free(m->w), free(m->packed); }

static inline uint16_t weights_bits(const weights *m, float v) {
    return m->d.act == RQ_ACT_BF16 ? rq_bf16_bits(v) : rq_half_bits(v);
}
static inline float weights_value(const weights *m, uint16_t b) {
    return m->d.act == RQ_ACT_BF16 ? rq_bf16_value(b) : rq_half_value(b);
}
#endif
