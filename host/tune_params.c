/* SPDX-License-Identifier: Apache-2.0 */
/* The parameters that are tuned, and what ties them to matrices: w[i][j] = s[i][g(j)] (code - zero), so
 *
 *   dL/ds[i][g] = sum over j in g of dL/dw[i][j] (code[i][j] - zero[i][g])
 *
 * Codes are kept a byte each in the order of the input features, whatever order they are stored in. Matrices with codebooks
 * are tune_books.c's, those for 8-bit inputs tune_w4a8.c's. */
#include <math.h>

#include "simd.h"
#include "tune.h"

enum { ROWS = 16 /* of a task */, LANES = 16 };

int64_t rq_tune_gain(const rq_tuner *t, int64_t layer, int which) {
    return t->n_scale + (2 * layer + which) * t->m->cfg.d_model;
}

/* ---- codes ---- */

typedef struct rows_job {
    const rq_tune_matrix *x;
    const float *scale, *unit;
    float *w;        /* weights: written */
    const float *dw; /* their gradient: read */
    float *grad;
} rows_job;

static void code_item(void *arg, int64_t item) {
    const rq_tune_matrix *x = ((const rows_job *)arg)->x;
    const rq_grid *g = x->grid;
    int64_t end = rq_min_i64((item + 1) * ROWS, g->n_out);
    for (int64_t i = item * ROWS; i < end; ++i) {
        uint8_t *row = x->code + i * g->n_in;
        for (int64_t j = 0; j < g->n_in; ++j) row[g->perm ? g->perm[j] : j] = (uint8_t)rq_grid_code(g, i, j);
    }
}

static rq_status matrix_new(rq_tune_matrix *x, const rq_linear *lin, rq_packed *packed) {
    rq_status status = RQ_OK;
    x->lin = lin;
    if (!lin->packed) return RQ_OK;
    if (lin->packed->format == RQ_FORMAT_W4A8) {
        rq_tune_w4a8_new(x, lin->packed);
        return RQ_OK;
    }
    if (lin->packed->format != RQ_FORMAT_GRID) return rq_tune_vec_new(x, &packed[lin->packed - packed]);
    const rq_grid *g = x->grid = &lin->packed->u.grid;
    x->group = g->group;
    x->n_group = g->n_group;
    RQ_TRY(RQ_NEW(x->code, g->n_out * g->n_in));
    if (g->perm) {
        RQ_TRY(RQ_NEW(x->group_of, g->n_in));
        for (int64_t j = 0; j < g->n_in; ++j) x->group_of[g->perm[j]] = (int32_t)(j / g->group);
    }
    rows_job job = {.x = x};
    rq_parallel_for(rq_ceil_div(g->n_out, ROWS), code_item, &job);
done:
    return status;
}

static void gains_new(rq_tuner *t, int64_t at, const float *gain) {
    int64_t d = t->m->cfg.d_model;
    double square = 0;
    for (int64_t i = 0; i < d; ++i) square += (double)gain[i] * (double)gain[i];
    float unit = square > 0 ? (float)sqrt(square / (double)d) : 1.0f;
    for (int64_t i = 0; i < d; ++i) {
        t->value[at + i] = gain[i];
        t->unit[at + i] = unit;
    }
}

