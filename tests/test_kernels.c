/* SPDX-License-Identifier: Apache-2.0 */
/* Every row of kernels.def against the definition, over shapes chosen for their edges; and rq_linear_apply on top.
 *
 * gemv is held to |y - y64| <= (n_in + 8) 2^-24 sum|w x| per element, unpack to the very bits of the definition. Outputs
 * start as NaN with guards behind them, inputs must not change, and two runs must agree bit for bit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels.h"
#include "linear.h"

enum { GUARD = 64 };

static uint64_t seed = 3;

static uint32_t draw(uint32_t below) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((seed >> 33) % below);
}

static float noise(void) { return (float)((int32_t)draw(1u << 24) - (1 << 23)) * 0x1p-22f; }

static void *must_alloc(int64_t n, size_t size) {
    void *p;
    assert_int_equal(rq_alloc(&p, n, size), RQ_OK);
    return p;
}

static float *random_f32(int64_t n) {
    float *p = must_alloc(n, sizeof *p);
    for (int64_t i = 0; i < n; ++i) p[i] = noise();
    return p;
}

/* ---- operands --------------------------------------------------------------------------------------------------------- */

static void make_grid(rq_packed *p, int64_t n_out, int64_t n_in, int bits, int64_t group, bool sym, bool half,
                      bool act) {
    int64_t n_group = rq_ceil_div(n_in, group);
    uint8_t *codes = must_alloc(n_out * n_in, 1), *zero = must_alloc(n_out * n_group, 1);
    float *scale = must_alloc(n_out * n_group, sizeof *scale);
    int32_t *g_idx = must_alloc(n_in, sizeof *g_idx);
    for (int64_t i = 0; i < n_out * n_in; ++i) codes[i] = (uint8_t)draw(1u << bits);
    for (int64_t i = 0; i < n_out * n_group; ++i) {
        zero[i] = (uint8_t)draw(1u << bits);
        scale[i] = noise();
        if (half) scale[i] = rq_f32_of_f16(rq_f16_of_f32(scale[i]));
    }
    for (int64_t j = 0; j < n_in; ++j) g_idx[j] = (int32_t)((n_in - 1 - j) / group); /* reversed: all move */
    rq_grid_codes q = {
        n_out, n_in, group, n_group, bits, half ? RQ_F16 : RQ_F32, codes, scale, sym ? NULL : zero, act ? g_idx : NULL};
    assert_int_equal(rq_grid_pack(p, &q), RQ_OK);
    free(codes), free(zero), free(scale), free(g_idx);
}

/* A matrix of ssvq codes. Shapes say vec_len, code bits, columns of a book (0: one book) and outliers too. */
typedef struct ssvq_shape {
    int64_t n_out, n_in, group, book_cols;
    int vec_len, code_bits, n_codes, n_outlier;
    bool u8;
} ssvq_shape;

static void make_ssvq(rq_packed *p, const ssvq_shape *h) {
    int64_t n_vec = rq_ssvq_n_vec(h->n_in, h->vec_len), n_group = rq_ceil_div(h->n_in, h->group);
    int64_t book_cols = h->book_cols ? h->book_cols : n_vec * h->vec_len, n_book = rq_ceil_div(h->n_in, book_cols);
    int64_t n_entries = n_book * h->n_codes * h->vec_len;
    uint16_t *codes = must_alloc(h->n_out * n_vec, sizeof *codes);
    uint8_t *negative = must_alloc(h->n_out * h->n_in, 1), *u8 = must_alloc(n_entries, 1);
    rq_f16 *f16 = must_alloc(n_entries, sizeof *f16);
    float *book_scale = random_f32(n_book), *scale = random_f32(h->n_out * n_group);
    int32_t col[RQ_SSVQ_MAX_OUTLIERS];
    int8_t outlier[RQ_SSVQ_MAX_OUTLIERS * 64];
    float outlier_scale[RQ_SSVQ_MAX_OUTLIERS];
    for (int64_t i = 0; i < h->n_out * n_vec; ++i) codes[i] = (uint16_t)draw((uint32_t)h->n_codes);
    for (int64_t i = 0; i < h->n_out * h->n_in; ++i) negative[i] = (uint8_t)draw(2);
    for (int64_t i = 0; i < n_entries; ++i) u8[i] = (uint8_t)draw(256), f16[i] = rq_f16_of_f32(fabsf(noise()));
    for (int64_t i = 0; i < n_book; ++i) book_scale[i] = fabsf(book_scale[i]);
    for (int64_t i = 0; i < h->n_out * n_group; ++i) scale[i] = rq_f32_of_f16(rq_f16_of_f32(scale[i]));
    for (int o = 0; o < h->n_outlier; ++o) { /* the last is the last column */
        col[o] = (int32_t)((o + 1) * h->n_in / h->n_outlier - 1);
        outlier_scale[o] = noise();
    }
    assert_true(h->n_out * h->n_outlier <= (int64_t)sizeof outlier);
    for (int64_t i = 0; i < h->n_out * h->n_outlier; ++i) outlier[i] = (int8_t)((int)draw(256) - 128);
    rq_ssvq_codes q = {.n_out = h->n_out,
                       .n_in = h->n_in,
                       .vec_len = h->vec_len,
                       .code_bits = h->code_bits,
                       .n_codes = h->n_codes,
                       .book_cols = book_cols,
                       .group = h->group,
                       .codes = codes,
                       .negative = negative,
                       .book_f16 = h->u8 ? NULL : f16,
                       .book_u8 = h->u8 ? u8 : NULL,
                       .book_scale = h->u8 ? book_scale : NULL,
                       .scale = scale,
                       .n_outlier = h->n_outlier,
                       .outlier_col = col,
                       .outlier = outlier,
                       .outlier_scale = outlier_scale};
    assert_int_equal(rq_ssvq_pack(p, &q), RQ_OK);
    free(codes), free(negative), free(u8), free(f16), free(book_scale), free(scale);
}

