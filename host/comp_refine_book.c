/* SPDX-License-Identifier: Apache-2.0 */
/* Refinement of codebook codes after the sweep, on J = tr((Q - goal) H (Q - goal)^T) with H damped:
 *
 *   codes      with G = (Q - goal) H, the best values of a vector given all else are q_b - G_b H_bb^-1, and a code costs
 *              (q - t) H_bb (q - t)^T: the search of the rounder under the metric H_bb. Taken only where J falls.
 *   scales     J is quadratic in each scale: its minimum, rounded to the stored type, taken only where J falls. Of columns: comp_columns.c.
 *   codebooks  rq_refit_book (comp_refit_book.c)
 *   signs      --sign-steps: learned (comp_signs.c), then all of the above again; kept where J fell.
 *
 * Before that, rows that the sweep left worse than rounding each vector to the nearest code would are rounded so: the sweep is
 * greedy, and on a degenerate H it can lose. The passes over rows here are of vectors along the inputs, comp_lines.c has the others'. A task is a tile of rows; G is kept up to date inside a run of columns and by one
 * product per run after it, and computed afresh for each pass. */
#include <math.h>

#include "backend.h"
#include "comp_signs.h"
#include "device.h"

enum { RUN = 128, SIGN_PHASE = 10 };

typedef struct refine_shared {
    const rq_book_refine *r;
    _Atomic int failed;
} refine_shared;

typedef struct refine_scratch {
    float *q, *g, *e;                 /* [TILE][n] */
    float *delta;                     /* [TILE][RUN + d] */
    float *target, *s, *now, *search; /* [TILE][d], [TILE], [TILE][d] */
    rq_vec_code *code, *nearest;      /* [TILE], [TILE][n_vec] */
} refine_scratch;

static bool scratch_new(refine_scratch *b, const rq_book_task *t) {
    *b = (refine_scratch){0};
    return RQ_NEW(b->q, RQ_BOOK_TILE * t->n) == RQ_OK && RQ_NEW(b->g, RQ_BOOK_TILE * t->n) == RQ_OK &&
           RQ_NEW(b->e, RQ_BOOK_TILE * t->n) == RQ_OK && RQ_NEW(b->delta, RQ_BOOK_TILE * (RUN + t->d)) == RQ_OK &&
           RQ_NEW(b->target, RQ_BOOK_TILE * t->d) == RQ_OK && RQ_NEW(b->s, RQ_BOOK_TILE) == RQ_OK &&
           RQ_NEW(b->now, RQ_BOOK_TILE * t->d) == RQ_OK && RQ_NEW(b->search, rq_book_scratch(&t->book)) == RQ_OK &&
           RQ_NEW(b->code, RQ_BOOK_TILE) == RQ_OK && RQ_NEW(b->nearest, RQ_BOOK_TILE * t->n_vec) == RQ_OK;
}

static void scratch_free(refine_scratch *b) {
    void *all[] = {b->q, b->g, b->e, b->delta, b->target, b->s, b->now, b->search, b->code, b->nearest};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) free(all[i]);
}

static float *step_of(const rq_book_task *t, int64_t row, int o) {
    return &t->outlier_step[t->matrix[row] * t->prep->n_outlier + o];
}

static float nearest_step(float w, float step) {
    float v = step > 0 ? rintf(w / step) : 0;
    return v < -127 ? -127 : v > 127 ? 127 : v;
}

/* g = (q - goal) H for the tile. */
static void gradient(const rq_book_task *t, refine_scratch *b, int64_t row0, int64_t n_rows) {
    for (int64_t i = 0; i < n_rows * t->n; ++i) b->e[i] = b->q[i] - t->goal[row0 * t->n + i];
    rq_sgemm_tile(RQ_N, RQ_N, n_rows, t->n, t->n, 1, b->e, t->n, t->prep->hd, t->n, 0, b->g, t->n);
}

static void load_rows(const rq_book_task *t, refine_scratch *b, int64_t row0, int64_t n_rows) {
    for (int64_t r = 0; r < n_rows; ++r) rq_book_row(t, row0 + r, b->q + r * t->n);
    gradient(t, b, row0, n_rows);
}

/* After gradient(): J of one row. */
static double row_loss(const rq_book_task *t, const refine_scratch *b, int64_t r) {
    double sum = 0;
    for (int64_t j = r * t->n; j < (r + 1) * t->n; ++j) sum += (double)b->e[j] * (double)b->g[j];
    return sum;
}

