/* SPDX-License-Identifier: Apache-2.0 */
/* Tables over the steps of a process (act_steps.h) on the linear layers of a small denoiser: a time projection, q, k, v, output and feed-forward
 * with random weights, 8 steps. Scales of 8-bit activations from a table, bit for bit against plain C and within a bound of double. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "act_steps.h"
#include "w4a8_random.h"

enum { STEPS = 8, TOK = 6, EMB = 32 };

/* ---- scales */

static void test_scales(void **state) {
    (void)state;
    float most[4], scale[4] = {9, 9, 9, 9};
    const float a[] = {0.5f, -2.0f, NAN, 1.0f}, b[] = {NAN, NAN}, c[] = {-3.0f}, inf[] = {-INFINITY};
    rq_steps_start(most, 4);
    assert_int_equal(rq_steps_observe(most, 4, 0, a, 4), RQ_OK);
    assert_int_equal(rq_steps_observe(most, 4, 0, c, 1), RQ_OK);
    assert_int_equal(rq_steps_observe(most, 4, 0, a, 4), RQ_OK);
    assert_int_equal(rq_steps_observe(most, 4, 1, b, 2), RQ_OK);
    assert_int_equal(rq_steps_observe(most, 4, 3, a, 2), RQ_OK);
    assert_int_equal(rq_steps_observe(most, 4, 2, a, 0), RQ_OK); /* no activations are none that were seen */
    assert_true(most[0] == 3.0f && most[1] == 0.0f && most[2] == -1.0f && most[3] == 2.0f);
    assert_int_equal(rq_steps_observe(most, 4, 4, a, 4), RQ_ERR_ARG);
    assert_int_equal(rq_steps_observe(most, 4, -1, a, 4), RQ_ERR_ARG);
    assert_int_equal(rq_steps_scales(scale, most, 4, 1.0f), RQ_ERR_ARG);
    assert_non_null(strstr(rq_last_error(), "step 2 of 4"));
    assert_true(scale[0] == 9.0f);
    assert_int_equal(rq_steps_observe(most, 4, 2, c, 1), RQ_OK);
    assert_int_equal(rq_steps_scales(scale, most, 4, 1.0f), RQ_OK);
    assert_true(scale[0] == 3.0f / 127.0f && scale[1] == 0.0f && scale[3] == 2.0f / 127.0f);
    assert_int_equal(rq_steps_scales(most, most, 4, 0.5f), RQ_OK);
    assert_true(most[0] == 1.5f / 127.0f);
    assert_int_equal(rq_steps_scales(scale, most, 4, 0.0f), RQ_ERR_ARG);
    assert_int_equal(rq_steps_scales(scale, most, 4, 1.5f), RQ_ERR_ARG);
    assert_int_equal(rq_steps_scales(scale, most, 4, NAN), RQ_ERR_ARG);
    assert_int_equal(rq_steps_observe(most, 4, 1, inf, 1), RQ_OK);
    assert_int_equal(rq_steps_scales(scale, most, 4, 1.0f), RQ_ERR_ARG);
    assert_non_null(strstr(rq_last_error(), "infinite"));
}

/* ---- rows of a table */

static void test_rows(void **state) {
    (void)state;
    enum { N = 37 };
    static const int32_t step[3] = {2, STEPS, 0};
    float *table = random_f32(STEPS * N), *x = random_f32(TOK * N), *y = random_f32(TOK * N);
    for (int kind = 0; kind < 4; ++kind) {
        const rq_step_rows a = {y, kind & 1 ? x : NULL, table, step, STEPS, kind & 2 ? 2 : 0, TOK, N};
        rq_steps_add(&a);
        for (int t = 0; t < TOK; ++t) {
            const int32_t k = kind & 2 ? step[t / 2] : 2;
            for (int i = 0; i < N; ++i) {
                const float v = y[t * N + i];
                if (k == STEPS)
                    assert_true(isnan(v));
                else
                    assert_true(v == (kind & 1 ? x[t * N + i] + table[k * N + i] : table[k * N + i]));
            }
        }
    }
    free(table), free(x), free(y);
}

static void test_projections(void **state) {
    (void)state;
    enum { N = 48 };
    float *w = random_f32(N * EMB), *bias = random_f32(N), *emb = random_f32(STEPS * EMB),
          *table = random_f32(STEPS * N);
    const rq_linear l = {.name = "time_emb_proj", .n_out = N, .n_in = EMB, .w = w, .bias = bias};
    for (int silu = 0; silu < 2; ++silu) {
        assert_int_equal(rq_steps_project(table, &l, emb, STEPS, silu), RQ_OK);
        for (int k = 0; k < STEPS; ++k) {
            for (int r = 0; r < N; ++r) {
                double sum = (double)bias[r], size = fabs(sum);
                for (int j = 0; j < EMB; ++j) {
                    const double e = (double)emb[k * EMB + j], in = silu ? e / (1 + exp(-e)) : e;
                    sum += (double)w[r * EMB + j] * in, size += fabs((double)w[r * EMB + j] * in);
                }
                assert_true(fabs((double)table[k * N + r] - sum) <= 2e-6 * size);
            }
        }
    }
    free(w), free(bias), free(emb), free(table);
}

/* ---- a layer with 8-bit inputs */

