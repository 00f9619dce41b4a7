/* SPDX-License-Identifier: Apache-2.0 */
/* Opening what the quantizer writes: a rotated model gives the logits of the original; a packed one those of a dense model with
 * the same rounded weights; broken files are refused with a reason. The model is the golden one that has every bias. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "llama.h"

enum { MAX_TENSORS = 200, N_TOK = 80, N_VOCAB = 320, D = 64, BITS = 4, GROUP = 32 };

#define assert_ok(expr)                                                                                                \
    do {                                                                                                               \
        rq_status status_ = (expr);                                                                                    \
        if (status_ != RQ_OK) fail_msg("%s: %s", rq_status_text(status_), rq_last_error());                            \
    } while (0)

static char folder[256];
static int32_t ids[N_TOK];
static float golden_logits[N_TOK * N_VOCAB];
static double golden_scale;

/* A checkpoint in memory, as fp32. */
typedef struct weights {
    rq_store *s;
    rq_out_tensor tensor[MAX_TENSORS];
    char name[MAX_TENSORS][96];
    float *data[MAX_TENSORS];
    rq_packed_file packed[MAX_TENSORS];
    int n, n_packed;
} weights;

static void weights_read(weights *w) {
    char path[1024];
    memset(w, 0, sizeof *w);
    snprintf(path, sizeof path, "%s/golden/llama/linear", RQ_TEST_DIR);
    assert_ok(rq_store_open(&w->s, path));
    for (int64_t i = 0; i < rq_store_count(w->s); ++i) {
        const rq_tensor *t = rq_store_at(w->s, i);
        if (strchr(t->name, '.') == NULL) continue; /* golden.safetensors, should the folder show it */
        rq_out_tensor *o = &w->tensor[w->n];
        snprintf(w->name[w->n], sizeof w->name[0], "%s", t->name);
        w->data[w->n] = malloc((size_t)rq_tensor_numel(t) * sizeof(float));
        assert_non_null(w->data[w->n]);
        assert_ok(rq_tensor_f32(t, w->data[w->n]));
        *o = (rq_out_tensor){.name = w->name[w->n], .dtype = RQ_F32, .rank = t->rank, .fill = rq_fill_from_memory};
        memcpy(o->shape, t->shape, sizeof o->shape);
        o->arg = w->data[w->n++];
    }
}

static void weights_free(weights *w) {
    for (int i = 0; i < MAX_TENSORS; ++i) free(w->data[i]);
    for (int i = 0; i < w->n_packed; ++i) rq_packed_file_free(&w->packed[i]);
    rq_store_close(w->s);
}

static int weights_find(const weights *w, const char *name) {
    for (int i = 0; i < w->n; ++i) {
        if (strcmp(w->tensor[i].name, name) == 0) return i;
    }
    fail_msg("no tensor %s", name);
    return -1;
}

static void weights_remove(weights *w, const char *name) {
    int at = weights_find(w, name);
    memmove(&w->tensor[at], &w->tensor[at + 1], (size_t)(w->n - at - 1) * sizeof w->tensor[0]);
    --w->n; /* data stays in w->data and is freed with it; names of tensors do not move */
}

/* Write with this description and open; the caller checks the status. */
static rq_status write_and_open(const weights *w, const char *description, rq_model **m) {
    char path[1024], *config;
    int64_t n;
    const char *pairs[2] = {"requite", description};
    snprintf(path, sizeof path, "%s/golden/llama/linear/config.json", RQ_TEST_DIR);
    assert_ok(rq_read_file(path, 1 << 20, &config, &n));
    snprintf(path, sizeof path, "%s/config.json", folder);
    assert_ok(rq_write_file(path, config, n));
    free(config);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    assert_ok(rq_safetensors_write(path, w->tensor, w->n, pairs, description ? 1 : 0));
    return rq_model_open(m, folder);
}