enum { VQ_OUT = 1, VQ_TWO = 2, VQ_SCALES = 4, VQ_COLUMNS = 8, VQ_PICK = 16 /* columns pick their codebooks */ };

/* A matrix of vq codes; book_cols 0: one book. The second stage has 256 codes. */
typedef struct vq_shape {
    int64_t n_out, n_in, group, book_cols;
    int vec_len, code_bits, n_outlier, flags;
} vq_shape;

static rq_f16 half_noise(void) { return rq_f16_of_f32(noise()); }

static void make_vq(rq_packed *p, const vq_shape *h) {
    bool out = h->flags & VQ_OUT;
    int64_t n_line = out ? rq_ceil_div(h->n_out, h->vec_len) : h->n_out;
    int64_t n_code = out ? h->n_in : rq_ceil_div(h->n_in, h->vec_len), n_group = rq_ceil_div(h->n_in, h->group);
    int64_t book_cols = h->book_cols ? h->book_cols : n_code * (out ? 1 : h->vec_len);
    int64_t n_book = rq_ceil_div(h->n_in, book_cols), n_codes[2] = {1 << h->code_bits, 256};
    uint16_t *codes[2];
    rq_f16 *book[2], *columns = must_alloc(2 * h->n_in, sizeof *columns);
    float *scale = random_f32(h->n_out * n_group), outlier_scale[RQ_VQ_MAX_OUTLIERS];
    int32_t col[RQ_VQ_MAX_OUTLIERS];
    int8_t outlier[RQ_VQ_MAX_OUTLIERS * 64];
    uint8_t *book_of = must_alloc(h->n_in, 1);
    for (int64_t j = 0; j < h->n_in; ++j) book_of[j] = h->flags & VQ_PICK ? (uint8_t)draw((uint32_t)n_book) : 0;
    for (int s = 0; s < 2; ++s) {
        int64_t n = n_book * n_codes[s] * h->vec_len;
        codes[s] = must_alloc(n_line * n_code, sizeof *codes[s]);
        book[s] = must_alloc(n, sizeof *book[s]);
        for (int64_t i = 0; i < n_line * n_code; ++i) codes[s][i] = (uint16_t)draw((uint32_t)n_codes[s]);
        for (int64_t i = 0; i < n; ++i) book[s][i] = half_noise();
    }
    for (int64_t i = 0; i < 2 * h->n_in; ++i) columns[i] = half_noise();
    for (int64_t i = 0; i < h->n_out * n_group; ++i) scale[i] = rq_f32_of_f16(rq_f16_of_f32(scale[i]));
    for (int o = 0; o < h->n_outlier; ++o) {
        col[o] = (int32_t)((o + 1) * h->n_in / h->n_outlier - 1);
        outlier_scale[o] = noise();
    }
    assert_true(h->n_out * h->n_outlier <= (int64_t)sizeof outlier);
    for (int64_t i = 0; i < h->n_out * h->n_outlier; ++i) outlier[i] = (int8_t)((int)draw(256) - 128);
    rq_vq_codes q = {.n_out = h->n_out,
                     .n_in = h->n_in,
                     .vec_len = h->vec_len,
                     .n_stage = h->flags & VQ_TWO ? 2 : 1,
                     .vec_out = out,
                     .code_bits = {h->code_bits, 8},
                     .n_codes = {n_codes[0], n_codes[1]},
                     .book_cols = book_cols,
                     .group = h->group,
                     .codes = {codes[0], codes[1]},
                     .book = {book[0], book[1]},
                     .book_of = h->flags & VQ_PICK ? book_of : NULL,
                     .scale = h->flags & VQ_SCALES ? scale : NULL,
                     .col_scale = h->flags & VQ_COLUMNS ? columns : NULL,
                     .col_bias = h->flags & VQ_COLUMNS ? columns + h->n_in : NULL,
                     .n_outlier = h->n_outlier,
                     .outlier_col = col,
                     .outlier = outlier,
                     .outlier_scale = outlier_scale};
    assert_int_equal(rq_vq_pack(p, &q), RQ_OK);
    for (int s = 0; s < 2; ++s) free(codes[s]), free(book[s]);
    free(columns), free(scale), free(book_of);
}