/* Codes of vector v of all rows of the tile for the targets b->target, into b->code, their values into b->now. */
static void pick_vector(const rq_book_task *t, refine_scratch *b, int64_t v, const float *metric, bool diagonal,
                        int64_t row0, int64_t n_rows) {
    for (int64_t r = 0; r < n_rows; ++r) b->s[r] = t->scale[(row0 + r) * t->n_group + v * t->d / t->group];
    const rq_pick pick = {.book = &t->book,
                          .which = rq_book_of(&t->book, v),
                          .metric = metric,
                          .diagonal = diagonal,
                          .n = n_rows,
                          .t = b->target,
                          .s = b->s,
                          .code = b->code,
                          .q = b->now,
                          .scratch = b->search};
    t->vec->pick(&pick);
}

/* ---- rows that rounding to the nearest code serves better ---- */

static void choose_tile(void *arg, int64_t tile) {
    refine_shared *sh = arg;
    const rq_book_refine *s = sh->r;
    rq_book_task *t = s->t;
    const rq_prep *p = t->prep;
    int64_t n = t->n, d = t->d, row0 = tile * RQ_BOOK_TILE, n_rows = rq_min_i64(RQ_BOOK_TILE, t->n_out - row0);
    double loss[RQ_BOOK_TILE];
    float plain[RQ_VEC_MAX * RQ_VEC_MAX] = {0}; /* ones for the vector's own lanes */
    refine_scratch b;
    if (!scratch_new(&b, t)) {
        sh->failed = 1;
        goto done;
    }
    load_rows(t, &b, row0, n_rows);
    for (int64_t r = 0; r < n_rows; ++r) loss[r] = row_loss(t, &b, r);
    for (int64_t v = 0; v < t->n_vec; ++v) {
        int64_t c0 = v * d, c1 = rq_min_i64(n, c0 + d);
        memset(b.target, 0, (size_t)(n_rows * d) * sizeof *b.target);
        for (int64_t j = 0; j < d; ++j) plain[j * d + j] = c0 + j < n && s->kept[c0 + j] < 0 ? 1 : 0;
        for (int64_t r = 0; r < n_rows; ++r) {
            for (int64_t j = c0; j < c1; ++j)
                b.target[r * d + j - c0] = s->kept[j] < 0 ? t->goal[(row0 + r) * n + j] : 0;
        }
        pick_vector(t, &b, v, plain, true, row0, n_rows);
        for (int64_t r = 0; r < n_rows; ++r) {
            b.nearest[r * t->n_vec + v] = b.code[r];
            memcpy(b.q + r * n + c0, b.now + r * d, (size_t)(c1 - c0) * sizeof(float));
        }
    }
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int o = 0; o < p->n_outlier; ++o) {
            float step = *step_of(t, row0 + r, o);
            b.q[r * n + p->outlier_col[o]] = step * nearest_step(t->goal[(row0 + r) * n + p->outlier_col[o]], step);
        }
    }
    gradient(t, &b, row0, n_rows);
    for (int64_t r = 0; r < n_rows; ++r) {
        if (loss[r] <= row_loss(t, &b, r)) continue; /* a sweep that ended in NaN loses */
        memcpy(t->code + (row0 + r) * t->n_vec, b.nearest + r * t->n_vec, (size_t)t->n_vec * sizeof *b.nearest);
        for (int o = 0; o < p->n_outlier; ++o) {
            float v = nearest_step(t->goal[(row0 + r) * n + p->outlier_col[o]], *step_of(t, row0 + r, o));
            t->outlier[(row0 + r) * p->n_outlier + o] = (int8_t)v;
        }
    }
done:
    scratch_free(&b);
}

/* ---- descent over codes ---- */

/* g[:, c1 .. c2) += delta[:, at .. at + k) H[c0 .. c0 + k, c1 .. c2) */
static void propagate(const rq_book_task *t, refine_scratch *b, int64_t c0, int64_t k, int64_t at, int64_t c1,
                      int64_t c2, int64_t n_rows) {
    if (c1 == c2) return;
    rq_sgemm_tile(RQ_N, RQ_N, n_rows, c2 - c1, k, 1, b->delta + at, RUN + t->d, t->prep->hd + c0 * t->n + c1, t->n, 1,
                  b->g + c1, t->n);
}

