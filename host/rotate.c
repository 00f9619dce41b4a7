/* SPDX-License-Identifier: Apache-2.0 */
/* The rotation R of the residual stream, R = diag(s) H / sqrt(n) with random signs s (the randomized Hadamard transform
 * of QuaRot, arXiv:2404.00456), or a Haar-random orthogonal matrix where no Hadamard matrix of the width is known.
 *
 * H = H_k (x) H_2^p: a row is a k x 2^p array; the power of two is a fast transform along its rows, H_k a dense product
 * along its columns: n (k + p) additions and no n x n matrix. All arithmetic is fp64, whatever the rows are stored as,
 * so that rotating weights and rotating back costs one rounding. */
#include <math.h>

#include "backend.h"
#include "random.h"
#include "rotate.h"
#include "rotate_hadamard.h"

struct rq_rotation {
    int64_t n, k, two_p; /* n = k * two_p; k = 0 for a dense matrix */
    uint64_t seed;
    bool plain;   /* all signs are plus */
    double *sign; /* [n]: +-1 / sqrt(n) */
    double *core; /* [k][k]: H_k, and core_t its transpose; NULL when k is 1 */
    double *core_t;
    double *dense; /* [n][n]: R, when k is 0 */
};

/* ---- building ------------------------------------------------------------------------------------------------------- */

/* Standard normal number i of the stream; Box and Muller's transform, one of the pair. */
static double random_normal(uint64_t seed, uint64_t i) {
    double u = 1.0 - rq_random_unit(seed, 2 * i), v = rq_random_unit(seed, 2 * i + 1);
    return sqrt(-2.0 * log(u)) * cos(2.0 * 3.14159265358979323846 * v);
}

static double dot_f64(const double *a, const double *b, int64_t n) {
    double lane[8] = {0}, s = 0;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (int l = 0; l < 8; ++l) lane[l] += a[i + l] * b[i + l];
    }
    for (; i < n; ++i) s += a[i] * b[i];
    for (int l = 0; l < 8; ++l) s += lane[l];
    return s;
}

typedef struct reflect_job {
    double *r;       /* [n][n] */
    const double *v; /* [n][n]: row j is the unit vector of a reflection of coordinates j .. n-1, zero before */
    int64_t n;
} reflect_job;

static void reflect_row(void *arg, int64_t i) {
    const reflect_job *job = arg;
    double *row = job->r + i * job->n;
    for (int64_t j = 0; j < job->n; ++j) {
        const double *v = job->v + j * job->n;
        double f = 2.0 * dot_f64(row + j, v + j, job->n - j);
        for (int64_t c = j; c < job->n; ++c) row[c] -= f * v[c];
    }
}

/* Haar measure as a product of reflections by Gaussian vectors of length n, n-1, ..., 1 and random signs
 * (G. W. Stewart, 1980): what Householder's QR of a Gaussian matrix would give, without the matrix. */
static rq_status build_dense(rq_rotation *r) {
    rq_status status = RQ_OK;
    int64_t n = r->n, nn;
    double *v = NULL;
    if (!rq_mul_size(n, n, &nn)) return rq_fail(RQ_ERR_ARG, "a rotation of size %lld is too large", (long long)n);
    RQ_TRY(rq_backend_init());
    RQ_TRY(RQ_NEW_ZERO(r->dense, nn));
    RQ_TRY(RQ_NEW_ZERO(v, nn));
    for (int64_t j = 0; j < n; ++j) {
        double *row = v + j * n;
        for (int64_t c = j; c < n; ++c) row[c] = random_normal(r->seed, (uint64_t)(j * n + c));
        row[j] += row[j] >= 0 ? sqrt(dot_f64(row + j, row + j, n - j)) : -sqrt(dot_f64(row + j, row + j, n - j));
        double inv = 1.0 / sqrt(dot_f64(row + j, row + j, n - j));
        for (int64_t c = j; c < n; ++c) row[c] *= inv;
        r->dense[j * n + j] = rq_random_u64(~r->seed, (uint64_t)j) >> 63 ? 1.0 : -1.0;
    }
    reflect_job job = {r->dense, v, n};
    rq_parallel_for(n, reflect_row, &job);
done:
    free(v);
    return status;
}

