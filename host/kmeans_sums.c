/* SPDX-License-Identifier: Apache-2.0 */
/* A pass of k-means over its points, chunk by chunk: nearest centroids (by a kernel), the fp64 sums of each cell, the loss. */
#include <math.h>

#include "kmeans_passes.h"
#include "simd.h"

enum {
    CELLS = 256, /* whose sums are added up together */
    L = RQ_KMEANS_LANES
};

rq_status rq_kmeans_passes_new(rq_kmeans_passes *t, const rq_kmeans_data *p, const rq_kmeans_opt *o, bool sums) {
    rq_status status = RQ_OK;
    int64_t k = o->k;
    *t = (rq_kmeans_passes){
        .p = p, .k = k, .nearest = rq_kmeans_pick()->nearest, .engine = o->engine, .engine_own = o->engine_own};
    t->n_col = p->weights == RQ_KMEANS_PER_COMPONENT ? 2 * p->d : p->d + 1;
    RQ_TRY(RQ_NEW(t->best, p->n_group * RQ_KMEANS_LANES));
    RQ_TRY(RQ_NEW(t->table, rq_ceil_div(k, L) * L * (p->n_feat + 1)));
    RQ_TRY(RQ_NEW(t->chunk_loss, p->n_chunk));
    if (sums) RQ_TRY(RQ_NEW(t->sum, k * t->n_col));
    if (t->engine)
        RQ_TRY(t->engine->begin(t->engine_own, &t->engine_state, p, k, t->n_col));
    else if (sums)
        RQ_TRY(RQ_NEW(t->part, p->n_chunk * k * t->n_col));
done:
    return status;
}

void rq_kmeans_passes_free(rq_kmeans_passes *t) {
    if (t->engine && t->engine_state) t->engine->end(t->engine_own, t->engine_state);
    free(t->best);
    free(t->table);
    free(t->chunk_loss);
    free(t->part);
    free(t->sum);
    *t = (rq_kmeans_passes){0};
}

/* Centroids moved and scaled like the points. One that is 2^40 times as far out as every point is nearest to none of them, and
 * is kept from overflowing. */
static void fill_table(rq_kmeans_passes *t, const float *centroid) {
    const rq_kmeans_data *p = t->p;
    bool weighted = p->weights == RQ_KMEANS_PER_COMPONENT;
    for (int64_t j = 0; j < rq_ceil_div(t->k, L) * L; ++j) {
        float *to = t->table + j / L * L * (p->n_feat + 1) + j % L; /* feature r: to[(1 + r) * L] */
        double square = 0;
        for (int r = 0; r < p->d; ++r) {
            double c = j < t->k ? ((double)centroid[j * p->d + r] - p->centre[r]) * p->scale : 0;
            float f = (float)fmin(fmax(c, -0x1p40), 0x1p40);
            square += (double)f * (double)f;
            to[(1 + r) * L] = weighted ? f * f : -f;
            if (weighted) to[(1 + p->d + r) * L] = -2.0f * f;
        }
        to[0] = j >= t->k ? INFINITY : weighted ? 0.0f : (float)(square / 2);
    }
}

/* sum[cell] += points i0 .. i1 - 1; d is a constant where the loop is worth it. */
static inline void add_points(double *restrict sum, const uint16_t *best, const rq_kmeans_data *p, int64_t i0,
                              int64_t i1, int d) {
    for (int64_t i = i0; i < i1; ++i) {
        double *s = sum + best[i] * (d + 1);
        const float *x = p->x + i * d;
        double w = p->weight ? (double)p->weight[i] : 1.0;
        for (int r = 0; r < d; ++r) s[r] += w * (double)x[r];
        s[d] += w;
    }
}

static inline void add_weighted(double *restrict sum, const uint16_t *best, const rq_kmeans_data *p, int64_t i0,
                                int64_t i1, int d) {
    for (int64_t i = i0; i < i1; ++i) {
        double *s = sum + best[i] * (2 * d);
        const float *x = p->x + i * d, *w = p->weight + i * d;
        for (int r = 0; r < d; ++r) s[r] += (double)w[r] * (double)x[r];
        for (int r = 0; r < d; ++r) s[d + r] += (double)w[r];
    }
}

RQ_CLONES static void add_to_sums(double *restrict sum, const uint16_t *best, const rq_kmeans_data *p, int64_t i0,
                                  int64_t i1) {
    bool weighted = p->weights == RQ_KMEANS_PER_COMPONENT;
    if (p->d == 8) {
        weighted ? add_weighted(sum, best, p, i0, i1, 8) : add_points(sum, best, p, i0, i1, 8);
    } else if (p->d == 4) {
        weighted ? add_weighted(sum, best, p, i0, i1, 4) : add_points(sum, best, p, i0, i1, 4);
    } else {
        weighted ? add_weighted(sum, best, p, i0, i1, p->d) : add_points(sum, best, p, i0, i1, p->d);
    }
}

typedef struct pass_job {
    rq_kmeans_passes *t;
    const float *centroid;
    bool sums, loss;
} pass_job;

static void pass_chunk(void *arg, int64_t chunk) {
    pass_job *j = arg;
    rq_kmeans_passes *t = j->t;
    const rq_kmeans_data *p = t->p;
    int64_t i0 = chunk * p->chunk, i1 = rq_min_i64(i0 + p->chunk, p->n);
    int64_t group0 = i0 / RQ_KMEANS_LANES, group1 = rq_min_i64(group0 + p->chunk / RQ_KMEANS_LANES, p->n_group);
    double loss = 0, *sum = NULL;
    if (j->sums) {
        sum = t->part + chunk * t->k * t->n_col;
        memset(sum, 0, (size_t)(t->k * t->n_col) * sizeof *sum);
    }
    if (!t->engine)
        t->nearest(t->best + i0, p->u + group0 * p->n_feat * RQ_KMEANS_LANES, group1 - group0, p->n_feat, t->table,
                   rq_ceil_div(t->k, L));
    if (sum) add_to_sums(sum, t->best, p, i0, i1);
    for (int64_t i = i0; j->loss && i < i1; ++i) loss += rq_kmeans_point_loss(p, i, j->centroid + t->best[i] * p->d);
    t->chunk_loss[chunk] = loss;
}

static void total_cells(void *arg, int64_t block) {
    rq_kmeans_passes *t = arg;
    int64_t first = block * CELLS * t->n_col, last = rq_min_i64((block + 1) * CELLS, t->k) * t->n_col;
    memset(t->sum + first, 0, (size_t)(last - first) * sizeof *t->sum);
    for (int64_t c = 0; c < t->p->n_chunk; ++c) {
        const double *part = t->part + c * t->k * t->n_col;
        for (int64_t e = first; e < last; ++e) t->sum[e] += part[e];
    }
}

rq_status rq_kmeans_pass(rq_kmeans_passes *t, const float *centroid, bool sums, bool loss) {
    rq_status status = RQ_OK;
    pass_job job = {.t = t, .centroid = centroid, .sums = sums && !t->engine, .loss = loss};
    fill_table(t, centroid);
    if (t->engine) RQ_TRY(t->engine->pass(t->engine_own, t->engine_state, t->best, sums ? t->sum : NULL, t->table));
    if (!t->engine || loss) rq_parallel_for(t->p->n_chunk, pass_chunk, &job);
    if (job.sums) rq_parallel_for(rq_ceil_div(t->k, CELLS), total_cells, t);
    t->loss = 0;
    for (int64_t c = 0; loss && c < t->p->n_chunk; ++c) t->loss += t->chunk_loss[c];
done:
    return status;
}
