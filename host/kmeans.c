/* SPDX-License-Identifier: Apache-2.0 */
/* k-means: checks, the passes over the points, Lloyd's iterations (Lloyd, "Least squares quantization in PCM", 1982) with
 * centroids c_r = sum w_r x_r / sum w_r. Distances are the business of the kernels (host/kmeans_impl.h), sums that of
 * kmeans_sums.c, empty cells that of kmeans_repair.c, first centroids that of kmeans_seed.c. */
#include <float.h>
#include <math.h>

#include "kmeans_impl.h"
#include "kmeans_passes.h"

rq_kmeans_opt rq_kmeans_default(int64_t k, int d) {
    return (rq_kmeans_opt){.struct_size = sizeof(rq_kmeans_opt), .k = k, .d = d, .n_iter = 20};
}

/* ---- checks ---- */

static rq_status check_sizes(const rq_kmeans_opt *o, int64_t n, bool weight_given) {
    if (o->struct_size != sizeof *o) {
        return rq_fail(RQ_ERR_ARG, "k-means: struct_size is %zu, %zu is wanted", o->struct_size, sizeof *o);
    }
    if (o->d < 1 || o->d > RQ_KMEANS_MAX_D) {
        return rq_fail(RQ_ERR_ARG, "k-means: vectors of %d: 1 to %d are possible", o->d, RQ_KMEANS_MAX_D);
    }
    if (o->k < 1 || o->k > RQ_KMEANS_MAX_K) {
        return rq_fail(RQ_ERR_ARG, "k-means: %lld centroids: 1 to %d are possible", (long long)o->k, RQ_KMEANS_MAX_K);
    }
    if (n < 1 || n > INT64_MAX / 8 / (2 * RQ_KMEANS_MAX_D + 1)) {
        return rq_fail(RQ_ERR_ARG, "k-means: %lld points: at least one is needed", (long long)n);
    }
    if (o->n_iter < 0 || !(o->tol >= 0) || o->max_points < 0) {
        return rq_fail(RQ_ERR_ARG, "k-means: n_iter %d, tol %g and max_points %lld must not be negative", o->n_iter,
                       o->tol, (long long)o->max_points);
    }
    if (o->weights != RQ_KMEANS_PLAIN && o->weights != RQ_KMEANS_PER_POINT && o->weights != RQ_KMEANS_PER_COMPONENT) {
        return rq_fail(RQ_ERR_ARG, "k-means: there is no kind of weights %d", (int)o->weights);
    }
    if (o->seeding != RQ_KMEANS_SAMPLE && o->seeding != RQ_KMEANS_PLUSPLUS) {
        return rq_fail(RQ_ERR_ARG, "k-means: there is no seeding %d", (int)o->seeding);
    }
    if (weight_given != (o->weights != RQ_KMEANS_PLAIN)) {
        return rq_fail(RQ_ERR_ARG, weight_given ? "k-means: weights are given but not asked for"
                                                : "k-means: weights are asked for but not given");
    }
    return RQ_OK;
}

enum { CHECK_CHUNK = 65536, STRIDE = 64 };

typedef struct finite_job {
    const float *v;
    int64_t n;
    float least;    /* smaller values are refused too */
    int64_t *first; /* [chunks] index of the first bad value, or n */
} finite_job;

static void check_chunk(void *arg, int64_t chunk) {
    const finite_job *j = arg;
    int64_t last = rq_min_i64((chunk + 1) * CHECK_CHUNK, j->n), i = chunk * CHECK_CHUNK;
    while (i + STRIDE <= last) { /* a whole stride at once while all is well */
        int bad = 0;
        for (int e = 0; e < STRIDE; ++e) bad |= !(j->v[i + e] >= j->least && j->v[i + e] <= FLT_MAX);
        if (bad) break;
        i += STRIDE;
    }
    while (i < last && j->v[i] >= j->least && j->v[i] <= FLT_MAX) ++i;
    j->first[chunk] = i < last ? i : j->n;
}

