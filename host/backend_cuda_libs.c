/* SPDX-License-Identifier: Apache-2.0 */
/* cuBLAS and cuSOLVER, loaded late: the program starts on machines that have neither. */
#include "backend_cuda_ranks.h"

#include <dlfcn.h>

typedef struct symbol {
    const char *name;
    size_t offset; /* in cuda_libs or cuda_nccl */
} symbol;
#define NCCL_SYMBOL(name, member)                                                                                      \
    { #name, offsetof(cuda_nccl, member) }
#define SYMBOL(name, member)                                                                                           \
    { #name, offsetof(cuda_libs, member) }

static const symbol of_blas[] = {
    SYMBOL(cublasCreate_v2, blas_create),
    SYMBOL(cublasDestroy_v2, blas_destroy),
    SYMBOL(cublasSetStream_v2, blas_set_stream),
    SYMBOL(cublasSetMathMode, blas_set_math),
    SYMBOL(cublasSgemm_v2, sgemm),
    SYMBOL(cublasGemmEx, gemm_ex),
    {NULL, 0},
};
static const symbol of_solver[] = {
    SYMBOL(cusolverDnCreate, solver_create),
    SYMBOL(cusolverDnDestroy, solver_destroy),
    SYMBOL(cusolverDnSetStream, solver_set_stream),
    SYMBOL(cusolverDnCreateParams, params_create),
    SYMBOL(cusolverDnDestroyParams, params_destroy),
    SYMBOL(cusolverDnXpotrf_bufferSize, potrf_size),
    SYMBOL(cusolverDnXpotrf, potrf),
    SYMBOL(cusolverDnXtrtri_bufferSize, trtri_size),
    SYMBOL(cusolverDnXtrtri, trtri),
    {NULL, 0},
};

/* All of them, or the name of the first that is missing. */
static const char *take(void *to, void *library, const symbol *list) {
    for (const symbol *s = list; s->name; ++s) {
        void *found = dlsym(library, s->name);
        if (!found) return s->name;
        memcpy((char *)to + s->offset, &found, sizeof found);
    }
    return NULL;
}

/* `variable` names the file; otherwise what the program has already loaded, and at last the usual names. */
static rq_status load(void *to, const symbol *list, const char *variable, const char *const *names, const char *title) {
    const char *given = getenv(variable), *missing = NULL;
    if (given && *given) {
        void *library = dlopen(given, RTLD_NOW | RTLD_LOCAL);
        if (!library) return rq_fail(RQ_ERR_DEVICE, "%s: %s, which %s names, cannot be loaded", title, given, variable);
        missing = take(to, library, list);
        return missing ? rq_fail(RQ_ERR_DEVICE, "%s: %s has no %s", title, given, missing) : RQ_OK;
    }
    if (!take(to, RTLD_DEFAULT, list)) return RQ_OK;
    for (int i = 0; names[i]; ++i) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (!library) continue;
        missing = take(to, library, list);
        if (!missing) return RQ_OK;
    }
    if (missing) return rq_fail(RQ_ERR_DEVICE, "%s: the library that was found has no %s", title, missing);
    return rq_fail(RQ_ERR_DEVICE, "quantizing on a GPU needs %s: %s cannot be loaded (%s can name the file)", title,
                   names[0], variable);
}

rq_status cuda_libs_load(const cuda_libs **libs) {
    static const char *const blas[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "libcublas.so", NULL};
    static const char *const solver[] = {"libcusolver.so.12", "libcusolver.so.11", "libcusolver.so", NULL};
    static cuda_libs loaded;
    static bool done;
    rq_status status = RQ_OK;
    if (!done) {
        RQ_TRY(load(&loaded, of_blas, "RQ_CUBLAS", blas, "cuBLAS"));
        RQ_TRY(load(&loaded, of_solver, "RQ_CUSOLVER", solver, "cuSOLVER"));
    }
    done = true;
    *libs = &loaded;
done:
    return status;
}

rq_status cuda_nccl_load(const cuda_nccl **lib) {
    static const symbol list[] = {
        NCCL_SYMBOL(ncclGetUniqueId, get_unique_id),   NCCL_SYMBOL(ncclCommInitRank, init_rank),
        NCCL_SYMBOL(ncclCommDestroy, destroy),         NCCL_SYMBOL(ncclBroadcast, broadcast),
        NCCL_SYMBOL(ncclGroupStart, group_start),      NCCL_SYMBOL(ncclGroupEnd, group_end),
        NCCL_SYMBOL(ncclGetErrorString, error_string), {NULL, 0},
    };
    static const char *const names[] = {"libnccl.so.2", "libnccl.so", NULL};
    static cuda_nccl loaded;
    const rq_status status = load(&loaded, list, "RQ_NCCL", names, "NCCL");
    if (status == RQ_OK) *lib = &loaded;
    return status;
}
