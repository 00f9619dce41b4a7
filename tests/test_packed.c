/* SPDX-License-Identifier: Apache-2.0 */
/* rq_packed.h, from outside: random arrays of every format as structs with the counts left out, products near the definition in fp64 (w4a8: from
 * its integers), dense forms as the rows' definition, one result for any number of threads, int8 rows by their definition; what is refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "act_hadamard.h"
#include "kernels.h"
#include "rotate.h"
#include "rq_packed.h"
#include "w4a8_random.h"

enum { N_OUT = 53, N_IN = 192, MAX_TOK = 40 };

static void *random_bytes(int64_t n) {
    unsigned char *p = must_alloc(n + 8, 1); /* the grid's kernels may read 4 bytes more */
    for (int64_t i = 0; i < n + 8; ++i) p[i] = (unsigned char)draw(256);
    return p;
}

static rq_f16 *random_f16(int64_t n, bool positive) {
    rq_f16 *p = must_alloc(n, sizeof *p);
    for (int64_t i = 0; i < n; ++i) {
        const float v = noise();
        p[i] = rq_f16_of_f32(positive ? fabsf(v) : v);
    }
    return p;
}

typedef union any_matrix {
    rq_grid grid;
    rq_ssvq ssvq;
    rq_vq vq;
    rq_w4a8 w4a8;
} any_matrix;

static rq_status linear(rq_format f, float *y, const any_matrix *m, const float *bias, const float *x, int64_t n_tok) {
    switch (f) {
    case RQ_FORMAT_GRID: return rq_grid_linear(y, &m->grid, bias, x, n_tok);
    case RQ_FORMAT_SSVQ: return rq_ssvq_linear(y, &m->ssvq, bias, x, n_tok);
    case RQ_FORMAT_VQ: return rq_vq_linear(y, &m->vq, bias, x, n_tok);
    default: return rq_w4a8_linear(y, &m->w4a8, bias, x, n_tok);
    }
}

static rq_status dense(rq_format f, float *dst, const any_matrix *m, int64_t row0, int64_t n_rows) {
    switch (f) {
    case RQ_FORMAT_GRID: return rq_grid_dense(dst, &m->grid, row0, n_rows);
    case RQ_FORMAT_SSVQ: return rq_ssvq_dense(dst, &m->ssvq, row0, n_rows);
    case RQ_FORMAT_VQ: return rq_vq_dense(dst, &m->vq, row0, n_rows);
    default: return rq_w4a8_dense(dst, &m->w4a8, row0, n_rows);
    }
}

/* m: what a caller sets. full: the same with all counts, as rq_unpack_row reads it. */
static void check(rq_format f, const any_matrix *m, const rq_packed *full) {
    float *x = random_f32(MAX_TOK * N_IN), *bias = random_f32(N_OUT), *w = must_alloc(N_OUT * N_IN, sizeof *w);
    float *y = must_alloc(MAX_TOK * N_OUT, sizeof *y), *again = must_alloc(MAX_TOK * N_OUT, sizeof *y), row[N_IN];
    double y64[MAX_TOK * N_OUT], mag[MAX_TOK * N_OUT];
    assert_int_equal(dense(f, w, m, 0, N_OUT), RQ_OK);
    for (int64_t r = 0; r < N_OUT; ++r) {
        rq_unpack_row(full, r, row);
        assert_memory_equal(row, w + r * N_IN, sizeof row);
    }
    assert_int_equal(dense(f, y, m, 50, 3), RQ_OK);
    assert_memory_equal(y, w + 50 * N_IN, 3 * sizeof row);
    for (int64_t n_tok = 0; n_tok <= MAX_TOK; n_tok += n_tok < 2 ? 1 : 19) {
        rq_set_threads(1);
        assert_int_equal(linear(f, y, m, bias, x, n_tok), RQ_OK);
        rq_set_threads(3);
        assert_int_equal(linear(f, again, m, bias, x, n_tok), RQ_OK);
        assert_memory_equal(y, again, (size_t)(n_tok * N_OUT) * sizeof *y);
        assert_int_equal(rq_gemv_define(y64, mag, full, x, n_tok, 0, N_OUT), RQ_OK);
        for (int64_t k = 0; f != RQ_FORMAT_W4A8 && k < n_tok * N_OUT; ++k) {
            const double want = y64[k] + (double)bias[k % N_OUT];
            assert_true(fabs((double)y[k] - want) <= 1e-5 * (mag[k] + 1));
        }
    }
    assert_int_equal(dense(f, w, m, 50, 4), RQ_ERR_ARG);
    assert_int_equal(dense(f, w, m, -1, 1), RQ_ERR_ARG);
    assert_int_equal(dense(f, NULL, m, 0, 1), RQ_ERR_ARG);
    assert_int_equal(linear(f, NULL, m, NULL, x, 1), RQ_ERR_ARG);
    assert_int_equal(linear(f, y, m, NULL, NULL, 1), RQ_ERR_ARG);
    assert_int_equal(linear(f, y, m, NULL, x, -1), RQ_ERR_ARG);
    free(x), free(bias), free(w), free(y), free(again);
}

