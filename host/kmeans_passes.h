/* SPDX-License-Identifier: Apache-2.0 */
/* One pass over the points: nearest centroids, sums of every cell, loss. Internal to k-means. */
#ifndef RQ_KMEANS_PASSES_H
#define RQ_KMEANS_PASSES_H

#include "kmeans_impl.h"

/* Points prepared for the kernels. x and weight must stay; centroid (NULL: points of x) sees to it that the scale suits those
 * too. Free with rq_kmeans_data_free, also after an error. */
rq_status rq_kmeans_data_new(rq_kmeans_data *p, const float *x, const float *weight, int64_t n, const float *centroid,
                             const rq_kmeans_opt *o);
void rq_kmeans_data_free(rq_kmeans_data *p);

typedef struct rq_kmeans_passes {
    const rq_kmeans_data *p;
    int64_t k;
    int n_col;      /* of the sums: d of w x, then one of w, or d per component */
    uint16_t *best; /* [n_group * LANES] nearest centroid of each point */
    float *table;   /* of the centroids, for the kernels */
    double *part;   /* [n_chunk][k][n_col] sums of each chunk, NULL when no sums are wanted */
    double *sum;    /* [k][n_col] */
    double *chunk_loss, loss;
    rq_kmeans_nearest_fn nearest;
    const rq_kmeans_engine *engine; /* or NULL */
    void *engine_own, *engine_state;
} rq_kmeans_passes;

rq_status rq_kmeans_passes_new(rq_kmeans_passes *t, const rq_kmeans_data *p, const rq_kmeans_opt *o, bool sums);
void rq_kmeans_passes_free(rq_kmeans_passes *t);

/* Fills best, and sum and loss where wanted. */
rq_status rq_kmeans_pass(rq_kmeans_passes *t, const float *centroid, bool sums, bool loss);

/* Empty cells take the points of the largest losses; cells for which no point with a loss is left stay where they are. best
 * is that of the pass before the centroids moved. Sets *changed when a centroid was moved. */
rq_status rq_kmeans_repair(float *centroid, const rq_kmeans_passes *t, const int64_t *empty, int64_t n_empty,
                           bool *changed);

#endif
