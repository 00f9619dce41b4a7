/* SPDX-License-Identifier: Apache-2.0 */
/* From weights to codes, one matrix or a stack of several: move the target, sweep, refine, bring everything to natural order; and the losses. */
#include <math.h>

#include "backend.h"
#include "comp.h"
#include "comp_book.h"
#include "device.h"

void rq_quant_result_free(rq_quant_result *r) {
    free(r->codes);
    free(r->scale);
    free(r->zero);
    free(r->g_idx);
    free(r->q);
    while (r->n_owned > 0) free(r->owned[--r->n_owned]);
    *r = (rq_quant_result){0};
}

static rq_status check_weights(const float *w, int64_t n_out, int64_t n, const char *label) {
    const int64_t i = rq_first_not_finite(w, NULL, n_out, n);
    if (i < 0) return RQ_OK;
    return rq_fail(RQ_ERR_INPUT, "%s: weight [%lld][%lld] is %g", label, (long long)(i / n), (long long)(i % n), w[i]);
}

/* out = w + factor * w M, in natural order (rq_prep.m). */
static rq_status moved_target(float *out, const float *w, int64_t n_out, const rq_prep *p, double factor) {
    rq_status status = rq_device_row(p->device)->move(rq_device_own(p->device), out, w, n_out, p, factor);
    return status == RQ_OK ? check_weights(out, n_out, p->n, "the moved target") : status;
}

/* dst[i][perm ? position of j : j] = src[i][j], dead features as zero. */
typedef struct stored_job {
    float *dst;
    const float *src;
    const rq_prep *prep;
    bool sweep_order;
} stored_job;

static void stored_row(void *arg, int64_t i) {
    const stored_job *k = arg;
    const rq_prep *p = k->prep;
    for (int64_t c = 0; c < p->n; ++c) {
        const int64_t j = k->sweep_order ? p->perm[c] : c;
        k->dst[i * p->n + c] = p->dead[j] ? 0 : k->src[i * p->n + j];
    }
}

/* What the sweep s left of its rows, from row0 of start[n_out][n] on. Moved targets are made of all rows: the product's tiles depend on their number. */
static rq_status refine(const rq_sweep *s, const float *start, int64_t row0, int64_t n_out, bool sweep_order,
                        const char *label) {
    rq_status status = RQ_OK;
    const rq_prep *p = s->prep;
    const rq_quant_opt *o = s->opt;
    float *target = NULL, *moved = NULL;
    const float *goal = start; /* the exact target when rho moved it */
    RQ_TRY(RQ_NEW(target, s->n_out * p->n));
    if (o->alpha != 0 && p->m) {
        RQ_TRY(RQ_NEW(moved, n_out * p->n));
        RQ_TRY(moved_target(moved, start, n_out, p, o->alpha));
        goal = moved;
    }
    stored_job stored = {target, goal + row0 * p->n, p, sweep_order};
    rq_parallel_for(s->n_out, stored_row, &stored);
    const rq_refine job = {s->codes, s->scale, s->zero, s->step, target, p->hd, s->n_out, p->n, s->group, o};
    RQ_TRY(rq_device_row(p->device)->refine(rq_device_own(p->device), &job, p, label));
done:
    free(target);
    free(moved);
    return status;
}

typedef struct natural_job {
    uint8_t *codes, *line; /* line: [parts][n] */
    const rq_prep *prep;
    int64_t n_out, parts;
} natural_job;

static void natural_part(void *arg, int64_t part) {
    const natural_job *k = arg;
    const int64_t n = k->prep->n;
    uint8_t *line = k->line + part * n;
    for (int64_t i = k->n_out * part / k->parts; i < k->n_out * (part + 1) / k->parts; ++i) {
        memcpy(line, k->codes + i * n, (size_t)n);
        for (int64_t c = 0; c < n; ++c) k->codes[i * n + k->prep->perm[c]] = line[c];
    }
}