rq_status rq_tune_params_new(rq_tuner *t) {
    rq_status status = RQ_OK;
    rq_model *m = t->m;
    int64_t n_layer = m->cfg.n_layer, d = m->cfg.d_model, n = n_layer * RQ_N_LINEARS;
    RQ_TRY(RQ_NEW_ZERO(t->matrix, n));
    for (int64_t i = 0; i < n; ++i) {
        rq_tune_matrix *x = &t->matrix[i];
        RQ_TRY(matrix_new(x, &m->block[i / RQ_N_LINEARS].lin[i % RQ_N_LINEARS], m->packed));
        x->param = t->n_scale;
        t->n_scale += x->lin->n_out * x->n_group;
        x->in_param = t->n_scale;
        if (x->w4a8 && x->w4a8->in_scale) t->n_scale += x->lin->n_in;
    }
    if (t->n_scale == 0) {
        RQ_FAIL(RQ_ERR_ARG, "%s: no matrix of its blocks is packed with scales of rows: there are no scales to tune",
                rq_store_path(m->store));
    }
    t->n_param = t->first_entry = t->n_scale + (2 * n_layer + 1) * d;
    RQ_TRY(rq_tune_books_find(t));
    RQ_TRY(RQ_NEW(t->value, t->n_param));
    RQ_TRY(RQ_NEW(t->unit, t->n_param));
    RQ_TRY(RQ_NEW_ZERO(t->grad, t->n_param));
    RQ_TRY(RQ_NEW(t->start, t->n_param));
    for (int64_t i = 0; i < n; ++i) {
        const rq_tune_matrix *x = &t->matrix[i];
        if (x->w4a8) rq_tune_w4a8_values(t, x);
        for (int64_t k = 0; !x->w4a8 && k < x->lin->n_out * x->n_group; ++k) {
            float s = x->grid ? rq_grid_scale(x->grid, k / x->n_group, k % x->n_group)
                              : rq_f32_of_f16((*rq_tune_row_scales(&m->packed[x->lin->packed - m->packed]))[k]);
            t->value[x->param + k] = t->unit[x->param + k] = s;
        }
    }
    for (int64_t layer = 0; layer < n_layer; ++layer) {
        gains_new(t, rq_tune_gain(t, layer, 0), m->block[layer].norm1);
        gains_new(t, rq_tune_gain(t, layer, 1), m->block[layer].norm2);
    }
    gains_new(t, rq_tune_gain(t, n_layer, 0), m->norm_f);
    rq_tune_books_values(t);
    memcpy(t->start, t->value, (size_t)t->n_param * sizeof *t->start);
done:
    return status;
}

/* ---- scales to weights, and back ---- */

RQ_CLONES static void group_weights(float *restrict w, const uint8_t *restrict code, float scale, float zero,
                                    int64_t n) {
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        for (int k = 0; k < LANES; ++k) w[j + k] = scale * ((float)code[j + k] - zero);
    }
    for (; j < n; ++j) w[j] = scale * ((float)code[j] - zero);
}

RQ_CLONES static float group_dot(const float *restrict dw, const uint8_t *restrict code, float zero, int64_t n) {
    float sum[LANES] = {0};
    double total = 0;
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        for (int k = 0; k < LANES; ++k) sum[k] += dw[j + k] * ((float)code[j + k] - zero);
    }
    for (int k = 0; k < LANES; ++k) total += (double)sum[k];
    for (; j < n; ++j) total += (double)(dw[j] * ((float)code[j] - zero));
    return (float)total;
}

static void weights_item(void *arg, int64_t item) {
    const rows_job *job = arg;
    const rq_tune_matrix *x = job->x;
    const rq_grid *g = x->grid;
    int64_t end = rq_min_i64((item + 1) * ROWS, g->n_out);
    for (int64_t i = item * ROWS; i < end; ++i) {
        const uint8_t *code = x->code + i * g->n_in;
        const float *scale = job->scale + i * g->n_group;
        float *w = job->w + i * g->n_in;
        for (int64_t j = 0; x->group_of && j < g->n_in; ++j) {
            int32_t k = x->group_of[j];
            w[j] = scale[k] * (float)((int)code[j] - rq_grid_zero(g, i, k));
        }
        for (int64_t k = 0; !x->group_of && k < g->n_group; ++k) {
            int64_t at = k * g->group, n = rq_min_i64(g->group, g->n_in - at);
            group_weights(w + at, code + at, scale[k], (float)rq_grid_zero(g, i, k), n);
        }
    }
}

rq_status rq_tune_weights(const rq_tuner *t, int64_t matrix, float *w) {
    const rq_tune_matrix *x = &t->matrix[matrix];
    if (x->n_group == 0) return rq_linear_rows(x->lin, 0, x->lin->n_out, w);
    rows_job job = {.x = x, .scale = t->value + x->param, .w = w};
    if (x->vec) {
        rq_tune_vec_weights(t, x, w);
    } else {
        rq_parallel_for(rq_ceil_div(x->lin->n_out, ROWS), weights_item, &job);
    }
    return RQ_OK;
}

