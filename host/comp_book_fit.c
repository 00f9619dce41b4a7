/* SPDX-License-Identifier: Apache-2.0 */
/* The codebooks of a set: which columns share one, k-means on the start weights or on what the first stage leaves, and rounding to
 * the stored type. */
#include <math.h>

#include "device.h"
#include "random.h"

int64_t rq_book_scratch(const rq_book *b) { return b->k_pad[0] + b->k_pad[1]; }

void rq_book_free(rq_book *b) {
    for (int i = 0; i < 2; ++i) {
        free(b->value[i]);
        free(b->table[i]);
        free(b->f16[i]);
    }
    free(b->u8);
    free(b->book_scale);
    free(b->book_of);
    *b = (rq_book){0};
}

/* Equal groups of columns by falling H_jj (VPTQ): a codebook of its own for the columns whose errors cost most. Outlier columns need
 * none. */
static rq_status order_books(rq_book_task *t) {
    rq_status status = RQ_OK;
    rq_book *b = &t->book;
    const rq_prep *p = t->prep;
    double *value = NULL;
    int32_t *order = NULL;
    RQ_TRY(RQ_NEW_ZERO(b->book_of, t->n));
    RQ_TRY(RQ_NEW(value, t->n));
    RQ_TRY(RQ_NEW(order, t->n));
    for (int64_t j = 0; j < t->n; ++j) value[j] = (double)p->hdiag[j];
    for (int o = 0; o < p->n_outlier; ++o) value[p->outlier_col[o]] = INFINITY;
    RQ_TRY(rq_order_falling(order, value, t->n));
    for (int64_t i = p->n_outlier; i < t->n; ++i)
        b->book_of[order[i]] = (uint8_t)((i - p->n_outlier) * b->n_book / (t->n - p->n_outlier));
done:
    free(value);
    free(order);
    return status;
}

rq_status rq_book_new(rq_book_task *t) {
    rq_status status = RQ_OK;
    rq_book *b = &t->book;
    const rq_quant_opt *o = t->opt;
    int64_t width = t->vec_out ? 1 : t->d, cols = o->book_cols > 0 ? o->book_cols : t->n_vec * width;
    *b = (rq_book){.d = t->d, .n_vec = t->n_vec, .n_stage = o->codes2 > 0 ? 2 : 1, .k = {o->codes, o->codes2}};
    b->vec_per_book = cols / width;
    b->n_book = rq_ceil_div(t->n_vec, b->vec_per_book);
    b->n_table = t->vec->n_table(b->d);
    const int64_t k[2] = {o->codes, o->codes2};
    for (int i = 0; i < 2 && k[i] > 0; ++i) {
        int64_t n = b->n_book * k[i] * b->d;
        b->k_pad[i] = rq_ceil_div(b->k[i], RQ_SEARCH_PAD) * RQ_SEARCH_PAD;
        RQ_TRY(RQ_NEW_ZERO(b->value[i], n));
        RQ_TRY(RQ_NEW(b->table[i], b->n_book * b->n_table * b->k_pad[i]));
        if (o->book_dtype == RQ_BOOK_U8) {
            RQ_TRY(RQ_NEW(b->u8, n));
        } else {
            RQ_TRY(RQ_NEW(b->f16[i], n));
        }
    }
    RQ_TRY(RQ_NEW(b->book_scale, b->n_book));
    if (o->book_order == RQ_BOOK_HDIAG && b->n_book > 1) RQ_TRY(order_books(t));
done:
    return status;
}

void rq_book_store(rq_book_task *t) {
    rq_book *b = &t->book;
    for (int stage = 0; stage < b->n_stage; ++stage) {
        int64_t per_book = b->k[stage] * b->d;
        for (int64_t which = 0; which < b->n_book; ++which) {
            float *v = b->value[stage] + which * per_book, top = 0;
            b->book_scale[which] = 1;
            for (int64_t i = 0; i < per_book; ++i) top = fmaxf(top, v[i]);
            if (b->u8) b->book_scale[which] = top > 0 ? top / 255.0f : 1;
            for (int64_t i = 0; i < per_book; ++i) {
                if (b->u8) {
                    float u = rintf(v[i] / b->book_scale[which]);
                    b->u8[which * per_book + i] = (uint8_t)(u > 255 ? 255 : u);
                    v[i] = b->book_scale[which] * (float)b->u8[which * per_book + i];
                } else {
                    float u = fminf(fmaxf(v[i], -65504.0f), 65504.0f);
                    rq_f16 h = rq_f16_of_f32(u == 0 ? 0 : u); /* no negative zero among magnitudes */
                    b->f16[stage][which * per_book + i] = h;
                    v[i] = rq_f32_of_f16(h);
                }
            }
            t->vec->make_table(b->table[stage] + which * b->n_table * b->k_pad[stage], v, b->d, b->k[stage],
                               b->k_pad[stage]);
        }
    }
}

typedef struct points {
    float *x, *weight;
    int64_t n;
} points;

/* The vectors of codebook `which`, ascending: list[n]. */
static int64_t vectors_of(int32_t *list, const rq_book *b, int64_t which) {
    int64_t n = 0;
    for (int64_t v = 0; v < b->n_vec; ++v) {
        if (rq_book_of(b, v) == which) list[n++] = (int32_t)v;
    }
    return n;
}

