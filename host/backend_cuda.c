/* SPDX-License-Identifier: Apache-2.0 */
/* The quantizer on a GPU: the device, its memory and copies, and products. backend_cuda_gram.c, backend_cuda_factor.c and backend_cuda_sweep.c have the
 * operations. Products are in fp32 without shortcuts (no TF32), masters of Gram matrices and the factor in fp64. */
#include "backend_cuda_ranks.h"

enum { STAGE_BYTES = 16 << 20, MIN_CAPABILITY = 8 };

rq_status cuda_failed(cudaError_t e, const char *call, const char *what) {
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(call, "("), call);
    return rq_fail(e == cudaErrorMemoryAllocation ? RQ_ERR_NOMEM : RQ_ERR_DEVICE, "%s for %s: %s", name, what,
                   cudaGetErrorString(e));
}

rq_status cuda_new(const cuda_device *dev, void **out, int64_t count, size_t elem_bytes, const char *what) {
    int64_t bytes;
    *out = NULL;
    if (!rq_mul_size(count, (int64_t)elem_bytes, &bytes))
        return rq_fail(RQ_ERR_NOMEM, "impossible allocation of %lld elements for %s", (long long)count, what);
    cudaError_t e = cudaMalloc(out, (size_t)rq_max_i64(bytes, 1));
    if (e == cudaSuccess) return RQ_OK;
    size_t free_bytes = 0, total = 0;
    cudaGetLastError(); /* out of memory is not sticky: later calls are to go on */
    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) free_bytes = 0;
    *out = NULL;
    return rq_fail(e == cudaErrorMemoryAllocation ? RQ_ERR_NOMEM : RQ_ERR_DEVICE,
                   "cudaMalloc of %lld bytes for %s: %s; cuda:%d has %zu of %zu bytes free", (long long)bytes, what,
                   cudaGetErrorString(e), dev->index, free_bytes, total);
}

void cuda_release(void *device_pointer) {
    if (device_pointer) (void)cudaFree(device_pointer);
}

/* ---- copies ----------------------------------------------------------------------------------------------------------- */

rq_status cuda_upload(cuda_device *dev, void *to, const void *from, int64_t bytes, cudaStream_t stream) {
    rq_status status = RQ_OK;
    dev->done.upload += (double)bytes;
    for (int64_t at = 0; at < bytes; at += STAGE_BYTES) {
        cuda_stage *s = &dev->stage[dev->turn];
        int64_t n = rq_min_i64(STAGE_BYTES, bytes - at);
        dev->turn = !dev->turn;
        CUDA_TRY(cudaEventSynchronize(s->done), "an upload");
        memcpy(s->host, (const char *)from + at, (size_t)n);
        CUDA_TRY(cudaMemcpyAsync((char *)to + at, s->host, (size_t)n, cudaMemcpyHostToDevice, stream), "an upload");
        CUDA_TRY(cudaEventRecord(s->done, stream), "an upload");
    }
done:
    return status;
}

rq_status cuda_download(cuda_device *dev, void *to, const void *from, int64_t bytes) {
    rq_status status = RQ_OK;
    int64_t n_piece = rq_ceil_div(bytes, STAGE_BYTES);
    dev->done.download += (double)bytes;
    for (int64_t i = 0; i <= n_piece; ++i) { /* piece i is under way while piece i - 1 is taken out */
        if (i < n_piece) {
            cuda_stage *s = &dev->stage[i % 2];
            int64_t n = rq_min_i64(STAGE_BYTES, bytes - i * STAGE_BYTES);
            CUDA_TRY(cudaEventSynchronize(s->done), "a download");
            CUDA_TRY(cudaMemcpyAsync(s->host, (const char *)from + i * STAGE_BYTES, (size_t)n, cudaMemcpyDeviceToHost,
                                     dev->compute),
                     "a download");
            CUDA_TRY(cudaEventRecord(s->done, dev->compute), "a download");
        }
        if (i > 0) {
            cuda_stage *s = &dev->stage[(i - 1) % 2];
            int64_t at = (i - 1) * STAGE_BYTES;
            CUDA_TRY(cudaEventSynchronize(s->done), "a download");
            memcpy((char *)to + at, s->host, (size_t)rq_min_i64(STAGE_BYTES, bytes - at));
        }
    }
done:
    return status;
}

/* ---- products --------------------------------------------------------------------------------------------------------- */

/* One product by columns. Numbers of A and B: fp32 by cublasSgemm, bfloat16 by cublasGemmEx with sums in fp32. */
typedef struct blas_call {
    cublasOperation_t ta, tb;
    int64_t m, n, k;
    const void *a, *b;
    int64_t lda, ldb, ldc;
    float alpha, beta;
    float *c;
    bool bf16;
} blas_call;