/* ---- gemv ------------------------------------------------------------------------------------------------------------- */

static void check_close(const float *y, const double *y64, const double *mag, int64_t n, int64_t n_in) {
    for (int64_t i = 0; i < n; ++i) {
        double bound = (double)(n_in + 8) * 0x1p-24 * mag[i];
        if (!(fabs((double)y[i] - y64[i]) <= bound)) {
            fail_msg("element %lld: %.9g instead of %.9g, bound %.3g", (long long)i, (double)y[i], y64[i], bound);
        }
    }
}

static void poison(float *y, int64_t n) {
    for (int64_t i = 0; i < n + GUARD; ++i) y[i] = i < n ? NAN : 77.0f;
}

static void check_guard(const float *y, int64_t n) {
    for (int64_t i = n; i < n + GUARD; ++i) assert_true(y[i] == 77.0f);
}

/* Runs k twice, in two ways of cutting the rows, and compares. w: the operand; rows are [n_out]. */
static void check_gemv(const rq_kernel *k, const void *w, const float *x, const double *y64, const double *mag,
                       int64_t n_out, int64_t n_in, int64_t n_tok) {
    int64_t n = n_tok * n_out;
    float *y = must_alloc(n + GUARD, sizeof *y), *z = must_alloc(n + GUARD, sizeof *z);
    /* x ends right at the end of its allocation, so that a sanitizer sees a read past it. */
    float *exact = malloc((size_t)(n_tok * n_in) * sizeof *exact);
    assert_non_null(exact);
    memcpy(exact, x, (size_t)(n_tok * n_in) * sizeof *exact);
    poison(y, n);
    poison(z, n);
    k->gemv(y, w, exact, n_tok, 0, n_out);
    check_guard(y, n);
    check_close(y, y64, mag, n, n_in);
    int64_t cut = n_out / 3; /* rows in two calls: only theirs are written */
    k->gemv(z, w, exact, n_tok, cut, n_out - cut);
    for (int64_t t = 0; t < n_tok; ++t) {
        for (int64_t r = 0; r < cut; ++r) assert_true(isnan(z[t * n_out + r]));
    }
    k->gemv(z, w, exact, n_tok, 0, cut);
    check_guard(z, n);
    assert_memory_equal(y, z, (size_t)n * sizeof *y);
    assert_memory_equal(exact, x, (size_t)(n_tok * n_in) * sizeof *exact);
    free(y), free(z), free(exact);
}

typedef struct shape {
    int64_t n_out, n_in, group;
} shape;

static const shape grid_shapes[] = {
    {1, 8, 8},      {3, 1, 1},     {5, 31, 31},       {2, 33, 16},    {7, 64, 32},   {4, 100, 100},
    {3, 127, 32},   {9, 128, 128}, {3, 129, 64},      {2, 200, 100},  {5, 256, 8},   {3, 288, 96},
    {33, 576, 128}, {6, 576, 576}, {5, 1000, 24},     {3, 1536, 64},  {2, 1100, 48}, {3, 1535, 40},
    {2, 9000, 128}, {2, 8500, 32}, {2, 20000, 20000}, {1, 4224, 192}, {2, 17, 5},
};