static rq_status build_hadamard(rq_rotation *r) {
    rq_status status = RQ_OK;
    int8_t *h = NULL;
    int64_t k = r->k;
    double scale = 1.0 / sqrt((double)r->n);
    RQ_TRY(RQ_NEW(r->sign, r->n));
    for (int64_t i = 0; i < r->n; ++i)
        r->sign[i] = r->plain || rq_random_u64(r->seed, (uint64_t)i) >> 63 ? scale : -scale;
    if (k == 1) goto done;
    RQ_TRY(RQ_NEW(h, k * k));
    RQ_TRY(RQ_NEW(r->core, k * k));
    RQ_TRY(RQ_NEW(r->core_t, k * k));
    RQ_TRY(rq_hadamard_fill(h, k));
    for (int64_t i = 0; i < k; ++i) {
        for (int64_t j = 0; j < k; ++j) r->core[i * k + j] = r->core_t[j * k + i] = h[i * k + j];
    }
done:
    free(h);
    return status;
}

rq_status rq_rotation_new(rq_rotation **out, int64_t n, uint64_t seed, const char *kind) {
    rq_status status = RQ_OK;
    rq_rotation *r = NULL;
    *out = NULL;
    if (n < 1 || n > INT32_MAX) return rq_fail(RQ_ERR_ARG, "a rotation cannot have size %lld", (long long)n);
    int64_t k = rq_hadamard_core(n);
    const bool plain = kind && strcmp(kind, "plain") == 0;
    if (kind && strcmp(kind, "orthogonal") == 0) {
        k = 0;
    } else if (kind && !plain && strcmp(kind, "hadamard") != 0) {
        return rq_fail(RQ_ERR_ARG, "unknown kind of rotation \"%s\"; there are hadamard, orthogonal and plain", kind);
    } else if (kind && k == 0) {
        return rq_fail(RQ_ERR_UNSUPPORTED, "no Hadamard matrix of order %lld is known here; use kind orthogonal",
                       (long long)n);
    }
    RQ_TRY(RQ_NEW_ZERO(r, 1));
    r->n = n;
    r->k = k;
    r->two_p = k ? n / k : 0;
    r->seed = seed;
    r->plain = plain;
    RQ_TRY(k ? build_hadamard(r) : build_dense(r));
    *out = r;
    r = NULL;
done:
    rq_rotation_free(r);
    return status;
}

void rq_rotation_free(rq_rotation *r) {
    if (!r) return;
    free(r->sign);
    free(r->core);
    free(r->core_t);
    free(r->dense);
    free(r);
}

const char *rq_rotation_kind(const rq_rotation *r) { return r->plain ? "plain" : r->k ? "hadamard" : "orthogonal"; }
uint64_t rq_rotation_seed(const rq_rotation *r) { return r->seed; }
int64_t rq_rotation_size(const rq_rotation *r) { return r->n; }

/* ---- applying ------------------------------------------------------------------------------------------------------- */

/* z H_2^p for each of the k rows. The last axis is contiguous, so every butterfly but the shortest runs along it. */
static void fast_transform(double *z, int64_t n, int64_t two_p) {
    for (int64_t h = 1; h < two_p; h *= 2) {
        for (int64_t i = 0; i < n; i += 2 * h) {
            double *a = z + i, *b = z + i + h;
            for (int64_t j = 0; j < h; ++j) {
                double s = a[j] + b[j], d = a[j] - b[j];
                a[j] = s;
                b[j] = d;
            }
        }
    }
}

/* y[c][:] = sum over a of m[c][a] z[a][:], z and y being [k][two_p]. Eight columns at a time stay in registers. */
static void core_product(double *y, const double *z, const double *m, int64_t k, int64_t two_p) {
    for (int64_t c = 0; c < k; ++c) {
        const double *row = m + c * k;
        int64_t b = 0;
        for (; b + 8 <= two_p; b += 8) {
            double acc[8] = {0};
            for (int64_t a = 0; a < k; ++a) {
                const double *za = z + a * two_p + b;
                for (int l = 0; l < 8; ++l) acc[l] += row[a] * za[l];
            }
            memcpy(y + c * two_p + b, acc, sizeof acc);
        }
        for (; b < two_p; ++b) {
            double acc = 0;
            for (int64_t a = 0; a < k; ++a) acc += row[a] * z[a * two_p + b];
            y[c * two_p + b] = acc;
        }
    }
}

/* One row, in place in z; y is scratch of the same size, and the pointer that holds the result is returned. The core comes last both ways, as in
 * cuda/hadamard_rows.cu. */
