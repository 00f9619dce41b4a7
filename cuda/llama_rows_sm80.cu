/* SPDX-License-Identifier: Apache-2.0 */
/* Passes over rows of activations: RMSNorm (Zhang and Sennrich, arXiv:1910.07467), SwiGLU (Shazeer, arXiv:2002.05202), biases, factors and norms of tokens,
 * the largest of columns, rounding to bfloat16. They are bound by memory; sums over a row are one block's, in fp64, in an order that the width alone
 * decides. Targets: sm_80 sm_90a. */
#include <cuda_bf16.h>

#include "comp_launch.cuh"
#include "rq_cuda_llama.h"

enum { THREADS = 256, WARPS = THREADS / 32, MAX_ROWS = 256 };
constexpr unsigned ALL = 0xffffffffu; /* lanes */

/* The sum of squares of a row, in all threads of the block. */
static __device__ __forceinline__ double square_sum(const float *x, int64_t width, double (&part)[WARPS]) {
    double sum = 0;
    for (int64_t j = threadIdx.x; j < width; j += THREADS) sum += (double)x[j] * (double)x[j];
#pragma unroll
    for (int by = 16; by; by /= 2) sum += __shfl_xor_sync(ALL, sum, by);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = part[0];
#pragma unroll
    for (int w = 1; w < WARPS; ++w) sum += part[w];
    return sum;
}

static __global__ void __launch_bounds__(THREADS)
    rq_rmsnorm_rows(float *out, const float *x, const float *gain, int64_t width, float eps) {
    __shared__ double part[WARPS];
    const int64_t row = blockIdx.x * width;
    const float inv = (float)(1.0 / sqrt(square_sum(x + row, width, part) / (double)width + (double)eps));
    for (int64_t j = threadIdx.x; j < width; j += THREADS) {
        const float y = x[row + j] * inv;
        out[row + j] = gain ? y * gain[j] : y;
    }
}

static __global__ void __launch_bounds__(THREADS) rq_row_norms(float *norm, const float *x, int64_t width) {
    __shared__ double part[WARPS];
    const double sum = square_sum(x + blockIdx.x * width, width, part);
    if (threadIdx.x == 0) norm[blockIdx.x] = (float)sqrt(sum);
}

static __global__ void __launch_bounds__(THREADS) rq_swiglu(float *out, const float *gate, const float *up, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    const float g = gate[i];
    out[i] = g / (1.0f + expf(-g)) * up[i];
}

static __global__ void __launch_bounds__(THREADS) rq_bias_rows(float *y, const float *bias, int64_t width, int adds) {
    const int64_t c = rq_comp_col(), at = blockIdx.x * width + c;
    if (c < width) y[at] = adds ? y[at] + bias[c] : bias[c];
}

static __global__ void __launch_bounds__(THREADS)
    rq_scale_rows(float *rows, const float *by, int64_t width, int divides) {
    const int64_t c = rq_comp_col(), at = blockIdx.x * width + c;
    const float f = by[blockIdx.x];
    if (c >= width || (divides && !(f > 0.0f))) return;
    rows[at] = divides ? __fdiv_rn(rows[at], f) : rows[at] * f;
}

/* Bits of numbers that are not negative are ordered as the numbers are, and NaN is above infinity: whoever comes first, the result is the same. */
static __global__ void __launch_bounds__(THREADS)
    rq_column_max(float *most, const float *rows, int64_t n_rows, int64_t width) {
    const int64_t c = rq_comp_col(), r0 = (int64_t)blockIdx.x * MAX_ROWS;
    if (c >= width) return;
    int top = 0;
    for (int64_t r = r0; r < r0 + MAX_ROWS && r < n_rows; ++r) {
        const int v = __float_as_int(rows[r * width + c]) & 0x7fffffff;
        top = v > top ? v : top;
    }
    atomicMax(reinterpret_cast<int *>(most + c), top);
}

static __global__ void __launch_bounds__(THREADS) rq_to_bf16(uint16_t *to, const float *from, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) to[i] = __bfloat16_as_ushort(__float2bfloat16_rn(from[i]));
}

static unsigned blocks_of(int64_t n) { return (unsigned)((n + THREADS - 1) / THREADS); }

rq_status rq_cuda_rmsnorm(float *out, const float *x, const float *gain, int64_t n_tok, int64_t width, float eps,
                          rq_cuda_stream stream) {
    rq_rmsnorm_rows<<<(unsigned)n_tok, THREADS, 0, stream>>>(out, x, gain, width, eps);
    return rq_comp_launched("rq_rmsnorm_rows");
}

rq_status rq_cuda_swiglu(float *out, const float *gate, const float *up, int64_t n, rq_cuda_stream stream) {
    rq_swiglu<<<blocks_of(n), THREADS, 0, stream>>>(out, gate, up, n);
    return rq_comp_launched("rq_swiglu");
}

rq_status rq_cuda_bias(float *y, const float *bias, int64_t n_tok, int64_t width, int adds, rq_cuda_stream stream) {
    rq_bias_rows<<<rq_comp_rows(width, n_tok), THREADS, 0, stream>>>(y, bias, width, adds);
    return rq_comp_launched("rq_bias_rows");
}

rq_status rq_cuda_scale_rows(float *rows, const float *by, int64_t n_tok, int64_t width, int divides,
                             rq_cuda_stream stream) {
    rq_scale_rows<<<rq_comp_rows(width, n_tok), THREADS, 0, stream>>>(rows, by, width, divides);
    return rq_comp_launched("rq_scale_rows");
}

rq_status rq_cuda_row_norms(float *norm, const float *x, int64_t n_tok, int64_t width, rq_cuda_stream stream) {
    rq_row_norms<<<(unsigned)n_tok, THREADS, 0, stream>>>(norm, x, width);
    return rq_comp_launched("rq_row_norms");
}

rq_status rq_cuda_column_max(float *most, const float *rows, int64_t n_rows, int64_t width, rq_cuda_stream stream) {
    rq_column_max<<<rq_comp_rows(width, (n_rows + MAX_ROWS - 1) / MAX_ROWS), THREADS, 0, stream>>>(most, rows, n_rows,
                                                                                                   width);
    return rq_comp_launched("rq_column_max");
}

rq_status rq_cuda_to_bf16(uint16_t *to, const float *from, int64_t n, rq_cuda_stream stream) {
    rq_to_bf16<<<blocks_of(n), THREADS, 0, stream>>>(to, from, n);
    return rq_comp_launched("rq_to_bf16");
}
