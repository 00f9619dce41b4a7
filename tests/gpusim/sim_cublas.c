/* SPDX-License-Identifier: Apache-2.0 */
/* A stand-in for cuBLAS: the handle, and products of matrices (GEMM). */
#include "sim_cublas.h"

#include <string.h>

#include "rt_graph.h"

enum { HANDLE_MAGIC = 0x434c4231, VERSION = 130000 };

/* ---- the handle */

bool sim_cublas_ok(cublasHandle_t h) { return h && h->magic == HANDLE_MAGIC; }

cublasStatus_t cublasCreate_v2(cublasHandle_t *out) {
    if (!out) return CUBLAS_STATUS_INVALID_VALUE;
    struct cublasContext *h = rt_calloc(1, sizeof *h);
    h->magic = HANDLE_MAGIC;
    h->device = rt_self.device;
    h->atomics = CUBLAS_ATOMICS_NOT_ALLOWED;
    *out = h;
    return CUBLAS_STATUS_SUCCESS;
}

/* Waits for the device, as the real one does to free its workspace. */
cublasStatus_t cublasDestroy_v2(cublasHandle_t h) {
    if (!sim_cublas_ok(h)) return CUBLAS_STATUS_NOT_INITIALIZED;
    rt_enter_always();
    rt_run_device(h->device);
    h->magic = 0;
    rt_bury(h);
    rt_leave(cudaSuccess);
    return CUBLAS_STATUS_SUCCESS;
}

#define NEED_HANDLE(h)                                                                                                 \
    if (!sim_cublas_ok(h)) return CUBLAS_STATUS_NOT_INITIALIZED

cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t s) {
    NEED_HANDLE(h);
    h->stream = s;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetStream_v2(cublasHandle_t h, cudaStream_t *s) {
    NEED_HANDLE(h);
    if (!s) return CUBLAS_STATUS_INVALID_VALUE;
    *s = h->stream;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t h, cublasMath_t mode) {
    NEED_HANDLE(h);
    h->math = mode;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetMathMode(cublasHandle_t h, cublasMath_t *mode) {
    NEED_HANDLE(h);
    if (!mode) return CUBLAS_STATUS_INVALID_VALUE;
    *mode = h->math;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t h, cublasPointerMode_t mode) {
    NEED_HANDLE(h);
    if (mode != CUBLAS_POINTER_MODE_HOST && mode != CUBLAS_POINTER_MODE_DEVICE) return CUBLAS_STATUS_INVALID_VALUE;
    h->pointer_mode = mode;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t h, cublasPointerMode_t *mode) {
    NEED_HANDLE(h);
    if (!mode) return CUBLAS_STATUS_INVALID_VALUE;
    *mode = h->pointer_mode;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetAtomicsMode(cublasHandle_t h, cublasAtomicsMode_t mode) {
    NEED_HANDLE(h);
    h->atomics = mode;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetAtomicsMode(cublasHandle_t h, cublasAtomicsMode_t *mode) {
    NEED_HANDLE(h);
    if (!mode) return CUBLAS_STATUS_INVALID_VALUE;
    *mode = h->atomics;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetSmCountTarget(cublasHandle_t h, int n) {
    NEED_HANDLE(h);
    if (n < 0) return CUBLAS_STATUS_INVALID_VALUE;
    h->sm_count_target = n;
    return CUBLAS_STATUS_SUCCESS;
}

/* The functions here need no workspace; it must be memory of the device all the same. */
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t h, void *workspace, size_t bytes) {
    NEED_HANDLE(h);
    if (!workspace) return bytes ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS;
    rt_enter_always();
    bool good =
        rt_mem_kind(workspace) != RT_PAGEABLE && rt_check_device("cublasSetWorkspace", workspace, bytes) == cudaSuccess;
    rt_leave(cudaSuccess);
    return good && (uintptr_t)workspace % 256 == 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasGetVersion_v2(cublasHandle_t h, int *version) {
    (void)h;
    if (!version) return CUBLAS_STATUS_INVALID_VALUE;
    *version = VERSION;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetProperty(libraryPropertyType type, int *value) {
    if (!value) return CUBLAS_STATUS_INVALID_VALUE;
    *value = type == MAJOR_VERSION ? VERSION / 10000 : type == MINOR_VERSION ? VERSION / 100 % 100 : VERSION % 100;
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasGetStatusName(cublasStatus_t s) {
    switch (s) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH: return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_MAPPING_ERROR: return "CUBLAS_STATUS_MAPPING_ERROR";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR: return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_LICENSE_ERROR: return "CUBLAS_STATUS_LICENSE_ERROR";
    }
    return "an unknown cuBLAS status";
}

const char *cublasGetStatusString(cublasStatus_t s) {
    switch (s) {
    case CUBLAS_STATUS_SUCCESS: return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "the handle is not valid";
    case CUBLAS_STATUS_ALLOC_FAILED: return "out of memory";
    case CUBLAS_STATUS_INVALID_VALUE: return "an argument is not valid";
    case CUBLAS_STATUS_ARCH_MISMATCH: return "the device cannot do this";
    case CUBLAS_STATUS_MAPPING_ERROR: return "memory could not be mapped";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "the call could not run";
    case CUBLAS_STATUS_INTERNAL_ERROR: return "an internal error";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "not supported";
    case CUBLAS_STATUS_LICENSE_ERROR: return "a licence is missing";
    }
    return "an unknown cuBLAS status";
}

/* ---- what all functions share */

bool sim_cublas_scalar(cublasHandle_t h, const void *p, cudaDataType type, sim_scalar *out) {
    if (!p) return false;
    bool device = h->pointer_mode == CUBLAS_POINTER_MODE_DEVICE;
    *out = (sim_scalar){device ? 0 : sim_load(type, p, 0), device ? p : NULL, type};
    return true;
}

bool sim_cublas_op(cublasOperation_t op, bool *transposed) {
    *transposed = op != CUBLAS_OP_N;
    return op == CUBLAS_OP_N || op == CUBLAS_OP_T || op == CUBLAS_OP_C; /* conjugates of reals are they themselves */
}

cublasStatus_t sim_cublas_status(sim_status s) {
    return s == SIM_OK ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

/* ---- GEMM */

static cublasStatus_t submit(cublasHandle_t h, const char *function, const sim_gemm *g) {
    int64_t rows_a = g->ta ? g->k : g->m, rows_b = g->tb ? g->n : g->k;
    if (g->m < 0 || g->n < 0 || g->k < 0 || g->batch < 0) return CUBLAS_STATUS_INVALID_VALUE;
    if (g->a.ld < 1 || g->a.ld < rows_a || g->b.ld < 1 || g->b.ld < rows_b || g->c.ld < 1 || g->c.ld < g->m) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (!g->m || !g->n || !g->batch) return CUBLAS_STATUS_SUCCESS;
    sim_span span[SIM_SPANS];
    size_t n = sim_gemm_spans(g, span);
    return sim_cublas_status(sim_submit(function, h->stream, span, n, sim_gemm_run, g, sizeof *g));
}

/* What kind of scalars and sums a compute type means; false: it does not go with these types. */
static bool types_fit(cublasComputeType_t compute, cudaDataType a, cudaDataType b, cudaDataType c,
                      cudaDataType *scalar) {
    bool same = a == b;
    switch ((int)compute) {
    case CUBLAS_COMPUTE_64F:
    case CUBLAS_COMPUTE_64F_PEDANTIC: *scalar = CUDA_R_64F; return same && a == CUDA_R_64F && c == CUDA_R_64F;
    case CUBLAS_COMPUTE_32I:
    case CUBLAS_COMPUTE_32I_PEDANTIC: *scalar = CUDA_R_32I; return same && a == CUDA_R_8I && c == CUDA_R_32I;
    case CUBLAS_COMPUTE_16F:
    case CUBLAS_COMPUTE_16F_PEDANTIC: *scalar = CUDA_R_16F; return same && a == CUDA_R_16F && c == CUDA_R_16F;
    case CUBLAS_COMPUTE_32F:
    case CUBLAS_COMPUTE_32F_PEDANTIC:
        *scalar = CUDA_R_32F;
        if (!same) return false;
        if (a == CUDA_R_16F || a == CUDA_R_16BF) return c == a || c == CUDA_R_32F;
        return (a == CUDA_R_8I || a == CUDA_R_32F) && c == CUDA_R_32F;
    case CUBLAS_COMPUTE_32F_FAST_16F:
    case CUBLAS_COMPUTE_32F_FAST_16BF:
    case CUBLAS_COMPUTE_32F_FAST_TF32: *scalar = CUDA_R_32F; return same && a == CUDA_R_32F && c == CUDA_R_32F;
    default: return false;
    }
}

/* Products of int8 use instructions that take four at a time. */
static bool int8_aligned(const sim_gemm *g) {
    return (uintptr_t)g->a.p % 4 == 0 && (uintptr_t)g->b.p % 4 == 0 && g->a.ld % 4 == 0 && g->b.ld % 4 == 0;
}

static cublasStatus_t gemm_ex(cublasHandle_t h, const char *function, cublasOperation_t ta, cublasOperation_t tb,
                              const void *alpha, const void *beta, cublasComputeType_t compute, sim_gemm g) {
    NEED_HANDLE(h);
    cudaDataType scalar;
    if (!sim_cublas_op(ta, &g.ta) || !sim_cublas_op(tb, &g.tb)) return CUBLAS_STATUS_INVALID_VALUE;
    if (!types_fit(compute, g.a.type, g.b.type, g.c.type, &scalar)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!sim_cublas_scalar(h, alpha, scalar, &g.alpha) || !sim_cublas_scalar(h, beta, scalar, &g.beta)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    g.integer = g.a.type == CUDA_R_8I;
    g.d = g.c;
    if (g.integer && !int8_aligned(&g)) return CUBLAS_STATUS_NOT_SUPPORTED;
    return submit(h, function, &g);
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n,
                                          int k, const void *alpha, const void *a, cudaDataType a_type, int lda,
                                          long long stride_a, const void *b, cudaDataType b_type, int ldb,
                                          long long stride_b, const void *beta, void *c, cudaDataType c_type, int ldc,
                                          long long stride_c, int batch, cublasComputeType_t compute,
                                          cublasGemmAlgo_t algo) {
    (void)algo; /* which kernel is no matter */
    sim_gemm g = {.m = m, .n = n, .k = k, .batch = batch};
    g.a = (sim_matrix){a, a_type, lda, stride_a, false};
    g.b = (sim_matrix){b, b_type, ldb, stride_b, false};
    g.c = (sim_matrix){c, c_type, ldc, stride_c, false};
    return gemm_ex(h, "cublasGemmStridedBatchedEx", ta, tb, alpha, beta, compute, g);
}

cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                            const void *alpha, const void *a, cudaDataType a_type, int lda, const void *b,
                            cudaDataType b_type, int ldb, const void *beta, void *c, cudaDataType c_type, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algo) {
    (void)algo;
    sim_gemm g = {.m = m, .n = n, .k = k, .batch = 1};
    g.a = (sim_matrix){a, a_type, lda, 0, false};
    g.b = (sim_matrix){b, b_type, ldb, 0, false};
    g.c = (sim_matrix){c, c_type, ldc, 0, false};
    return gemm_ex(h, "cublasGemmEx", ta, tb, alpha, beta, compute, g);
}

#define GEMM_OF(T, Name, type, compute)                                                                                \
    cublasStatus_t cublas##Name##gemmStridedBatched(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb,      \
                                                    int m, int n, int k, const T *alpha, const T *a, int lda,          \
                                                    long long stride_a, const T *b, int ldb, long long stride_b,       \
                                                    const T *beta, T *c, int ldc, long long stride_c, int batch) {     \
        sim_gemm g = {.m = m, .n = n, .k = k, .batch = batch};                                                         \
        g.a = (sim_matrix){a, type, lda, stride_a, false};                                                             \
        g.b = (sim_matrix){b, type, ldb, stride_b, false};                                                             \
        g.c = (sim_matrix){c, type, ldc, stride_c, false};                                                             \
        return gemm_ex(h, "cublas" #Name "gemmStridedBatched", ta, tb, alpha, beta, compute, g);                       \
    }                                                                                                                  \
    cublasStatus_t cublas##Name##gemm_v2(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n,   \
                                         int k, const T *alpha, const T *a, int lda, const T *b, int ldb,              \
                                         const T *beta, T *c, int ldc) {                                               \
        sim_gemm g = {.m = m, .n = n, .k = k, .batch = 1};                                                             \
        g.a = (sim_matrix){a, type, lda, 0, false};                                                                    \
        g.b = (sim_matrix){b, type, ldb, 0, false};                                                                    \
        g.c = (sim_matrix){c, type, ldc, 0, false};                                                                    \
        return gemm_ex(h, "cublas" #Name "gemm", ta, tb, alpha, beta, compute, g);                                     \
    }

GEMM_OF(float, S, CUDA_R_32F, CUBLAS_COMPUTE_32F)
GEMM_OF(double, D, CUDA_R_64F, CUBLAS_COMPUTE_64F)
