/* SPDX-License-Identifier: Apache-2.0 */
/* The grids of format w4a8 (fmt_w4a8.h; docs/methods.md, "Weights for 8-bit activations"). With one scale a row the grid of round_grid.c,
 * unchanged. In two levels weights are scale * q with q an 8-bit integer, and the 16 values of q that a group has are
 * u * step + base: what a row searches is its scale, and for each group the two integers. The sweep and the refinement round
 * on these values, so compensators see them.
 * Sources: protective range 119 and the start of the search, QServe (Lin et al., arXiv:2405.04532), section 4.1. */
#include <math.h>

#include "comp.h"
#include "simd.h"

enum { TOP = 15, PROTECTED = 119, NEAR = 5 };

/* sum wt (u * step + base - v)^2 over one group, v in units of the row's scale. */
RQ_CLONES static float level_error(const float *v, const float *wt, int64_t n, float step, float base) {
    float inv = 1.0f / step, total = 0, lane[16] = {0};
    int64_t j = 0;
    for (; j + 16 <= n; j += 16) { /* sixteen partial sums in a fixed order */
        for (int k = 0; k < 16; ++k) {
            float u = rintf((v[j + k] - base) * inv);
            u = u < 0.0f ? 0.0f : u;
            u = u > TOP ? TOP : u;
            float e = (u * step + base) - v[j + k];
            lane[k] += wt[j + k] * (e * e);
        }
    }
    for (; j < n; ++j) {
        float u = rintf((v[j] - base) * inv);
        u = u < 0.0f ? 0.0f : u;
        u = u > TOP ? TOP : u;
        float e = (u * step + base) - v[j];
        total += wt[j] * (e * e);
    }
    for (int k = 0; k < 16; ++k) total += lane[k];
    return total;
}

typedef struct group_grid {
    float step, base, error;
} group_grid;

/* Takes step and base if they are in range and better. */
static void try_grid(group_grid *best, const float *v, const float *wt, int64_t n, float step, float base) {
    if (step < 1.0f || step > RQ_W4A8_MAX_STEP) return;
    const float most = 127.0f - TOP * step;
    base = base < -128.0f ? -128.0f : base > most ? most : base;
    const float error = level_error(v, wt, n, step, base);
    if (error < best->error) *best = (group_grid){step, base, error};
}

/* Step and base for one group. reach: how far below the step that spans the group steps are tried; 0: only that one, which is
 * QServe's rule but for bases that are no multiples of the step. */
static group_grid find_group(const float *v, const float *wt, int64_t n, int reach) {
    float lo = INFINITY, hi = -INFINITY;
    for (int64_t j = 0; j < n; ++j) {
        lo = v[j] < lo ? v[j] : lo;
        hi = v[j] > hi ? v[j] : hi;
    }
    const float whole = ceilf((hi - lo) / TOP);
    float spans = whole < 1.0f ? 1.0f : whole > RQ_W4A8_MAX_STEP ? RQ_W4A8_MAX_STEP : whole;
    group_grid best = {1.0f, -8.0f, INFINITY};
    for (int k = 0; k <= reach; ++k) {
        const float step = spans - (float)k;
        const float low = rintf(lo), high = rintf(hi - TOP * step), middle = rintf(0.5f * (low + high));
        try_grid(&best, v, wt, n, step, middle);
        if (reach == 0) break;
        try_grid(&best, v, wt, n, step, rintf(0.5f * (low + middle)));
        try_grid(&best, v, wt, n, step, rintf(0.5f * (high + middle)));
    }
    return best;
}

/* One unit of step or base at a time while that helps. */
static void climb(group_grid *best, const float *v, const float *wt, int64_t n) {
    for (int i = 0; i < 32; ++i) {
        const group_grid at = *best;
        for (int step = -1; step <= 1; ++step) {
            const float centre = at.base - rintf(0.5f * TOP * (float)step); /* the grid's middle stays */
            for (int base = -1; base <= 1; ++base)
                if (step || base) try_grid(best, v, wt, n, at.step + (float)step, centre + (float)base);
        }
        if (best->error == at.error) break;
    }
}

static float largest(const float *x, int64_t n) {
    float most = 0;
    for (int64_t j = 0; j < n; ++j) most = fabsf(x[j]) > most ? fabsf(x[j]) : most;
    return most >= 1e-30f ? most : 1.0f; /* a row of zeros: any scale, base 0 of step 1 is among the bases */
}

