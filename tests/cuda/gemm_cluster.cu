/* SPDX-License-Identifier: Apache-2.0 */
/* C[m][n] = sum_k A[m][k] B[n][k], bf16 in and out, f32 sums, the way the fastest kernels of sm_90 are built: one warp feeds a
 * ring of stages with tensor copies, two warp groups multiply (wgmma, one group of them always under way), "full" and "empty"
 * mbarriers between them; two blocks of a cluster work on the same columns, each loads half of B's tile and sends it to both;
 * results go through shared memory (stmatrix) into a tensor store that cuts off what lies outside C. Any M and N; N and K are
 * multiples of 8.
 * Targets: sm_90a. */
#include <cuda.h>

#include "cudatest.h"
#include "ptxw_sm90.cuh"

enum {
    ROWS = 128,
    COLS = 128,
    STEP = 64, /* 128 bytes of bf16 */
    STAGES = 3,
    BLOCKS = 2, /* of a cluster: along the rows of C */
    GROUPS = 2, /* that multiply: 64 rows each */
    THREADS = 128 * (1 + GROUPS),
    TILE_A = ROWS * STEP * 2,
    TILE_B = COLS * STEP * 2,
    STAGE = TILE_A + TILE_B,
    OUT = 64 * COLS * 2, /* bytes of a group's result: two boxes of 64 columns */
    SHARED = STAGES * STAGE + GROUPS * OUT
};

/* The ring goes on: the next stage, and the parity of its phase. */
struct ring {
    int stage, parity;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

__device__ __forceinline__ void produce(const CUtensorMap *map_a, const CUtensorMap *map_b, uint32_t stages,
                                        uint32_t full, uint32_t empty, int m0, int n0, int steps) {
    const int rank = ptx_cluster_rank(), half = TILE_B / BLOCKS;
    ring r = {0, 1}; /* an empty ring: waits for the phase before the first pass at once */
    for (int step = 0; step < steps; ++step, r.next()) {
        const uint32_t to = stages + r.stage * STAGE, barrier = full + r.stage * 8;
        ptx_mbarrier_wait(empty + r.stage * 8, r.parity);
        ptx_mbarrier_expect(barrier, STAGE);
        ptx_tensor_load_2d(to, map_a, step * STEP, m0, barrier);
        ptx_tensor_multicast_2d(to + TILE_A + rank * half, map_b, step * STEP, n0 + rank * (COLS / BLOCKS), barrier,
                                (1 << BLOCKS) - 1);
    }
}

/* The warp has read the stage: both blocks may fill it. */
__device__ __forceinline__ void release(uint32_t empty, int stage) {
    __syncwarp();
    if (threadIdx.x % 32 < BLOCKS) ptx_mbarrier_arrive_remote(ptx_map_shared(empty + stage * 8, threadIdx.x % 32));
}

__device__ __forceinline__ void consume(float (&d)[64], uint32_t stages, uint32_t full, uint32_t empty, int group,
                                        int steps) {
    ring r = {0, 0};
    int before = 0;
    for (int step = 0; step < steps; ++step, r.next()) {
        ptx_mbarrier_wait(full + r.stage * 8, r.parity);
        const uint32_t a = stages + r.stage * STAGE + group * (TILE_A / GROUPS), b = stages + r.stage * STAGE + TILE_A;
        ptx_wgmma_fence();
#pragma unroll
        for (int k = 0; k < 128; k += 32)
            ptx_wgmma_bf16_n128(d, ptx_wgmma_tile128(a + k), ptx_wgmma_tile128(b + k), step + k > 0);
        ptx_wgmma_commit();
        ptx_wgmma_wait<1>();
        if (step > 0) release(empty, before);
        before = r.stage;
    }
    ptx_wgmma_wait<0>();
}

/* 64 rows of results as bf16 to shared memory under the 128-byte swizzle, and out. */
__device__ __forceinline__ void store(const float (&d)[64], const CUtensorMap *map_c, uint32_t out, int group, int m0,
                                      int n0) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const int row = warp * 16 + (lane & 15),
              right = lane >> 4; /* the row and half of 16 columns whose address it gives */
#pragma unroll
    for (int n = 0; n < COLS; n += 16) {
        uint32_t r[4];
#pragma unroll
        for (int q = 0; q < 4; ++q) {
            const __nv_bfloat162 v = __floats2bfloat162_rn(d[n / 2 + 2 * q], d[n / 2 + 2 * q + 1]);
            memcpy(&r[q], &v, 4);
        }
        const int piece = n % 64 / 8 + right;
        ptx_stmatrix4(out + n / 64 * (OUT / 2) + row * 128 + ((piece ^ (row & 7)) << 4), r);
    }
    ptx_fence_proxy_async();
    ptx_named_barrier(1 + group, 128);
    if (threadIdx.x % 128 == 0) {
        ptx_tensor_store_2d(map_c, n0, m0 + group * 64, out);
        ptx_tensor_store_2d(map_c, n0 + 64, m0 + group * 64, out + OUT / 2);
        ptx_bulk_commit();
        ptx_bulk_wait_read<0>();
    }
}

