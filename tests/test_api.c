/* SPDX-License-Identifier: Apache-2.0 */
/* The public interface alone (rq.h), as a program that links the library uses it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "rq.h"

enum { M = 6, N = 48 };

static void make_problem(float *w, double *h, double *d) {
    uint64_t s = 5;
    for (int i = 0; i < M * N; ++i) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        w[i] = (float)((double)(s >> 40) / 16777216.0 - 0.5);
    }
    for (int i = 0; i < N; ++i) {
        for (int j = 0; j < N; ++j) {
            h[i * N + j] = pow(0.8, abs(i - j)) * (1 + i % 5) * (1 + j % 5);
            d[i * N + j] = 0.05 * h[i * N + j] + (i == j ? 0.1 : 0);
        }
    }
}

static void codes_give_back_q(void **state) {
    (void)state;
    static float w[M * N], q[M * N], scale[M * N];
    static double h[N * N], d[N * N];
    static uint8_t codes[M * N], zero[M * N];
    static int32_t g_idx[N];
    static const char *const options[] = {NULL,
                                          "bits=4,group=16",
                                          "preset=reference,comp=rescomp,bits=2,group=20",
                                          "comp=qep,group=0,act-order=true,static-groups=false",
                                          "comp=rtn,clip-weights=none,bits=8,group=7",
                                          "comp=gptq,group=24,act-order=true,static-groups=false,sym=true"};
    make_problem(w, h, d);
    for (size_t k = 0; k < sizeof options / sizeof *options; ++k) {
        rq_layer_info info = {.struct_size = sizeof info};
        const char *o = options[k] ? options[k] : "group=16";
        int64_t groups = rq_layer_groups(N, o);
        assert_true(groups >= 1 && groups <= N);
        assert_int_equal(rq_quantize_layer(q, codes, scale, zero, g_idx, w, h, d, M, N, o, &info), RQ_OK);
        for (int i = 0; i < M; ++i) {
            for (int j = 0; j < N; ++j) {
                assert_true(g_idx[j] >= 0 && g_idx[j] < groups);
                int64_t g = i * groups + g_idx[j];
                assert_true(q[i * N + j] == scale[g] * ((float)codes[i * N + j] - (float)zero[g]));
            }
        }
        assert_true(info.bpw >= 2 && info.rel_loss >= 0 && info.rel_loss < 1);
    }
}

static void codebooks_give_q(void **state) {
    (void)state;
    static float w[M * N], q[M * N];
    static double h[N * N], d[N * N];
    static uint8_t codes[M * N];
    rq_layer_info info = {.struct_size = sizeof info};
    const char *o = "vec-len=4,codes=16,round=ssvq,comp=rescomp"; /* the rounder's settings come first all the same */
    make_problem(w, h, d);
    assert_int_equal(rq_quantize_layer(q, NULL, NULL, NULL, NULL, w, h, d, M, N, o, &info), RQ_OK);
    assert_true(info.rel_loss > 0 && info.rel_loss < 0.3 && info.bpw > 2);
    assert_int_equal(rq_quantize_layer(q, codes, NULL, NULL, NULL, w, h, d, M, N, o, &info), RQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(rq_last_error(), "only q"));
}

/* The preset is what its options say one by one. */
static void preset_vptq_is_its_options(void **state) {
    (void)state;
    static float w[M * N], q[2][M * N];
    static double h[N * N], d[N * N];
    static const char *const options[] = {
        "preset=vptq,vec-len=4,codes=16,codes2=16,book-cols=30",
        "comp=gptq,round=vq,vec-axis=out,vec-len=4,codes=16,codes2=16,book-cols=30,book-order=hdiag,stage-fit=sweep,"
        "col-norm=range,act-order=true,shrink=0,cd-sweeps=0,refit=0,outliers=0,kmeans-iters=100,kmeans-points=0"};
    make_problem(w, h, d);
    for (int i = 0; i < 2; ++i) {
        rq_layer_info info = {.struct_size = sizeof info};
        assert_int_equal(rq_quantize_layer(q[i], NULL, NULL, NULL, NULL, w, h, d, M, N, options[i], &info), RQ_OK);
    }
    assert_memory_equal(q[0], q[1], sizeof q[0]);
}

static void mistakes_are_named(void **state) {
    (void)state;
    static float w[M * N], q[M * N];
    static double h[N * N], d[N * N];
    make_problem(w, h, d);
    assert_int_equal(rq_quantize_layer(q, NULL, NULL, NULL, NULL, w, h, d, M, N, "comp=magic", NULL), RQ_ERR_ARG);
    assert_string_equal(rq_last_error(), "no compensator 'magic'");
    assert_int_equal(rq_quantize_layer(q, NULL, NULL, NULL, NULL, w, h, NULL, M, N, "comp=gptaq,group=16", NULL),
                     RQ_ERR_ARG);
    assert_int_equal(rq_quantize_layer(q, NULL, NULL, NULL, NULL, w, h, d, M, N, "group=99", NULL), RQ_ERR_ARG);
    assert_int_equal(rq_quantize_layer(NULL, NULL, NULL, NULL, NULL, w, h, d, M, N, NULL, NULL), RQ_ERR_ARG);
    assert_true(rq_layer_groups(N, "bits=5") < 0);
    rq_model *m = NULL;
    assert_int_not_equal(rq_model_open(&m, "/no/such/model"), RQ_OK);
    assert_null(m);
    rq_model_close(NULL);
}

static void a_model_gives_logits(void **state) {
    (void)state;
    rq_model *m;
    int32_t ids[5] = {1, 2, 3, 4, 5};
    assert_int_equal(rq_model_open(&m, RQ_TEST_DIR "/golden/llama/tied"), RQ_OK);
    int64_t v = rq_model_n_vocab(m);
    float *logits = malloc((size_t)(5 * v) * sizeof *logits), *fewer = malloc((size_t)(3 * v) * sizeof *fewer);
    assert_int_equal(rq_model_logits(m, logits, ids, 5), RQ_OK);
    assert_int_equal(rq_model_logits(m, fewer, ids, 3), RQ_OK);
    for (int64_t i = 0; i < 3 * v; ++i) assert_true(fabsf(logits[i] - fewer[i]) < 1e-3f); /* causal */
    ids[2] = (int32_t)v;
    assert_int_equal(rq_model_logits(m, logits, ids, 5), RQ_ERR_INPUT);
    assert_true(rq_model_bpw(m) == 16 || rq_model_bpw(m) == 32);
    free(logits);
    free(fewer);
    rq_model_close(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_give_back_q),          cmocka_unit_test(codebooks_give_q),
        cmocka_unit_test(preset_vptq_is_its_options), cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(a_model_gives_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
