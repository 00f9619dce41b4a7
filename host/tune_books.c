/* SPDX-License-Identifier: Apache-2.0 */
/* Parameters of matrices of codebook codes (ssvq, vq) with scales of rows: w[i][j] = s[i][g(j)] sigma c, c the entry (of two stages:
 * the sum of two) that the code names, sigma the sign (1 for vq). With dL/dw
 *
 *   dL/ds[i][g] = sum over j in g of dL/dw w / s          dL/dc = sum over all weights that use c of dL/dw s sigma
 *
 * the latter over all matrices that share the codebook. Outlier columns, codes and signs stay. Codebooks are fp32 in training; published they
 * are halves, or bytes with a scale anew, the largest entry / 255. Those with the same stored content are one: matrices that
 * share a codebook may have loaded a copy each. Codebooks that a matrix with scales of columns uses stay as they are. */
#include <math.h>

#include "tune.h"

enum { ROWS = 16 /* of a task */, PARTS = 8 /* of a matrix, in the sums for its codebooks */ };

const rq_f16 **rq_tune_row_scales(rq_packed *p) {
    if (p->format == RQ_FORMAT_SSVQ) return &p->u.ssvq.scale;
    return p->format == RQ_FORMAT_VQ && p->u.vq.scale && !p->u.vq.col_scale && !p->u.vq.vec_out ? &p->u.vq.scale : NULL;
}

rq_status rq_tune_vec_new(rq_tune_matrix *x, rq_packed *p) {
    rq_status status = RQ_OK;
    bool ssvq = p->format == RQ_FORMAT_SSVQ;
    if (!rq_tune_row_scales(p)) return RQ_OK;
    RQ_TRY(RQ_NEW_ZERO(x->kept, p->n_in));
    for (int i = 0; i < (ssvq ? p->u.ssvq.n_outlier : p->u.vq.n_outlier); ++i)
        x->kept[(ssvq ? p->u.ssvq.outlier_col : p->u.vq.outlier_col)[i]] = true;
    x->group = ssvq ? p->u.ssvq.group : p->u.vq.group;
    x->n_group = ssvq ? p->u.ssvq.n_group : p->u.vq.n_group;
    x->vec = p;
done:
    return status;
}

/* ---- which codebooks there are ---- */

static int n_stage(const rq_packed *p) { return p->format == RQ_FORMAT_VQ && p->u.vq.n_stage > 1 ? 2 : 1; }

/* What is stored of one stage's codebooks; the owner and the parameters are left out. */
typedef struct stored {
    const void *data;
    const float *scale; /* of bytes */
    int64_t n_book, n_codes, d;
} stored;

static stored stored_book(const rq_packed *p, int stage) {
    if (p->format == RQ_FORMAT_VQ)
        return (stored){p->u.vq.book[stage], NULL, p->u.vq.n_book, p->u.vq.n_codes[stage], p->u.vq.vec_len};
    const rq_ssvq *s = &p->u.ssvq;
    if (s->book_u8) return (stored){s->book_u8, s->book_scale, s->n_book, s->n_codes, s->vec_len};
    return (stored){s->book_f16, NULL, s->n_book, s->n_codes, s->vec_len};
}

static size_t stored_bytes(const stored *s) {
    return (size_t)(s->n_book * s->n_codes * s->d) * (s->scale ? 1 : sizeof(rq_f16));
}

static bool same_book(const rq_tune_book *b, const stored *s) {
    return b->n_book == s->n_book && b->n_codes == s->n_codes && b->d == s->d && !b->start_scale == !s->scale &&
           memcmp(b->start, s->data, stored_bytes(s)) == 0 &&
           (!s->scale || memcmp(b->start_scale, s->scale, (size_t)s->n_book * sizeof *s->scale) == 0);
}

/* Index of the book with this content, made when it is new. */
static rq_status find_book(rq_tuner *t, int64_t *at, rq_packed *p, int stage) {
    rq_status status = RQ_OK;
    stored s = stored_book(p, stage);
    int64_t k = 0;
    while (k < t->n_book && !same_book(&t->book[k], &s)) ++k;
    *at = k;
    if (k < t->n_book) return RQ_OK;
    rq_tune_book *b = &t->book[t->n_book++];
    *b = (rq_tune_book){
        .owner = p, .n_book = s.n_book, .n_codes = s.n_codes, .d = s.d, .data = s.data, .scale = s.scale};
    RQ_TRY(rq_alloc(&b->start, 1, (int64_t)stored_bytes(&s)));
    memcpy(b->start, s.data, stored_bytes(&s));
    if (s.scale) {
        RQ_TRY(RQ_NEW(b->start_scale, s.n_book));
        memcpy(b->start_scale, s.scale, (size_t)s.n_book * sizeof *s.scale);
    }
done:
    return status;
}

