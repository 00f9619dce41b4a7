/* SPDX-License-Identifier: Apache-2.0 */
/* Random SSVQ matrices for the tests of its GEMVs: as the file has them, stacked, with the values of the definition in double. */
#ifndef SSVQ_STACK_H
#define SSVQ_STACK_H
#include "cudatest.h"
#include "rq_cuda.h"
#include "rq_repack.h"

enum { MAX_MATRICES = 3 };

typedef struct problem {
    const char *what;
    int rows[MAX_MATRICES]; /* of the stacked matrices; 0: no more */
    int n_in, vec_len, code_bits, book_cols, group, n_outlier, n_tok;
    bool u8, bf16, perm, bias, residual, early;
} problem;

/* The matrices as the file has them, stacked, with the values of the definition. */
typedef struct stack {
    rq_ssvq s[MAX_MATRICES];
    int n, n_out, n_in;
    int stride; /* every so many rows are checked */
    double *w;  /* [n_out][n_in], of the rows that are */
    int32_t *perm;
    rq_tile_layout layout;
    uint8_t *packed;
} stack;

static inline void fill_matrix(rq_ssvq *s, const problem *p, int rows, const rq_ssvq *with_books, rq_rng *rng) {
    s->n_out = rows, s->n_in = p->n_in, s->vec_len = p->vec_len, s->code_bits = p->code_bits;
    s->n_codes = (1 << p->code_bits) - (p->code_bits % 4 ? 1 : 0); /* some books are not full */
    s->book_cols = p->book_cols, s->n_book = (p->n_in + p->book_cols - 1) / p->book_cols;
    s->group = p->group, s->n_group = (p->n_in + p->group - 1) / p->group;
    s->code_words = rq_ssvq_code_words(p->n_in, p->vec_len, p->code_bits);
    s->sign_words = rq_ssvq_sign_words(p->n_in, p->vec_len);
    const int64_t n_vec = rq_ssvq_n_vec(p->n_in, p->vec_len), entries = s->n_book * s->n_codes * p->vec_len;
    uint32_t *codes = (uint32_t *)rq_host_alloc((size_t)(rows * s->code_words) * 4);
    uint32_t *signs = (uint32_t *)rq_host_alloc((size_t)(rows * s->sign_words) * 4);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t v = 0; v < n_vec; ++v) {
            const int64_t at = v * p->code_bits;
            const uint64_t code = (uint64_t)(rq_rand_u32(rng) % (uint32_t)s->n_codes) << (at % 32);
            codes[i * s->code_words + at / 32] |= (uint32_t)code;
            if (code >> 32) codes[i * s->code_words + at / 32 + 1] |= (uint32_t)(code >> 32);
        }
    rq_rand_bytes(rng, signs, (size_t)(rows * s->sign_words) * 4);
    s->codes = codes, s->signs = signs;
    if (with_books) {
        s->book_u8 = with_books->book_u8, s->book_f16 = with_books->book_f16;
    } else if (p->u8) {
        uint8_t *book = (uint8_t *)rq_host_alloc((size_t)entries);
        rq_rand_bytes(rng, book, (size_t)entries);
        book[0] = 0, book[entries - 1] = 255;
        s->book_u8 = book;
    } else {
        rq_f16 *book = (rq_f16 *)rq_host_alloc((size_t)entries * 2);
        for (int64_t i = 0; i < entries; ++i) book[i].bits = rq_half_bits(fabsf(rq_rand_float(rng)));
        s->book_f16 = book;
    }
    float *book_scale = (float *)rq_host_alloc((size_t)s->n_book * 4);
    for (int64_t b = 0; b < s->n_book; ++b) book_scale[b] = p->u8 ? (rq_rand_float(rng) + 2.0f) / 255 : 1.0f;
    rq_f16 *scale = (rq_f16 *)rq_host_alloc((size_t)(rows * s->n_group) * 2);
    for (int64_t i = 0; i < rows * s->n_group; ++i) scale[i].bits = rq_half_bits((rq_rand_float(rng) + 2.0f) / 8);
    s->book_scale = book_scale, s->scale = scale;

    s->n_outlier = p->n_outlier;
    int32_t *column = (int32_t *)rq_host_alloc((size_t)p->n_outlier * 4);
    int8_t *outlier = (int8_t *)rq_host_alloc((size_t)(rows * p->n_outlier));
    float *outlier_scale = (float *)rq_host_alloc((size_t)p->n_outlier * 4);
    for (int o = 0; o < p->n_outlier; ++o) { /* the last column too */
        column[o] = (int32_t)((int64_t)(o + 1) * p->n_in / p->n_outlier) - 1;
        outlier_scale[o] = (rq_rand_float(rng) + 2.0f) / 256;
    }
    rq_rand_bytes(rng, outlier, (size_t)(rows * p->n_outlier));
    s->outlier_col = column, s->outlier = outlier, s->outlier_scale = outlier_scale;
}