static rq_status blas_run(cuda_device *dev, const blas_call *g, const char *what) {
    const char *name = g->bf16 ? "cublasGemmEx" : "cublasSgemm";
    const int64_t most =
        rq_max_i64(rq_max_i64(rq_max_i64(g->m, g->n), g->k), rq_max_i64(rq_max_i64(g->lda, g->ldb), g->ldc));
    if (most > INT32_MAX)
        return rq_fail(RQ_ERR_UNSUPPORTED, "%s for %s: a side of %lld x %lld x %lld is too long", name, what,
                       (long long)g->n, (long long)g->m, (long long)g->k);
    dev->done.flops += 2.0 * (double)g->m * (double)g->n * (double)g->k;
    ++dev->done.launches;
    const int m = (int)g->m, n = (int)g->n, k = (int)g->k, lda = (int)g->lda, ldb = (int)g->ldb, ldc = (int)g->ldc;
    const cublasStatus_t s =
        g->bf16
            ? dev->libs->gemm_ex(dev->blas, g->ta, g->tb, m, n, k, &g->alpha, g->a, CUDA_R_16BF, lda, g->b, CUDA_R_16BF,
                                 ldb, &g->beta, g->c, CUDA_R_32F, ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT)
            : dev->libs->sgemm(dev->blas, g->ta, g->tb, m, n, k, &g->alpha, g->a, lda, g->b, ldb, &g->beta, g->c, ldc);
    if (s == CUBLAS_STATUS_SUCCESS) return RQ_OK;
    return rq_fail(RQ_ERR_DEVICE, "%s of %lld x %lld x %lld for %s: status %d", name, (long long)g->n, (long long)g->m,
                   (long long)g->k, what, (int)s);
}

/* cuBLAS goes by columns: it computes C^T = op(B)^T A^T. */
static rq_status blas_nt(cuda_device *dev, bool bf16, rq_trans tb, int64_t m, int64_t n, int64_t k, float alpha,
                         const void *a, int64_t lda, const void *b, int64_t ldb, float beta, float *c, int64_t ldc,
                         const char *what) {
    const blas_call g = {.ta = tb == RQ_T ? CUBLAS_OP_T : CUBLAS_OP_N,
                         .tb = CUBLAS_OP_N,
                         .m = n,
                         .n = m,
                         .k = k,
                         .a = b,
                         .b = a,
                         .lda = ldb,
                         .ldb = lda,
                         .ldc = ldc,
                         .alpha = alpha,
                         .beta = beta,
                         .c = c,
                         .bf16 = bf16};
    return blas_run(dev, &g, what);
}

static rq_status blas_tn(cuda_device *dev, bool bf16, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda,
                         const void *b, int64_t ldb, float *c, int64_t ldc, const char *what) {
    const blas_call g = {.ta = CUBLAS_OP_N,
                         .tb = CUBLAS_OP_T,
                         .m = n,
                         .n = m,
                         .k = k,
                         .a = b,
                         .b = a,
                         .lda = ldb,
                         .ldb = lda,
                         .ldc = ldc,
                         .alpha = 1,
                         .c = c,
                         .bf16 = bf16};
    return blas_run(dev, &g, what);
}

rq_status cuda_sgemm(cuda_device *dev, rq_trans tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                     int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc, const char *what) {
    return blas_nt(dev, false, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, what);
}

rq_status cuda_sgemm_tn(cuda_device *dev, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                        int64_t ldb, float *c, int64_t ldc, const char *what) {
    return blas_tn(dev, false, m, n, k, a, lda, b, ldb, c, ldc, what);
}

rq_status cuda_gemm_bf16(cuda_device *dev, rq_trans tb, int64_t m, int64_t n, int64_t k, const uint16_t *a, int64_t lda,
                         const uint16_t *b, int64_t ldb, float beta, float *c, int64_t ldc, const char *what) {
    return blas_nt(dev, true, tb, m, n, k, 1, a, lda, b, ldb, beta, c, ldc, what);
}

rq_status cuda_gemm_bf16_tn(cuda_device *dev, int64_t m, int64_t n, int64_t k, const uint16_t *a, int64_t lda,
                            const uint16_t *b, int64_t ldb, float *c, int64_t ldc, const char *what) {
    return blas_tn(dev, true, m, n, k, a, lda, b, ldb, c, ldc, what);
}

/* ---- the device ------------------------------------------------------------------------------------------------------- */