rq_status rq_tune_books_find(rq_tuner *t) {
    rq_status status = RQ_OK;
    int64_t n = t->m->cfg.n_layer * RQ_N_LINEARS;
    bool *frozen = NULL;
    RQ_TRY(RQ_NEW_ZERO(t->book, 2 * n));
    RQ_TRY(RQ_NEW_ZERO(frozen, 2 * n));
    for (int64_t i = 0; i < n; ++i) {
        rq_tune_matrix *x = &t->matrix[i];
        x->book[0] = x->book[1] = -1;
        if (!x->lin->packed) continue;
        rq_packed *p = &t->m->packed[x->lin->packed - t->m->packed];
        if (p->format != RQ_FORMAT_SSVQ && p->format != RQ_FORMAT_VQ) continue;
        for (int stage = 0; stage < n_stage(p); ++stage) {
            RQ_TRY(find_book(t, &x->book[stage], p, stage));
            frozen[x->book[stage]] |= !x->vec;
        }
    }
    int64_t largest = 0;
    for (int64_t i = 0; i < t->n_book; ++i) {
        int64_t n_entry = t->book[i].n_book * t->book[i].n_codes * t->book[i].d;
        t->book[i].param = frozen[i] ? -1 : t->n_param;
        if (!frozen[i]) t->n_param += n_entry;
        if (!frozen[i]) largest = rq_max_i64(largest, n_entry);
    }
    RQ_TRY(RQ_NEW(t->book_sum, PARTS * rq_max_i64(1, largest)));
done:
    free(frozen);
    return status;
}

static float start_value(const rq_tune_book *b, int64_t i) {
    if (b->start_scale) return b->start_scale[i / (b->n_codes * b->d)] * (float)((const uint8_t *)b->start)[i];
    return rq_f32_of_f16(((const rq_f16 *)b->start)[i]);
}

void rq_tune_books_values(rq_tuner *t) {
    for (int64_t k = 0; k < t->n_book; ++k) {
        const rq_tune_book *b = &t->book[k];
        int64_t n = b->n_book * b->n_codes * b->d;
        double square = 0;
        if (b->param < 0) continue;
        for (int64_t i = 0; i < n; ++i) square += pow((double)start_value(b, i), 2);
        for (int64_t i = 0; i < n; ++i) {
            t->value[b->param + i] = start_value(b, i);
            t->unit[b->param + i] = (float)sqrt(square / (double)n);
        }
    }
}

void rq_tune_books_free(rq_tuner *t) {
    for (int64_t k = 0; k < t->n_book; ++k) {
        free(t->book[k].start);
        free(t->book[k].start_scale);
    }
    free(t->book);
    free(t->book_sum);
}

/* ---- weights and gradients ---- */

typedef struct vec_job {
    const rq_tuner *t;
    const rq_tune_matrix *x;
    float *w;
    const float *dw;
    float *grad; /* of the scales */
    double *sum; /* [PARTS][n_entry of the stage] */
    int64_t n_entry;
    int stage;
} vec_job;

/* Where vector v of row i has its entry, counted from the start of its book. */
static int64_t entry_of(const rq_packed *p, int stage, int64_t i, int64_t v) {
    if (p->format == RQ_FORMAT_SSVQ) {
        const rq_ssvq *s = &p->u.ssvq;
        return (v * s->vec_len / s->book_cols * s->n_codes + rq_ssvq_code(s, i, v)) * s->vec_len;
    }
    const rq_vq *s = &p->u.vq; /* vectors run along the inputs: those down the outputs have scales of columns */
    return (v * s->vec_len / s->book_cols * s->n_codes[stage] + rq_vq_code(s, stage, i, v)) * s->vec_len;
}

static bool is_negative(const rq_packed *p, int64_t i, int64_t j) {
    return p->format == RQ_FORMAT_SSVQ && rq_ssvq_negative(&p->u.ssvq, i, j);
}

/* What a number of a book is now. */
static float entry_value(const rq_tuner *t, const rq_tune_book *b, int64_t at) {
    return b->param >= 0 ? t->value[b->param + at] : start_value(b, at);
}