static void sweep_gemv_grid(const rq_kernel *k) {
    static const int64_t toks[] = {1, 2, 3, 4, 5, 7, 8, 9, 13, 16};
    static const int widths[] = {2, 3, 4, 8};
    for (size_t s = 0; s < sizeof grid_shapes / sizeof *grid_shapes; ++s) {
        shape sh = grid_shapes[s];
        float *x = random_f32(RQ_GEMV_MAX_TOK * sh.n_in);
        double *y64 = must_alloc(RQ_GEMV_MAX_TOK * sh.n_out, sizeof *y64),
               *mag = must_alloc(RQ_GEMV_MAX_TOK * sh.n_out, 8);
        for (int b = 0; b < 4; ++b) {
            for (int flags = 0; flags < 4; ++flags) {
                rq_packed p;
                make_grid(&p, sh.n_out, sh.n_in, widths[b], sh.group, flags & 1, flags & 2, false);
                assert_int_equal(rq_gemv_define(y64, mag, &p, x, RQ_GEMV_MAX_TOK, 0, sh.n_out), RQ_OK);
                for (size_t t = 0; t < sizeof toks / sizeof *toks; ++t) {
                    check_gemv(k, &p.u, x, y64, mag, sh.n_out, sh.n_in, toks[t]);
                }
                rq_packed_free(&p);
            }
        }
        free(x), free(y64), free(mag);
    }
}

static const ssvq_shape ssvq_shapes[] = {
    {1, 8, 8, 0, 8, 8, 256, 0, true},          {3, 1, 1, 0, 8, 8, 256, 0, false},
    {5, 31, 31, 0, 8, 8, 256, 1, true},        {2, 33, 16, 0, 4, 8, 256, 0, true},
    {7, 64, 32, 0, 8, 8, 256, 2, false},       {4, 100, 100, 0, 4, 4, 16, 3, true},
    {3, 127, 32, 64, 8, 8, 256, 0, true},      {9, 128, 128, 0, 8, 8, 256, 16, true},
    {3, 129, 64, 128, 4, 8, 256, 1, false},    {2, 200, 40, 0, 8, 5, 17, 0, false},
    {5, 256, 8, 0, 8, 8, 256, 4, true},        {3, 288, 96, 96, 4, 6, 50, 0, true},
    {33, 576, 128, 0, 8, 8, 256, 1, true},     {6, 576, 576, 192, 8, 7, 100, 8, false},
    {5, 1000, 24, 0, 4, 8, 200, 0, true},      {3, 1536, 64, 0, 8, 12, 4096, 2, true},
    {2, 1100, 48, 0, 8, 9, 300, 0, false},     {3, 1535, 1535, 0, 4, 12, 4096, 5, false},
    {6, 2048, 2048, 0, 8, 8, 256, 8, false},   {5, 1111, 16, 0, 8, 11, 2048, 0, true},
    {2, 9000, 128, 1024, 8, 8, 256, 3, true},  {2, 8500, 32, 0, 4, 8, 256, 0, false},
    {4, 20000, 20000, 0, 8, 8, 256, 16, true}, {1, 4224, 192, 64, 8, 10, 1024, 1, true},
    {2, 17, 4, 4, 4, 8, 256, 1, true},         {3, 12000, 12000, 8, 8, 4, 16, 2, true},
    {5, 8500, 64, 0, 8, 8, 256, 2, true},      {3, 6100, 16, 0, 4, 8, 250, 1, true},
};

/* Makes NaNs of what is below on the stack, so that a kernel which multiplies what it has not written is seen. */
static __attribute__((noinline)) void poison_stack(void) {
    volatile uint64_t nan[1 << 14];
    for (size_t i = 0; i < sizeof nan / sizeof *nan; ++i) nan[i] = ~0ull;
}

static void sweep_gemv_ssvq(const rq_kernel *k) {
    static const int64_t toks[] = {1, 2, 3, 4, 5, 7, 8, 9, 13, 16};
    for (size_t s = 0; s < sizeof ssvq_shapes / sizeof *ssvq_shapes; ++s) {
        const ssvq_shape *h = &ssvq_shapes[s];
        float *x = random_f32(RQ_GEMV_MAX_TOK * h->n_in);
        double *y64 = must_alloc(RQ_GEMV_MAX_TOK * h->n_out, sizeof *y64),
               *mag = must_alloc(RQ_GEMV_MAX_TOK * h->n_out, sizeof *mag);
        rq_packed p;
        make_ssvq(&p, h);
        assert_int_equal(rq_gemv_define(y64, mag, &p, x, RQ_GEMV_MAX_TOK, 0, h->n_out), RQ_OK);
        for (size_t t = 0; t < sizeof toks / sizeof *toks; ++t) {
            poison_stack();
            check_gemv(k, &p.u, x, y64, mag, h->n_out, h->n_in, toks[t]);
        }
        rq_packed_free(&p);
        free(x), free(y64), free(mag);
    }
}