/* y in the words of fmt_w4a8.h and fmt_act.h, from inputs that are transformed already. */
static void define(float *y, const rq_w4a8 *w, const float *bias, const float *h, float scale) {
    for (int64_t r = 0; r < w->n_out; ++r) {
        int64_t sum = 0;
        for (int64_t j = 0; j < w->n_in; ++j) {
            float q = scale > 0 ? rintf(h[j] / scale) : 0;
            q = q > 127 ? 127 : q < -127 ? -127 : q;
            sum += rq_w4a8_level(w, r, j) * (int64_t)q;
        }
        y[r] = (float)sum * w->scale[r];
        y[r] *= scale;
        y[r] += bias[r];
    }
}

/* Inputs that grow with the step; two tokens a step, and all tokens of one step. */
static void check_layer(int64_t n_out, int64_t n_in, int64_t group, int hadamard, bool factors) {
    static const int32_t step[TOK / 2] = {5, 0, 3};
    rq_packed p;
    float *factor = random_f32(n_in), *bias = random_f32(n_out), *x = random_f32(STEPS * TOK * n_in);
    float *h = random_f32(TOK * n_in), *y = random_f32(TOK * n_out), *want = random_f32(n_out);
    float most[STEPS], scale[STEPS];
    for (int64_t j = 0; j < n_in; ++j) factor[j] = 1.5f + factor[j];
    make_weights(&p, n_out, n_in, group, false, false, factors ? factor : NULL, hadamard);
    const rq_w4a8 *w = &p.u.w4a8;
    rq_steps_start(most, STEPS);
    for (int64_t k = 0; k < STEPS; ++k) { /* calibration */
        for (int64_t i = 0; i < TOK * n_in; ++i) x[k * TOK * n_in + i] *= (float)(1 + k);
        memcpy(h, x + k * TOK * n_in, (size_t)(TOK * n_in) * sizeof *h);
        rq_w4a8_input(w, h, TOK);
        assert_int_equal(rq_steps_observe(most, STEPS, k, h, TOK * n_in), RQ_OK);
    }
    assert_int_equal(rq_steps_scales(scale, most, STEPS, 1.0f), RQ_OK);
    assert_true(scale[7] > 4 * scale[0]);
    float *row = random_f32(n_in);
    for (int by_two = 0; by_two < 2; ++by_two) {
        double error = 0, size = 0;
        const rq_act_steps steps = {scale, step, STEPS, by_two ? 2 : 0};
        for (int t = 0; t < TOK; ++t) { /* of the step that the token is at */
            const int64_t k = step[by_two ? t / 2 : 0];
            memcpy(h + t * n_in, x + (k * TOK + t) * n_in, (size_t)n_in * sizeof *h);
        }
        rq_set_threads(1 + by_two * 2);
        assert_int_equal(rq_linear_w4a8_steps(w, bias, y, h, TOK, &steps), RQ_OK);
        for (int64_t r = 0; r < n_out; ++r) { /* in double, with the 4-bit weights and inputs that nobody rounded */
            rq_unpack_row(&p, r, row);
            for (int t = 0; t < TOK; ++t) {
                double exact = (double)bias[r];
                for (int64_t j = 0; j < n_in; ++j) exact += (double)row[j] * (double)h[t * n_in + j];
                error += pow((double)y[t * n_out + r] - exact, 2), size += exact * exact;
            }
        }
        assert_true(sqrt(error / size) < 0.02);
        rq_w4a8_input(w, h, TOK);
        for (int t = 0; t < TOK; ++t) {
            define(want, w, bias, h + t * n_in, scale[step[by_two ? t / 2 : 0]]);
            assert_memory_equal(y + t * n_out, want, (size_t)n_out * sizeof *y);
        }
    }
    rq_set_threads(1);
    free(factor), free(bias), free(x), free(h), free(y), free(want), free(row);
    rq_packed_free(&p);
}

static void test_denoiser(void **state) {
    (void)state;
    check_layer(64, 64, 32, 0, false);  /* q, k, v */
    check_layer(64, 64, 0, 0, true);    /* output */
    check_layer(256, 64, 64, 64, true); /* feed-forward in: gate and up */
    check_layer(64, 128, 0, 128, false);
    check_layer(64, 144, 0, 144, true); /* feed-forward out, with an order that is no power of two */
}

/* A step that is not in the table is seen in the result. */
static void test_outside(void **state) {
    (void)state;
    static const int32_t step[2] = {0, STEPS};
    rq_packed p;
    float *x = random_f32(2 * 64), *y = random_f32(2 * 8), scale[STEPS];
    for (int k = 0; k < STEPS; ++k) scale[k] = 0.01f;
    make_weights(&p, 8, 64, 0, false, false, NULL, 0);
    const rq_act_steps steps = {scale, step, STEPS, 1};
    assert_int_equal(rq_linear_w4a8_steps(&p.u.w4a8, NULL, y, x, 2, &steps), RQ_OK);
    for (int r = 0; r < 8; ++r) assert_true(!isnan(y[r]) && isnan(y[8 + r]));
    rq_packed_free(&p);
    free(x), free(y);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_scales), cmocka_unit_test(test_rows),
                                       cmocka_unit_test(test_projections), cmocka_unit_test(test_denoiser),
                                       cmocka_unit_test(test_outside)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