static void weights_item(void *arg, int64_t item) {
    const vec_job *job = arg;
    const rq_tuner *t = job->t;
    const rq_tune_matrix *x = job->x;
    const rq_packed *p = x->vec;
    int64_t n = p->n_in, end = rq_min_i64((item + 1) * ROWS, p->n_out), d = t->book[x->book[0]].d;
    bool ssvq = p->format == RQ_FORMAT_SSVQ;
    int n_outlier = ssvq ? p->u.ssvq.n_outlier : p->u.vq.n_outlier;
    const int32_t *col = ssvq ? p->u.ssvq.outlier_col : p->u.vq.outlier_col;
    const int8_t *outlier = ssvq ? p->u.ssvq.outlier : p->u.vq.outlier;
    const float *step = ssvq ? p->u.ssvq.outlier_scale : p->u.vq.outlier_scale;
    for (int64_t i = item * ROWS; i < end; ++i) {
        const float *scale = t->value + x->param + i * x->n_group;
        float *w = job->w + i * n;
        for (int64_t v = 0; v * d < n; ++v) {
            for (int stage = 0; stage < n_stage(p); ++stage) {
                const rq_tune_book *b = &t->book[x->book[stage]];
                int64_t at = entry_of(p, stage, i, v) - v * d;
                for (int64_t j = v * d; j < rq_min_i64(n, (v + 1) * d); ++j) {
                    float c = entry_value(t, b, at + j);
                    w[j] = stage ? w[j] + c : c;
                }
            }
            for (int64_t j = v * d; j < rq_min_i64(n, (v + 1) * d); ++j) {
                float s = scale[j / x->group] * w[j];
                w[j] = is_negative(p, i, j) ? -s : s;
            }
        }
        for (int o = 0; o < n_outlier; ++o) w[col[o]] = step[o] * (float)outlier[i * n_outlier + o];
    }
}

void rq_tune_vec_weights(const rq_tuner *t, const rq_tune_matrix *x, float *w) {
    vec_job job = {.t = t, .x = x, .w = w};
    rq_parallel_for(rq_ceil_div(x->vec->n_out, ROWS), weights_item, &job);
}

static void scale_grad_item(void *arg, int64_t item) {
    const vec_job *job = arg;
    const rq_tune_matrix *x = job->x;
    const float *scale = job->t->value + x->param, *unit = job->t->unit + x->param;
    int64_t n = x->vec->n_in, end = rq_min_i64((item + 1) * ROWS, x->vec->n_out);
    for (int64_t i = item * ROWS; i < end; ++i) {
        for (int64_t k = 0; k < x->n_group; ++k) {
            int64_t at = i * x->n_group + k;
            double sum = 0;
            for (int64_t j = k * x->group; j < rq_min_i64(n, (k + 1) * x->group); ++j)
                sum += x->kept[j] ? 0 : (double)job->dw[i * n + j] * (double)job->w[i * n + j];
            job->grad[at] = scale[at] != 0 ? (float)(sum / (double)scale[at]) * unit[at] : 0;
        }
    }
}

static void book_grad_part(void *arg, int64_t part) {
    const vec_job *job = arg;
    const rq_tune_matrix *x = job->x;
    const rq_packed *p = x->vec;
    int64_t n = p->n_in, d = job->t->book[x->book[job->stage]].d;
    double *sum = job->sum + part * job->n_entry;
    memset(sum, 0, (size_t)job->n_entry * sizeof *sum);
    for (int64_t i = p->n_out * part / PARTS; i < p->n_out * (part + 1) / PARTS; ++i) {
        const float *scale = job->t->value + x->param + i * x->n_group, *dw = job->dw + i * n;
        for (int64_t v = 0; v * d < n; ++v) {
            double *to = sum + entry_of(p, job->stage, i, v) - v * d;
            for (int64_t j = v * d; j < rq_min_i64(n, (v + 1) * d); ++j) {
                double g = (double)dw[j] * (double)scale[j / x->group];
                if (!x->kept[j]) to[j] += is_negative(p, i, j) ? -g : g;
            }
        }
    }
}

