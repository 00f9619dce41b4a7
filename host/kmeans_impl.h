/* SPDX-License-Identifier: Apache-2.0 */
/* Pieces that the files of k-means share. Internal.
 *
 * The distance of point x from centroid c, less what does not depend on c, is an inner product plus a bias:
 *     plain, per point   |c|^2 / 2 - x . c          u = x            v = -c            bias = |c|^2 / 2
 *     per component      sum_r w_r c_r^2 - 2 w x c  u = [w, w x]     v = [c^2, -2 c]   bias = 0
 * so that one kernel serves all: n_feat = d or 2 d products for a point and a centroid. Points are moved by a centre and scaled by
 * a power of two first (the centre keeps differences of large numbers out of fp32), and the weights of a point scaled to
 * a largest of about 1. */
#ifndef RQ_KMEANS_IMPL_H
#define RQ_KMEANS_IMPL_H

#include "kmeans.h"

enum {
    RQ_KMEANS_LANES = 16, /* points side by side: u is [group of points][n_feat][LANES], zeros past the last point */
    RQ_KMEANS_TILE = 32   /* points in a tile of the kernels: n_group is a multiple of TILE / LANES */
};

/* best[i] = the first j of the smallest score bias_j + u_i . v_j, for n_group * LANES points. Centroids are side by side too:
 * table [blocks of LANES centroids][1 + n_feat][LANES], first the bias, which is infinity past the last centroid. A score is a chain
 * of fused multiply-adds in the order of the features, in every twin; so all of them give the same bytes. */
typedef void (*rq_kmeans_nearest_fn)(uint16_t *best, const float *u, int64_t n_group, int n_feat, const float *table,
                                     int64_t n_block);
void rq_kmeans_nearest_plain(uint16_t *best, const float *u, int64_t n_group, int n_feat, const float *table,
                             int64_t n_block);
#if defined(__x86_64__) && defined(__GNUC__)
#define RQ_KMEANS_X86 1
void rq_kmeans_nearest_avx2(uint16_t *best, const float *u, int64_t n_group, int n_feat, const float *table,
                            int64_t n_block);
void rq_kmeans_nearest_avx512(uint16_t *best, const float *u, int64_t n_group, int n_feat, const float *table,
                              int64_t n_block);
#endif

typedef struct rq_kmeans_twin {
    const char *name;
    rq_kmeans_nearest_fn nearest;
} rq_kmeans_twin;
/* From the slowest to the fastest that this machine runs under the ceiling RQ_KERNEL (host/kernels.h); NULL past the end. */
const rq_kmeans_twin *rq_kmeans_twin_at(int i);
/* The last of them, which the passes use. */
const rq_kmeans_twin *rq_kmeans_pick(void);

/* Points to work on. */
typedef struct rq_kmeans_data {
    const float *x, *weight; /* not owned */
    int64_t n;
    int d, n_feat;
    rq_kmeans_weights weights;
    double centre[RQ_KMEANS_MAX_D], scale; /* u is made of (x - centre) * scale */
    float *u;
    int64_t n_group;
    int64_t chunk, n_chunk; /* points of a chunk, a multiple of TILE */
} rq_kmeans_data;

/* Weight of component r of point i. */
static inline double rq_kmeans_weight(const rq_kmeans_data *p, int64_t i, int r) {
    if (p->weights == RQ_KMEANS_PLAIN) return 1.0;
    return (double)(p->weights == RQ_KMEANS_PER_POINT ? p->weight[i] : p->weight[i * p->d + r]);
}

/* sum_r w_ir (x_ir - c_r)^2 */
static inline double rq_kmeans_point_loss(const rq_kmeans_data *p, int64_t i, const float *c) {
    double s = 0;
    for (int r = 0; r < p->d; ++r) {
        double e = (double)p->x[i * p->d + r] - (double)c[r];
        s += rq_kmeans_weight(p, i, r) * e * e;
    }
    return s;
}

/* Passes elsewhere, with the same bytes. begin: what a run of passes needs, n_col columns of sums; pass: best[n_group * LANES] and, where it
 * is not NULL, sum[k][n_col]; end may be called with what a begin that failed left. */
struct rq_kmeans_engine {
    rq_status (*begin)(void *own, void **state, const rq_kmeans_data *p, int64_t k, int n_col);
    rq_status (*pass)(void *own, void *state, uint16_t *best, double *sum, const float *table);
    void (*end)(void *own, void *state);
};

/* First centroids; n >= 1. Points are those of p, k and so on those of o. */
rq_status rq_kmeans_seed(float *centroid, const rq_kmeans_data *p, const rq_kmeans_opt *o);

/* The index that point j of a sample of m out of n has: one at random out of each of m equal runs; m <= n. */
int64_t rq_kmeans_sample_index(uint64_t seed, int64_t j, int64_t m, int64_t n);

#endif
