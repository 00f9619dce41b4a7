/* SPDX-License-Identifier: Apache-2.0 */
/* Activations as int8 and their products with 4-bit weights: every row of kernels.def for them, bit for bit against definitions of this
 * file in 64-bit integers, and in the words of fmt_act.h; and rq_linear_apply on top. Likewise the plain C of e4m3. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "act_hadamard.h"
#include "kernels.h"
#include "linear.h"
#include "rotate_hadamard.h"
#include "w4a8_random.h"

enum { GUARD = 64 };

static int n_run;

/* Calls run(kernel, arg) for each row of the operation and operand that this machine can run. */
static void each_row(const char *op, const char *operand, void (*run)(const rq_kernel *k, void *arg), void *arg) {
    for (int64_t i = 0; i < rq_kernel_count(); ++i) {
        const rq_kernel *k = rq_kernel_at(i);
        if (strcmp(k->op, op) != 0 || (operand && strcmp(k->operand, operand) != 0)) continue;
        if (!rq_kernel_usable(k, NULL)) continue;
        run(k, arg);
        ++n_run;
    }
}

/* ---- quantize ----------------------------------------------------------------------------------------------------------- */

/* Rows h and what must come of them; fixed[t], where there is one, is the scale of row t. */
static void check_rows(const float *h, int64_t n_tok, int64_t n_in, const int8_t *q, int64_t pitch, const float *scale,
                       const int32_t *sum, const float *fixed) {
    for (int64_t t = 0; t < n_tok; ++t, h += n_in, q += pitch) {
        float most = 0;
        int64_t total = 0;
        for (int64_t j = 0; j < n_in; ++j) most = fabsf(h[j]) > most ? fabsf(h[j]) : most;
        float want = fixed ? fixed[t] : most / 127.0f;
        assert_memory_equal(&scale[t], &want, sizeof want);
        for (int64_t j = 0; j < pitch; ++j) {
            float v = j < n_in && want > 0 ? rintf(h[j] / want) : 0;
            v = isnan(v) ? 0 : v > 127 ? 127 : v < -127 ? -127 : v;
            if (q[j] != (int)v) fail_msg("token %d, column %d: %d instead of %g", (int)t, (int)j, q[j], (double)v);
            total += q[j];
        }
        assert_int_equal(sum[t], total);
    }
}

typedef struct rows_case {
    int64_t n_tok, n_in;
    float *h, *a, *b, *weight; /* what the operand is made of, and the rows that it means */
    bool residual;
    rq_act_after after;
    const float *fixed; /* [n_tok] what the table gives, or NULL */
} rows_case;

static void run_quantize(const rq_kernel *k, void *arg) {
    const rows_case *c = arg;
    int64_t pitch = c->n_in + (int64_t)draw(2) * 37, n = c->n_tok * pitch;
    int8_t *q = must_alloc(n + GUARD, 1);
    float *scale = must_alloc(c->n_tok, sizeof *scale), *stream = must_alloc(c->n_tok * c->n_in, sizeof *stream);
    int32_t *sum = must_alloc(c->n_tok, sizeof *sum);
    memset(q, 99, (size_t)(n + GUARD));
    const rq_act_rows rows = {c->n_in, c->a, c->after};
    const rq_act_rmsnorm norm = {c->n_in, c->a,    c->residual ? c->b : NULL, c->residual ? stream : NULL, c->weight,
                                 1e-5f,   c->after};
    const rq_act_gated gated = {c->n_in, c->n_in, c->a, c->b, c->after};
    const void *operand = strstr(k->operand, "rows")      ? (const void *)&rows
                          : strstr(k->operand, "rmsnorm") ? (const void *)&norm
                                                          : (const void *)&gated;
    for (int64_t t = 0; t < c->n_tok; ++t) k->quantize(q, pitch, scale, sum, operand, t, 1);
    check_rows(c->h, c->n_tok, c->n_in, q, pitch, scale, sum, c->fixed);
    k->quantize(q, pitch, scale, sum, operand, 0, c->n_tok);
    check_rows(c->h, c->n_tok, c->n_in, q, pitch, scale, sum, c->fixed);
    for (int i = 0; i < GUARD; ++i) assert_int_equal(q[n + i], 99);
    for (int64_t i = 0; c->residual && i < c->n_tok * c->n_in; ++i) {
        const float x = c->a[i] + c->b[i];
        assert_true(stream[i] == x || (isnan(x) && isnan(stream[i])));
    }
    free(q), free(scale), free(sum), free(stream);
}

