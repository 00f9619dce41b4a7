/* SPDX-License-Identifier: Apache-2.0 */
/* Points as the kernels of k-means want them: moved, scaled, side by side in groups of lanes (host/kmeans_impl.h). */
#include <math.h>

#include "kmeans_passes.h"
#include "simd.h"

enum { MAX_CHUNKS = 256, MIN_CHUNK = 1024, MEDIAN_OF = 255 };
#define MAX_SUM_BYTES (64LL << 20)

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The centre is the median of a few points: near the many, whatever a single outlier does to the mean, and exactly the value of
 * a constant column. */
static void find_centre(rq_kmeans_data *p) {
    int64_t m = rq_min_i64(p->n, MEDIAN_OF);
    for (int r = 0; r < p->d; ++r) {
        float some[MEDIAN_OF] = {0};
        for (int64_t j = 0; j < m; ++j) some[j] = p->x[rq_kmeans_sample_index(0, j, m, p->n) * p->d + r];
        qsort(some, (size_t)m, sizeof *some, by_value);
        p->centre[r] = (double)some[m / 2];
    }
}

/* The largest distance of a component of rows from the centre. */
static inline double reach_of(const double *centre, const float *rows, int64_t n, int d) {
    double reach = 0;
    for (int64_t i = 0; i < n; ++i) {
        for (int r = 0; r < d; ++r) {
            double e = fabs((double)rows[i * d + r] - centre[r]);
            reach = e > reach ? e : reach;
        }
    }
    return reach;
}

typedef struct pack_job {
    rq_kmeans_data *p;
    double *reach; /* [chunks] */
} pack_job;

static void reach_chunk(void *arg, int64_t chunk) {
    pack_job *j = arg;
    const rq_kmeans_data *p = j->p;
    int64_t i = chunk * p->chunk, n = rq_min_i64(p->chunk, p->n - i);
    j->reach[chunk] = reach_of(p->centre, p->x + i * p->d, n, p->d);
}

/* A group of n points, from x on, to[d][LANES]. */
static inline void pack_moved(float *to, const rq_kmeans_data *p, const float *x, int n, int d) {
    for (int r = 0; r < d; ++r) {
        for (int lane = 0; lane < n; ++lane) {
            to[r * RQ_KMEANS_LANES + lane] = (float)(((double)x[lane * d + r] - p->centre[r]) * p->scale);
        }
    }
}

RQ_CLONES static void pack_plain(float *to, const rq_kmeans_data *p, const float *x, int n) {
    if (n == RQ_KMEANS_LANES && p->d == 8) {
        pack_moved(to, p, x, RQ_KMEANS_LANES, 8);
    } else if (n == RQ_KMEANS_LANES && p->d == 4) {
        pack_moved(to, p, x, RQ_KMEANS_LANES, 4);
    } else {
        pack_moved(to, p, x, n, p->d);
    }
}

/* The same with weights per component: to[2 d][LANES] is w, then w times the moved point. Which centroid is nearest does not depend on
 * a factor of all weights of a point. */
static void pack_weighted(float *to, const rq_kmeans_data *p, const float *x, const float *weight, int n) {
    for (int lane = 0; lane < n; ++lane) {
        const float *w = weight + lane * p->d;
        float most = 0;
        int exponent;
        for (int r = 0; r < p->d; ++r) most = w[r] > most ? w[r] : most;
        frexp((double)most, &exponent);
        double unit = ldexp(1.0, -exponent);
        for (int r = 0; r < p->d; ++r) {
            double scaled = (double)w[r] * unit, moved = ((double)x[lane * p->d + r] - p->centre[r]) * p->scale;
            to[r * RQ_KMEANS_LANES + lane] = (float)scaled;
            to[(p->d + r) * RQ_KMEANS_LANES + lane] = (float)(scaled * moved);
        }
    }
}

static void pack_chunk(void *arg, int64_t chunk) {
    rq_kmeans_data *p = ((pack_job *)arg)->p;
    int64_t group0 = chunk * p->chunk / RQ_KMEANS_LANES;
    int64_t group1 = rq_min_i64(group0 + p->chunk / RQ_KMEANS_LANES, p->n_group);
    for (int64_t g = group0; g < group1; ++g) {
        float *to = p->u + g * p->n_feat * RQ_KMEANS_LANES;
        int64_t i = g * RQ_KMEANS_LANES;
        int n = (int)rq_max_i64(0, rq_min_i64(RQ_KMEANS_LANES, p->n - i));
        if (n < RQ_KMEANS_LANES) memset(to, 0, (size_t)(p->n_feat * RQ_KMEANS_LANES) * sizeof *to);
        if (n == 0) continue; /* the tile's second group */
        if (p->weights == RQ_KMEANS_PER_COMPONENT) {
            pack_weighted(to, p, p->x + i * p->d, p->weight + i * p->d, n);
        } else {
            pack_plain(to, p, p->x + i * p->d, n);
        }
    }
}

/* As many chunks as there is memory for sums: a function of the sizes alone. */
static void cut_chunks(rq_kmeans_data *p, int64_t k) {
    int64_t n_col = p->weights == RQ_KMEANS_PER_COMPONENT ? 2 * p->d : p->d + 1;
    int64_t most = MAX_SUM_BYTES / (k * n_col * (int64_t)sizeof(double));
    most = most < 4 ? 4 : most > MAX_CHUNKS ? MAX_CHUNKS : most;
    int64_t chunk = rq_max_i64(MIN_CHUNK, rq_ceil_div(p->n, most));
    p->chunk = rq_ceil_div(chunk, RQ_KMEANS_TILE) * RQ_KMEANS_TILE;
    p->n_chunk = rq_ceil_div(p->n, p->chunk);
}

rq_status rq_kmeans_data_new(rq_kmeans_data *p, const float *x, const float *weight, int64_t n, const float *centroid,
                             const rq_kmeans_opt *o) {
    rq_status status = RQ_OK;
    double *reach = NULL, most = 0;
    *p = (rq_kmeans_data){.x = x, .weight = weight, .n = n, .d = o->d, .weights = o->weights};
    p->n_feat = o->weights == RQ_KMEANS_PER_COMPONENT ? 2 * o->d : o->d;
    p->n_group = rq_ceil_div(n, RQ_KMEANS_TILE) * (RQ_KMEANS_TILE / RQ_KMEANS_LANES);
    cut_chunks(p, o->k);
    RQ_TRY(RQ_NEW(p->u, p->n_group * RQ_KMEANS_LANES * p->n_feat));
    RQ_TRY(RQ_NEW(reach, p->n_chunk));
    find_centre(p);
    pack_job job = {.p = p, .reach = reach};
    rq_parallel_for(p->n_chunk, reach_chunk, &job);
    for (int64_t c = 0; c < p->n_chunk; ++c) most = fmax(most, reach[c]);
    if (centroid) { /* the nearest of the centroids must be in reach, not all of them */
        double least = INFINITY;
        for (int64_t j = 0; j < o->k; ++j) least = fmin(least, reach_of(p->centre, centroid + j * o->d, 1, o->d));
        most = fmax(most, least);
    }
    int exponent;
    frexp(most, &exponent);
    p->scale = most > 0 ? ldexp(1.0, -exponent) : 1.0;
    rq_parallel_for(p->n_chunk, pack_chunk, &job);
done:
    free(reach);
    return status;
}

void rq_kmeans_data_free(rq_kmeans_data *p) {
    free(p->u);
    p->u = NULL;
}
