/* SPDX-License-Identifier: Apache-2.0 */
/* C[m][n] = sum_k A[m][k] B[n][k], int8 in, int32 out, as Hopper wants it: tensor copies (2-D, 128-byte swizzle) into two
 * stages, an mbarrier each, and wgmma on them. One warp group a block, tile 64x64, 128 in k at once. M and N are multiples of
 * 64, K any multiple of 16: the tensor copy fills with zeros past the end.
 * Targets: sm_90a. In table.json. */
#include <cuda.h>

#include "cudatest.h"
#include "ptxw.cuh"

enum { TILE = 64, STEP = 128, STAGES = 2, THREADS = 128, HALF_STAGE = TILE * STEP, STAGE_BYTES = 2 * HALF_STAGE };

__global__ void __launch_bounds__(THREADS)
    gemm_wgmma(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, int32_t *C, int N,
               int K) {
    extern __shared__ __align__(1024) uint8_t stages[];
    __shared__ uint64_t barriers[STAGES];
    const int tid = threadIdx.x, m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE, steps = (K + STEP - 1) / STEP;
    const uint32_t in_stages = ptx_shared(stages), in_barriers = ptx_shared(barriers);
    if (tid == 0) {
        for (int i = 0; i < STAGES; ++i) ptx_mbarrier_init(in_barriers + i * 8, 1);
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    auto start_copy = [&](int step) {
        const uint32_t stage = in_stages + step % STAGES * STAGE_BYTES, barrier = in_barriers + step % STAGES * 8;
        ptx_mbarrier_expect(barrier, STAGE_BYTES);
        ptx_tensor_load_2d(stage, &map_a, step * STEP, m0, barrier);
        ptx_tensor_load_2d(stage + HALF_STAGE, &map_b, step * STEP, n0, barrier);
    };
    if (tid == 0) start_copy(0);
    int32_t acc[32];
#pragma unroll
    for (int i = 0; i < 32; ++i) acc[i] = 0;
    for (int step = 0; step < steps; ++step) {
        if (tid == 0 && step + 1 < steps) start_copy(step + 1);
        ptx_mbarrier_wait(in_barriers + step % STAGES * 8, step / STAGES & 1);
        const uint32_t stage = in_stages + step % STAGES * STAGE_BYTES;
        ptx_wgmma_fence();
#pragma unroll
        for (int k = 0; k < STEP; k += 32)
            ptx_wgmma_s8_n64(acc, ptx_wgmma_tile128(stage + k), ptx_wgmma_tile128(stage + HALF_STAGE + k));
        ptx_wgmma_commit();
        ptx_wgmma_wait<0>();
        __syncthreads(); /* all four warps have read this stage: it may be filled again */
    }
    const int lane = tid & 31, warp = tid >> 5;
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
        const int row = m0 + warp * 16 + (lane >> 2) + (i >> 1 & 1) * 8, col = n0 + (i >> 2) * 8 + (lane & 3) * 2;
        *reinterpret_cast<int2 *>(C + (size_t)row * N + col) = make_int2(acc[i], acc[i + 1]);
    }
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

/* Boxes of 64 rows of 128 bytes. */
static CUtensorMap map_of(void *data, int rows, int cols) {
    CUtensorMap map;
    const cuuint64_t size[2] = {(cuuint64_t)cols, (cuuint64_t)rows}, stride[1] = {(cuuint64_t)cols};
    const cuuint32_t box[2] = {STEP, TILE}, element_stride[2] = {1, 1};
    CUresult e = encode_tiled()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, data, size, stride, box, element_stride,
                                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (e != CUDA_SUCCESS) RQ_DIE("cuTensorMapEncodeTiled: error %d", (int)e);
    return map;
}

static void test_shape(int M, int N, int K) {
    rq_rng rng = {(uint64_t)M * 1000003 + N * 1009 + K};
    const size_t bytes_a = (size_t)M * K, bytes_b = (size_t)N * K, n_c = (size_t)M * N;
    int8_t *A = (int8_t *)rq_host_alloc(bytes_a), *B = (int8_t *)rq_host_alloc(bytes_b);
    int32_t *C = (int32_t *)rq_host_alloc(n_c * 4);
    rq_rand_bytes(&rng, A, bytes_a);
    rq_rand_bytes(&rng, B, bytes_b);
    const CUtensorMap map_a = map_of(rq_device_copy(A, bytes_a), M, K),
                      map_b = map_of(rq_device_copy(B, bytes_b), N, K);
    int32_t *d_c = (int32_t *)rq_device_buffer(n_c * 4);
    gemm_wgmma<<<dim3(N / TILE, M / TILE), THREADS, STAGES * STAGE_BYTES>>>(map_a, map_b, d_c, N, K);
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
    rq_need_device(90);
    test_shape(64, 64, 128);
    test_shape(64, 128, 400); /* a last step that is not full */
    if (!rq_small()) test_shape(128, 192, 1024);
    return rq_done(__FILE__);
}
