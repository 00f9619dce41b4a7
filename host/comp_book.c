/* SPDX-License-Identifier: Apache-2.0 */
/* A set of matrices to codebook codes: targets and scales, the sweep, the refinement, and the formats' arrays. */
#include <math.h>

#include "backend.h"
#include "device.h"

/* A program with the quantizer alone (host/sources.cmake) has no such function. */
#pragma weak rq_result_values

void rq_invert_spd(double *inv, const double *a, int64_t n) {
    double l[RQ_VEC_MAX * RQ_VEC_MAX] = {0}, m[RQ_VEC_MAX * RQ_VEC_MAX] = {0}; /* a = l l^T, m = l^-1 */
    memset(inv, 0, (size_t)(n * n) * sizeof *inv);
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
            double sum = a[i * n + j];
            for (int64_t k = 0; k < j; ++k) sum -= l[i * n + k] * l[j * n + k];
            if (j < i) {
                l[i * n + j] = sum / l[j * n + j];
            } else if (sum > 0) {
                l[i * n + i] = sqrt(sum);
            } else {
                for (int64_t k = 0; k < n; ++k) inv[k * n + k] = a[k * n + k] > 0 ? 1 / a[k * n + k] : 0;
                return;
            }
        }
    }
    for (int64_t j = 0; j < n; ++j) {
        m[j * n + j] = 1 / l[j * n + j];
        for (int64_t i = j + 1; i < n; ++i) {
            double sum = 0;
            for (int64_t k = j; k < i; ++k) sum -= l[i * n + k] * m[k * n + j];
            m[i * n + j] = sum / l[i * n + i];
        }
    }
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            for (int64_t k = rq_max_i64(i, j); k < n; ++k) inv[i * n + j] += m[k * n + i] * m[k * n + j];
        }
    }
}

/* ---- codebooks ---- */

void rq_book_expand(const rq_book *b, int64_t vec, const rq_vec_code *c, float *v) {
    int64_t which = rq_book_of(b, vec);
    const float *first = b->value[0] + (which * b->k[0] + c->code[0]) * b->d;
    for (int r = 0; r < b->d; ++r) v[r] = c->negative >> r & 1 ? -first[r] : first[r];
    if (b->n_stage < 2) return;
    const float *second = b->value[1] + (which * b->k[1] + c->code[1]) * b->d;
    for (int r = 0; r < b->d; ++r) v[r] += second[r];
}

static void row_of_lines(const rq_book_task *t, int64_t row, float *q) {
    int64_t line = 0, high = t->n_line - 1;
    while (line < high) { /* the last line that begins at or before the row */
        int64_t middle = (line + high + 1) / 2;
        if (t->line_row[middle] <= row) {
            line = middle;
        } else {
            high = middle - 1;
        }
    }
    int64_t e = row - t->line_row[line];
    for (int64_t j = 0; j < t->n; ++j) {
        float v[RQ_VEC_MAX] = {0};
        rq_book_expand(&t->book, j, &t->code[line * t->n_vec + j], v);
        q[j] = rq_book_factor(t, line, j) * v[e] + rq_book_bias(t, line, j);
    }
}

void rq_book_row(const rq_book_task *t, int64_t row, float *q) {
    const rq_prep *p = t->prep;
    float v[RQ_VEC_MAX] = {0};
    for (int64_t b = 0; b < t->n_vec && !t->vec_out; ++b) {
        float s = t->scale[row * t->n_group + b * t->d / t->group];
        rq_book_expand(&t->book, b, &t->code[row * t->n_vec + b], v);
        for (int64_t j = b * t->d; j < rq_min_i64(t->n, (b + 1) * t->d); ++j) q[j] = s * v[j - b * t->d];
    }
    if (t->vec_out) row_of_lines(t, row, q);
    for (int o = 0; o < p->n_outlier; ++o) {
        q[p->outlier_col[o]] =
            t->outlier_step[t->matrix[row] * p->n_outlier + o] * (float)t->outlier[row * p->n_outlier + o];
    }
}