/* The vector at columns [c0, c1) of every row, its change into b->delta at column `at`. Returns whether any changed. */
static bool descend_vector(const rq_book_refine *s, refine_scratch *b, int64_t v, int64_t at, int64_t row0,
                           int64_t n_rows) {
    const rq_book_task *t = s->t;
    int64_t n = t->n, d = t->d, c0 = v * d, c1 = rq_min_i64(n, c0 + d);
    const float *inverse = s->inverse + v * d * d, *h = t->prep->hd;
    bool any = false;
    memset(b->target, 0, (size_t)(n_rows * d) * sizeof *b->target);
    for (int64_t r = 0; r < n_rows; ++r) {
        const float *g = b->g + r * n + c0, *q = b->q + r * n + c0;
        for (int64_t j = 0; j < c1 - c0; ++j) {
            float step = 0;
            for (int64_t k = 0; k < c1 - c0; ++k) step += g[k] * inverse[k * d + j];
            b->target[r * d + j] = s->kept[c0 + j] < 0 ? q[j] - step : 0;
        }
    }
    pick_vector(t, b, v, s->metric + v * d * d, false, row0, n_rows);
    for (int64_t r = 0; r < n_rows; ++r) {
        float *g = b->g + r * n + c0, *q = b->q + r * n + c0, *delta = b->delta + r * (RUN + d) + at;
        double change = 0, size = 0;
        for (int64_t j = 0; j < c1 - c0; ++j) delta[j] = s->kept[c0 + j] < 0 ? b->now[r * d + j] - q[j] : 0;
        for (int64_t j = 0; j < c1 - c0; ++j) {
            double hd = 0;
            for (int64_t k = 0; k < c1 - c0; ++k) hd += (double)h[(c0 + j) * n + c0 + k] * (double)delta[k];
            change += (double)delta[j] * (2 * (double)g[j] + hd);
            size += fabs((double)delta[j] * (2 * (double)g[j]));
        }
        if (change < -1e-6 * size) {
            t->code[(row0 + r) * t->n_vec + v] = b->code[r];
            for (int64_t j = 0; j < c1 - c0; ++j) q[j] += delta[j];
            any = true;
        } else {
            memset(delta, 0, (size_t)(c1 - c0) * sizeof *delta);
        }
    }
    return any;
}

static void descend_outlier(const rq_book_refine *s, refine_scratch *b, int64_t j, int64_t at, int64_t row0,
                            int64_t n_rows) {
    const rq_book_task *t = s->t;
    int o = s->kept[j];
    float h = t->prep->hd[j * t->n + j];
    for (int64_t r = 0; r < n_rows; ++r) {
        float *q = &b->q[r * t->n + j], step = *step_of(t, row0 + r, o);
        float v = nearest_step(*q - b->g[r * t->n + j] / h, step); /* the exact minimum along this coordinate */
        b->delta[r * (RUN + t->d) + at] = step * v - *q;
        *q = step * v;
        t->outlier[(row0 + r) * t->prep->n_outlier + o] = (int8_t)v;
    }
}

static void descend_tile(void *arg, int64_t tile) {
    refine_shared *sh = arg;
    const rq_book_refine *s = sh->r;
    rq_book_task *t = s->t;
    int64_t n = t->n, d = t->d, row0 = tile * RQ_BOOK_TILE, n_rows = rq_min_i64(RQ_BOOK_TILE, t->n_out - row0);
    refine_scratch b;
    if (!scratch_new(&b, t)) {
        sh->failed = 1;
        goto done;
    }
    for (int sweep = 0; sweep < t->opt->cd_sweeps; ++sweep) {
        load_rows(t, &b, row0, n_rows);
        for (int64_t c0 = 0, c2; c0 < n; c0 = c2) {
            c2 = rq_min_i64(n, c0 + rq_ceil_div(RUN, d) * d);
            for (int64_t v = c0 / d; v * d < c2; ++v) {
                int64_t at = v * d - c0, width = rq_min_i64(d, n - v * d);
                if (descend_vector(s, &b, v, at, row0, n_rows)) propagate(t, &b, v * d, width, at, v * d, c2, n_rows);
                for (int64_t j = 0; j < width; ++j) {
                    if (s->kept[v * d + j] < 0) continue;
                    descend_outlier(s, &b, v * d + j, at + j, row0, n_rows);
                    propagate(t, &b, v * d + j, 1, at + j, v * d, c2, n_rows);
                }
            }
            propagate(t, &b, c0, c2 - c0, 0, c2, n, n_rows);
        }
    }
done:
    scratch_free(&b);
}

/* ---- scales ---- */