static const int64_t widths[] = {1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 576, 2047, 2048, 2049, 4096, 6151};

static void test_quantize_rows(void **state) {
    (void)state;
    for (size_t w = 0; w < sizeof widths / sizeof *widths; ++w) {
        rows_case c = {.n_tok = 5, .n_in = widths[w]};
        c.a = c.h = random_f32(c.n_tok * c.n_in);
        for (int64_t j = 0; j < c.n_in; ++j) { /* a row of zeros, one of halves of a step, one with what is no number */
            c.a[j] = j % 2 ? -0.0f : 0.0f;
            c.a[c.n_in + j] = (float)((int)draw(255) - 127) + (float)(draw(2)) * 0.5f;
            if (draw(3) == 0) c.a[2 * c.n_in + j] = NAN;
            c.a[3 * c.n_in + j] *= 1e-38f;
        }
        c.a[c.n_in] = 127.0f;
        if (c.n_in > 40) c.a[4 * c.n_in + 39] = INFINITY;
        each_row("quantize", "act_rows", run_quantize, &c);
        free(c.a);
    }
}

static void test_quantize_rmsnorm(void **state) {
    (void)state;
    float *partial = must_alloc(RQ_ACT_PARTIALS, sizeof *partial);
    for (size_t w = 0; w < sizeof widths / sizeof *widths; ++w) {
        for (int flags = 0; flags < 4; ++flags) {
            int64_t n = widths[w];
            rows_case c = {.n_tok = 3, .n_in = n, .residual = flags & 1};
            c.a = random_f32(c.n_tok * n), c.b = random_f32(c.n_tok * n), c.h = random_f32(c.n_tok * n);
            c.weight = flags & 2 ? random_f32(n) : NULL;
            memset(c.a, 0, (size_t)n * sizeof *c.a);
            for (int64_t t = 0; t < c.n_tok; ++t) {
                double exact = 0;
                memset(partial, 0, RQ_ACT_PARTIALS * sizeof *partial);
                for (int64_t j = 0; j < n; ++j) {
                    float x = c.a[t * n + j] + (c.residual ? c.b[t * n + j] : 0.0f);
                    c.h[t * n + j] = x;
                    exact += (double)x * (double)x;
                    partial[j % RQ_ACT_PARTIALS] =
                        (float)((double)x * (double)x + (double)partial[j % RQ_ACT_PARTIALS]);
                }
                float s = rq_act_sum(partial), r = 1.0f / sqrtf(s / (float)n + 1e-5f);
                assert_true(fabs((double)s - exact) <= 1e-6 * exact);
                for (int64_t j = 0; j < n; ++j) {
                    c.h[t * n + j] *= r;
                    if (c.weight) c.h[t * n + j] *= c.weight[j];
                }
            }
            each_row("quantize", "act_rmsnorm", run_quantize, &c);
            free(c.a), free(c.b), free(c.h), free(c.weight);
        }
    }
    free(partial);
}