/* v[n] is rows of `row` values called `name`; values below `least` are refused as well as NaN and infinity. */
static rq_status check_values(const char *name, const float *v, int64_t n, int row, float least) {
    int64_t n_chunk = rq_ceil_div(n, CHECK_CHUNK), *first = NULL, i = n;
    rq_status status = RQ_OK;
    RQ_TRY(RQ_NEW(first, n_chunk));
    finite_job job = {.v = v, .n = n, .least = least, .first = first};
    rq_parallel_for(n_chunk, check_chunk, &job);
    for (int64_t c = 0; c < n_chunk && i == n; ++c) i = first[c];
    if (i < n) {
        RQ_FAIL(isfinite(v[i]) ? RQ_ERR_ARG : RQ_ERR_NUMERIC, "k-means: component %d of %s %lld is %g", (int)(i % row),
                name, (long long)(i / row), (double)v[i]);
    }
done:
    free(first);
    return status;
}

static rq_status check_input(const rq_kmeans_opt *o, const float *x, const float *weight, int64_t n,
                             const float *centroid) {
    rq_status status = check_sizes(o, n, weight != NULL);
    int row = o->weights == RQ_KMEANS_PER_COMPONENT ? o->d : 1;
    if (status == RQ_OK) status = check_values("point", x, n * o->d, o->d, -FLT_MAX);
    if (status == RQ_OK && weight) status = check_values("weight", weight, n * row, row, 0.0f);
    if (status == RQ_OK && centroid) status = check_values("centroid", centroid, o->k * o->d, o->d, -FLT_MAX);
    return status;
}

/* ---- iterations ---- */

/* The new centroid of every cell; returns how many cells are empty, and those as a list. */
static int64_t update(float *centroid, int64_t *empty, const rq_kmeans_passes *t, bool *changed) {
    const rq_kmeans_data *p = t->p;
    int64_t n_empty = 0;
    *changed = false;
    for (int64_t j = 0; j < t->k; ++j) {
        const double *s = t->sum + j * t->n_col;
        bool any = false;
        for (int r = 0; r < p->d; ++r) {
            double w = s[p->weights == RQ_KMEANS_PER_COMPONENT ? p->d + r : p->d];
            if (!(w > 0)) continue; /* a component without weight stays where it is */
            any = true;
            float c = (float)(s[r] / w);
            *changed |= c != centroid[j * p->d + r];
            centroid[j * p->d + r] = c;
        }
        if (!any) empty[n_empty++] = j;
    }
    return n_empty;
}

/* *fresh: best and *loss belong to the centroids that are returned. */
static rq_status iterate(float *centroid, double *loss, bool *fresh, rq_kmeans_passes *t, const rq_kmeans_opt *o) {
    rq_status status = RQ_OK;
    bool want_loss = o->tol > 0 || o->progress;
    int64_t *empty = NULL;
    double before = 0;
    char text[96];
    *fresh = false;
    RQ_TRY(RQ_NEW(empty, o->k));
    for (int it = 0; it < o->n_iter; ++it) {
        bool changed;
        RQ_TRY(rq_kmeans_pass(t, centroid, true, want_loss));
        *loss = t->loss;
        *fresh = want_loss;
        if (it > 0 && o->tol > 0 && before - t->loss <= o->tol * before) break;
        before = t->loss;
        if (o->progress) {
            snprintf(text, sizeof text, "k-means: iteration %d of %d, loss %.6g", it + 1, o->n_iter, t->loss);
            if (o->progress(o->user, (double)(it + 1) / (double)o->n_iter, text)) {
                RQ_FAIL(RQ_ERR_CANCELLED, "k-means: stopped after %d of %d iterations", it, o->n_iter);
            }
        }
        int64_t n_empty = update(centroid, empty, t, &changed);
        if (n_empty) RQ_TRY(rq_kmeans_repair(centroid, t, empty, n_empty, &changed));
        if (!changed) break;
        *fresh = false;
    }
done:
    free(empty);
    return status;
}

