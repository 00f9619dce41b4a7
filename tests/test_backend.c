/* SPDX-License-Identifier: Apache-2.0 */
/* The dense algebra against loops in fp64 written here, and its promise: the same bytes for any number of threads. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backend.h"

static uint64_t seed = 1;

static float noise(void) { /* uniform in [-1, 1) */
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) * 0x1p-31f;
}

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

static float *random_upper(int64_t n) {
    float *p = random_f32(n * n);
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < i; ++j) p[i * n + j] = 0.0f;
    }
    return p;
}

/* ---- gemm ------------------------------------------------------------------------------------------------------------- */

static void check_gemm(int64_t m, int64_t n, int64_t k, rq_trans ta, rq_trans tb, double alpha, double beta) {
    int64_t lda = (ta == RQ_T ? m : k) + 3, ldb = (tb == RQ_T ? k : n) + 5, ldc = n + 2;
    int64_t a_rows = ta == RQ_T ? k : m, b_rows = tb == RQ_T ? n : k;
    float *a = random_f32(a_rows * lda), *b = random_f32(b_rows * ldb), *c0 = random_f32(m * ldc);
    float *c[3];
    double *ad = must_alloc(a_rows * lda, sizeof *ad), *bd = must_alloc(b_rows * ldb, sizeof *bd);
    double *cd = must_alloc(m * ldc, sizeof *cd);
    for (int64_t i = 0; i < a_rows * lda; ++i) ad[i] = (double)a[i];
    for (int64_t i = 0; i < b_rows * ldb; ++i) bd[i] = (double)b[i];
    for (int64_t i = 0; i < m * ldc; ++i) {
        if (beta == 0.0 && i % ldc < n) c0[i] = NAN; /* must be overwritten, not scaled */
        cd[i] = (double)c0[i];
    }
    for (int t = 0; t < 3; ++t) {
        rq_set_threads(t + 1);
        c[t] = must_alloc(m * ldc, sizeof **c);
        memcpy(c[t], c0, (size_t)(m * ldc) * sizeof **c);
        rq_sgemm(ta, tb, m, n, k, (float)alpha, a, lda, b, ldb, (float)beta, c[t], ldc);
        assert_memory_equal(c[0], c[t], (size_t)(m * ldc) * sizeof **c);
    }
    rq_dgemm(ta, tb, m, n, k, alpha, ad, lda, bd, ldb, beta, cd, ldc);
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < ldc; ++j) {
            if (j >= n) { /* padding between rows stays */
                assert_true(c[0][i * ldc + j] == c0[i * ldc + j]);
                continue;
            }
            double sum = 0, mag = 0;
            for (int64_t l = 0; l < k; ++l) {
                double p = (double)a[ta == RQ_T ? l * lda + i : i * lda + l] *
                           (double)b[tb == RQ_T ? j * ldb + l : l * ldb + j];
                sum += p;
                mag += fabs(p);
            }
            double old = beta == 0.0 ? 0.0 : beta * (double)c0[i * ldc + j];
            double want = alpha * sum + old, bound = (fabs(alpha) * mag + fabs(old)) * (double)(k + 4);
            assert_true(fabs((double)c[0][i * ldc + j] - want) <= bound * 0x1p-24);
            assert_true(fabs(cd[i * ldc + j] - want) <= bound * 0x1p-52);
        }
    }
    for (int t = 0; t < 3; ++t) free(c[t]);
    free(a), free(b), free(c0), free(ad), free(bd), free(cd);
}

static void test_gemm(void **state) {
    (void)state;
    static const int64_t sizes[][3] = {{1, 1, 1},      {3, 600, 5},   {517, 33, 17},
                                       {130, 70, 300}, {600, 530, 9}, {5, 4, 700}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; ++s) {
        for (int t = 0; t < 4; ++t) {
            check_gemm(sizes[s][0], sizes[s][1], sizes[s][2], t & 1 ? RQ_T : RQ_N, t & 2 ? RQ_T : RQ_N, 1.0, 0.0);
        }
        check_gemm(sizes[s][0], sizes[s][1], sizes[s][2], RQ_N, RQ_T, -0.5, 1.0);
        check_gemm(sizes[s][0], sizes[s][1], sizes[s][2], RQ_T, RQ_N, 2.0, -0.25);
    }
}

