/* SPDX-License-Identifier: Apache-2.0 */
/* Empty cells of k-means take the points that lose most, one after the other: each time the point that is farthest from its
 * own centroid and from the points taken before, so that several cells do not fill with neighbours. When there are so many
 * empty cells that this would take longer than an iteration, among a sample of the points. */
#include "kmeans_passes.h"

enum { CHUNK = 4096 };
#define MAX_LOOKS (1LL << 27)

typedef struct hunt {
    const rq_kmeans_data *p;
    const uint16_t *best;
    const float *centroid;
    const float *newest; /* the point taken last; NULL at first */
    int64_t m;           /* candidates */
    double *loss;        /* [m] */
    int64_t *worst;      /* [chunks] candidate of the largest loss, the first of equal ones */
} hunt;

static inline int64_t candidate(const hunt *h, int64_t c) {
    return h->m == h->p->n ? c : rq_kmeans_sample_index(3, c, h->m, h->p->n);
}

static void hunt_chunk(void *arg, int64_t chunk) {
    hunt *h = arg;
    int64_t first = chunk * CHUNK, worst = first;
    for (int64_t c = first; c < rq_min_i64(first + CHUNK, h->m); ++c) {
        int64_t i = candidate(h, c);
        if (!h->newest) {
            h->loss[c] = rq_kmeans_point_loss(h->p, i, h->centroid + h->best[i] * h->p->d);
        } else {
            double l = rq_kmeans_point_loss(h->p, i, h->newest);
            if (l < h->loss[c]) h->loss[c] = l;
        }
        if (h->loss[c] > h->loss[worst]) worst = c;
    }
    h->worst[chunk] = worst;
}

rq_status rq_kmeans_repair(float *centroid, const rq_kmeans_passes *t, const int64_t *empty, int64_t n_empty,
                           bool *changed) {
    rq_status status = RQ_OK;
    const rq_kmeans_data *p = t->p;
    hunt h = {.p = p, .best = t->best, .centroid = centroid};
    h.m = rq_min_i64(p->n, rq_max_i64(n_empty, MAX_LOOKS / n_empty));
    int64_t n_chunk = rq_ceil_div(h.m, CHUNK);
    RQ_TRY(RQ_NEW(h.loss, h.m));
    RQ_TRY(RQ_NEW(h.worst, n_chunk));
    for (int64_t e = 0; e < n_empty; ++e) {
        rq_parallel_for(n_chunk, hunt_chunk, &h);
        int64_t worst = h.worst[0];
        for (int64_t c = 1; c < n_chunk; ++c) {
            if (h.loss[h.worst[c]] > h.loss[worst]) worst = h.worst[c];
        }
        if (!(h.loss[worst] > 0)) break;
        float *to = centroid + empty[e] * p->d;
        memcpy(to, p->x + candidate(&h, worst) * p->d, (size_t)p->d * sizeof *to);
        h.newest = to;
        *changed = true;
    }
done:
    free(h.loss);
    free(h.worst);
    return status;
}
