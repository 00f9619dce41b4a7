/* SPDX-License-Identifier: Apache-2.0 */
/* The GEMM of W4A8 for sm_90a: wgmma.m64nNk32.u8.s8, weights from registers, x from shared memory. One warp feeds the ring: x by
 * tensor copies, which swizzle it and fill with zeros past its end, weights and levels by bulk copies. Two warp groups have 64 rows of each slab:
 * they read their codes as they are packed, 16 bytes a lane without a conflict, decode them in registers, and keep a wgmma under way while
 * they decode for the next. "Full" and "empty" mbarriers are between both. Targets: sm_80 sm_90a (nothing for sm_80). */
#include <cuda.h>

#include "gemm_w4a8.cuh"

enum {
    THREADS = RQ_GEMM_WGMMA_THREADS,
    WORKERS = 256, /* threads that multiply */
    WORKER_WARPS = WORKERS / 32,
    SHARED_OF_BLOCK = 226 * 1024
};

template <int SLABS, int TOK, int STEPS> struct gemm {
    typedef rq_gemm_stage<SLABS, TOK, STEPS> stage;
    static constexpr int ROWS = SLABS * RQ_GEMM_SLAB;
    static constexpr int FIT = SHARED_OF_BLOCK / stage::BYTES, STAGES = FIT < 8 ? FIT : 8;
    static constexpr int SUMS = TOK * rq_gemm_sums<ROWS>::PITCH * 4, RING = STAGES * stage::BYTES;
    static constexpr int SHARED = RING > SUMS ? RING : SUMS;
    static_assert(SHARED <= SHARED_OF_BLOCK, "the sums of a tile go where the ring was");
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* A stage, and the parity of its phase. */
struct place_in_ring {
    int stage, parity;
    template <int STAGES> __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

template <int SLABS, int TOK, int STEPS>
static __device__ __forceinline__ void copy_weights(const rq_gemm_job &job, uint32_t to, uint32_t barrier, int kb) {
    typedef rq_gemm_stage<SLABS, TOK, STEPS> stage;
    const int2 groups = STEPS ? rq_gemm_groups(job, kb) : make_int2(0, 0);
    const int levels = groups.y * RQ_GEMM_LEVEL_BYTES;
    ptx_barrier_expect(barrier, stage::X + SLABS * (RQ_GEMM_SLAB_BYTES + levels));
#pragma unroll
    for (int s = 0; s < SLABS; ++s) {
        /* A second slab that is not there is the first once more; its sums are not written. */
        const size_t slab = min((int)blockIdx.y * SLABS + s, job.n_slab - 1);
        ptx_copy_bulk(to + stage::X + s * RQ_GEMM_SLAB_BYTES, job.tiles + (slab * job.n_kb + kb) * RQ_GEMM_SLAB_BYTES,
                      RQ_GEMM_SLAB_BYTES, barrier);
        if (STEPS)
            ptx_copy_bulk(to + stage::X + stage::WEIGHTS + s * (stage::GROUPS * RQ_GEMM_LEVEL_BYTES),
                          job.levels + (slab * job.n_group + groups.x) * RQ_GEMM_LEVEL_BYTES, levels, barrier);
    }
}

/* By one thread. What does not depend on the kernel before is under way while that ends. */
template <int SLABS, int TOK, int STEPS>
static __device__ __forceinline__ void produce(const rq_gemm_job &job, const CUtensorMap *map, uint32_t ring,
                                               uint32_t full, uint32_t empty, int kb0, int n) {
    typedef gemm<SLABS, TOK, STEPS> g;
    const int token0 = (int)blockIdx.x * TOK, ahead = min(n, g::STAGES);
    for (int i = 0; i < ahead; ++i)
        copy_weights<SLABS, TOK, STEPS>(job, ring + i * g::stage::BYTES, full + i * 8, kb0 + i);
    ptx_wait_for_kernels_before();
    for (int i = 0; i < ahead; ++i)
        ptx_copy_box(ring + i * g::stage::BYTES, map, (kb0 + i) * RQ_GEMM_COLS, token0, full + i * 8);
    place_in_ring at = {0, 0};
    for (int i = ahead; i < n; ++i, at.next<g::STAGES>()) {
        ptx_barrier_wait(empty + at.stage * 8, at.parity);
        const uint32_t to = ring + at.stage * g::stage::BYTES, barrier = full + at.stage * 8;
        copy_weights<SLABS, TOK, STEPS>(job, to, barrier, kb0 + i);
        ptx_copy_box(to, map, (kb0 + i) * RQ_GEMM_COLS, token0, barrier);
    }
}

/* The sums of 64 rows of each slab. Register buffers of A by turns: while a wgmma reads one, the other is written. */
template <int SLABS, int TOK, int STEPS>
static __device__ __forceinline__ void consume(const rq_gemm_job &job, int (&acc)[SLABS][TOK / 8][4], uint32_t ring,
                                               uint32_t full, uint32_t empty, int kb0, int n, int warp_rb) {
    typedef gemm<SLABS, TOK, STEPS> g;
    typedef typename g::stage stage;
    const int lane = threadIdx.x % 32;
    const uint32_t weights_at = stage::X + warp_rb * 1024 + lane * 16;
    const uint32_t levels_at = stage::X + stage::WEIGHTS + warp_rb * 32 + lane / 4 * 4;
    place_in_ring at = {0, 0};
    int before = 0;
#pragma unroll 1
    for (int i = 0; i < n; ++i, at.template next<g::STAGES>()) {
        const uint32_t from = ring + at.stage * stage::BYTES;
        const int step0 = (kb0 + i) * 4, first = STEPS == 1 ? rq_gemm_group(job, step0) : 0;
        ptx_barrier_wait(full + at.stage * 8, at.parity);
        rq_w4a8_level level[SLABS][2];
        uint4 words[SLABS];
        uint32_t a[2][4];
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            const int group = STEPS == 1 ? min(rq_gemm_group(job, step0 + s), job.n_group - 1) - first : 0;
#pragma unroll
            for (int r = 0; r < SLABS; ++r) {
                if (s % 2 == 0) words[r] = ptx_load_shared16(from + weights_at + r * RQ_GEMM_SLAB_BYTES + s / 2 * 512);
                if (STEPS && s % (STEPS ? STEPS : 1) == 0) {
                    const uint32_t both =
                        ptx_load_shared4(from + levels_at + (r * stage::GROUPS + group) * RQ_GEMM_LEVEL_BYTES);
                    level[r][0].set(both, 0), level[r][1].set(both, 1);
                }
                uint32_t(&mine)[4] = a[(s * SLABS + r) % 2];
                rq_gemm_decode<STEPS>(mine, s % 2 ? words[r].z : words[r].x, s % 2 ? words[r].w : words[r].y, level[r]);
                ptx_wgmma_fence();
                ptx_wgmma_u8s8(acc[r], mine, ptx_wgmma_rows128(from + s * 32));
                ptx_wgmma_commit();
                ptx_wgmma_wait<1>();
                /* The last wgmma of the stage before is done: it may be filled again. */
                if (s == 0 && r == 0 && i > 0 && lane == 0) ptx_barrier_arrive(empty + before * 8);
            }
        }
        before = at.stage;
    }
    ptx_wgmma_wait<0>();
}
#endif

template <int SLABS, int TOK, int STEPS>
__global__ void __launch_bounds__(THREADS, 1)
    rq_gemm_w4a8_wgmma(const rq_gemm_job job, const __grid_constant__ CUtensorMap map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    typedef gemm<SLABS, TOK, STEPS> g;
    extern __shared__ __align__(1024) uint8_t ring_memory[];
    __shared__ uint64_t barriers[2 * g::STAGES];
    const uint32_t ring = ptx_shared(ring_memory), full = ptx_shared(barriers), empty = full + g::STAGES * 8;
    const int kb0 = (int)blockIdx.z * job.part_kb, n = min(job.n_kb - kb0, job.part_kb);
    if (threadIdx.x == 0) {
        for (int i = 0; i < g::STAGES; ++i) {
            ptx_barrier_start(full + i * 8, 1);
            ptx_barrier_start(empty + i * 8, WORKER_WARPS);
        }
        ptx_fence_barriers();
    }
    __syncthreads();
    ptx_let_kernels_after_start();
    if (threadIdx.x < THREADS - WORKERS) {
        ptx_fewer_registers<40>();
        if (threadIdx.x == 0) produce<SLABS, TOK, STEPS>(job, &map, ring, full, empty, kb0, n);
    } else {
        ptx_more_registers<232>();
        const int tid = (int)threadIdx.x - (THREADS - WORKERS), lane = tid % 32, warp_rb = tid / 32;
        ptx_wait_for_kernels_before();
        int acc[SLABS][TOK / 8][4];
#pragma unroll
        for (int r = 0; r < SLABS; ++r)
#pragma unroll
            for (int t = 0; t < TOK / 8; ++t)
#pragma unroll
                for (int k = 0; k < 4; ++k) acc[r][t][k] = 0;
        consume<SLABS, TOK, STEPS>(job, acc, ring, full, empty, kb0, n, warp_rb);
        rq_gemm_meet<WORKERS>(); /* all have read the ring */
        const rq_gemm_sums<g::ROWS> sums = {reinterpret_cast<int *>(ring_memory)};
#pragma unroll
        for (int r = 0; r < SLABS; ++r)
#pragma unroll
            for (int t = 0; t < TOK / 8; ++t)
                sums.put(r * RQ_GEMM_SLAB + warp_rb * RQ_TILE_ROWS + lane / 4, t * 8 + lane % 4 * 2, acc[r][t]);
        rq_gemm_meet<WORKERS>();
        rq_gemm_finish<g::ROWS, TOK, WORKERS>(job, sums, tid);
    }
#endif
}

/* ---- for the launch */

template <int SLABS, int TOK> static rq_gemm_kernel of(int steps) {
    rq_gemm_kernel k = {};
    k.slabs = SLABS, k.tok = TOK, k.threads = THREADS, k.name = "gemm_w4a8_wgmma";
    if (steps == 0)
        k.function = (const void *)rq_gemm_w4a8_wgmma<SLABS, TOK, 0>, k.shared_bytes = gemm<SLABS, TOK, 0>::SHARED;
    else if (steps == 1)
        k.function = (const void *)rq_gemm_w4a8_wgmma<SLABS, TOK, 1>, k.shared_bytes = gemm<SLABS, TOK, 1>::SHARED;
    else
        k.function = (const void *)rq_gemm_w4a8_wgmma<SLABS, TOK, 4>, k.shared_bytes = gemm<SLABS, TOK, 4>::SHARED;
    return k;
}
rq_gemm_kernel rq_gemm_wgmma_kernel(int slabs, int tok, int steps) {
    if (slabs == 2) return of<2, 128>(steps);
    return tok == 32 ? of<1, 32>(steps) : tok == 64 ? of<1, 64>(steps) : of<1, 128>(steps);
}

typedef CUresult (*encode_tiled)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                 const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
/* The driver's function, through the runtime, so that nothing links with libcuda; NULL: there is none. */
static encode_tiled find_encode() {
    void *f = NULL;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t e =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found);
    return e == cudaSuccess && found == cudaDriverEntryPointSuccess ? (encode_tiled)f : NULL;
}
static encode_tiled encode() {
    static const encode_tiled f = find_encode();
    return f;
}
rq_status rq_gemm_wgmma_prepare(void) {
    return encode() ? RQ_OK : rq_gemv_fail(RQ_ERR_DEVICE, "the driver has no cuTensorMapEncodeTiled");
}

static_assert(sizeof(CUtensorMap) == sizeof(rq_gemm_map) && alignof(CUtensorMap) <= alignof(rq_gemm_map), "the map");
rq_status rq_gemm_wgmma_map(rq_gemm_map *to, const rq_gemm_job *job, int tok) {
    CUtensorMap *map = reinterpret_cast<CUtensorMap *>(to);
    const cuuint64_t size[2] = {(cuuint64_t)job->n_in, (cuuint64_t)job->n_tok}, pitch[1] = {(cuuint64_t)job->n_in};
    const cuuint32_t box[2] = {RQ_GEMM_COLS, (cuuint32_t)tok}, step[2] = {1, 1};
    const CUresult e = encode()(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<int8_t *>(job->x), size, pitch, box,
                                step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return e == CUDA_SUCCESS ? RQ_OK : rq_gemv_fail(RQ_ERR_DEVICE, "cuTensorMapEncodeTiled refuses x");
}
