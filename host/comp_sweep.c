/* SPDX-License-Identifier: Apache-2.0 */
/* The column sweep (docs/methods.md, "One sweep"). For column c, with w its value when it is rounded and q what it became:
 *
 *   W[:, k] -= x U[c][k] - y T[c][k]   for every later column k,   x = ((w - q) + a2 (w0 - A)) / U[c][c],
 *                                                                   y = a1 A + a2 (w0 - A)
 *
 * GPTQ has a1 = a2 = 0, GPTAQ a2 = 0, ResComp both. This is the papers' e U - A P - (w0 - A) R with R's multiple of U folded into
 * x: strict_upper((H + D) U^T) U = T - diag(1/U) strict_upper(U), so ResComp needs no third product. A is w inside a block of
 * columns; in the trailing update it is q ("org") or w clamped to the grid ("allw").
 *
 * Rows are independent: a task is a tile of rows, swept from the first column to the last, so the result does not depend on
 * the number of threads. Inside a block a sub-tile of rows is held transposed, so that rows fill the vector lanes. */
#include <math.h>

#include "backend.h"
#include "comp_sweep.h"
#include "simd.h"

enum { LANES = 32, TILE = 96 }; /* rows per sub-tile (two AVX-512 registers) and per task */

typedef struct sweep_scratch {
    float *w;                     /* [TILE][n] sweep order, up to date except inside the open block */
    float *w0;                    /* [TILE][n] sweep order, kept only for ResComp */
    float *x, *y;                 /* [TILE][block]: coefficients of the trailing update */
    float *wt;                    /* [block][LANES]: the open block, transposed */
    float *ut, *tt;               /* [block][block]: U and T of the open block */
    float *one, *weight, *values; /* [n]: for the clip search */
} sweep_scratch;

typedef struct sweep_shared {
    const rq_sweep *s;
    int64_t block;
    double a1, a2;
    bool allw;
    _Atomic int failed;
} sweep_shared;

/* Subtract x u - y t from the later columns of the open block. */
RQ_CLONES static void propagate_in_block(float *restrict wt, int64_t n_later, const float *restrict u,
                                         const float *restrict t, const float *restrict x, const float *restrict y) {
    for (int64_t k = 0; k < n_later; ++k) {
        float *restrict dst = wt + k * LANES;
        float uk = u[k];
        if (t) {
            float tk = t[k];
            for (int r = 0; r < LANES; ++r) dst[r] -= x[r] * uk - y[r] * tk;
        } else {
            for (int r = 0; r < LANES; ++r) dst[r] -= x[r] * uk;
        }
    }
}

RQ_CLONES static void coefficients(float *x, float *y, const float *w, const float *q, const float *a, const float *w0,
                                   float inv_u, float a1, float a2) {
    for (int r = 0; r < LANES; ++r) {
        float cae = a2 * (w0[r] - a[r]);
        x[r] = ((w[r] - q[r]) + cae) * inv_u;
        y[r] = a1 * a[r] + cae;
    }
}

static bool scratch_new(sweep_scratch *b, int64_t n, int64_t block, bool keep_w0) {
    *b = (sweep_scratch){0};
    bool ok = RQ_NEW(b->w, TILE * n) == RQ_OK && RQ_NEW(b->x, TILE * block) == RQ_OK &&
              RQ_NEW(b->y, TILE * block) == RQ_OK && RQ_NEW(b->wt, block * LANES) == RQ_OK &&
              RQ_NEW(b->ut, block * block) == RQ_OK && RQ_NEW(b->tt, block * block) == RQ_OK &&
              RQ_NEW(b->one, n) == RQ_OK && RQ_NEW(b->weight, n) == RQ_OK && RQ_NEW(b->values, n) == RQ_OK;
    return ok && (!keep_w0 || RQ_NEW(b->w0, TILE * n) == RQ_OK);
}

static void scratch_free(sweep_scratch *b) {
    void *all[] = {b->w, b->w0, b->x, b->y, b->wt, b->ut, b->tt, b->one, b->weight, b->values};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) free(all[i]);
}

void rq_sweep_clip_weights(const rq_sweep *s, float *weight, int64_t col, int64_t n_cols, bool sweep_order) {
    for (int64_t j = 0; j < n_cols; ++j) {
        int64_t natural = sweep_order ? s->prep->perm[col + j] : col + j;
        weight[j] = s->opt->clip_weights == RQ_CLIP_HDIAG && s->prep->hdiag ? s->prep->hdiag[natural] : 1.0f;
    }
}

static const float *clip_weights(const rq_sweep *s, sweep_scratch *b, int64_t col, int64_t n_cols, bool sweep_order) {
    rq_sweep_clip_weights(s, b->weight, col, n_cols, sweep_order);
    return b->weight;
}

