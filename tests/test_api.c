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

static const rq_layer_tensor *find(rq_layer_tensor t[20], const rq_layer *l, const char *name) {
    int n = rq_layer_count(l);
    assert_true(n <= 20);
    for (int i = 0; i < n; ++i) {
        t[i] = (rq_layer_tensor){.struct_size = sizeof t[i]};
        assert_int_equal(rq_layer_at(l, i, &t[i]), RQ_OK);
        if (strcmp(t[i].name, name) == 0) return &t[i];
    }
    return NULL;
}

/* Every rounder's tensors: q is rq_quantize_layer's, the grid's arrays are too, and the file's are there by name, dtype and shape. */
static void layers_have_tensors(void **state) {
    (void)state;
    static float w[M * N], q[M * N], scale[M * N];
    static double h[N * N], d[N * N];
    static uint8_t codes[M * N], zero[M * N];
    static int32_t g_idx[N];
    static const struct {
        const char *options, *entry, *absent;
        struct {
            const char *name, *dtype;
            int64_t shape[3];
        } has[3];
    } c[] = {
        {"group=20,bits=2,comp=gptq",
         "{\"format\":\"grid\",\"bits\":2,\"group\":20,\"sym\":false}",
         "weight_g_idx",
         {{"weight_packed", "I32", {M, 3}}, {"weight_scale", "F16", {M, 3}}, {"weight_zero_point", "I32", {1, 3}}}},
        {"group=0,bits=3,sym=true,scale-dtype=f32",
         "{\"format\":\"grid\",\"bits\":3,\"group\":48,\"sym\":true}",
         "weight_zero_point",
         {{"weight_packed", "I32", {M, 5}}, {"weight_scale", "F32", {M, 1}}, {"weight_shape", "I64", {2}}}},
        {"round=ssvq,vec-len=4,codes=20,outliers=2,outlier-min=0",
         "{\"format\":\"ssvq\",\"vec_len\":4,\"code_bits\":5,",
         "codes",
         {{"weight_codes", "I32", {M, 2}}, {"weight_book", "U8", {1, 20, 4}}, {"weight_outlier", "I8", {M, 2}}}},
        {"round=vq,vec-len=4,codes=16,codes2=16,vec-axis=out,comp=gptq",
         "{\"format\":\"vq\",\"vec_len\":4,\"vec_axis\":\"out\",",
         "weight_signs",
         {{"weight_codes2", "I32", {2, 6}}, {"weight_book2", "F16", {1, 16, 4}}, {"weight_shape", "I64", {2}}}},
        {"round=w4a8,group=32",
         "{\"format\":\"w4a8\",\"group\":32,",
         "zero",
         {{"weight_packed", "I32", {M, 6}}, {"weight_step", "U8", {M, 2}}, {"weight_scale", "F32", {M}}}}};
    make_problem(w, h, d);
    for (size_t k = 0; k < sizeof c / sizeof *c; ++k) {
        rq_layer_info info = {.struct_size = sizeof info}, same = info;
        rq_layer *l = NULL;
        rq_layer_tensor t[20];
        bool grid = k < 2;
        assert_int_equal(rq_layer_quantize(&l, w, h, d, M, N, c[k].options, &info), RQ_OK);
        assert_int_equal(rq_quantize_layer(q, grid ? codes : NULL, grid ? scale : NULL, grid ? zero : NULL,
                                           grid ? g_idx : NULL, w, h, d, M, N, c[k].options, &same),
                         RQ_OK);
        assert_true(info.bpw == same.bpw && info.loss_asym == same.loss_asym && info.n_dead == same.n_dead);
        assert_ptr_equal(strstr(rq_layer_entry(l), c[k].entry), rq_layer_entry(l));
        assert_null(find(t, l, c[k].absent));
        assert_memory_equal(find(t, l, "q")->data, q, sizeof q);
        if (grid) {
            size_t n_group = (size_t)(M * rq_layer_groups(N, c[k].options));
            assert_memory_equal(find(t, l, "codes")->data, codes, sizeof codes);
            assert_memory_equal(find(t, l, "scale")->data, scale, n_group * sizeof *scale);
            assert_memory_equal(find(t, l, "zero")->data, zero, n_group);
            assert_memory_equal(find(t, l, "g_idx")->data, g_idx, sizeof g_idx);
        }
        for (int i = 0; i < 3; ++i) {
            const rq_layer_tensor *has = find(t, l, c[k].has[i].name);
            assert_non_null(has);
            assert_string_equal(has->dtype, c[k].has[i].dtype);
            assert_memory_equal(has->shape, c[k].has[i].shape, sizeof has->shape);
            assert_true(has->data && has->rank == (has->shape[2] ? 3 : has->shape[1] ? 2 : 1));
        }
        assert_int_equal(rq_layer_at(l, rq_layer_count(l), t), RQ_ERR_ARG);
        assert_int_equal(rq_layer_at(l, -1, t), RQ_ERR_ARG);
        t->struct_size = 1;
        assert_int_equal(rq_layer_at(l, 0, t), RQ_ERR_ARG);
        rq_layer_free(l);
    }
    rq_layer *l = (rq_layer *)w;
    assert_int_equal(rq_layer_quantize(&l, w, h, NULL, M, N, "comp=gptaq,group=16", NULL), RQ_ERR_ARG);
    assert_null(l);
    assert_int_equal(rq_layer_quantize(NULL, w, h, d, M, N, NULL, NULL), RQ_ERR_ARG);
    rq_layer_free(NULL);
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
        cmocka_unit_test(codes_give_back_q),   cmocka_unit_test(codebooks_give_q),
        cmocka_unit_test(layers_have_tensors), cmocka_unit_test(preset_vptq_is_its_options),
        cmocka_unit_test(mistakes_are_named),  cmocka_unit_test(a_model_gives_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