static const vq_shape vq_shapes[] = {
    {1, 8, 8, 0, 8, 8, 0, 0},
    {3, 1, 1, 0, 8, 8, 1, VQ_SCALES},
    {5, 31, 31, 0, 4, 6, 0, VQ_TWO | VQ_SCALES},
    {2, 33, 16, 16, 8, 8, 0, VQ_SCALES},
    {7, 64, 32, 0, 8, 12, 3, VQ_TWO | VQ_SCALES},
    {4, 100, 100, 0, 4, 4, 3, VQ_COLUMNS},
    {3, 127, 32, 64, 8, 8, 0, VQ_SCALES | VQ_COLUMNS},
    {9, 128, 128, 0, 8, 16, 16, VQ_TWO},
    {3, 200, 40, 0, 8, 9, 0, VQ_SCALES},
    {33, 576, 128, 0, 8, 8, 1, VQ_SCALES},
    {6, 576, 576, 192, 4, 12, 8, VQ_TWO | VQ_SCALES | VQ_COLUMNS},
    {5, 1000, 1000, 0, 6, 8, 0, VQ_SCALES},
    {3, 1536, 64, 512, 8, 13, 2, VQ_SCALES},
    {2, 9000, 9000, 0, 4, 16, 3, VQ_TWO},
    {2, 8500, 32, 0, 8, 15, 0, VQ_SCALES | VQ_COLUMNS},
    {4, 20000, 20000, 0, 8, 12, 16, VQ_SCALES},
    {17, 100, 100, 0, 8, 8, 0, VQ_OUT},
    {30, 65, 13, 30, 4, 12, 2, VQ_OUT | VQ_TWO | VQ_SCALES | VQ_COLUMNS},
    {9, 1, 1, 0, 8, 8, 1, VQ_OUT | VQ_SCALES},
    {3, 2100, 7, 0, 4, 16, 0, VQ_OUT | VQ_SCALES},
    {37, 1030, 1030, 0, 8, 12, 8, VQ_OUT | VQ_COLUMNS},
    {21, 1100, 50, 333, 8, 9, 3, VQ_OUT | VQ_TWO | VQ_SCALES | VQ_COLUMNS},
    {18, 770, 770, 0, 4, 8, 0, VQ_OUT | VQ_TWO},
    {10, 90, 90, 0, 16, 8, 2, VQ_OUT | VQ_COLUMNS},
    {19, 1100, 50, 140, 8, 8, 3, VQ_OUT | VQ_PICK | VQ_TWO | VQ_SCALES | VQ_COLUMNS},
    {6, 577, 577, 37, 4, 12, 0, VQ_OUT | VQ_PICK | VQ_COLUMNS},
    {9, 600, 600, 30, 8, 12, 2, VQ_OUT | VQ_PICK | VQ_COLUMNS}, /* 20 books: more entries than 16 bits count */
};

static void sweep_gemv_vq(const rq_kernel *k) {
    static const int64_t toks[] = {1, 2, 3, 4, 5, 8, 9, 16};
    for (size_t s = 0; s < sizeof vq_shapes / sizeof *vq_shapes; ++s) {
        const vq_shape *h = &vq_shapes[s];
        float *x = random_f32(RQ_GEMV_MAX_TOK * h->n_in);
        double *y64 = must_alloc(RQ_GEMV_MAX_TOK * h->n_out, sizeof *y64),
               *mag = must_alloc(RQ_GEMV_MAX_TOK * h->n_out, sizeof *mag);
        rq_packed p;
        make_vq(&p, h);
        assert_int_equal(rq_gemv_define(y64, mag, &p, x, RQ_GEMV_MAX_TOK, 0, h->n_out), RQ_OK);
        for (size_t t = 0; t < sizeof toks / sizeof *toks; ++t) {
            check_gemv(k, &p.u, x, y64, mag, h->n_out, h->n_in, toks[t]);
        }
        rq_packed_free(&p);
        free(x), free(y64), free(mag);
    }
}

/* All rows, and those from the middle on, against the very bits of the definition. */
static void check_unpack(const rq_kernel *k, const rq_packed *p) {
    int64_t n = p->n_out * p->n_in, from = p->n_out / 2, left = (p->n_out - from) * p->n_in;
    float *want = must_alloc(n, sizeof *want), *got = must_alloc(n + GUARD, sizeof *got);
    for (int64_t r = 0; r < p->n_out; ++r) rq_unpack_row(p, r, want + r * p->n_in);
    poison(got, n);
    k->unpack(got, &p->u, 0, p->n_out);
    check_guard(got, n);
    assert_memory_equal(got, want, (size_t)n * sizeof *got);
    poison(got, left);
    k->unpack(got, &p->u, from, p->n_out - from);
    check_guard(got, left);
    assert_memory_equal(got, want + from * p->n_in, (size_t)left * sizeof *got);
    free(want), free(got);
}