void rq_tune_vec_grad(rq_tuner *t, const rq_tune_matrix *x, const float *dw) {
    vec_job job = {.t = t, .x = x, .w = t->w, .dw = dw, .grad = t->grad + x->param};
    rq_parallel_for(rq_ceil_div(x->vec->n_out, ROWS), scale_grad_item, &job);
    for (job.stage = 0; t->train_books && job.stage < n_stage(x->vec); ++job.stage) {
        const rq_tune_book *b = &t->book[x->book[job.stage]];
        if (b->param < 0) continue;
        job.n_entry = b->n_book * b->n_codes * b->d;
        job.sum = t->book_sum;
        rq_parallel_for(PARTS, book_grad_part, &job);
        for (int64_t e = 0; e < job.n_entry; ++e) {
            double sum = 0;
            for (int64_t part = 0; part < PARTS; ++part) sum += job.sum[part * job.n_entry + e];
            t->grad[b->param + e] += (float)(sum * (double)t->unit[b->param + e]);
        }
    }
}

/* ---- into the model ---- */

void rq_tune_books_clamp(rq_tuner *t) {
    for (int64_t k = 0; k < t->n_book; ++k) {
        const rq_tune_book *b = &t->book[k];
        if (b->param < 0 || b->owner->format != RQ_FORMAT_SSVQ) continue;
        for (int64_t i = 0; i < b->n_book * b->n_codes * b->d; ++i)
            t->value[b->param + i] = fmaxf(0, t->value[b->param + i]);
    }
}

/* Numbers of one book to bytes with a new scale, or to halves. */
static void round_book(const rq_tune_book *b, const float *value, void *data, float *scale) {
    int64_t per_book = b->n_codes * b->d;
    for (int64_t k = 0; k < b->n_book; ++k) {
        float top = 0;
        for (int64_t i = k * per_book; i < (k + 1) * per_book; ++i) top = fmaxf(top, value[i]);
        if (scale) scale[k] = top > 0 ? top / 255.0f : 1;
        for (int64_t i = k * per_book; i < (k + 1) * per_book; ++i) {
            if (scale)
                ((uint8_t *)data)[i] = (uint8_t)fminf(255, fmaxf(0, rintf(value[i] / scale[k])));
            else
                ((rq_f16 *)data)[i] = rq_f16_of_f32(value[i]);
        }
    }
}

static rq_status publish_book(const rq_tuner *t, rq_tune_book *b) {
    rq_status status = RQ_OK;
    const float *value = t->value + b->param;
    int64_t n = b->n_book * b->n_codes * b->d, size = b->start_scale ? 1 : (int64_t)sizeof(rq_f16);
    void *data, *scale = NULL;
    for (int64_t i = 0; i < n; ++i) {
        if (!isfinite(b->start_scale ? value[i] : rq_f32_of_f16(rq_f16_of_f32(value[i]))))
            RQ_FAIL(RQ_ERR_NUMERIC, "an entry of a codebook became %g", (double)value[i]);
    }
    RQ_TRY(rq_tune_own(&data, b->owner, b->data, n, size));
    if (b->start_scale) RQ_TRY(rq_tune_own(&scale, b->owner, b->scale, b->n_book, sizeof(float)));
    if (memcmp(value, t->start + b->param, (size_t)n * sizeof *value) != 0) {
        round_book(b, value, data, scale);
    } else { /* the very bytes: a scale found anew could move them by a rounding */
        memcpy(data, b->start, (size_t)(n * size));
        if (scale) memcpy(scale, b->start_scale, (size_t)b->n_book * sizeof(float));
    }
    b->data = data;
    b->scale = scale;
done:
    return status;
}

rq_status rq_tune_books_publish(rq_tuner *t) {
    rq_status status = RQ_OK;
    for (int64_t k = 0; k < t->n_book; ++k) {
        if (t->book[k].param >= 0) RQ_TRY(publish_book(t, &t->book[k]));
    }
    for (int64_t i = 0; i < t->m->cfg.n_layer * RQ_N_LINEARS; ++i) {
        const rq_tune_matrix *x = &t->matrix[i];
        for (int stage = 0; x->vec && stage < n_stage(x->vec); ++stage) {
            const rq_tune_book *b = &t->book[x->book[stage]];
            rq_packed *p = &t->m->packed[x->vec - t->m->packed];
            if (b->param < 0) continue;
            if (p->format == RQ_FORMAT_VQ) {
                p->u.vq.book[stage] = b->data;
            } else if (b->scale) {
                p->u.ssvq.book_u8 = b->data;
                p->u.ssvq.book_scale = b->scale;
            } else {
                p->u.ssvq.book_f16 = b->data;
            }
        }
    }
done:
    return status;
}