/* A sample of m points in memory of its own. */
static rq_status take_sample(float **x, float **weight, const float *from, const float *weight_from, int64_t n,
                             int64_t m, const rq_kmeans_opt *o) {
    rq_status status = RQ_OK;
    int64_t d = o->d, row = o->weights == RQ_KMEANS_PER_COMPONENT ? d : 1;
    RQ_TRY(RQ_NEW(*x, m * d));
    if (weight_from) RQ_TRY(RQ_NEW(*weight, m * row));
    for (int64_t j = 0; j < m; ++j) {
        int64_t i = rq_kmeans_sample_index(o->seed + 2, j, m, n);
        memcpy(*x + j * d, from + i * d, (size_t)d * sizeof **x);
        if (weight_from) memcpy(*weight + j * row, weight_from + i * row, (size_t)row * sizeof **weight);
    }
done:
    return status;
}

static rq_status assign_all(uint16_t *assign, double *loss, const float *x, const float *weight, int64_t n,
                            const float *centroid, const rq_kmeans_opt *o) {
    rq_status status = RQ_OK;
    rq_kmeans_data p = {0};
    rq_kmeans_passes t = {0};
    RQ_TRY(rq_kmeans_data_new(&p, x, weight, n, centroid, o));
    RQ_TRY(rq_kmeans_passes_new(&t, &p, o, false));
    RQ_TRY(rq_kmeans_pass(&t, centroid, false, loss != NULL));
    if (assign) memcpy(assign, t.best, (size_t)n * sizeof *assign);
    if (loss) *loss = t.loss;
done:
    rq_kmeans_passes_free(&t);
    rq_kmeans_data_free(&p);
    return status;
}

rq_status rq_kmeans(float *centroid, uint16_t *assign, double *loss, const float *x, const float *weight, int64_t n,
                    const rq_kmeans_opt *o, bool start_given) {
    rq_status status = RQ_OK;
    rq_kmeans_data p = {0};
    rq_kmeans_passes t = {0};
    float *some_x = NULL, *some_weight = NULL;
    bool fresh = false;
    double last_loss = 0;
    RQ_TRY(check_input(o, x, weight, n, start_given ? centroid : NULL));
    bool sampled = o->max_points > 0 && o->max_points < n;
    if (sampled) {
        RQ_TRY(take_sample(&some_x, &some_weight, x, weight, n, o->max_points, o));
        RQ_TRY(rq_kmeans_data_new(&p, some_x, some_weight, o->max_points, start_given ? centroid : NULL, o));
    } else {
        RQ_TRY(rq_kmeans_data_new(&p, x, weight, n, start_given ? centroid : NULL, o));
    }
    RQ_TRY(rq_kmeans_passes_new(&t, &p, o, true));
    if (!start_given) RQ_TRY(rq_kmeans_seed(centroid, &p, o));
    RQ_TRY(iterate(centroid, &last_loss, &fresh, &t, o));
    if (!assign && !loss) goto done;
    if (sampled) {
        rq_kmeans_passes_free(&t);
        rq_kmeans_data_free(&p);
        RQ_TRY(assign_all(assign, loss, x, weight, n, centroid, o));
    } else {
        if (!fresh) {
            RQ_TRY(rq_kmeans_pass(&t, centroid, false, loss != NULL));
            last_loss = t.loss;
        }
        if (assign) memcpy(assign, t.best, (size_t)n * sizeof *assign);
        if (loss) *loss = last_loss;
    }
done:
    rq_kmeans_passes_free(&t);
    rq_kmeans_data_free(&p);
    free(some_x);
    free(some_weight);
    return status;
}

rq_status rq_kmeans_assign(uint16_t *assign, double *loss, const float *x, const float *weight, int64_t n,
                           const float *centroid, const rq_kmeans_opt *o) {
    rq_status status = check_input(o, x, weight, n, centroid);
    return status == RQ_OK ? assign_all(assign, loss, x, weight, n, centroid, o) : status;
}
