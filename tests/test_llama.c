/* SPDX-License-Identifier: Apache-2.0 */
/* The forward pass against `transformers` on tiny random models of each kind (tests/golden/llama, written by
 * make_llama_golden.py): logits, greedy continuation; cache against whole sequences; batch against single; thread counts;
 * the row operations in all their builds against fp64. RQ_SMOLLM2=path of the SmolLM2-135M-Instruct GGUF adds known
 * perplexities of a real model (RQ_SMOLLM2_IDS: folder with the id files they are of). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "backend.h"
#include "eval.h"
#include "llama.h"
#include "llama_math.h"
#include "random.h"

static const char *const cases[] = {"tied", "llama3", "linear", "qwen2", "mistral"};
enum { N_CASES = sizeof cases / sizeof *cases, N_SEQ = 2, SEQ = 40, PROMPT = 8, GREEDY = 12 };

#define assert_ok(expr)                                                                                                \
    do {                                                                                                               \
        rq_status status_ = (expr);                                                                                    \
        if (status_ != RQ_OK) fail_msg("%s: %s", rq_status_text(status_), rq_last_error());                            \
    } while (0)

typedef struct golden {
    rq_model *m;
    rq_store *s;
    int32_t ids[N_SEQ * SEQ], prompt[PROMPT], greedy[GREEDY];
    float *logits; /* [N_SEQ * SEQ][n_vocab] */
    double scale;  /* largest of them */
} golden;

static void read_i32(const rq_store *s, const char *name, int32_t *dst, int64_t n) {
    const rq_tensor *t = rq_store_find(s, name);
    assert_non_null(t);
    assert_int_equal(t->dtype, RQ_I32);
    assert_int_equal(rq_tensor_numel(t), n);
    memcpy(dst, t->data, (size_t)n * sizeof *dst);
}

static void golden_open(golden *g, const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/golden/llama/%s", RQ_TEST_DIR, name);
    assert_ok(rq_model_open(&g->m, path));
    snprintf(path, sizeof path, "%s/golden/llama/%s/golden.safetensors", RQ_TEST_DIR, name);
    assert_ok(rq_store_open(&g->s, path));
    read_i32(g->s, "ids", g->ids, N_SEQ * SEQ);
    read_i32(g->s, "prompt", g->prompt, PROMPT);
    read_i32(g->s, "greedy", g->greedy, GREEDY);
    int64_t n = N_SEQ * SEQ * g->m->cfg.n_vocab;
    g->logits = malloc((size_t)n * sizeof *g->logits);
    assert_non_null(g->logits);
    assert_int_equal(rq_tensor_numel(rq_store_find(g->s, "logits")), n);
    assert_ok(rq_tensor_f32(rq_store_find(g->s, "logits"), g->logits));
    g->scale = 0;
    for (int64_t i = 0; i < n; ++i) g->scale = fmax(g->scale, fabs((double)g->logits[i]));
}

static void golden_close(golden *g) {
    rq_model_close(g->m);
    rq_store_close(g->s);
    free(g->logits);
}

static double worst_diff(const float *a, const float *b, int64_t n) {
    double worst = 0;
    for (int64_t i = 0; i < n; ++i) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst)) worst = d; /* a NaN stays */
    }
    return worst;
}

/* Logits of whole sequences: [n_seq * seq_len][n_vocab], to be freed. */
static float *logits_of(const rq_model *m, const int32_t *ids, int64_t n_seq, int64_t seq_len) {
    int64_t n = n_seq * seq_len;
    float *x = malloc((size_t)(n * m->cfg.d_model) * sizeof *x);
    float *logits = malloc((size_t)(n * m->cfg.n_vocab) * sizeof *logits);
    assert_true(x && logits);
    assert_ok(rq_forward(m, x, ids, n_seq, seq_len));
    assert_ok(rq_logits(m, logits, x, n));
    free(x);
    return logits;
}