static void test_quantize_gated(void **state) {
    (void)state;
    for (size_t w = 0; w < sizeof widths / sizeof *widths; ++w) {
        rows_case c = {.n_tok = 3, .n_in = widths[w]};
        int64_t n = c.n_tok * c.n_in;
        c.a = random_f32(n), c.b = random_f32(n), c.h = random_f32(n);
        for (int64_t i = 0; i < n; ++i) {
            c.a[i] *= 8.0f;
            if (draw(50) == 0) c.a[i] *= 100.0f;
            c.h[i] = rq_act_silu(c.a[i]) * c.b[i];
            double exact = (double)c.a[i] / (1 + exp(-(double)c.a[i])) * (double)c.b[i];
            assert_true(fabs((double)c.h[i] - exact) <= 1e-6 * fabs(exact) + 1e-32);
        }
        each_row("quantize", "act_gated", run_quantize, &c);
        free(c.a), free(c.b), free(c.h);
    }
}

/* One block in the words of fmt_act.h, with the core as integers; and, since those words may be wrong, against its sums in double. */
static void transform(float *v, int size, const int8_t *core, int n_core) {
    const int width = size / n_core;
    float *to = must_alloc(size, sizeof *to);
    double *exact = must_alloc(size, sizeof *exact), most = 0;
    for (int i = 0; i < size; ++i) {
        exact[i] = 0;
        for (int j = 0; j < size; ++j) {
            const int sign = core[i / width * n_core + j / width];
            exact[i] += (__builtin_parity((unsigned)(i % width & j % width)) ? -sign : sign) * (double)v[j];
        }
        most += fabs((double)v[i]);
    }
    for (int half = 1; half < width; half *= 2) {
        for (int i = 0; i < size; ++i) to[i] = i % width & half ? v[i - half] - v[i] : v[i] + v[i + half];
        memcpy(v, to, (size_t)size * sizeof *v);
    }
    for (int i = 0; i < size; ++i) {
        to[i] = (float)core[i / width * n_core] * v[i % width];
        for (int c = 1; c < n_core; ++c) to[i] += (float)core[i / width * n_core + c] * v[c * width + i % width];
    }
    for (int i = 0; i < size; ++i) {
        v[i] = to[i] * (float)(1.0 / sqrt((double)size));
        if (isfinite(most)) assert_true(fabs((double)v[i] - exact[i] / sqrt((double)size)) <= 1e-6 * most);
    }
    free(to), free(exact);
}

/* Rows of an operand, made by plain C in the words of fmt_act.h. */
static void make_h(rows_case *c, char kind) {
    const int64_t n = c->n_in;
    float *partial = must_alloc(RQ_ACT_PARTIALS, sizeof *partial);
    for (int64_t t = 0; t < c->n_tok; ++t) {
        float *h = c->h + t * n;
        const float *a = c->a + t * n, *b = c->b + t * n;
        memset(partial, 0, RQ_ACT_PARTIALS * sizeof *partial);
        for (int64_t j = 0; j < n; ++j) {
            h[j] = kind == 'g' ? rq_act_silu(a[j]) * b[j] : c->residual ? a[j] + b[j] : a[j];
            partial[j % RQ_ACT_PARTIALS] = fmaf(h[j], h[j], partial[j % RQ_ACT_PARTIALS]);
        }
        const float r = kind == 'n' ? 1.0f / sqrtf(rq_act_sum(partial) / (float)n + 1e-5f) : 0.0f;
        for (int64_t j = 0; kind == 'n' && j < n; ++j) {
            h[j] *= r;
            if (c->weight) h[j] *= c->weight[j];
        }
    }
    free(partial);
}