static void sweep_unpack_ssvq(const rq_kernel *k) {
    for (size_t s = 0; s < sizeof ssvq_shapes / sizeof *ssvq_shapes; ++s) {
        rq_packed p;
        make_ssvq(&p, &ssvq_shapes[s]);
        check_unpack(k, &p);
        rq_packed_free(&p);
    }
}

static void sweep_unpack_vq(const rq_kernel *k) {
    for (size_t s = 0; s < sizeof vq_shapes / sizeof *vq_shapes; ++s) {
        rq_packed p;
        make_vq(&p, &vq_shapes[s]);
        check_unpack(k, &p);
        rq_packed_free(&p);
    }
}

static void sweep_unpack_grid(const rq_kernel *k) {
    for (size_t s = 0; s < sizeof grid_shapes / sizeof *grid_shapes; ++s) {
        shape sh = grid_shapes[s];
        for (int bits = 2; bits <= 8; bits += bits == 4 ? 4 : 1) {
            for (int flags = 0; flags < 4; ++flags) {
                rq_packed p;
                make_grid(&p, sh.n_out, sh.n_in, bits, sh.group, flags & 1, flags & 2, false);
                check_unpack(k, &p);
                rq_packed_free(&p);
            }
        }
    }
}

/* Bytes of a dense operand and the fp32 values they stand for. */
static unsigned char *make_dense(const char *operand, int64_t n_out, int64_t n_in, int64_t *row_bytes, float *value) {
    bool f32 = !strcmp(operand, "f32_rows"), f16 = !strcmp(operand, "f16_rows"), q8 = !strcmp(operand, "q8_0_rows");
    *row_bytes = q8 ? n_in / 32 * (int64_t)sizeof(rq_q8_0) : n_in * (f32 ? 4 : 2);
    unsigned char *data = malloc((size_t)(n_out * *row_bytes) + 1);
    assert_non_null(data);
    unsigned char *at = data + 1; /* unaligned, ending where the allocation ends */
    for (int64_t i = 0; i < n_out * n_in; ++i) {
        float v = noise();
        if (q8) {
            rq_q8_0 block;
            block.d = rq_f16_of_f32(v);
            for (int j = 0; j < 32; ++j) {
                block.q[j] = (int8_t)((int)draw(256) - 128);
                value[i + j] = rq_f32_of_f16(block.d) * (float)block.q[j];
            }
            memcpy(at, &block, sizeof block);
            at += sizeof block;
            i += 31;
        } else if (f32) {
            value[i] = v;
            memcpy(at, &v, 4);
            at += 4;
        } else {
            uint16_t bits = f16 ? rq_f16_of_f32(v).bits : rq_bf16_of_f32(v).bits;
            value[i] = f16 ? rq_f32_of_f16((rq_f16){bits}) : rq_f32_of_bf16((rq_bf16){bits});
            memcpy(at, &bits, 2);
            at += 2;
        }
    }
    return data;
}

static void sweep_gemv_dense(const rq_kernel *k) {
    static const int64_t shapes[][2] = {{1, 32}, {3, 64}, {5, 96},   {2, 576},  {7, 1536}, {2, 1},
                                        {3, 31}, {2, 45}, {4, 1001}, {3, 8992}, {1, 10001}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; ++s) {
        int64_t n_out = shapes[s][0], n_in = shapes[s][1];
        if (!strcmp(k->operand, "q8_0_rows") && n_in % 32) continue;
        rq_dense w = {n_out, n_in, 0, NULL};
        float *value = must_alloc(n_out * n_in, sizeof *value), *x = random_f32(RQ_GEMV_MAX_TOK * n_in);
        unsigned char *data = make_dense(k->operand, n_out, n_in, &w.row_bytes, value);
        double *y64 = must_alloc(RQ_GEMV_MAX_TOK * n_out, sizeof *y64), *mag = must_alloc(RQ_GEMV_MAX_TOK * n_out, 8);
        w.data = data + 1;
        for (int64_t t = 0; t < RQ_GEMV_MAX_TOK; ++t) {
            for (int64_t r = 0; r < n_out; ++r) {
                double sum = 0, abs_sum = 0;
                for (int64_t j = 0; j < n_in; ++j) {
                    double term = (double)value[r * n_in + j] * (double)x[t * n_in + j];
                    sum += term, abs_sum += fabs(term);
                }
                y64[t * n_out + r] = sum, mag[t * n_out + r] = abs_sum;
            }
        }
        for (int64_t n_tok = 1; n_tok <= RQ_GEMV_MAX_TOK; ++n_tok) check_gemv(k, &w, x, y64, mag, n_out, n_in, n_tok);
        free(value), free(x), free(data), free(y64), free(mag);
    }
}