rq_status rq_book_sweep_metric(float **metric, const rq_book_task *t) {
    rq_status status = RQ_OK;
    const rq_prep *p = t->prep;
    int64_t d = t->vec_out ? 1 : t->d, n = t->n;
    RQ_TRY(RQ_NEW_ZERO(*metric, t->n_vec * d * d));
    for (int64_t i = 0; i < p->n_span; ++i) {
        const rq_span *s = &p->span[i];
        if (s->vec < 0) continue;
        double a[RQ_VEC_MAX * RQ_VEC_MAX] = {0}, inv[RQ_VEC_MAX * RQ_VEC_MAX] = {0}, top = 0;
        int64_t k = s->width;
        for (int64_t r = 0; r < k; ++r) {
            for (int64_t c = 0; p->u && c < k; ++c) {
                for (int64_t e = 0; e <= rq_min_i64(r, c); ++e)
                    a[r * k + c] +=
                        (double)p->u[(s->pos + e) * n + s->pos + r] * (double)p->u[(s->pos + e) * n + s->pos + c];
            }
        }
        if (p->u) {
            rq_invert_spd(inv, a, k);
        } else {
            for (int64_t r = 0; r < k; ++r) inv[r * k + r] = p->hdiag ? (double)p->hdiag[p->perm[s->pos + r]] : 1;
        }
        for (int64_t r = 0; r < k; ++r) top = fmax(top, inv[r * k + r]);
        top = sqrt(top); /* columns of very large H would have the codebook to themselves */
        for (int64_t r = 0; r < k && top > 0; ++r) {
            for (int64_t c = 0; c < k; ++c) {
                int64_t lr = p->perm[s->pos + r] % d, lc = p->perm[s->pos + c] % d;
                (*metric)[s->vec * d * d + lr * d + lc] = (float)(inv[r * k + c] / top);
            }
        }
    }
done:
    return status;
}

/* ---- targets and scales ---- */

/* Everything of a run that has to be freed. */
typedef struct run {
    rq_book_task t;
    float *start, *goal, *search_metric;
    int32_t *matrix;
    double unit; /* real weights are this times ours: a power of two */
} run;

static rq_status stack(run *z, const rq_quant_matrix *m, int n_matrices) {
    rq_status status = RQ_OK;
    rq_book_task *t = &z->t;
    const rq_prep *p = t->prep;
    const rq_quant_opt *o = t->opt;
    const rq_device_ops *device = rq_device_row(p->device);
    void *own_state = rq_device_own(p->device);
    double sum = 0;
    int64_t row = 0, live = 0;
    RQ_TRY(RQ_NEW(z->start, t->n_out * t->n));
    RQ_TRY(RQ_NEW(z->matrix, t->n_out));
    for (int i = 0; i < n_matrices; row += m[i++].n_out) {
        float *w = z->start + row * t->n;
        for (int64_t k = 0; k < m[i].n_out; ++k) z->matrix[row + k] = i;
        for (int64_t k = 0; k < m[i].n_out * t->n; ++k) {
            w[k] = m[i].w[k];
            if (!isfinite(w[k])) {
                RQ_FAIL(RQ_ERR_INPUT, "%s: weight [%lld][%lld] is %g", m[i].name, (long long)(k / t->n),
                        (long long)(k % t->n), (double)w[k]);
            }
            sum += (double)w[k] * (double)w[k];
            live += w[k] != 0;
        }
    }
    t->matrix = z->matrix;
    z->unit = sum > 0 ? ldexp(1.0, ilogb(sqrt(sum / (double)live))) : 1;
    z->unit = fmin(fmax(z->unit, 0x1p-100), 0x1p100);
    for (int64_t i = 0; i < t->n_out * t->n; ++i) z->start[i] = (float)((double)z->start[i] / z->unit);
    if (p->u && o->rho != 0) {
        RQ_TRY(RQ_NEW(z->goal, t->n_out * t->n));
        memcpy(z->goal, z->start, (size_t)(t->n_out * t->n) * sizeof *z->goal);
        RQ_TRY(device->move(own_state, z->start, z->goal, t->n_out, p, o->rho));
        for (int64_t i = 0; i < t->n_out * t->n; ++i) {
            if (!isfinite(z->start[i])) RQ_FAIL(RQ_ERR_NUMERIC, "%s: the moved target is not finite", m[0].name);
        }
    }
    for (int64_t i = 0; i < t->n_out * t->n; ++i) z->start[i] = p->dead[i % t->n] ? 0 : z->start[i];
    t->start = t->goal = z->start;
    if (p->u && o->alpha != 0 && p->m) {
        if (!z->goal) RQ_TRY(RQ_NEW(z->goal, t->n_out * t->n));
        RQ_TRY(device->move(own_state, z->goal, z->start, t->n_out, p, o->alpha));
        for (int64_t i = 0; i < t->n_out * t->n; ++i) z->goal[i] = p->dead[i % t->n] ? 0 : z->goal[i];
        t->goal = z->goal;
    }
done:
    return status;
}