static void test_logits(void **state) {
    (void)state;
    for (int i = 0; i < N_CASES; ++i) {
        golden g;
        golden_open(&g, cases[i]);
        float *logits = logits_of(g.m, g.ids, N_SEQ, SEQ);
        double worst = worst_diff(logits, g.logits, N_SEQ * SEQ * g.m->cfg.n_vocab) / g.scale;
        print_message("%-8s largest difference %.2e of the largest logit\n", cases[i], worst);
        assert_true(worst < 1e-5);
        assert_true(fabs(g.m->bpw - 16.0) < 1e-12); /* BF16 */
        free(logits);
        golden_close(&g);
    }
}

/* A sequence alone, and a prefix of it, give the bits that they give in a batch. */
static void test_batch(void **state) {
    (void)state;
    golden g;
    golden_open(&g, "llama3");
    int64_t v = g.m->cfg.n_vocab;
    float *both = logits_of(g.m, g.ids, N_SEQ, SEQ);
    for (int i = 0; i < N_SEQ; ++i) {
        float *one = logits_of(g.m, g.ids + i * SEQ, 1, SEQ);
        assert_true(worst_diff(one, both + i * SEQ * v, SEQ * v) < 1e-5 * g.scale);
        free(one);
    }
    float *prefix = logits_of(g.m, g.ids, 1, 3);
    assert_true(worst_diff(prefix, both, 3 * v) < 1e-5 * g.scale);
    free(prefix);
    free(both);
    golden_close(&g);
}

static void test_threads(void **state) {
    (void)state;
    golden g;
    golden_open(&g, "qwen2");
    size_t bytes = (size_t)(N_SEQ * SEQ * g.m->cfg.n_vocab) * sizeof(float);
    rq_set_threads(1);
    float *one = logits_of(g.m, g.ids, N_SEQ, SEQ);
    for (int n = 2; n <= 5; ++n) {
        rq_set_threads(n);
        float *many = logits_of(g.m, g.ids, N_SEQ, SEQ);
        assert_memory_equal(one, many, bytes);
        free(many);
    }
    rq_set_threads(0);
    free(one);
    golden_close(&g);
}

/* Long enough that attention cuts its queries into blocks; the ids go round. */
static void test_long_decode(void **state) {
    (void)state;
    enum { LONG = 300 };
    golden g;
    golden_open(&g, "llama3");
    int64_t v = g.m->cfg.n_vocab;
    int32_t ids[LONG];
    for (int i = 0; i < LONG; ++i) ids[i] = g.ids[i * 7 % (N_SEQ * SEQ)];
    float *whole = logits_of(g.m, ids, 1, LONG), *last = malloc((size_t)v * sizeof *last);
    assert_non_null(last);
    rq_decode_state *s;
    assert_ok(rq_decode_new(&s, g.m, LONG));
    static const int64_t steps[] = {1, 2, 5, 1, 131, 3, 4, 100, 1, 52}; /* 300 together */
    int64_t pos = 0;
    for (int round = 0; round < 2; ++round) {
        pos = 0;
        for (size_t i = 0; i < sizeof steps / sizeof *steps; ++i) {
            assert_ok(rq_decode(s, ids + pos, steps[i], last));
            pos += steps[i];
            assert_int_equal(rq_decode_pos(s), pos);
            assert_true(worst_diff(last, whole + (pos - 1) * v, v) < 1e-5 * g.scale);
        }
        assert_int_equal(rq_decode(s, ids, 1, last), RQ_ERR_ARG); /* full */
        assert_int_equal(rq_decode_pos(s), LONG);
        rq_decode_reset(s);
    }
    rq_decode_free(s);
    free(last);
    free(whole);
    golden_close(&g);
}

static void test_bad_ids(void **state) {
    (void)state;
    golden g;
    golden_open(&g, "tied");
    float x[2 * 64], logits[320];
    int32_t ids[2] = {5, 320};
    assert_int_equal(rq_embed(g.m, x, ids, 2), RQ_ERR_INPUT);
    assert_non_null(strstr(rq_last_error(), "320"));
    ids[1] = -1;
    assert_int_equal(rq_forward(g.m, x, ids, 1, 2), RQ_ERR_INPUT);
    assert_int_equal(rq_forward(g.m, x, ids, 0, 2), RQ_ERR_ARG);
    rq_decode_state *s;
    assert_ok(rq_decode_new(&s, g.m, 4));
    assert_int_equal(rq_decode(s, ids, 2, logits), RQ_ERR_INPUT);
    assert_int_equal(rq_decode_pos(s), 0); /* and the good one before it is forgotten */
    rq_decode_free(s);
    assert_int_equal(rq_decode_new(&s, g.m, 0), RQ_ERR_ARG);
    golden_close(&g);
}