/* Vectors of codebook `which`, at even steps with a random offset in each when there are more than wanted: weights in the units of
 * their scales, and what an error in each costs. from[n_out][n]: the start weights, or (left) what a first stage leaves of weights,
 * where the columns' biases are gone already. Vectors whose scale is zero are left out. */
static rq_status gather_points(points *out, const rq_book_task *t, int64_t which, const float *metric,
                               const float *from, bool left) {
    rq_status status = RQ_OK;
    const rq_prep *p = t->prep;
    int64_t n = t->n, d = t->d;
    bool *kept = NULL;
    int32_t *list = NULL;
    RQ_TRY(RQ_NEW(list, t->n_vec));
    int64_t n_own = vectors_of(list, &t->book, which), all = t->n_line * n_own,
            wanted = t->opt->kmeans_points > 0 ? rq_min_i64(all, t->opt->kmeans_points) : all;
    RQ_TRY(RQ_NEW(out->x, wanted * d));
    RQ_TRY(RQ_NEW(out->weight, wanted * d));
    RQ_TRY(RQ_NEW_ZERO(kept, n));
    for (int o = 0; o < p->n_outlier; ++o) kept[p->outlier_col[o]] = true;
    uint64_t seed = (uint64_t)t->opt->kmeans_seed + 1;
    double step = (double)all / (double)wanted;
    for (int64_t i = 0; i < wanted; ++i) {
        int64_t at = (int64_t)(step * ((double)i + (wanted < all ? rq_random_unit(seed, (uint64_t)i) : 0)));
        at = rq_min_i64(at, all - 1);
        int64_t line = at / n_own, v = list[at % n_own];
        float s = rq_book_factor(t, line, v), bias = left ? 0 : rq_book_bias(t, line, v);
        if (!(s > 0)) continue;
        for (int64_t r = 0; r < d; ++r) {
            int64_t cell = rq_book_lane(t, line, v, r);
            bool counts = cell >= 0 && !kept[cell % n];
            float x = counts ? (from[cell] - bias) / s : 0;
            float cost = t->vec_out ? metric[v] : metric[v * d * d + r * d + r];
            out->x[out->n * d + r] = t->vec->magnitudes ? fabsf(x) : x;
            out->weight[out->n * d + r] = counts ? s * s * cost : 0;
        }
        ++out->n;
    }
done:
    free(kept);
    free(list);
    return status;
}

/* k-means for codebook `which` of a stage; what it leaves of the points stays in them. */
static rq_status fit_stage(rq_book_task *t, int64_t which, int stage, points *p) {
    rq_status status = RQ_OK;
    rq_book *b = &t->book;
    uint16_t *assign = NULL;
    float *centroid = b->value[stage] + which * b->k[stage] * b->d;
    rq_kmeans_opt o = rq_kmeans_default(b->k[stage], b->d);
    o.n_iter = t->opt->kmeans_iters;
    o.weights = RQ_KMEANS_PER_COMPONENT;
    o.seeding = RQ_KMEANS_PLUSPLUS;
    o.seed = (uint64_t)t->opt->kmeans_seed;
    o.engine = rq_device_row(t->prep->device)->kmeans;
    o.engine_own = rq_device_own(t->prep->device);
    RQ_TRY(RQ_NEW(assign, p->n));
    RQ_TRY(rq_kmeans(centroid, assign, NULL, p->x, p->weight, p->n, &o, false));
    for (int64_t i = 0; i < p->n * b->d; ++i) p->x[i] -= centroid[assign[i / b->d] * b->d + i % b->d];
done:
    free(assign);
    return status;
}

static rq_status fit(rq_book_task *t, const float *metric, const float *from, int stage0, int stage1) {
    rq_status status = RQ_OK;
    points p = {0};
    for (int64_t which = 0; which < t->book.n_book; ++which) {
        free(p.x);
        free(p.weight);
        p = (points){0};
        RQ_TRY(gather_points(&p, t, which, metric, from, stage0 > 0));
        /* without points there is nothing but zeros: the codebook stays zero */
        for (int stage = stage0; p.n > 0 && stage < stage1; ++stage) RQ_TRY(fit_stage(t, which, stage, &p));
    }
    rq_book_store(t);
done:
    free(p.x);
    free(p.weight);
    return status;
}

rq_status rq_book_fit(rq_book_task *t, const float *metric) { return fit(t, metric, t->start, 0, t->book.n_stage); }

rq_status rq_book_fit_second(rq_book_task *t, const float *metric) {
    rq_status status = RQ_OK;
    rq_book *b = &t->book;
    float *left = NULL, *q = NULL;
    RQ_TRY(RQ_NEW_ZERO(left, t->n_out * t->n));
    RQ_TRY(RQ_NEW(q, t->n));
    b->n_stage = 1;
    RQ_TRY(fit(t, metric, t->start, 0, 1));
    RQ_TRY(rq_device_row(t->prep->device)->book_sweep(rq_device_own(t->prep->device), t, metric, left));
    for (int64_t r = 0; r < t->n_out; ++r) {
        rq_book_row(t, r, q);
        for (int64_t j = 0; j < t->n; ++j) left[r * t->n + j] -= q[j];
    }
    b->n_stage = 2;
    for (int64_t i = 0; i < t->n_out * t->n; ++i) {
        if (!isfinite(left[i])) { /* a sweep that ran away: the start weights say more */
            status = rq_book_fit(t, metric);
            goto done;
        }
    }
    RQ_TRY(fit(t, metric, left, 1, 2));
done:
    b->n_stage = 2;
    free(left);
    free(q);
    return status;
}
