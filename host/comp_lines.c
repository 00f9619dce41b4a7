/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors down the outputs (VPTQ): d rows of one column share a code, and each column of a matrix has a scale and a bias, so columns
 * are swept one by one, as on a grid, and the error is passed on after each. A line is d rows (fewer at a matrix' end). The
 * nearest entry is the plainly nearest one, in the units of the column: what an error costs is the same for all its rows.
 *
 * The refinement is that of comp_refine_book.c: lines that rounding to the nearest code serves better than the sweep did, least
 * squares for the codebooks, and descent over codes, where the best value of column j given all else is q_j - G_j / H_jj. */
#include <math.h>

#include "backend.h"
#include "comp_book.h"

enum { RUN = 128 };

int64_t rq_lines_tile(const rq_book_task *t) { return t->vec_out ? RQ_BOOK_TILE / t->d : RQ_BOOK_TILE; }

void rq_lines_round(rq_book_task *t, int64_t col, int64_t line0, int64_t n_lines, const float *w, int64_t w_stride,
                    float *q, int64_t q_stride, rq_vec_code *code, float *scratch) {
    float target[RQ_VEC_MAX] = {0}, now[RQ_VEC_MAX] = {0}, plain[RQ_VEC_MAX * RQ_VEC_MAX] = {0};
    const float one = 1;
    int64_t d = t->d, row0 = t->line_row[line0];
    rq_pick pick = {.book = &t->book,
                    .which = rq_book_of(&t->book, col),
                    .metric = plain,
                    .diagonal = true,
                    .n = 1,
                    .t = target,
                    .s = &one,
                    .q = now,
                    .scratch = scratch};
    for (int64_t i = 0; i < n_lines; ++i) {
        int64_t row = t->line_row[line0 + i], n_rows = t->line_row[line0 + i + 1] - row;
        float s = rq_book_factor(t, line0 + i, col), bias = rq_book_bias(t, line0 + i, col);
        for (int64_t e = 0; e < d; ++e) {
            bool counts = e < n_rows && s > 0;
            target[e] = counts ? (w[(row - row0 + e) * w_stride] - bias) / s : 0;
            plain[e * d + e] = counts ? 1 : 0;
        }
        pick.code = &code[i];
        t->vec->pick(&pick);
        for (int64_t e = 0; e < n_rows; ++e) q[(row - row0 + e) * q_stride] = s * now[e] + bias;
    }
}

typedef struct lines_shared {
    rq_book_task *t;
    const int32_t *kept; /* [n]: which outlier column it is, or -1 */
    _Atomic int failed;
} lines_shared;

typedef struct lines_scratch {
    float *q, *g, *e;    /* [TILE][n] */
    float *delta;        /* [TILE][RUN] */
    float *target, *now; /* [TILE] */
    float *search;
    rq_vec_code *code, *nearest; /* [lines], [lines][n] */
} lines_scratch;

static bool scratch_new(lines_scratch *b, const rq_book_task *t) {
    *b = (lines_scratch){0};
    return RQ_NEW(b->q, RQ_BOOK_TILE * t->n) == RQ_OK && RQ_NEW(b->g, RQ_BOOK_TILE * t->n) == RQ_OK &&
           RQ_NEW(b->e, RQ_BOOK_TILE * t->n) == RQ_OK && RQ_NEW(b->delta, RQ_BOOK_TILE * RUN) == RQ_OK &&
           RQ_NEW(b->target, RQ_BOOK_TILE) == RQ_OK && RQ_NEW(b->now, RQ_BOOK_TILE) == RQ_OK &&
           RQ_NEW(b->search, rq_book_scratch(&t->book)) == RQ_OK && RQ_NEW(b->code, rq_lines_tile(t)) == RQ_OK &&
           RQ_NEW(b->nearest, rq_lines_tile(t) * t->n) == RQ_OK;
}

static void scratch_free(lines_scratch *b) {
    void *all[] = {b->q, b->g, b->e, b->delta, b->target, b->now, b->search, b->code, b->nearest};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) free(all[i]);
}