static void test_empty(void **state) {
    (void)state;
    float a[4] = {1, 2, 3, 4}, c[4] = {5, 6, 7, 8};
    rq_sgemm(RQ_N, RQ_N, 0, 2, 2, 1.0f, a, 2, a, 2, 0.0f, c, 2);
    rq_sgemm(RQ_N, RQ_N, 2, 0, 2, 1.0f, a, 2, a, 2, 0.0f, c, 2);
    assert_true(c[0] == 5 && c[3] == 8);
}

/* ---- triangular products ---------------------------------------------------------------------------------------------- */

typedef void (*tri_fn)(float *, const float *, const float *, int64_t);

static void check_strict(tri_fn fn, bool transposed, int64_t n, const float *a, const float *b) {
    float *c[3];
    for (int t = 0; t < 3; ++t) {
        rq_set_threads(t + 1);
        c[t] = must_alloc(n * n, sizeof **c);
        for (int64_t i = 0; i < n * n; ++i) c[t][i] = NAN;
        fn(c[t], a, b, n);
        assert_memory_equal(c[0], c[t], (size_t)(n * n) * sizeof **c);
    }
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            double sum = 0, mag = 0;
            for (int64_t k = 0; k < n && j > i; ++k) {
                double p = (double)a[i * n + k] * (double)(transposed ? b[j * n + k] : b[k * n + j]);
                sum += p;
                mag += fabs(p);
            }
            assert_true(fabs((double)c[0][i * n + j] - sum) <= mag * (double)(n + 4) * 0x1p-24);
        }
    }
    for (int t = 0; t < 3; ++t) free(c[t]);
}

static void test_triangular(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 2, 17, 300, 513, 1030};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; ++s) {
        int64_t n = sizes[s], m = n / 2 + 7;
        float *d = random_f32(n * n), *u = random_upper(n), *t = random_upper(n), *w = random_f32(m * n);
        check_strict(rq_sgemm_du, true, n, d, u);
        for (int64_t i = 0; i < n; ++i) t[i * n + i] = 0.0f;
        check_strict(rq_sgemm_tu, false, n, t, u);
        float *y0 = random_f32(m * n), *y = must_alloc(m * n, sizeof *y), *z = must_alloc(m * n, sizeof *z);
        for (int beta = 0; beta < 2; ++beta) {
            memcpy(y, y0, (size_t)(m * n) * sizeof *y);
            memcpy(z, y0, (size_t)(m * n) * sizeof *z);
            rq_set_threads(2);
            rq_sgemm_wu(y, w, t, m, n, (float)beta);
            rq_set_threads(1);
            rq_sgemm_wu(z, w, t, m, n, (float)beta);
            assert_memory_equal(y, z, (size_t)(m * n) * sizeof *y);
            for (int64_t i = 0; i < m; ++i) {
                for (int64_t j = 0; j < n; ++j) {
                    double sum = beta ? (double)y0[i * n + j] : 0.0, mag = fabs(sum);
                    for (int64_t k = 0; k <= j; ++k) {
                        double p = (double)w[i * n + k] * (double)t[k * n + j];
                        sum += p;
                        mag += fabs(p);
                    }
                    assert_true(fabs((double)y[i * n + j] - sum) <= mag * (double)(n + 4) * 0x1p-24);
                }
            }
        }
        free(d), free(u), free(t), free(w), free(y0), free(y), free(z);
    }
}

/* ---- Gram matrices ---------------------------------------------------------------------------------------------------- */

