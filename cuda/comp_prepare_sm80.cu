/* SPDX-License-Identifier: Apache-2.0 */
/* What calibration and the factor need beside products: adding fp32 panels to the fp64 Gram matrix, its other triangle, index reversal (docs/
 * methods.md, "Damping and factor"), the zeros of a triangular term, and carrying a matrix back to natural order. All are passes over memory; a
 * thread has one element of a row. Targets: sm_80 sm_90a. */
#include "comp_launch.cuh"

enum { ACROSS = RQ_COMP_ACROSS, TILE = 32 };

static __global__ void __launch_bounds__(ACROSS)
    rq_gram_fold(double *h, int64_t n, const float *p, int64_t ld, int64_t row0, int64_t cols, int lower) {
    const int64_t c = rq_comp_col(), i = blockIdx.x;
    if (c < cols && (!lower || c <= row0 + i)) h[(row0 + i) * n + c] += (double)p[i * ld + c];
}

/* A tile of the lower triangle goes through shared memory, so that both sides are whole lines. */
static __global__ void __launch_bounds__(256) rq_gram_mirror(double *h, int64_t n) {
    __shared__ double tile[TILE][TILE + 1];
    const int64_t r0 = (int64_t)blockIdx.y * TILE, c0 = (int64_t)blockIdx.x * TILE;
    if (c0 > r0) return;
    const int x = threadIdx.x % TILE;
    for (int i = threadIdx.x / TILE; i < TILE; i += 8)
        if (r0 + i < n && c0 + x < n) tile[i][x] = h[(r0 + i) * n + c0 + x];
    __syncthreads();
    for (int i = threadIdx.x / TILE; i < TILE; i += 8)
        if (c0 + i < n && r0 + x < n && c0 + i < r0 + x) h[(c0 + i) * n + r0 + x] = tile[x][i];
}

static __global__ void __launch_bounds__(ACROSS) rq_reverse(double *x, int64_t count) {
    const int64_t i = (int64_t)blockIdx.x * ACROSS + threadIdx.x;
    if (i >= count / 2) return;
    const double a = x[i], b = x[count - 1 - i];
    x[i] = b;
    x[count - 1 - i] = a;
}

static __global__ void __launch_bounds__(ACROSS) rq_factor_read(float *u, int32_t *bad, const double *x, int64_t n) {
    const int64_t c = rq_comp_col(), r = blockIdx.x;
    if (c >= n) return;
    const double v = c < r ? 0.0 : x[n * n - 1 - (r * n + c)];
    u[r * n + c] = (float)v;
    if (r == c && !(v > 0.0 && v < 1e300)) atomicMin(bad, (int)r);
}

static __global__ void __launch_bounds__(ACROSS) rq_clear_left(float *t, const int32_t *first, int64_t n) {
    const int64_t c = rq_comp_col(), r = blockIdx.x;
    if (c < n && c < first[r]) t[r * n + c] = 0.0f;
}

static __global__ void __launch_bounds__(ACROSS)
    rq_to_natural(float *to, const float *from, const int32_t *perm, int64_t n) {
    const int64_t c = rq_comp_col(), r = blockIdx.x;
    if (c < n) to[perm[r] * n + perm[c]] = from[r * n + c];
}

rq_status rq_cuda_gram_fold(double *h, int64_t n, const float *p, int64_t ld, int64_t row0, int64_t rows, int64_t cols,
                            int lower, rq_cuda_stream stream) {
    rq_gram_fold<<<rq_comp_rows(cols, rows), ACROSS, 0, stream>>>(h, n, p, ld, row0, cols, lower);
    return rq_comp_launched("rq_gram_fold");
}

rq_status rq_cuda_gram_mirror(double *h, int64_t n, rq_cuda_stream stream) {
    const unsigned tiles = (unsigned)((n + TILE - 1) / TILE);
    rq_gram_mirror<<<dim3(tiles, tiles), 256, 0, stream>>>(h, n);
    return rq_comp_launched("rq_gram_mirror");
}

rq_status rq_cuda_reverse(double *x, int64_t count, rq_cuda_stream stream) {
    if (count < 2) return RQ_OK;
    rq_reverse<<<(unsigned)((count / 2 + ACROSS - 1) / ACROSS), ACROSS, 0, stream>>>(x, count);
    return rq_comp_launched("rq_reverse");
}

rq_status rq_cuda_factor_read(float *u, int32_t *bad, const double *x, int64_t n, rq_cuda_stream stream) {
    rq_factor_read<<<rq_comp_rows(n, n), ACROSS, 0, stream>>>(u, bad, x, n);
    return rq_comp_launched("rq_factor_read");
}

rq_status rq_cuda_clear_left(float *t, const int32_t *first, int64_t n, rq_cuda_stream stream) {
    rq_clear_left<<<rq_comp_rows(n, n), ACROSS, 0, stream>>>(t, first, n);
    return rq_comp_launched("rq_clear_left");
}

rq_status rq_cuda_to_natural(float *to, const float *from, const int32_t *perm, int64_t n, rq_cuda_stream stream) {
    rq_to_natural<<<rq_comp_rows(n, n), ACROSS, 0, stream>>>(to, from, perm, n);
    return rq_comp_launched("rq_to_natural");
}