static rq_packed packed_of(rq_format f) { return (rq_packed){.format = f, .n_out = N_OUT, .n_in = N_IN}; }

static void test_grid(void **state) {
    (void)state;
    const int all_bits[] = {2, 3, 4, 8};
    for (int k = 0; k < 8; ++k) {
        const int bits = all_bits[k % 4];
        const int64_t group = k < 4 ? 64 : 50, n_group = rq_ceil_div(N_IN, group);
        int32_t perm[N_IN];
        for (int32_t j = 0; j < N_IN; ++j) perm[j] = j;
        for (int j = N_IN - 1; j > 0; --j) {
            const int i = (int)draw((uint32_t)j + 1);
            const int32_t t = perm[i];
            perm[i] = perm[j];
            perm[j] = t;
        }
        any_matrix m = {.grid = {.n_out = N_OUT, .n_in = N_IN, .bits = bits, .group = group}};
        uint8_t *zero = random_bytes(N_OUT * n_group);
        for (int64_t i = 0; i < N_OUT * n_group; ++i) zero[i] = (uint8_t)(zero[i] & ((1 << bits) - 1));
        m.grid.words = random_bytes(N_OUT * rq_grid_row_words(N_IN, bits) * 4);
        if (k % 2)
            m.grid.scale_f16 = random_f16(N_OUT * n_group, false);
        else
            m.grid.scale_f32 = random_f32(N_OUT * n_group);
        if (k % 3) m.grid.zero = zero;
        if (k > 4) m.grid.perm = perm;
        rq_packed full = packed_of(RQ_FORMAT_GRID);
        full.u.grid = m.grid;
        full.u.grid.n_group = n_group;
        full.u.grid.row_words = rq_grid_row_words(N_IN, bits);
        check(RQ_FORMAT_GRID, &m, &full);
        float x[N_IN] = {0}, y[N_OUT];
        perm[7] = N_IN;
        if (m.grid.perm) assert_int_equal(rq_grid_linear(y, &m.grid, NULL, x, 1), RQ_ERR_ARG);
        any_matrix bad = m;
        bad.grid.bits = 5;
        assert_int_equal(rq_grid_linear(y, &bad.grid, NULL, x, 1), RQ_ERR_ARG);
        bad = m;
        bad.grid.group = 0;
        assert_int_equal(rq_grid_linear(y, &bad.grid, NULL, x, 1), RQ_ERR_ARG);
        bad = m;
        bad.grid.scale_f16 = NULL;
        bad.grid.scale_f32 = NULL;
        assert_int_equal(rq_grid_linear(y, &bad.grid, NULL, x, 1), RQ_ERR_ARG);
        assert_int_equal(rq_grid_linear(y, NULL, NULL, x, 1), RQ_ERR_ARG);
        free((void *)(uintptr_t)m.grid.words), free((void *)(uintptr_t)m.grid.scale_f16),
            free((void *)(uintptr_t)m.grid.scale_f32), free(zero);
    }
}

static const int32_t outlier_cols[3] = {0, 77, N_IN - 1};