/* Scales: root mean square of the group without outlier columns. Steps of outlier columns: their largest weight over 127. */
static rq_status first_scales(run *z, int n_matrices) {
    rq_status status = RQ_OK;
    rq_book_task *t = &z->t;
    const rq_prep *p = t->prep;
    bool *kept = NULL;
    RQ_TRY(RQ_NEW_ZERO(kept, t->n));
    if (t->vec_out) {
        RQ_TRY(rq_column_factors(t, n_matrices));
    } else {
        RQ_TRY(RQ_NEW(t->scale, t->n_out * t->n_group));
    }
    RQ_TRY(RQ_NEW_ZERO(t->outlier_step, rq_max_i64(1, n_matrices * p->n_outlier)));
    RQ_TRY(RQ_NEW_ZERO(t->outlier, rq_max_i64(1, t->n_out * p->n_outlier)));
    for (int o = 0; o < p->n_outlier; ++o) kept[p->outlier_col[o]] = true;
    for (int64_t r = 0; r < t->n_out; ++r) {
        const float *w = t->start + r * t->n;
        for (int64_t g = 0; g < t->n_group && t->scale; ++g) {
            double sum = 0;
            int64_t count = 0;
            for (int64_t j = g * t->group; j < rq_min_i64(t->n, (g + 1) * t->group); ++j) {
                if (kept[j] || p->dead[j]) continue;
                sum += (double)w[j] * (double)w[j];
                ++count;
            }
            t->scale[r * t->n_group + g] = rq_book_scale_round(t, count ? (float)sqrt(sum / (double)count) : 0);
        }
        for (int o = 0; o < p->n_outlier; ++o) {
            float *step = &t->outlier_step[t->matrix[r] * p->n_outlier + o];
            *step = fmaxf(*step, fabsf(w[p->outlier_col[o]]) / 127.0f);
        }
    }
done:
    free(kept);
    return status;
}

/* Lines: rows, or runs of d rows that end with their matrix. */
static rq_status make_lines(run *z) {
    rq_book_task *t = &z->t;
    rq_status status = RQ_NEW(t->line_row, t->n_out + 1);
    if (status != RQ_OK) return status;
    for (int64_t row = 0; row < t->n_out;) {
        int64_t last = row + 1;
        while (t->vec_out && last < t->n_out && last < row + t->d && t->matrix[last] == t->matrix[row]) ++last;
        t->line_row[t->n_line++] = row;
        row = last;
    }
    t->line_row[t->n_line] = t->n_out;
    return RQ_OK;
}

/* What the search measures in, from what the sweep loses. */
static rq_status search_metric(run *z, const float *exact) {
    const rq_book_task *t = &z->t;
    int64_t d = t->vec_out ? 1 : t->d, n = t->n_vec * d * d;
    rq_status status = RQ_NEW(z->search_metric, n);
    for (int64_t i = 0; status == RQ_OK && i < n; ++i) {
        bool on = i / d % d == i % d;
        bool plain = t->opt->assign == RQ_ASSIGN_EUCLID;
        z->search_metric[i] = !on && t->opt->assign != RQ_ASSIGN_MAHALANOBIS ? 0
                              : on && plain                                  ? (exact[i] > 0 ? 1.0f : 0)
                                                                             : exact[i];
    }
    return status;
}

/* ---- results ---- */

static void *own(rq_quant_result *r, void *p) { return r->owned[r->n_owned++] = p; }

#define OWN(ptr, count)                                                                                                \
    do {                                                                                                               \
        RQ_TRY(RQ_NEW_ZERO(ptr, count));                                                                               \
        own(r, ptr);                                                                                                   \
    } while (0)