/* ---- evaluation -------------------------------------------------------------------------------------------------------- */

typedef struct progress_log {
    int n_calls;
    int64_t last;
    bool stop;
} progress_log;

static bool on_progress(void *user, int64_t done, int64_t n, double nll) {
    progress_log *log = user;
    ++log->n_calls;
    assert_true(done > log->last && done <= n && nll > 0);
    log->last = done;
    return !log->stop;
}

/* The definition, in fp64 from whole rows of golden logits. */
static void define_eval(const golden *g, const golden *ref, double *nll, double *kl, double *same) {
    int64_t v = g->m->cfg.n_vocab;
    *nll = *kl = *same = 0;
    for (int64_t t = 0; t < N_SEQ * SEQ; ++t) {
        const float *x = g->logits + t * v, *r = ref->logits + t * v;
        double sx = 0, sr = 0, d = 0;
        int64_t bx = 0, br = 0;
        for (int64_t i = 0; i < v; ++i) {
            sx += exp((double)x[i]);
            sr += exp((double)r[i]);
            if (x[i] > x[bx]) bx = i;
            if (r[i] > r[br]) br = i;
        }
        for (int64_t i = 0; i < v; ++i) {
            double lr = (double)r[i] - log(sr), lx = (double)x[i] - log(sx);
            d += exp(lr) * (lr - lx);
        }
        *kl += d / (N_SEQ * SEQ);
        *same += (bx == br) / (double)(N_SEQ * SEQ);
        if (t % SEQ + 1 < SEQ) *nll += (log(sx) - (double)x[g->ids[t + 1]]) / (N_SEQ * (SEQ - 1));
    }
}

static void test_eval(void **state) {
    (void)state;
    golden g, ref;
    golden_open(&g, "tied");
    golden_open(&ref, "mistral"); /* its logits on its own ids are no reference for g's: run it on g's */
    float *logits = logits_of(ref.m, g.ids, N_SEQ, SEQ);
    memcpy(ref.logits, logits, (size_t)(N_SEQ * SEQ * g.m->cfg.n_vocab) * sizeof *logits);
    free(logits);
    double nll, kl, same, window_nll[N_SEQ], window_kl[N_SEQ];
    define_eval(&g, &ref, &nll, &kl, &same);

    rq_eval_result a, b;
    progress_log log = {0};
    rq_eval_opt opt = {.progress = on_progress, .user = &log, .window_nll = window_nll, .window_kl = window_kl};
    assert_ok(rq_eval(g.m, ref.m, g.ids, N_SEQ, SEQ, &opt, &a));
    assert_true(fabs(a.nll - nll) < 1e-5 * nll && fabs(a.ppl - exp(nll)) < 1e-4 * a.ppl);
    assert_true(a.has_ref && fabs(a.kl - kl) < 1e-5 * kl && fabs(a.top1_frac - same) < 1e-9);
    assert_true(fabs((window_nll[0] + window_nll[1]) / 2 - a.nll) < 1e-12);
    assert_true(fabs(fabs(window_kl[0] - window_kl[1]) / 2 - a.kl_stderr) < 1e-12);
    assert_true(log.n_calls == 1 && log.last == N_SEQ);

    /* The vocabulary in several tiles: maxima move from tile to tile and the sums follow. */
    for (int64_t tile = 1; tile < 320; tile = tile * 3 + 4) {
        rq_eval_opt tiles = {.tile_rows = tile};
        assert_ok(rq_eval(g.m, ref.m, g.ids, N_SEQ, SEQ, &tiles, &b));
        assert_true(fabs(b.nll - nll) < 1e-5 * nll && fabs(b.kl - kl) < 1e-5 * kl && b.top1_frac == a.top1_frac);
    }

    rq_eval_ref *kept;
    assert_ok(rq_eval_ref_new(&kept, ref.m, g.ids, N_SEQ, SEQ));
    assert_ok(rq_eval_with(g.m, kept, NULL, &b));
    assert_true(a.kl == b.kl && a.nll == b.nll && a.ref_nll == b.ref_nll && a.top1_frac == b.top1_frac);
    assert_ok(rq_eval_with(ref.m, kept, NULL, &b)); /* a model against itself */
    assert_true(b.kl == 0.0 && b.top1_frac == 1.0 && b.nll == b.ref_nll);
    rq_set_threads(3);
    assert_ok(rq_eval(g.m, NULL, g.ids, N_SEQ, SEQ, NULL, &b));
    rq_set_threads(0);
    assert_true(!b.has_ref && b.nll == a.nll);

    log = (progress_log){.stop = true};
    assert_int_equal(rq_eval(g.m, NULL, g.ids, N_SEQ, SEQ, &opt, &b), RQ_ERR_CANCELLED);
    assert_int_equal(rq_eval(g.m, NULL, g.ids, N_SEQ, 1, NULL, &b), RQ_ERR_ARG);
    assert_int_equal(rq_eval(g.m, NULL, g.ids, 1, 257, NULL, &b), RQ_ERR_ARG); /* past max_position_embeddings */
    rq_eval_ref_free(kept);
    golden_close(&ref);
    golden_close(&g);
}