/* Codes from sweep order to natural order; g_idx from the permutation. */
static rq_status to_natural_order(rq_quant_result *r, const rq_prep *p, int64_t n_out, int64_t group) {
    rq_status status = RQ_OK;
    natural_job job = {.codes = r->codes, .prep = p, .n_out = n_out, .parts = rq_min_i64(n_out, 64)};
    RQ_TRY(RQ_NEW(job.line, job.parts * p->n));
    RQ_TRY(RQ_NEW(r->g_idx, p->n));
    for (int64_t c = 0; c < p->n; ++c) r->g_idx[p->perm[c]] = (int32_t)(c / group);
    rq_parallel_for(job.parts, natural_part, &job);
done:
    free(job.line);
    return status;
}

/* What codes stand for. */
typedef struct values_job {
    rq_quant_result *r;
    const float *scale; /* [n_out][of_row] */
    int64_t of_row;
    const float *zero, *step; /* step: of w4a8, otherwise NULL */
    int64_t n, group, n_group;
} values_job;

static void values_row(void *arg, int64_t i) {
    const values_job *v = arg;
    const uint8_t *codes = v->r->codes + i * v->n;
    const int32_t *g_idx = v->r->g_idx;
    const float *scale = v->scale + i * v->of_row, *zero = v->zero + i * v->n_group;
    float *q = v->r->q + i * v->n;
    for (int64_t j = 0; g_idx && j < v->n; ++j) q[j] = scale[g_idx[j]] * ((float)codes[j] - zero[g_idx[j]]);
    for (int64_t k = 0; !g_idx && k < v->n_group; ++k) {
        const int64_t end = rq_min_i64(v->n, (k + 1) * v->group);
        const float s = scale[v->of_row > 1 ? k : 0], z = zero[k], step = v->step ? v->step[i * v->n_group + k] : 1.0f;
        for (int64_t j = k * v->group; j < end; ++j) q[j] = s * ((float)codes[j] * step - z);
    }
}

/* Format w4a8: one scale a row, and what its groups have as the integers that they are. */
static rq_status finish_w4a8(rq_quant_result *r, const float *zero, const float *step, int64_t n_out, int64_t n,
                             int64_t group, const rq_quant_opt *o) {
    rq_status status = RQ_OK;
    int64_t n_group = rq_ceil_div(n, group);
    float *scale = NULL;
    uint8_t *small = NULL; /* zeros, or steps */
    int8_t *base = NULL;
    RQ_TRY(RQ_NEW(scale, n_out));
    r->owned[r->n_owned++] = scale;
    RQ_TRY(RQ_NEW(small, n_out * n_group));
    r->owned[r->n_owned++] = small;
    RQ_TRY(RQ_NEW(base, n_out * n_group));
    r->owned[r->n_owned++] = base;
    for (int64_t i = 0; i < n_out; ++i) {
        scale[i] = r->scale[i * n_group];
        for (int64_t k = i * n_group; k < (i + 1) * n_group; ++k) {
            small[k] = (uint8_t)(int)(o->group ? step[k] : zero[k]);
            base[k] = (int8_t)(int)-zero[k];
        }
    }
    values_job values = {r, scale, 1, zero, step, n, group, n_group};
    rq_parallel_for(n_out, values_row, &values);
    r->format = RQ_FORMAT_W4A8;
    r->w4a8 = (rq_w4a8_codes){.n_out = n_out, .n_in = n, .group = o->group, .codes = r->codes, .scale = scale};
    if (o->group)
        r->w4a8.step = small, r->w4a8.base = base;
    else if (!o->sym)
        r->w4a8.zero = small;
done:
    return status;
}