static void run(const rq_model *m, float *logits) {
    static float x[N_TOK * D];
    assert_ok(rq_forward(m, x, ids, 2, N_TOK / 2));
    assert_ok(rq_logits(m, logits, x, N_TOK));
}

static double worst_diff(const float *a, const float *b) {
    double worst = 0;
    for (int64_t i = 0; i < (int64_t)N_TOK * N_VOCAB; ++i) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst)) worst = d;
    }
    return worst;
}

/* ---- rotation ------------------------------------------------------------------------------------------------------------ */

/* Gains of the blocks folded into the matrices that read the residual stream, which become W R; those that write it
 * become R^T W, their biases b R. Embedding, final norm and head stay. */
static void weights_rotate(weights *w, const rq_rotation *r) {
    char name[96];
    for (int layer = 0; layer < 2; ++layer) {
        for (int i = 0; i < RQ_N_LINEARS; ++i) {
            bool writes = i == RQ_O || i == RQ_DOWN;
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, rq_linear_suffix[i]);
            int at = weights_find(w, name);
            int64_t n_out = w->tensor[at].shape[0], n_in = w->tensor[at].shape[1];
            float *m = w->tensor[at].arg;
            if (writes) {
                float *column = malloc((size_t)n_out * sizeof *column);
                assert_non_null(column);
                for (int64_t c = 0; c < n_in; ++c) {
                    for (int64_t j = 0; j < n_out; ++j) column[j] = m[j * n_in + c];
                    assert_ok(rq_rotation_apply(r, column, 1, n_out, false));
                    for (int64_t j = 0; j < n_out; ++j) m[j * n_in + c] = column[j];
                }
                free(column);
                snprintf(name, sizeof name, "model.layers.%d.%s.bias", layer, rq_linear_suffix[i]);
                assert_ok(rq_rotation_apply(r, w->tensor[weights_find(w, name)].arg, 1, n_out, false));
                continue;
            }
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer,
                     i < RQ_O ? "input_layernorm" : "post_attention_layernorm");
            const float *gain = w->tensor[weights_find(w, name)].arg;
            for (int64_t j = 0; j < n_out; ++j) {
                for (int64_t c = 0; c < n_in; ++c) m[j * n_in + c] *= gain[c];
            }
            assert_ok(rq_rotation_apply(r, m, n_out, n_in, false));
        }
        for (int i = 0; i < 2; ++i) {
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer,
                     i ? "input_layernorm" : "post_attention_layernorm");
            float *gain = w->tensor[weights_find(w, name)].arg;
            for (int64_t c = 0; c < D; ++c) gain[c] = 1.0f;
        }
    }
}

static void test_rotated(void **state) {
    (void)state;
    static const char *const kinds[] = {"hadamard", "orthogonal"};
    static float logits[N_TOK * N_VOCAB];
    for (int i = 0; i < 2; ++i) {
        weights w;
        rq_rotation *r;
        rq_model *m;
        char description[256];
        weights_read(&w);
        assert_ok(rq_rotation_new(&r, D, 99, kinds[i]));
        weights_rotate(&w, r);
        snprintf(description, sizeof description,
                 "{\"version\":1,\"linears\":{},\"rotation\":{\"kind\":\"%s\",\"seed\":99,\"size\":%d}}", kinds[i], D);
        assert_ok(write_and_open(&w, description, &m));
        assert_non_null(m->rotation);
        assert_true(m->bpw == 32.0);
        run(m, logits);
        double worst = worst_diff(logits, golden_logits) / golden_scale;
        print_message("rotated by a %s matrix: largest difference %.2e of the largest logit\n", kinds[i], worst);
        assert_true(worst < 1e-5);

        rq_decode_state *s; /* and a token at a time */
        float last[N_VOCAB];
        assert_ok(rq_decode_new(&s, m, 8));
        for (int t = 0; t < 8; ++t) assert_ok(rq_decode(s, ids + t, 1, last));
        for (int v = 0; v < N_VOCAB; ++v) {
            assert_true(fabs((double)last[v] - (double)golden_logits[7 * N_VOCAB + v]) < 1e-5 * golden_scale);
        }
        rq_decode_free(s);
        rq_model_close(m);

        /* Without its rotation the file must not give the same: the test can fail. */
        assert_ok(write_and_open(&w, "{\"version\":1,\"linears\":{},\"rotation\":null}", &m));
        run(m, logits);
        assert_true(worst_diff(logits, golden_logits) > 0.1 * golden_scale);
        rq_model_close(m);
        rq_rotation_free(r);
        weights_free(&w);
    }
}

