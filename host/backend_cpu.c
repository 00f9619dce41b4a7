/* SPDX-License-Identifier: Apache-2.0 */
/* Dense algebra on the CPU, by OpenBLAS (backend_openblas.c) with one thread. Every operation is cut into tiles of the result
 * whose borders depend on the sizes alone; a tile is one single-threaded call, and rq_parallel_for shares the tiles out. So a
 * sum is formed in the same order whatever the number of threads, and calls from inside a parallel body work (they run the same
 * tiles in sequence). */
#include <math.h>
#include <stdatomic.h>

#include "backend_openblas.h"

/* ---- tiles ------------------------------------------------------------------------------------------------------------ */

/* Sides of C tiles: large enough that the packing each call repeats costs little, small enough to share a 512 x 1536 layer
 * evenly (512 leaves three tiles for it). bench_dense measures it. */
enum { TILE = 384, TILE_ALIGN = 16 };

/* An axis cut into equal parts of at most TILE, each a multiple of TILE_ALIGN but the last. */
typedef struct axis {
    int64_t n, step, n_parts;
} axis;

static axis axis_cut(int64_t n, int64_t max_step) {
    axis x = {n, 0, 0};
    if (n <= 0) return x;
    int64_t parts = rq_ceil_div(n, max_step);
    x.step = rq_ceil_div(rq_ceil_div(n, parts), TILE_ALIGN) * TILE_ALIGN;
    x.n_parts = rq_ceil_div(n, x.step);
    return x;
}

static int64_t axis_begin(const axis *x, int64_t part) { return part * x->step; }
static int64_t axis_end(const axis *x, int64_t part) { return rq_min_i64(x->n, (part + 1) * x->step); }

typedef struct gemm_job {
    rq_trans ta, tb;
    axis rows, cols;
    int64_t k, lda, ldb, ldc;
    double alpha, beta;
    const void *a, *b;
    void *c;
} gemm_job;

static void sgemm_call(rq_trans ta, rq_trans tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                       int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    rq_blas.sgemm(ROW_MAJOR, ta == RQ_T ? TRANS : NO_TRANS, tb == RQ_T ? TRANS : NO_TRANS, (blas_int)m, (blas_int)n,
                  (blas_int)k, alpha, a, (blas_int)lda, b, (blas_int)ldb, beta, c, (blas_int)ldc);
}

static void dgemm_call(rq_trans ta, rq_trans tb, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
                       int64_t lda, const double *b, int64_t ldb, double beta, double *c, int64_t ldc) {
    rq_blas.dgemm(ROW_MAJOR, ta == RQ_T ? TRANS : NO_TRANS, tb == RQ_T ? TRANS : NO_TRANS, (blas_int)m, (blas_int)n,
                  (blas_int)k, alpha, a, (blas_int)lda, b, (blas_int)ldb, beta, c, (blas_int)ldc);
}

static void sgemm_body(void *arg, int64_t i) {
    const gemm_job *j = arg;
    int64_t r = i / j->cols.n_parts, c = i % j->cols.n_parts;
    int64_t r0 = axis_begin(&j->rows, r), r1 = axis_end(&j->rows, r);
    int64_t c0 = axis_begin(&j->cols, c), c1 = axis_end(&j->cols, c);
    sgemm_call(j->ta, j->tb, r1 - r0, c1 - c0, j->k, (float)j->alpha,
               (const float *)j->a + (j->ta == RQ_T ? r0 : r0 * j->lda), j->lda,
               (const float *)j->b + (j->tb == RQ_T ? c0 * j->ldb : c0), j->ldb, (float)j->beta,
               (float *)j->c + r0 * j->ldc + c0, j->ldc);
}

static void dgemm_body(void *arg, int64_t i) {
    const gemm_job *j = arg;
    int64_t r = i / j->cols.n_parts, c = i % j->cols.n_parts;
    int64_t r0 = axis_begin(&j->rows, r), r1 = axis_end(&j->rows, r);
    int64_t c0 = axis_begin(&j->cols, c), c1 = axis_end(&j->cols, c);
    dgemm_call(j->ta, j->tb, r1 - r0, c1 - c0, j->k, j->alpha,
               (const double *)j->a + (j->ta == RQ_T ? r0 : r0 * j->lda), j->lda,
               (const double *)j->b + (j->tb == RQ_T ? c0 * j->ldb : c0), j->ldb, j->beta,
               (double *)j->c + r0 * j->ldc + c0, j->ldc);
}

