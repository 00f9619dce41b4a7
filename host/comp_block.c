/* SPDX-License-Identifier: Apache-2.0 */
/* The sweep for vectors along the inputs (docs/methods.md, "Codebooks"): the columns of a vector are rounded together. With U_bb the
 * diagonal block of U at the vector's columns b, w the block when it is rounded, q what it became, w0 its start:
 *
 *   W[:, k] -= x U[b][k] - y T[b][k]   for every later k,   x U_bb = (w - q) + a2 (w0 - A),   y = a1 A + a2 (w0 - A)
 *
 * A is q ("org") or w ("allw"). The code is the one nearest to w in the metric of what is lost, |(w - q) U_bb^-1|^2, or in a
 * simpler one. With vectors down the outputs (comp_lines.c) a block is one column. Outlier columns come first, as blocks of one column, rounded to 8 bits.
 *
 * Rows are independent: a task is a tile of rows, swept from the first column to the last. Updates inside a run of about
 * `--block` columns are made block by block, those after it by one product. */
#include <math.h>

#include "backend.h"
#include "comp_book.h"

typedef struct sweep_shared {
    rq_book_task *t;
    const float *metric;
    float *at; /* see rq_block_sweep */
    bool allw;
    _Atomic int failed;
} sweep_shared;

typedef struct sweep_scratch {
    float *w;                       /* [TILE][n] sweep order */
    float *x, *y;                   /* [TILE][width of the run] */
    float *target, *s, *q, *search; /* [TILE][d], [TILE], [TILE][d] */
    rq_vec_code *code;              /* [TILE] */
} sweep_scratch;

static bool scratch_new(sweep_scratch *b, const rq_book_task *t, int64_t run) {
    *b = (sweep_scratch){0};
    return RQ_NEW(b->w, RQ_BOOK_TILE * t->n) == RQ_OK && RQ_NEW(b->x, RQ_BOOK_TILE * run) == RQ_OK &&
           RQ_NEW(b->y, RQ_BOOK_TILE * run) == RQ_OK && RQ_NEW(b->target, RQ_BOOK_TILE * t->d) == RQ_OK &&
           RQ_NEW(b->s, RQ_BOOK_TILE) == RQ_OK && RQ_NEW(b->q, RQ_BOOK_TILE * t->d) == RQ_OK &&
           RQ_NEW(b->search, rq_book_scratch(&t->book)) == RQ_OK && RQ_NEW(b->code, RQ_BOOK_TILE) == RQ_OK;
}

static void scratch_free(sweep_scratch *b) {
    void *all[] = {b->w, b->x, b->y, b->target, b->s, b->q, b->search, b->code};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) free(all[i]);
}

/* Round the columns of one span for all rows of the tile: b->q[row][lane], codes kept. */
static void round_span(const sweep_shared *sh, sweep_scratch *b, const rq_span *span, int64_t line0, int64_t row0,
                       int64_t n_rows) {
    const rq_book_task *t = sh->t;
    const rq_prep *p = t->prep;
    int d = t->d;
    if (span->vec < 0) {
        int o = -1 - span->vec;
        for (int64_t r = 0; r < n_rows; ++r) {
            float step = t->outlier_step[t->matrix[row0 + r] * p->n_outlier + o];
            float v = step > 0 ? rintf(b->w[r * t->n + span->pos] / step) : 0;
            v = v < -127 ? -127 : v > 127 ? 127 : v;
            t->outlier[(row0 + r) * p->n_outlier + o] = (int8_t)v;
            b->q[r * d] = step * v;
        }
        return;
    }
    if (t->vec_out) {
        int64_t first = line0, n_lines = 0;
        while (first + n_lines < t->n_line && t->line_row[first + n_lines] < row0 + n_rows) ++n_lines;
        rq_lines_round(sh->t, span->vec, first, n_lines, b->w + span->pos, t->n, b->q, d, b->code, b->search);
        for (int64_t i = 0; i < n_lines; ++i) t->code[(first + i) * t->n_vec + span->vec] = b->code[i];
        return;
    }
    memset(b->target, 0, (size_t)(n_rows * d) * sizeof *b->target);
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t i = 0; i < span->width; ++i)
            b->target[r * d + p->perm[span->pos + i] % d] = b->w[r * t->n + span->pos + i];
        b->s[r] = t->scale[(row0 + r) * t->n_group + span->vec * d / t->group];
    }
    const rq_pick pick = {.book = &t->book,
                          .which = rq_book_of(&t->book, span->vec),
                          .metric = sh->metric + span->vec * d * d,
                          .diagonal = t->opt->assign != RQ_ASSIGN_MAHALANOBIS,
                          .n = n_rows,
                          .t = b->target,
                          .s = b->s,
                          .code = b->code,
                          .q = b->q,
                          .scratch = b->search};
    t->vec->pick(&pick);
    for (int64_t r = 0; r < n_rows; ++r) t->code[(row0 + r) * t->n_vec + span->vec] = b->code[r];
}