static void grad_item(void *arg, int64_t item) {
    const rows_job *job = arg;
    const rq_tune_matrix *x = job->x;
    const rq_grid *g = x->grid;
    int64_t end = rq_min_i64((item + 1) * ROWS, g->n_out);
    for (int64_t i = item * ROWS; i < end; ++i) {
        const uint8_t *code = x->code + i * g->n_in;
        const float *dw = job->dw + i * g->n_in, *unit = job->unit + i * g->n_group;
        float *grad = job->grad + i * g->n_group;
        memset(grad, 0, (size_t)g->n_group * sizeof *grad);
        for (int64_t j = 0; x->group_of && j < g->n_in; ++j) {
            int32_t k = x->group_of[j];
            grad[k] += dw[j] * (float)((int)code[j] - rq_grid_zero(g, i, k));
        }
        for (int64_t k = 0; k < g->n_group; ++k) {
            int64_t at = k * g->group, n = rq_min_i64(g->group, g->n_in - at);
            if (!x->group_of) grad[k] = group_dot(dw + at, code + at, (float)rq_grid_zero(g, i, k), n);
            grad[k] *= unit[k];
        }
    }
}

void rq_tune_matrix_grad(rq_tuner *t, int64_t matrix, const float *dw) {
    const rq_tune_matrix *x = &t->matrix[matrix];
    rows_job job = {.x = x, .dw = dw, .unit = t->unit + x->param, .grad = t->grad + x->param};
    if (x->n_group == 0) return;
    if (x->vec) {
        rq_tune_vec_grad(t, x, dw);
    } else {
        rq_parallel_for(rq_ceil_div(x->lin->n_out, ROWS), grad_item, &job);
    }
}

/* ---- into the model ---- */

rq_status rq_tune_own(void **memory, rq_packed *p, const void *now, int64_t n, int64_t size) {
    *memory = (void *)(uintptr_t)now;
    for (int i = 0; i < p->n_owned; ++i) {
        if (p->owned[i] == now) return RQ_OK;
    }
    if (p->n_owned == sizeof p->owned / sizeof *p->owned) {
        return rq_fail(RQ_ERR_ARG, "a packed matrix owns %d arrays already", p->n_owned);
    }
    rq_status status = rq_alloc(memory, n, size);
    if (status == RQ_OK) p->owned[p->n_owned++] = *memory;
    return status;
}

/* Scales of a grid, or of rows of codebook codes. */
static rq_status publish_scales(rq_tuner *t, const rq_tune_matrix *x) {
    rq_status status = RQ_OK;
    rq_packed *p = &t->m->packed[x->lin->packed - t->m->packed];
    const float *value = t->value + x->param;
    int64_t n = x->lin->n_out * x->n_group;
    const rq_f16 **rows = rq_tune_row_scales(p);
    bool is_half = rows || p->u.grid.scale_f16;
    void *to;
    const void *now = rows      ? (const void *)*rows
                      : is_half ? (const void *)p->u.grid.scale_f16
                                : (const void *)p->u.grid.scale_f32;
    RQ_TRY(rq_tune_own(&to, p, now, n, is_half ? sizeof(rq_f16) : sizeof(float)));
    for (int64_t k = 0; k < n; ++k) {
        rq_f16 half = rq_f16_of_f32(value[k]);
        if (!isfinite(is_half ? rq_f32_of_f16(half) : value[k])) {
            RQ_FAIL(RQ_ERR_NUMERIC, "%s: a scale became %g", x->lin->name, (double)value[k]);
        }
        if (is_half) {
            ((rq_f16 *)to)[k] = half;
        } else {
            ((float *)to)[k] = value[k];
        }
    }
    if (rows) {
        *rows = to;
    } else if (is_half) {
        p->u.grid.scale_f16 = to;
    } else {
        p->u.grid.scale_f32 = to;
    }
done:
    return status;
}

rq_status rq_tuner_publish(rq_tuner *t) {
    rq_status status = RQ_OK;
    rq_model *m = t->m;
    size_t gain_bytes = (size_t)m->cfg.d_model * sizeof(float);
    for (int64_t i = 0; i < m->cfg.n_layer * RQ_N_LINEARS; ++i) {
        const rq_tune_matrix *x = &t->matrix[i];
        if (x->n_group > 0) RQ_TRY((x->w4a8 ? rq_tune_w4a8_publish : publish_scales)(t, x));
    }
    for (int64_t layer = 0; layer < m->cfg.n_layer; ++layer) {
        memcpy(m->block[layer].norm1, t->value + rq_tune_gain(t, layer, 0), gain_bytes);
        memcpy(m->block[layer].norm2, t->value + rq_tune_gain(t, layer, 1), gain_bytes);
    }
    memcpy(m->norm_f, t->value + rq_tune_gain(t, m->cfg.n_layer, 0), gain_bytes);
    RQ_TRY(rq_tune_books_publish(t));
done:
    return status;
}