/* Rows of rank `rank`: whole tiles, so that every product is of the size that it has in one process. */
enum { ROW_TILE = 96 };
static void rows_of(const rq_ranks *ranks, int rank, int64_t n_out, int64_t *row0, int64_t *n_rows) {
    const int64_t tiles = rq_ceil_div(n_out, ROW_TILE), n = rq_n_ranks(ranks);
    *row0 = rq_min_i64(n_out, tiles * rank / n * ROW_TILE);
    *n_rows = rq_min_i64(n_out, tiles * (rank + 1) / n * ROW_TILE) - *row0;
}

/* Each rank's rows of x[n_out][width] to all. */
static rq_status gather_rows(const rq_ranks *ranks, void *x, int64_t n_out, int64_t width, size_t element) {
    rq_status status = RQ_OK;
    for (int k = 0; status == RQ_OK && x && k < rq_n_ranks(ranks); ++k) {
        int64_t row0, n_rows;
        rows_of(ranks, k, n_out, &row0, &n_rows);
        const int64_t bytes = width * (int64_t)element;
        if (n_rows > 0) status = ranks->bcast(ranks->user, (char *)x + row0 * bytes, n_rows * bytes, k);
    }
    return status;
}

/* What a sweep leaves of its rows, in stored order: of one matrix, or of several that are swept as one stack. */
typedef struct grid_rows {
    uint8_t *codes;             /* [n_out][n] */
    float *scale, *zero, *step; /* [n_out][n_group]; step: of a rounder with find_row() */
    float *q;                   /* [n_out][n]; NULL of a stack */
    bool sweep_order;           /* codes and groups are in sweep order */
} grid_rows;

static void grid_rows_free(grid_rows *g) {
    free(g->codes);
    free(g->scale);
    free(g->zero);
    free(g->step);
    free(g->q);
}

/* Clip search, sweep and refinement of w[n_out][n]. With stacked rows g has no q, which only the CPU's sweep fills, and the CPU stacks none. */
static rq_status sweep_rows(grid_rows *g, const float *w, int64_t n_out, bool stacked, const rq_prep *p,
                            const rq_quant_opt *o, const char *label) {
    rq_status status = RQ_OK;
    const rq_comp_row *row = rq_comp_get(o->comp);
    float *moved = NULL;
    int64_t n = p->n, group = o->group ? o->group : n, n_group = rq_ceil_div(n, group);
    RQ_TRY(RQ_NEW(g->codes, n_out * n));
    RQ_TRY(RQ_NEW(g->scale, n_out * n_group));
    RQ_TRY(RQ_NEW(g->zero, n_out * n_group));
    if (rq_round_get(o->round)->find_row) RQ_TRY(RQ_NEW(g->step, n_out * n_group));
    if (!stacked) RQ_TRY(RQ_NEW(g->q, n_out * n));

    const float *start = w;
    if (row->propagates && o->rho != 0) {
        RQ_TRY(RQ_NEW(moved, n_out * n));
        RQ_TRY(moved_target(moved, w, n_out, p, o->rho));
        start = moved;
    }
    bool dynamic = rq_groups_in_sweep_order(o, n);
    const bool output = o->clip == RQ_CLIP_OUTPUT;
    int64_t row0 = 0, n_rows = n_out;
    if (p->share_rows) rows_of(p->share_rows, p->share_rows->rank, n_out, &row0, &n_rows);
    const int64_t k0 = row0 * n_group;
    rq_sweep sweep = {p,
                      o,
                      start + row0 * n,
                      n_rows,
                      group,
                      n_group,
                      g->codes + row0 * n,
                      g->scale + k0,
                      g->zero + k0,
                      g->step ? g->step + k0 : NULL,
                      g->q ? g->q + row0 * n : NULL,
                      dynamic,
                      output};
    if (output) RQ_TRY(rq_device_row(p->device)->clip(rq_device_own(p->device), &sweep, label));
    RQ_TRY(rq_device_row(p->device)->sweep(rq_device_own(p->device), &sweep, label));
    g->sweep_order = dynamic && o->act_order;
    if (p->hd) RQ_TRY(refine(&sweep, start, row0, n_out, g->sweep_order, label));
    if (p->share_rows) {
        RQ_TRY(gather_rows(p->share_rows, g->codes, n_out, n, sizeof *g->codes));
        RQ_TRY(gather_rows(p->share_rows, g->scale, n_out, n_group, sizeof *g->scale));
        RQ_TRY(gather_rows(p->share_rows, g->zero, n_out, n_group, sizeof *g->zero));
        RQ_TRY(gather_rows(p->share_rows, g->step, n_out, n_group, sizeof *g->step));
    }
done:
    free(moved);
    return status;
}

