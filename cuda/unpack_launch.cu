/* SPDX-License-Identifier: Apache-2.0 */
/* rq_cuda_unpack_*: a repacked matrix as a dense one. Targets: sm_80 sm_90a. */
#include "unpack_variants.h"

static const struct unpack_format {
    rq_tile_kind kind;
    const void *(*function)(const rq_cuda_gemv_desc *d);
} formats[] = {{RQ_TILE_GRID, rq_unpack_grid_function},
               {RQ_TILE_SSVQ, rq_unpack_ssvq_function},
               {RQ_TILE_VQ, rq_unpack_vq_function}};

static const void *function_of(const rq_cuda_gemv_desc *d) {
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; ++i)
        if (formats[i].kind == d->kind) return formats[i].function(d);
    return NULL;
}

rq_status rq_cuda_unpack_supports(const rq_cuda_gemv_desc *d, const char **why) {
    rq_cuda_gemv_desc one = {};
    if (d) one = *d, one.n_tok = 1;
    rq_status s = rq_cuda_gemv_supports(d ? &one : NULL, why);
    if (s == RQ_OK && !function_of(d)) {
        s = rq_gemv_fail(RQ_ERR_UNSUPPORTED, "there is no CUDA kernel that dequantizes this format");
        if (why) *why = rq_cuda_last_error();
    }
    return s;
}

rq_status rq_cuda_unpack_run(const rq_cuda_gemv_desc *d, void *to, int64_t ld, const void *weights,
                             rq_cuda_stream stream) {
    rq_cuda_gemv_desc one = {};
    if (d) one = *d, one.n_tok = 1;
    const char *text = rq_gemv_refuse(d ? &one : NULL);
    if (text) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, text);
    const void *function = function_of(d);
    if (!function) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "there is no CUDA kernel that dequantizes this format");
    if (!to || !weights || ld < d->n_in) return rq_gemv_fail(RQ_ERR_ARG, "to or weights is NULL, or ld below n_in");
    if (reinterpret_cast<uintptr_t>(weights) % RQ_TILE_ALIGN || reinterpret_cast<uintptr_t>(to) % 2)
        return rq_gemv_fail(RQ_ERR_ARG, "weights begin at multiples of 256 bytes, the dense matrix at even addresses");
    rq_unpack_job job = {};
    job.to = to, job.from = static_cast<const uint8_t *>(weights), job.ld = ld;
    job.wide = reinterpret_cast<uintptr_t>(to) % 16 == 0 && ld % 8 == 0;
    job.t = rq_gemv_format_of(d->kind)->layout(&one);
    const int64_t warps = RQ_UNPACK_THREADS / 32, blocks = (job.t.n_rb * job.t.n_kb + warps - 1) / warps;
    void *params[] = {&job};
    if (cudaError_t e = cudaLaunchKernel(function, dim3((unsigned)blocks), dim3(RQ_UNPACK_THREADS), params, 0, stream))
        return rq_gemv_fail_cuda("launch", e);
    return RQ_OK;
}