/* One operand with a Hadamard matrix of order `size` (0: none), with and without factors, with scales computed and from a table. */
static void check_after(char kind, int64_t n_in, int size, int flags) {
    enum { TOK = 7, STEPS = 3 };
    static const float table[STEPS] = {0.0f, 0.003f, 0.02f};
    static const int32_t step[4] = {2, -1, 1, STEPS}; /* of tokens 0, 1, then 2, 3, then 4, 5, then 6 */
    const float none = rq_act_nan(), of_rows[TOK] = {0.02f, 0.02f, none, none, 0.003f, 0.003f, none},
                of_all[TOK] = {0.02f, 0.02f, 0.02f, 0.02f, 0.02f, 0.02f, 0.02f};
    rows_case c = {.n_tok = TOK, .n_in = n_in, .residual = kind == 'n' && flags & 1};
    const int n_core = (int)rq_hadamard_core(size);
    int8_t *core = must_alloc(n_core * n_core + 1, 1);
    rq_hadamard h[2];
    float *factor = random_f32(n_in);
    c.a = random_f32(TOK * n_in), c.b = random_f32(TOK * n_in), c.h = random_f32(TOK * n_in);
    c.weight = kind == 'n' ? random_f32(n_in) : NULL;
    memset(c.a, 0, (size_t)n_in * sizeof *c.a);
    c.a[2 * n_in + n_in / 2] = NAN; /* which takes its block of the Hadamard matrix along */
    c.a[3 * n_in + n_in / 3] = INFINITY;
    make_h(&c, kind);
    if (size) {
        assert_int_equal(rq_hadamard_make(h, size), RQ_OK);
        assert_int_equal(rq_hadamard_fill(core, n_core), RQ_OK);
        c.after.hadamard = h;
        c.after.scratch = random_f32(n_in);
        for (int64_t i = 0; i < TOK * n_in; i += size) transform(c.h + i, size, core, n_core);
    }
    if (flags & 1) {
        c.after.factor = factor;
        for (int64_t i = 0; i < TOK * n_in; ++i) c.h[i] *= factor[i % n_in];
    }
    if (flags & 2) {
        c.after.steps = (rq_act_steps){table, step, STEPS, flags & 4 ? 2 : 0};
        c.fixed = flags & 4 ? of_rows : of_all;
    }
    each_row("quantize", kind == 'n' ? "act_rmsnorm" : kind == 'g' ? "act_gated" : "act_rows", run_quantize, &c);
    free(c.a), free(c.b), free(c.h), free(c.weight), free(c.after.scratch), free(factor), free(core);
}

static void test_quantize_after(void **state) {
    (void)state;
    static const int size_cols[][2] = {
        {0, 1},       {0, 37},    {0, 576},   {2, 2},       {2, 34},    {4, 12},    {8, 24},    {16, 48},
        {32, 96},     {64, 64},   {128, 384}, {1024, 1024}, {12, 12},   {12, 60},   {24, 48},   {48, 144},
        {96, 96},     {192, 384}, {28, 28},   {56, 168},    {112, 112}, {224, 448}, {896, 896}, {576, 576},
        {1536, 1536}, {20, 40},   {36, 36},   {72, 144},    {44, 44},   {52, 52},   {60, 120}};
    for (size_t i = 0; i < sizeof size_cols / sizeof *size_cols; ++i) {
        for (int flags = 0; flags < 8; ++flags) {
            if (size_cols[i][0] > 600 && flags != 1 && flags != 6) continue;
            for (const char *kind = "rng"; *kind; ++kind) check_after(*kind, size_cols[i][1], size_cols[i][0], flags);
        }
    }
}

/* ---- gemm --------------------------------------------------------------------------------------------------------------- */

typedef struct gemm_case {
    rq_packed p;
    int64_t n_tok;
    rq_act8 x;
    float *want; /* [n_tok][n_out] */
} gemm_case;

static void define(float *y, const rq_w4a8 *w, const rq_act8 *x, int64_t n_tok) {
    for (int64_t t = 0; t < n_tok; ++t) {
        for (int64_t r = 0; r < w->n_out; ++r) {
            int64_t sum = 0;
            for (int64_t j = 0; j < w->n_in; ++j) sum += (int64_t)rq_w4a8_level(w, r, j) * x->q[t * x->pitch + j];
            assert_true(sum == (int32_t)sum);
            y[t * w->n_out + r] = ((float)sum * w->scale[r]) * x->scale[t];
        }
    }
}