static int bits_of(int64_t k) {
    int bits = 4;
    while (1 << bits < k) ++bits;
    return bits;
}

/* Arrays of the format for rows [row0, row0 + n_out) of the stack. */
static rq_status emit(rq_quant_result *r, const run *z, const rq_quant_matrix *m, int which, int64_t row0,
                      int64_t line0, int users) {
    rq_status status = RQ_OK;
    const rq_book_task *t = &z->t;
    const rq_prep *p = t->prep;
    const rq_book *b = &t->book;
    int64_t n_out = m[which].n_out, n = t->n, d = t->d, n_line = t->vec_out ? rq_ceil_div(n_out, d) : n_out;
    uint16_t *code[2] = {NULL, NULL};
    uint8_t *negative = NULL, *u8 = NULL;
    float *scale = NULL, *book_scale, *step;
    int32_t *cols;
    int8_t *outlier;
    uint8_t *book_of = NULL;
    rq_f16 *f16[2] = {NULL, NULL}, *col_scale = NULL, *col_bias = NULL;
    OWN(book_scale, b->n_book);
    OWN(cols, rq_max_i64(1, p->n_outlier));
    OWN(outlier, rq_max_i64(1, n_out * p->n_outlier));
    OWN(step, rq_max_i64(1, p->n_outlier));
    for (int s = 0; s < b->n_stage; ++s) {
        int64_t size = b->n_book * b->k[s] * d;
        OWN(code[s], n_line * t->n_vec);
        for (int64_t i = 0; i < n_line * t->n_vec; ++i) code[s][i] = t->code[line0 * t->n_vec + i].code[s];
        if (b->u8) {
            OWN(u8, size);
            memcpy(u8, b->u8, (size_t)size);
        } else {
            OWN(f16[s], size);
            memcpy(f16[s], b->f16[s], (size_t)size * sizeof(rq_f16));
        }
    }
    if (b->book_of) {
        OWN(book_of, n);
        memcpy(book_of, b->book_of, (size_t)n);
    }
    if (t->vec->magnitudes) {
        OWN(negative, n_out * n);
        for (int64_t i = 0; i < n_out * n; ++i)
            negative[i] = t->code[(row0 + i / n) * t->n_vec + i % n / d].negative >> (i % n % d) & 1;
    }
    if (t->vec_out) {
        OWN(col_scale, n);
        OWN(col_bias, n);
        for (int64_t j = 0; j < n; ++j) {
            col_scale[j] = rq_f16_of_f32(t->col_scale[which * n + j] * t->scale_unit);
            col_bias[j] = rq_f16_of_f32(t->col_bias[which * n + j] * t->scale_unit);
        }
    } else {
        OWN(scale, n_out * t->n_group);
        for (int64_t i = 0; i < n_out * t->n_group; ++i) scale[i] = t->scale[row0 * t->n_group + i] * t->scale_unit;
    }
    for (int64_t i = 0; i < b->n_book; ++i) book_scale[i] = (float)((double)b->book_scale[i] * z->unit);
    for (int o = 0; o < p->n_outlier; ++o) {
        cols[o] = p->outlier_col[o];
        step[o] = (float)((double)t->outlier_step[which * p->n_outlier + o] * z->unit);
    }
    memcpy(outlier, t->outlier + row0 * p->n_outlier, (size_t)(n_out * p->n_outlier));
    const char *book = which == 0 ? NULL : m[0].name;
    r->format = t->vec->format;
    if (r->format == RQ_FORMAT_SSVQ) {
        r->ssvq = (rq_ssvq_codes){.n_out = n_out,
                                  .n_in = n,
                                  .vec_len = t->d,
                                  .code_bits = bits_of(b->k[0]),
                                  .n_codes = b->k[0],
                                  .book_cols = b->vec_per_book * d,
                                  .group = t->group,
                                  .codes = code[0],
                                  .negative = negative,
                                  .book_f16 = f16[0],
                                  .book_u8 = u8,
                                  .book_scale = book_scale,
                                  .scale = scale,
                                  .n_outlier = p->n_outlier,
                                  .outlier_col = cols,
                                  .outlier = outlier,
                                  .outlier_scale = step,
                                  .book = book,
                                  .book_users = users};
    } else {
        r->vq = (rq_vq_codes){.n_out = n_out,
                              .n_in = n,
                              .vec_len = t->d,
                              .n_stage = b->n_stage,
                              .vec_out = t->vec_out,
                              .code_bits = {bits_of(b->k[0]), bits_of(b->k[1])},
                              .n_codes = {b->k[0], b->k[1]},
                              .book_cols = b->vec_per_book * (t->vec_out ? 1 : d),
                              .group = t->group,
                              .codes = {code[0], code[1]},
                              .book = {f16[0], f16[1]},
                              .book_of = book_of,
                              .scale = scale,
                              .col_scale = col_scale,
                              .col_bias = col_bias,
                              .n_outlier = p->n_outlier,
                              .outlier_col = cols,
                              .outlier = outlier,
                              .outlier_scale = step,
                              .book_name = book,
                              .book_users = users};
    }
    /* The later layers are calibrated on what a reader of the format will see: let the format say it. */
    RQ_TRY(RQ_NEW(r->q, n_out * n));
    if (&rq_result_values) {
        RQ_TRY(rq_result_values(r, n_out, n));
    } else { /* a program without packed formats (host/sources.cmake) has no other reader than this */
        for (int64_t i = 0; i < n_out; ++i) rq_book_row(t, row0 + i, r->q + i * n);
        for (int64_t i = 0; i < n_out * n; ++i) r->q[i] = (float)((double)r->q[i] * z->unit);
    }
done:
    return status;
}