/* One group of columns of one row: v[len] what its codes stand for, vh = v H over all columns. */
static void refit_scale(rq_book_task *t, refine_scratch *b, int64_t r, int64_t row, int64_t group, const float *v,
                        const float *vh) {
    int64_t n = t->n, c0 = group * t->group, c1 = rq_min_i64(n, c0 + t->group);
    float *scale = &t->scale[row * t->n_group + group], *g = b->g + r * n;
    double slope = 0, curve = 0;
    for (int64_t j = c0; j < c1; ++j) {
        slope += (double)v[j] * (double)g[j];
        curve += (double)v[j] * (double)vh[j];
    }
    if (!(curve > 0) || !(*scale > 0)) return;
    double wanted = (double)*scale - slope / curve;
    wanted = fmin(fmax(wanted, 0.5 * (double)*scale), 2 * (double)*scale);
    float now = rq_book_scale_round(t, (float)wanted), step = now - *scale;
    if (!(now > 0) || !((double)step * (2 * slope + (double)step * curve) < 0)) return;
    *scale = now;
    for (int64_t j = 0; j < n; ++j) g[j] += step * vh[j];
}

static void scale_tile(void *arg, int64_t tile) {
    refine_shared *sh = arg;
    const rq_book_refine *s = sh->r;
    rq_book_task *t = s->t;
    int64_t n = t->n, row0 = tile * RQ_BOOK_TILE, n_rows = rq_min_i64(RQ_BOOK_TILE, t->n_out - row0);
    float v[RQ_VEC_MAX] = {0};
    refine_scratch b;
    if (!scratch_new(&b, t)) {
        sh->failed = 1;
        goto done;
    }
    load_rows(t, &b, row0, n_rows);
    for (int64_t r = 0; r < n_rows; ++r) { /* b.q: the codes' values without scales */
        for (int64_t i = 0; i < t->n_vec; ++i) {
            rq_book_expand(&t->book, i, &t->code[(row0 + r) * t->n_vec + i], v);
            for (int64_t j = i * t->d; j < rq_min_i64(n, (i + 1) * t->d); ++j)
                b.q[r * n + j] = s->kept[j] < 0 ? v[j - i * t->d] : 0;
        }
    }
    for (int64_t g = 0; g < t->n_group; ++g) {
        int64_t c0 = g * t->group, len = rq_min_i64(t->group, n - c0);
        rq_sgemm_tile(RQ_N, RQ_N, n_rows, n, len, 1, b.q + c0, n, t->prep->hd + c0 * n, n, 0, b.e, n);
        for (int64_t r = 0; r < n_rows; ++r) refit_scale(t, &b, r, row0 + r, g, b.q + r * n, b.e + r * n);
    }
done:
    scratch_free(&b);
}

rq_status rq_book_refine_pass(const rq_book_refine *r, rq_book_pass pass) {
    void (*const tile[])(void *, int64_t) = {choose_tile, scale_tile, descend_tile};
    refine_shared sh = {.r = r};
    if (r->t->vec_out) return rq_lines_pass(r, pass);
    rq_parallel_for(rq_ceil_div(r->t->n_out, RQ_BOOK_TILE), tile[pass], &sh);
    return sh.failed ? rq_fail(RQ_ERR_NOMEM, "out of memory in the refinement") : RQ_OK;
}

/* The same on whatever device. */
static rq_status run_pass(const rq_book_refine *r, rq_book_pass pass) {
    const rq_device *device = r->t->prep->device;
    return rq_device_row(device)->book_pass(rq_device_own(device), r, pass);
}

/* ---- learning signs ---- */

/* What the refinement of rows changes. */
typedef struct snapshot {
    rq_vec_code *code;
    int8_t *outlier;
    float *scale, *value;
    double loss;
} snapshot;

static void copy_task(rq_book_task *t, snapshot *p, bool back) {
    const rq_book *b = &t->book;
    void *const task[] = {t->code, t->outlier, t->scale, b->value[0]};
    void *const kept[] = {p->code, p->outlier, p->scale, p->value};
    const size_t size[] = {(size_t)(t->n_out * t->n_vec) * sizeof *t->code, (size_t)(t->n_out * t->prep->n_outlier),
                           (size_t)(t->n_out * t->n_group) * sizeof *t->scale,
                           (size_t)(b->n_book * b->k[0] * b->d) * sizeof *b->value[0]};
    for (int i = 0; i < 4; ++i) memcpy(back ? task[i] : kept[i], back ? kept[i] : task[i], size[i]);
    if (back) rq_book_store(t); /* stored values come back as they were */
}

/* One round of refits, and sweeps over codes. */
static rq_status refine_round(const rq_book_refine *s, bool refit) {
    rq_status status = RQ_OK;
    if (refit) {
        RQ_TRY(rq_refit_book(s->t));
        RQ_TRY(s->t->vec_out ? rq_refit_columns(s->t) : run_pass(s, RQ_BOOK_SCALES));
    }
    if (s->t->opt->cd_sweeps > 0) RQ_TRY(run_pass(s, RQ_BOOK_DESCEND));
done:
    return status;
}