static void test_ssvq(void **state) {
    (void)state;
    for (int k = 0; k < 4; ++k) {
        const int vec_len = k % 2 ? 8 : 4, bits = k < 2 ? 6 : 9;
        const int64_t group = k == 1 ? N_IN : 64, n_group = rq_ceil_div(N_IN, group), n_codes = 1 << bits;
        float *scale = random_f32(3), *book_scale = random_f32(2);
        int8_t *outlier = random_bytes(N_OUT * 3);
        any_matrix m = {.ssvq = {.n_out = N_OUT,
                                 .n_in = N_IN,
                                 .vec_len = vec_len,
                                 .code_bits = bits,
                                 .n_codes = n_codes,
                                 .book_cols = 96}};
        rq_ssvq *s = &m.ssvq;
        s->group = group;
        s->codes = random_bytes(N_OUT * rq_ssvq_code_words(N_IN, vec_len, bits) * 4);
        s->signs = random_bytes(N_OUT * rq_ssvq_sign_words(N_IN, vec_len) * 4);
        s->scale = random_f16(N_OUT * n_group, false);
        if (k % 2) {
            s->book_u8 = random_bytes(2 * n_codes * vec_len);
            s->book_scale = book_scale;
        } else {
            s->book_f16 = random_f16(2 * n_codes * vec_len, true);
        }
        if (k > 1) s->n_outlier = 3, s->outlier = outlier, s->outlier_col = outlier_cols, s->outlier_scale = scale;
        rq_packed full = packed_of(RQ_FORMAT_SSVQ);
        const float ones[2] = {1, 1};
        full.u.ssvq = m.ssvq;
        full.u.ssvq.n_book = 2;
        full.u.ssvq.n_group = n_group;
        full.u.ssvq.code_words = rq_ssvq_code_words(N_IN, vec_len, bits);
        full.u.ssvq.sign_words = rq_ssvq_sign_words(N_IN, vec_len);
        if (!s->book_scale) full.u.ssvq.book_scale = ones;
        check(RQ_FORMAT_SSVQ, &m, &full);
        float x[N_IN] = {0}, y[N_OUT];
        any_matrix bad = m;
        bad.ssvq.vec_len = 5;
        assert_int_equal(rq_ssvq_linear(y, &bad.ssvq, NULL, x, 1), RQ_ERR_ARG);
        bad = m;
        bad.ssvq.book_u8 = NULL;
        bad.ssvq.book_f16 = NULL;
        assert_int_equal(rq_ssvq_linear(y, &bad.ssvq, NULL, x, 1), RQ_ERR_ARG);
        bad = m;
        const int32_t twice[3] = {4, 4, 9};
        bad.ssvq.n_outlier = 3, bad.ssvq.outlier = outlier, bad.ssvq.outlier_col = twice,
        bad.ssvq.outlier_scale = scale;
        assert_int_equal(rq_ssvq_linear(y, &bad.ssvq, NULL, x, 1), RQ_ERR_ARG);
        bad.ssvq.outlier = NULL;
        assert_int_equal(rq_ssvq_linear(y, &bad.ssvq, NULL, x, 1), RQ_ERR_ARG);
        free((void *)(uintptr_t)s->codes), free((void *)(uintptr_t)s->signs), free((void *)(uintptr_t)s->scale),
            free(scale), free(book_scale);
        free((void *)(uintptr_t)s->book_u8), free((void *)(uintptr_t)s->book_f16), free(outlier);
    }
}

static void test_vq(void **state) {
    (void)state;
    for (int k = 0; k < 4; ++k) {
        const int out = k % 2, vec_len = k == 1 ? 5 : 4, stages = k < 2 ? 1 : 2;
        const int64_t lines = out ? rq_ceil_div(N_OUT, vec_len) : N_OUT, n_code = out ? N_IN : N_IN / vec_len;
        uint8_t book_of[N_IN];
        for (int j = 0; j < N_IN; ++j) book_of[j] = (uint8_t)draw(2);
        any_matrix m = {
            .vq = {
                .n_out = N_OUT, .n_in = N_IN, .vec_len = vec_len, .vec_out = out, .n_stage = stages, .book_cols = 96}};
        rq_vq *q = &m.vq;
        q->group = k ? N_IN : 48;
        rq_packed full = packed_of(RQ_FORMAT_VQ);
        for (int s = 0; s < stages; ++s) {
            q->code_bits[s] = s ? 5 : 7;
            q->n_codes[s] = 1 << q->code_bits[s];
            q->codes[s] = random_bytes(lines * rq_ceil_div(n_code * q->code_bits[s], 32) * 4);
            q->book[s] = random_f16(2 * q->n_codes[s] * vec_len, false);
        }
        if (k == 0) q->scale = random_f16(N_OUT * 4, false);
        if (k == 3) q->book_of = book_of;
        if (out) q->col_scale = random_f16(N_IN, false), q->col_bias = random_f16(N_IN, false);
        full.u.vq = *q;
        full.u.vq.n_line = lines;
        full.u.vq.n_code = n_code;
        full.u.vq.n_book = 2;
        full.u.vq.n_group = rq_ceil_div(N_IN, q->group);
        for (int s = 0; s < stages; ++s) full.u.vq.code_words[s] = rq_ceil_div(n_code * q->code_bits[s], 32);
        check(RQ_FORMAT_VQ, &m, &full);
        float x[N_IN] = {0}, y[N_OUT];
        any_matrix bad = m;
        bad.vq.book[0] = NULL;
        assert_int_equal(rq_vq_linear(y, &bad.vq, NULL, x, 1), RQ_ERR_ARG);
        bad = m;
        bad.vq.col_bias = bad.vq.col_bias ? NULL : q->book[0];
        assert_int_equal(rq_vq_linear(y, &bad.vq, NULL, x, 1), RQ_ERR_ARG);
        bad = m;
        bad.vq.scale = NULL;
        bad.vq.group = 48;
        assert_int_equal(rq_vq_linear(y, &bad.vq, NULL, x, 1), RQ_ERR_ARG);
        bad = m;
        book_of[9] = 2;
        bad.vq.book_of = book_of;
        assert_int_equal(rq_vq_linear(y, &bad.vq, NULL, x, 1), RQ_ERR_ARG);
        for (int s = 0; s < stages; ++s) free((void *)(uintptr_t)q->codes[s]), free((void *)(uintptr_t)q->book[s]);
        free((void *)(uintptr_t)q->scale), free((void *)(uintptr_t)q->col_scale), free((void *)(uintptr_t)q->col_bias);
    }
}

