/* SPDX-License-Identifier: Apache-2.0 */
/* --clip output: the range of each row by what its output loses, e H e^T with e = w - Q(w), and not by a weighted sum of squares of e
 * (QServe's output clipping; Lin et al., arXiv:2405.04532, section 4.3). One product of all errors with H gives it for one shrunk range of
 * every row of a tile. The choice of the search by squares is among the candidates, so that none loses more than with it.
 *
 * This is the loss of rounding to nearest. A sweep that compensates loses less and elsewhere, but starts from these grids. */
#include <math.h>

#include "backend.h"
#include "comp_sweep.h"

enum { TILE = 96 };

typedef struct clip_scratch {
    float *w;                 /* [TILE][n]: starting weights, dead features 0 */
    float *e, *eh;            /* [TILE][n] */
    float *weight;            /* [n] of the search by squares */
    float *scale, *zero, *st; /* [n_group]: a candidate */
    float *sc, *ze, *stp;     /* [n]: the same, a value a column */
    float *q, *clamped;       /* [n] */
    uint8_t *code;            /* [n] */
    double best[TILE];
} clip_scratch;

static bool scratch_new(clip_scratch *b, int64_t n, int64_t n_group) {
    *b = (clip_scratch){0};
    return RQ_NEW(b->w, TILE * n) == RQ_OK && RQ_NEW(b->e, TILE * n) == RQ_OK && RQ_NEW(b->eh, TILE * n) == RQ_OK &&
           RQ_NEW(b->weight, n) == RQ_OK && RQ_NEW(b->scale, TILE * n_group) == RQ_OK &&
           RQ_NEW(b->zero, TILE * n_group) == RQ_OK && RQ_NEW(b->st, TILE * n_group) == RQ_OK &&
           RQ_NEW(b->sc, n) == RQ_OK && RQ_NEW(b->ze, n) == RQ_OK && RQ_NEW(b->stp, n) == RQ_OK &&
           RQ_NEW(b->q, n) == RQ_OK && RQ_NEW(b->clamped, n) == RQ_OK && RQ_NEW(b->code, n) == RQ_OK;
}

static void scratch_free(clip_scratch *b) {
    void *all[] = {b->w,  b->e,  b->eh,  b->weight, b->scale,   b->zero, b->st,
                   b->sc, b->ze, b->stp, b->q,      b->clamped, b->code};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) free(all[i]);
}

/* w - Q(w) of row r with its candidate. */
static void row_error(const rq_sweep *s, clip_scratch *b, int64_t r) {
    const int64_t n = s->prep->n, k = r * s->n_group;
    const float *w = b->w + r * n;
    for (int64_t j = 0; j < n; ++j) {
        b->sc[j] = b->scale[k + j / s->group];
        b->ze[j] = b->zero[k + j / s->group];
        b->stp[j] = b->st[k + j / s->group];
    }
    rq_round_get(s->opt->round)->round(s->opt->bits, n, w, b->sc, b->ze, b->stp, b->code, b->q, b->clamped);
    for (int64_t j = 0; j < n; ++j) b->e[r * n + j] = w[j] - b->q[j];
}

/* e H e^T of all rows with their candidates; the first, and what is less than the best so far, is kept. */
static void keep_better(const rq_sweep *s, clip_scratch *b, int64_t row0, int64_t n_rows, bool first) {
    const int64_t n = s->prep->n;
    for (int64_t r = 0; r < n_rows; ++r) row_error(s, b, r);
    rq_sgemm_tile(RQ_N, RQ_N, n_rows, n, n, 1, b->e, n, s->prep->h, n, 0, b->eh, n);
    for (int64_t r = 0; r < n_rows; ++r) {
        double loss = 0;
        for (int64_t j = 0; j < n; ++j) loss += (double)b->eh[r * n + j] * (double)b->e[r * n + j];
        if (!first && !(loss < b->best[r])) continue;
        b->best[r] = isnan(loss) ? INFINITY : loss;
        for (int64_t g = 0; g < s->n_group; ++g) {
            const int64_t to = (row0 + r) * s->n_group + g, from = r * s->n_group + g;
            s->scale[to] = b->scale[from];
            s->zero[to] = b->zero[from];
            if (s->step) s->step[to] = b->st[from];
        }
    }
}

float rq_clip_shrink(const rq_quant_opt *o, int k) {
    const double least = rq_round_get(o->round)->find_row && o->group ? 0.5 : 0.2; /* as the searches by squares */
    return (float)(1.0 - (1.0 - least) * k / o->clip_steps);
}

typedef struct clip_shared {
    const rq_sweep *s;
    _Atomic int failed;
} clip_shared;

static void clip_tile(void *arg, int64_t tile) {
    clip_shared *sh = arg;
    const rq_sweep *s = sh->s;
    const rq_prep *p = s->prep;
    const rq_rounder *rounder = rq_round_get(s->opt->round);
    const int64_t n = p->n, row0 = tile * TILE, n_rows = rq_min_i64(TILE, s->n_out - row0);
    rq_quant_opt squares = *s->opt;
    clip_scratch b;
    squares.clip = RQ_CLIP_MSE;
    if (!scratch_new(&b, n, s->n_group)) {
        sh->failed = 1;
        goto done;
    }
    for (int64_t j = 0; j < n; ++j)
        b.weight[j] = s->opt->clip_weights == RQ_CLIP_HDIAG && p->hdiag ? p->hdiag[j] : 1.0f;
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t j = 0; j < n; ++j) b.w[r * n + j] = p->dead[j] ? 0 : s->w0[(row0 + r) * n + j];
    }
    for (int k = -1; k < s->opt->clip_steps; ++k) {
        const float shrink = rq_clip_shrink(s->opt, k);
        for (int64_t r = 0; r < n_rows; ++r) {
            float *scale = b.scale + r * s->n_group, *zero = b.zero + r * s->n_group, *step = b.st + r * s->n_group;
            if (k >= 0)
                rounder->find_at(s->opt, b.w + r * n, b.weight, n, s->group, shrink, scale, zero, step);
            else if (rounder->find_row)
                rounder->find_row(&squares, b.w + r * n, b.weight, n, s->group, scale, zero, step);
            else
                rounder->find(&squares, b.w + r * n, b.weight, n, scale, zero);
        }
        keep_better(s, &b, row0, n_rows, k < 0);
    }
done:
    scratch_free(&b);
}

rq_status rq_clip_output(const rq_sweep *s) {
    clip_shared sh = {.s = s};
    rq_parallel_for(rq_ceil_div(s->n_out, TILE), clip_tile, &sh);
    return sh.failed ? rq_fail(RQ_ERR_NOMEM, "out of memory in the clip search") : RQ_OK;
}