rq_status rq_quantize_books(rq_quant_result *r, const rq_quant_matrix *m, int n_matrices, const rq_prep *p,
                            const rq_quant_opt *o) {
    rq_status status = RQ_OK;
    const rq_device_ops *device = rq_device_row(p->device);
    void *own_state = rq_device_own(p->device);
    float *exact = NULL;
    int64_t row = 0, line = 0, d = o->vec_len, n_vec = o->vec_out ? p->n : rq_ceil_div(p->n, d),
            group = o->group ? o->group : p->n;
    run z = {
        .t = {.prep = p, .opt = o, .vec = rq_round_get(o->round)->vec, .n = p->n, .d = o->vec_len, .n_vec = n_vec}};
    rq_book_task *t = &z.t;
    t->label = m[0].name;
    for (int i = 0; i < n_matrices; ++i) t->n_out += m[i].n_out;
    t->vec_out = o->vec_out;
    t->group = group < p->n ? group : p->n;
    t->n_group = rq_ceil_div(p->n, t->group);
    RQ_TRY(rq_backend_init());
    RQ_TRY(stack(&z, m, n_matrices));
    t->scale_unit = o->book_dtype == RQ_BOOK_U8 ? 1.0f : (float)z.unit;
    RQ_TRY(make_lines(&z));
    RQ_TRY(first_scales(&z, n_matrices));
    RQ_TRY(RQ_NEW_ZERO(t->code, t->n_line * n_vec));
    RQ_TRY(rq_book_new(t));
    RQ_TRY(rq_book_sweep_metric(&exact, t));
    RQ_TRY(search_metric(&z, exact));
    bool passes = t->book.n_stage == 2 && o->stage_fit == RQ_STAGE_SWEEP;
    RQ_TRY(passes ? rq_book_fit_second(t, z.search_metric) : rq_book_fit(t, z.search_metric));
    RQ_TRY(device->book_sweep(own_state, t, z.search_metric, NULL));
    RQ_TRY(rq_refine_book(t));
    for (int i = 0; i < n_matrices; row += m[i++].n_out) {
        RQ_TRY(emit(&r[i], &z, m, i, row, line, n_matrices));
        line += t->vec_out ? rq_ceil_div(m[i].n_out, d) : m[i].n_out;
    }
done:
    device->book_forget(own_state, t);
    rq_book_free(&t->book);
    free(t->scale);
    free(t->col_scale);
    free(t->col_bias);
    free(t->line_row);
    free(t->code);
    free(t->outlier);
    free(t->outlier_step);
    free(z.start);
    free(z.goal);
    free(z.search_metric);
    free(z.matrix);
    free(exact);
    return status;
}
