/* SPDX-License-Identifier: Apache-2.0 */
/* Rotations: R R^T = I in fp64, forward then inverse is the identity, Hadamard entries have one magnitude, the fast
 * product equals a product with the Hadamard matrix built entry by entry, the same for any thread count. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "random.h"
#include "rotate.h"
#include "rotate_hadamard.h"

/* R as a matrix: the identity's rows rotated. */
static double *matrix_of(const rq_rotation *r, bool inverse) {
    int64_t n = rq_rotation_size(r);
    double *m = calloc((size_t)(n * n), sizeof *m);
    assert_non_null(m);
    for (int64_t i = 0; i < n; ++i) m[i * n + i] = 1.0;
    assert_int_equal(rq_rotation_apply_f64(r, m, n, n, inverse), RQ_OK);
    return m;
}

static double orthogonality_error(const double *m, int64_t n) {
    double worst = 0;
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
            double s = i == j ? -1.0 : 0.0;
            for (int64_t c = 0; c < n; ++c) s += m[i * n + c] * m[j * n + c];
            worst = fmax(worst, fabs(s));
        }
    }
    return worst;
}

static void check_rotation(int64_t n, const char *kind, const char *expect) {
    rq_rotation *r;
    assert_int_equal(rq_rotation_new(&r, n, 7, kind), RQ_OK);
    assert_string_equal(rq_rotation_kind(r), expect);
    assert_int_equal(rq_rotation_size(r), n);
    assert_int_equal(rq_rotation_seed(r), 7);
    double *m = matrix_of(r, false), *t = matrix_of(r, true), worst = 0;
    assert_true(orthogonality_error(m, n) < 1e-12);
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            worst = fmax(worst, fabs(m[i * n + j] - t[j * n + i])); /* the inverse is the transpose */
            if (strcmp(expect, "hadamard") == 0) {
                worst = fmax(worst, fabs(fabs(m[i * n + j]) - 1.0 / sqrt((double)n)));
            }
        }
    }
    assert_true(worst < 1e-13);
    free(m);
    free(t);
    rq_rotation_free(r);
}

static void test_orders(void **state) {
    (void)state;
    static const int64_t orders[] = {1,  2,  4,  8,   12,  20,  24,  28,  36,  40,  44,  52, 60,
                                     76, 84, 96, 108, 124, 140, 148, 256, 344, 368, 480, 576};
    for (size_t i = 0; i < sizeof orders / sizeof *orders; ++i) {
        assert_true(rq_hadamard_order_exists(orders[i]));
        check_rotation(orders[i], NULL, "hadamard");
    }
    static const int64_t none[] = {3, 6, 9, 92, 100 + 2, 575};
    for (size_t i = 0; i < sizeof none / sizeof *none; ++i) {
        assert_false(rq_hadamard_order_exists(none[i]));
        check_rotation(none[i], NULL, "orthogonal");
    }
    check_rotation(64, "orthogonal", "orthogonal");
}

/* The core that widths of real models come down to, and the construction behind it. */
static void test_cores(void **state) {
    (void)state;
    static const int64_t width_core[][2] = {{576, 36},   {1536, 12},   {2048, 1},    {5120, 20},  {11008, 344},
                                            {14336, 28}, {13824, 108}, {18944, 148}, {8960, 140}, {4864, 76},
                                            {5632, 44},  {29568, 924}, {28672, 28},  {896, 28},   {92, 0},
                                            {184, 0},    {368, 368},   {0, 0},       {-4, 0},     {18, 0}};
    for (size_t i = 0; i < sizeof width_core / sizeof *width_core; ++i) {
        assert_int_equal(rq_hadamard_core(width_core[i][0]), width_core[i][1]);
    }
    for (int64_t k = 4; k <= 372; k += 4) { /* exact, in integers, for every order that is claimed as a core */
        if (rq_hadamard_core(k) != k) continue;
        int8_t *h = malloc((size_t)(k * k));
        assert_non_null(h);
        assert_int_equal(rq_hadamard_fill(h, k), RQ_OK);
        for (int64_t i = 0; i < k; ++i) {
            for (int64_t j = 0; j <= i; ++j) {
                int64_t s = 0;
                for (int64_t c = 0; c < k; ++c) s += h[i * k + c] * h[j * k + c];
                assert_int_equal(s, i == j ? k : 0);
            }
        }
        free(h);
    }
}

