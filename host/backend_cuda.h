/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA row of device.h, shared by its files backend_cuda*.c: one GPU, two streams, cuBLAS and cuSOLVER. Only built where there is a CUDA
 * toolkit (RQ_CUDA, or the simulator). Nothing outside of these files knows CUDA. */
#ifndef RQ_BACKEND_CUDA_H
#define RQ_BACKEND_CUDA_H

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <cusolverDn.h>

#include "backend.h"
#include "device.h"
#include "device_plan.h"
#include "rq_cuda_comp.h"

/* backend_cuda_libs.c: both libraries, loaded when the first device is opened. Types and constants are those of the toolkit's headers. */
typedef struct cuda_libs {
    __typeof__(cublasCreate_v2) *blas_create;
    __typeof__(cublasDestroy_v2) *blas_destroy;
    __typeof__(cublasSetStream_v2) *blas_set_stream;
    __typeof__(cublasSetMathMode) *blas_set_math;
    __typeof__(cublasSgemm_v2) *sgemm;
    __typeof__(cublasGemmEx) *gemm_ex;
    __typeof__(cusolverDnCreate) *solver_create;
    __typeof__(cusolverDnDestroy) *solver_destroy;
    __typeof__(cusolverDnSetStream) *solver_set_stream;
    __typeof__(cusolverDnCreateParams) *params_create;
    __typeof__(cusolverDnDestroyParams) *params_destroy;
    __typeof__(cusolverDnXpotrf_bufferSize) *potrf_size;
    __typeof__(cusolverDnXpotrf) *potrf;
    __typeof__(cusolverDnXtrtri_bufferSize) *trtri_size;
    __typeof__(cusolverDnXtrtri) *trtri;
} cuda_libs;
/* RQ_ERR_DEVICE names the file that is missing, or what it lacks. */
rq_status cuda_libs_load(const cuda_libs **libs);

/* Why cudaGetDeviceCount found none. CUDA's own text for a machine without a driver speaks of versions alone. */
static inline const char *cuda_why_none(cudaError_t e) {
    return e == cudaErrorInsufficientDriver ? "there is no NVIDIA driver here, or it is older than this program's CUDA"
                                            : cudaGetErrorString(e);
}

/* A buffer in pinned memory and the copy that reads or writes it. */
typedef struct cuda_stage {
    void *host;
    cudaEvent_t done;
} cuda_stage;

typedef struct cuda_device {
    int index;
    const cuda_libs *libs;
    cudaStream_t compute, copy;
    cublasHandle_t blas;
    cusolverDnHandle_t solver;
    cusolverDnParams_t params;
    cuda_stage stage[2];
    int turn; /* the stage to be used next */
    /* The Gram matrices that are being summed, and two chunks each of A and B: one is copied while the other is multiplied. */
    double *h, *d;
    float *a[2], *b[2], *panel;
    cudaEvent_t filled[2], used[2];
    int64_t chunk;
    int64_t panel_rows; /* of H and D, that are one product: RQ_CUDA_PANEL, or RQ_CUDA_PANEL_BF16 */
    uint16_t *half[2];  /* bfloat16: the tokens of A and of B that will be one product, NULL until there are some */
    int64_t held;       /* how many there are */
    struct cuda_ranks *ranks; /* backend_cuda_ranks.c; NULL: one rank */
    rq_work done;             /* since the device was opened; bytes of device memory are not counted */
} cuda_device;

/* What a preparation keeps on the device (rq_prep.on_device). */
typedef struct cuda_prep {
    float *u, *t, *m, *hd;
} cuda_prep;
rq_status cuda_prep_of(cuda_prep **own, rq_prep *p);
/* hd of a preparation that has it, uploaded by the first refinement that asks. */
rq_status cuda_prep_hd(cuda_device *dev, const float **hd, const rq_prep *p, const char *what);

