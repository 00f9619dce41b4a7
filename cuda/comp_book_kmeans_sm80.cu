/* SPDX-License-Identifier: Apache-2.0 */
/* A pass of k-means over its points (host/kmeans_impl.h has the layouts and the algebra): nearest centroids, and the fp64 sums of each cell. Both give
 * the CPU's bytes: a score is one chain of fused multiply-adds in the order of the features, sums go over a chunk of points in order and then over the chunks.
 *
 * Nearest: a thread has 2 or 4 points in registers, all threads of a block walk the same tile of centroids in shared memory, four neighbours a load.
 * Sums: a warp has a chunk, a lane a column of the sums, so that a point is one addition in each lane, to shared memory where a chunk's sums fit.
 * Targets: sm_80 sm_90a. */
#include "comp_launch.cuh"
#include "rq_cuda_book.h"

enum { THREADS = 256, SIDE = 16 /* RQ_KMEANS_LANES */, TILE_FLOATS = 8192, AHEAD = 8, SHARED_SUMS = 64 << 10 };

template <int FEATURES, int POINTS>
static __global__ void __launch_bounds__(THREADS, 1)
    rq_kmeans_nearest(uint16_t *best, const float *u, int64_t n_group, int n_feat, const float *table,
                      int64_t n_block) {
    enum { PER_BLOCK = (1 + FEATURES) * SIDE, TILE = TILE_FLOATS / PER_BLOCK };
    __shared__ __align__(16) float tile[TILE * PER_BLOCK];
    const int64_t first = (int64_t)blockIdx.x * THREADS * POINTS + threadIdx.x, n = n_group * SIDE;
    float x[POINTS][FEATURES], least[POINTS];
    int at[POINTS];
#pragma unroll
    for (int p = 0; p < POINTS; ++p) {
        const int64_t i = first + p * THREADS;
        least[p] = INFINITY;
        at[p] = 0;
#pragma unroll
        for (int r = 0; r < FEATURES; ++r)
            x[p][r] = i < n && r < n_feat ? u[(i / SIDE * n_feat + r) * SIDE + i % SIDE] : 0.0f;
    }
    for (int64_t b0 = 0; b0 < n_block; b0 += TILE) {
        const int blocks = (int)(n_block - b0 < TILE ? n_block - b0 : TILE);
        __syncthreads();
        for (int e = threadIdx.x; e < blocks * PER_BLOCK; e += THREADS) {
            const int row = e % PER_BLOCK / SIDE;
            tile[e] = row <= n_feat ? table[((b0 + e / PER_BLOCK) * (1 + n_feat) + row) * SIDE + e % SIDE] : 0.0f;
        }
        __syncthreads();
        for (int b = 0; b < blocks; ++b) {
#pragma unroll 1
            for (int j = 0; j < SIDE; j += 4) {
                const float *v = tile + b * PER_BLOCK + j;
                float s[POINTS][4];
                const float4 bias = *reinterpret_cast<const float4 *>(v);
#pragma unroll
                for (int p = 0; p < POINTS; ++p) s[p][0] = bias.x, s[p][1] = bias.y, s[p][2] = bias.z, s[p][3] = bias.w;
#pragma unroll
                for (int r = 0; r < FEATURES; ++r) {
                    const float4 c = *reinterpret_cast<const float4 *>(v + (1 + r) * SIDE);
#pragma unroll
                    for (int p = 0; p < POINTS; ++p) {
                        s[p][0] = fmaf(x[p][r], c.x, s[p][0]);
                        s[p][1] = fmaf(x[p][r], c.y, s[p][1]);
                        s[p][2] = fmaf(x[p][r], c.z, s[p][2]);
                        s[p][3] = fmaf(x[p][r], c.w, s[p][3]);
                    }
                }
#pragma unroll
                for (int p = 0; p < POINTS; ++p)
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        const bool less = s[p][k] < least[p];
                        least[p] = less ? s[p][k] : least[p];
                        at[p] = less ? (int)(b0 + b) * SIDE + j + k : at[p];
                    }
            }
        }
    }
#pragma unroll
    for (int p = 0; p < POINTS; ++p)
        if (first + p * THREADS < n) best[first + p * THREADS] = (uint16_t)at[p];
}