void rq_sgemm(rq_trans ta, rq_trans tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
              const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    gemm_job j = {ta, tb, axis_cut(m, TILE), axis_cut(n, TILE), k, lda, ldb, ldc, alpha, beta, a, b, c};
    rq_parallel_for(j.rows.n_parts * j.cols.n_parts, sgemm_body, &j);
}

void rq_dgemm(rq_trans ta, rq_trans tb, int64_t m, int64_t n, int64_t k, double alpha, const double *a, int64_t lda,
              const double *b, int64_t ldb, double beta, double *c, int64_t ldc) {
    gemm_job j = {ta, tb, axis_cut(m, TILE), axis_cut(n, TILE), k, lda, ldb, ldc, alpha, beta, a, b, c};
    rq_parallel_for(j.rows.n_parts * j.cols.n_parts, dgemm_body, &j);
}

void rq_sgemm_tile(rq_trans ta, rq_trans tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                   const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    sgemm_call(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

/* ---- products with a triangular factor -------------------------------------------------------------------------------- */

typedef struct tri_job {
    axis rows, cols;
    int64_t n;
    float beta;
    const float *a, *b;
    float *c;
} tri_job;

/* Zero row-major c[0..r)[0..n) where the global column is <= the global row. */
static void zero_lower(float *c, int64_t ldc, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
    for (int64_t i = r0; i < r1; ++i) {
        int64_t end = rq_min_i64(c1, i + 1);
        if (end > c0) memset(c + (i - r0) * ldc, 0, (size_t)(end - c0) * sizeof *c);
    }
}

/* Item i is a tile of the result; columns outermost, so that the tiles with the longest sums start first. */
static void du_body(void *arg, int64_t i) {
    const tri_job *j = arg;
    int64_t n = j->n, col = i / j->rows.n_parts, row = i % j->rows.n_parts;
    int64_t r0 = axis_begin(&j->rows, row), r1 = axis_end(&j->rows, row);
    int64_t c0 = axis_begin(&j->cols, col), c1 = axis_end(&j->cols, col);
    if (c1 > r0 + 1) { /* row c of U starts at column c, so the sums start at c0 */
        sgemm_call(RQ_N, RQ_T, r1 - r0, c1 - c0, n - c0, 1.0f, j->a + r0 * n + c0, n, j->b + c0 * n + c0, n, 0.0f,
                   j->c + r0 * n + c0, n);
    }
    zero_lower(j->c + r0 * n + c0, n, r0, r1, c0, c1);
}

static void tu_body(void *arg, int64_t i) {
    const tri_job *j = arg;
    int64_t n = j->n, col = j->cols.n_parts - 1 - i / j->rows.n_parts, row = i % j->rows.n_parts;
    int64_t r0 = axis_begin(&j->rows, row), r1 = axis_end(&j->rows, row);
    int64_t c0 = axis_begin(&j->cols, col), c1 = axis_end(&j->cols, col);
    if (c1 > r0 + 1) { /* row r of T starts at column r, column c of U ends at row c */
        sgemm_call(RQ_N, RQ_N, r1 - r0, c1 - c0, c1 - r0, 1.0f, j->a + r0 * n + r0, n, j->b + r0 * n + c0, n, 0.0f,
                   j->c + r0 * n + c0, n);
    }
    zero_lower(j->c + r0 * n + c0, n, r0, r1, c0, c1);
}

static void wu_body(void *arg, int64_t i) {
    const tri_job *j = arg;
    int64_t n = j->n, col = j->cols.n_parts - 1 - i / j->rows.n_parts, row = i % j->rows.n_parts;
    int64_t r0 = axis_begin(&j->rows, row), r1 = axis_end(&j->rows, row);
    int64_t c0 = axis_begin(&j->cols, col), c1 = axis_end(&j->cols, col);
    sgemm_call(RQ_N, RQ_N, r1 - r0, c1 - c0, c1, 1.0f, j->a + r0 * n, n, j->b + c0, n, j->beta, j->c + r0 * n + c0, n);
}

static void run_tri(float *c, const float *a, const float *b, int64_t m, int64_t n, float beta, rq_body_fn body) {
    tri_job j = {axis_cut(m, TILE), axis_cut(n, TILE), n, beta, a, b, c};
    rq_parallel_for(j.rows.n_parts * j.cols.n_parts, body, &j);
}

void rq_sgemm_du(float *t, const float *d, const float *u, int64_t n) { run_tri(t, d, u, n, n, 0.0f, du_body); }
void rq_sgemm_tu(float *p, const float *t, const float *u, int64_t n) { run_tri(p, t, u, n, n, 0.0f, tu_body); }
void rq_sgemm_wu(float *y, const float *w, const float *t, int64_t m, int64_t n, float beta) {
    run_tri(y, w, t, m, n, beta, wu_body);
}

/* ---- Gram matrices ---------------------------------------------------------------------------------------------------- */

/* Tokens whose products are summed in fp32 before they are added to the fp64 matrix: bounds the rounding error of the sum
 * whatever the caller's chunk is. */
enum { GRAM_CHUNK = 2048 };

typedef struct gram_job {
    axis cut;
    int64_t n, n_tok;
    const float *a, *b; /* b is NULL for A^T A */
    double *h;
    int part, n_parts; /* tiles of this call */
    _Atomic int failed;
} gram_job;

/* H tile (rows of feature block row, columns of block col) += fp32 product; the transposed tile gets the same numbers. */
static void add_mirrored(const gram_job *j, const float *t, int64_t r0, int64_t r1, int64_t c0, int64_t c1,
                         int64_t ldt) {
    enum { B = 16 }; /* both sides of the transpose touch whole cache lines */
    int64_t n = j->n;
    for (int64_t i0 = r0; i0 < r1; i0 += B) {
        int64_t i1 = rq_min_i64(r1, i0 + B);
        for (int64_t k0 = c0; k0 < c1 && k0 < i1; k0 += B) {
            int64_t k1 = rq_min_i64(c1, k0 + B);
            for (int64_t i = i0; i < i1; ++i) {
                for (int64_t k = k0; k < k1 && k <= i; ++k) {
                    double v = j->h[i * n + k] + (double)t[(i - r0) * ldt + (k - c0)];
                    j->h[i * n + k] = v;
                    j->h[k * n + i] = v;
                }
            }
        }
    }
}

static void gram_body(void *arg, int64_t item) {
    gram_job *j = arg;
    int64_t row = 0, left = item; /* item counts through the lower triangle of tiles, row by row */
    while (left > row) left -= ++row;
    int64_t col = left, n = j->n;
    int64_t r0 = axis_begin(&j->cut, row), r1 = axis_end(&j->cut, row);
    int64_t c0 = axis_begin(&j->cut, col), c1 = axis_end(&j->cut, col), ldt = c1 - c0;
    float *t = NULL;
    if (RQ_NEW(t, (r1 - r0) * ldt) != RQ_OK) {
        atomic_store(&j->failed, 1);
        return;
    }
    for (int64_t k0 = 0; k0 < j->n_tok; k0 += GRAM_CHUNK) {
        int64_t k = rq_min_i64(GRAM_CHUNK, j->n_tok - k0);
        const float *a = j->a + k0 * n;
        if (row == col) {
            rq_blas.ssyrk(ROW_MAJOR, LOWER, TRANS, (blas_int)ldt, (blas_int)k, 1.0f, a + c0, (blas_int)n, 0.0f, t,
                          (blas_int)ldt);
        } else {
            sgemm_call(RQ_T, RQ_N, r1 - r0, ldt, k, 1.0f, a + r0, n, a + c0, n, 0.0f, t, ldt);
        }
        add_mirrored(j, t, r0, r1, c0, c1, ldt);
    }
    free(t);
}

static void cross_body(void *arg, int64_t item) {
    gram_job *j = arg;
    int64_t row = item / j->cut.n_parts, col = item % j->cut.n_parts, n = j->n;
    int64_t r0 = axis_begin(&j->cut, row), r1 = axis_end(&j->cut, row);
    int64_t c0 = axis_begin(&j->cut, col), c1 = axis_end(&j->cut, col), ldt = c1 - c0;
    float *t = NULL;
    if (RQ_NEW(t, (r1 - r0) * ldt) != RQ_OK) {
        atomic_store(&j->failed, 1);
        return;
    }
    for (int64_t k0 = 0; k0 < j->n_tok; k0 += GRAM_CHUNK) {
        int64_t k = rq_min_i64(GRAM_CHUNK, j->n_tok - k0);
        sgemm_call(RQ_T, RQ_N, r1 - r0, ldt, k, 1.0f, j->b + k0 * n + r0, n, j->a + k0 * n + c0, n, 0.0f, t, ldt);
        for (int64_t i = r0; i < r1; ++i) {
            double *h = j->h + i * n + c0;
            const float *ti = t + (i - r0) * ldt;
            for (int64_t c = 0; c < ldt; ++c) h[c] += (double)ti[c];
        }
    }
    free(t);
}

static void gram_part_body(void *arg, int64_t item) {
    gram_job *j = arg;
    item = item * j->n_parts + j->part;
    if (j->b)
        cross_body(arg, item);
    else
        gram_body(arg, item);
}

static rq_status run_gram(double *h, const float *a, const float *b, int64_t n_tok, int64_t n, int part, int n_parts) {
    gram_job j = {axis_cut(n, TILE), n, n_tok, a, b, h, part, n_parts, 0};
    int64_t tiles = b ? j.cut.n_parts * j.cut.n_parts : j.cut.n_parts * (j.cut.n_parts + 1) / 2;
    rq_parallel_for(rq_ceil_div(rq_max_i64(0, tiles - part), n_parts), gram_part_body, &j);
    /* The sentence stayed with the worker's thread. */
    if (atomic_load(&j.failed))
        return rq_fail(RQ_ERR_NOMEM, "out of memory for a tile of a Gram matrix (n = %lld)", (long long)n);
    return RQ_OK;
}

rq_status rq_gram_add_part(double *h, const float *a, int64_t n_tok, int64_t n, int part, int n_parts) {
    return run_gram(h, a, NULL, n_tok, n, part, n_parts);
}

rq_status rq_cross_add_part(double *d, const float *b, const float *a, int64_t n_tok, int64_t n, int part,
                            int n_parts) {
    return run_gram(d, a, b, n_tok, n, part, n_parts);
}

rq_status rq_gram_add(double *h, const float *a, int64_t n_tok, int64_t n) {
    return run_gram(h, a, NULL, n_tok, n, 0, 1);
}

rq_status rq_cross_add(double *d, const float *b, const float *a, int64_t n_tok, int64_t n) {
    return run_gram(d, a, b, n_tok, n, 0, 1);
}

/* ---- the factor ------------------------------------------------------------------------------------------------------- */

/* With J the reversal of the indices, G = J H J = C C^T (C lower). Then A = J C J is upper with H = A A^T, and U = A^-1 =
 * J C^-1 J has H^-1 = U^T U: one Cholesky and one triangular inverse, 2/3 n^3 operations. For a row-major array without
 * padding, J X J is the array read backwards. */
enum { FACTOR_BLOCK = 192, INVERSE_COLS = 192, REVERSE_CHUNK = 1 << 16 };

typedef struct factor_job {
    int64_t n, k0, k1; /* columns of the block being eliminated */
    double *c, *x;
    const double *h;
} factor_job;

static void reverse_in_body(void *arg, int64_t item) { /* lower triangle of G, zeros above it */
    const factor_job *j = arg;
    int64_t n = j->n, i = item;
    const double *from = j->h + n * n - 1 - i * n;
    double *to = j->c + i * n;
    for (int64_t k = 0; k <= i; ++k) to[k] = *(from - k);
    if (i + 1 < n) memset(to + i + 1, 0, (size_t)(n - i - 1) * sizeof *to);
}

static void reverse_body(void *arg, int64_t item) { /* swaps x[e] and x[n*n-1-e] for a run of the first half */
    const factor_job *j = arg;
    int64_t total = j->n * j->n, end = rq_min_i64(total / 2, (item + 1) * REVERSE_CHUNK);
    for (int64_t e = item * REVERSE_CHUNK; e < end; ++e) {
        double t = j->x[e];
        j->x[e] = j->x[total - 1 - e];
        j->x[total - 1 - e] = t;
    }
}

static void panel_body(void *arg, int64_t item) { /* C[i][k] = G[i][k] C[k][k]^-T for a block of rows below */
    const factor_job *j = arg;
    int64_t n = j->n, i0 = j->k1 + item * FACTOR_BLOCK, i1 = rq_min_i64(n, i0 + FACTOR_BLOCK);
    rq_blas.dtrsm(ROW_MAJOR, RIGHT, LOWER, TRANS, NON_UNIT, (blas_int)(i1 - i0), (blas_int)(j->k1 - j->k0), 1.0,
                  j->c + j->k0 * n + j->k0, (blas_int)n, j->c + i0 * n + j->k0, (blas_int)n);
}

static void trailing_body(void *arg, int64_t item) { /* G[i][l] -= C[i][k] C[l][k]^T for a tile of the lower triangle */
    const factor_job *j = arg;
    int64_t row = 0, left = item, n = j->n;
    while (left > row) left -= ++row;
    int64_t i0 = j->k1 + row * FACTOR_BLOCK, i1 = rq_min_i64(n, i0 + FACTOR_BLOCK);
    int64_t l0 = j->k1 + left * FACTOR_BLOCK, l1 = rq_min_i64(n, l0 + FACTOR_BLOCK);
    /* A diagonal tile's upper half is written too; nothing reads it, and it is cleared at the end. */
    dgemm_call(RQ_N, RQ_T, i1 - i0, l1 - l0, j->k1 - j->k0, -1.0, j->c + i0 * n + j->k0, n, j->c + l0 * n + j->k0, n,
               1.0, j->c + i0 * n + l0, n);
}

/* A run of columns of X = C^-1, block row by block row: X[i] = C[i][i]^-1 (I[i] - sum_k C[i][k] X[k]). */
static void inverse_body(void *arg, int64_t item) {
    const factor_job *j = arg;
    int64_t n = j->n, c0 = item * INVERSE_COLS, c1 = rq_min_i64(n, c0 + INVERSE_COLS);
    int64_t first = c0 / FACTOR_BLOCK * FACTOR_BLOCK;
    for (int64_t i = 0; i < n; ++i) memset(j->x + i * n + c0, 0, (size_t)(c1 - c0) * sizeof *j->x);
    for (int64_t k = c0; k < c1; ++k) j->x[k * n + k] = 1.0;
    for (int64_t i0 = first; i0 < n; i0 += FACTOR_BLOCK) {
        int64_t i1 = rq_min_i64(n, i0 + FACTOR_BLOCK);
        if (i0 > first) {
            dgemm_call(RQ_N, RQ_N, i1 - i0, c1 - c0, i0 - first, -1.0, j->c + i0 * n + first, n, j->x + first * n + c0,
                       n, 0.0, j->x + i0 * n + c0, n);
        }
        rq_blas.dtrsm(ROW_MAJOR, LEFT, LOWER, NO_TRANS, NON_UNIT, (blas_int)(i1 - i0), (blas_int)(c1 - c0), 1.0,
                      j->c + i0 * n + i0, (blas_int)n, j->x + i0 * n + c0, (blas_int)n);
    }
}

/* Cholesky of the block [k0, k1) on the diagonal. Returns 0, or the 1-based index (within C) where it broke down. */
static int64_t diagonal_block(double *c, int64_t n, int64_t k0, int64_t k1) {
    blas_int m = (blas_int)(k1 - k0), ld = (blas_int)n, info = 0;
    rq_blas.dpotrf("U", &m, c + k0 * n + k0, &ld, &info, 1); /* row-major lower is column-major upper */
    if (info != 0) return info > 0 ? k0 + info : k0 + 1;
    for (int64_t k = k0; k < k1; ++k) { /* OpenBLAS lets NaN through */
        if (!(c[k * n + k] > 0.0) || !isfinite(c[k * n + k])) return k + 1;
    }
    return 0;
}

rq_status rq_factor_upper(double *u, double *a, const double *h, int64_t n, int64_t *bad) {
    rq_status status = RQ_OK;
    double *scratch = NULL;
    int64_t unused;
    if (!bad) bad = &unused;
    *bad = 0;
    if (!u || !h || n < 1 || n > INT32_MAX / 2) {
        return rq_fail(RQ_ERR_ARG, "rq_factor_upper: n = %lld is out of range, or a matrix is NULL", (long long)n);
    }
    if (!a) RQ_TRY(RQ_NEW(scratch, n * n));
    factor_job j = {n, 0, 0, a ? a : scratch, u, h};
    rq_parallel_for(n, reverse_in_body, &j);
    for (j.k0 = 0; j.k0 < n; j.k0 = j.k1) {
        j.k1 = rq_min_i64(n, j.k0 + FACTOR_BLOCK);
        int64_t broke = diagonal_block(j.c, n, j.k0, j.k1);
        if (broke) {
            *bad = n - broke + 1;
            RQ_FAIL(RQ_ERR_NUMERIC, "the %lld x %lld matrix is not positive definite (found at index %lld)",
                    (long long)n, (long long)n, (long long)(*bad - 1));
        }
        int64_t below = rq_ceil_div(n - j.k1, FACTOR_BLOCK);
        rq_parallel_for(below, panel_body, &j);
        rq_parallel_for(below * (below + 1) / 2, trailing_body, &j);
    }
    rq_parallel_for(rq_ceil_div(n, INVERSE_COLS), inverse_body, &j);
    for (int64_t i = 0; i < n; ++i) { /* what the tiles left above the diagonals */
        size_t bytes = (size_t)(n - i - 1) * sizeof(double);
        if (a && bytes) memset(j.c + i * n + i + 1, 0, bytes);
        if (bytes) memset(j.x + i * n + i + 1, 0, bytes);
    }
    int64_t runs = rq_ceil_div(n * n / 2, REVERSE_CHUNK);
    rq_parallel_for(runs, reverse_body, &j);
    if (a) {
        j.x = a;
        rq_parallel_for(runs, reverse_body, &j);
    }
done:
    free(scratch);
    return status;
}