static void keep_span(const sweep_shared *sh, const sweep_scratch *b, const rq_span *span, int64_t row0,
                      int64_t n_rows) {
    const rq_book_task *t = sh->t;
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t c = span->pos; c < span->pos + span->width; ++c)
            sh->at[(row0 + r) * t->n + t->prep->perm[c]] = b->w[r * t->n + c];
    }
}

/* x and y of one span, at column `at` of the run: x U_bb = v by substitution from the first column on. */
static void coefficients(const sweep_shared *sh, sweep_scratch *b, const rq_span *span, int64_t at, int64_t run,
                         int64_t row0, int64_t n_rows) {
    const rq_book_task *t = sh->t;
    const rq_prep *p = t->prep;
    const float *u = p->u + span->pos * p->n + span->pos;
    bool single = span->vec < 0 || t->vec_out; /* one column, its values in lane 0 */
    float a1 = (float)t->opt->alpha, a2 = (float)t->opt->alpha2;
    for (int64_t r = 0; r < n_rows; ++r) {
        float *x = b->x + r * run + at, *y = b->y + r * run + at;
        for (int64_t i = 0; i < span->width; ++i) {
            int64_t j = p->perm[span->pos + i];
            float w = b->w[r * t->n + span->pos + i], q = b->q[r * t->d + (single ? 0 : j % t->d)];
            float kept = sh->allw ? w : q, cae = a2 * (t->start[(row0 + r) * t->n + j] - kept), v = (w - q) + cae;
            for (int64_t k = 0; k < i; ++k) v -= x[k] * u[k * p->n + i];
            x[i] = v / u[i * p->n + i];
            y[i] = a1 * kept + cae;
        }
    }
}

/* Apply columns [c0, c0 + k) of the run (its first `at` columns into x and y) to sweep columns [c1, c2). */
static void propagate(const sweep_shared *sh, sweep_scratch *b, int64_t c0, int64_t k, int64_t at, int64_t run,
                      int64_t c1, int64_t c2, int64_t n_rows) {
    const rq_prep *p = sh->t->prep;
    int64_t n = p->n;
    if (c1 == c2) return;
    rq_sgemm_tile(RQ_N, RQ_N, n_rows, c2 - c1, k, -1, b->x + at, run, p->u + c0 * n + c1, n, 1, b->w + c1, n);
    if (p->t) rq_sgemm_tile(RQ_N, RQ_N, n_rows, c2 - c1, k, 1, b->y + at, run, p->t + c0 * n + c1, n, 1, b->w + c1, n);
}

static void sweep_tile(void *arg, int64_t tile) {
    sweep_shared *sh = arg;
    const rq_book_task *t = sh->t;
    const rq_prep *p = t->prep;
    int64_t n = t->n, line0 = tile * rq_lines_tile(t), line1 = rq_min_i64(t->n_line, line0 + rq_lines_tile(t));
    int64_t row0 = t->line_row[line0], n_rows = t->line_row[line1] - row0;
    int64_t longest = rq_min_i64(n, t->opt->block + t->d);
    sweep_scratch b;
    if (!scratch_new(&b, t, longest)) {
        sh->failed = 1;
        goto done;
    }
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t c = 0; c < n; ++c) b.w[r * n + c] = t->start[(row0 + r) * n + p->perm[c]];
    }
    for (int64_t first = 0, last; first < p->n_span; first = last) {
        int64_t c0 = p->span[first].pos, c2 = c0;
        for (last = first; last < p->n_span && c2 - c0 < t->opt->block; ++last)
            c2 = p->span[last].pos + p->span[last].width;
        for (int64_t i = first; i < last; ++i) {
            const rq_span *span = &p->span[i];
            int64_t at = span->pos - c0;
            if (sh->at) keep_span(sh, &b, span, row0, n_rows);
            round_span(sh, &b, span, line0, row0, n_rows);
            if (!p->u) continue; /* rtn: nothing moves */
            coefficients(sh, &b, span, at, longest, row0, n_rows);
            propagate(sh, &b, span->pos, span->width, at, longest, span->pos + span->width, c2, n_rows);
        }
        if (p->u) propagate(sh, &b, c0, c2 - c0, 0, longest, c2, n, n_rows);
    }
done:
    scratch_free(&b);
}

rq_status rq_block_sweep(rq_book_task *t, const float *metric, float *at) {
    sweep_shared sh = {.t = t, .metric = metric, .at = at, .allw = t->opt->update == RQ_UPDATE_ALLW};
    rq_parallel_for(rq_ceil_div(t->n_line, rq_lines_tile(t)), sweep_tile, &sh);
    return sh.failed ? rq_fail(RQ_ERR_NOMEM, "out of memory in the sweep") : RQ_OK;
}