static void test_every_row(void **state) {
    (void)state;
    int n_run = 0;
    assert_int_equal(rq_kernels_check(), RQ_OK);
    for (int64_t i = 0; i < rq_kernel_count(); ++i) {
        const rq_kernel *k = rq_kernel_at(i);
        const char *why;
        if (k->quantize || k->gemm) continue; /* test_kernels_w4a8.c has these */
        if (!rq_kernel_usable(k, &why)) {
            printf("skip %s %s %s: %s\n", k->op, k->operand, k->impl, why);
            continue;
        }
        printf("run  %s %s %s\n", k->op, k->operand, k->impl);
        assert_true((k->gemv != NULL) + (k->unpack != NULL) == 1);
        if (k->gemv && !strcmp(k->operand, "grid"))
            sweep_gemv_grid(k);
        else if (k->unpack && !strcmp(k->operand, "grid"))
            sweep_unpack_grid(k);
        else if (k->gemv && !strcmp(k->operand, "ssvq"))
            sweep_gemv_ssvq(k);
        else if (k->unpack && !strcmp(k->operand, "ssvq"))
            sweep_unpack_ssvq(k);
        else if (k->gemv && !strcmp(k->operand, "vq"))
            sweep_gemv_vq(k);
        else if (k->unpack && !strcmp(k->operand, "vq"))
            sweep_unpack_vq(k);
        else if (k->gemv && strstr(k->operand, "_rows"))
            sweep_gemv_dense(k);
        else
            fail_msg("no sweep knows %s %s: add one", k->op, k->operand);
        ++n_run;
    }
    assert_true(n_run >= 2);
}

/* The routine of formats without a kernel. */
static void test_generic(void **state) {
    (void)state;
    rq_packed p;
    make_grid(&p, 5, 129, 3, 32, false, true, true);
    float *x = random_f32(3 * 129), y[15];
    double y64[15], mag[15];
    assert_int_equal(rq_gemv_define(y64, mag, &p, x, 3, 0, 5), RQ_OK);
    assert_int_equal(rq_gemv_generic(y, &p, x, 3, 0, 5), RQ_OK);
    check_close(y, y64, mag, 15, 129);
    free(x);
    rq_packed_free(&p);
}

/* ---- rq_linear_apply -------------------------------------------------------------------------------------------------- */

static void check_linear(const rq_linear *l, const float *value) { /* value: fp32 [n_out][n_in] by another way */
    static const int64_t toks[] = {1, 2, 8, 16, 17, 530};
    float *x = random_f32(530 * l->n_in), *rows = must_alloc(l->n_out * l->n_in, sizeof *rows);
    assert_int_equal(rq_linear_rows(l, 0, l->n_out, rows), RQ_OK);
    assert_memory_equal(rows, value, (size_t)(l->n_out * l->n_in) * sizeof *rows);
    for (size_t k = 0; k < sizeof toks / sizeof *toks; ++k) {
        int64_t n = toks[k] * l->n_out;
        float *y = must_alloc(n + GUARD, sizeof *y), *z = must_alloc(n + GUARD, sizeof *z);
        poison(y, n), poison(z, n);
        rq_set_threads(1);
        assert_int_equal(rq_linear_apply(l, y, x, toks[k]), RQ_OK);
        rq_set_threads(3);
        assert_int_equal(rq_linear_apply(l, z, x, toks[k]), RQ_OK);
        check_guard(y, n), check_guard(z, n);
        assert_memory_equal(y, z, (size_t)n * sizeof *y);
        for (int64_t t = 0; t < toks[k]; t += t + 7 < toks[k] ? 7 : 1) {
            for (int64_t r = 0; r < l->n_out; ++r) {
                double sum = l->bias ? (double)l->bias[r] : 0.0, mag = fabs(sum);
                for (int64_t j = 0; j < l->n_in; ++j) {
                    double term = (double)value[r * l->n_in + j] * (double)x[t * l->n_in + j];
                    sum += term, mag += fabs(term);
                }
                assert_true(fabs((double)y[t * l->n_out + r] - sum) <= (double)(l->n_in + 8) * 0x1p-24 * mag);
            }
        }
        free(y), free(z);
    }
    free(x), free(rows);
}