/* Phases of sign learning (comp_signs.c), each followed by a round of refinement, and one more round. The best is kept. */
static rq_status learn_signs(const rq_book_refine *s) {
    rq_status status = RQ_OK;
    rq_book_task *t = s->t;
    rq_signs signs = {0};
    snapshot best = {0};
    double loss;
    if (rq_device_row(t->prep->device) != &rq_device_cpu)
        rq_log(RQ_LOG_INFO, "%s: the gradient steps of --sign-steps are made on the CPU", t->label);
    RQ_TRY(RQ_NEW(best.code, t->n_out * t->n_vec));
    RQ_TRY(RQ_NEW(best.outlier, rq_max_i64(1, t->n_out * t->prep->n_outlier)));
    RQ_TRY(RQ_NEW(best.scale, t->n_out * t->n_group));
    RQ_TRY(RQ_NEW(best.value, t->book.n_book * t->book.k[0] * t->book.d));
    RQ_TRY(rq_book_loss(t, &best.loss));
    copy_task(t, &best, false);
    for (int64_t left = t->opt->sign_steps, steps = 1; steps > 0; left -= steps) {
        steps = rq_min_i64(left, SIGN_PHASE);
        if (steps > 0) {
            RQ_TRY(rq_signs_new(&signs, t));
            rq_signs_run(&signs, steps, t->opt->sign_rate);
            rq_signs_free(&signs);
        }
        RQ_TRY(refine_round(s, true));
        RQ_TRY(rq_book_loss(t, &loss));
        if (!(loss < best.loss)) continue;
        best.loss = loss;
        copy_task(t, &best, false);
    }
    copy_task(t, &best, true);
done:
    rq_signs_free(&signs);
    free(best.code);
    free(best.outlier);
    free(best.scale);
    free(best.value);
    return status;
}

/* ---- the whole ---- */

/* H_bb of one vector without its outlier columns: over its largest entry, and inverted. */
static void block_metric(const rq_book_refine *s, int64_t v) {
    const rq_book_task *t = s->t;
    int64_t n = t->n, d = t->d, lane[RQ_VEC_MAX] = {0}, k = 0;
    double a[RQ_VEC_MAX * RQ_VEC_MAX] = {0}, inv[RQ_VEC_MAX * RQ_VEC_MAX], top = 0;
    for (int64_t j = 0; j < rq_min_i64(d, n - v * d); ++j) {
        if (s->kept[v * d + j] < 0) lane[k++] = j;
    }
    for (int64_t i = 0; i < k; ++i) {
        for (int64_t j = 0; j < k; ++j) a[i * k + j] = (double)t->prep->hd[(v * d + lane[i]) * n + v * d + lane[j]];
        top = fmax(top, a[i * k + i]);
    }
    rq_invert_spd(inv, a, k);
    for (int64_t i = 0; i < k; ++i) {
        for (int64_t j = 0; j < k; ++j) {
            s->metric[v * d * d + lane[i] * d + lane[j]] = (float)(a[i * k + j] / top);
            s->inverse[v * d * d + lane[i] * d + lane[j]] = (float)inv[i * k + j];
        }
    }
}

rq_status rq_refine_book(rq_book_task *t) {
    rq_status status = RQ_OK;
    rq_book_refine s = {.t = t};
    int64_t d = t->d;
    if (!t->prep->hd) return RQ_OK;
    RQ_TRY(rq_book_kept(&s.kept, t));
    if (!t->vec_out) {
        RQ_TRY(RQ_NEW_ZERO(s.metric, t->n_vec * d * d));
        RQ_TRY(RQ_NEW_ZERO(s.inverse, t->n_vec * d * d));
    }
    for (int64_t v = 0; v < t->n_vec && s.metric; ++v) block_metric(&s, v);
    RQ_TRY(run_pass(&s, RQ_BOOK_CHOOSE));
    for (int round = 0; round <= t->opt->refit; ++round) RQ_TRY(refine_round(&s, round > 0));
    if (t->opt->sign_steps > 0) RQ_TRY(learn_signs(&s));
    /* there are other codebooks to be nearest in now */
    if (t->opt->refit > 0 || t->opt->sign_steps > 0) RQ_TRY(run_pass(&s, RQ_BOOK_CHOOSE));
done:
    free(s.metric);
    free(s.inverse);
    free(s.kept);
    return status;
}
