/* SPDX-License-Identifier: Apache-2.0 */
/* cuBLAS stand-in: triangular and symmetric matrices, sums of matrices, matrix times vector, vectors. All but the products
 * themselves are plain loops. */
#include <stdlib.h>
#include <string.h>

#include "sim_blas.h"
#include "sim_cublas.h"

typedef struct dense_call {
    sim_scalar alpha, beta;
    sim_triangle t;
    bool ta, tb;
    int m, n, k, lda, ldb, ldc;
    const void *a, *b;
    void *c;
} dense_call;

static bool fill_mode(cublasFillMode_t uplo, bool *upper) {
    *upper = uplo == CUBLAS_FILL_MODE_UPPER;
    return uplo == CUBLAS_FILL_MODE_UPPER || uplo == CUBLAS_FILL_MODE_LOWER;
}

static bool triangle_of(cublasSideMode_t side, cublasFillMode_t uplo, cublasOperation_t op, cublasDiagType_t diag,
                        sim_triangle *t) {
    t->left = side == CUBLAS_SIDE_LEFT;
    t->unit = diag == CUBLAS_DIAG_UNIT;
    if (side != CUBLAS_SIDE_LEFT && side != CUBLAS_SIDE_RIGHT) return false;
    if (diag != CUBLAS_DIAG_UNIT && diag != CUBLAS_DIAG_NON_UNIT) return false;
    return fill_mode(uplo, &t->upper) && sim_cublas_op(op, &t->transposed);
}

/* Adds the spans of scalars on the device. */
static size_t scalar_spans(const dense_call *d, sim_span *span, size_t n) {
    if (d->alpha.device) span[n++] = (sim_span){"alpha", d->alpha.device, sim_type_bytes(d->alpha.type)};
    if (d->beta.device) span[n++] = (sim_span){"beta", d->beta.device, sim_type_bytes(d->beta.type)};
    return n;
}

#define NEED_HANDLE(h)                                                                                                 \
    if (!sim_cublas_ok(h)) return CUBLAS_STATUS_NOT_INITIALIZED
#define NEED(condition)                                                                                                \
    if (!(condition)) return CUBLAS_STATUS_INVALID_VALUE
#define SUBMIT(function, run)                                                                                          \
    sim_cublas_status(sim_submit(function, h->stream, span, scalar_spans(&d, span, n_span), run, &d, sizeof d))
#define VALUES(T)                                                                                                      \
    dense_call *d = arg;                                                                                               \
    T alpha = (T)sim_scalar_value(&d->alpha)

