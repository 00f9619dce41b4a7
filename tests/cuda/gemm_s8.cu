/* SPDX-License-Identifier: Apache-2.0 */
/* C[m][n] = sum_k A[m][k] B[n][k], int8 in, int32 out: mma over a ring of three stages that cp.async fills. A block has a tile
 * of 64x64 and steps of 64 in k, four warps 2x2. M and N are any, K a multiple of 64, N even.
 * Targets: sm_80 sm_90a. In table.json. */
#include "cudatest.h"
#include "ptxw.cuh"

enum { TILE = 64, STEP = 64, STAGES = 3, THREADS = 128, STAGE_BYTES = 2 * TILE * STEP };

/* Byte of 16-byte piece `piece` of row `row`: the piece is turned by the row, so that eight rows of ldmatrix lie in eight
 * different sets of banks. */
__device__ __forceinline__ uint32_t place_of(int row, int piece) {
    return (uint32_t)(row * STEP + ((piece ^ ((row >> 1) & 3)) << 4));
}

/* Starts the copy of step `step` into its stage. Rows outside the matrix become zeros. */
__device__ __forceinline__ void start_copy(uint32_t stage, const int8_t *A, const int8_t *B, int m0, int n0, int M,
                                           int N, int K, int step) {
#pragma unroll
    for (int i = 0; i < TILE * STEP / 16 / THREADS; ++i) {
        const int c = (int)threadIdx.x + i * THREADS, row = c >> 2, piece = c & 3;
        const bool in_m = m0 + row < M, in_n = n0 + row < N;
        const size_t k = (size_t)step * STEP + piece * 16;
        ptx_cp_async16(stage + place_of(row, piece), A + (size_t)(in_m ? m0 + row : 0) * K + k, in_m);
        ptx_cp_async16(stage + TILE * STEP + place_of(row, piece), B + (size_t)(in_n ? n0 + row : 0) * K + k, in_n);
    }
}

/* The products of one stage: warp tile 32x32, two slices of 32 in k. */
__device__ __forceinline__ void multiply(int32_t (&acc)[2][4][4], uint32_t stage, int warp_m, int warp_n) {
    const int lane = threadIdx.x & 31;
    const uint32_t in_a = stage, in_b = stage + TILE * STEP;
#pragma unroll
    for (int slice = 0; slice < STEP / 32; ++slice) {
        uint32_t a[2][4], b[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i)
            ptx_ldmatrix4(a[i], in_a + place_of(warp_m + i * 16 + (lane & 15), slice * 2 + (lane >> 4)));
#pragma unroll
        for (int j = 0; j < 2; ++j)
            ptx_ldmatrix4(b[j], in_b + place_of(warp_n + j * 16 + (lane & 7) + ((lane >> 4) << 3),
                                                slice * 2 + ((lane >> 3) & 1)));
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) ptx_mma_s8(acc[i][j], a[i], &b[j >> 1][(j & 1) * 2]);
    }
}

__global__ void __launch_bounds__(THREADS)
    gemm_s8(const int8_t *__restrict__ A, const int8_t *__restrict__ B, int32_t *__restrict__ C, int M, int N, int K) {
    extern __shared__ __align__(128) int8_t ring[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warp_m = (warp & 1) * 32, warp_n = (warp >> 1) * 32;
    const int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE, steps = K / STEP;
    const uint32_t base = ptx_shared(ring);
    int32_t acc[2][4][4] = {};

    /* Groups are counted by commits: a step past the end commits an empty one. */
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < steps) start_copy(base + s * STAGE_BYTES, A, B, m0, n0, M, N, K, s);
        ptx_cp_async_commit();
    }
    for (int s = 0; s < steps; ++s) {
        ptx_cp_async_wait<STAGES - 2>();
        __syncthreads(); /* stage s is there for all, and all are done with the stage that is filled next */
        const int next = s + STAGES - 1;
        if (next < steps) start_copy(base + next % STAGES * STAGE_BYTES, A, B, m0, n0, M, N, K, next);
        ptx_cp_async_commit();
        multiply(acc, base + s % STAGES * STAGE_BYTES, warp_m, warp_n);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int row = m0 + warp_m + i * 16 + (lane >> 2), col = n0 + warp_n + j * 8 + (lane & 3) * 2;
            if (col >= N) continue;
            if (row < M) *reinterpret_cast<int2 *>(C + (size_t)row * N + col) = make_int2(acc[i][j][0], acc[i][j][1]);
            if (row + 8 < M)
                *reinterpret_cast<int2 *>(C + (size_t)(row + 8) * N + col) = make_int2(acc[i][j][2], acc[i][j][3]);
        }
}

static void test_shape(int M, int N, int K) {
    rq_rng rng = {(uint64_t)M * 1000003 + N * 1009 + K};
    const size_t bytes_a = (size_t)M * K, bytes_b = (size_t)N * K, n_c = (size_t)M * N;
    int8_t *A = (int8_t *)rq_host_alloc(bytes_a), *B = (int8_t *)rq_host_alloc(bytes_b);
    int32_t *C = (int32_t *)rq_host_alloc(n_c * 4);
    rq_rand_bytes(&rng, A, bytes_a);
    rq_rand_bytes(&rng, B, bytes_b);
    const int8_t *d_a = (const int8_t *)rq_device_copy(A, bytes_a), *d_b = (const int8_t *)rq_device_copy(B, bytes_b);
    int32_t *d_c = (int32_t *)rq_device_buffer(n_c * 4);
    const dim3 grid((N + TILE - 1) / TILE, (M + TILE - 1) / TILE);
    gemm_s8<<<grid, THREADS, STAGES * STAGE_BYTES>>>(d_a, d_b, d_c, M, N, K);
    CHECK_CUDA(cudaGetLastError());
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(C, d_c, n_c * 4);
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) {
            int32_t sum = 0;
            for (int k = 0; k < K; ++k) sum += A[(size_t)m * K + k] * B[(size_t)n * K + k];
            EXPECT_EQ_AT((size_t)m * N + n, C[(size_t)m * N + n], sum);
        }
    char name[64];
    snprintf(name, sizeof name, "C %dx%dx%d", M, N, K);
    rq_record(name, RQ_I32, C, n_c, 0);
    rq_device_free_all();
    free(A), free(B), free(C);
}

int main(void) {
    rq_need_device(80);
    test_shape(64, 64, 64); /* one step: fewer than stages */
    test_shape(100, 72, 320);
    if (!rq_small()) test_shape(256, 256, 1024);
    return rq_done(__FILE__);
}
