/* SPDX-License-Identifier: Apache-2.0 */
/* A stand-in for cuSOLVER's dense part: Cholesky factors, solving with them, triangular inverses; in the 64-bit interface and
 * the older one. The workspace is asked for, checked and overwritten, though nothing is computed there: a program that gives
 * one too small, or lets two calls share it, is seen. */
#include <cusolverDn.h>
#include <stdlib.h>
#include <string.h>

#include "rt_graph.h"
#include "sim_blas.h"
#include "sim_lib.h"

enum { HANDLE_MAGIC = 0x43534e31, PARAMS_MAGIC = 0x43535031, BLOCK = 64, JUNK = 0xA5 };

struct cusolverDnContext {
    uint32_t magic;
    int device;
    cudaStream_t stream;
    cusolverDeterministicMode_t deterministic;
};
struct cusolverDnParams {
    uint32_t magic;
};

static bool is_handle(cusolverDnHandle_t h) { return h && h->magic == HANDLE_MAGIC; }
#define NEED_HANDLE(h)                                                                                                 \
    if (!is_handle(h)) return CUSOLVER_STATUS_NOT_INITIALIZED
#define NEED(condition)                                                                                                \
    if (!(condition)) return CUSOLVER_STATUS_INVALID_VALUE

cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t *out) {
    NEED(out);
    struct cusolverDnContext *h = rt_calloc(1, sizeof *h);
    h->magic = HANDLE_MAGIC;
    h->device = rt_self.device;
    h->deterministic = CUSOLVER_DETERMINISTIC_RESULTS;
    *out = h;
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t h) {
    NEED_HANDLE(h);
    rt_enter_always();
    rt_run_device(h->device);
    h->magic = 0;
    rt_bury(h);
    rt_leave(cudaSuccess);
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t h, cudaStream_t s) {
    NEED_HANDLE(h);
    h->stream = s;
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnGetStream(cusolverDnHandle_t h, cudaStream_t *s) {
    NEED_HANDLE(h);
    NEED(s);
    *s = h->stream;
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnSetDeterministicMode(cusolverDnHandle_t h, cusolverDeterministicMode_t mode) {
    NEED_HANDLE(h);
    h->deterministic = mode;
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnGetDeterministicMode(cusolverDnHandle_t h, cusolverDeterministicMode_t *mode) {
    NEED_HANDLE(h);
    NEED(mode);
    *mode = h->deterministic;
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t *out) {
    NEED(out);
    struct cusolverDnParams *p = rt_calloc(1, sizeof *p);
    p->magic = PARAMS_MAGIC;
    *out = p;
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t p) {
    NEED(p && p->magic == PARAMS_MAGIC);
    p->magic = 0;
    rt_enter_always();
    rt_bury(p);
    rt_leave(cudaSuccess);
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnSetAdvOptions(cusolverDnParams_t p, cusolverDnFunction_t function, cusolverAlgMode_t algo) {
    (void)function, (void)algo;
    NEED(p && p->magic == PARAMS_MAGIC);
    return CUSOLVER_STATUS_SUCCESS;
}

/* ---- what the calls share */

typedef struct solver_call {
    bool wide; /* doubles */
    sim_triangle t;
    int n, n_rhs, lda, ldb;
    void *a, *b;
    void *work;
    size_t work_bytes;
    int *info;
} solver_call;

static cusolverStatus_t status_of(sim_status s) {
    return s == SIM_OK ? CUSOLVER_STATUS_SUCCESS : CUSOLVER_STATUS_EXECUTION_FAILED;
}

static size_t element_of(const solver_call *c) { return c->wide ? sizeof(double) : sizeof(float); }

/* A workspace of a few columns' blocks, as such functions ask for. */
static size_t workspace(int64_t n, bool wide) {
    return (size_t)(n + BLOCK) * BLOCK * (wide ? sizeof(double) : sizeof(float));
}

static void use_workspace(const solver_call *c) {
    if (c->work_bytes) memset(c->work, JUNK, c->work_bytes);
}

static cusolverStatus_t submit(cusolverDnHandle_t h, const char *function, const solver_call *c, void (*run)(void *)) {
    sim_span span[SIM_SPANS] = {{"A", c->a, sim_matrix_bytes(c->n, c->n, c->lda, element_of(c))},
                                {"info", c->info, sizeof(int)}};
    size_t n = 2;
    if (c->b) span[n++] = (sim_span){"B", c->b, sim_matrix_bytes(c->n, c->n_rhs, c->ldb, element_of(c))};
    if (c->work_bytes) span[n++] = (sim_span){"the workspace", c->work, c->work_bytes};
    return status_of(sim_submit(function, h->stream, span, n, run, c, sizeof *c));
}

static bool set_triangle(solver_call *c, cublasFillMode_t uplo) {
    c->t.upper = uplo == CUBLAS_FILL_MODE_UPPER;
    c->t.left = true;
    return uplo == CUBLAS_FILL_MODE_UPPER || uplo == CUBLAS_FILL_MODE_LOWER;
}

static bool set_type(solver_call *c, cudaDataType type) {
    c->wide = type == CUDA_R_64F;
    return type == CUDA_R_64F || type == CUDA_R_32F;
}

static bool set_sizes(solver_call *c, int64_t n, int64_t lda) {
    if (n < 0 || n > INT32_MAX || lda < 1 || lda < n || lda > INT32_MAX) return false;
    c->n = (int)n;
    c->lda = (int)lda;
    return true;
}

/* ---- Cholesky */

static void run_potrf(void *arg) {
    const solver_call *c = arg;
    use_workspace(c);
    *c->info = c->wide ? sim_dpotrf(c->t.upper, c->n, c->a, c->lda) : sim_spotrf(c->t.upper, c->n, c->a, c->lda);
}

static cusolverStatus_t potrf(cusolverDnHandle_t h, const char *function, solver_call *c, cublasFillMode_t uplo,
                              int64_t n, int64_t lda, size_t work_bytes) {
    NEED_HANDLE(h);
    NEED(set_triangle(c, uplo) && set_sizes(c, n, lda));
    size_t needed = workspace(n, c->wide);
    NEED(work_bytes >= needed);
    c->work_bytes = needed;
    return submit(h, function, c, run_potrf);
}

cusolverStatus_t cusolverDnXpotrf_bufferSize(cusolverDnHandle_t h, cusolverDnParams_t params, cublasFillMode_t uplo,
                                             int64_t n, cudaDataType type, const void *a, int64_t lda,
                                             cudaDataType compute, size_t *device_bytes, size_t *host_bytes) {
    (void)params, (void)a;
    NEED_HANDLE(h);
    solver_call c = {0};
    NEED(device_bytes && host_bytes && set_triangle(&c, uplo) && set_sizes(&c, n, lda));
    if (!set_type(&c, type) || compute != type) return CUSOLVER_STATUS_NOT_SUPPORTED;
    *device_bytes = workspace(n, c.wide);
    *host_bytes = 0;
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXpotrf(cusolverDnHandle_t h, cusolverDnParams_t params, cublasFillMode_t uplo, int64_t n,
                                  cudaDataType type, void *a, int64_t lda, cudaDataType compute, void *device_work,
                                  size_t device_bytes, void *host_work, size_t host_bytes, int *info) {
    (void)params, (void)host_work, (void)host_bytes;
    solver_call c = {.a = a, .work = device_work, .info = info};
    if (!set_type(&c, type) || compute != type) return CUSOLVER_STATUS_NOT_SUPPORTED;
    return potrf(h, "cusolverDnXpotrf", &c, uplo, n, lda, device_bytes);
}

static cusolverStatus_t old_buffer_size(cusolverDnHandle_t h, cublasFillMode_t uplo, int n, int lda, bool wide,
                                        int *elements) {
    NEED_HANDLE(h);
    solver_call c = {0};
    NEED(elements && set_triangle(&c, uplo) && set_sizes(&c, n, lda));
    *elements = (int)(workspace(n, wide) / (wide ? sizeof(double) : sizeof(float)));
    return CUSOLVER_STATUS_SUCCESS;
}

/* ---- solving with the factor: A = U^T U or L L^T, so two triangular solves */

static void run_potrs(void *arg) {
    const solver_call *c = arg;
    sim_triangle first = c->t, second = c->t;
    first.transposed = c->t.upper;
    second.transposed = !c->t.upper;
    if (c->wide) {
        sim_dtrsm(first, c->n, c->n_rhs, 1, c->a, c->lda, c->b, c->ldb);
        sim_dtrsm(second, c->n, c->n_rhs, 1, c->a, c->lda, c->b, c->ldb);
    } else {
        sim_strsm(first, c->n, c->n_rhs, 1, c->a, c->lda, c->b, c->ldb);
        sim_strsm(second, c->n, c->n_rhs, 1, c->a, c->lda, c->b, c->ldb);
    }
    *c->info = 0;
}

static cusolverStatus_t potrs(cusolverDnHandle_t h, const char *function, solver_call *c, cublasFillMode_t uplo,
                              int64_t n, int64_t n_rhs, int64_t lda, int64_t ldb) {
    NEED_HANDLE(h);
    NEED(set_triangle(c, uplo) && set_sizes(c, n, lda) && n_rhs >= 0 && n_rhs <= INT32_MAX);
    NEED(ldb >= 1 && ldb >= n && ldb <= INT32_MAX);
    c->n_rhs = (int)n_rhs;
    c->ldb = (int)ldb;
    return submit(h, function, c, run_potrs);
}

cusolverStatus_t cusolverDnXpotrs(cusolverDnHandle_t h, cusolverDnParams_t params, cublasFillMode_t uplo, int64_t n,
                                  int64_t n_rhs, cudaDataType a_type, const void *a, int64_t lda, cudaDataType b_type,
                                  void *b, int64_t ldb, int *info) {
    (void)params;
    solver_call c = {.a = (void *)(uintptr_t)a, .b = b, .info = info};
    if (!set_type(&c, a_type) || b_type != a_type) return CUSOLVER_STATUS_NOT_SUPPORTED;
    return potrs(h, "cusolverDnXpotrs", &c, uplo, n, n_rhs, lda, ldb);
}

/* ---- inverses */

static double element(const solver_call *c, const void *a, int64_t ld, int i, int j) {
    return sim_load(c->wide ? CUDA_R_64F : CUDA_R_32F, a, (size_t)(j * ld + i));
}

static void put(const solver_call *c, int i, int j, double v) {
    sim_store(c->wide ? CUDA_R_64F : CUDA_R_32F, c->a, (size_t)((int64_t)j * c->lda + i), v);
}

/* A^-1 of the triangle, without gaps: the triangular solve with the unit matrix. */
static void *triangle_inverse(const solver_call *c) {
    int n = c->n;
    void *x = rt_calloc((size_t)n * (size_t)n, element_of(c));
    for (size_t i = 0; i < (size_t)n; ++i) sim_store(c->wide ? CUDA_R_64F : CUDA_R_32F, x, i * (size_t)n + i, 1);
    if (c->wide) {
        sim_dtrsm(c->t, n, n, 1, c->a, c->lda, x, n);
    } else {
        sim_strsm(c->t, n, n, 1, c->a, c->lda, x, n);
    }
    return x;
}

/* Writes x's triangle over that of A; the other one is not touched. */
static void put_triangle(const solver_call *c, const void *x, bool diagonal) {
    for (int j = 0; j < c->n; ++j) {
        for (int i = c->t.upper ? 0 : j; i < (c->t.upper ? j + 1 : c->n); ++i) {
            if (i != j || diagonal) put(c, i, j, element(c, x, c->n, i, j));
        }
    }
}

static void run_trtri(void *arg) {
    const solver_call *c = arg;
    use_workspace(c);
    for (int i = 0; !c->t.unit && i < c->n; ++i) {
        if (element(c, c->a, c->lda, i, i) != 0) continue;
        *c->info = i + 1; /* singular */
        return;
    }
    void *x = triangle_inverse(c);
    put_triangle(c, x, !c->t.unit);
    free(x);
    *c->info = 0;
}

static bool set_diagonal(solver_call *c, cublasDiagType_t diag) {
    c->t.unit = diag == CUBLAS_DIAG_UNIT;
    return diag == CUBLAS_DIAG_UNIT || diag == CUBLAS_DIAG_NON_UNIT;
}

cusolverStatus_t cusolverDnXtrtri_bufferSize(cusolverDnHandle_t h, cublasFillMode_t uplo, cublasDiagType_t diag,
                                             int64_t n, cudaDataType type, void *a, int64_t lda, size_t *device_bytes,
                                             size_t *host_bytes) {
    (void)a;
    NEED_HANDLE(h);
    solver_call c = {0};
    NEED(device_bytes && host_bytes && set_triangle(&c, uplo) && set_diagonal(&c, diag) && set_sizes(&c, n, lda));
    if (!set_type(&c, type)) return CUSOLVER_STATUS_NOT_SUPPORTED;
    *device_bytes = workspace(n, c.wide);
    *host_bytes = 0;
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXtrtri(cusolverDnHandle_t h, cublasFillMode_t uplo, cublasDiagType_t diag, int64_t n,
                                  cudaDataType type, void *a, int64_t lda, void *device_work, size_t device_bytes,
                                  void *host_work, size_t host_bytes, int *info) {
    (void)host_work, (void)host_bytes;
    NEED_HANDLE(h);
    solver_call c = {.a = a, .work = device_work, .info = info};
    NEED(set_triangle(&c, uplo) && set_diagonal(&c, diag) && set_sizes(&c, n, lda));
    if (!set_type(&c, type)) return CUSOLVER_STATUS_NOT_SUPPORTED;
    c.work_bytes = workspace(n, c.wide);
    NEED(device_bytes >= c.work_bytes);
    return submit(h, "cusolverDnXtrtri", &c, run_trtri);
}

/* (U^T U)^-1 = V V^T with V = U^-1; (L L^T)^-1 = V^T V with V = L^-1. */
static void run_potri(void *arg) {
    const solver_call *c = arg;
    use_workspace(c);
    int n = c->n;
    void *v = triangle_inverse(c), *x = rt_calloc((size_t)n * (size_t)n, element_of(c));
    bool upper = c->t.upper;
    if (c->wide) {
        sim_dgemm(!upper, upper, n, n, n, 1, v, n, v, n, 0, x, n);
    } else {
        sim_sgemm(!upper, upper, n, n, n, 1, v, n, v, n, 0, x, n);
    }
    put_triangle(c, x, true);
    free(v);
    free(x);
    *c->info = 0;
}

static cusolverStatus_t potri(cusolverDnHandle_t h, const char *function, solver_call *c, cublasFillMode_t uplo, int n,
                              int lda, int work_elements) {
    NEED_HANDLE(h);
    NEED(set_triangle(c, uplo) && set_sizes(c, n, lda) && work_elements >= 0);
    c->work_bytes = workspace(n, c->wide);
    NEED((size_t)work_elements * element_of(c) >= c->work_bytes);
    return submit(h, function, c, run_potri);
}

/* ---- the older interface */

#define OLD(T, S, is_wide)                                                                                             \
    cusolverStatus_t cusolverDn##S##potrf_bufferSize(cusolverDnHandle_t h, cublasFillMode_t uplo, int n, T *a,         \
                                                     int lda, int *elements) {                                         \
        (void)a;                                                                                                       \
        return old_buffer_size(h, uplo, n, lda, is_wide, elements);                                                    \
    }                                                                                                                  \
    cusolverStatus_t cusolverDn##S##potrf(cusolverDnHandle_t h, cublasFillMode_t uplo, int n, T *a, int lda, T *work,  \
                                          int elements, int *info) {                                                   \
        solver_call c = {.wide = is_wide, .a = a, .work = work, .info = info};                                         \
        NEED(elements >= 0);                                                                                           \
        return potrf(h, "cusolverDn" #S "potrf", &c, uplo, n, lda, (size_t)elements * sizeof(T));                      \
    }                                                                                                                  \
    cusolverStatus_t cusolverDn##S##potrs(cusolverDnHandle_t h, cublasFillMode_t uplo, int n, int n_rhs, const T *a,   \
                                          int lda, T *b, int ldb, int *info) {                                         \
        solver_call c = {.wide = is_wide, .a = (void *)(uintptr_t)a, .b = b, .info = info};                            \
        return potrs(h, "cusolverDn" #S "potrs", &c, uplo, n, n_rhs, lda, ldb);                                        \
    }                                                                                                                  \
    cusolverStatus_t cusolverDn##S##potri_bufferSize(cusolverDnHandle_t h, cublasFillMode_t uplo, int n, T *a,         \
                                                     int lda, int *elements) {                                         \
        (void)a;                                                                                                       \
        return old_buffer_size(h, uplo, n, lda, is_wide, elements);                                                    \
    }                                                                                                                  \
    cusolverStatus_t cusolverDn##S##potri(cusolverDnHandle_t h, cublasFillMode_t uplo, int n, T *a, int lda, T *work,  \
                                          int elements, int *info) {                                                   \
        solver_call c = {.wide = is_wide, .a = a, .work = work, .info = info};                                         \
        return potri(h, "cusolverDn" #S "potri", &c, uplo, n, lda, elements);                                          \
    }

OLD(float, S, false)
OLD(double, D, true)