static inline stack make_stack(const problem *p, rq_rng *rng) {
    stack m = {};
    m.n_in = p->n_in;
    for (; m.n < MAX_MATRICES && p->rows[m.n]; ++m.n) {
        fill_matrix(&m.s[m.n], p, p->rows[m.n], m.n ? &m.s[0] : NULL, rng);
        m.n_out += p->rows[m.n];
    }
    m.stride = m.n_out > 1000 ? 97 : 1;
    m.w = (double *)rq_host_alloc((size_t)m.n_out * p->n_in * 8);
    for (int k = 0, first = 0; k < m.n; first += (int)m.s[k++].n_out) {
        const rq_ssvq *s = &m.s[k];
        for (int64_t i = 0; i < s->n_out; ++i) {
            double *row = m.w + (size_t)(first + i) * p->n_in;
            if ((first + i) % m.stride) continue;
            for (int64_t j = 0; j < s->n_in; ++j) {
                const int64_t b = j / s->book_cols;
                const uint32_t code = rq_ssvq_code(s, i, j / s->vec_len);
                const int64_t at = (b * s->n_codes + code) * s->vec_len + j % s->vec_len;
                const double magnitude = s->book_u8 ? s->book_u8[at] : rq_half_value(s->book_f16[at].bits);
                row[j] = rq_half_value(s->scale[i * s->n_group + j / s->group].bits) * (double)s->book_scale[b] *
                         magnitude * (rq_ssvq_negative(s, i, j) ? -1 : 1);
            }
            for (int o = 0; o < s->n_outlier; ++o)
                row[s->outlier_col[o]] = (double)s->outlier_scale[o] * s->outlier[i * s->n_outlier + o];
        }
    }
    if (p->perm) {
        m.perm = (int32_t *)rq_host_alloc((size_t)p->n_in * 4);
        for (int j = 0; j < p->n_in; ++j) m.perm[j] = j;
        for (int j = p->n_in - 1; j > 0; --j) {
            const int k = (int)(rq_rand_u32(rng) % (uint32_t)(j + 1)), was = m.perm[j];
            m.perm[j] = m.perm[k], m.perm[k] = was;
        }
    }
    const char *why = "";
    if (rq_repack_ssvq_plan(&m.layout, m.s, m.n, &why) != RQ_OK) RQ_DIE("%s: %s", p->what, why);
    m.packed = (uint8_t *)rq_host_alloc((size_t)m.layout.bytes);
    rq_repack_ssvq(m.packed, &m.layout, m.s, m.n);
    return m;
}
static inline void free_stack(stack *m) {
    free((void *)m->s[0].book_u8), free((void *)m->s[0].book_f16); /* one for all */
    for (int k = 0; k < m->n; ++k) {
        const rq_ssvq *s = &m->s[k];
        free((void *)s->codes), free((void *)s->signs), free((void *)s->book_scale), free((void *)s->scale);
        free((void *)s->outlier_col), free((void *)s->outlier), free((void *)s->outlier_scale);
    }
    free(m->w), free(m->perm), free(m->packed);
}

static inline uint16_t bits_of(bool bf16, float v) { return bf16 ? rq_bf16_bits(v) : rq_half_bits(v); }
static inline float value_of(bool bf16, uint16_t b) { return bf16 ? rq_bf16_value(b) : rq_half_value(b); }
static inline void fill(rq_rng *rng, bool bf16, uint16_t *to, size_t n) {
    for (size_t i = 0; i < n; ++i) to[i] = bits_of(bf16, rq_rand_float(rng));
}

static inline rq_cuda_gemv_desc describe(const problem *p, const rq_tile_layout *t) {
    rq_cuda_gemv_desc d = rq_cuda_gemv_desc_default();
    d.kind = RQ_TILE_SSVQ;
    d.n_out = t->n_out, d.n_in = t->n_in, d.n_tok = p->n_tok;
    d.act = p->bf16 ? RQ_ACT_BF16 : RQ_ACT_F16;
    d.vec_len = t->vec_len, d.code_bits = t->code_bits, d.group = t->group, d.n_book = t->n_book,
    d.book_cols = t->book_cols;
    d.book_u8 = t->book_u8, d.n_outlier = t->n_outlier;
    d.bias = p->bias, d.residual = p->residual, d.early_launch = p->early;
    return d;
}
#endif