typedef struct token_log {
    int32_t ids[64];
    int64_t n, stop_at;
} token_log;

static bool on_token(void *user, int32_t id, const char *piece, int64_t n_bytes) {
    token_log *log = user;
    assert_true(piece && n_bytes == 0); /* there is no tokenizer */
    log->ids[log->n++] = id;
    return log->n != log->stop_at;
}

static void test_generate(void **state) {
    (void)state;
    for (int i = 0; i < N_CASES; ++i) {
        golden g;
        int32_t ids[GREEDY];
        token_log log = {0};
        rq_generate_opt opt = {.max_tokens = GREEDY, .on_token = on_token, .user = &log};
        rq_generate_result r;
        golden_open(&g, cases[i]);
        assert_ok(rq_generate(g.m, ids, g.prompt, PROMPT, &opt, &r));
        assert_int_equal(r.n_new, GREEDY);
        assert_memory_equal(ids, g.greedy, sizeof ids);
        assert_memory_equal(log.ids, g.greedy, sizeof ids);
        assert_false(r.hit_eos);

        g.m->cfg.eos_id[0] = g.greedy[5]; /* as if this were the end token */
        g.m->cfg.n_eos = 1;
        log.n = 0;
        assert_ok(rq_generate(g.m, ids, g.prompt, PROMPT, &opt, &r));
        assert_true(r.hit_eos && r.n_new <= 5);
        opt.ignore_eos = true;
        log = (token_log){.stop_at = 4};
        assert_int_equal(rq_generate(g.m, ids, g.prompt, PROMPT, &opt, &r), RQ_ERR_CANCELLED);
        assert_int_equal(r.n_new, 4);
        opt.max_tokens = 249; /* 257 positions of 256 */
        assert_int_equal(rq_generate(g.m, ids, g.prompt, PROMPT, &opt, &r), RQ_ERR_ARG);
        golden_close(&g);
    }
}

/* Sampled first tokens follow softmax(logits / temperature): counts against probabilities, five standard deviations. */
static void test_sampling(void **state) {
    (void)state;
    enum { DRAWS = 2000, N_VOCAB = 320 };
    golden g;
    golden_open(&g, "llama3");
    static int count[N_VOCAB];
    memset(count, 0, sizeof count);
    int32_t id, again;
    rq_generate_result r;
    rq_generate_opt opt = {.max_tokens = 1, .temperature = 1.5, .ignore_eos = true};
    for (int i = 0; i < DRAWS; ++i) {
        opt.seed = (uint64_t)i;
        assert_ok(rq_generate(g.m, &id, g.prompt, 1, &opt, &r));
        ++count[id];
    }
    assert_ok(rq_generate(g.m, &again, g.prompt, 1, &opt, &r));
    assert_int_equal(id, again); /* same seed, same token */
    double sum = 0;
    for (int i = 0; i < N_VOCAB; ++i) sum += exp((double)g.logits[i] / 1.5); /* the prompt begins sequence 0 */
    for (int i = 0; i < N_VOCAB; ++i) {
        double p = exp((double)g.logits[i] / 1.5) / sum;
        assert_true(fabs(count[i] - DRAWS * p) < 5 * sqrt(DRAWS * p) + 1);
    }
    golden_close(&g);
}