/* ---- packed codes ---------------------------------------------------------------------------------------------------------- */

/* Round to nearest on a symmetric grid; the dense copy gets what the codes mean. */
static void weights_pack(weights *packed, weights *dense, const char *linear) {
    char name[96];
    snprintf(name, sizeof name, "%s.weight", linear);
    int at = weights_find(dense, name);
    int64_t n_out = dense->tensor[at].shape[0], n_in = dense->tensor[at].shape[1], n_group = rq_ceil_div(n_in, GROUP);
    float *m = dense->tensor[at].arg, *scale = malloc((size_t)(n_out * n_group) * sizeof *scale);
    uint8_t *codes = malloc((size_t)(n_out * n_in));
    assert_true(scale && codes);
    for (int64_t i = 0; i < n_out; ++i) {
        for (int64_t g = 0; g < n_group; ++g) {
            int64_t end = rq_min_i64(n_in, (g + 1) * GROUP);
            float top = 0;
            for (int64_t c = g * GROUP; c < end; ++c) top = fmaxf(top, fabsf(m[i * n_in + c]));
            float s = scale[i * n_group + g] = rq_f32_of_f16(rq_f16_of_f32(top / 7.5f));
            for (int64_t c = g * GROUP; c < end; ++c) {
                int code = (int)lrintf(m[i * n_in + c] / s) + 8;
                code = code < 0 ? 0 : code > 15 ? 15 : code;
                codes[i * n_in + c] = (uint8_t)code;
                m[i * n_in + c] = s * (float)(code - 8);
            }
        }
    }
    rq_grid_codes q = {.n_out = n_out,
                       .n_in = n_in,
                       .group = GROUP,
                       .n_group = n_group,
                       .bits = BITS,
                       .scale_dtype = RQ_F16,
                       .codes = codes,
                       .scale = scale};
    rq_packed_file *f = &packed->packed[packed->n_packed++];
    assert_ok(rq_grid_pack_file(f, linear, &q));
    weights_remove(packed, name);
    for (int i = 0; i < f->n_tensors; ++i) packed->tensor[packed->n++] = f->tensor[i];
    free(codes);
    free(scale);
}

static char *describe_packed(bool with_embedding) {
    char *text = malloc(1 << 14);
    assert_non_null(text);
    size_t n = (size_t)sprintf(text, "{\"version\":1,\"linears\":{");
    for (int layer = 0; layer < 2; ++layer) {
        for (int i = 0; i < RQ_N_LINEARS; ++i) {
            n += (size_t)sprintf(text + n,
                                 "%s\"model.layers.%d.%s\":{\"format\":\"grid\",\"bits\":4,\"group\":32,\"sym\":true}",
                                 layer + i ? "," : "", layer, rq_linear_suffix[i]);
        }
    }
    if (with_embedding) {
        n += (size_t)sprintf(text + n,
                             ",\"model.embed_tokens\":{\"format\":\"grid\",\"bits\":4,\"group\":32,\"sym\":true}");
    }
    sprintf(text + n, "}}");
    return text;
}

