/* SPDX-License-Identifier: Apache-2.0 */
/* First centroids of k-means: a sample of the points, or k-means++ (Arthur, Vassilvitskii: "k-means++: the advantages of careful
 * seeding", SODA 2007) with the weights in its chances, on at most 32 points a centroid. */
#include "kmeans_impl.h"
#include "random.h"

enum { CHUNK = 4096, POINTS_PER_CENTROID = 32 };

int64_t rq_kmeans_sample_index(uint64_t seed, int64_t j, int64_t m, int64_t n) {
    /* Run j is [j n / m, (j + 1) n / m), in 128 bits because j n may not fit 64. */
    int64_t first = (int64_t)((__int128)j * n / m), last = (int64_t)((__int128)(j + 1) * n / m);
    int64_t at = first + (int64_t)(rq_random_unit(seed, (uint64_t)j) * (double)(last - first));
    return at < last ? at : last - 1;
}

typedef struct spread {
    const rq_kmeans_data *p;
    const int64_t *index; /* [m] of the points that may be seeds */
    int64_t m;
    const float *newest; /* the centroid chosen last */
    double *least;       /* [m] loss at the nearest centroid so far */
    double *sum;         /* [chunks] of least */
    bool first;
} spread;

static void spread_chunk(void *arg, int64_t chunk) {
    spread *s = arg;
    int64_t last = rq_min_i64((chunk + 1) * CHUNK, s->m);
    double sum = 0;
    for (int64_t j = chunk * CHUNK; j < last; ++j) {
        double loss = rq_kmeans_point_loss(s->p, s->index[j], s->newest);
        if (s->first || loss < s->least[j]) s->least[j] = loss;
        sum += s->least[j];
    }
    s->sum[chunk] = sum;
}

/* The point at which the running sum of losses passes a random share of the total. */
static int64_t draw(const spread *s, int64_t n_chunk, double unit) {
    double total = 0, below = 0;
    for (int64_t c = 0; c < n_chunk; ++c) total += s->sum[c];
    if (!(total > 0)) return (int64_t)(unit * (double)s->m); /* every point has its centroid: any will do */
    int64_t chunk = 0, found = -1;
    double want = unit * total;
    while (chunk + 1 < n_chunk && below + s->sum[chunk] <= want) below += s->sum[chunk++];
    for (int64_t j = chunk * CHUNK; j < rq_min_i64((chunk + 1) * CHUNK, s->m); ++j) {
        if (!(s->least[j] > 0)) continue;
        found = j;
        below += s->least[j];
        if (below > want) break;
    }
    for (int64_t j = 0; found < 0; ++j) { /* the rounding of sums led to a chunk of zeros */
        if (s->least[j] > 0) found = j;
    }
    return found;
}

static rq_status seed_plusplus(float *centroid, const rq_kmeans_data *p, const rq_kmeans_opt *o) {
    rq_status status = RQ_OK;
    int64_t *index = NULL, m = rq_min_i64(p->n, o->k * POINTS_PER_CENTROID), n_chunk = rq_ceil_div(m, CHUNK);
    double *least = NULL, *sum = NULL;
    size_t bytes = (size_t)p->d * sizeof *centroid;
    RQ_TRY(RQ_NEW(index, m));
    RQ_TRY(RQ_NEW_ZERO(least, m));
    RQ_TRY(RQ_NEW_ZERO(sum, n_chunk));
    for (int64_t j = 0; j < m; ++j) index[j] = rq_kmeans_sample_index(o->seed, j, m, p->n);
    spread s = {.p = p, .index = index, .m = m, .least = least, .sum = sum, .first = true};
    for (int64_t c = 0; c < o->k; ++c) {
        double unit = rq_random_unit(o->seed + 1, (uint64_t)c);
        int64_t j = c == 0 ? (int64_t)(unit * (double)m) : draw(&s, n_chunk, unit);
        memcpy(centroid + c * p->d, p->x + index[j] * p->d, bytes);
        s.newest = centroid + c * p->d;
        rq_parallel_for(n_chunk, spread_chunk, &s);
        s.first = false;
    }
done:
    free(index);
    free(least);
    free(sum);
    return status;
}

rq_status rq_kmeans_seed(float *centroid, const rq_kmeans_data *p, const rq_kmeans_opt *o) {
    if (o->seeding == RQ_KMEANS_PLUSPLUS) return seed_plusplus(centroid, p, o);
    for (int64_t c = 0; c < o->k; ++c) {
        int64_t i = p->n < o->k ? c % p->n : rq_kmeans_sample_index(o->seed, c, o->k, p->n);
        memcpy(centroid + c * p->d, p->x + i * p->d, (size_t)p->d * sizeof *centroid);
    }
    return RQ_OK;
}