/* Perplexities of a real model, known from an independent implementation. */
static void test_smollm2(void **state) {
    (void)state;
    const char *path = getenv("RQ_SMOLLM2"), *folder = getenv("RQ_SMOLLM2_IDS");
    if (!path || !folder) {
        print_message("skipped: RQ_SMOLLM2 (the GGUF) and RQ_SMOLLM2_IDS (the folder of id files) are not set\n");
        skip();
    }
    static const struct {
        const char *file;
        int64_t n;
        double ppl, tolerance;
    } text[] = {{"wiki16x512.ids.safetensors", 16, 36.0023, 1e-3}, {"jargon8x512.ids.safetensors", 8, 54.187, 2e-3}};
    rq_model *m;
    assert_ok(rq_model_open(&m, path));
    for (int i = 0; i < 2; ++i) {
        char name[1024];
        rq_store *s;
        rq_eval_result r;
        int32_t *ids = malloc((size_t)text[i].n * 512 * sizeof *ids);
        double nll[16];
        rq_eval_opt opt = {.window_nll = nll};
        assert_non_null(ids);
        snprintf(name, sizeof name, "%s/%s", folder, text[i].file);
        assert_ok(rq_store_open(&s, name));
        assert_int_equal(rq_store_count(s), 1);
        read_i32(s, rq_store_at(s, 0)->name, ids, text[i].n * 512);
        assert_ok(rq_eval(m, NULL, ids, text[i].n, 512, &opt, &r));
        print_message("%s: perplexity %.4f, first window %.5f, %.1f s\n", text[i].file, r.ppl, nll[0], r.seconds);
        assert_true(fabs(r.ppl - text[i].ppl) < text[i].tolerance);
        if (i == 0) {
            assert_true(fabs(nll[0] - 3.04336) < 2e-5);
            rq_generate_opt gen = {.max_tokens = 64, .ignore_eos = true};
            rq_generate_result g;
            int32_t out[64];
            assert_ok(rq_generate(m, out, ids, 128, &gen, &g));
            print_message("prefill %.0f tokens/s, decode %.1f tokens/s\n", g.prefill_tok_s, g.decode_tok_s);
        }
        rq_store_close(s);
        free(ids);
    }
    rq_model_close(m);
}

/* ---- row operations ---------------------------------------------------------------------------------------------------- */

static int math_tables(const rq_llama_math **table) {
    int n = 0;
    table[n++] = &rq_llama_math_plain;
#ifdef RQ_LLAMA_MATH_X86
    if (__builtin_cpu_supports("avx2")) table[n++] = &rq_llama_math_avx2;
    if (rq_llama_math_get() == &rq_llama_math_avx512) table[n++] = &rq_llama_math_avx512;
#endif
    return n;
}

static void test_exp(void **state) {
    (void)state;
    const rq_llama_math *table[3];
    for (int n = math_tables(table), t = 0; t < n; ++t) {
        double worst = 0;
        for (int i = 0; i < 400000; ++i) {
            float x = (float)(-87.0 + 175.0 * i / 400000.0), y;
            table[t]->exp(&y, &x, 1);
            double e = exp((double)x), ulp = ldexp(1.0, ilogb(e) - 23);
            worst = fmax(worst, fabs((double)y - e) / ulp);
        }
        print_message("exp %-7s %.2f units in the last place\n", table[t]->name, worst);
        assert_true(worst < 2.0);
        float edge[8] = {0.0f, -INFINITY, INFINITY, NAN, -104.5f, 89.5f, -95.0f, -0.0f}, out[8];
        table[t]->exp(out, edge, 8);
        assert_true(out[0] == 1.0f && out[1] == 0.0f && out[2] == INFINITY && isnan(out[3]));
        assert_true(out[4] == 0.0f && out[5] == INFINITY && out[7] == 1.0f);
        assert_true(fabs((double)out[6] / exp(-95.0) - 1.0) < 1e-3); /* subnormal, not flushed */
    }
}