/* Groups in natural order, found on the starting weights. Features that are dead count as 0 unless the group is the row:
 * then the reference implementations take the grid before they clear them, and so do we. */
static void static_groups(const rq_sweep *s, sweep_scratch *b, int64_t row0, int64_t n_rows) {
    int64_t n = s->prep->n;
    const rq_rounder *rounder = rq_round_get(s->opt->round);
    for (int64_t i = row0; rounder->find_row && i < row0 + n_rows; ++i) {
        const float *wt = clip_weights(s, b, 0, n, false);
        for (int64_t j = 0; j < n; ++j) b->values[j] = s->prep->dead[j] && s->group < n ? 0 : s->w0[i * n + j];
        int64_t k = i * s->n_group;
        rounder->find_row(s->opt, b->values, wt, n, s->group, &s->scale[k], &s->zero[k], &s->step[k]);
    }
    if (rounder->find_row) return;
    for (int64_t g = 0; g < s->n_group; ++g) {
        int64_t c0 = g * s->group, len = rq_min_i64(s->group, n - c0);
        const float *wt = clip_weights(s, b, c0, len, false);
        for (int64_t i = row0; i < row0 + n_rows; ++i) {
            for (int64_t j = 0; j < len; ++j) {
                b->values[j] = s->prep->dead[c0 + j] && len < n ? 0 : s->w0[i * n + c0 + j];
            }
            rounder->find(s->opt, b->values, wt, len, &s->scale[i * s->n_group + g], &s->zero[i * s->n_group + g]);
        }
    }
}

/* The group that starts at sweep column c, where a block starts too: b->w is up to date for all of it. */
static void dynamic_group(const rq_sweep *s, sweep_scratch *b, int64_t c, int64_t row0, int64_t tile_row,
                          int64_t lanes) {
    int64_t n = s->prep->n, g = c / s->group, len = rq_min_i64(s->group, n - c);
    const float *wt = clip_weights(s, b, c, len, true);
    for (int64_t r = 0; r < lanes; ++r) {
        int64_t k = (row0 + r) * s->n_group + g;
        rq_round_get(s->opt->round)->find(s->opt, b->w + (tile_row + r) * n + c, wt, len, &s->scale[k], &s->zero[k]);
    }
}

/* Sweep the columns [c0, c1) of one sub-tile of rows; x and y of the trailing update go to b->x, b->y. */
static void sweep_block(const sweep_shared *sh, sweep_scratch *b, int64_t c0, int64_t c1, int64_t tile_row,
                        int64_t row0, int64_t lanes) {
    const rq_sweep *s = sh->s;
    const rq_prep *p = s->prep;
    int64_t n = p->n, width = c1 - c0;
    float q[LANES], clamped[LANES], scale[LANES], zero[LANES], step[LANES], x[LANES], y[LANES], w0[LANES], xa[LANES],
        ya[LANES];
    uint8_t code[LANES];
    float a1 = (float)sh->a1, a2 = (float)sh->a2;
    for (int64_t c = 0; c < width; ++c) {
        for (int64_t r = 0; r < LANES; ++r) b->wt[c * LANES + r] = r < lanes ? b->w[(tile_row + r) * n + c0 + c] : 0;
    }
    memset(w0, 0, sizeof w0);
    for (int r = 0; r < LANES; ++r) {
        scale[r] = step[r] = 1;
        zero[r] = 0;
    }
    for (int64_t c = c0; c < c1; ++c) {
        float *w = b->wt + (c - c0) * LANES;
        int64_t natural = p->perm[c];
        if (s->groups_in_sweep_order && c % s->group == 0) dynamic_group(s, b, c, row0, tile_row, lanes);
        int64_t stored = s->groups_in_sweep_order ? c : natural;
        int64_t g = stored / s->group;
        for (int64_t r = 0; r < lanes; ++r) {
            scale[r] = s->scale[(row0 + r) * s->n_group + g];
            zero[r] = s->zero[(row0 + r) * s->n_group + g];
            if (s->step) step[r] = s->step[(row0 + r) * s->n_group + g];
        }
        rq_round_get(s->opt->round)->round(s->opt->bits, LANES, w, scale, zero, step, code, q, clamped);
        for (int64_t r = 0; r < lanes; ++r) {
            s->codes[(row0 + r) * n + stored] = code[r];
            s->q[(row0 + r) * n + stored] = q[r];
        }
        if (!p->u) continue; /* rtn: nothing moves */
        if (b->w0) {
            for (int64_t r = 0; r < lanes; ++r) w0[r] = b->w0[(tile_row + r) * n + c];
        }
        float inv_u = 1.0f / p->u[c * n + c];
        coefficients(x, y, w, q, w, w0, inv_u, a1, a2);
        coefficients(xa, ya, w, q, sh->allw ? clamped : q, w0, inv_u, a1, a2);
        for (int64_t r = 0; r < lanes; ++r) {
            b->x[(tile_row + r) * width + (c - c0)] = xa[r];
            b->y[(tile_row + r) * width + (c - c0)] = ya[r];
        }
        propagate_in_block(w + LANES, c1 - c - 1, b->ut + (c - c0) * width + (c - c0) + 1,
                           p->t ? b->tt + (c - c0) * width + (c - c0) + 1 : NULL, x, y);
    }
}