static void close_device(void *own) {
    cuda_device *dev = own;
    if (!dev) return;
    (void)cudaSetDevice(dev->index);
    cuda_gram_free(dev);
    cuda_leave(dev);
    if (dev->params) (void)dev->libs->params_destroy(dev->params);
    if (dev->solver) (void)dev->libs->solver_destroy(dev->solver);
    if (dev->blas) (void)dev->libs->blas_destroy(dev->blas);
    for (int i = 0; i < 2; ++i) {
        if (dev->stage[i].host) (void)cudaFreeHost(dev->stage[i].host);
        cudaEvent_t events[] = {dev->stage[i].done, dev->filled[i], dev->used[i]};
        for (size_t k = 0; k < sizeof events / sizeof *events; ++k) {
            if (events[k]) (void)cudaEventDestroy(events[k]);
        }
    }
    if (dev->copy) (void)cudaStreamDestroy(dev->copy);
    if (dev->compute) (void)cudaStreamDestroy(dev->compute);
    free(dev);
}

static rq_status open_libraries(cuda_device *dev) {
    rq_status status = RQ_OK;
    RQ_TRY(cuda_libs_load(&dev->libs));
    const cuda_libs *l = dev->libs;
    cublasStatus_t s = l->blas_create(&dev->blas);
    if (s == CUBLAS_STATUS_SUCCESS) s = l->blas_set_stream(dev->blas, dev->compute);
    if (s == CUBLAS_STATUS_SUCCESS) s = l->blas_set_math(dev->blas, CUBLAS_DEFAULT_MATH);
    if (s != CUBLAS_STATUS_SUCCESS)
        RQ_FAIL(RQ_ERR_DEVICE, "cuBLAS on cuda:%d: no handle, status %d", dev->index, (int)s);
    cusolverStatus_t t = l->solver_create(&dev->solver);
    if (t == CUSOLVER_STATUS_SUCCESS) t = l->solver_set_stream(dev->solver, dev->compute);
    if (t == CUSOLVER_STATUS_SUCCESS) t = l->params_create(&dev->params);
    if (t != CUSOLVER_STATUS_SUCCESS)
        RQ_FAIL(RQ_ERR_DEVICE, "cuSOLVER on cuda:%d: no handle, status %d", dev->index, (int)t);
done:
    return status;
}

static rq_status open_device(void **own, int index) {
    rq_status status = RQ_OK;
    cuda_device *dev = NULL;
    int count = 0, major = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    *own = NULL;
    if (e != cudaSuccess) RQ_FAIL(RQ_ERR_DEVICE, "no CUDA device: %s", cuda_why_none(e));
    if (index < 0 && count > 0) index = (-1 - index) % count;
    if (index < 0 || index >= count)
        RQ_FAIL(RQ_ERR_DEVICE, "cuda:%d: this machine has %d CUDA device%s", index, count, count == 1 ? "" : "s");
    RQ_TRY(rq_backend_init()); /* losses and what docs/devices.md lists are the CPU's */
    RQ_TRY(RQ_NEW_ZERO(dev, 1));
    dev->index = index;
    CUDA_TRY(cudaSetDevice(index), "the device");
    CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "the device");
    if (major < MIN_CAPABILITY)
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "cuda:%d has compute capability %d: the kernels need 8.0", index, major);
    CUDA_TRY(cudaStreamCreateWithFlags(&dev->compute, cudaStreamNonBlocking), "the device");
    CUDA_TRY(cudaStreamCreateWithFlags(&dev->copy, cudaStreamNonBlocking), "the device");
    for (int i = 0; i < 2; ++i) {
        CUDA_TRY(cudaMallocHost(&dev->stage[i].host, STAGE_BYTES), "pinned memory");
        cudaEvent_t *events[] = {&dev->stage[i].done, &dev->filled[i], &dev->used[i]};
        for (size_t k = 0; k < sizeof events / sizeof *events; ++k)
            CUDA_TRY(cudaEventCreateWithFlags(events[k], cudaEventDisableTiming), "the device");
    }
    RQ_TRY(open_libraries(dev));
done:
    if (status != RQ_OK)
        close_device(dev);
    else
        *own = dev;
    return status;
}

const rq_device_ops rq_device_cuda = {.name = "cuda",
                                      .stack_rows = RQ_CUDA_STACK_ROWS,
                                      .open = open_device,
                                      .join = cuda_join,
                                      .close = close_device,
                                      .gram_start = cuda_gram_start,
                                      .gram_add = cuda_gram_add,
                                      .gram_finish = cuda_gram_finish,
                                      .factor = cuda_factor,
                                      .triangular_term = cuda_triangular_term,
                                      .target_move = cuda_target_move,
                                      .move = cuda_move,
                                      .clip = cuda_clip,
                                      .sweep = cuda_sweep,
                                      .refine = cuda_refine,
                                      .kmeans = &cuda_kmeans,
                                      .book_sweep = cuda_book_sweep,
                                      .book_pass = cuda_book_pass,
                                      .book_ask = cuda_book_ask,
                                      .book_columns = cuda_book_columns,
                                      .book_forget = cuda_book_forget,
                                      .forget = cuda_forget};
