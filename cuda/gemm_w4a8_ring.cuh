/* SPDX-License-Identifier: Apache-2.0 */
/* The ring of the GEMMs of W4A8 by wgmma (sm_90a). One warp feeds it: x by tensor copies, which swizzle it and fill with zeros past its end, weights,
 * levels and sums of x by bulk copies. Two warp groups have 64 rows of each slab. "Full" and "empty" mbarriers are between both. G is the kernel:
 * SLABS, TOK, STEPS and SUMMED of its stage (rq_gemm_stage), and the type of a sum. */
#ifndef RQ_GEMM_W4A8_RING_CUH
#define RQ_GEMM_W4A8_RING_CUH
#include <cuda.h>

#include "gemm_w4a8.cuh"

enum {
    RQ_RING_THREADS = RQ_GEMM_WGMMA_THREADS,
    RQ_RING_WORKERS = 256, /* threads that multiply */
    RQ_RING_OTHERS = RQ_RING_THREADS - RQ_RING_WORKERS,
    RQ_RING_WARPS = RQ_RING_WORKERS / 32,
    RQ_RING_SHARED = 226 * 1024 /* of a block */
};

template <int SLABS_, int TOK_, int STEPS_, bool SUMMED_, class SUM> struct rq_ring {
    static constexpr int SLABS = SLABS_, TOK = TOK_, STEPS = STEPS_, ROWS = SLABS * RQ_GEMM_SLAB;
    static constexpr bool SUMMED = SUMMED_;
    typedef rq_gemm_stage<SLABS, TOK, STEPS, SUMMED> stage;
    typedef rq_gemm_sums<ROWS, SUM> sums_type;
    static constexpr int FIT = RQ_RING_SHARED / stage::BYTES, STAGES = FIT < 8 ? FIT : 8;
    static constexpr int SUMS = TOK * sums_type::PITCH * 4, RING = STAGES * stage::BYTES;
    static constexpr int SHARED = RING > SUMS ? RING : SUMS;
    static_assert(SHARED <= RQ_RING_SHARED, "the sums of a tile go where the ring was");
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* A stage, and the parity of its phase. */
struct rq_ring_place {
    int stage, parity;
    template <int STAGES> __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

template <class G>
static __device__ __forceinline__ void rq_ring_weights(const rq_gemm_job &job, uint32_t to, uint32_t barrier, int kb,
                                                       int sum_bytes) {
    typedef typename G::stage stage;
    const int2 groups = G::STEPS ? rq_gemm_groups(job, kb) : make_int2(0, 0);
    const int levels = groups.y * RQ_GEMM_LEVEL_BYTES;
    ptx_barrier_expect(barrier, stage::X + sum_bytes + G::SLABS * (RQ_GEMM_SLAB_BYTES + levels));
#pragma unroll
    for (int s = 0; s < G::SLABS; ++s) {
        /* A second slab that is not there is the first once more; its sums are not written. */
        const size_t slab = min((int)blockIdx.y * G::SLABS + s, job.n_slab - 1);
        ptx_copy_bulk(to + stage::X + s * RQ_GEMM_SLAB_BYTES, job.tiles + (slab * job.n_kb + kb) * RQ_GEMM_SLAB_BYTES,
                      RQ_GEMM_SLAB_BYTES, barrier);
        if (G::STEPS)
            ptx_copy_bulk(to + stage::LEVELS_AT + s * (stage::GROUPS * RQ_GEMM_LEVEL_BYTES),
                          job.levels + (slab * job.n_group + groups.x) * RQ_GEMM_LEVEL_BYTES, levels, barrier);
    }
}
template <class G>
static __device__ __forceinline__ void rq_ring_x(const rq_gemm_job &job, const CUtensorMap *map, uint32_t to,
                                                 uint32_t barrier, int kb, int sum_bytes) {
    const int token0 = (int)blockIdx.x * G::TOK;
    ptx_copy_box(to, map, kb * RQ_GEMM_COLS, token0, barrier);
    if (G::SUMMED)
        ptx_copy_bulk(to + G::stage::SUMS_AT, job.x_block_sum + (size_t)kb * job.sum_pitch + token0, sum_bytes,
                      barrier);
}

/* Bytes of the sums of x that a stage has, of tokens that are there or make four of those; the other places are 0, once, by all threads. */
template <class G> static __device__ __forceinline__ int rq_ring_sum_bytes(const rq_gemm_job &job) {
    return G::SUMMED ? min(G::TOK, job.sum_pitch - (int)blockIdx.x * G::TOK) * 4 : 0;
}
template <class G> static __device__ __forceinline__ void rq_ring_clear_sums(const rq_gemm_job &job, uint8_t *ring) {
    const int there = rq_ring_sum_bytes<G>(job) / 4;
    for (int i = threadIdx.x; i < G::STAGES * G::TOK; i += RQ_RING_THREADS)
        if (i % G::TOK >= there)
            *reinterpret_cast<float *>(ring + i / G::TOK * G::stage::BYTES + G::stage::SUMS_AT + i % G::TOK * 4) = 0.0f;
}

/* By one thread. What does not depend on the kernel before is under way while that ends. */
template <class G>
static __device__ __forceinline__ void rq_ring_fill(const rq_gemm_job &job, const CUtensorMap *map, uint32_t ring,
                                                    uint32_t full, uint32_t empty, int kb0, int n) {
    const int ahead = min(n, G::STAGES);
    const int sum_bytes = rq_ring_sum_bytes<G>(job);
    for (int i = 0; i < ahead; ++i)
        rq_ring_weights<G>(job, ring + i * G::stage::BYTES, full + i * 8, kb0 + i, sum_bytes);
    ptx_wait_for_kernels_before();
    for (int i = 0; i < ahead; ++i)
        rq_ring_x<G>(job, map, ring + i * G::stage::BYTES, full + i * 8, kb0 + i, sum_bytes);
    rq_ring_place at = {0, 0};
    for (int i = ahead; i < n; ++i, at.next<G::STAGES>()) {
        ptx_barrier_wait(empty + at.stage * 8, at.parity);
        const uint32_t to = ring + at.stage * G::stage::BYTES, barrier = full + at.stage * 8;
        rq_ring_weights<G>(job, to, barrier, kb0 + i, sum_bytes);
        rq_ring_x<G>(job, map, to, barrier, kb0 + i, sum_bytes);
    }
}

/* Barriers of the ring, by one thread; all meet after it. */
template <class G> static __device__ __forceinline__ void rq_ring_start(uint32_t full, uint32_t empty) {
    for (int i = 0; i < G::STAGES; ++i) {
        ptx_barrier_start(full + i * 8, 1);
        ptx_barrier_start(empty + i * 8, RQ_RING_WARPS);
    }
    ptx_fence_barriers();
}

/* The sums of all warp groups go where the ring was, and to y. */
template <class G, class END, class SUM, int TILES>
static __device__ __forceinline__ void rq_ring_finish(const rq_gemm_job &job, END end, uint8_t *ring_memory,
                                                      const SUM (&acc)[G::SLABS][TILES][4], int tid) {
    const int lane = tid % 32, warp_rb = tid / 32;
    rq_gemm_meet<RQ_RING_WORKERS>(); /* all have read the ring */
    const typename G::sums_type sums = {reinterpret_cast<SUM *>(ring_memory)};
#pragma unroll
    for (int r = 0; r < G::SLABS; ++r)
#pragma unroll
        for (int t = 0; t < TILES; ++t)
            sums.put(r * RQ_GEMM_SLAB + warp_rb * RQ_TILE_ROWS + lane / 4, t * 8 + lane % 4 * 2, acc[r][t]);
    rq_gemm_meet<RQ_RING_WORKERS>();
    rq_gemm_finish<G::ROWS, G::TOK, RQ_RING_WORKERS>(job, end, sums, tid);
}
#endif
#endif