int64_t rq_sweep_block_end(const rq_sweep *s, int64_t block, int64_t c0) {
    int64_t end = c0 + block;
    if (s->groups_in_sweep_order) end = rq_min_i64(end, (c0 / s->group + 1) * s->group);
    return rq_min_i64(end, s->prep->n);
}

static void sweep_tile(void *arg, int64_t tile) {
    sweep_shared *sh = arg;
    const rq_sweep *s = sh->s;
    const rq_prep *p = s->prep;
    int64_t n = p->n, row0 = tile * TILE, n_rows = rq_min_i64(TILE, s->n_out - row0);
    sweep_scratch b;
    if (!scratch_new(&b, n, sh->block, p->u && sh->a2 != 0)) {
        sh->failed = 1;
        goto done;
    }
    if (!s->groups_in_sweep_order && !s->found) static_groups(s, &b, row0, n_rows);
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t c = 0; c < n; ++c) {
            int64_t j = p->perm[c];
            float v = p->dead[j] ? 0 : s->w0[(row0 + r) * n + j];
            b.w[r * n + c] = v;
            if (b.w0) b.w0[r * n + c] = v;
        }
    }
    for (int64_t c0 = 0, c1; c0 < n; c0 = c1) {
        c1 = rq_sweep_block_end(s, sh->block, c0);
        int64_t width = c1 - c0;
        for (int64_t i = 0; p->u && i < width; ++i) {
            memcpy(b.ut + i * width, p->u + (c0 + i) * n + c0, (size_t)width * sizeof(float));
            if (p->t) memcpy(b.tt + i * width, p->t + (c0 + i) * n + c0, (size_t)width * sizeof(float));
        }
        for (int64_t r = 0; r < n_rows; r += LANES)
            sweep_block(sh, &b, c0, c1, r, row0 + r, rq_min_i64(LANES, n_rows - r));
        if (!p->u || c1 == n) continue;
        rq_sgemm_tile(RQ_N, RQ_N, n_rows, n - c1, width, -1, b.x, width, p->u + c0 * n + c1, n, 1, b.w + c1, n);
        if (p->t)
            rq_sgemm_tile(RQ_N, RQ_N, n_rows, n - c1, width, 1, b.y, width, p->t + c0 * n + c1, n, 1, b.w + c1, n);
    }
done:
    scratch_free(&b);
}

bool rq_sweep_allw(const rq_quant_opt *o) {
    return o->update == RQ_UPDATE_ALLW || (o->update == RQ_UPDATE_AUTO && o->comp == RQ_COMP_RESCOMP && o->bits > 2);
}

rq_status rq_sweep_run(const rq_sweep *s) {
    sweep_shared sh = {.s = s, .a1 = s->opt->alpha, .a2 = s->opt->alpha2, .allw = rq_sweep_allw(s->opt)};
    sh.block = rq_min_i64(s->opt->block, s->prep->n);
    rq_parallel_for(rq_ceil_div(s->n_out, TILE), sweep_tile, &sh);
    return sh.failed ? rq_fail(RQ_ERR_NOMEM, "out of memory in the column sweep") : RQ_OK;
}

static void groups_tile(void *arg, int64_t tile) {
    sweep_shared *sh = arg;
    int64_t row0 = tile * TILE;
    sweep_scratch b;
    if (scratch_new(&b, sh->s->prep->n, 1, false))
        static_groups(sh->s, &b, row0, rq_min_i64(TILE, sh->s->n_out - row0));
    else
        sh->failed = 1;
    scratch_free(&b);
}

rq_status rq_sweep_find_groups(const rq_sweep *s) {
    sweep_shared sh = {.s = s};
    rq_parallel_for(rq_ceil_div(s->n_out, TILE), groups_tile, &sh);
    return sh.failed ? rq_fail(RQ_ERR_NOMEM, "out of memory for the scales of groups") : RQ_OK;
}