static void test_linear_memory(void **state) {
    (void)state;
    float *w = random_f32(300 * 70), *bias = random_f32(300);
    rq_linear l = {"dense", 300, 70, w, NULL, NULL, NULL};
    check_linear(&l, w);
    l.bias = bias;
    check_linear(&l, w);
    free(w), free(bias);
}

static void test_linear_packed(void **state) {
    (void)state;
    for (int act = 0; act < 2; ++act) {
        rq_packed p;
        make_grid(&p, 290, 160, 3, 64, false, true, act);
        float *value = must_alloc(290 * 160, sizeof *value), *bias = random_f32(290);
        for (int64_t r = 0; r < 290; ++r) rq_unpack_row(&p, r, value + r * 160);
        rq_linear l = {"packed", 290, 160, NULL, NULL, &p, bias};
        check_linear(&l, value);
        free(value), free(bias);
        rq_packed_free(&p);
    }
}

static void test_linear_tensor(void **state) {
    (void)state;
    static const rq_dtype dtypes[] = {RQ_F32, RQ_F16, RQ_BF16, RQ_Q8_0, RQ_Q4_1};
    static const char *const operands[] = {"f32_rows", "f16_rows", "bf16_rows", "q8_0_rows", NULL};
    for (int d = 0; d < 5; ++d) {
        for (int heads = 0; heads <= 3; heads += 3) {
            int64_t n_out = 66, n_in = 64, row_bytes = n_in / 32 * 20;
            float *value = must_alloc(n_out * n_in, sizeof *value), *bias = random_f32(n_out);
            unsigned char *data;
            if (operands[d]) {
                data = make_dense(operands[d], n_out, n_in, &row_bytes, value);
            } else { /* no kernel reads Q4_1: the reader's own conversion is the reference */
                data = malloc((size_t)(n_out * row_bytes) + 1);
                for (int64_t i = 0; i < n_out * row_bytes + 1; ++i) {
                    data[i] = (uint8_t)(i >= 1 && (i - 1) % 20 < 4 && (i - 1) % 2 ? 0x30 : draw(256));
                }
            }
            rq_tensor t = {"t", dtypes[d], 2, {n_out, n_in}, data + 1, n_out * row_bytes, heads};
            if (!operands[d]) assert_int_equal(rq_tensor_rows_f32(&t, 0, n_out, value), RQ_OK);
            if (operands[d] && heads) { /* row r of the layer is file row head * width + 2 * (i % half) + i / half */
                float *hf = must_alloc(n_out * n_in, sizeof *hf);
                int64_t width = n_out / heads, half = width / 2;
                for (int64_t r = 0; r < n_out; ++r) {
                    int64_t i = r % width, from = r - i + 2 * (i % half) + i / half;
                    memcpy(hf + r * n_in, value + from * n_in, (size_t)n_in * sizeof *hf);
                }
                free(value);
                value = hf;
            }
            rq_linear l = {"tensor", n_out, n_in, NULL, &t, NULL, bias};
            check_linear(&l, value);
            free(value), free(bias), free(data);
        }
    }
}

static void test_linear_refuses(void **state) {
    (void)state;
    float w[4] = {0}, x[4] = {0}, y[4];
    rq_tensor t = {"t", RQ_I32, 2, {2, 2}, w, 16, 0};
    rq_linear l = {"l", 2, 2, w, &t, NULL, NULL};
    assert_int_equal(rq_linear_apply(&l, y, x, 1), RQ_ERR_ARG); /* two kinds of weights */
    l.w = NULL;
    assert_int_equal(rq_linear_apply(&l, y, x, 2), RQ_ERR_UNSUPPORTED); /* integers are no weights */
    assert_non_null(strstr(rq_last_error(), "l: "));
    assert_int_equal(rq_linear_apply(&l, y, x, 20 * 0), RQ_OK);
    l.n_in = 3;
    assert_int_equal(rq_linear_apply(&l, y, x, 1), RQ_ERR_ARG);
    l = (rq_linear){"l", 2, 2, w, NULL, NULL, NULL};
    assert_int_equal(rq_linear_apply(&l, NULL, x, 1), RQ_ERR_ARG);
    assert_int_equal(rq_linear_rows(&l, 1, 2, y), RQ_ERR_ARG);
    assert_int_equal(rq_linear_rows(&l, -1, 1, y), RQ_ERR_ARG);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_row),     cmocka_unit_test(test_generic),
        cmocka_unit_test(test_linear_memory), cmocka_unit_test(test_linear_packed),
        cmocka_unit_test(test_linear_tensor), cmocka_unit_test(test_linear_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