static void run_gemm(const rq_kernel *k, void *arg) {
    const gemm_case *c = arg;
    const rq_w4a8 *w = &c->p.u.w4a8;
    int64_t n = c->n_tok * w->n_out, row = w->n_out / 3, tok = c->n_tok / 2;
    float *y = must_alloc(n + GUARD, sizeof *y);
    for (int cut = 0; cut < 2; ++cut) {
        for (int64_t i = 0; i < n + GUARD; ++i) y[i] = i < n ? NAN : 77.0f;
        if (cut == 0) {
            k->gemm(y, w, &c->x, 0, c->n_tok, 0, w->n_out);
        } else {
            k->gemm(y, w, &c->x, 0, c->n_tok, 0, row);
            k->gemm(y, w, &c->x, 0, tok, row, w->n_out - row);
            k->gemm(y, w, &c->x, tok, c->n_tok - tok, row, w->n_out - row);
        }
        for (int64_t i = 0; i < n; ++i) {
            if (memcmp(&y[i], &c->want[i], sizeof *y) != 0) {
                fail_msg("%s: [%lld, %lld] group %lld, %lld tokens: element %lld is %g instead of %g", k->impl,
                         (long long)w->n_out, (long long)w->n_in, (long long)w->group, (long long)c->n_tok,
                         (long long)i, (double)y[i], (double)c->want[i]);
            }
        }
        for (int i = 0; i < GUARD; ++i) assert_true(y[n + i] == 77.0f);
    }
    free(y);
}

static void check_gemm(int64_t n_out, int64_t n_in, int64_t group, bool sym, bool extreme, int64_t n_tok) {
    gemm_case c = {.n_tok = n_tok};
    int64_t pitch = rq_ceil_div(n_in, RQ_ACT8_ALIGN) * RQ_ACT8_ALIGN;
    int8_t *q = aligned_alloc(RQ_ACT8_ALIGN, (size_t)(n_tok * pitch));
    float *scale = random_f32(n_tok);
    int32_t *sum = must_alloc(n_tok, sizeof *sum);
    assert_non_null(q);
    memset(q, 0, (size_t)(n_tok * pitch));
    for (int64_t t = 0; t < n_tok; ++t) {
        sum[t] = 0;
        for (int64_t j = 0; j < n_in; ++j) {
            q[t * pitch + j] = (int8_t)(extreme ? 127 - 254 * (t % 2) : (int)draw(255) - 127);
            sum[t] += q[t * pitch + j];
        }
    }
    make_weights(&c.p, n_out, n_in, group, sym, extreme, NULL, 0);
    c.x = (rq_act8){q, pitch, scale, sum};
    c.want = must_alloc(n_tok * n_out, sizeof *c.want);
    define(c.want, &c.p.u.w4a8, &c.x, n_tok);
    each_row("gemm", "w4a8", run_gemm, &c);
    free(q), free(scale), free(sum), free(c.want);
    rq_packed_free(&c.p);
}

static void test_gemm(void **state) {
    (void)state;
    static const int64_t n_outs[] = {1, 2, 3, 4, 5, 7, 13, 33}, n_ins[] = {1, 8, 31, 33, 64, 96, 130, 257, 576, 1000};
    static const int64_t groups[] = {0, 32, 64, 96, 128}, toks[] = {1, 2, 3, 4, 5, 8, 9, 17};
    int n = 0;
    for (size_t k = 0; k < sizeof n_ins / sizeof *n_ins; ++k) {
        for (size_t g = 0; g < sizeof groups / sizeof *groups; ++g) {
            if (groups[g] > (n_ins[k] + 31) / 32 * 32) continue;
            for (int i = 0; i < 8; ++i, ++n) {
                check_gemm(n_outs[(i + n / 8) % 8], n_ins[k], groups[g], n % 3 == 0, false, toks[i]);
            }
        }
    }
    /* Rows longer than a cut of the columns, many tokens, and sums at the ends of their range. */
    check_gemm(5, 4096 + 40, 0, false, false, 3);
    check_gemm(6, 8192 + 96, 128, false, false, 21);
    check_gemm(9, 320, 64, false, false, 300);
    check_gemm(131, 96, 32, false, false, 258);
    check_gemm(71, 4096 + 64, 128, false, false, 160); /* more than the outer caches: rows take turns with the cuts */
    check_gemm(4, RQ_W4A8_MAX_COLS, 0, false, true, 2);
    check_gemm(4, RQ_W4A8_MAX_COLS, 128, false, true, 3);
    check_gemm(3, RQ_W4A8_MAX_COLS - 1, 32, false, true, 1);
}

