/* SPDX-License-Identifier: Apache-2.0 */
/* rq_cuda_unpack_*: a repacked matrix as a dense one. Targets: sm_80 sm_90a. */
#include "unpack_variants.h"

static const struct unpack_format {
    rq_tile_kind kind;
    const void *(*function)(const rq_cuda_gemv_desc *d);
    const char *(*refuse)(const rq_cuda_gemv_desc *d); /* NULL: what the GEMV refuses */
} formats[] = {{RQ_TILE_GRID, rq_unpack_grid_function, NULL},
               {RQ_TILE_SSVQ, rq_unpack_ssvq_function, NULL},
               {RQ_TILE_VQ, rq_unpack_vq_function, rq_unpack_vq_refuse}};

static const unpack_format *format_of(rq_tile_kind kind) {
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; ++i)
        if (formats[i].kind == kind) return &formats[i];
    return NULL;
}

const char *rq_unpack_refuse(const rq_cuda_gemv_desc *d) {
    rq_cuda_gemv_desc one = {};
    if (d) one = *d, one.n_tok = 1;
    const char *text = rq_gemv_refuse_sizes(d ? &one : NULL);
    if (text) return text;
    const unpack_format *f = format_of(d->kind);
    if (!f) return "there is no CUDA kernel that dequantizes this format";
    return f->refuse ? f->refuse(&one) : rq_gemv_refuse(&one);
}

rq_status rq_cuda_unpack_supports(const rq_cuda_gemv_desc *d, const char **why) {
    const char *text = rq_unpack_refuse(d);
    rq_status s = RQ_OK;
    int device = 0, major = 0;
    cudaError_t e = cudaSuccess;
    if (text)
        s = rq_gemv_fail(RQ_ERR_UNSUPPORTED, text);
    else if ((e = cudaGetDevice(&device)) ||
             (e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)))
        s = rq_gemv_fail_cuda("no CUDA device", e);
    else if (major < 8)
        s = rq_gemv_fail(RQ_ERR_UNSUPPORTED, "the kernels need compute capability 8.0");
    if (why && s != RQ_OK) *why = rq_cuda_last_error();
    return s;
}

rq_status rq_cuda_unpack_run(const rq_cuda_gemv_desc *d, void *to, int64_t ld, const void *weights,
                             rq_cuda_stream stream) {
    const char *text = rq_unpack_refuse(d);
    if (text) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, text);
    if (!to || !weights || ld < d->n_in) return rq_gemv_fail(RQ_ERR_ARG, "to or weights is NULL, or ld below n_in");
    if (reinterpret_cast<uintptr_t>(weights) % RQ_TILE_ALIGN || reinterpret_cast<uintptr_t>(to) % 2)
        return rq_gemv_fail(RQ_ERR_ARG, "weights begin at multiples of 256 bytes, the dense matrix at even addresses");
    rq_unpack_job job = {};
    job.to = to, job.from = static_cast<const uint8_t *>(weights), job.ld = ld;
    job.wide = reinterpret_cast<uintptr_t>(to) % 16 == 0 && ld % 8 == 0;
    job.t = rq_gemv_format_of(d->kind)->layout(d);
    const int64_t warps = RQ_UNPACK_THREADS / 32, blocks = (job.t.n_rb * job.t.n_kb + warps - 1) / warps;
    void *params[] = {&job};
    if (cudaError_t e = cudaLaunchKernel(format_of(d->kind)->function(d), dim3((unsigned)blocks),
                                         dim3(RQ_UNPACK_THREADS), params, 0, stream))
        return rq_gemv_fail_cuda("launch", e);
    return RQ_OK;
}