static void check_gram(int64_t n_tok, int64_t n) {
    float *a = random_f32(n_tok * n), *b = random_f32(n_tok * n);
    double *h[3], *d[3];
    for (int t = 0; t < 3; ++t) {
        rq_set_threads(t + 1);
        h[t] = must_alloc(n * n, sizeof **h);
        d[t] = must_alloc(n * n, sizeof **d);
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t j = 0; j < n; ++j) h[t][i * n + j] = d[t][i * n + j] = (double)(i + j);
        }
        for (int part = 0; t == 2 && part < 5; ++part) { /* in parts, as ranks share them: more than there are tiles */
            assert_int_equal(rq_gram_add_part(h[t], a, n_tok, n, part, 5), RQ_OK);
            assert_int_equal(rq_cross_add_part(d[t], b, a, n_tok, n, part, 5), RQ_OK);
        }
        if (t < 2) assert_int_equal(rq_gram_add(h[t], a, n_tok, n), RQ_OK);
        if (t < 2) assert_int_equal(rq_cross_add(d[t], b, a, n_tok, n), RQ_OK);
        assert_memory_equal(h[0], h[t], (size_t)(n * n) * sizeof **h);
        assert_memory_equal(d[0], d[t], (size_t)(n * n) * sizeof **d);
    }
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            double hs = 0, hm = 0, ds = 0, dm = 0, bound = (double)(n_tok + 4) * 0x1p-24;
            for (int64_t t = 0; t < n_tok; ++t) {
                double p = (double)a[t * n + i] * (double)a[t * n + j], q = (double)b[t * n + i] * (double)a[t * n + j];
                hs += p, hm += fabs(p);
                ds += q, dm += fabs(q);
            }
            assert_true(fabs(h[0][i * n + j] - (double)(i + j) - hs) <= hm * bound);
            assert_true(fabs(d[0][i * n + j] - (double)(i + j) - ds) <= dm * bound);
            assert_true(h[0][i * n + j] == h[0][j * n + i]);
        }
    }
    for (int t = 0; t < 3; ++t) free(h[t]), free(d[t]);
    free(a), free(b);
}

static void test_gram(void **state) {
    (void)state;
    check_gram(1, 1);
    check_gram(7, 33);
    check_gram(50, 530);
    check_gram(2100, 40); /* more than one chunk of tokens */
}

/* ---- the factor ------------------------------------------------------------------------------------------------------- */

static double *random_spd(int64_t n) {
    float *x = random_f32((n + 8) * n);
    double *h;
    assert_int_equal(rq_alloc_zero((void **)&h, n * n, sizeof *h), RQ_OK);
    assert_int_equal(rq_gram_add(h, x, n + 8, n), RQ_OK);
    for (int64_t i = 0; i < n; ++i) h[i * n + i] += 0.01 * (double)n;
    free(x);
    return h;
}

static void check_factor(int64_t n) {
    double *h = random_spd(n), *keep = must_alloc(n * n, sizeof *keep), *u[3], *a[3];
    memcpy(keep, h, (size_t)(n * n) * sizeof *h);
    int64_t bad = -1;
    for (int t = 0; t < 3; ++t) {
        rq_set_threads(t + 1);
        u[t] = must_alloc(n * n, sizeof **u);
        a[t] = must_alloc(n * n, sizeof **a);
        assert_int_equal(rq_factor_upper(u[t], a[t], h, n, &bad), RQ_OK);
        assert_int_equal(bad, 0);
        assert_memory_equal(u[0], u[t], (size_t)(n * n) * sizeof **u);
        assert_memory_equal(a[0], a[t], (size_t)(n * n) * sizeof **a);
    }
    assert_memory_equal(h, keep, (size_t)(n * n) * sizeof *h);
    assert_int_equal(rq_factor_upper(u[1], NULL, h, n, NULL), RQ_OK);
    assert_memory_equal(u[0], u[1], (size_t)(n * n) * sizeof **u);
    for (int64_t i = 0; i < n; ++i) {
        assert_true(u[0][i * n + i] > 0 && a[0][i * n + i] > 0);
        for (int64_t j = 0; j < i; ++j) assert_true(u[0][i * n + j] == 0.0 && a[0][i * n + j] == 0.0);
    }
    for (int64_t i = 0; i < n; ++i) { /* A A^T = H and U A = I, so U^T U = H^-1 */
        for (int64_t j = 0; j < n; ++j) {
            double s = 0, e = 0, em = 0;
            for (int64_t k = rq_max_i64(i, j); k < n; ++k) s += a[0][i * n + k] * a[0][j * n + k];
            for (int64_t k = i; k <= j; ++k) {
                e += u[0][i * n + k] * a[0][k * n + j];
                em += fabs(u[0][i * n + k] * a[0][k * n + j]);
            }
            assert_true(fabs(s - h[i * n + j]) <= 1e-14 * (double)n * sqrt(h[i * n + i] * h[j * n + j]));
            assert_true(fabs(e - (i == j)) <= 1e-13 * (double)n * (1 + em));
        }
    }
    for (int t = 0; t < 3; ++t) free(u[t]), free(a[t]);
    free(h), free(keep);
}