/* ---- rq_linear_apply ---------------------------------------------------------------------------------------------------- */

/* Against fp64 sums of unpacked weights and what the 8-bit inputs stand for; the same bytes for any number of threads and tokens at once. */
static void check_linear(const rq_packed *p, const float *bias) {
    enum { TOKENS = 70 };
    const rq_linear l = {"packed", p->n_out, p->n_in, NULL, NULL, p, bias};
    float *x = random_f32(TOKENS * p->n_in), *in = must_alloc(TOKENS * p->n_in, sizeof *in), *row = random_f32(p->n_in);
    float *y = random_f32(TOKENS * p->n_out), *z = random_f32(TOKENS * p->n_out);
    memcpy(in, x, (size_t)(TOKENS * p->n_in) * sizeof *in);
    rq_w4a8_input(&p->u.w4a8, in, TOKENS);
    assert_int_equal(rq_act8_round_trip(in, TOKENS, p->n_in), RQ_OK);
    rq_set_threads(3);
    assert_int_equal(rq_linear_apply(&l, y, x, TOKENS), RQ_OK);
    rq_set_threads(1);
    assert_int_equal(rq_linear_apply(&l, z, x, 10), RQ_OK);
    assert_int_equal(rq_linear_apply(&l, z + 10 * p->n_out, x + 10 * p->n_in, TOKENS - 10), RQ_OK);
    assert_memory_equal(y, z, (size_t)(TOKENS * p->n_out) * sizeof *y);
    for (int64_t r = 0; r < p->n_out; ++r) {
        for (int64_t j = 0; j < p->n_in; ++j) /* of the quantized input, not of x */
            row[j] = p->u.w4a8.scale[r] * (float)rq_w4a8_level(&p->u.w4a8, r, j);
        for (int64_t t = 0; t < TOKENS; ++t) {
            double sum = bias ? (double)bias[r] : 0.0, mag = fabs(sum);
            for (int64_t j = 0; j < p->n_in; ++j) {
                double term = (double)row[j] * (double)in[t * p->n_in + j];
                sum += term, mag += fabs(term);
            }
            assert_true(fabs((double)y[t * p->n_out + r] - sum) <= 1e-6 * mag);
        }
    }
    free(x), free(in), free(row), free(y), free(z);
}

static void test_linear(void **state) {
    (void)state;
    for (int kind = 0; kind < 8; ++kind) {
        rq_packed p;
        float *bias = random_f32(290), *in_scale = random_f32(192);
        make_weights(&p, 290, 192, kind % 2 ? 64 : 0, false, false, kind & 2 ? in_scale : NULL,
                     kind < 2   ? 0
                     : kind < 4 ? 64
                     : kind < 6 ? 192
                                : 48);
        check_linear(&p, kind % 2 ? bias : NULL);
        rq_packed_free(&p);
        free(bias), free(in_scale);
    }
}

/* ---- inputs of e4m3 ------------------------------------------------------------------------------------------------------ */