/* Rows as int8 by the definition, and the exact product of them. */
static void check_w4a8(const rq_packed *p, const rq_w4a8 *mine) {
    float *x = random_f32(MAX_TOK * N_IN), *h = must_alloc(N_IN, sizeof *h),
          *y = must_alloc(MAX_TOK * N_OUT, sizeof *y), *other = must_alloc(MAX_TOK * N_OUT, sizeof *y);
    int8_t *q = random_bytes(MAX_TOK * (N_IN + 5));
    float scale[MAX_TOK];
    int32_t sum[MAX_TOK];
    const rq_rows8 to = {q, N_IN + 5, scale, sum};
    const rq_rows8_input input = {mine->hadamard, mine->in_scale};
    assert_int_equal(rq_quantize_rows(&to, x, MAX_TOK, N_IN, &input), RQ_OK);
    for (int64_t t = 0; t < MAX_TOK; ++t) {
        memcpy(h, x + t * N_IN, N_IN * sizeof *h);
        rq_w4a8_input(&p->u.w4a8, h, 1);
        float most = 0;
        int32_t total = 0;
        for (int j = 0; j < N_IN; ++j) most = fmaxf(most, fabsf(h[j]));
        for (int j = 0; j < N_IN + 5; ++j) {
            const int want = j < N_IN ? (int)rintf(h[j] / (most / 127.0f)) : 0;
            assert_int_equal(q[t * (N_IN + 5) + j], want);
            total += want;
        }
        assert_true(scale[t] == most / 127.0f && sum[t] == total);
    }
    for (int64_t n_tok = 1; n_tok <= MAX_TOK; n_tok += 13) {
        assert_int_equal(rq_w4a8_linear(y, mine, NULL, x, n_tok), RQ_OK);
        assert_int_equal(rq_w4a8_product(other, mine, NULL, &to, n_tok), RQ_OK); /* from rows that lie anyhow */
        for (int64_t t = 0; t < n_tok; ++t) {
            for (int64_t i = 0; i < N_OUT; ++i) {
                int32_t acc = 0;
                for (int64_t j = 0; j < N_IN; ++j) acc += q[t * (N_IN + 5) + j] * rq_w4a8_level(&p->u.w4a8, i, j);
                assert_true(y[t * N_OUT + i] == rq_w4a8_output(acc, mine->scale[i], scale[t]));
                assert_true(other[t * N_OUT + i] == y[t * N_OUT + i]);
            }
        }
    }
    const rq_rows8 narrow = {q, N_IN - 1, scale, sum};
    assert_int_equal(rq_w4a8_product(y, mine, NULL, &narrow, 1), RQ_ERR_ARG);
    assert_int_equal(rq_quantize_rows(&narrow, x, 1, N_IN, NULL), RQ_ERR_ARG);
    free(x), free(h), free(y), free(other), free(q);
}

static void test_w4a8(void **state) {
    (void)state;
    float *in_scale = random_f32(N_IN);
    for (int k = 0; k < 5; ++k) {
        rq_packed p;
        make_weights(&p, N_OUT, N_IN, k % 2 ? 64 : 0, k == 4, false, k > 1 ? in_scale : NULL,
                     k == 3   ? 48
                     : k == 2 ? 64
                              : 0);
        any_matrix m = {.w4a8 = p.u.w4a8};
        m.w4a8.n_group = m.w4a8.row_words = -1;
        m.w4a8.online = NULL;
        check(RQ_FORMAT_W4A8, &m, &p);
        check_w4a8(&p, &m.w4a8);
        float x[N_IN] = {0}, y[N_OUT];
        any_matrix bad = m;
        bad.w4a8.group = 20;
        assert_int_equal(rq_w4a8_linear(y, &bad.w4a8, NULL, x, 1), RQ_ERR_ARG);
        bad = m;
        bad.w4a8.hadamard = 20;
        assert_int_equal(rq_w4a8_linear(y, &bad.w4a8, NULL, x, 1), RQ_ERR_ARG);
        bad = m;
        bad.w4a8.step = bad.w4a8.step ? NULL : (const uint8_t *)x;
        assert_int_equal(rq_w4a8_linear(y, &bad.w4a8, NULL, x, 1), RQ_ERR_ARG);
        rq_packed_free(&p);
    }
    free(in_scale);
}