static double *rotate_row(const rq_rotation *r, double *z, double *y, bool inverse) {
    for (int64_t i = 0; i < r->n && !inverse; ++i) z[i] *= r->sign[i];
    fast_transform(z, r->n, r->two_p);
    if (r->k > 1) {
        core_product(y, z, inverse ? r->core : r->core_t, r->k, r->two_p);
        z = y;
    }
    for (int64_t i = 0; i < r->n && inverse; ++i) z[i] *= r->sign[i];
    return z;
}

enum { DENSE_ROWS = 64 }; /* rows that share one pass over a dense R */

typedef struct rotate_job {
    const rq_rotation *r;
    float *x32;
    double *x64; /* one of the two */
    int64_t n_rows, ld, rows_per_item, scratch_rows;
    double *scratch; /* [items][2][scratch_rows][n] */
    bool inverse;
} rotate_job;

static void load_row(const rotate_job *job, double *dst, int64_t row) {
    if (job->x64) {
        memcpy(dst, job->x64 + row * job->ld, (size_t)job->r->n * sizeof *dst);
    } else {
        for (int64_t i = 0; i < job->r->n; ++i) dst[i] = (double)job->x32[row * job->ld + i];
    }
}

static void store_row(const rotate_job *job, const double *src, int64_t row) {
    if (job->x64) {
        memcpy(job->x64 + row * job->ld, src, (size_t)job->r->n * sizeof *src);
    } else {
        for (int64_t i = 0; i < job->r->n; ++i) job->x32[row * job->ld + i] = (float)src[i];
    }
}

static void rotate_item(void *arg, int64_t item) {
    const rotate_job *job = arg;
    const rq_rotation *r = job->r;
    int64_t n = r->n, row = item * job->rows_per_item, end = rq_min_i64(row + job->rows_per_item, job->n_rows);
    double *z = job->scratch + item * 2 * job->scratch_rows * n, *y = z + job->scratch_rows * n;
    while (row < end) {
        int64_t m = rq_min_i64(job->scratch_rows, end - row);
        for (int64_t i = 0; i < m; ++i) load_row(job, z + i * n, row + i);
        double *result = y;
        if (r->k) {
            result = rotate_row(r, z, y, job->inverse);
        } else {
            rq_dgemm(RQ_N, job->inverse ? RQ_T : RQ_N, m, n, n, 1.0, z, n, r->dense, n, 0.0, y, n);
        }
        for (int64_t i = 0; i < m; ++i) store_row(job, result + i * n, row + i);
        row += m;
    }
}

static rq_status rotate_rows(rotate_job *job) {
    rq_status status = RQ_OK;
    int64_t n_items, n_scratch;
    if (job->n_rows < 1) return RQ_OK;
    /* Rows do not touch each other, so how they are shared out cannot be seen in the result: few items, each with its
     * own scratch. A dense R is applied to whole blocks of rows, cut the same way for any number of threads. */
    job->scratch_rows = job->r->k ? 1 : DENSE_ROWS;
    n_items = rq_min_i64(rq_ceil_div(job->n_rows, job->scratch_rows), 4 * (int64_t)rq_get_threads());
    job->rows_per_item = rq_ceil_div(rq_ceil_div(job->n_rows, n_items), job->scratch_rows) * job->scratch_rows;
    n_items = rq_ceil_div(job->n_rows, job->rows_per_item);
    if (!rq_mul_size(2 * job->scratch_rows * n_items, job->r->n, &n_scratch)) {
        return rq_fail(RQ_ERR_ARG, "%lld rows are too many to rotate", (long long)job->n_rows);
    }
    RQ_TRY(RQ_NEW(job->scratch, n_scratch));
    rq_parallel_for(n_items, rotate_item, job);
done:
    free(job->scratch);
    return status;
}

rq_status rq_rotation_apply(const rq_rotation *r, float *x, int64_t n_rows, int64_t ld, bool inverse) {
    rotate_job job = {.r = r, .x32 = x, .n_rows = n_rows, .ld = ld, .inverse = inverse};
    return rotate_rows(&job);
}

rq_status rq_rotation_apply_f64(const rq_rotation *r, double *x, int64_t n_rows, int64_t ld, bool inverse) {
    rotate_job job = {.r = r, .x64 = x, .n_rows = n_rows, .ld = ld, .inverse = inverse};
    return rotate_rows(&job);
}
