/* SPDX-License-Identifier: Apache-2.0 */
/* Token importance: the attention received against rq_attention with one-hot values, which gives the probabilities themselves; norms
 * and scaling by their formulas; thread counts. tests/test_command.py has the whole way from the option to the Gram matrices. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "backend.h"
#include "calib_tokens.h"
#include "random.h"

static float *values(int64_t n, uint64_t seed, double scale) {
    float *v = malloc((size_t)n * sizeof *v);
    assert_non_null(v);
    for (int64_t i = 0; i < n; ++i) v[i] = (float)(scale * (rq_random_unit(seed, (uint64_t)i) - 0.5));
    return v;
}

static void check_attention(const char *name, int64_t n_seq, int64_t t) {
    char path[1024];
    rq_model *m;
    snprintf(path, sizeof path, "%s/golden/llama/%s", RQ_TEST_DIR, name);
    assert_int_equal(rq_model_open(&m, path), RQ_OK);
    int64_t hd = m->cfg.head_dim, n_head = m->cfg.n_head, n_kv = m->cfg.n_kv_head, n = n_seq * t;
    float *v = values(n * n_kv * hd, 3, 0), *out = values(n * n_head * hd, 3, 0), *got = values(n, 3, 0),
          *again = values(n, 3, 0);
    double *want = calloc((size_t)n, sizeof *want);
    for (int64_t first = 0; first < t; first += hd) { /* so many keys at a time can be told apart */
        float *q = values(n * n_head * hd, 1, 8), *k = values(n * n_kv * hd, 2, 8);
        for (int64_t i = 0; i < n * n_kv * hd; ++i) v[i] = (float)(i / (n_kv * hd) % t - first == i % hd);
        assert_int_equal(rq_attention(m, out, q, k, v, n_seq, t), RQ_OK);
        for (int64_t i = 0; i < n * n_head * hd; ++i) {
            int64_t key = first + i % hd;
            if (key < t) want[i / (n_head * hd) / t * t + key] += (double)out[i];
        }
        free(q);
        free(k);
    }
    for (int threads = 1; threads <= 3; ++threads) {
        float *q = values(n * n_head * hd, 1, 8), *k = values(n * n_kv * hd, 2, 8);
        rq_set_threads(threads);
        assert_int_equal(rq_token_attention(threads == 1 ? got : again, m, q, k, n_seq, t), RQ_OK);
        if (threads > 1) assert_memory_equal(got, again, n * sizeof *got);
        free(q);
        free(k);
    }
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (!(fabs(got[i] - want[i]) <= 1e-4 * (1 + want[i])))
            fail_msg("token %d: %g, not %g", (int)i, got[i], want[i]);
        total += got[i];
    }
    assert_true(fabs(total - (double)(n * n_head)) < 1e-3 * (double)n); /* each query of each head gives 1 away */
    free(v), free(out), free(got), free(again), free(want);
    rq_model_close(m);
}

static void test_attention(void **state) {
    (void)state;
    assert_int_equal(rq_backend_init(), RQ_OK);
    check_attention("tied", 1, 1);
    check_attention("llama3", 3, 37);
    check_attention("qwen2", 2, 64);
    check_attention("mistral", 2, 131);
}

static void test_scale(void **state) {
    (void)state;
    float v[12] = {9, 1, 3, 2, /**/ 4, 4, 4, 4, /**/ 1, 2, 4, 8};
    rq_token_scale(v, 3, 4, 0, 0.2);
    static const double a[12] = {1, 0.2, 0.4, 0.3, 1, 1, 1, 1, 0.2, 0.2 + 0.8 / 7, 0.2 + 2.4 / 7, 1};
    for (int i = 0; i < 12; ++i) assert_true(fabs(v[i] - a[i]) < 1e-6);
    float w[8] = {100, 1, 3, 2, 5, 6, 7, 9};
    rq_token_scale(w, 2, 4, 1, 0.5); /* the first one is left out of the range */
    static const double b[8] = {1, 0.5, 1, 0.75, 1, 0.5, 0.5 + 0.5 / 3, 1};
    for (int i = 0; i < 8; ++i) assert_true(fabs(w[i] - b[i]) < 1e-6);
    rq_token_scale(w, 1, 4, 9, 0.5); /* all left out */
    for (int i = 0; i < 4; ++i) assert_true(w[i] == 1);
    static const float x[6] = {3, 4, 0, 0, -5, 12};
    rq_token_norm(v, x, 3, 2);
    assert_true(v[0] == 5 && v[1] == 0 && v[2] == 13);
}

static void test_names(void **state) {
    (void)state;
    rq_token_weights t;
    assert_true(rq_token_weights_by_name("norm", &t) && t == RQ_TOKENS_NORM);
    assert_true(rq_token_weights_by_name("attention", &t) && t == RQ_TOKENS_ATTENTION);
    assert_true(rq_token_weights_by_name("none", &t) && t == RQ_TOKENS_EVEN);
    assert_false(rq_token_weights_by_name("attn", &t));
    assert_string_equal(rq_token_weights_name(RQ_TOKENS_ATTENTION), "attention");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_scale),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