/* The n_out rows of g from row0 on as a matrix of their own; of a sweep that was not stacked r takes the arrays. */
static rq_status finish_grid(rq_quant_result *r, grid_rows *g, int64_t row0, int64_t n_out, bool stacked,
                             const rq_prep *p, const rq_quant_opt *o) {
    rq_status status = RQ_OK;
    int64_t n = p->n, group = o->group ? o->group : n, n_group = rq_ceil_div(n, group), k0 = row0 * n_group;
    const float *zero = g->zero + k0;
    if (stacked) {
        RQ_TRY(RQ_NEW(r->codes, n_out * n));
        RQ_TRY(RQ_NEW(r->scale, n_out * n_group));
        RQ_TRY(RQ_NEW(r->q, n_out * n));
        memcpy(r->codes, g->codes + row0 * n, (size_t)(n_out * n) * sizeof *r->codes);
        memcpy(r->scale, g->scale + k0, (size_t)(n_out * n_group) * sizeof *r->scale);
    } else {
        r->codes = g->codes, r->scale = g->scale, r->q = g->q;
        g->codes = NULL, g->scale = g->q = NULL;
    }
    if (g->sweep_order) RQ_TRY(to_natural_order(r, p, n_out, group));
    if (g->step) {
        RQ_TRY(finish_w4a8(r, zero, g->step + k0, n_out, n, group, o));
        goto done;
    }
    if (!o->sym) {
        RQ_TRY(RQ_NEW(r->zero, n_out * n_group));
        for (int64_t i = 0; i < n_out * n_group; ++i) r->zero[i] = (uint8_t)(int)zero[i];
    }
    values_job values = {r, r->scale, n_group, zero, NULL, n, group, n_group};
    rq_parallel_for(n_out, values_row, &values);
    r->format = RQ_FORMAT_GRID;
    r->grid = (rq_grid_codes){n_out, n, group, n_group, o->bits, o->scale_dtype, r->codes, r->scale, r->zero, r->g_idx};
done:
    return status;
}

/* Matrices that share everything but their rows, in one sweep. */
static rq_status quantize_grids(rq_quant_result *r, const rq_quant_matrix *m, int n_matrices, const rq_prep *p,
                                const rq_quant_opt *o) {
    rq_status status = RQ_OK;
    const bool stacked = n_matrices > 1;
    grid_rows g = {0};
    float *stack = NULL;
    char label[320] = ""; /* all their names, as many as there is room for */
    int64_t n_out = 0, row0 = 0;
    for (int i = 0; i < n_matrices; ++i) {
        RQ_TRY(check_weights(m[i].w, m[i].n_out, p->n, m[i].name));
        const size_t used = strlen(label);
        snprintf(label + used, sizeof label - used, "%s%s", i ? " + " : "", m[i].name);
        n_out += m[i].n_out;
    }
    if (stacked) RQ_TRY(RQ_NEW(stack, n_out * p->n));
    for (int i = 0; stacked && i < n_matrices; row0 += m[i++].n_out)
        memcpy(stack + row0 * p->n, m[i].w, (size_t)(m[i].n_out * p->n) * sizeof *stack);
    RQ_TRY(sweep_rows(&g, stacked ? stack : m->w, n_out, stacked, p, o, label));
    row0 = 0;
    for (int i = 0; i < n_matrices; row0 += m[i++].n_out)
        RQ_TRY(finish_grid(&r[i], &g, row0, m[i].n_out, stacked, p, o));
done:
    free(stack);
    grid_rows_free(&g);
    return status;
}

