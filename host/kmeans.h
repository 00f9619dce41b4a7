/* SPDX-License-Identifier: Apache-2.0 */
/* k-means on short fp32 vectors, the codebook maker of the vector quantizers: Lloyd's iterations for the loss
 *     sum_i sum_r w_ir (x_ir - c_a(i),r)^2
 * with no weights, one weight a point, or one a component (a diagonal of H that travels with the weights it belongs to).
 *
 * Results are the same bytes for any number of threads and on any CPU: points are cut into chunks by n, k and d alone, sums are
 * fp64 over a chunk and then over chunks in order, and all kernels round the same way. */
#ifndef RQ_KMEANS_H
#define RQ_KMEANS_H

#include "common.h"

enum { RQ_KMEANS_MAX_K = 65536, RQ_KMEANS_MAX_D = 16 };

typedef enum rq_kmeans_weights {
    RQ_KMEANS_PLAIN,        /* weight is NULL */
    RQ_KMEANS_PER_POINT,    /* weight[n] */
    RQ_KMEANS_PER_COMPONENT /* weight[n][d] */
} rq_kmeans_weights;

typedef enum rq_kmeans_seeding {
    RQ_KMEANS_SAMPLE, /* one point at random out of each of k equal runs of points */
    RQ_KMEANS_PLUSPLUS /* k-means++ (Arthur, Vassilvitskii 2007): each next one with a chance in proportion to its loss so far */
} rq_kmeans_seeding;

/* Another machine than this CPU for the passes over the points (kmeans_impl.h); own is its state. */
typedef struct rq_kmeans_engine rq_kmeans_engine;

typedef struct rq_kmeans_opt {
    size_t struct_size;
    int64_t k;  /* 1 .. RQ_KMEANS_MAX_K */
    int d;      /* 1 .. RQ_KMEANS_MAX_D */
    int n_iter; /* assignments followed by an update; 0: the seeds as they are */
    double tol; /* stop when the loss falls by less than this fraction; 0: only when nothing changes */
    rq_kmeans_weights weights;
    rq_kmeans_seeding seeding;
    uint64_t seed;
    int64_t max_points; /* fit on a deterministic sample of so many, 0: all */
    /* Called between iterations; true asks to stop: RQ_ERR_CANCELLED, centroids as they are then. */
    bool (*progress)(void *user, double done_frac, const char *text);
    void *user;
    const rq_kmeans_engine *engine; /* NULL: this CPU, which has the seeds, the repairs and the losses in any case */
    void *engine_own;
} rq_kmeans_opt;

/* 20 iterations, tol 0, no weights, sampled seeds, seed 0, all points. */
rq_kmeans_opt rq_kmeans_default(int64_t k, int d);

/* centroid [k][d] out (in too when start_given); assign [n] out or NULL; loss, summed in fp64, out or NULL: both belong to the
 * centroids returned. x [n][d]; weight as o->weights says, finite and not negative.
 *
 * A cell that no point (or only weight 0) is left in takes the point of the largest loss; so the loss never rises but for the
 * rounding of distances. With fewer points than cells, centroids repeat points. All values are finite: NaN and infinity in x,
 * weight and given centroids are refused by their index. No scale is refused: distances are taken from points moved and
 * scaled by a power of two. Takes about 4 n d bytes (twice that with weights per component) and 64 MiB of sums. */
rq_status rq_kmeans(float *centroid, uint16_t *assign, double *loss, const float *x, const float *weight, int64_t n,
                    const rq_kmeans_opt *o, bool start_given);

/* The nearest centroid of each point, the lowest index of equally near ones, and the loss; assign or loss may be NULL. Of o the
 * sizes and the kind of weights count. */
rq_status rq_kmeans_assign(uint16_t *assign, double *loss, const float *x, const float *weight, int64_t n,
                           const float *centroid, const rq_kmeans_opt *o);

#endif