static void test_rows(void **state) {
    (void)state;
    enum { TOK = 11 };
    float *x = random_f32(TOK * N_IN), *r = random_f32(TOK * N_IN), *w = random_f32(N_IN),
          *stream = must_alloc(TOK * N_IN, sizeof *stream), back[N_IN];
    int8_t *q = must_alloc(TOK * N_IN, 1);
    float scale[TOK];
    int32_t sum[TOK];
    const rq_rows8 to = {q, N_IN, scale, sum};
    assert_int_equal(rq_quantize_rmsnorm(&to, stream, x, r, w, 1e-5f, TOK, N_IN, NULL), RQ_OK);
    for (int t = 0; t < TOK; ++t) {
        double squares = 0;
        for (int j = 0; j < N_IN; ++j) {
            assert_true(stream[t * N_IN + j] == x[t * N_IN + j] + r[t * N_IN + j]);
            squares += (double)stream[t * N_IN + j] * (double)stream[t * N_IN + j];
        }
        const double by = 1 / sqrt(squares / N_IN + 1e-5);
        for (int j = 0; j < N_IN; ++j)
            assert_true(fabs((double)scale[t] * q[t * N_IN + j] - (double)stream[t * N_IN + j] * by * (double)w[j]) <=
                        0.5001 * (double)scale[t]);
    }
    assert_int_equal(rq_quantize_gated(&to, x, r, N_IN, TOK, N_IN, NULL), RQ_OK);
    for (int i = 0; i < TOK * N_IN; ++i) {
        const double g = (double)x[i], h = g / (1 + exp(-g)) * (double)r[i];
        assert_true(fabs((double)scale[i / N_IN] * q[i] - h) <= 0.5001 * (double)scale[i / N_IN]);
    }
    assert_int_equal(rq_quantize_rmsnorm(&to, NULL, x, r, w, 1e-5f, TOK, N_IN, NULL), RQ_ERR_ARG);
    assert_int_equal(rq_quantize_gated(&to, x, r, N_IN - 1, TOK, N_IN, NULL), RQ_ERR_ARG);
    assert_int_equal(rq_quantize_rows(&to, NULL, TOK, N_IN, NULL), RQ_ERR_ARG);
    const rq_rows8_input odd = {.hadamard = 20};
    assert_int_equal(rq_quantize_rows(&to, x, TOK, N_IN, &odd), RQ_ERR_ARG);

    for (int k = 0; k < 4; ++k) { /* there and back, lengths kept */
        const int64_t order = (int64_t[]){2, 64, 12, 192}[k];
        memcpy(back, x, sizeof back);
        assert_int_equal(rq_hadamard_rows(back, 1, N_IN, order, false), RQ_OK);
        assert_true(fabsf(back[0] - x[0]) > 1e-3f);
        assert_int_equal(rq_hadamard_rows(back, 1, N_IN, order, true), RQ_OK);
        for (int j = 0; j < N_IN; ++j) assert_true(fabsf(back[j] - x[j]) < 1e-5f);
        const char *kind = k == 0 ? "hadamard" : k == 1 ? "orthogonal" : "plain";
        rq_rotation *turn;
        assert_int_equal(rq_rotation_new(&turn, N_IN, 5, kind), RQ_OK);
        assert_int_equal(rq_rotation_apply(turn, back, 1, N_IN, k == 3), RQ_OK);
        rq_rotation_free(turn);
        assert_int_equal(rq_rotate_rows(back, 1, N_IN, kind, 5, k != 3), RQ_OK);
        for (int j = 0; j < N_IN; ++j) assert_true(fabsf(back[j] - x[j]) < 1e-5f);
    }
    assert_int_equal(rq_hadamard_rows(x, 1, N_IN, 20, false), RQ_ERR_ARG);
    assert_int_equal(rq_rotate_rows(x, 1, N_IN, "odd", 5, false), RQ_ERR_ARG);
    free(x), free(r), free(w), free(stream), free(q);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grid), cmocka_unit_test(test_ssvq), cmocka_unit_test(test_vq),
        cmocka_unit_test(test_w4a8), cmocka_unit_test(test_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