static void pack_all(weights *packed, weights *dense, bool with_embedding) {
    char name[96];
    weights_read(packed);
    weights_read(dense);
    for (int layer = 0; layer < 2; ++layer) {
        for (int i = 0; i < RQ_N_LINEARS; ++i) {
            snprintf(name, sizeof name, "model.layers.%d.%s", layer, rq_linear_suffix[i]);
            weights_pack(packed, dense, name);
        }
    }
    if (with_embedding) weights_pack(packed, dense, "model.embed_tokens");
}

static void test_packed(void **state) {
    (void)state;
    static float logits[N_TOK * N_VOCAB], expect[N_TOK * N_VOCAB];
    for (int with_embedding = 0; with_embedding < 2; ++with_embedding) {
        weights packed, dense;
        rq_model *m;
        pack_all(&packed, &dense, with_embedding);
        char *description = describe_packed(with_embedding);
        assert_ok(write_and_open(&dense, NULL, &m));
        run(m, expect);
        rq_model_close(m);
        assert_ok(write_and_open(&packed, description, &m));
        run(m, logits);
        double worst = worst_diff(logits, expect) / golden_scale;
        print_message("packed: largest difference from the same weights dense %.2e\n", worst);
        assert_true(worst < 1e-5);
        assert_true(worst_diff(logits, golden_logits) > 0.001 * golden_scale); /* it was rounded */
        assert_int_equal(m->n_packed, 14 + with_embedding);
        assert_true(fabs(m->bpw - (BITS + 16.0 / GROUP)) < 0.1);
        assert_true((m->embed.packed != NULL) == (with_embedding != 0) && m->head.packed == m->embed.packed);
        rq_model_close(m);
        free(description);
        weights_free(&packed);
        weights_free(&dense);
    }
}

/* ---- sign-split vectors ------------------------------------------------------------------------------------------------ */

/* Every vector of 8 gets the one magnitude nearest to its mean, and its signs; the dense copy gets what that means. The
 * codebook is stored with the first matrix of those that share an input. Returns the matrix's entry of the metadata. */
static char *weights_pack_ssvq(weights *packed, weights *dense, const char *linear, const char *book, int book_users) {
    enum { N_CODES = 16 };
    uint8_t magnitude[N_CODES * 8];
    const float book_scale = 1.0f / 16;
    char name[128], *entry;
    snprintf(name, sizeof name, "%s.weight", linear);
    int at = weights_find(dense, name);
    int64_t n_out = dense->tensor[at].shape[0], n_in = dense->tensor[at].shape[1], n_vec = n_in / 8;
    float *m = dense->tensor[at].arg, *scale = malloc((size_t)n_out * sizeof *scale);
    uint16_t *codes = malloc((size_t)(n_out * n_vec) * sizeof *codes);
    uint8_t *negative = malloc((size_t)(n_out * n_in));
    assert_true(n_in % 8 == 0 && scale && codes && negative);
    for (int i = 0; i < N_CODES * 8; ++i) magnitude[i] = (uint8_t)(i / 8 * 16 + 8);
    for (int64_t i = 0; i < n_out; ++i) {
        float top = 0;
        for (int64_t j = 0; j < n_in; ++j) top = fmaxf(top, fabsf(m[i * n_in + j]));
        scale[i] = rq_f32_of_f16(rq_f16_of_f32(top / 15.5f));
        for (int64_t v = 0; v < n_vec; ++v) {
            float mean = 0;
            for (int64_t j = v * 8; j < v * 8 + 8; ++j) {
                mean += fabsf(m[i * n_in + j]) / 8;
                negative[i * n_in + j] = m[i * n_in + j] < 0;
            }
            codes[i * n_vec + v] = (uint16_t)fminf(15.0f, fmaxf(0.0f, rintf(mean / scale[i] - 0.5f)));
        }
    }
    rq_ssvq_codes q = {.n_out = n_out,
                       .n_in = n_in,
                       .vec_len = 8,
                       .code_bits = 4,
                       .n_codes = N_CODES,
                       .book_cols = n_in,
                       .group = n_in,
                       .codes = codes,
                       .negative = negative,
                       .book_u8 = magnitude,
                       .book_scale = &book_scale,
                       .scale = scale,
                       .book = book,
                       .book_users = book_users};
    rq_packed p;
    assert_ok(rq_ssvq_pack(&p, &q));
    for (int64_t i = 0; i < n_out; ++i) rq_unpack_row(&p, i, m + i * n_in);
    rq_packed_free(&p);
    rq_packed_file *f = &packed->packed[packed->n_packed++];
    assert_ok(rq_ssvq_pack_file(f, &entry, linear, &q));
    weights_remove(packed, name);
    assert_true(packed->n + f->n_tensors <= MAX_TENSORS);
    for (int i = 0; i < f->n_tensors; ++i) packed->tensor[packed->n++] = f->tensor[i];
    free(codes), free(negative), free(scale);
    return entry;
}