/* Sentences: the failing call, what for, how large. */
rq_status cuda_failed(cudaError_t e, const char *call, const char *what);
#define CUDA_TRY(call, what)                                                                                           \
    do {                                                                                                               \
        cudaError_t e_ = (call);                                                                                       \
        if (e_ != cudaSuccess) {                                                                                       \
            status = cuda_failed(e_, #call, what);                                                                     \
            goto done;                                                                                                 \
        }                                                                                                              \
    } while (0)
/* A kernel of cuda/: its sentence is rq_cuda_last_error's. */
#define KERNEL_TRY(dev, call)                                                                                          \
    do {                                                                                                               \
        status = (call);                                                                                               \
        ++(dev)->done.launches;                                                                                        \
        if (status != RQ_OK) {                                                                                         \
            rq_fail(status, "%s", rq_cuda_last_error());                                                               \
            goto done;                                                                                                 \
        }                                                                                                              \
    } while (0)

/* Device memory for count elements; what names it. NULL may be freed. */
rq_status cuda_new(const cuda_device *dev, void **out, int64_t count, size_t elem_bytes, const char *what);
#define CUDA_NEW(dev, ptr, count, what) cuda_new((dev), (void **)&(ptr), (count), sizeof *(ptr), (what))
void cuda_release(void *device_pointer);

/* Through pinned memory on `stream`, piece by piece while the host copies the next one. Upload returns when the source may be changed; download when
 * everything is there. Both are in the stream's order. */
rq_status cuda_upload(cuda_device *dev, void *to, const void *from, int64_t bytes, cudaStream_t stream);
rq_status cuda_download(cuda_device *dev, void *to, const void *from, int64_t bytes);

/* Row-major C[m][n] = alpha A op(B) + beta C in fp32, on the compute stream. */
rq_status cuda_sgemm(cuda_device *dev, rq_trans tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                     int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc, const char *what);
/* C[m][n] = A^T B, A[k][m] and B[k][n]. */
rq_status cuda_sgemm_tn(cuda_device *dev, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                        int64_t ldb, float *c, int64_t ldc, const char *what);

/* cuda_sgemm with alpha 1 of A and B in bfloat16: products are exact in fp32, in which they are summed. */
rq_status cuda_gemm_bf16(cuda_device *dev, rq_trans tb, int64_t m, int64_t n, int64_t k, const uint16_t *a, int64_t lda,
                         const uint16_t *b, int64_t ldb, float beta, float *c, int64_t ldc, const char *what);

/* C[m][n] = A^T B of numbers in bfloat16. */
rq_status cuda_gemm_bf16_tn(cuda_device *dev, int64_t m, int64_t n, int64_t k, const uint16_t *a, int64_t lda,
                            const uint16_t *b, int64_t ldb, float *c, int64_t ldc, const char *what);

/* backend_cuda_gram.c: the operations of device.h, and activations that are on the device already, into the Gram matrices that gram_start began. b:
 * NULL, or for D. The second rounds them to bfloat16; of one run of additions all are such or none. */
rq_status cuda_gram_start(void *own, double *h, double *d, int64_t n);
rq_status cuda_gram_add(void *own, double *h, double *d, const float *a, const float *b, int64_t n_tok, int64_t n);
rq_status cuda_gram_finish(void *own, double *h, double *d, int64_t n);
void cuda_gram_free(cuda_device *dev);
rq_status cuda_gram_here(cuda_device *dev, const float *a, const float *b, int64_t n_tok, int64_t n);
rq_status cuda_gram_here_bf16(cuda_device *dev, const float *a, const float *b, int64_t n_tok, int64_t n);
/* backend_cuda_factor.c */
rq_status cuda_factor(void *own, rq_prep *p, const double *h, int64_t *bad);
rq_status cuda_triangular_term(void *own, rq_prep *p, float *d);
rq_status cuda_target_move(void *own, rq_prep *p, float *d);
rq_status cuda_move(void *own, float *out, const float *w, int64_t n_out, const rq_prep *p, double factor);
void cuda_forget(void *own, rq_prep *p);
/* backend_cuda_sweep.c */
rq_status cuda_sweep(void *own, const rq_sweep *s, const char *label);
/* Grids of rows or groups, found on the device: what all searches read. dead: columns that count as 0, or NULL. */
typedef struct cuda_rows {
    cuda_device *dev;
    const rq_sweep *s;
    const char *label;
    const float *w, *weight, *factor; /* [n_out][n], [n], [clip_steps] of the search by squares */
    const uint8_t *dead;
} cuda_rows;
/* weight and factor of it. sweep_order: w is. */
rq_status cuda_send_search(const cuda_rows *r, float *weight, float *factor, bool sweep_order);
/* Grids of n_group groups from stored column col0 on; shrink: 0, or without a search at that range. */
rq_status cuda_find_scales(const cuda_rows *r, const rq_cuda_grids *to, int64_t col0, int64_t n_group, bool search,
                           float shrink);
/* backend_cuda_levels.c: of whole rows, one level or two; and the search by the output. */
rq_status cuda_find_rows(const cuda_rows *r, const rq_cuda_grids *to, bool search);
rq_status cuda_clip(void *own, const rq_sweep *s, const char *label);
/* backend_cuda_refine.c */
rq_status cuda_refine(void *own, const rq_refine *r, const rq_prep *p, const char *label);
/* backend_cuda_kmeans.c */
extern const rq_kmeans_engine cuda_kmeans;
/* backend_cuda_book.c */
rq_status cuda_book_sweep(void *own, rq_book_task *t, const float *metric, float *at);
void cuda_book_forget(void *own, rq_book_task *t);
/* backend_cuda_book_refine.c */
rq_status cuda_book_pass(void *own, const rq_book_refine *r, rq_book_pass pass);
rq_status cuda_book_ask(void *own, rq_book_system *s, rq_book_ask ask, double *out, const double *v, double *loss);
/* backend_cuda_lines.c */
rq_status cuda_book_columns(void *own, rq_book_columns *c, double *loss, bool terms);

#endif