static void gradient(const rq_book_task *t, lines_scratch *b, int64_t row0, int64_t n_rows) {
    for (int64_t i = 0; i < n_rows * t->n; ++i) b->e[i] = b->q[i] - t->goal[row0 * t->n + i];
    rq_sgemm_tile(RQ_N, RQ_N, n_rows, t->n, t->n, 1, b->e, t->n, t->prep->hd, t->n, 0, b->g, t->n);
}

static float nearest_step(float w, float step) {
    float v = step > 0 ? rintf(w / step) : 0;
    return v < -127 ? -127 : v > 127 ? 127 : v;
}

/* J of one line, after gradient(). */
static double line_loss(const rq_book_task *t, const lines_scratch *b, int64_t line, int64_t row0) {
    double sum = 0;
    for (int64_t i = (t->line_row[line] - row0) * t->n; i < (t->line_row[line + 1] - row0) * t->n; ++i)
        sum += (double)b->e[i] * (double)b->g[i];
    return sum;
}

static void choose_tile(void *arg, int64_t tile) {
    lines_shared *s = arg;
    rq_book_task *t = s->t;
    const rq_prep *p = t->prep;
    int64_t n = t->n, line0 = tile * rq_lines_tile(t), n_lines = rq_min_i64(rq_lines_tile(t), t->n_line - line0);
    int64_t row0 = t->line_row[line0], n_rows = t->line_row[line0 + n_lines] - row0;
    double loss[RQ_BOOK_TILE];
    lines_scratch b;
    if (!scratch_new(&b, t)) {
        s->failed = 1;
        goto done;
    }
    for (int64_t r = 0; r < n_rows; ++r) rq_book_row(t, row0 + r, b.q + r * n);
    gradient(t, &b, row0, n_rows);
    for (int64_t i = 0; i < n_lines; ++i) loss[i] = line_loss(t, &b, line0 + i, row0);
    for (int64_t j = 0; j < n; ++j) {
        if (s->kept[j] < 0) {
            rq_lines_round(t, j, line0, n_lines, t->goal + row0 * n + j, n, b.q + j, n, b.code, b.search);
            for (int64_t i = 0; i < n_lines; ++i) b.nearest[i * n + j] = b.code[i];
        }
        for (int64_t r = 0; r < n_rows && s->kept[j] >= 0; ++r) {
            float step = t->outlier_step[t->matrix[row0 + r] * p->n_outlier + s->kept[j]];
            b.q[r * n + j] = step * nearest_step(t->goal[(row0 + r) * n + j], step);
        }
    }
    gradient(t, &b, row0, n_rows);
    for (int64_t i = 0; i < n_lines; ++i) {
        if (loss[i] <= line_loss(t, &b, line0 + i, row0)) continue; /* a sweep that ended in NaN loses */
        for (int64_t j = 0; j < n; ++j) {
            if (s->kept[j] < 0) t->code[(line0 + i) * n + j] = b.nearest[i * n + j];
        }
        for (int64_t r = t->line_row[line0 + i]; r < t->line_row[line0 + i + 1]; ++r) {
            for (int o = 0; o < p->n_outlier; ++o) {
                float step = t->outlier_step[t->matrix[r] * p->n_outlier + o];
                t->outlier[r * p->n_outlier + o] = (int8_t)nearest_step(t->goal[r * n + p->outlier_col[o]], step);
            }
        }
    }
done:
    scratch_free(&b);
}