/* R[i][j] = s_i H_k[i / P][j / P] (-1)^popcount(i % P & j % P) / sqrt(n), the definition, against the fast product. */
static void test_definition(void **state) {
    (void)state;
    enum { n = 96, k = 12, two_p = 8 };
    int8_t h[k * k];
    rq_rotation *r;
    assert_int_equal(rq_hadamard_fill(h, k), RQ_OK);
    assert_int_equal(rq_rotation_new(&r, n, 123, "hadamard"), RQ_OK);
    double *m = matrix_of(r, false);
    int n_minus = 0;
    for (int i = 0; i < n; ++i) {
        int s = m[i * n] * h[i / two_p * k] > 0 ? 1 : -1;
        n_minus += s < 0;
        for (int j = 0; j < n; ++j) {
            int sylvester = __builtin_popcount((unsigned)(i % two_p & j % two_p)) % 2 ? -1 : 1;
            double expect = s * h[i / two_p * k + j / two_p] * sylvester / sqrt((double)n);
            assert_true(fabs(m[i * n + j] - expect) < 1e-14);
        }
    }
    assert_true(n_minus > n / 4 && n_minus < n - n / 4); /* the signs are random */
    free(m);
    rq_rotation_free(r);
}

static void check_rows(int64_t n, const char *kind) {
    enum { ROWS = 131, PAD = 5 };
    rq_rotation *r, *other;
    int64_t ld = n + PAD;
    size_t count = (size_t)(ROWS * ld);
    float *x = malloc(count * sizeof *x), *y = malloc(count * sizeof *y), *z = malloc(count * sizeof *z);
    assert_true(x && y && z);
    for (size_t i = 0; i < count; ++i) x[i] = (float)(rq_random_unit(3, i) - 0.5);
    memcpy(y, x, count * sizeof *x);
    memcpy(z, x, count * sizeof *x);
    assert_int_equal(rq_rotation_new(&r, n, 42, kind), RQ_OK);
    assert_int_equal(rq_rotation_new(&other, n, 43, kind), RQ_OK);

    rq_set_threads(1);
    assert_int_equal(rq_rotation_apply(r, y, ROWS, ld, false), RQ_OK);
    rq_set_threads(3);
    assert_int_equal(rq_rotation_apply(r, z, ROWS, ld, false), RQ_OK);
    assert_memory_equal(y, z, count * sizeof *y);
    double norm_x = 0, norm_y = 0, back = 0;
    for (int64_t row = 0; row < ROWS; ++row) {
        for (int64_t i = 0; i < ld; ++i) {
            double a = (double)x[row * ld + i], b = (double)y[row * ld + i];
            if (i < n)
                norm_x += a * a, norm_y += b * b;
            else
                assert_true(a == b); /* the padding is not touched */
        }
    }
    assert_true(fabs(norm_y / norm_x - 1.0) < 1e-6);

    assert_int_equal(rq_rotation_apply(r, y, ROWS, ld, true), RQ_OK);
    for (size_t i = 0; i < count; ++i) back = fmax(back, fabs((double)x[i] - (double)y[i]));
    assert_true(back < 1e-6);

    memcpy(y, x, count * sizeof *x);
    assert_int_equal(rq_rotation_apply(other, y, ROWS, ld, false), RQ_OK);
    assert_memory_not_equal(y, z, count * sizeof *y); /* another seed, another rotation */
    rq_rotation_free(r);
    rq_rotation_free(other);
    rq_set_threads(0);
    free(x);
    free(y);
    free(z);
}

static void test_rows(void **state) {
    (void)state;
    check_rows(576, "hadamard");
    check_rows(44, "hadamard");
    check_rows(128, "hadamard");
    check_rows(90, "orthogonal");
}

static void test_refusals(void **state) {
    (void)state;
    rq_rotation *r = NULL;
    assert_int_equal(rq_rotation_new(&r, 92, 1, "hadamard"), RQ_ERR_UNSUPPORTED);
    assert_int_equal(rq_rotation_new(&r, 0, 1, NULL), RQ_ERR_ARG);
    assert_int_equal(rq_rotation_new(&r, -8, 1, NULL), RQ_ERR_ARG);
    assert_int_equal(rq_rotation_new(&r, 64, 1, "hadamrad"), RQ_ERR_ARG);
    assert_null(r);
    rq_rotation_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_orders), cmocka_unit_test(test_cores),
                                       cmocka_unit_test(test_definition), cmocka_unit_test(test_rows),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
