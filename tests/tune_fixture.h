/* SPDX-License-Identifier: Apache-2.0 */
/* What test_tune and test_tune_run share: golden models, quantized here with other settings for every matrix. */
#ifndef TUNE_FIXTURE_H
#define TUNE_FIXTURE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "act_hadamard.h"
#include "random.h"
#include "tune.h"

enum { N_MATRICES = 14, N_LAYER = 2, D = 64 };

#define assert_ok(expr)                                                                                                \
    do {                                                                                                               \
        rq_status status_ = (expr);                                                                                    \
        if (status_ != RQ_OK) fail_msg("%s: %s", rq_status_text(status_), rq_last_error());                            \
    } while (0)

/* ---- a golden model, quantized ---- */

typedef struct quantized {
    int64_t n_out, n_in, n_group;
    uint8_t *code, *zero; /* zero NULL: symmetric */
    int32_t *g_idx;
    float *scale;
    int bits;
} quantized;

typedef struct fixture {
    rq_model *m, *ref;
    quantized q[N_MATRICES]; /* code NULL: left dense, or codebook codes */
    /* Codebook codes; otherwise NULL. What outlier columns hold, and for each weight which number of its stages' codebooks it is, and
     * whether it is negative. */
    float *base[N_MATRICES];
    int32_t *entry[N_MATRICES][2]; /* [1] NULL: one stage */
    bool *negative[N_MATRICES];
    double rot[D * D]; /* R, row-major; unused without a rotation */
} fixture;

/* Round to nearest, every matrix with other settings: groups of 24 (the last one is short) or whole rows, symmetric
 * or not, F16 or F32 scales, features dealt to groups in a scrambled order. */
static void quantize(quantized *q, rq_packed *p, const rq_linear *l, int which) {
    int64_t group = which % 3 == 0 ? 24 : which % 3 == 1 ? 16 : l->n_in, n = l->n_out * l->n_in;
    bool sym = which % 2 == 1, scrambled = which % 4 == 2;
    float *w = malloc((size_t)n * sizeof *w);
    *q = (quantized){l->n_out, l->n_in, rq_ceil_div(l->n_in, group), malloc((size_t)n), NULL, NULL, NULL, 3};
    int64_t n_scale = q->n_out * q->n_group;
    q->scale = malloc((size_t)n_scale * sizeof(float));
    q->zero = sym ? NULL : malloc((size_t)n_scale);
    if (scrambled) {
        q->g_idx = malloc((size_t)l->n_in * sizeof(int32_t));
        for (int64_t j = 0; j < l->n_in; ++j) q->g_idx[j] = (int32_t)(j * 29 % l->n_in / group);
    }
    assert_ok(rq_linear_rows(l, 0, l->n_out, w));
    for (int64_t i = 0; i < n_scale; ++i) {
        int64_t row = i / q->n_group, g = i % q->n_group;
        float lo = 0, hi = 0;
        for (int64_t j = 0; j < l->n_in; ++j) {
            if ((q->g_idx ? q->g_idx[j] : j / group) != g) continue;
            lo = fminf(lo, w[row * l->n_in + j]);
            hi = fmaxf(hi, w[row * l->n_in + j]);
        }
        float s = sym ? fmaxf(-lo / 4, hi / 3) : (hi - lo) / 7;
        q->scale[i] = rq_f32_of_f16(rq_f16_of_f32(s));
        int zero = sym ? 4 : (int)lroundf(-lo / q->scale[i]);
        if (!sym) q->zero[i] = (uint8_t)zero;
        for (int64_t j = 0; j < l->n_in; ++j) {
            if ((q->g_idx ? q->g_idx[j] : j / group) != g) continue;
            long c = lroundf(w[row * l->n_in + j] / q->scale[i]) + zero;
            q->code[row * l->n_in + j] = (uint8_t)(c < 0 ? 0 : c > 7 ? 7 : c);
        }
    }
    rq_grid_codes codes = {l->n_out, l->n_in,  group,   q->n_group, 3, which % 5 ? RQ_F16 : RQ_F32,
                           q->code,  q->scale, q->zero, q->g_idx};
    assert_ok(rq_grid_pack(p, &codes));
    free(w);
}

static void fixture_open(fixture *f, const char *name, const char *rotation) {
    char path[1024];
    memset(f, 0, sizeof *f);
    snprintf(path, sizeof path, "%s/golden/llama/%s", RQ_TEST_DIR, name);
    assert_ok(rq_model_open(&f->ref, path));
    assert_ok(rq_model_open(&f->m, path));
    rq_model *m = f->m;
    assert_int_equal(m->cfg.n_layer, N_LAYER);
    assert_int_equal(m->cfg.d_model, D);
    for (int i = 0; i < N_MATRICES; ++i) {
        rq_linear *l = &m->block[i / RQ_N_LINEARS].lin[i % RQ_N_LINEARS];
        if (i == N_MATRICES - 2) continue; /* one stays dense */
        quantize(&f->q[i], &m->packed[m->n_packed], l, i);
        l->tensor = NULL;
        l->packed = &m->packed[m->n_packed++];
    }
    if (!rotation) return;
    /* The weights are not turned to match: another model, but one with a gradient. */
    assert_ok(rq_rotation_new(&m->rotation, D, 5, rotation));
    for (int i = 0; i < D; ++i) f->rot[i * D + i] = 1.0;
    assert_ok(rq_rotation_apply_f64(m->rotation, f->rot, D, D, false));
}