static void test_ssvq(void **state) {
    (void)state;
    static float logits[N_TOK * N_VOCAB], expect[N_TOK * N_VOCAB];
    static const int first[RQ_N_LINEARS] = {0, 0, 0, 3, 4, 4, 6}, users[RQ_N_LINEARS] = {3, 3, 3, 1, 2, 2, 1};
    weights packed, dense;
    rq_model *m;
    char *description = malloc(1 << 14), name[96], book[96];
    assert_non_null(description);
    size_t n = (size_t)sprintf(description, "{\"version\":1,\"linears\":{");
    weights_read(&packed);
    weights_read(&dense);
    for (int i = 0; i < 2 * RQ_N_LINEARS; ++i) {
        int layer = i / RQ_N_LINEARS, l = i % RQ_N_LINEARS;
        snprintf(name, sizeof name, "model.layers.%d.%s", layer, rq_linear_suffix[l]);
        snprintf(book, sizeof book, "model.layers.%d.%s", layer, rq_linear_suffix[first[l]]);
        char *entry = weights_pack_ssvq(&packed, &dense, name, book, users[l]);
        n += (size_t)sprintf(description + n, "%s\"%s\":%s", i ? "," : "", name, entry);
        free(entry);
    }
    sprintf(description + n, "}}");
    assert_ok(write_and_open(&dense, NULL, &m));
    run(m, expect);
    rq_model_close(m);
    assert_ok(write_and_open(&packed, description, &m));
    run(m, logits);
    double worst = worst_diff(logits, expect) / golden_scale;
    print_message("ssvq: largest difference from the same weights dense %.2e, %.3f bits a weight\n", worst, m->bpw);
    assert_true(worst < 1e-5);
    assert_true(worst_diff(logits, golden_logits) > 0.001 * golden_scale);
    assert_int_equal(m->n_packed, 14);
    assert_true(m->bpw > 1.5 && m->bpw < 2.2); /* a code of 4 bits and 8 signs for 8 weights, and what goes with them */
    rq_decode_state *d;                        /* and a token at a time: the gemv kernels */
    float last[N_VOCAB];
    assert_ok(rq_decode_new(&d, m, 8));
    for (int t = 0; t < 8; ++t) assert_ok(rq_decode(d, ids + t, 1, last));
    for (int v = 0; v < N_VOCAB; ++v) {
        assert_true(fabs((double)last[v] - (double)expect[7 * N_VOCAB + v]) < 1e-5 * golden_scale);
    }
    rq_decode_free(d);
    rq_model_close(m);
    char *users_at = strstr(description, "\"book_users\":3");
    assert_non_null(users_at);
    users_at[13] = '9';
    assert_int_equal(write_and_open(&packed, description, &m), RQ_ERR_INPUT);
    assert_non_null(strstr(rq_last_error(), "codebook"));
    free(description);
    weights_free(&packed);
    weights_free(&dense);
}

/* ---- refusals ----------------------------------------------------------------------------------------------------------- */