static void test_factor(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 2, 33, 191, 192, 193, 384, 385, 600};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; ++s) check_factor(sizes[s]);
}

static void test_factor_refuses(void **state) {
    (void)state;
    int64_t n = 400, bad = 0;
    double *h = random_spd(n), *u = must_alloc(n * n, sizeof *u);
    static const int64_t where[] = {399, 250, 143, 0};
    static const double what[] = {-1.0, 0.0, NAN, INFINITY};
    for (int w = 0; w < 4; ++w) {
        for (int v = 0; v < 4; ++v) {
            double keep = h[where[w] * (n + 1)];
            h[where[w] * (n + 1)] = what[v];
            assert_int_equal(rq_factor_upper(u, NULL, h, n, &bad), RQ_ERR_NUMERIC);
            assert_int_equal(bad, where[w] + 1); /* elimination goes from the last index up, so it stops right there */
            h[where[w] * (n + 1)] = keep;
        }
    }
    h[10 * n + 300] = h[300 * n + 10] = NAN;
    assert_int_equal(rq_factor_upper(u, NULL, h, n, &bad), RQ_ERR_NUMERIC);
    assert_true(bad >= 1 && bad <= 301);
    assert_int_equal(rq_factor_upper(u, NULL, h, 0, &bad), RQ_ERR_ARG);
    free(h), free(u);
}

/* ---- inside a parallel body ------------------------------------------------------------------------------------------- */

typedef struct nested {
    const float *a, *b;
    float *c;
} nested;

static void nested_body(void *arg, int64_t i) {
    nested *j = arg;
    rq_sgemm(RQ_N, RQ_N, 520, 30, 40, 1.0f, j->a, 40, j->b, 30, 0.0f, j->c + i * 520 * 30, 30);
}

static void test_nested(void **state) {
    (void)state;
    nested j = {random_f32(520 * 40), random_f32(40 * 30), must_alloc(5 * 520 * 30, sizeof(float))};
    rq_set_threads(3);
    rq_parallel_for(4, nested_body, &j);
    rq_sgemm(RQ_N, RQ_N, 520, 30, 40, 1.0f, j.a, 40, j.b, 30, 0.0f, j.c + 4 * 520 * 30, 30);
    for (int i = 0; i < 4; ++i) assert_memory_equal(j.c + i * 520 * 30, j.c + 4 * 520 * 30, 520 * 30 * sizeof(float));
    free((void *)j.a), free((void *)j.b), free(j.c);
}

int main(void) {
    if (rq_backend_init() != RQ_OK) {
        fprintf(stderr, "cannot run: %s\n", rq_last_error());
        return 1;
    }
    assert_true(strncmp(rq_backend_name(), "OpenBLAS ", 9) == 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm),   cmocka_unit_test(test_empty),  cmocka_unit_test(test_triangular),
        cmocka_unit_test(test_gram),   cmocka_unit_test(test_factor), cmocka_unit_test(test_factor_refuses),
        cmocka_unit_test(test_nested),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