template <int FEATURES, int POINTS> static void nearest(const rq_cuda_kmeans *k, rq_cuda_stream stream) {
    const int64_t n = k->n_group * SIDE, points = (int64_t)THREADS * POINTS;
    rq_kmeans_nearest<FEATURES, POINTS><<<(unsigned)((n + points - 1) / points), THREADS, 0, stream>>>(
        k->best, k->u, k->n_group, k->n_feat, k->table, k->n_block);
}

rq_status rq_cuda_kmeans_nearest(const rq_cuda_kmeans *k, rq_cuda_stream stream) {
    if (k->n_feat < 1 || k->n_feat > 32) return rq_gemv_fail(RQ_ERR_ARG, "a point of k-means has 1 to 32 features");
    if (k->n_feat <= 8)
        nearest<8, 4>(k, stream);
    else if (k->n_feat <= 16)
        nearest<16, 4>(k, stream);
    else
        nearest<32, 2>(k, stream);
    return rq_comp_launched("rq_kmeans_nearest");
}

/* What a lane adds for point i. */
static __device__ __forceinline__ double term(const rq_cuda_kmeans &k, int64_t i, int lane) {
    const int d = k.d, r = lane < d ? lane : lane - d;
    if (lane >= k.n_col) return 0;
    const float w = k.weights == 2 ? k.weight[i * d + r] : k.weights == 1 ? k.weight[i] : 1.0f;
    return lane < d ? (double)w * (double)k.x[i * d + lane] : (double)w;
}

static __global__ void __launch_bounds__(32) rq_kmeans_sums(const rq_cuda_kmeans k, int in_shared) {
    extern __shared__ __align__(8) double shared_sums[];
    const int64_t size = k.k * k.n_col, i0 = (int64_t)blockIdx.x * k.chunk,
                  end = i0 + k.chunk < k.n ? i0 + k.chunk : k.n;
    const int lane = threadIdx.x;
    double *part = k.part + (int64_t)blockIdx.x * size, *to = in_shared ? shared_sums : part;
    for (int64_t e = lane; e < size; e += 32) to[e] = 0;
    __syncwarp();
    for (int64_t i = i0; i < end; i += AHEAD) {
        double v[AHEAD];
        int64_t cell[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; ++j) {
            const bool there = i + j < end;
            cell[j] = there ? k.best[i + j] : 0;
            v[j] = there ? term(k, i + j, lane) : 0.0;
        }
#pragma unroll
        for (int j = 0; j < AHEAD; ++j)
            if (lane < k.n_col && i + j < end) to[cell[j] * k.n_col + lane] += v[j];
    }
    __syncwarp();
    for (int64_t e = lane; e < size && in_shared; e += 32) part[e] = to[e];
}

static __global__ void __launch_bounds__(THREADS)
    rq_total(double *sum, const double *part, int64_t size, int64_t n_part) {
    const int64_t e = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (e >= size) return;
    double s = 0;
    for (int64_t c = 0; c < n_part; ++c) s += part[c * size + e];
    sum[e] = s;
}

rq_status rq_cuda_total(double *sum, const double *part, int64_t size, int64_t n_part, rq_cuda_stream stream) {
    rq_total<<<(unsigned)((size + THREADS - 1) / THREADS), THREADS, 0, stream>>>(sum, part, size, n_part);
    return rq_comp_launched("rq_total");
}

rq_status rq_cuda_kmeans_sums(const rq_cuda_kmeans *k, rq_cuda_stream stream) {
    const int64_t size = k->k * k->n_col, bytes = size * (int64_t)sizeof(double);
    const int in_shared = bytes <= SHARED_SUMS;
    if (k->n_col < 1 || k->n_col > 32) return rq_gemv_fail(RQ_ERR_ARG, "sums of k-means have 1 to 32 columns");
    cudaError_t e = cudaFuncSetAttribute(rq_kmeans_sums, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_SUMS);
    if (e != cudaSuccess) return rq_gemv_fail_cuda("rq_kmeans_sums: shared memory", e);
    rq_kmeans_sums<<<(unsigned)k->n_chunk, 32, in_shared ? (size_t)bytes : 0, stream>>>(*k, in_shared);
    rq_status status = rq_comp_launched("rq_kmeans_sums");
    return status == RQ_OK ? rq_cuda_total(k->sum, k->part, size, k->n_chunk, stream) : status;
}