/* A row for 8-bit inputs, rounded to nearest: one level, or two with groups of 32. */
static void round_w4a8(rq_w4a8_codes *c, int64_t row, const float *w, float *scale, uint8_t *zero, uint8_t *step,
                       int8_t *base) {
    int64_t n = c->n_in, group = c->group ? c->group : n;
    uint8_t *code = (uint8_t *)(uintptr_t)c->codes + row * n;
    float lo = 0, hi = 0;
    for (int64_t j = 0; j < n; ++j) {
        lo = fminf(lo, w[j]);
        hi = fmaxf(hi, w[j]);
    }
    scale[row] = c->group ? fmaxf(-lo, hi) / 110 : c->zero ? (hi - lo) / 15 : fmaxf(-lo, hi) / 7;
    if (c->zero) zero[row] = (uint8_t)lroundf(-lo / scale[row]);
    for (int64_t g = 0; g * group < n; ++g) {
        int64_t at = g * group, end = rq_min_i64(n, at + group), k = row * rq_ceil_div(n, group) + g;
        float least = w[at], most = w[at];
        for (int64_t j = at; j < end; ++j) {
            least = fminf(least, w[j]);
            most = fmaxf(most, w[j]);
        }
        if (c->group) {
            step[k] = (uint8_t)fmaxf(1, ceilf((most - least) / scale[row] / 15));
            base[k] = (int8_t)fminf(roundf(least / scale[row]), (float)(127 - 15 * step[k]));
        }
        for (int64_t j = at; j < end; ++j) {
            float q = w[j] / scale[row];
            long u = c->group ? lroundf((q - base[k]) / step[k]) : lroundf(q) + (c->zero ? zero[row] : 8);
            code[j] = (uint8_t)(u < 0 ? 0 : u > 15 ? 15 : u);
        }
    }
}

/* All but three matrices again, for 8-bit inputs: one level symmetric, one with a zero point, two levels; with and without factors of
 * the inputs and a Hadamard matrix. */
static void fixture_w4a8(fixture *f) {
    for (int i = 0; i < N_MATRICES; ++i) {
        rq_linear *l = &f->m->block[i / RQ_N_LINEARS].lin[i % RQ_N_LINEARS];
        int64_t n = l->n_in, n_group = rq_ceil_div(n, 32);
        if (!l->packed || i == 3 || i == 8) continue;
        uint8_t *codes = malloc((size_t)(l->n_out * n)), *zero = malloc((size_t)l->n_out),
                *step = malloc((size_t)(l->n_out * n_group));
        int8_t *base = malloc((size_t)(l->n_out * n_group));
        float *scale = malloc((size_t)l->n_out * sizeof *scale), *in_scale = malloc((size_t)n * sizeof *in_scale),
              *w = malloc((size_t)n * sizeof *w);
        rq_w4a8_codes c = {.n_out = l->n_out, .n_in = n, .codes = codes, .scale = scale};
        if (i % 3 == 2) {
            c.group = 32;
            c.step = step;
            c.base = base;
        } else if (i % 3 == 1) {
            c.zero = zero;
        }
        for (int64_t j = 0; j < n; ++j) in_scale[j] = 0.5f + (float)(j * 37 % 64) / 64;
        if (i % 4 >= 2) c.in_scale = in_scale;
        if (i % 4 == 1 || i % 4 == 2) c.hadamard = n % 24 == 0 ? 24 : 16;
        rq_hadamard h[2];
        if (c.hadamard) assert_ok(rq_hadamard_make(h, c.hadamard));
        for (int64_t row = 0; row < l->n_out; ++row) {
            assert_ok(rq_linear_rows(&f->ref->block[i / RQ_N_LINEARS].lin[i % RQ_N_LINEARS], row, 1, w));
            if (c.hadamard) rq_hadamard_apply(&h[0], w, n);
            for (int64_t j = 0; c.in_scale && j < n; ++j) w[j] /= in_scale[j];
            round_w4a8(&c, row, w, scale, zero, step, base);
        }
        rq_packed *p = &f->m->packed[l->packed - f->m->packed];
        rq_packed_free(p);
        assert_ok(rq_w4a8_pack(p, &c));
        free(f->q[i].code);
        f->q[i].code = NULL;
        void *const memory[] = {codes, zero, step, base, scale, in_scale, w};
        for (int k = 0; k < 7; ++k) free(memory[k]);
    }
}

static void fixture_close(fixture *f) {
    for (int i = 0; i < N_MATRICES; ++i) {
        free(f->base[i]);
        free(f->entry[i][0]);
        free(f->entry[i][1]);
        free(f->negative[i]);
        free(f->q[i].code);
        free(f->q[i].zero);
        free(f->q[i].g_idx);
        free(f->q[i].scale);
    }
    rq_model_close(f->m);
    rq_model_close(f->ref);
}

static void fill_ids(int32_t *ids, int64_t n, uint64_t seed) {
    for (int64_t i = 0; i < n; ++i) ids[i] = (int32_t)(rq_random_u64(seed, (uint64_t)i) % 320);
}

#endif