/* The number of e4m3 that is nearest to v, by search; of two that are as near, the one with an even code. NaN becomes 0. */
static double e4m3_nearest(double v) {
    double best = 0;
    if (v != v) return 0;
    for (int code = 1; code < 127; ++code) {
        const double size = code < 8 ? ldexp(code, -9) : ldexp(8 + code % 8, code / 8 - 10);
        const double d = fabs(fabs(v) - size), least = fabs(fabs(v) - best);
        if (d < least || (d == least && code % 2 == 0)) best = size;
    }
    return signbit(v) ? -best : best;
}

/* Bit for bit: sums of products are exact in double as well. */
static void check_e4m3(const rq_w4a8 *w, const float *bias, int64_t n_tok) {
    float *x = random_f32(n_tok * w->n_in), *y = random_f32(n_tok * w->n_out), *z = random_f32(n_tok * w->n_out);
    double *h = must_alloc(w->n_in, sizeof *h);
    for (int64_t i = 0; i < n_tok * w->n_in; i += 3) x[i] = ldexpf(x[i], -(int)draw(14));
    if (n_tok > 1) memset(x + w->n_in, 0, (size_t)w->n_in * sizeof *x);
    if (n_tok > 2) x[2 * w->n_in] = NAN;
    rq_set_threads(3);
    assert_int_equal(rq_linear_w4a8_e4m3(w, bias, y, x, n_tok), RQ_OK);
    rq_set_threads(1);
    assert_int_equal(rq_linear_w4a8_e4m3(w, bias, z, x, n_tok), RQ_OK);
    assert_memory_equal(y, z, (size_t)(n_tok * w->n_out) * sizeof *y);
    if (w->in_scale || w->hadamard) rq_w4a8_input(w, x, n_tok);
    for (int64_t t = 0; t < n_tok; ++t) {
        float most = 0;
        for (int64_t j = 0; j < w->n_in; ++j) most = fmaxf(most, fabsf(x[t * w->n_in + j]));
        const float scale = most / 448.0f;
        for (int64_t j = 0; j < w->n_in; ++j) {
            const float quotient = scale > 0 ? x[t * w->n_in + j] / scale : 0.0f;
            h[j] = e4m3_nearest((double)quotient);
        }
        for (int64_t r = 0; r < w->n_out; ++r) {
            double sum = 0;
            for (int64_t j = 0; j < w->n_in; ++j) sum += rq_w4a8_level(w, r, j) * h[j];
            float want = (float)sum * w->scale[r] * scale;
            if (bias) want += bias[r];
            assert_true(rq_f32_bits(want) == rq_f32_bits(y[t * w->n_out + r]));
        }
    }
    free(x), free(y), free(z), free(h);
}

static void test_e4m3(void **state) {
    (void)state;
    static const int64_t n_ins[] = {1, 31, 192, 600};
    for (int kind = 0; kind < 16; ++kind) {
        const int64_t n_in = n_ins[kind % 4];
        rq_packed p;
        float *bias = random_f32(20), *in_scale = random_f32(n_in);
        make_weights(&p, 20, n_in, kind & 4 ? n_in < 64 ? 32 : 64 : 0, false, false, kind & 8 ? in_scale : NULL,
                     kind & 8 && n_in == 192 ? 64 : 0);
        check_e4m3(&p.u.w4a8, kind % 2 ? bias : NULL, 1 + kind);
        rq_packed_free(&p);
        free(bias), free(in_scale);
    }
}

static void test_rows_ran(void **state) {
    (void)state;
    assert_int_equal(rq_kernels_check(), RQ_OK);
    assert_true(n_run > 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantize_rows),  cmocka_unit_test(test_quantize_rmsnorm),
        cmocka_unit_test(test_quantize_gated), cmocka_unit_test(test_quantize_after),
        cmocka_unit_test(test_gemm),           cmocka_unit_test(test_linear),
        cmocka_unit_test(test_e4m3),           cmocka_unit_test(test_rows_ran),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
