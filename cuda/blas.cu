/* SPDX-License-Identifier: Apache-2.0 */
/* cuBLAS, loaded late. What is declared here of its interface is the part that has not changed from release 11 to 13; tests/cuda/linear.cu
 * compares the constants with its header. Targets: sm_80 sm_90a. */
#include "blas.h"

#include <dlfcn.h>
#include <library_types.h>
#include <stdio.h>
#include <stdlib.h>

#include <mutex>

#include "gemv_variants.h"

enum { OP_N = 0, OP_T = 1, COMPUTE_32F = 68, GEMM_DEFAULT = -1, MATH_NO_HALF_SUMS = 16, MAX_DEVICES = 64 };

static struct blas {
    int (*create)(void **);
    int (*destroy)(void *);
    int (*set_stream)(void *, cudaStream_t);
    int (*set_workspace)(void *, void *, size_t);
    int (*set_math)(void *, int);
    int (*gemm)(void *, int, int, int, int, int, const void *, const void *, int, int, const void *, int, int,
                const void *, void *, int, int, int, int);
    void *handles[MAX_DEVICES]; /* ours, one a device */
    bool loaded;
} blas;
static std::mutex lock; /* of all of it: a handle must not be used by two threads at once */

static bool take_symbols(void *library) {
    const struct {
        const char *name;
        void **to;
    } all[] = {
        {"cublasCreate_v2", (void **)&blas.create},        {"cublasDestroy_v2", (void **)&blas.destroy},
        {"cublasSetStream_v2", (void **)&blas.set_stream}, {"cublasSetWorkspace_v2", (void **)&blas.set_workspace},
        {"cublasSetMathMode", (void **)&blas.set_math},    {"cublasGemmEx", (void **)&blas.gemm}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; ++i)
        if (!(*all[i].to = dlsym(library, all[i].name))) return false;
    return true;
}

/* RQ_CUBLAS names the file; otherwise what the program has already loaded, so that a caller's handle meets its own library, and at last the
 * usual names. */
static bool load(void) {
    if (blas.loaded) return true;
    static const char *const names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "libcublas.so"};
    const char *given = getenv("RQ_CUBLAS");
    if (given && *given) {
        void *library = dlopen(given, RTLD_NOW | RTLD_LOCAL);
        return blas.loaded = library && take_symbols(library);
    }
    if (take_symbols(RTLD_DEFAULT)) return blas.loaded = true;
    for (int flags : {RTLD_NOW | RTLD_NOLOAD, RTLD_NOW | RTLD_LOCAL})
        for (const char *name : names) {
            void *library = dlopen(name, flags);
            if (library && take_symbols(library)) return blas.loaded = true;
        }
    return false;
}

static rq_status failed(const char *what, int status) {
    char text[128];
    snprintf(text, sizeof text, "cuBLAS: %s: status %d", what, status);
    return rq_gemv_fail(RQ_ERR_DEVICE, text);
}

static rq_status handle_of_device(void **handle) {
    int device = 0;
    if (cudaError_t e = cudaGetDevice(&device)) return rq_gemv_fail_cuda("cudaGetDevice", e);
    if (device >= MAX_DEVICES) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "the device's number is 64 or more");
    void **ours = &blas.handles[device];
    if (!*ours) {
        if (int status = blas.create(ours)) return *ours = NULL, failed("no handle", status);
        /* Sums of the parts of a product would otherwise be allowed to be halves. */
        if (int status = blas.set_math(*ours, MATH_NO_HALF_SUMS)) return failed("the math mode", status);
    }
    *handle = *ours;
    return RQ_OK;
}

rq_status rq_blas_prepare(void *handle) {
    std::lock_guard<std::mutex> guard(lock);
    if (!load())
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED,
                            "products of dense weights need cuBLAS, and libcublas.so (11 to 13, or the file that "
                            "RQ_CUBLAS names) cannot be loaded");
    return handle ? RQ_OK : handle_of_device(&handle);
}

rq_status rq_blas_run(void *handle, const rq_blas_product *p, rq_cuda_stream stream) {
    std::lock_guard<std::mutex> guard(lock);
    if (!blas.loaded) return rq_gemv_fail(RQ_ERR_ARG, "cuBLAS is not loaded: a plan does that");
    if (!handle) {
        const rq_status s = handle_of_device(&handle);
        if (s != RQ_OK) return s;
    }
    const float one = 1.0f;
    const int type = p->act == RQ_ACT_F16 ? CUDA_R_16F : CUDA_R_16BF;
    /* The workspace after the stream, which takes it away. */
    if (int status = blas.set_stream(handle, stream)) return failed("the stream", status);
    if (int status = blas.set_workspace(handle, p->workspace, p->workspace_bytes))
        return failed("the workspace", status);
    /* By columns: y is n_out x n_tok, and w, n_in x n_out, is transposed. */
    if (int status = blas.gemm(handle, OP_T, OP_N, (int)p->n_out, (int)p->n_tok, (int)p->n_in, &one, p->w, type,
                               (int)p->ld_w, p->x, type, (int)p->ld_x, &p->beta, p->y,
                               p->y_float ? (int)CUDA_R_32F : type, (int)p->n_out, COMPUTE_32F, GEMM_DEFAULT))
        return failed("cublasGemmEx", status);
    return RQ_OK;
}

void rq_blas_release(void) {
    std::lock_guard<std::mutex> guard(lock);
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return;
    for (int i = 0; i < MAX_DEVICES; ++i) {
        if (!blas.handles[i]) continue;
        if (cudaSetDevice(i) == cudaSuccess) blas.destroy(blas.handles[i]);
        blas.handles[i] = NULL;
    }
    cudaSetDevice(device);
}