/* The best codes of column j given all else; b->delta gets what changed, at column `at`. */
static void descend_column(const lines_shared *s, lines_scratch *b, int64_t j, int64_t at, int64_t line0,
                           int64_t n_lines) {
    rq_book_task *t = s->t;
    const rq_prep *p = t->prep;
    int64_t n = t->n, row0 = t->line_row[line0], n_rows = t->line_row[line0 + n_lines] - row0;
    float h = p->hd[j * n + j];
    for (int64_t r = 0; r < n_rows; ++r) b->target[r] = b->q[r * n + j] - b->g[r * n + j] / h;
    if (s->kept[j] < 0) {
        rq_lines_round(t, j, line0, n_lines, b->target, 1, b->now, 1, b->code, b->search);
    } else {
        for (int64_t r = 0; r < n_rows; ++r) {
            float step = t->outlier_step[t->matrix[row0 + r] * p->n_outlier + s->kept[j]];
            float v = nearest_step(b->target[r], step);
            t->outlier[(row0 + r) * p->n_outlier + s->kept[j]] = (int8_t)v; /* the exact minimum: always taken */
            b->now[r] = step * v;
        }
    }
    for (int64_t i = 0; i < n_lines; ++i) {
        int64_t r0 = t->line_row[line0 + i] - row0, r1 = t->line_row[line0 + i + 1] - row0;
        double change = 0, size = 0;
        for (int64_t r = r0; r < r1; ++r) {
            double step = (double)(b->now[r] - b->q[r * n + j]), g = 2 * (double)b->g[r * n + j];
            change += step * (g + step * (double)h);
            size += fabs(step * g);
        }
        bool taken = s->kept[j] >= 0 || change < -1e-6 * size;
        if (taken && s->kept[j] < 0) t->code[(line0 + i) * n + j] = b->code[i];
        for (int64_t r = r0; r < r1; ++r) {
            b->delta[r * RUN + at] = taken ? b->now[r] - b->q[r * n + j] : 0;
            if (taken) b->q[r * n + j] = b->now[r];
        }
    }
}

static void descend_tile(void *arg, int64_t tile) {
    lines_shared *s = arg;
    rq_book_task *t = s->t;
    const float *h = t->prep->hd;
    int64_t n = t->n, line0 = tile * rq_lines_tile(t), n_lines = rq_min_i64(rq_lines_tile(t), t->n_line - line0);
    int64_t row0 = t->line_row[line0], n_rows = t->line_row[line0 + n_lines] - row0;
    lines_scratch b;
    if (!scratch_new(&b, t)) {
        s->failed = 1;
        goto done;
    }
    for (int sweep = 0; sweep < t->opt->cd_sweeps; ++sweep) {
        for (int64_t r = 0; r < n_rows; ++r) rq_book_row(t, row0 + r, b.q + r * n);
        gradient(t, &b, row0, n_rows);
        for (int64_t c0 = 0; c0 < n; c0 += RUN) {
            int64_t c1 = rq_min_i64(n, c0 + RUN);
            for (int64_t j = c0; j < c1; ++j) {
                descend_column(s, &b, j, j - c0, line0, n_lines);
                for (int64_t r = 0; r < n_rows; ++r) {
                    float step = b.delta[r * RUN + j - c0], *g = b.g + r * n;
                    for (int64_t k = j; k < c1 && step != 0; ++k) g[k] += step * h[j * n + k];
                }
            }
            if (c1 < n) {
                rq_sgemm_tile(RQ_N, RQ_N, n_rows, n - c1, c1 - c0, 1, b.delta, RUN, h + c0 * n + c1, n, 1, b.g + c1, n);
            }
        }
    }
done:
    scratch_free(&b);
}

rq_status rq_lines_pass(const rq_book_refine *r, rq_book_pass pass) {
    rq_book_task *t = r->t;
    lines_shared s = {.t = t, .kept = r->kept};
    if (pass == RQ_BOOK_SCALES) return rq_fail(RQ_ERR_ARG, "%s: columns have the scales", t->label);
    rq_parallel_for(rq_ceil_div(t->n_line, rq_lines_tile(t)), pass == RQ_BOOK_CHOOSE ? choose_tile : descend_tile, &s);
    return s.failed ? rq_fail(RQ_ERR_NOMEM, "out of memory in the refinement") : RQ_OK;
}