/* The groups of a row for its range shrunk: what the search below takes for a scale on the way, with the climb. */
static void two_levels_at(const float *x, const float *wt, int64_t n, int64_t group, float shrink, float *scale,
                          float *zero, float *step) {
    float v[RQ_W4A8_MAX_GROUP];
    const float s = (float)((double)shrink * (double)largest(x, n) / PROTECTED), inv = 1.0f / s;
    for (int64_t g = 0, c = 0; c < n; ++g, c += group) {
        const int64_t len = rq_min_i64(group, n - c);
        for (int64_t j = 0; j < len; ++j) v[j] = x[c + j] * inv;
        group_grid grid = find_group(v, wt + c, len, NEAR);
        climb(&grid, v, wt + c, len);
        scale[g] = s;
        step[g] = grid.step;
        zero[g] = -grid.base;
    }
}

static void two_levels(const rq_quant_opt *o, const float *x, const float *wt, int64_t n, int64_t group, float *scale,
                       float *zero, float *step) {
    const bool search = o->clip == RQ_CLIP_MSE;
    const int steps = !search ? 1 : o->clip_steps < 16 ? o->clip_steps : 16;
    const float most = largest(x, n);
    float v[RQ_W4A8_MAX_GROUP], best_scale = 1.0f;
    double best_error = INFINITY;
    for (int pass = 0; pass <= steps;
         ++pass) { /* the last one is with the scale that was best, and keeps what it finds */
        const bool last = pass == steps;
        const float s = last ? best_scale : (float)((1.0 - 0.5 * pass / steps) * (double)most / PROTECTED);
        const float inv = 1.0f / s;
        double error = 0;
        for (int64_t g = 0, c = 0; c < n; ++g, c += group) {
            const int64_t len = rq_min_i64(group, n - c);
            for (int64_t j = 0; j < len; ++j) v[j] = x[c + j] * inv;
            group_grid grid = find_group(v, wt + c, len, !search ? 0 : last ? RQ_W4A8_MAX_STEP : NEAR);
            if (last && search) climb(&grid, v, wt + c, len);
            error += (double)grid.error * (double)s * (double)s;
            if (!last) continue;
            scale[g] = s;
            step[g] = grid.step;
            zero[g] = -grid.base;
        }
        if (error < best_error) {
            best_error = error;
            best_scale = s;
        }
    }
}

static void find_row(const rq_quant_opt *o, const float *x, const float *wt, int64_t n, int64_t group, float *scale,
                     float *zero, float *step) {
    if (o->group) {
        two_levels(o, x, wt, n, group, scale, zero, step);
    } else {
        rq_round_grid.find(o, x, wt, n, scale, zero);
        *step = 1.0f;
    }
}

static void find_at(const rq_quant_opt *o, const float *x, const float *wt, int64_t n, int64_t group, float shrink,
                    float *scale, float *zero, float *step) {
    if (o->group) {
        two_levels_at(x, wt, n, group, shrink, scale, zero, step);
    } else {
        rq_round_grid.find_at(o, x, wt, n, n, shrink, scale, zero, step);
        *step = 1.0f;
    }
}

RQ_CLONES static void level_round(int64_t n_rows, const float *w, const float *scale, const float *zero,
                                  const float *step, uint8_t *code, float *q, float *clamped) {
    for (int64_t i = 0; i < n_rows; ++i) {
        float u = rintf((w[i] / scale[i] + zero[i]) / step[i]);
        u = u < 0.0f ? 0.0f : u;
        u = u > TOP ? TOP : u;
        code[i] = (uint8_t)(int)u;
        q[i] = scale[i] * (u * step[i] - zero[i]);
        float lo = scale[i] * -zero[i], hi = scale[i] * (TOP * step[i] - zero[i]);
        float v = w[i] < lo ? lo : w[i];
        clamped[i] = v > hi ? hi : v;
    }
}

static void round_column(int bits, int64_t n_rows, const float *w, const float *scale, const float *zero,
                         const float *step, uint8_t *code, float *q, float *clamped) {
    (void)bits; /* 4 */
    level_round(n_rows, w, scale, zero, step, code, q, clamped);
}

const rq_rounder rq_round_w4a8 = {.name = "w4a8", .find_row = find_row, .find_at = find_at, .round = round_column};
