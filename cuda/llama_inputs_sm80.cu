/* SPDX-License-Identifier: Apache-2.0 */
/* Inputs of matrices of w4a8 in fp32, for calibration: Hadamard matrix, column factors, and to int8 and back. The numbers are those of host/fmt_act.h to
 * the last bit (quantize_rows_hadamard.cu has the kernels for decoding, from halves to codes).
 *
 * With a Hadamard matrix of order core * 2^p a block has `size` columns of a row in shared memory: the butterflies in place, a stage between two barriers,
 * then each thread sums outputs over the core. Targets: sm_80 sm_90a. */
#include "comp_launch.cuh"
#include "quantize_rows.cuh"
#include "rq_cuda_llama.h"

enum { THREADS = 512 };

static __global__ void __launch_bounds__(THREADS)
    rq_hadamard_rows(float *out, const float *x, const float *factor, int64_t width,
                     const __grid_constant__ rq_hadamard h) {
    extern __shared__ float v[];
    const int64_t col0 = (int64_t)blockIdx.y * h.size, at = blockIdx.x * width + col0;
    const int across = h.size / h.core;
    for (int i = threadIdx.x; i < h.size; i += THREADS) v[i] = x[at + i];
    for (int half = 1; half < across; half *= 2) {
        __syncthreads();
        for (int p = threadIdx.x; p < h.size / 2; p += THREADS) {
            const int k = (p & ~(half - 1)) * 2 + (p & (half - 1));
            const float a = v[k], b = v[k + half];
            v[k] = a + b;
            v[k + half] = a - b;
        }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < h.size; e += THREADS) {
        const int r = e / across, i = e % across; /* across is a power of two, but not known to be */
        const uint64_t sign = h.row[r];
        float sum = sign & 1 ? -v[i] : v[i];
        if (h.core == 1) sum = v[e];
        for (int c = 1; c < h.core; ++c) {
            const float in = v[c * across + i];
            sum = sign >> c & 1 ? sum - in : sum + in;
        }
        sum = __fmul_rn(sum, h.norm);
        out[at + e] = factor ? __fmul_rn(sum, factor[col0 + e]) : sum;
    }
}

static __global__ void __launch_bounds__(RQ_COMP_ACROSS)
    rq_factor_rows(float *out, const float *x, const float *factor, int64_t width) {
    const int64_t c = rq_comp_col(), at = blockIdx.x * width + c;
    if (c < width) out[at] = __fmul_rn(x[at], factor[c]);
}

static __global__ void __launch_bounds__(ROW_THREADS) rq_act8_rows(float *out, const float *x, int64_t width) {
    __shared__ row_reduced<ROW_THREADS / 32> reduced;
    const int64_t row = blockIdx.x * width;
    float most = 0.0f;
    for (int64_t j = threadIdx.x; j < width; j += ROW_THREADS) most = fmaxf(most, fabsf(x[row + j])); /* not NaN */
    const float scale = __fdiv_rn(largest(most, reduced), 127.0f);
    for (int64_t j = threadIdx.x; j < width; j += ROW_THREADS)
        out[row + j] = __fmul_rn(scale, (float)quotient(x[row + j], scale));
}

rq_status rq_cuda_input_rows(float *out, const float *x, const rq_hadamard *h, const float *factor, int64_t n_tok,
                             int64_t width, rq_cuda_stream stream) {
    if (!h) {
        if (!factor) return rq_gemv_fail(RQ_ERR_ARG, "neither a Hadamard matrix nor factors");
        rq_factor_rows<<<rq_comp_rows(width, n_tok), RQ_COMP_ACROSS, 0, stream>>>(out, x, factor, width);
        return rq_comp_launched("rq_factor_rows");
    }
    if (h->size < 2 || h->core < 1 || h->core > RQ_ACT_MAX_CORE || h->size % h->core || width % h->size)
        return rq_gemv_fail(RQ_ERR_ARG, "the rows' width is no multiple of the Hadamard matrix's order");
    int device = 0, most = 0;
    const int shared = h->size * (int)sizeof(float);
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (e != cudaSuccess) return rq_gemv_fail_cuda("cudaDeviceGetAttribute", e);
    if (shared > most) {
        char text[160];
        snprintf(text, sizeof text, "a Hadamard matrix of order %d needs %d bytes of shared memory, a block has %d",
                 h->size, shared, most);
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, text);
    }
    e = cudaFuncSetAttribute(rq_hadamard_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (e != cudaSuccess) return rq_gemv_fail_cuda("cudaFuncSetAttribute", e);
    rq_hadamard_rows<<<dim3((unsigned)n_tok, (unsigned)(width / h->size)), THREADS, shared, stream>>>(out, x, factor,
                                                                                                      width, *h);
    return rq_comp_launched("rq_hadamard_rows");
}

rq_status rq_cuda_act8_rows(float *out, const float *x, int64_t n_tok, int64_t width, rq_cuda_stream stream) {
    rq_act8_rows<<<(unsigned)n_tok, ROW_THREADS, 0, stream>>>(out, x, width);
    return rq_comp_launched("rq_act8_rows");
}