static void refuse(const weights *w, const char *description, rq_status expect, const char *reason) {
    rq_model *m = NULL;
    rq_status status = write_and_open(w, description, &m);
    if (status != expect || !strstr(rq_last_error(), reason)) {
        fail_msg("%s: status %d (%s), reason wanted: %s", description ? description : "", status, rq_last_error(),
                 reason);
    }
    assert_null(m);
}

static void test_refusals(void **state) {
    (void)state;
    weights packed, dense, extra;
    pack_all(&packed, &dense, false);
    char *description = describe_packed(false);
    refuse(&packed, NULL, RQ_ERR_INPUT, "model.layers.0.self_attn.q_proj");
    refuse(&packed, "{\"version\":1", RQ_ERR_INPUT, "not JSON");
    refuse(&packed, "{\"linears\":{}}", RQ_ERR_INPUT, "version");
    refuse(&packed, "{\"version\":2,\"linears\":{}}", RQ_ERR_UNSUPPORTED, "version 2");
    refuse(&packed, "{\"version\":1}", RQ_ERR_INPUT, "linears");
    refuse(&packed, "{\"version\":1,\"linears\":{}}", RQ_ERR_INPUT, "model.layers.0.self_attn.q_proj");
    char *format = strstr(description, "grid");
    memcpy(format, "gird", 4);
    refuse(&packed, description, RQ_ERR_UNSUPPORTED, "gird");
    memcpy(format, "grid", 4);
    char *bits = strstr(description, "\"bits\":4");
    bits[7] = '8'; /* says 8 bits, the tensor holds 4 */
    refuse(&packed, description, RQ_ERR_INPUT, "q_proj");
    refuse(&dense, "{\"version\":1,\"linears\":{},\"rotation\":{\"kind\":\"hadamard\",\"seed\":1,\"size\":128}}",
           RQ_ERR_INPUT, "128");
    refuse(&dense, "{\"version\":1,\"linears\":{},\"rotation\":{\"kind\":\"spin\",\"seed\":1,\"size\":64}}", RQ_ERR_ARG,
           "spin");
    refuse(&dense, "{\"version\":1,\"linears\":{},\"rotation\":{\"seed\":1,\"size\":64}}", RQ_ERR_INPUT, "kind");

    weights_read(&extra);
    ((float *)extra.tensor[weights_find(&extra, "model.norm.weight")].arg)[3] = NAN;
    refuse(&extra, NULL, RQ_ERR_INPUT, "model.norm.weight");
    weights_free(&extra);
    weights_read(&extra);
    weights_remove(&extra, "model.layers.1.mlp.down_proj.bias");
    refuse(&extra, NULL, RQ_ERR_INPUT, "model.layers.1.mlp.down_proj.bias");
    weights_free(&extra);
    free(description);
    weights_free(&packed);
    weights_free(&dense);
}

static int set_up(void **state) {
    (void)state;
    char path[1024];
    const char *tmp = getenv("TMPDIR");
    rq_store *s;
    snprintf(folder, sizeof folder, "%.200s/rq_llama_XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(folder)) return 1;
    snprintf(path, sizeof path, "%s/golden/llama/linear/golden.safetensors", RQ_TEST_DIR);
    if (rq_store_open(&s, path) != RQ_OK) return 1;
    memcpy(ids, rq_store_find(s, "ids")->data, sizeof ids);
    if (rq_tensor_f32(rq_store_find(s, "logits"), golden_logits) != RQ_OK) return 1;
    for (int i = 0; i < N_TOK * N_VOCAB; ++i) golden_scale = fmax(golden_scale, fabs((double)golden_logits[i]));
    rq_store_close(s);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    char path[1024];
    static const char *const files[] = {"config.json", "model.safetensors"};
    for (int i = 0; i < 2; ++i) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        unlink(path);
    }
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rotated), cmocka_unit_test(test_packed),
                                       cmocka_unit_test(test_ssvq), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