/* How many of m[n] from the first on are swept at once: one, or on a device that stacks as many as have at most its stack_rows together. */
static int stack_of(const rq_quant_matrix *m, int n, const rq_prep *p) {
    const int64_t most = p->share_rows ? 0 : rq_device_row(p->device)->stack_rows;
    int64_t rows = m->n_out;
    int count = 1;
    while (count < n && rows + m[count].n_out <= most) rows += m[count++].n_out;
    return count;
}

rq_status rq_quantize_set(rq_quant_result *r, const rq_quant_matrix *m, int n_matrices, const rq_prep *p,
                          const rq_quant_opt *o) {
    rq_status status = RQ_OK;
    for (int i = 0; i < n_matrices; ++i) r[i] = (rq_quant_result){0};
    if (n_matrices < 1) RQ_FAIL(RQ_ERR_ARG, "a set of %d matrices", n_matrices);
    RQ_TRY(rq_quant_check(o, p->n));
    for (int i = 0; i < n_matrices; ++i) {
        if (m[i].n_out < 1) RQ_FAIL(RQ_ERR_ARG, "%s: %lld rows", m[i].name, (long long)m[i].n_out);
    }
    if (rq_round_is_book(o->round)) {
        RQ_TRY(rq_quantize_books(r, m, n_matrices, p, o));
        goto done;
    }
    for (int i = 0, count; i < n_matrices; i += count) {
        count = stack_of(m + i, n_matrices - i, p);
        RQ_TRY(quantize_grids(r + i, m + i, count, p, o));
    }
done:
    for (int i = 0; status != RQ_OK && i < n_matrices; ++i) rq_quant_result_free(&r[i]);
    return status;
}

rq_status rq_quantize_matrix(rq_quant_result *r, const float *w, int64_t n_out, const rq_prep *p, const rq_quant_opt *o,
                             const char *label) {
    const rq_quant_matrix m = {label, w, n_out};
    return rq_quantize_set(r, &m, 1, p, o);
}

rq_status rq_layer_loss(const float *w, const float *q, int64_t n_out, int64_t n, const double *h, const double *d,
                        double *loss_sym, double *loss_asym, double *whw) {
    rq_status status = RQ_OK;
    float *m = NULL, *e = NULL, *eh = NULL;
    double sym = 0, cross = 0, total = 0;
    RQ_TRY(RQ_NEW(m, n * n));
    RQ_TRY(RQ_NEW(e, n_out * n));
    RQ_TRY(RQ_NEW(eh, n_out * n));
    for (int64_t i = 0; i < n * n; ++i) m[i] = (float)h[i];
    for (int64_t i = 0; i < n_out * n; ++i) e[i] = w[i] - q[i];
    rq_sgemm(RQ_N, RQ_N, n_out, n, n, 1, e, n, m, n, 0, eh, n);
    for (int64_t i = 0; i < n_out * n; ++i) sym += (double)eh[i] * e[i];
    rq_sgemm(RQ_N, RQ_N, n_out, n, n, 1, w, n, m, n, 0, eh, n);
    for (int64_t i = 0; i < n_out * n; ++i) total += (double)eh[i] * w[i];
    if (d) {
        for (int64_t i = 0; i < n * n; ++i) m[i] = (float)d[i];
        rq_sgemm(RQ_N, RQ_N, n_out, n, n, 1, w, n, m, n, 0, eh, n);
        for (int64_t i = 0; i < n_out * n; ++i) cross += (double)eh[i] * e[i];
    }
    *loss_sym = sym;
    *loss_asym = sym + 2 * cross;
    *whw = total;
done:
    free(m);
    free(e);
    free(eh);
    return status;
}