/* C = alpha op(A) op(A)^T + beta C, one triangle of it. */
#define SYRK(T, s, S, type)                                                                                            \
    static void run_##s##syrk(void *arg) {                                                                             \
        VALUES(T);                                                                                                     \
        T beta = (T)sim_scalar_value(&d->beta);                                                                        \
        int n = d->n;                                                                                                  \
        T *full = rt_calloc((size_t)n * (size_t)n, sizeof(T)), *c = d->c;                                              \
        sim_##s##gemm(d->ta, !d->ta, n, n, d->k, alpha, d->a, d->lda, d->a, d->lda, 0, full, n);                       \
        for (int j = 0; j < n; ++j) {                                                                                  \
            for (int i = d->t.upper ? 0 : j; i < (d->t.upper ? j + 1 : n); ++i) {                                      \
                T *at = &c[(size_t)j * (size_t)d->ldc + (size_t)i];                                                    \
                *at = full[(size_t)j * (size_t)n + (size_t)i] + (beta != 0 ? beta * *at : 0);                          \
            }                                                                                                          \
        }                                                                                                              \
        free(full);                                                                                                    \
    }                                                                                                                  \
    cublasStatus_t cublas##S##syrk_v2(cublasHandle_t h, cublasFillMode_t uplo, cublasOperation_t trans, int n, int k,  \
                                      const T *alpha, const T *a, int lda, const T *beta, T *c, int ldc) {             \
        NEED_HANDLE(h);                                                                                                \
        dense_call d = {.n = n, .k = k, .lda = lda, .ldc = ldc, .a = a, .c = c};                                       \
        NEED(fill_mode(uplo, &d.t.upper) && sim_cublas_op(trans, &d.ta) && n >= 0 && k >= 0);                          \
        int rows = d.ta ? k : n;                                                                                       \
        NEED(lda >= 1 && lda >= rows && ldc >= 1 && ldc >= n);                                                         \
        NEED(sim_cublas_scalar(h, alpha, type, &d.alpha) && sim_cublas_scalar(h, beta, type, &d.beta));                \
        if (!n) return CUBLAS_STATUS_SUCCESS;                                                                          \
        sim_span span[SIM_SPANS] = {{"A", a, sim_matrix_bytes(rows, d.ta ? n : k, lda, sizeof(T))},                    \
                                    {"C", c, sim_matrix_bytes(n, n, ldc, sizeof(T))}};                                 \
        size_t n_span = 2;                                                                                             \
        return SUBMIT("cublas" #S "syrk", run_##s##syrk);                                                              \
    }

/* B = alpha op(A)^-1 B, or alpha B op(A)^-1. */
#define TRSM(T, s, S, type)                                                                                            \
    static void run_##s##trsm(void *arg) {                                                                             \
        VALUES(T);                                                                                                     \
        sim_##s##trsm(d->t, d->m, d->n, alpha, d->a, d->lda, d->c, d->ldc);                                            \
    }                                                                                                                  \
    cublasStatus_t cublas##S##trsm_v2(cublasHandle_t h, cublasSideMode_t side, cublasFillMode_t uplo,                  \
                                      cublasOperation_t trans, cublasDiagType_t diag, int m, int n, const T *alpha,    \
                                      const T *a, int lda, T *b, int ldb) {                                            \
        NEED_HANDLE(h);                                                                                                \
        dense_call d = {.m = m, .n = n, .lda = lda, .ldc = ldb, .a = a, .c = b};                                       \
        NEED(triangle_of(side, uplo, trans, diag, &d.t) && m >= 0 && n >= 0);                                          \
        int order = d.t.left ? m : n;                                                                                  \
        NEED(lda >= 1 && lda >= order && ldb >= 1 && ldb >= m && sim_cublas_scalar(h, alpha, type, &d.alpha));         \
        if (!m || !n) return CUBLAS_STATUS_SUCCESS;                                                                    \
        sim_span span[SIM_SPANS] = {{"A", a, sim_matrix_bytes(order, order, lda, sizeof(T))},                          \
                                    {"B", b, sim_matrix_bytes(m, n, ldb, sizeof(T))}};                                 \
        size_t n_span = 2;                                                                                             \
        return SUBMIT("cublas" #S "trsm", run_##s##trsm);                                                              \
    }

/* C = alpha op(A) B, or alpha B op(A), A triangular; C may be B. */
#define TRMM(T, s, S, type)                                                                                            \
    static void run_##s##trmm(void *arg) {                                                                             \
        VALUES(T);                                                                                                     \
        int m = d->m, n = d->n, order = d->t.left ? m : n;                                                             \
        const T *a = d->a;                                                                                             \
        T *full = rt_calloc((size_t)order * (size_t)order, sizeof(T)), *c = d->c;                                      \
        T *product = rt_calloc((size_t)m * (size_t)n, sizeof(T));                                                      \
        for (int j = 0; j < order; ++j) {                                                                              \
            for (int i = 0; i < order; ++i) {                                                                          \
                bool used = d->t.upper ? i <= j : i >= j;                                                              \
                T v = used ? a[(size_t)j * (size_t)d->lda + (size_t)i] : 0;                                            \
                full[(size_t)j * (size_t)order + (size_t)i] = i == j && d->t.unit ? 1 : v;                             \
            }                                                                                                          \
        }                                                                                                              \
        if (d->t.left) {                                                                                               \
            sim_##s##gemm(d->t.transposed, false, m, n, m, alpha, full, m, d->b, d->ldb, 0, product, m);               \
        } else {                                                                                                       \
            sim_##s##gemm(false, d->t.transposed, m, n, n, alpha, d->b, d->ldb, full, n, 0, product, m);               \
        }                                                                                                              \
        for (int j = 0; j < n; ++j) {                                                                                  \
            memcpy(c + (size_t)j * (size_t)d->ldc, product + (size_t)j * (size_t)m, (size_t)m * sizeof(T));            \
        }                                                                                                              \
        free(full);                                                                                                    \
        free(product);                                                                                                 \
    }                                                                                                                  \
    cublasStatus_t cublas##S##trmm_v2(cublasHandle_t h, cublasSideMode_t side, cublasFillMode_t uplo,                  \
                                      cublasOperation_t trans, cublasDiagType_t diag, int m, int n, const T *alpha,    \
                                      const T *a, int lda, const T *b, int ldb, T *c, int ldc) {                       \
        NEED_HANDLE(h);                                                                                                \
        dense_call d = {.m = m, .n = n, .lda = lda, .ldb = ldb, .ldc = ldc, .a = a, .b = b, .c = c};                   \
        NEED(triangle_of(side, uplo, trans, diag, &d.t) && m >= 0 && n >= 0);                                          \
        int order = d.t.left ? m : n;                                                                                  \
        NEED(lda >= 1 && lda >= order && ldb >= 1 && ldb >= m && ldc >= 1 && ldc >= m);                                \
        NEED(sim_cublas_scalar(h, alpha, type, &d.alpha));                                                             \
        if (!m || !n) return CUBLAS_STATUS_SUCCESS;                                                                    \
        sim_span span[SIM_SPANS] = {{"A", a, sim_matrix_bytes(order, order, lda, sizeof(T))},                          \
                                    {"B", b, sim_matrix_bytes(m, n, ldb, sizeof(T))},                                  \
                                    {"C", c, sim_matrix_bytes(m, n, ldc, sizeof(T))}};                                 \
        size_t n_span = 3;                                                                                             \
        return SUBMIT("cublas" #S "trmm", run_##s##trmm);                                                              \
    }

/* C = alpha op(A) + beta op(B). */
#define GEAM(T, s, S, type)                                                                                            \
    static void run_##s##geam(void *arg) {                                                                             \
        VALUES(T);                                                                                                     \
        T beta = (T)sim_scalar_value(&d->beta);                                                                        \
        const T *a = d->a, *b = d->b;                                                                                  \
        T *c = d->c;                                                                                                   \
        for (size_t j = 0; j < (size_t)d->n; ++j) {                                                                    \
            for (size_t i = 0; i < (size_t)d->m; ++i) {                                                                \
                T x = alpha != 0 ? alpha * (d->ta ? a[i * (size_t)d->lda + j] : a[j * (size_t)d->lda + i]) : 0;        \
                T y = beta != 0 ? beta * (d->tb ? b[i * (size_t)d->ldb + j] : b[j * (size_t)d->ldb + i]) : 0;          \
                c[j * (size_t)d->ldc + i] = x + y;                                                                     \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    cublasStatus_t cublas##S##geam(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n,         \
                                   const T *alpha, const T *a, int lda, const T *beta, const T *b, int ldb, T *c,      \
                                   int ldc) {                                                                          \
        NEED_HANDLE(h);                                                                                                \
        dense_call d = {.m = m, .n = n, .lda = lda, .ldb = ldb, .ldc = ldc, .a = a, .b = b, .c = c};                   \
        NEED(sim_cublas_op(ta, &d.ta) && sim_cublas_op(tb, &d.tb) && m >= 0 && n >= 0);                                \
        NEED(lda >= 1 && lda >= (d.ta ? n : m) && ldb >= 1 && ldb >= (d.tb ? n : m) && ldc >= 1 && ldc >= m);          \
        NEED(sim_cublas_scalar(h, alpha, type, &d.alpha) && sim_cublas_scalar(h, beta, type, &d.beta));                \
        /* In place only where every element stays where it is. */                                                     \
        NEED((c != a || (!d.ta && lda == ldc)) && (c != b || (!d.tb && ldb == ldc)));                                  \
        if (!m || !n) return CUBLAS_STATUS_SUCCESS;                                                                    \
        sim_span span[SIM_SPANS] = {{"C", c, sim_matrix_bytes(m, n, ldc, sizeof(T))}};                                 \
        size_t n_span = 1;                                                                                             \
        bool use_a = d.alpha.device || d.alpha.value != 0, use_b = d.beta.device || d.beta.value != 0;                 \
        if (use_a) span[n_span++] = (sim_span){"A", a, sim_matrix_bytes(d.ta ? n : m, d.ta ? m : n, lda, sizeof(T))};  \
        if (use_b) span[n_span++] = (sim_span){"B", b, sim_matrix_bytes(d.tb ? n : m, d.tb ? m : n, ldb, sizeof(T))};  \
        return SUBMIT("cublas" #S "geam", run_##s##geam);                                                              \
    }

/* ---- vectors. n elements with a step; of a negative step the last one in memory comes first. */
static size_t vector_bytes(int n, int step, size_t element) {
    size_t wide = (size_t)(step < 0 ? -(int64_t)step : step);
    return n > 0 ? ((size_t)(n - 1) * wide + 1) * element : 0;
}

static size_t vector_at(int i, int n, int step) {
    return step >= 0 ? (size_t)i * (size_t)step : (size_t)(n - 1 - i) * (size_t)(-(int64_t)step);
}

/* y = alpha op(A) x + beta y */
#define GEMV(T, s, S, type)                                                                                            \
    static void run_##s##gemv(void *arg) {                                                                             \
        VALUES(T);                                                                                                     \
        T beta = (T)sim_scalar_value(&d->beta);                                                                        \
        int n_in = d->ta ? d->m : d->n, n_out = d->ta ? d->n : d->m;                                                   \
        const T *a = d->a, *x = d->b;                                                                                  \
        T *y = d->c;                                                                                                   \
        for (int i = 0; i < n_out; ++i) {                                                                              \
            double sum = 0;                                                                                            \
            for (int j = 0; j < n_in; ++j) {                                                                           \
                size_t row = (size_t)(d->ta ? j : i), col = (size_t)(d->ta ? i : j);                                   \
                sum += (double)a[col * (size_t)d->lda + row] * (double)x[vector_at(j, n_in, d->ldb)];                  \
            }                                                                                                          \
            T *at = &y[vector_at(i, n_out, d->ldc)];                                                                   \
            *at = (T)((double)alpha * sum + (beta != 0 ? (double)beta * (double)*at : 0));                             \
        }                                                                                                              \
    }                                                                                                                  \
    cublasStatus_t cublas##S##gemv_v2(cublasHandle_t h, cublasOperation_t trans, int m, int n, const T *alpha,         \
                                      const T *a, int lda, const T *x, int incx, const T *beta, T *y, int incy) {      \
        NEED_HANDLE(h);                                                                                                \
        dense_call d = {.m = m, .n = n, .lda = lda, .ldb = incx, .ldc = incy, .a = a, .b = x, .c = y};                 \
        NEED(sim_cublas_op(trans, &d.ta) && m >= 0 && n >= 0 && lda >= 1 && lda >= m && incx && incy);                 \
        NEED(sim_cublas_scalar(h, alpha, type, &d.alpha) && sim_cublas_scalar(h, beta, type, &d.beta));                \
        if (!m || !n) return CUBLAS_STATUS_SUCCESS;                                                                    \
        sim_span span[SIM_SPANS] = {{"A", a, sim_matrix_bytes(m, n, lda, sizeof(T))},                                  \
                                    {"x", x, vector_bytes(d.ta ? m : n, incx, sizeof(T))},                             \
                                    {"y", y, vector_bytes(d.ta ? n : m, incy, sizeof(T))}};                            \
        size_t n_span = 3;                                                                                             \
        return SUBMIT("cublas" #S "gemv", run_##s##gemv);                                                              \
    }

#define VECTORS(T, s, S, type)                                                                                         \
    static void run_##s##scal(void *arg) {                                                                             \
        VALUES(T);                                                                                                     \
        T *x = d->c;                                                                                                   \
        for (int i = 0; i < d->n; ++i) x[(size_t)i * (size_t)d->ldc] *= alpha;                                         \
    }                                                                                                                  \
    cublasStatus_t cublas##S##scal_v2(cublasHandle_t h, int n, const T *alpha, T *x, int incx) {                       \
        NEED_HANDLE(h);                                                                                                \
        dense_call d = {.n = n, .ldc = incx, .c = x};                                                                  \
        NEED(sim_cublas_scalar(h, alpha, type, &d.alpha));                                                             \
        if (n <= 0 || incx <= 0) return CUBLAS_STATUS_SUCCESS;                                                         \
        sim_span span[SIM_SPANS] = {{"x", x, vector_bytes(n, incx, sizeof(T))}};                                       \
        size_t n_span = 1;                                                                                             \
        return SUBMIT("cublas" #S "scal", run_##s##scal);                                                              \
    }                                                                                                                  \
    static void run_##s##axpy(void *arg) {                                                                             \
        VALUES(T);                                                                                                     \
        const T *x = d->b;                                                                                             \
        T *y = d->c;                                                                                                   \
        for (int i = 0; i < d->n; ++i) y[vector_at(i, d->n, d->ldc)] += alpha * x[vector_at(i, d->n, d->ldb)];         \
    }                                                                                                                  \
    cublasStatus_t cublas##S##axpy_v2(cublasHandle_t h, int n, const T *alpha, const T *x, int incx, T *y, int incy) { \
        NEED_HANDLE(h);                                                                                                \
        dense_call d = {.n = n, .ldb = incx, .ldc = incy, .b = x, .c = y};                                             \
        NEED(sim_cublas_scalar(h, alpha, type, &d.alpha));                                                             \
        if (n <= 0) return CUBLAS_STATUS_SUCCESS;                                                                      \
        sim_span span[SIM_SPANS] = {{"x", x, vector_bytes(n, incx, sizeof(T))},                                        \
                                    {"y", y, vector_bytes(n, incy, sizeof(T))}};                                       \
        size_t n_span = 2;                                                                                             \
        return SUBMIT("cublas" #S "axpy", run_##s##axpy);                                                              \
    }

#define ALL(T, s, S, type)                                                                                             \
    SYRK(T, s, S, type)                                                                                                \
    TRSM(T, s, S, type) TRMM(T, s, S, type) GEAM(T, s, S, type) GEMV(T, s, S, type) VECTORS(T, s, S, type)
ALL(float, s, S, CUDA_R_32F)
ALL(double, d, D, CUDA_R_64F)