static void test_rows(void **state) {
    (void)state;
    enum { N = 531 };
    float a[N], b[N], out[N], first[6 * N];
    const rq_llama_math *table[3];
    for (int i = 0; i < N; ++i) {
        a[i] = (float)(12.0 * (rq_random_unit(1, (uint64_t)i) - 0.5));
        b[i] = (float)(12.0 * (rq_random_unit(2, (uint64_t)i) - 0.5));
    }
    for (int n_tables = math_tables(table), t = 0; t < n_tables; ++t) {
        const rq_llama_math *f = table[t];
        for (int n = 1; n <= N; n = n < 70 ? n + 1 : n + 123) {
            double top = -INFINITY, sum = 0, cross = 0, square = 0, dot = 0, sum_abs = 0, got_cross = 0.25;
            for (int i = 0; i < n; ++i) top = fmax(top, (double)a[i]);
            for (int i = 0; i < n; ++i) {
                double e = exp((double)a[i] - top);
                sum += e;
                cross += e * ((double)a[i] - (double)b[i]);
                square += (double)a[i] * (double)a[i];
                dot += (double)a[i] * (double)b[i];
                sum_abs += fabs((double)a[i] * (double)b[i]);
            }
            assert_true((double)f->max(a, n) == top);
            assert_true(fabs(f->sum_exp(a, n, (float)top) / sum - 1) < 1e-6);
            assert_true(fabs(f->sum_exp_cross(a, b, n, (float)top, &got_cross) / sum - 1) < 1e-6);
            assert_true(fabs(got_cross - 0.25 - cross) < 1e-5 * sum * 12);
            assert_true(fabs((double)f->dot(a, b, n) - dot) < 1e-6 * sum_abs);
            memcpy(out, a, sizeof a);
            double total = (double)f->softmax(out, n, 0.5f), expect_total = 0;
            for (int i = 0; i < n; ++i) {
                double e = exp(0.5 * ((double)a[i] - top));
                expect_total += e;
                assert_true(fabs((double)out[i] - e) < 1e-6 * e);
            }
            assert_true(fabs(total / expect_total - 1) < 1e-6);
            f->rmsnorm(out, a, b, n, 1e-5f);
            for (int i = 0; i < n; ++i) {
                double e = (double)a[i] / sqrt(square / n + 1e-5) * (double)b[i];
                assert_true(fabs((double)out[i] - e) <= 1e-6 * fabs(e));
            }
            f->swiglu(out, a, b, n);
            for (int i = 0; i < n; ++i) {
                double e = (double)a[i] / (1.0 + exp(-(double)a[i])) * (double)b[i];
                assert_true(fabs((double)out[i] - e) <= 1e-6 * fabs(e));
            }
            memcpy(out, b, sizeof b);
            f->axpy(out, 0.5f, a, n);
            f->scale(out, 2.0f, n);
            for (int i = 0; i < n; ++i) {
                assert_true(fabs((double)out[i] - 2 * (0.5 * (double)a[i] + (double)b[i])) < 1e-5);
            }
            for (int i = n; i < N; ++i) assert_true(out[i] == b[i]); /* nothing past the end */
        }
        /* The builds agree to the bit. */
        float bits[6 * N];
        memset(bits, 0, sizeof bits);
        f->exp(bits, a, N);
        memcpy(bits + N, a, sizeof a);
        bits[2 * N] = f->softmax(bits + N, N, 0.3f);
        f->rmsnorm(bits + 3 * N, a, b, N, 1e-5f);
        f->swiglu(bits + 4 * N, a, b, N);
        bits[5 * N] = f->dot(a, b, N);
        bits[5 * N + 1] = (float)f->sum_exp(a, N, 3.0f);
        if (t == 0) memcpy(first, bits, sizeof bits);
        assert_memory_equal(first, bits, sizeof bits);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp),      cmocka_unit_test(test_rows),    cmocka_unit_test(test_logits),
        cmocka_unit_test(test_batch),    cmocka_unit_test(test_threads), cmocka_unit_test(test_long_decode),
        cmocka_unit_test(test_bad_ids),  cmocka_unit_test(test_eval),    cmocka_unit_test(test_generate),
        cmocka_unit_test(test_sampling), cmocka_unit_test(test_smollm2)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