__global__ void __launch_bounds__(THREADS) __cluster_dims__(BLOCKS, 1, 1)
    gemm_cluster(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
                 const __grid_constant__ CUtensorMap map_c, int K) {
    extern __shared__ __align__(1024) uint8_t memory[];
    __shared__ uint64_t barriers[2 * STAGES];
    const uint32_t stages = ptx_shared(memory), full = ptx_shared(barriers), empty = full + STAGES * 8;
    const int m0 = blockIdx.x * ROWS, n0 = blockIdx.y * COLS, steps = (K + STEP - 1) / STEP;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            ptx_mbarrier_init(full + i * 8, 1);
            ptx_mbarrier_init(empty + i * 8, BLOCKS * GROUPS * 4); /* warps */
        }
        ptx_fence_mbarrier_init();
    }
    ptx_cluster_sync();
    if (threadIdx.x < 128) {
        ptx_registers_down<40>();
        if (threadIdx.x == 0) produce(&map_a, &map_b, stages, full, empty, m0, n0, steps);
    } else {
        ptx_registers_up<232>();
        const int group = threadIdx.x / 128 - 1;
        float d[64];
#pragma unroll
        for (int i = 0; i < 64; ++i) d[i] = 0;
        consume(d, stages, full, empty, group, steps);
        store(d, &map_c, stages + STAGES * STAGE + group * OUT, group, m0, n0);
    }
    ptx_cluster_sync(); /* the other block may still signal in this one's memory */
}

typedef CUresult (*encode_tiled_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                    const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                                    CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver's function, found through the runtime, so that nothing links with libcuda. */
static encode_tiled_fn encode_tiled() {
    void *f = nullptr;
    cudaDriverEntryPointQueryResult found;
    CHECK_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess || !f) RQ_DIE("the driver has no cuTensorMapEncodeTiled");
    return (encode_tiled_fn)f;
}
/* A matrix of bf16 in boxes of `box` rows of 64 columns. */
static CUtensorMap map_of(void *data, int rows, int cols, int box) {
    CUtensorMap map;
    const cuuint64_t size[2] = {(cuuint64_t)cols, (cuuint64_t)rows}, stride[1] = {(cuuint64_t)cols * 2};
    const cuuint32_t boxes[2] = {64, (cuuint32_t)box}, element_stride[2] = {1, 1};
    CUresult e = encode_tiled()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, data, size, stride, boxes, element_stride,
                                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (e != CUDA_SUCCESS) RQ_DIE("cuTensorMapEncodeTiled: error %d", (int)e);
    return map;
}

/* Small whole numbers: every sum is exact in f32, and so is its one rounding to bf16. */
static void test_shape(int M, int N, int K) {
    rq_rng rng = {(uint64_t)M * 1000003 + N * 1009 + K};
    const size_t n_a = (size_t)M * K, n_b = (size_t)N * K, n_c = (size_t)M * N;
    uint16_t *A = (uint16_t *)rq_host_alloc(n_a * 2), *B = (uint16_t *)rq_host_alloc(n_b * 2),
             *C = (uint16_t *)rq_host_alloc(n_c * 2);
    for (size_t i = 0; i < n_a; ++i) A[i] = rq_bf16_bits((float)(int)(rq_rand_u32(&rng) % 17) - 8);
    for (size_t i = 0; i < n_b; ++i) B[i] = rq_bf16_bits((float)(int)(rq_rand_u32(&rng) % 17) - 8);
    void *d_c = rq_device_buffer(n_c * 2);
    const CUtensorMap map_a = map_of(rq_device_copy(A, n_a * 2), M, K, ROWS),
                      map_b = map_of(rq_device_copy(B, n_b * 2), N, K, COLS / BLOCKS), map_c = map_of(d_c, M, N, 64);
    const int rows = (M + ROWS - 1) / ROWS, cols = (N + COLS - 1) / COLS;
    CHECK_CUDA(cudaFuncSetAttribute(gemm_cluster, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED));
    gemm_cluster<<<dim3((rows + 1) / BLOCKS * BLOCKS, cols), THREADS, SHARED>>>(map_a, map_b, map_c, K);
    CHECK_CUDA(cudaGetLastError());
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(C, d_c, n_c * 2);
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) {
            float sum = 0;
            for (int k = 0; k < K; ++k)
                sum += rq_bf16_value(A[(size_t)m * K + k]) * rq_bf16_value(B[(size_t)n * K + k]);
            EXPECT_EQ_AT((size_t)m * N + n, C[(size_t)m * N + n], rq_bf16_bits(sum));
        }
    char name[64];
    snprintf(name, sizeof name, "C %dx%dx%d", M, N, K);
    rq_record(name, RQ_BF16, C, n_c, 0);
    rq_device_free_all();
    free(A), free(B), free(C);
}

int main(void) {
    rq_need_device(90);
    test_shape(256, 128, 64);
    test_shape(256, 128, 512);
    test_shape(200, 136, 328); /* nothing fits a tile */
    if (!rq_small()) test_shape(512, 256, 448);
    return rq_done(__FILE__);
}
